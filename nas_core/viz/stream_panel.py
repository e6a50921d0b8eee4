"""A stream under a cursor: waveform, posteriors, detections and cost, step by step."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anywidget
import numpy as np
import soundfile
import traitlets as t
from torch import Tensor


class StreamPanel(anywidget.AnyWidget):
    """Scrub through a recording; link `frame` to an `ArchView` to see each step's architecture.

    Args:
        audio: float32 `[n]`.
        posteriors: `[T, C]`, one row per window.
        times_ms: `[T]`, start of each window of one second.
        macs: `[T]`, multiply-adds of each step.
        classes: `[C]` names.
        truth, found: pairs (word, ms), what was said and what was detected.
        player: with an audio player (adds the recording to the notebook).
    """

    _esm = Path(__file__).with_name("stream_panel.js")
    _spec = t.Dict().tag(sync=True)
    frame = t.Int(0).tag(sync=True)

    def __init__(
        self,
        audio: Tensor,
        posteriors: np.ndarray,
        times_ms: Sequence[float],
        macs: Sequence[float],
        classes: Sequence[str],
        *,
        truth: Sequence[Any] = (),
        found: Sequence[Any] = (),
        rate: int = 16_000,
        player: bool = False,
        title: str = "stream",
    ):
        steps = len(posteriors)
        if not steps or len(times_ms) != steps or len(macs) != steps:
            raise ValueError(f"{steps} posteriors, {len(times_ms)} times and {len(macs)} costs")
        if posteriors.shape[1] != len(classes):
            raise ValueError(f"{posteriors.shape[1]} posteriors for {len(classes)} classes")
        sound = audio.detach().cpu().numpy()
        bins = np.array_split(np.abs(sound), min(600, len(sound)))
        envelope = np.array([b.max() for b in bins])
        spec = {
            "title": title,
            "seconds": round(len(sound) / rate, 3),
            "envelope": (envelope / max(1e-6, envelope.max())).round(3).tolist(),
            "times": [round(float(ms) / 1000, 3) for ms in times_ms],
            "posteriors": (100 * posteriors).round().astype(int).tolist(),
            "macs": [int(m) for m in macs],
            "classes": list(classes),
            "truth": [[word, float(ms) / 1000] for word, ms in truth],
            "found": [[word, float(ms) / 1000] for word, ms in found],
            "audio": _data_uri(sound, rate) if player else "",
        }
        super().__init__(_spec=spec)

    @t.validate("frame")
    def _within(self, proposal: Any) -> int:
        last = len(self._spec.get("times", [0])) - 1
        return int(min(max(0, proposal["value"]), last))

    def __repr__(self) -> str:
        spec = self._spec
        steps, found = len(spec["times"]), len(spec["found"])
        return f"StreamPanel({spec['title']}: {steps} steps, {found} detections)"


def _data_uri(sound: np.ndarray, rate: int) -> str:
    """A 16-bit wav as data URI."""
    buffer = io.BytesIO()
    soundfile.write(buffer, sound, rate, format="WAV", subtype="PCM_16")
    return "data:audio/wav;base64," + base64.b64encode(buffer.getvalue()).decode()
