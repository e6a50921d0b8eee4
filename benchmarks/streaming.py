"""Streaming inference at full size: what cheap architectures save in time. Run by hand.

    python benchmarks/streaming.py [--seconds 20]

Prints ratios of one run: the cheapest and intermediate architectures against the full network,
and a stream in which a share of the steps is expensive, as SANAS would have it.
"""

from __future__ import annotations

import argparse

import torch

from nas_core.adaptive import AdaptiveNetwork, Controller, FixedController, StreamingEngine
from nas_core.audio import MFCC
from nas_core.spaces.keyword_cnn import keyword_cnn
from nas_core.training import one_thread

CLASSES = tuple(f"class {c}" for c in range(12))
ARCHITECTURES = {
    "full": {
        "conv1", "conv2", "lin1", "lin2", "shortcut input", "shortcut conv1", "shortcut conv2"
    },
    "base": {"conv1", "conv2", "lin1", "lin2"},
    "conv1 and its shortcut": {"conv1", "shortcut conv1"},
    "cheapest": {"shortcut input"},
}  # fmt: skip


class Alternating(Controller):
    """A real controller whose choice is overruled: everything at every n-th step, else cheapest.

    It computes what a trained controller computes, so its time is on the bill.
    """

    def __init__(self, features: int, masks: torch.Tensor, every: int):
        super().__init__(features, masks.shape[1])
        self.masks, self.every, self.count = masks, every, 0

    def logits(self, state):
        super().logits(state)
        self.count += 1
        mask = self.masks[0 if self.count % self.every == 0 else 1]
        return (mask * 60.0 - 30.0).expand(len(state), -1)


def measure(model: AdaptiveNetwork, audio: torch.Tensor) -> tuple[float, float, float]:
    """Median ms per decision, real-time factor, mean macs."""
    engine = StreamingEngine(model, MFCC(), CLASSES)
    engine.run(audio[: 16_000 * 3])
    trace = engine.run(audio)
    return sorted(trace.ms)[len(trace.ms) // 2], trace.real_time_factor, float(trace.macs.mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=20)
    seconds = parser.parse_args().seconds
    one_thread()
    torch.manual_seed(0)
    audio = 0.1 * torch.randn(16_000 * seconds)
    trunk = keyword_cnn(head=False)
    names = [edge.name for edge in trunk.graph.edges]
    masks = {name: torch.tensor([n in kept for n in names]) for name, kept in ARCHITECTURES.items()}
    rows = {
        name: measure(AdaptiveNetwork(trunk, 12, FixedController(mask)), audio)
        for name, mask in masks.items()
    }
    both = torch.stack([masks["full"], masks["cheapest"]])
    for every in (2, 4, 10):
        model = AdaptiveNetwork(trunk, 12, Alternating(128, both, every))
        rows[f"adaptive, everything at 1 of {every} steps"] = measure(model, audio)
    full = rows["full"]
    heads = (("architecture", 40), ("M macs", 8), ("share", 7), ("real-time factor", 17))
    print(" ".join(f"{h:>{w}}" for h, w in heads), "  time / full")
    for name, (_, factor, macs) in rows.items():
        print(
            f"{name:40} {macs / 1e6:8.2f} {macs / full[2]:7.1%} {factor:17.4f} "
            f"{factor / full[1]:12.3f}"
        )


if __name__ == "__main__":
    main()
