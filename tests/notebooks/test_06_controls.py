"""Chapter 06: what each of its bands must reject, computed with the mistake built in."""

from functools import cache

import numpy as np
import scipy.fft
import torch

from nas_core.audio import (
    MFCC,
    KeywordDetector,
    detect,
    evaluation_stream,
    score,
    synthetic_corpus,
)  # fmt: skip
from tests.notebooks.book import claimed, control_tests

BANDS = claimed("06")
STAGES = MFCC().stages(0.1 * torch.randn(16_000, generator=torch.Generator().manual_seed(0)))


def triangles(corners: np.ndarray) -> np.ndarray:
    bins = np.arange(241) * 16_000 / 480
    rise = (bins[:, None] - corners[:-2]) / np.diff(corners)[:-1]
    fall = (corners[2:] - bins[:, None]) / np.diff(corners)[1:]
    return np.clip(np.minimum(rise, fall), 0, None)


def linear_filters() -> float:
    return np.abs(triangles(np.linspace(20, 4000, 42)) - MFCC().filters.numpy()).max()


def raw_cosines() -> float:
    return np.abs(scipy.fft.dct(STAGES.log_mel.numpy()) - STAGES.mfcc.numpy()).max()


def linear_filter_of_a_tone() -> float:
    t = torch.arange(16_000) / 16_000
    loudest = MFCC().stages(torch.sin(2 * torch.pi * 1000 * t)).mel[50].argmax()
    return abs(np.linspace(20, 4000, 42)[loudest + 1] - 1000)


def separate_windows() -> float:
    """Features of each packet alone are not those of the stream."""
    m, sound = MFCC(), 0.1 * torch.randn(32_000, generator=torch.Generator().manual_seed(0))
    alone = m.stages(sound[3200 : 3200 + 16_000] * 0.5).mfcc
    return float(torch.equal(alone, m.windows(sound)[1]))


def without_resampling() -> float:
    tone = np.sin(2 * np.pi * 440 * np.arange(44_100) / 44_100)
    return abs(np.argmax(np.abs(np.fft.rfft(tone))) * 16_000 / 44_100 - 440)


@cache
def corpus():
    return synthetic_corpus(10)


def silent(what: str) -> float:
    """A detector whose network has learned to say nothing."""
    stream = evaluation_stream(corpus(), 30)
    nothing = np.eye(12)[[0] * 140]
    found = detect(nothing, 200.0 * np.arange(140), corpus().classes)
    return score(found, stream.truth, stream.seconds).percentages()[what]


def crowded() -> float:
    stream = evaluation_stream(corpus(), 60, gap=6.0)
    return len(stream.truth) / stream.seconds


def heard(reset: bool) -> int:
    classes = ("bg-noise", "unknown", "yes")
    detector, count = KeywordDetector(classes), 0
    for file in range(3):
        if reset:
            detector.reset()
        for k, row in enumerate(np.eye(3)[[2] * 4 + [0] * 2]):
            at = 200.0 * k + (0 if reset else 1200.0 * file)
            count += detector.step(row, at) is not None
    return count


CONTROLS = {
    "difference of mel filters": {"equal steps in Hz": linear_filters},
    "difference of cosine transforms": {"not orthonormal": raw_cosines},
    "Hz between a 1 kHz tone and its filter": {"equal steps in Hz": linear_filter_of_a_tone},
    "share of the packet sizes that give the same bits": {"another gain": separate_windows},
    "Hz between a tone of 440 Hz and its peak after resampling": {"none": without_resampling},
    "peak of one silent and one loud channel, mixed down": {"left channel only": lambda: 1.0},
    "balanced accuracy on unseen speakers (chance is 0.08)": {"says nothing": lambda: 1 / 12},
    "words of the stream per second of it": {"a word every six seconds": crowded},
    "correct words in % at the best threshold": {"says nothing": lambda: silent("correct")},
    "words heard with a reset between files": {"no reset": lambda: heard(False)},
    "words heard without a reset": {"reset": lambda: heard(True)},
}

test_every_band_has_a_control, test_the_band_rejects_the_mistake = control_tests(BANDS, CONTROLS)
