"""Streaming inference: audio packets in, decisions out, only the chosen modules computed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from nas_core.adaptive.network import AdaptiveNetwork
from nas_core.audio.detection import KeywordDetector, Smoothing
from nas_core.audio.features import MFCC, StreamingMFCC
from nas_core.audio.files import check_audio
from nas_core.audio.streams import Spoken
from nas_core.training import require


class Decision(NamedTuple):
    """What the engine says about one window."""

    ms: float  # start of the window in the stream
    posterior: np.ndarray  # float32 [C]
    word: str | None  # detected at this step
    mask: Tensor  # bool [E], architecture that was run
    macs: int  # of this decision, controller included
    seconds: float  # of computing since the last decision, features included


class StreamingEngine:
    """A keyword spotter for one endless stream; the model is put into evaluation mode."""

    def __init__(
        self,
        model: AdaptiveNetwork,
        mfcc: MFCC,
        classes: Sequence[str],
        smoothing: Smoothing | None = None,
    ):
        known, blind = model.classifier.out_features, model.controller.blind
        require(len(classes) == known, "number of classes", len(classes), f"{known}")
        # The Φ of other streams is taken from the batch, and an engine has one stream.
        require(blind != "shuffled", "blind", blind, "None or 'noise' where there is one stream")
        self.model, self.mfcc = model.eval(), mfcc
        self.features = StreamingMFCC(mfcc)
        self.detector = KeywordDetector(classes, smoothing)
        self.reset()

    def reset(self) -> None:
        """Forget the stream: features, controller state, detector, clocks. Between files."""
        self.features.reset()
        self.detector.reset()
        self.state = self.model.controller.start(1).detach()
        self._masks: dict[bytes, tuple[Tensor, int]] = {}  # by gates: live edges, their price
        self.samples = self.decisions = 0
        self.busy = self._pending = 0.0

    def push(self, packet: Tensor) -> list[Decision]:
        """Take samples float32 `[n]`, any n; a decision per completed window, often none."""
        begin = time.perf_counter()
        check_audio(packet)
        return self._take(packet.clone(), begin)  # a caller may use one buffer for all packets

    def run(self, audio: Tensor, packet: int = 320) -> StreamTrace:
        """Feed a whole recording in packets (20 ms by default), from a fresh start."""
        self.reset()
        begin = time.perf_counter()
        check_audio(audio)  # once for all packets
        self._pending = time.perf_counter() - begin
        packets = audio.split(packet)
        decisions = [d for part in packets for d in self._take(part, time.perf_counter())]
        enough = f"{self.mfcc.window} samples or more, one window"
        require(len(decisions) > 0, "length of the recording", len(audio), enough)
        return StreamTrace(decisions, self.real_time_factor)

    @torch.inference_mode()
    def _take(self, packet: Tensor, begin: float) -> list[Decision]:
        """`push` of checked samples that arrived at `begin`."""
        made = []
        for features in self.features.take(packet):
            gates = torch.sigmoid(self.model.controller.logits(self.state)) > 0.5  # [1, E]
            key = gates.numpy().tobytes()
            if key not in self._masks:  # few architectures are taken, again and again
                live = self.model.trunk.graph.reachable(gates[0])
                self._masks[key] = live, int(self.model.macs(live))
            mask, macs = self._masks[key]
            logits, self.state = self.model.decide(features[None, None], self.state, mask)
            posterior = torch.softmax(logits[0], 0).numpy()
            ms = self.decisions * self.mfcc.step * 1000 / self.mfcc.rate
            word = self.detector.step(posterior, ms)
            now = time.perf_counter()
            seconds, self._pending, begin = self._pending + now - begin, 0.0, now
            self.busy += seconds
            made.append(Decision(ms, posterior, word, mask, macs, seconds))
            self.decisions += 1
        self._pending += time.perf_counter() - begin
        self.samples += len(packet)
        return made

    @property
    def real_time_factor(self) -> float:
        """Seconds of computing per second of audio: below 1 is faster than real time."""
        return (self.busy + self._pending) / max(1, self.samples) * self.mfcc.rate

    @property
    def ms_per_decision(self) -> float:
        return 1000 * self.busy / max(1, self.decisions)


class StreamTrace:
    """All decisions on one recording, as arrays."""

    def __init__(self, decisions: list[Decision], real_time_factor: float):
        self.times_ms = np.array([d.ms for d in decisions])
        self.posteriors = np.stack([d.posterior for d in decisions])  # [T, C]
        self.masks = torch.stack([d.mask for d in decisions])  # bool [T, E]
        self.macs = np.array([d.macs for d in decisions])
        self.ms = 1000 * np.array([d.seconds for d in decisions])
        self.found = [Spoken(d.word, d.ms) for d in decisions if d.word is not None]
        self.real_time_factor = real_time_factor

    def architectures(self, names: Sequence[str]) -> dict[str, float]:
        """Share of the steps that took each architecture, named by its edges: "conv1 + lin1"."""
        kept = [" + ".join(np.array(names)[mask]) for mask in self.masks.numpy()]
        return pd.Series(kept).value_counts(normalize=True).to_dict()
