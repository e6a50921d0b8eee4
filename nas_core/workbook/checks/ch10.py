"""Checks of chapter 10."""

from __future__ import annotations

from nas_core.continual.streams import small_fraction
from nas_core.workbook.checks.framework import Problem, compare, exercise


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
