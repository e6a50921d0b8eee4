"""Checks of chapter 01: expected improvement, successive halving, ageing, the front's volume."""

from __future__ import annotations

import math
from collections import deque
from typing import Any

import numpy as np

from nas_core.search import hypervolume
from nas_core.search.strategies import expected_improvement
from nas_core.workbook.checks import Problem, compare, exercise

_MEAN, _STD = np.array([0.2, 0.5, 0.9, 1.4]), np.array([0.1, 0.4, 0.2, 0.3])


@exercise("1.1", "expected improvement")
def ex_1_1(answer: Any) -> Problem:
    """`improvement(mean [n], std [n], best) -> [n]`."""
    return compare(
        answer,
        expected_improvement,
        {
            "four candidates": (_MEAN, _STD, 0.8),
            "a best that all exceed": (_MEAN, _STD, -1.0),
            "a best that nobody reaches": (_MEAN, _STD, 2.0),
        },
        hints=[
            (
                lambda got, want, m, s, b: np.allclose(got, np.maximum(m - b, 0)),
                "that is the improvement of the mean; a candidate below the best may still win",
            ),
            (
                lambda got, want, m, s, b: np.allclose(got, expected_improvement(-m, s, -b)),
                "higher is better here: improve on the best from above",
            ),
            (
                lambda got, want, m, s, b: np.allclose(np.asarray(got) * s, want),
                "the whole bracket is multiplied by std",
            ),
        ],
    )


def _epochs(start: int, rungs: tuple[int, ...]) -> int:
    total, before, n = 0, 0, start
    for epochs in rungs:
        total += n * (epochs - before)
        before, n = epochs, math.ceil(n / 2)
    return total


@exercise("1.2", "the price of a bracket")
def ex_1_2(answer: Any) -> Problem:
    """`bracket_epochs(start, rungs) -> int`."""

    def restarted(start: int, rungs: tuple[int, ...]) -> int:
        return sum(math.ceil(start / 2**k) * epochs for k, epochs in enumerate(rungs))

    return compare(
        answer,
        _epochs,
        {
            "16 cells, rungs 1, 2, 4": (16, (1, 2, 4)),
            "5 cells (halves are rounded up)": (5, (1, 3, 9)),
            "a single rung": (7, (4,)),
        },
        tolerance=0,
        hints=[
            (
                lambda got, want, *a: got == restarted(*a),
                "training goes on where it stopped: pay the difference between two rungs",
            ),
            (lambda got, want, start, rungs: got == start * rungs[-1], "most are stopped early"),
        ],
    )


def _step(alive: list, child: tuple, size: int) -> list:
    queue = deque(alive)
    queue.append(child)
    if len(queue) > size:
        queue.popleft()
    return list(queue)


@exercise("1.3", "dying of age")
def ex_1_3(answer: Any) -> Problem:
    """`survive(alive, child, size) -> list`, oldest first; entries are (accuracy, cell)."""
    alive = [(0.9, "a"), (0.3, "b"), (0.5, "c")]
    weakest = [(0.9, "a"), (0.5, "c"), (0.4, "d")]
    return compare(
        answer,
        _step,
        {
            "a full population": (alive, (0.4, "d"), 3),
            "room for one more": (alive, (0.4, "d"), 4),
        },
        hints=[
            (
                lambda got, want, a, c, size: size == 3 and list(got) == weakest,
                "the weakest died; in *regularised* evolution the oldest does, however good",
            ),
            (lambda got, want, a, c, size: len(got) > size, "the population has grown"),
        ],
    )


@exercise("1.4", "the volume of a front")
def ex_1_4(answer: Any) -> Problem:
    """`volume_of(points, reference) -> float`; points are (cost, accuracy)."""
    points = [(1.0, 0.5), (2.0, 0.8), (4.0, 0.9)]
    rectangles = [
        lambda points, ref: sum((ref[0] - c) * (a - ref[1]) for c, a in points),
    ]
    return compare(
        answer,
        hypervolume,
        {
            "three points of a front": (points, (5.0, 0.0)),
            "one of them dominated": ([*points, (3.0, 0.7)], (5.0, 0.0)),
            "one beyond the reference": ([*points, (9.0, 0.99)], (5.0, 0.2)),
        },
        hints=[
            (
                lambda got, want, p, ref: abs(got - rectangles[0](p, ref)) < 1e-9,
                "the rectangles overlap; count only what each adds to those before",
            ),
            (lambda got, want, p, ref: got < 0, "a point beyond the reference adds nothing"),
        ],
    )
