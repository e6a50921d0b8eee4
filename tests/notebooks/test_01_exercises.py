"""Exercises of chapter 01 both ways: the solution passes, the stub and typical mistakes do not."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from nas_core.workbook import checks
from tests.notebooks.book import exercises

NAMES = {
    "improvement": checks.ex_1_1,
    "bracket_epochs": checks.ex_1_2,
    "survive": checks.ex_1_3,
    "volume_of": checks.ex_1_4,
}


def functions(kind: str) -> dict:
    return exercises("01", kind, np=np, norm=norm)


@pytest.mark.parametrize("name", NAMES)
def test_solutions_pass_and_stubs_do_not(name, capsys):
    assert NAMES[name](functions("solution")[name])
    assert capsys.readouterr().out.startswith("✓ 1.")
    assert not NAMES[name](functions("stub")[name])
    assert "not written yet" in capsys.readouterr().out


def bracket(per_rung, rounding):
    def epochs(start, rungs):
        total, before, cells = 0, 0, start
        for rung in rungs:
            total += cells * per_rung(rung, before)
            before, cells = rung, rounding(cells)
        return total

    return epochs


def weakest_dies(alive, child, size):
    left = [*alive, child]
    if len(left) > size:
        left.remove(min(left))
    return left


def in_place(alive, child, size):
    alive.append(child)
    return alive[-size:]


MISTAKES = [
    ("improvement", lambda m, s, b: np.maximum(m - b, 0), "improvement of the mean"),
    ("improvement", lambda m, s, b: functions("solution")["improvement"](-m, s, -b), "higher"),
    (
        "improvement",
        lambda m, s, b: (m - b) / s * norm.cdf((m - b) / s) + norm.pdf((m - b) / s),
        "multiplied by std",
    ),
    ("improvement", lambda m, s, b: norm.cdf((m - b) / s), ""),
    ("bracket_epochs", bracket(lambda e, b: e, lambda n: (n + 1) // 2), "pay the difference"),
    ("bracket_epochs", bracket(lambda e, b: e - b, lambda n: n // 2), "5 cells"),
    ("bracket_epochs", lambda start, rungs: start * rungs[-1], "stopped early"),
    ("survive", weakest_dies, "the weakest died"),
    ("survive", lambda a, c, n: [*a, c], "has grown"),
    ("survive", lambda a, c, n: [c, *a][:n], ""),
    ("survive", in_place, "changes its arguments"),
    (
        "volume_of",
        lambda p, r: sum((r[0] - c) * (a - r[1]) for c, a in p),
        "overlap",
    ),
    ("volume_of", lambda p, r: max(a for _, a in p) * r[0], ""),
]


@pytest.mark.parametrize(("name", "wrong", "words"), MISTAKES)
def test_typical_mistakes_are_told(name, wrong, words, capsys):
    assert not NAMES[name](wrong)
    said = capsys.readouterr().out
    assert said.startswith("✗") and words in said
