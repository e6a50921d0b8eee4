"""From posteriors to detected words, and how good they are (Warden 2018, thesis table 4.1)."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from nas_core.audio.corpus import BACKGROUND, UNKNOWN
from nas_core.audio.streams import Spoken
from nas_core.training import require


@dataclass(frozen=True)
class Smoothing:
    """Settings of TensorFlow's `recognize_commands`."""

    average_ms: float = 500.0  # posteriors are averaged over this time
    threshold: float = 0.7  # an averaged posterior must exceed it
    suppression_ms: float = 1500.0  # no second detection within this time
    minimum_count: int = 3  # posteriors needed before anything is detected


class KeywordDetector:
    """Turns posteriors, one step at a time, into detections; keeps state: `reset` between files."""

    def __init__(self, classes: Sequence[str], smoothing: Smoothing | None = None):
        self.classes = tuple(classes)
        self.smoothing = smoothing or Smoothing()
        self.reset()

    def reset(self) -> None:
        """Forget the stream so far."""
        self.recent: deque[tuple[float, np.ndarray]] = deque()
        self.top, self.top_ms = BACKGROUND, -np.inf

    def step(self, posterior: np.ndarray, ms: float) -> str | None:
        """The word that is detected, or None, which background always gives.

        `posterior` is `[C]` and not negative; `ms`, the start of its window, must not go back.
        """
        s, count = self.smoothing, len(self.classes)
        require(len(posterior) == count, "number of posteriors", len(posterior), f"{count}")
        last = self.recent[-1][0] if self.recent else ms
        require(ms >= last, "ms", ms, f"{last} or later; reset() between files")
        self.recent.append((ms, np.asarray(posterior, dtype=float)))
        while self.recent[0][0] < ms - s.average_ms:
            self.recent.popleft()
        span = ms - self.recent[0][0]
        if len(self.recent) < s.minimum_count or span < s.average_ms / 4:
            return None
        average = np.mean([p for _, p in self.recent], 0)
        best = int(average.argmax())
        word = self.classes[best]
        since = np.inf if self.top == BACKGROUND else ms - self.top_ms
        if average[best] <= s.threshold or word == self.top or since <= s.suppression_ms:
            return None
        self.top, self.top_ms = word, ms
        return None if word == BACKGROUND else word


def detect(
    posteriors: np.ndarray,
    times_ms: Iterable[float],
    classes: Sequence[str],
    smoothing: Smoothing | None = None,
) -> list[Spoken]:
    """Detections of one file from posteriors `[T, C]`."""
    detector, rows = KeywordDetector(classes, smoothing), zip(posteriors, times_ms, strict=True)
    return [Spoken(word, ms) for row, ms in rows if (word := detector.step(row, ms)) is not None]


@dataclass(frozen=True)
class StreamScore:
    """Counts over one or more streams; add scores of files with `+`."""

    words: int  # in the ground truth
    correct: int
    wrong: int  # something else was detected where a word is
    false_alarms: int  # detections where no word is
    keywords: int  # words in the ground truth that are keywords
    keywords_heard: int  # of these, correctly detected
    keyword_alarms: int  # detected keywords that were not said
    hours: float

    @property
    def matched(self) -> int:
        """Always correct + wrong: each ground-truth word takes at most one detection."""
        return self.correct + self.wrong

    @property
    def false_alarms_per_hour(self) -> float:
        """Keywords per hour that were detected but not said: what a user of the device notices."""
        return self.keyword_alarms / self.hours

    @property
    def false_reject_rate(self) -> float:
        """Share of spoken keywords that were not recognised as such."""
        return 1 - self.keywords_heard / self.keywords if self.keywords else 0.0

    def percentages(self) -> dict[str, float]:
        """matched, correct, wrong, false_alarm in % of the ground-truth words (table 4.1)."""
        counts = {"matched": self.matched, "correct": self.correct, "wrong": self.wrong}
        counts["false_alarm"] = self.false_alarms
        return {name: 100 * count / max(1, self.words) for name, count in counts.items()}

    def summary(self) -> dict[str, float]:
        """The percentages, false alarms per hour and false-reject rate."""
        rates = ("false_alarms_per_hour", "false_reject_rate")
        return self.percentages() | {name: getattr(self, name) for name in rates}

    def __add__(self, other: StreamScore) -> StreamScore:
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return StreamScore(*(mine + its for mine, its in pairs))


def score(
    found: Sequence[Spoken], truth: Sequence[Spoken], seconds: float, tolerance_ms: float = 750.0
) -> StreamScore:
    """Compare detections with the ground truth of one stream.

    In order of time each detection takes the earliest word within the tolerance that is still free:
    it is correct, or wrong for another word, or a false alarm without any. TensorFlow counts a
    second detection of a word as wrong but not as matched; here it is a false alarm.
    """
    truth = sorted(truth, key=lambda spoken: spoken.ms)
    taken: set[int | None] = set()
    correct = false_alarms = heard = keyword_alarms = 0
    for word, ms in sorted(found, key=lambda spoken: spoken.ms):
        free = (k for k in range(len(truth)) if k not in taken)
        k = next((k for k in free if abs(truth[k].ms - ms) <= tolerance_ms), None)
        taken.add(k)
        right = k is not None and truth[k].word == word
        correct, false_alarms = correct + right, false_alarms + (k is None)
        if word != UNKNOWN:
            heard, keyword_alarms = heard + right, keyword_alarms + (not right)
    words, keywords = len(truth), sum(spoken.word != UNKNOWN for spoken in truth)
    counts = correct, len(found) - correct - false_alarms, false_alarms
    return StreamScore(words, *counts, keywords, heard, keyword_alarms, seconds / 3600)


def threshold_sweep(
    posteriors: np.ndarray,
    times_ms: Sequence[float],
    classes: Sequence[str],
    truth: Sequence[Spoken],
    seconds: float,
    thresholds: Sequence[float] = tuple(np.linspace(0.2, 0.98, 27)),
) -> pd.DataFrame:
    """One row per detection threshold: table 4.1's percentages, alarms per hour, reject rate."""
    rows = []
    for t in map(float, thresholds):
        found = detect(posteriors, times_ms, classes, Smoothing(threshold=t))
        rows.append({"threshold": t} | score(found, truth, seconds).summary())
    return pd.DataFrame(rows)
