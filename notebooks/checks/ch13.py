"""Checks of chapter 13, evaluating the search."""

from __future__ import annotations

import math

import numpy as np

from nas_core.ranking.metrics import p_above_random, rank_of, sparse_kendall
from nas_core.workbook.checks import Problem, compare, exercise


def _variant(truth, scores, step, mistake: str) -> float:
    """s-KdT with one of the usual mistakes."""
    truth, scores = np.asarray(truth), np.asarray(scores)
    bins = {"plain": truth, "floor": np.floor(truth / step)}.get(mistake, np.round(truth / step))
    scores = np.round(scores / step) if mistake == "both" else scores
    x = np.sign(np.subtract.outer(bins, bins))
    y = np.sign(np.subtract.outer(scores, scores))
    pairs = len(truth) * (len(truth) - 1)
    total = pairs if mistake == "tau-a" else math.sqrt((x * x).sum() * (y * y).sum())
    return float((x * y).sum() / total)


def _is(mistake: str):
    return lambda got, want, *given: math.isclose(got, _variant(*given, mistake), abs_tol=1e-6)


@exercise("13.1", "sparse Kendall τ")
def ex_13_1(answer) -> Problem:
    """`fn(truth [N], scores [N], step) -> float`."""
    rng = np.random.default_rng(3)
    truth = np.round(rng.uniform(0.89, 0.93, 14), 4)
    scores = np.round(truth + rng.normal(0, 0.01, 14), 4)
    scores[3] = scores[5]
    return compare(
        answer,
        sparse_kendall,
        {
            "four architectures": (
                np.array([0.9001, 0.9004, 0.95, 0.97]), np.array([2.0, 1.0, 3.0, 4.0]), 0.001
            ),
            "fourteen, two with the same score": (truth, scores, 0.002),
        },
        hints=[
            (_is("plain"), "round the truth to multiples of `step` before you compare pairs"),
            (_is("both"), "round the truth only; scores keep their order"),
            (_is("floor"), "`floor` puts .9009 and .9011 into different bins; round instead"),
            (_is("tau-a"), "tied pairs do not count in the denominator: √(n_x · n_y)"),
            (
                lambda got, want, *given: math.isclose(got, -want, abs_tol=1e-6),
                "the sign is wrong: a pair in the same order counts +1",
            ),
        ],
    )  # fmt: skip


_TRUTH = {(n,): n / 50 for n in range(50)}


def _climb(seed: int) -> tuple[int, ...]:
    return (30 + 7 * seed % 20,)


def _guess(seed: int) -> tuple[int, ...]:
    return (17 * seed % 50,)


def _judge(cell: tuple[int, ...]) -> float:
    return _TRUTH[cell]


def _framework(searches, judge, seeds, everything, mistake: str = ""):
    table = {}
    for name, search in searches.items():
        values = [judge(search(seeds[0] if mistake == "seed" else seed)) for seed in seeds]
        rank = rank_of(np.mean(values) if mistake == "mean" else max(values), everything)
        rank -= mistake == "zero"
        total, n = len(everything), 1 if mistake == "draws" else len(values)
        p = (1 - rank / total) ** n
        table[name] = (float(np.mean(values)), rank, 1 - p if mistake == "printed" else p)
    return table


def _same_as(mistake: str):
    def holds(got, want, *given):
        wrong = _framework(*given, mistake)
        return all(np.allclose(got[name], wrong[name], atol=1e-9) for name in wrong)

    return holds


def _reference(searches, judge, seeds, everything):
    table = _framework(searches, judge, seeds, everything)
    for _, rank, p in table.values():
        assert math.isclose(p, p_above_random(rank, len(everything), len(seeds)))
    return table


@exercise("13.2", "the framework")
def ex_13_2(answer) -> Problem:
    """`fn(searches, judge, seeds, everything) -> {name: (mean, best rank, p)}`."""
    everything = list(_TRUTH.values())
    return compare(
        answer,
        _reference,
        {
            "two searches, five seeds": (
                {"climb": _climb, "guess": _guess}, _judge, range(5), everything
            ),
            "seeds that do not start at 0": ({"guess": _guess}, _judge, [7, 8, 11], everything),
        },
        hints=[
            (_same_as("seed"), "every run gets its own seed: call `search(seed)`"),
            (_same_as("printed"), "this is eq. 5.1 as printed, the probability of losing"),
            (_same_as("zero"), "the best architecture has rank 1: add one to those better"),
            (_same_as("mean"), "the rank is that of the best run, not of the mean"),
            (_same_as("draws"), "random search has as many draws as the search has runs"),
        ],
    )  # fmt: skip
