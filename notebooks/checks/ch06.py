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


def _counted(found: list, truth: list, choose, near) -> tuple[int, int, int]:
    """The counts, where `near(ms, spoken ms)` words are free and `choose` takes one of them."""
    free, tally = list(truth), [0, 0, 0]
    for word, ms in found:
        close = [spoken for spoken in free if near(ms, spoken[1])]
        taken = choose(close, word, ms) if close else None
        if taken:
            free.remove(taken)
        tally[2 if not taken else int(taken[0] != word)] += 1
    return (tally[0], tally[1], tally[2])


def _nearest(close, word, ms):
    return min(close, key=lambda spoken: abs(spoken[1] - ms))


def _same_word(close, word, ms):
    return next((spoken for spoken in close if spoken[0] == word), None)


def _earliest(close, word, ms):
    return close[0]


def _within(ms, spoken):
    return abs(spoken - ms) <= 750


_USUAL = [  # (a usual mistake, what to say)
    (lambda got, want, *a: tuple(got) == _counted(*a, _nearest, _within), "take the earliest "
     "free word within the tolerance, not the nearest"),
    (lambda got, want, *a: tuple(got) == _counted(*a, _same_word, _within), "a detection takes the "
     "earliest free word whatever it is; another word makes it a wrong one"),
    (lambda got, want, *a: tuple(got) == _counted(*a, _earliest, lambda m, s: abs(s - m) < 750),
     "“within 750 ms” includes exactly 750"),
    (lambda got, want, *a: tuple(got) == _counted(*a, _earliest, lambda m, s: 0 <= m - s <= 750),
     "a detection may also come before the middle of its word: take the absolute difference"),
    (lambda got, want, found, truth: got[2] == want[2] + len(truth) - want[0] - want[1],
     "words that nobody detected are misses, not false alarms: count detections only"),
]  # fmt: skip


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
            "the earlier of two words": ([("go", 4500)], truth),
            "the second word after a first that was taken": ([("no", 4400), ("go", 4500)], truth),
            "nothing": ([], truth),
        },
        hints=[
            (
                lambda got, want, *_: got[0] + got[1] > want[0] + want[1],
                "a ground-truth word can be taken only once",
            ),
            *_USUAL,
            (
                lambda got, want, *_: sum(got) < sum(want),
                "every detection counts as exactly one of the three",
            ),
        ],
    )
