"""Checks of chapter 06, audio features and keywords."""

from __future__ import annotations

import numpy as np

from nas_core.audio import MFCC, Spoken, score, window_labels, word_share
from nas_core.workbook.checks import Problem, compare, exercise


def _points(low: float, high: float, count: int) -> np.ndarray:
    ends = 2595 * np.log10(1 + np.array([low, high]) / 700)
    return 700 * (10 ** (np.linspace(ends[0], ends[1], count + 2) / 2595) - 1)


@exercise("6.1", "the mel scale")
def ex_6_1(answer) -> Problem:
    return compare(
        answer,
        _points,
        {"20 to 4000 Hz, 40 filters": (20.0, 4000.0, 40), "0 to 8000 Hz, 3": (0.0, 8000.0, 3)},
        tolerance=1e-4,
        hints=[
            (
                lambda got, want, low, high, n: np.allclose(got, np.linspace(low, high, n + 2)),
                "these are equally spaced in Hz; space them in mel",
            ),
            (
                lambda got, want, low, high, n: len(got) == n,
                "count filters need count + 2 corners: two neighbours share theirs",
            ),
        ],
    )


def _labels(windows: int, begin: int, end: int, word: int) -> np.ndarray:
    return window_labels(word_share(windows, begin, end, MFCC()), word)


@exercise("6.2", "labels of windows")
def ex_6_2(answer) -> Problem:
    return compare(
        answer,
        _labels,
        {
            "a word inside one second": (5, 4000, 9000, 7),
            "a word that enters late": (11, 30_000, 40_000, 3),
            "a word that is exactly half inside": (2, 12_800, 19_200, 4),
            "a word longer than a window": (8, 8000, 34_000, 2),
        },
        hints=[
            (
                lambda got, want, n, b, e, w: np.array_equal(got, _half_a_window(n, b, e, w)),
                "half of the word is asked for, not half of the window",
            ),
            (
                lambda got, want, n, b, e, w: np.array_equal(got, _touches(n, b, e, w)),
                "touching the word is not enough: at least half of it must be inside",
            ),
            (
                lambda got, want, n, b, e, w: (np.asarray(got) > 0).sum() == (want > 0).sum() - 1,
                "“at least half” includes exactly half",
            ),
        ],
    )


def _overlap(n: int, begin: int, end: int) -> np.ndarray:
    start = 3200 * np.arange(n)
    return np.clip(np.minimum(start + 16_000, end) - np.maximum(start, begin), 0, None)


def _half_a_window(n: int, begin: int, end: int, word: int) -> np.ndarray:
    return np.where(_overlap(n, begin, end) >= 8000, word, 0)


def _touches(n: int, begin: int, end: int, word: int) -> np.ndarray:
    return np.where(_overlap(n, begin, end) > 0, word, 0)


def _counts(found: list, truth: list) -> tuple[int, int, int]:
    result = score([Spoken(*f) for f in found], [Spoken(*t) for t in truth], 60)
    return result.correct, result.wrong, result.false_alarms


@exercise("6.3", "counting mistakes")
def ex_6_3(answer) -> Problem:
    truth = [("yes", 1000), ("no", 4000), ("go", 4600), ("no", 9000)]
    return compare(
        answer,
        _counts,
        {
            "one right, one wrong, one alarm": ([("yes", 1200), ("go", 3900), ("no", 7000)], truth),
            "a word detected twice": ([("yes", 900), ("yes", 1300)], truth),
            "two words close together": ([("no", 4100), ("go", 4200)], truth),
            "exactly at the tolerance": ([("yes", 1750), ("no", 8249)], truth),
            "nothing": ([], truth),
        },
        hints=[
            (
                lambda got, want, *_: got[0] + got[1] > want[0] + want[1],
                "a ground-truth word can be taken only once",
            ),
            (
                lambda got, want, *_: sum(got) < sum(want),
                "every detection counts as exactly one of the three",
            ),
        ],
    )
