"""Detections and their score: by hand, and against an independent re-implementation."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nas_core.audio import KeywordDetector, Smoothing, Spoken, detect, score, threshold_sweep

CLASSES = ("bg-noise", "unknown", "yes", "no")


def one_hot(*words: str) -> np.ndarray:
    return np.eye(len(CLASSES))[[CLASSES.index(w) for w in words]]


def times(n: int, step: float = 200.0) -> np.ndarray:
    return np.arange(n) * step


def test_a_clear_word_is_detected_once_and_late_enough():
    posteriors = one_hot(*["bg-noise"] * 4, *["yes"] * 5, *["bg-noise"] * 4)
    # Averages of the last three: yes reaches 1/3, 2/3 (below 0.7), then 1 at the third: 1200 ms.
    assert detect(posteriors, times(13), CLASSES) == [Spoken("yes", 1200.0)]


def test_threshold_count_and_suppression():
    weak = 0.65 * one_hot(*["yes"] * 6) + 0.35 * one_hot(*["no"] * 6)
    assert detect(weak, times(6), CLASSES) == []
    low = Smoothing(threshold=0.6)
    assert detect(weak, times(6), CLASSES, low) == [Spoken("yes", 400.0)]
    assert detect(weak, times(6), CLASSES, Smoothing(threshold=0.6, minimum_count=4)) == []
    # "no" right after "yes" is suppressed until 1500 ms have passed.
    both = one_hot(*["yes"] * 4, *["no"] * 8)
    assert detect(both, times(12), CLASSES) == [Spoken("yes", 400.0), Spoken("no", 2000.0)]


def test_a_word_said_twice_needs_background_in_between():
    once = one_hot(*["yes"] * 20)
    assert len(detect(once, times(20), CLASSES)) == 1
    twice = one_hot(*["yes"] * 4, *["bg-noise"] * 10, *["yes"] * 4)
    assert [s.ms for s in detect(twice, times(18), CLASSES)] == [400.0, 3200.0]


def test_state_is_reset_between_files():
    detector = KeywordDetector(CLASSES)
    file = one_hot(*["yes"] * 4)

    def listen():
        return [detector.step(p, ms) for p, ms in zip(file, times(4), strict=True)]

    first = listen()
    with pytest.raises(ValueError, match="reset"):
        detector.step(file[0], 0.0)
    detector.reset()
    assert listen() == first == [None, None, "yes", None]


def test_score_by_hand():
    truth = [Spoken("yes", 1000), Spoken("no", 4000), Spoken("unknown", 7000), Spoken("no", 9000)]
    found = [
        Spoken("yes", 1200),  # correct
        Spoken("yes", 1700),  # the word is taken already: false alarm
        Spoken("yes", 4700),  # wrong
        Spoken("unknown", 7750),  # correct, just within the tolerance
        Spoken("no", 8000),  # 1000 ms early: false alarm
    ]
    s = score(found, truth, seconds=36)
    assert (s.correct, s.wrong, s.false_alarms, s.matched, s.words) == (2, 1, 2, 3, 4)
    assert s.percentages() == {
        "matched": 75.0, "correct": 50.0, "wrong": 25.0, "false_alarm": 50.0
    }  # fmt: skip
    assert s.keyword_alarms == 3 and s.false_alarms_per_hour == pytest.approx(300)
    assert s.false_reject_rate == pytest.approx(2 / 3)
    total = s + s
    assert total.words == 8 and total.hours == pytest.approx(0.02)
    assert total.percentages() == s.percentages()


# ------------------------------------------------------------- an independent re-implementation


def reference_detections(posteriors, at, threshold):
    """Arrays and recursion over indices instead of a queue."""
    found, top, since = [], 0, -np.inf
    for t, now in enumerate(at):
        inside = (at[: t + 1] >= now - 500) & (at[: t + 1] <= now)
        if inside.sum() < 3 or now - at[: t + 1][inside].min() < 125:
            continue
        mean = posteriors[: t + 1][inside].sum(0) / inside.sum()
        best = int(np.argmax(mean))
        free = top == 0 or now - since > 1500
        if mean[best] > threshold and best != top and free:
            top, since = best, now
            if best:
                found.append((CLASSES[best], now))
    return found


def reference_score(found, truth):
    """Matching as a table of candidates that is crossed out row by row."""
    near = np.array([[abs(t[1] - f[1]) <= 750 for t in truth] for f in found]).reshape(
        len(found), len(truth)
    )
    correct = wrong = alarms = 0
    for row, (word, _) in enumerate(found):
        columns = np.flatnonzero(near[row])
        if not len(columns):
            alarms += 1
            continue
        near[:, columns[0]] = False
        if truth[columns[0]][0] == word:
            correct += 1
        else:
            wrong += 1
    return correct, wrong, alarms


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), sharp=st.floats(1, 12), threshold=st.sampled_from([0.4, 0.7]))
def test_equals_the_reference_on_random_streams(seed, sharp, threshold):
    rng = np.random.default_rng(seed)
    slow = np.repeat(rng.normal(size=(40, 4)), rng.integers(1, 9, 40), 0)
    raw = np.exp(sharp * slow)
    posteriors = raw / raw.sum(1, keepdims=True)
    at = np.cumsum(rng.choice([20.0, 100.0, 200.0, 300.0], len(posteriors)))
    found = detect(posteriors, at, CLASSES, Smoothing(threshold=threshold))
    assert [tuple(f) for f in found] == reference_detections(posteriors, at, threshold)
    truth = [
        Spoken(CLASSES[rng.integers(1, 4)], float(ms))
        for ms in np.cumsum(rng.uniform(300, 4000, 12))
    ]
    s = score(found, truth, at[-1] / 1000)
    assert (s.correct, s.wrong, s.false_alarms) == reference_score(found, truth)
    assert s.matched == s.correct + s.wrong <= len(truth)
    assert s.matched + s.false_alarms == len(found)


def test_threshold_sweep_falls_with_the_threshold():
    rng = np.random.default_rng(0)
    truth = [Spoken("yes", 1000.0 + 3000 * k) for k in range(40)]
    at = times(600)
    clean = np.tile(one_hot("bg-noise"), (600, 1))
    for spoken in truth:
        clean[(at >= spoken.ms - 500) & (at <= spoken.ms + 500)] = one_hot("yes")
    posteriors = 0.75 * clean + 0.25 * rng.dirichlet(np.ones(4), 600)
    table = threshold_sweep(posteriors, at, CLASSES, truth, 120.0)
    assert table["matched"].iloc[0] > 95 and table["matched"].iloc[-1] < 5
    assert (table["false_reject_rate"].diff().dropna() >= -1e-9).all()


def test_wrong_input_is_named():
    with pytest.raises(ValueError, match="number of posteriors is 3; it must be 4"):
        KeywordDetector(CLASSES).step(np.ones(3), 0)
