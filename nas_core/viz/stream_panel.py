"""A stream with a cursor: waveform, posteriors, detections and cost, step by step."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import ipywidgets
import numpy as np
import traitlets as t
from torch import Tensor

from nas_core.viz.geometry import PALETTE, short
from nas_core.viz.page import View, anywidget, live


@live("stream_panel")
class StreamPanel(View):
    """Move through a recording.

    Args:
        audio: float32 `[n]`.
        posteriors: `[T, C]`, one row per window, for `classes` `[C]`.
        times_ms, macs: `[T]`, start of each window of one second, and multiply-adds of each step.
        truth, found: pairs (word, ms), the spoken and the detected words.
        player: with an audio player (adds the recording to the notebook).
        view: an `ArchView` with one frame per step, which then moves with the panel. Its cost is
            shown beside `macs`, which may also count a controller.
    """

    def __init__(
        self, audio: Tensor, posteriors: np.ndarray, times_ms: Sequence[float],
        macs: Sequence[float], classes: Sequence[str], *, truth: Sequence[Any] = (),
        found: Sequence[Any] = (), rate: int = 16_000, player: bool = False, title: str = "stream",
        view: Any = None,
    ):  # fmt: skip
        steps = len(posteriors)
        if not steps or len(times_ms) != steps or len(macs) != steps:
            raise ValueError(f"{steps} posteriors, {len(times_ms)} times and {len(macs)} costs")
        if posteriors.shape[1] != len(classes):
            raise ValueError(f"{posteriors.shape[1]} posteriors for {len(classes)} classes")
        if view is not None and len(view.frames) != steps:
            raise ValueError(f"{steps} steps, but a view of {len(view.frames)} frames")
        sound, wav = audio.detach().cpu().numpy(), io.BytesIO()
        if player:
            import soundfile

            soundfile.write(wav, sound, rate, format="WAV", subtype="PCM_16")
        bins = np.array_split(np.abs(sound), min(600, len(sound)))
        envelope = np.array([b.max() for b in bins])
        self._spec = {
            "title": title, "count": steps, "seconds": round(len(sound) / rate, 3),
            "envelope": (envelope / max(1e-6, envelope.max())).round(2).tolist(),
            "times": [round(float(ms) / 1000, 3) for ms in times_ms],
            "posteriors": (100 * posteriors).round().astype(int).tolist(),
            "macs": [int(m) for m in macs], "classes": list(classes),
            "truth": [[word, float(ms) / 1000] for word, ms in truth],
            "found": [[word, float(ms) / 1000] for word, ms in found],
            "audio": base64.b64encode(wav.getvalue()).decode(),  # "" without a player
            "view": None if view is None else view.model_id,
            "network": None,  # what the linked view says that each step costs
        }  # fmt: skip
        if view is not None and view.cost is not None:
            self._spec["network"] = [short(c, view._spec["unit"]) for c in view._spec["costs"]]
        super().__init__(**self._identity())
        self.frame = 0 if view is None else view.frame
        if view is not None and not anywidget:  # pages of widgets are linked by the page itself
            ipywidgets.link((self, "frame"), (view, "frame"))

    @t.validate("frame")
    def _within(self, proposal: Any) -> int:
        return int(np.clip(proposal["value"], 0, self._spec["count"] - 1))

    def __repr__(self) -> str:
        s = self._spec
        return f"StreamPanel({s['title']}: {s['count']} steps, {len(s['found'])} detections)"

    def _draw(self, note: str) -> Any:
        from matplotlib.figure import Figure

        from nas_core.viz.plots import style

        s, rows = self._spec, len(self._spec["classes"])
        times, wide = np.array(s["times"]) + 0.5, s["seconds"] / len(s["times"])
        figure = Figure(figsize=(7.6, 2.8 + 0.13 * rows), layout="constrained")
        sound, heard, cost = figure.subplots(3, sharex=True, height_ratios=[3, 1 + 0.5 * rows, 2])
        words: dict[str, Any] = {"fontsize": 7, "ha": "center", "va": "bottom"}
        words |= {"annotation_clip": False, "xytext": (0, 2), "textcoords": "offset points"}
        x = np.linspace(0, s["seconds"], len(s["envelope"]))
        sound.fill_between(x, s["envelope"], -np.array(s["envelope"]), color="#666666", lw=0)
        for word, at in s["truth"]:
            sound.annotate(word, (at + 0.5, 1.1), **words)
        look: dict[str, Any] = {"cmap": "Blues", "vmin": 0, "vmax": 100, "aspect": "auto"}
        extent = (times[0] - wide / 2, times[-1] + wide / 2, rows - 0.5, -0.5)
        heard.imshow(np.array(s["posteriors"]).T, extent=extent, **look)
        for word, at in s["found"]:
            heard.annotate(f"▲ {word}", (at + 0.5, -0.5), color=PALETTE[3], **words)
        cost.bar(times, s["macs"], wide, color=PALETTE[2])
        now = s["times"][self.frame]
        for ax in (sound, heard, cost):
            style(ax)
            ax.grid(False)
            ax.axvspan(now, now + 1, color=PALETTE[1], alpha=0.2)
        sound.set(yticks=[], xlim=(0, s["seconds"]))
        sound.set_ylabel("sound", fontsize=8)
        heard.set_yticks(range(rows), s["classes"], fontsize=7)
        cost.set_ylabel("macs", fontsize=8)
        cost.set_xlabel("seconds", fontsize=8)
        figure.supxlabel(note, x=0.99, ha="right", fontsize=6.5, color="#757575")
        sound.set_title(s["title"], fontsize=10, pad=14)
        return figure
