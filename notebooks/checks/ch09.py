"""Checks of chapter 09."""

from __future__ import annotations

import numpy as np
from sklearn.neighbors import KNeighborsClassifier

from nas_core.workbook.checks import Problem, compare, exercise


def _branches(path: list[int], task: int) -> list[list[int]]:
    return [path[:p] + [task] * (len(path) - p) for p in range(len(path))]


@exercise("9.1", "branch to the right")
def ex_9_1(fn: object) -> Problem:
    """`fn(path, task) -> list of paths`, p = 0 first."""
    hints = [
        (
            lambda got, want, path, task: list(path) in [list(g) for g in got],
            "the head is always new, so the old path itself is not among the candidates",
        ),
        (lambda got, want, path, task: len(got) == len(want) - 1, "one is missing: all new, p = 0"),
    ]
    cases = {"one source": [[0, 0, 0], 1], "a mixed path": [[0, 0, 2, 2], 3]}
    return compare(fn, _branches, cases, hints=hints)


def _knn(train: np.ndarray, labels: np.ndarray, val: np.ndarray, truth: np.ndarray) -> float:
    return float(KNeighborsClassifier(5).fit(train, labels).score(val, truth))


@exercise("9.2", "the prior")
def ex_9_2(fn: object) -> Problem:
    """`fn(train, labels, val, truth) -> accuracy` of five nearest neighbours."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(3, 4)) * 1.2
    y, t = np.arange(60) % 3, np.arange(30) % 3
    x, v = centres[y] + rng.normal(size=(60, 4)), centres[t] + rng.normal(size=(30, 4))

    def one_neighbour(got, want, a, b, c, d):
        return np.isclose(got, KNeighborsClassifier(1).fit(a, b).score(c, d))

    def on_itself(got, want, a, b, c, d):
        return np.isclose(got, KNeighborsClassifier(5).fit(a, b).score(a, b))

    hints = [
        (one_neighbour, "that is one neighbour; let five of them vote"),
        (on_itself, "measure on the validation examples, not on those that vote"),
    ]
    cases = {"three classes": [x, y, v, t], "random labels": [x, rng.permutation(y), v, t]}
    return compare(fn, _knn, cases, hints=hints)


@exercise("9.3", "parameters a path adds")
def ex_9_3(fn: object) -> Problem:
    """`fn(params, reused) -> int`."""
    params = [1856, 147968, 152192, 152192, 78208, 73984, 650]
    hints = [
        (
            lambda got, want, p, r: got == sum(p[:r]),
            "these are the reused modules; count the new ones",
        )
    ]
    cases = {f"{r} reused": [params, r] for r in (0, 3, 6, 7)}
    return compare(fn, lambda p, r: sum(p[r:]), cases, hints=hints)
