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


def counted(choose, near=lambda ms, spoken: abs(spoken - ms) <= 750):
    def count(found, truth, tolerance=750):
        free, tally = list(truth), [0, 0, 0]
        for word, ms in found:
            close = [w for w in free if near(ms, w[1])]
            taken = choose(close, word, ms) if close else None
            if taken:
                free.remove(taken)
            tally[2 if not taken else int(taken[0] != word)] += 1
        return tuple(tally)

    return count


def first(close, word, ms):
    return close[0]


def misses_are_alarms(found, truth, tolerance=750):
    right, wrong, alarms = SOLVED["count_mistakes"](found, truth, tolerance)
    return right, wrong, alarms + len(truth) - right - wrong


def discounted_from_the_start(rewards, length, discount):
    powers = discount ** torch.arange(rewards.shape[1])
    return SOLVED["credit"](rewards, length, discount) * powers


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
    (
        "count_mistakes",
        counted(lambda close, word, ms: min(close, key=lambda w: abs(w[1] - ms))),
        "not the nearest",
    ),
    (
        "count_mistakes",
        counted(lambda close, word, ms: next((w for w in close if w[0] == word), None)),
        "whatever it is",
    ),
    ("count_mistakes", counted(first, lambda ms, w: abs(w - ms) < 750), "exactly 750"),
    ("count_mistakes", counted(first, lambda ms, w: 0 <= ms - w <= 750), "absolute difference"),
    ("count_mistakes", misses_are_alarms, "are misses"),
    ("controller_macs", lambda f, h, e: h * (f + h) + h * e, "three gates"),
    ("controller_macs", lambda f, h, e: 3 * h * f + h * e, "reads the state too"),
    ("controller_macs", lambda f, h, e: 4 * h * (f + h) + h * e, "an LSTM's"),
    ("controller_macs", lambda f, h, e: 3 * h * (f + h) + 6 * h + h * e + e, "biases"),
    ("controller_macs", lambda f, h, e: 3 * h * (f + h) + f * e, "not Φ"),
    ("controller_macs", lambda f, h, e: 3 * h * (f + h), "linear layer"),
    ("controller_macs", lambda f, h, e: 2 * SOLVED["controller_macs"](f, h, e), "multiply-adds"),
    ("credit", all_rewards, "padding"),
    ("credit", of_the_past, "comes after it"),
    ("credit", lambda r, n, d: SOLVED["credit"](r, n, 1.0), "is not discounted"),
    (
        "credit",
        lambda r, n, d: SOLVED["credit"](r, n, d) - SOLVED["credit"](r, n, 0.0),
        "own reward",
    ),
    (
        "credit",
        lambda r, n, d: SOLVED["credit"](r, n, d)[:, :1].expand(r.shape),
        "return of the first one",
    ),
    ("credit", discounted_from_the_start, "from the step itself"),
    ("moving_average", lambda old, new, keep: keep * new + (1 - keep) * old, "the wrong way round"),
]


@pytest.mark.parametrize(("name", "mistake", "words"), MISTAKES)
def test_typical_mistakes_are_told(name, mistake, words, capsys):
    assert not NAMES[name][1](mistake)
    said = capsys.readouterr().out
    assert said.startswith("✗") and words in said
