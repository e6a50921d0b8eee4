import numpy as np
import pytest
import torch

from nas_core.continual import (
    alexnet,
    average_accuracy,
    forgetting,
    learning_curve_area,
    mlp,
    resnet,
    transfer,
)  # fmt: skip

nan = float("nan")
WORKED = np.array([[0.9, nan, nan], [0.6, 0.8, nan], [0.3, 0.7, 0.5]])


def test_metrics_of_a_hand_worked_matrix():
    assert average_accuracy(WORKED) == pytest.approx((0.3 + 0.7 + 0.5) / 3)
    assert forgetting(WORKED) == pytest.approx(((0.3 - 0.9) + (0.7 - 0.8)) / 2)
    assert transfer(WORKED, 0.35) == pytest.approx(0.15)
    assert learning_curve_area([[0.1, 0.2, 0.6, 0.9], [0.3, 0.3, 0.3]], 2) == pytest.approx(0.3)
    assert forgetting([[0.4]]) == 0.0


@pytest.mark.parametrize("bad", [np.zeros((2, 3)), [[nan]], [[1.2]], np.zeros((0, 0))])
def test_metrics_refuse_what_is_no_accuracy_matrix(bad):
    with pytest.raises(ValueError):
        average_accuracy(bad)


def test_learning_curves_that_are_too_short_are_refused():
    with pytest.raises(ValueError, match="LCA@5 needs 6"):
        learning_curve_area([[0.1] * 5], 5)


def test_parameters_of_table_5_3():
    assert mlp().params == [785_000, 1_001_000, 10_010]
    assert resnet().params == [1_856, 147_968, 152_192, 152_192, 78_208, 73_984, 650]
    assert sum(resnet().params) == 607_050
    assert alexnet().params[:5] == [3_136, 73_856, 131_328, 2_099_200, 4_196_352]
    assert sum(p.numel() for p in alexnet().block(5, 5).parameters()) == 10_245
    conv = [m for m in resnet().path(10).modules() if isinstance(m, torch.nn.Conv2d)]
    assert all(m.bias is None for m in conv)


@pytest.mark.parametrize("modules", [3, 7, 10])
def test_the_ablations_cut_the_same_network(modules):
    cut = resnet(modules=modules)
    assert len(cut) == modules and sum(cut.params) == 607_050
    assert sum(cut.macs) == sum(resnet().macs)


def test_wrong_cuts_and_layers_are_refused():
    with pytest.raises(ValueError, match="3, 7 or 10"):
        resnet(modules=5)
    with pytest.raises(ValueError, match=r"0…6"):
        resnet().block(7, 10)
