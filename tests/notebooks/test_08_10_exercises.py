"""Exercises of chapters 08 to 10 both ways: solutions pass, stubs and typical mistakes do not."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from nas_core.workbook import checks
from tests.notebooks.book import exercises

NAMES = {
    "08_ctrl_streams": {
        "forgotten": checks.ex_8_1,
        "curve_area": checks.ex_8_2,
        "deranged": checks.ex_8_3,
    },
    "09_mntdp": {
        "branches": checks.ex_9_1,
        "knn_accuracy": checks.ex_9_2,
        "added": checks.ex_9_3,
    },
    "10_long_streams": {
        "share_of_small": checks.ex_10_1,
        "library_mb": checks.ex_10_2,
        "late_price": checks.ex_10_3,
    },
}
CASES = [(c, n) for c, names in NAMES.items() for n in names]


def functions(chapter: str, kind: str) -> dict:
    return exercises(chapter, kind, np=np, KNeighborsClassifier=KNeighborsClassifier)


@pytest.mark.parametrize(("chapter", "name"), CASES)
def test_solutions_pass_and_stubs_do_not(chapter, name, capsys):
    check = NAMES[chapter][name]
    assert check(functions(chapter, "solution")[name])
    assert not check(functions(chapter, "stub")[name])
    assert capsys.readouterr().out.startswith("✓")


def _diagonal(matrix):
    m = np.array(matrix)
    return float((m[-1] - np.diag(m)).mean())


MISTAKES = [
    (checks.ex_8_1, _diagonal, "T − 1"),
    (checks.ex_8_1, lambda m: -float((np.array(m)[-1] - np.diag(m))[:-1].mean()), "sign"),
    (checks.ex_8_2, lambda c, b: float(np.mean([np.mean(x[:b]) for x in c])), "belongs"),
    (checks.ex_8_2, lambda c, b: float(np.mean([sum(x[: b + 1]) / b for x in c])), "β + 1"),
    (checks.ex_8_3, lambda a, b: sorted(a) == sorted(b), "old label"),
    (checks.ex_8_3, lambda a, b: all(x != y for x, y in zip(a, b, strict=True)), "same classes"),
    (checks.ex_9_1, lambda p, t: [p[:n] + [t] * (len(p) - n) for n in range(len(p) + 1)], "head"),
    (
        checks.ex_9_2,
        lambda a, b, c, d: float(KNeighborsClassifier(1).fit(a, b).score(c, d)),
        "five",
    ),
    (
        checks.ex_9_2,
        lambda a, b, c, d: float(KNeighborsClassifier(5).fit(a, b).score(a, b)),
        "validation",
    ),
    (checks.ex_9_3, lambda p, r: sum(p[:r]), "new"),
    (checks.ex_10_1, lambda t: 0.5 if t < 33 else 0.75 if t < 66 else 1.0, "earlier"),
    (checks.ex_10_2, lambda p, r: sum(sum(p[n:]) for n in r) / 1e6, "four bytes"),
    (checks.ex_10_2, lambda p, r: len(r) * sum(p) * 4 / 1e6, "new modules"),
    (checks.ex_10_3, lambda m: m[-1] / (len(m) - len(m) // 2) / m[0], "subtract"),
    (
        checks.ex_10_3,
        lambda m: (m[-1] - m[len(m) // 2 - 1]) / (len(m) - len(m) // 2),
        "one network",
    ),
]


@pytest.mark.parametrize(("check", "answer", "word"), MISTAKES)
def test_mistakes_are_named(check, answer, word, capsys):
    assert not check(answer)
    assert word in capsys.readouterr().out
