"""Streams whose best policy is known: silence is easy, a word needs the expensive module."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nas_core.adaptive.network import AdaptiveNetwork, Blind, Controller
from nas_core.audio.features import MFCC
from nas_core.audio.streams import StreamSet
from nas_core.supernet import Edge, SuperNetwork


class ProbeStreams(StreamSet):
    """Random telegraph: silence and words alternate, each step leaves its state with `change`.

    A step is (loudness, u, v, 1 or 0 …): loudness tells word from silence to any linear module;
    *which* of two words it is lies in the sign of u·v, out of reach of a linear one.
    """

    x: Tensor

    @classmethod
    def draw(
        cls, count: int = 1024, steps: int = 10, *, change: float = 0.15, seed: int = 0
    ) -> ProbeStreams:
        """`count` streams of `steps` steps, a pure function of the arguments."""
        g = torch.Generator().manual_seed(seed)
        word = torch.empty(count, steps, dtype=torch.bool)
        word[:, 0] = torch.rand(count, generator=g) < 0.5
        flips = torch.rand(count, steps, generator=g) < change
        for t in range(1, steps):
            word[:, t] = word[:, t - 1] ^ flips[:, t]
        u, v = torch.rand(2, count, steps, generator=g) * 2 - 1
        u, v = u + u.sign() * 0.3, v + v.sign() * 0.3
        labels, share = torch.where(word, 1 + (u * v > 0).long(), 0), word.float()
        empty, length = torch.zeros(count, 0), torch.full((count,), steps)
        names = ("silence", "word −", "word +")
        streams = cls(MFCC(), names, empty, empty, labels, share, labels.amax(1), length)
        loud = share + 0.1 * torch.randn(count, steps, generator=g)
        streams.x = torch.stack([loud, u * word, v * word], 2)
        return streams

    def windows(self, index: Tensor) -> Tensor:
        """`[B, T, 3]`."""
        return self.x[index]


def probe_network(*, blind: Blind = None, seed: int = 0) -> AdaptiveNetwork:
    """A linear module (12 multiply-adds) beside one with a hidden layer (1,792)."""
    torch.manual_seed(seed)
    large = nn.Sequential(nn.Linear(3, 256), nn.ReLU(), nn.Linear(256, 4))
    edges = [Edge("x", "Φ", nn.Linear(3, 4), "cheap"), Edge("x", "Φ", large, "expensive")]
    trunk = SuperNetwork(edges, "x", "Φ", input_shape=(3,))
    return AdaptiveNetwork(trunk, 3, Controller(4, 2, hidden=8, blind=blind))
