"""Checks of chapter 10."""

from __future__ import annotations

from nas_core.continual.streams import small_fraction
from nas_core.workbook.checks import Problem, compare, exercise


@exercise("10.1", "the schedule")
def ex_10_1(fn: object) -> Problem:
    """`fn(task) -> probability that the task is small`."""
    hints = [
        (lambda got, want, task: task in (33, 66), "tasks 33 and 66 belong to the earlier phase")
    ]
    cases = {f"task {t}": [t] for t in (1, 33, 34, 66, 67, 100)}
    return compare(fn, small_fraction, cases, hints=hints)


def _megabytes(params: list[int], reused: list[int]) -> float:
    return sum(sum(params[r:]) for r in reused) * 4 / 1e6


@exercise("10.2", "memory of a library")
def ex_10_2(fn: object) -> Problem:
    """`fn(params, reused per task) -> MB`."""
    params = [1000, 2000, 500]
    hints = [
        (lambda got, want, p, r: got * 4 == want, "a float32 has four bytes"),
        (lambda got, want, p, r: got == len(r) * sum(p) * 4 / 1e6, "only new modules are stored"),
    ]
    cases = {"all new": [params, [0, 0]], "some reuse": [params, [0, 2, 3, 1]]}
    return compare(fn, _megabytes, cases, hints=hints)


def _late_price(mb: list[float]) -> float:
    half = len(mb) // 2
    return (mb[-1] - mb[half - 1]) / (len(mb) - half) / mb[0]


@exercise("10.3", "the late price")
def ex_10_3(fn: object) -> Problem:
    """`fn(mb per task) -> float`."""
    hints = [
        (
            lambda got, want, mb: abs(got - mb[-1] / (len(mb) - len(mb) // 2) / mb[0]) < 1e-9,
            "subtract what was there when the first half ended",
        ),
        (
            lambda got, want, mb: abs(got - want * mb[0]) < 1e-9,
            "divide by the memory of the first task, which is one network",
        ),
    ]
    cases = {
        "independent networks": [[3.0, 6.0, 9.0, 12.0]],
        "late tasks reuse": [[2.0, 4.0, 4.5, 5.0]],
        "an odd number of tasks": [[2.0, 3.0, 3.2, 3.4, 4.0]],
    }
    return compare(fn, _late_price, cases, hints=hints)
