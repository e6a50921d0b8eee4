"""Chapter 12: what each of its bands must reject, and its exercises both ways."""

import re
from functools import cache

import pytest
import torch
from torch.nn.functional import cross_entropy

from nas_core import data
from nas_core.segmentation import StopController, count_macs, glimpses, measure, segmenter
from nas_core.supernet import count_params
from nas_core.workbook import checks
from nas_core.workbook.results import replay
from tests.notebooks.book import claimed, control_tests, exercises

BANDS = claimed("12")


@cache
def images():
    return data.load("curves", train_limit=60)


@cache
def untrained(iteration):
    torch.manual_seed(0)
    return measure(segmenter("DRU(4)", 1, 2), images().test)[iteration - 1]["mIoU"]


def recorded_gain(network):
    """Mean gain over the seeds of the record, from look 1 to look 3."""
    runs = replay("12_recurrent_segmentation")
    found = runs[(runs.result == "curves") & (runs.network == network)]
    by_look = found.groupby("iteration").mIoU.mean()
    return by_look[3] - by_look[1]


def looks(price, shift=0.0):
    """Looks per image of a rule whose losses say that each look is worth `shift`."""
    torch.manual_seed(0)
    seen = glimpses(torch.randn(3, 40, 2, 8, 8))
    losses = 0.3 - shift * torch.arange(3)[:, None].expand(3, 40)
    return float(StopController(3).fit(seen, losses, price).decide(seen).float().mean()) + 1


def unbounded():
    """The candidate without tanh."""
    h, z = torch.ones(1), torch.tensor(0.5)
    for _ in range(50):
        h = z * h + (1 - z) * 5.0
    return float(h)


CONTROLS = {
    "M parameters of DRU(4)": {
        "SRU(4)": lambda: count_params(segmenter("SRU(4)", 3, 2)) / 1e6,
        "two convolutions": lambda: count_params(segmenter("DRU(4)", 3, 2, convs=2)) / 1e6,
    },
    "largest entry of h over fifty iterations": {"no tanh": unbounded},
    "mIoU of DRU(4) after three iterations": {"untrained": lambda: untrained(3)},
    "gain of DRU(4) from iteration 1 to 3": {
        "no gain": lambda: 0.0,
        "no mask is fed back": lambda: recorded_gain("DRU(4) without mask"),
    },
    "loss of IoU by another image's mask": {"a network that ignores the mask": lambda: 0.0},
    "looks per image when they are free": {
        "looks that harm": lambda: looks(0.0, shift=-0.1),
        "looks that always help": lambda: looks(0.0, shift=0.1),
    },
    "looks per image at λ = 0.1": {"looks that are worth it": lambda: looks(0.1, shift=0.2)},
}

test_every_band_has_a_control, test_the_band_rejects_the_mistake = control_tests(BANDS, CONTROLS)

CHECKS = {"dru": checks.ex_12_1, "stopping": checks.ex_12_2}
SOLVED = exercises("12", "solution", torch=torch)


@pytest.mark.parametrize("name", CHECKS)
def test_solutions_pass_and_stubs_do_not(name, capsys):
    assert CHECKS[name](SOLVED[name])
    assert not CHECKS[name](exercises("12", "stub")[name])
    assert "not written yet" in capsys.readouterr().out


def wrong_dru(mistake):
    def dru(e, h, f_z, f_r, f_h):
        z, r = f_z(e).sigmoid(), f_r(e).sigmoid()
        if mistake == "gru":
            return z * r * h + (1 - z) * f_h(e).tanh()
        candidate = f_h(e if mistake == "sru" else r * e)
        candidate = candidate if mistake == "linear" else candidate.tanh()
        return (1 - z) * h + z * candidate if mistake == "swap" else z * h + (1 - z) * candidate

    return dru


@pytest.mark.parametrize(
    ("name", "answer", "words"),
    [
        ("dru", wrong_dru("swap"), "share of the old state"),
        ("dru", wrong_dru("sru"), "without r this is the SRU"),
        ("dru", wrong_dru("gru"), "acts on e"),
        ("dru", wrong_dru("linear"), "tanh"),
        ("stopping", lambda z: z.sigmoid(), "column is missing|multiply by all"),
        ("stopping", lambda z: SOLVED["stopping"](z)[:, :-1], "a column is missing"),
        ("stopping", lambda z: SOLVED["stopping"](-z), "of stopping, not of going on"),
        (
            "stopping",
            lambda z: torch.cat([z.sigmoid(), 1 - z.sigmoid().sum(1, keepdim=True)], 1),
            "multiply by all",
        ),
    ],
)
def test_usual_mistakes_are_recognized(name, answer, words, capsys):
    assert not CHECKS[name](answer)
    assert re.search(words, capsys.readouterr().out)


def test_unrolled_looks_cost_what_the_network_counts():
    """The picture prices a look by the first one; all looks of DRU(4) cost the same."""
    net = segmenter("DRU(4)", 1, 2)
    assert count_macs(net, 48, 48, 3) == 3 * count_macs(net, 48, 48, 1)


def test_the_loss_of_an_image_is_the_mean_over_its_pixels():
    y = images().test.y[:2]
    logits = torch.randn(2, 2, *y.shape[1:])
    each = cross_entropy(logits, y, reduction="none").mean((1, 2))
    assert torch.allclose(each.mean(), cross_entropy(logits, y))
