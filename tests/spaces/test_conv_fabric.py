"""The convolutional neural fabric: exact figures of spec 1.4-1.5, structure, bad input."""

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from nas_core.costs import computation, memory
from nas_core.spaces import conv_fabric, share_by_scale
from nas_core.supernet import Architecture


def full(net):
    return torch.ones(1, net.num_edges, dtype=torch.bool)


@pytest.mark.parametrize(
    ("columns", "params", "thesis"),
    [
        (1, 744_330, 53_822_720),
        (2, 3_848_970, 406_209_536),
        (4, 8_579_850, 1_010_330_880),
        (8, 18_041_610, 2_218_573_568),
    ],
)
def test_parameters_and_thesis_cost_are_exact(columns, params, thesis):
    net = conv_fabric(columns, 6, 128, 10)
    assert sum(p.numel() for p in net.parameters()) == params
    assert memory(net)(full(net)).item() == params
    assert computation(net, "thesis")(full(net)).item() == thesis


def test_true_multiply_adds_are_exact_and_agree_with_the_flop_counter():
    net = conv_fabric(8, 6, 128, 10)
    assert computation(net)(full(net)).item() == 3_272_934_656
    with torch.device("meta"):
        shadow = conv_fabric(8, 6, 128, 10).eval()
        with FlopCounterMode(display=False) as counter:
            shadow(torch.empty(1, 3, 32, 32))
    assert counter.get_total_flops() == 2 * 3_272_934_656


def test_segmentation_cost_in_the_thesis_convention():
    net = conv_fabric(8, 9, 64, 3, task="segmentation")
    assert round(computation(net, "thesis")(full(net)).item() / 1e9, 3) == 35.614
    assert net.graph.shapes["output"] == (3, 256, 256)


def test_shares_by_scale_leave_out_stem_and_head():
    net = conv_fabric(2, 3, 4, 10)
    kept = torch.zeros(net.num_edges)
    assert share_by_scale(net.graph, kept) == {0: 0, 1: 0, 2: 0}
    names = [e.name for e in net.graph.edges]
    kept[[names.index(n) for n in ("stem", "0.0→1.0", "0.2→1.2", "1.1→1.2", "head")]] = 1
    # Into scale 0: same, up. Into scale 2: down (vertical) twice, down, same.
    assert share_by_scale(net.graph, kept) == {0: 1 / 2, 1: 0, 2: 2 / 4}


@pytest.mark.parametrize("task", ["classification", "segmentation"])
def test_edges_lead_where_the_figure_says(task):
    columns, scales = 4, 3
    net = conv_fabric(columns, scales, 4, 5, task=task)
    grid = [e for e in net.graph.edges if e.kind not in ("stem", "head")]
    for edge in grid:
        (a, s), (b, t) = (tuple(map(int, n.split("."))) for n in (edge.source, edge.target))
        assert edge.kind == {1: "down", 0: "same", -1: "up"}[t - s]
        if a == b:  # vertical edges: first column fine to coarse, last by the task
            assert a in (0, columns - 1)
            coarser = a == 0 or task == "classification"
            assert t - s == (1 if coarser else -1)
        else:
            assert b == a + 1
        shape_a, shape_b = net.graph.shapes[edge.source], net.graph.shapes[edge.target]
        assert shape_b[1] * 2**t == shape_a[1] * 2**s
    assert len(grid) == (columns - 1) * (3 * scales - 2) + 2 * (scales - 1)
    assert net.graph.positions["2.1"] == (2.0, -1.0)


def test_outputs_of_both_tasks():
    x = torch.randn(2, 3, 8, 8)
    assert conv_fabric(2, 4, 4, 10)(x).shape == (2, 10)
    assert conv_fabric(2, 4, 4, 3, task="segmentation")(x).shape == (2, 3, 8, 8)
    # Fewer scales than halvings: the coarsest map is pooled before the classifier.
    assert conv_fabric(2, 2, 4, 10, input_shape=(3, 8, 8))(x).shape == (2, 10)


def test_a_single_row_on_the_coarsest_scale_trains():
    net = conv_fabric(2, 3, 4, 10)
    mask = torch.zeros(4, net.num_edges, dtype=torch.bool)
    mask[0] = True  # the only row with 1×1 maps, whose batch norm has a single value per channel
    loss = net(torch.randn(4, 3, 4, 4), mask).square().sum()
    loss.backward()
    assert torch.isfinite(loss)


def test_an_extracted_architecture_computes_the_same():
    torch.manual_seed(0)
    net = conv_fabric(3, 3, 4, 10).eval()
    x = torch.randn(5, 3, 4, 4)
    for _ in range(4):
        mask = net.graph.reachable(torch.rand(net.num_edges) < 0.8)
        mask[net.graph.of_kind("stem", "head")] = True
        chosen = Architecture.from_mask(net.graph, mask)
        if not chosen.is_empty:
            torch.testing.assert_close(chosen.extract(net)(x), net(x, mask))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(scales=5, input_shape=(3, 8, 8)), r"5 scales do not fit 8×8.*at most 4 scales"),
        (dict(scales=6, input_shape=(1, 28, 28)), r"28×28.*at most 3 scales, or pad"),
        (dict(columns=0), "columns is 0"),
        (dict(columns=1, task="segmentation"), "at least 2"),
        (dict(scales=0), "scales is 0"),
        (dict(channels=2.5), "channels is 2.5"),
        (dict(num_classes=1), "num_classes is 1"),
        (dict(task="detection"), "'detection' is unknown"),
        (dict(input_shape=(8, 8)), "not .channels, height, width"),
    ],
)
def test_bad_input_is_refused_by_name(arguments, message):
    with pytest.raises(ValueError, match=message):
        conv_fabric(**{"columns": 2, "scales": 3, "channels": 4, "num_classes": 10, **arguments})


def test_sizes_may_be_numpy_integers():
    assert len(conv_fabric(np.int64(2), np.int64(3), np.int64(4), np.int64(10)).graph) == 13
