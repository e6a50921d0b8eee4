"""Checks of chapter 08."""

from __future__ import annotations

import numpy as np

from nas_core.continual import forgetting, learning_curve_area
from nas_core.workbook.checks import Problem, compare, exercise

_CASES = {
    "a learner that forgets": [[[0.9, 0.0, 0.0], [0.6, 0.8, 0.0], [0.3, 0.7, 0.5]]],
    "a learner that improves on the past": [[[0.4, 0.0], [0.6, 0.9]]],
    "four tasks": [np.tril(np.linspace(0.2, 0.95, 16).reshape(4, 4)).tolist()],
}


def _with_last(got: object, want: float, matrix: list) -> bool:
    m = np.array(matrix)
    return bool(np.isclose(float(got), (m[-1] - np.diag(m)).mean()))  # type: ignore[arg-type]


@exercise("8.1", "forgetting")
def ex_8_1(fn: object) -> Problem:
    """`fn(matrix [T][T]) -> float`."""
    hints = [
        (_with_last, "the last task cannot be forgotten yet: average over the T − 1 before it"),
        (lambda got, want, m: np.isclose(got, -want), "the sign: forgetting is a negative number"),
    ]
    return compare(fn, forgetting, _CASES, hints=hints)


@exercise("8.2", "learning curve area")
def ex_8_2(fn: object) -> Problem:
    """`fn(curves, beta) -> float`."""
    curves = [[0.1, 0.2, 0.6, 0.9], [0.3, 0.3, 0.3, 0.3], [0.2, 0.5, 0.8, 0.9]]
    hints = [
        (
            lambda got, want, c, b: np.isclose(got, np.mean([sum(x[: b + 1]) / b for x in c])),
            "b runs from 0 to β, so there are β + 1 values to average",
        ),
        (
            lambda got, want, c, b: np.isclose(got, np.mean([np.mean(x[:b]) for x in c])),
            "accuracy after b = β batches belongs to the average",
        ),
    ]
    return compare(
        fn, learning_curve_area, {"β = 2": [curves, 2], "β = 3": [curves, 3]}, hints=hints
    )


def _stays(classes: list, order: list) -> bool:
    return all(a != b for a, b in zip(classes, order, strict=True))


@exercise("8.3", "no class keeps its label")
def ex_8_3(fn: object) -> Problem:
    """`fn(before, after) -> bool`."""

    def valid(before: list, after: list) -> bool:
        return sorted(before) == sorted(after) and _stays(before, after)

    cases = {
        "a rotation": [["a", "b", "c"], ["b", "c", "a"]],
        "a fixed point": [["a", "b", "c"], ["a", "c", "b"]],
        "other classes": [["a", "b"], ["b", "d"]],
        "nothing changed": [["a", "b"], ["a", "b"]],
    }
    hints = [
        (lambda got, want, a, b: got and sorted(a) != sorted(b), "are these the same classes?"),
        (lambda got, want, a, b: got and not _stays(a, b), "one class still has its old label"),
    ]
    return compare(fn, valid, cases, hints=hints)
