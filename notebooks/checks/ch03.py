"""Checks of chapter 03: counting, the objective, selection on validation, per-example masks."""

from __future__ import annotations

from typing import Any

import pandas as pd
import torch

from nas_core.search import overspend, pareto_front
from nas_core.workbook.checks import Problem, compare, exercise


def _block_macs(inputs: int, outputs: int, size: int, stride: int) -> int:
    pixels = (size // stride) ** 2
    return 9 * pixels * (inputs * outputs + outputs * outputs)


@exercise("3.1", "the price of a block")
def ex_3_1(answer: Any) -> Problem:
    """`block_macs(inputs, outputs, size, stride)`."""
    return compare(
        answer,
        _block_macs,
        {
            "16 maps of 32×32, stride 1": (16, 16, 32, 1),
            "16 → 32 maps, 32×32, stride 2": (16, 32, 32, 2),
            "32 → 64 maps, 16×16, stride 2": (32, 64, 16, 2),
        },
        tolerance=0,
        hints=[
            (
                lambda got, want, i, o, s, k: (
                    k == 2 and got - want == 9 * i * o * (s**2 - (s // k) ** 2)
                ),
                "the first convolution has the stride: count its pixels after it, not before",
            ),
            (
                lambda got, want, *a: got == 2 * want,
                "a multiply-add is one operation here, not two",
            ),
            (lambda got, want, *a: a[3] == 2 and got == 4 * want, "count pixels of the *output*"),
            (
                lambda got, want, i, o, s, k: k == 2 and got > want,
                "the second convolution works on maps that are already smaller",
            ),
            (
                lambda got, want, i, o, s, k: got * 9 == want,
                "every weight of the 3×3 kernel counts",
            ),
        ],
    )


@exercise("3.2", "the objective of a sample")
def ex_3_2(answer: Any) -> Problem:
    """`objective(loss, cost, budget, lam, full_cost)`."""
    loss, cost = torch.tensor([0.5, 1.0, 2.0]), torch.tensor([20.0, 50.0, 90.0])
    return compare(
        answer,
        lambda loss, cost, budget, lam, full: loss + lam * overspend(cost, budget, full),
        {
            "a budget in the middle": (loss, cost, 40.0, 5.0, 100.0),
            "λ = 0": (loss, cost, 40.0, 0.0, 100.0),
            "a budget that nothing exceeds": (loss, cost, 95.0, 5.0, 100.0),
        },
        hints=[
            (
                lambda got, want, *a: bool((torch.as_tensor(got) < want - 1e-6).any()),
                "below the budget the penalty is zero, not a bonus: max(0, …)",
            ),
            (
                lambda got, want, *a: bool((torch.as_tensor(got) > want + 1).any()),
                "measure the overspend in units of full_cost",
            ),
        ],
    )


def _select(runs: pd.DataFrame, budget: float) -> float:
    affordable = runs[runs.cost <= budget]
    return float(affordable.loc[affordable.val_accuracy.idxmax()].test_accuracy)


@exercise("3.3", "select, then report")
def ex_3_3(answer: Any) -> Problem:
    """`select(runs, budget)` with columns cost, val_accuracy and test_accuracy."""
    runs = pd.DataFrame(
        {
            "cost": [10.0, 20.0, 30.0, 40.0],
            "val_accuracy": [0.80, 0.88, 0.86, 0.95],
            "test_accuracy": [0.79, 0.84, 0.90, 0.93],
        }
    )
    return compare(
        answer,
        _select,
        {"a budget of 35": (runs, 35.0), "a budget of 15": (runs, 15.0), "of 20": (runs, 20.0)},
        hints=[
            (
                lambda got, want, runs, budget: (
                    got == runs[runs.cost <= budget].test_accuracy.max()
                ),
                "that is the best *test* accuracy: the test set has then chosen the model",
            ),
            (
                lambda got, want, runs, budget: got == runs[runs.cost <= budget].val_accuracy.max(),
                "select on validation, but report the test accuracy of that row",
            ),
            (
                lambda got, want, runs, budget: got in set(runs[runs.cost > budget].test_accuracy),
                "that network costs more than the budget",
            ),
        ],
    )


@exercise("3.4", "the Pareto front")
def ex_3_4(answer: Any) -> Problem:
    """`front_of(points)`: the points nothing else beats, by rising cost."""

    def reference(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
        frame = pareto_front(pd.DataFrame(points, columns=["cost", "accuracy"]))
        return [(float(c), float(a)) for c, a in frame.to_numpy()]

    return compare(
        answer,
        reference,
        {
            "four points": ([(3.0, 0.9), (1.0, 0.6), (2.0, 0.5), (4.0, 0.9)],),
            "equal costs": ([(1.0, 0.5), (1.0, 0.7), (2.0, 0.8)],),
            "one point": ([(5.0, 0.1)],),
        },
        hints=[
            (
                lambda got, want, points: sorted(got) == sorted(want) and list(got) != want,
                "right points, but sort them by cost",
            ),
            (
                lambda got, want, points: len(got) > len(want),
                "a point that costs as much as another and is worse is beaten, and so is one "
                "that costs more and is only as good",
            ),
        ],
    )
