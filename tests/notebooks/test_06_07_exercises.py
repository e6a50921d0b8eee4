"""Exercises of chapters 06 and 07 both ways: solutions pass, stubs and typical mistakes do not."""

import numpy as np
import pytest
import torch

from nas_core.workbook import checks
from tests.notebooks.book import exercises

NAMES = {
    "mel_points": ("06", checks.ex_6_1),
    "labels_of": ("06", checks.ex_6_2),
    "count_mistakes": ("06", checks.ex_6_3),
    "controller_macs": ("07", checks.ex_7_1),
    "credit": ("07", checks.ex_7_2),
    "moving_average": ("07", checks.ex_7_3),
}
SOLVED = {
    n: f for c in ("06", "07") for n, f in exercises(c, "solution", np=np, torch=torch).items()
}


@pytest.mark.parametrize("name", NAMES)
def test_solutions_pass_and_stubs_do_not(name, capsys):
    chapter, check = NAMES[name]
    assert check(SOLVED[name])
    assert capsys.readouterr().out.startswith("✓")
    assert not check(exercises(chapter, "stub")[name])
    assert "not written yet" in capsys.readouterr().out


def inside(windows, begin, end):
    start = 3200 * np.arange(windows)
    return np.minimum(start + 16_000, end) - np.maximum(start, begin)


def taken_twice(found, truth, tolerance=750):
    tally = [0, 0, 0]
    for word, ms in found:
        near = [spoken for spoken in truth if abs(spoken[1] - ms) <= tolerance]
        tally[2 if not near else int(near[0][0] != word)] += 1
    return tuple(tally)


def only_right_ones(found, truth, tolerance=750):
    right, _, alarms = SOLVED["count_mistakes"](found, truth, tolerance)
    return right, 0, alarms


def all_rewards(rewards, length, discount):
    return SOLVED["credit"](rewards, torch.full_like(length, rewards.shape[1]), discount)


def of_the_past(rewards, length, discount):
    real = torch.arange(rewards.shape[1]) < length.unsqueeze(1)
    return all_rewards((rewards * real).flip(1), length, discount).flip(1)


MISTAKES = [
    ("mel_points", lambda low, high, n: np.linspace(low, high, n + 2), "space them in mel"),
    ("mel_points", lambda low, high, n: SOLVED["mel_points"](low, high, n)[1:-1], "count + 2"),
    ("labels_of", lambda n, b, e, w: np.where(inside(n, b, e) >= 8000, w, 0), "of the window"),
    ("labels_of", lambda n, b, e, w: np.where(inside(n, b, e) > 0, w, 0), "touching"),
    (
        "labels_of",
        lambda n, b, e, w: np.where(inside(n, b, e) > 0.5 * (e - b), w, 0),
        "exactly half",
    ),
    ("count_mistakes", taken_twice, "taken only once"),
    ("count_mistakes", only_right_ones, "exactly one of the three"),
    ("controller_macs", lambda f, h, e: h * (f + h) + h * e, "three gates"),
    ("controller_macs", lambda f, h, e: 3 * h * (f + h), "linear layer"),
    ("controller_macs", lambda f, h, e: 2 * SOLVED["controller_macs"](f, h, e), "multiply-adds"),
    ("credit", all_rewards, "padding"),
    ("credit", of_the_past, "comes after it"),
    ("moving_average", lambda old, new, keep: keep * new + (1 - keep) * old, "the wrong way round"),
]


@pytest.mark.parametrize(("name", "mistake", "words"), MISTAKES)
def test_typical_mistakes_are_told(name, mistake, words, capsys):
    assert not NAMES[name][1](mistake)
    said = capsys.readouterr().out
    assert said.startswith("✗") and words in said
