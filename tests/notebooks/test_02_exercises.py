"""Exercises of chapter 02 both ways: the solution passes, the stub and typical mistakes do not."""

from __future__ import annotations

import pytest
import torch

from nas_core.workbook import checks
from tests.notebooks.book import exercises

NAMES = {
    "score": checks.ex_2_1,
    "reinforce_loss": checks.ex_2_2,
    "leave_one_out": checks.ex_2_3,
    "smallest_lambda": checks.ex_2_4,
}


@pytest.mark.parametrize("name", NAMES)
def test_the_solution_passes(name, capsys):
    assert NAMES[name](exercises("02", "solution", torch=torch)[name])
    assert capsys.readouterr().out.startswith("✓ 2.")


@pytest.mark.parametrize("name", NAMES)
def test_the_stub_is_told_that_it_is_empty(name, capsys):
    assert not NAMES[name](exercises("02", "stub", torch=torch)[name])
    assert "not written yet" in capsys.readouterr().out


def sigma(z):
    return torch.sigmoid(z)


def within(d, o):
    return d[o == 0].min()


def advantage(d):
    return (d - d.mean()).detach()


MISTAKES = [
    ("score", "sign", lambda m, d, z: d * (sigma(z) - m.float()), "sign is reversed"),
    ("score", "all coins", lambda m, d, z: m.float() - sigma(z), "not thrown"),
    (
        "score",
        "by γ",
        lambda m, d, z: d * (m.float() - sigma(z)) / (sigma(z) * (1 - sigma(z))),
        "derivative by γ",
    ),
    ("score", "on only", lambda m, d, z: d * m * (1 - sigma(z)), "came up off has a score"),
    (
        "score",
        "sign of off",
        lambda m, d, z: d * torch.where(m, 1 - sigma(z), sigma(z)),
        "−σ(z)",
    ),
    ("score", "bool minus float", lambda m, d, z: d * (m - sigma(z)), "mask.float() turns"),
    ("score", "one row", lambda m, d, z: (m.float() - sigma(z))[0], "expected shape [3, 5]"),
    ("reinforce_loss", "sign", lambda lp, d: -(advantage(d) * lp).mean(), "sign is reversed"),
    ("reinforce_loss", "no baseline", lambda lp, d: (d.detach() * lp).mean(), "no baseline"),
    ("reinforce_loss", "sum", lambda lp, d: (advantage(d) * lp).sum(), "the sum over the batch"),
    (
        "reinforce_loss",
        "sum, no baseline",
        lambda lp, d: (d.detach() * lp).sum(),
        "no baseline, and the sum",
    ),
    (
        "reinforce_loss",
        "sign and baseline",
        lambda lp, d: -(d.detach() * lp).mean(),
        "no baseline, and the sign",
    ),
    (
        "reinforce_loss",
        "product of means",
        lambda lp, d: advantage(d).mean() * lp.mean(),
        "log_prob gets no gradient",
    ),
    (
        "reinforce_loss",
        "standardised",
        lambda lp, d: (advantage(d) / d.detach().std() * lp).mean(),
        "division by the standard deviation",
    ),
    (
        "reinforce_loss",
        "of P",
        lambda lp, d: (advantage(d) * lp.exp()).mean(),
        "differentiates the probability",
    ),
    ("reinforce_loss", "no detach", lambda lp, d: ((d - d.mean()) * lp).mean(), "detach()"),
    ("reinforce_loss", "vector", lambda lp, d: advantage(d) * lp, "one number"),
    ("reinforce_loss", "returns nothing", lambda lp, d: [].append(d), "`return` missing"),
    ("leave_one_out", "batch mean", lambda d: d.mean(), "mean of its own"),
    ("leave_one_out", "includes itself", lambda d: d.mean().expand(len(d)), "itself included"),
    ("leave_one_out", "divides by S", lambda d: (d.sum() - d) / len(d), "S − 1"),
    (
        "leave_one_out",
        "advantage",
        lambda d: d - (d.sum() - d) / (len(d) - 1),
        "only the baseline",
    ),
    (
        "smallest_lambda",
        "negative",
        lambda d, o: ((within(d, o) - d[o > 0]) / o[o > 0]).max() if (o > 0).any() else 0.0,
        "never negative",
    ),
    (
        "smallest_lambda",
        "first crossing",
        lambda d, o: (
            max(((within(d, o) - d[o > 0]) / o[o > 0]).min().item(), 0.0) if (o > 0).any() else 0.0
        ),
        "first crossing",
    ),
    (
        "smallest_lambda",
        "worst within",
        lambda d, o: (
            max(((d[o == 0].max() - d[o > 0]) / o[o > 0]).max().item(), 0.0)
            if (o > 0).any()
            else 0.0
        ),
        "not with the worst",
    ),
    (
        "smallest_lambda",
        "sign",
        lambda d, o: ((d[o > 0] - within(d, o)) / o[o > 0]).min().item(),
        "the sign is reversed",
    ),
    (
        "smallest_lambda",
        "no division",
        lambda d, o: max((within(d, o) - d[o > 0]).max().item(), 0.0),
        "divide by the overspending",
    ),
    (
        "smallest_lambda",
        "mean",
        lambda d, o: max(((within(d, o) - d[o > 0]) / o[o > 0]).mean().item(), 0.0),
        "mean of the crossings",
    ),
    (
        "smallest_lambda",
        "best of all",
        lambda d, o: max(((d.min() - d[o > 0]) / o[o > 0]).max().item(), 0.0),
        "not with the best of all",
    ),
    (
        "smallest_lambda",
        "nobody violates",
        lambda d, o: max(((within(d, o) - d[o > 0]) / o[o > 0]).max().item(), 0.0),
        "then λ* is 0",
    ),
    (
        "smallest_lambda",
        "division by zero",
        lambda d, o: ((within(d, o) + 1 - d) / o).max().item(),
        "violators alone",
    ),
]


@pytest.mark.parametrize(
    ("name", "answer", "message"),
    [(name, answer, message) for name, _, answer, message in MISTAKES],
    ids=[f"{name}: {what}" for name, what, *_ in MISTAKES],
)
def test_a_typical_mistake_is_named(name, answer, message, capsys):
    assert not NAMES[name](answer)
    said = capsys.readouterr().out
    assert said.startswith("✗ 2.") and message in said


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("answer", [None, 3, "score"])
def test_what_is_no_function_fails_quietly(name, answer, capsys):
    assert not NAMES[name](answer)
    assert capsys.readouterr().out.startswith(("✗ 2.", "○ 2."))
