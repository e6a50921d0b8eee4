"""The study of benchmarks/segmentation_study.py at its smallest, and its controls of equal cost."""

import cloudpickle
import pytest
import torch

from benchmarks import segmentation_study as study
from nas_core.segmentation import count_macs, segmenter
from nas_core.supernet import count_params

SMALL = {"images": "curves", "train": 4, "epochs": 1, "batch": 4, "lr": 2e-3, "seed": 0}


def test_controls_spend_what_dru_spends():
    dru = segmenter("DRU(4)", 1, 2)
    (params,) = study.build("U-Net, equal parameters", 1, 2, 48)
    assert 1 <= count_params(params) / count_params(dru) < 1.25
    (macs,) = study.build("U-Net, equal macs", 1, 2, 48)
    goal = count_macs(dru, 48, 48, 3)
    assert 1 <= count_macs(macs, 48, 48) / goal < 1.25
    members = study.build("U-Net, 3 vote", 1, 2, 48)
    assert 0.9 < sum(count_macs(net, 48, 48) for net in members) / goal < 1.1
    assert not study.build("DRU(4) without mask", 1, 2, 48)[0].feeds_mask


def test_votes_and_views_average_probabilities():
    torch.manual_seed(0)
    nets = [net.eval() for net in study.build("U-Net, 3 vote", 1, 2, 16)]
    x = torch.rand(2, 1, 16, 16)
    with torch.no_grad():
        by_hand = sum(net(x)[0].softmax(1) for net in nets) / 3
        assert torch.allclose(study.predictor("U-Net, 3 vote", nets)(x)[0].exp(), by_hand)
        net = nets[0]
        mirrored = net(x.flip(-1))[0].flip(-1).softmax(1) + net(x.flip(-2))[0].flip(-2).softmax(1)
        by_hand = (net(x)[0].softmax(1) + mirrored) / 3
        assert torch.allclose(study.predictor("U-Net, 3 views", nets)(x)[0].exp(), by_hand)


@pytest.mark.parametrize("network", ["DRU(4)", "U-Net, 3 vote"])
def test_a_trial_has_a_row_for_every_iteration(network):
    result = study.trial(network=network, alpha=0.4, **SMALL)
    steps = 3 if network == "DRU(4)" else 1
    assert [row["iteration"] for row in result["rows"]] == [1, 2, 3][:steps]
    for row in result["rows"]:
        assert 0 <= row["mIoU"] <= 1 and row["ms"] > 0
    if steps == 3:
        macs = [row["macs"] for row in result["rows"]]
        assert macs == [macs[0], 2 * macs[0], 3 * macs[0]]
    assert study.majority("curves") == pytest.approx(0.44, abs=0.01)


def test_a_trial_can_be_sent_to_another_process(monkeypatch):
    monkeypatch.setattr(study.trial, "__module__", "__main__")  # as a script, sent by value
    cloudpickle.register_pickle_by_value(study)
    try:
        assert cloudpickle.loads(cloudpickle.dumps(study.trial)).__name__ == "trial"
    finally:
        cloudpickle.unregister_pickle_by_value(study)


def test_the_configuration_is_that_of_the_parser():
    expected = {"images": "nuclei", "train": None, "epochs": 20, "batch": 10, "lr": 0.002}
    assert study.configuration(["nuclei", "--epochs", "20", "--seeds", "0", "1"]) == expected
