"""Backbones cut into blocks, one module per layer of a path (thesis table 5.3).

A `Backbone` makes blocks; it holds no weights. The last block is the head: whatever turns maps
into features, then one linear layer, so that every learner can read the features before it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor, nn

from nas_core.supernet import count_macs, count_params


class Head(nn.Module):
    """Classifier of one task; `embed` gives the features that its linear layer sees."""

    def __init__(self, features: int, classes: int, *, pool: bool):
        super().__init__()
        self.pool = pool
        self.linear = nn.Linear(features, classes)

    def embed(self, x: Tensor) -> Tensor:
        """`[B, features]`."""
        return (x.mean((2, 3)) if self.pool else x).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.embed(x))


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions with batch norm; a projection where the resolution halves."""

    def __init__(self, width: int, stride: int = 1):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, stride, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, 1, 1, bias=False),
            nn.BatchNorm2d(width),
        )
        self.shortcut = (
            nn.Identity()
            if stride == 1
            else nn.Sequential(
                nn.Conv2d(width, width, 1, stride, bias=False), nn.BatchNorm2d(width)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


@dataclass(frozen=True)
class Backbone:
    """A recipe for the blocks of a path.

    Args:
        layers: one factory per block but the head.
        features: number of inputs of the head's linear layer.
        pool: average the maps before that layer.
    """

    name: str
    layers: tuple[Callable[[], nn.Module], ...]
    features: int
    input_shape: tuple[int, ...]
    pool: bool = False

    def __len__(self) -> int:
        return len(self.layers) + 1

    def block(self, layer: int, classes: int) -> nn.Module:
        """A new block of this layer with random weights; `classes` matters for the head only."""
        if not 0 <= layer < len(self):
            raise ValueError(f"layer {layer} of {self.name}: it has layers 0…{len(self) - 1}")
        if layer < len(self.layers):
            return self.layers[layer]()
        return Head(self.features, classes, pool=self.pool)

    def path(self, classes: int) -> nn.ModuleList:
        """A full path of new blocks."""
        return nn.ModuleList([self.block(layer, classes) for layer in range(len(self))])

    @cached_property
    def _profile(self) -> tuple[tuple[int, int, tuple[int, ...]], ...]:
        rows, shape = [], self.input_shape
        with torch.random.fork_rng(devices=[]):  # to count is not to draw
            blocks = self.path(10)
        for block in blocks:
            macs, out = count_macs(block, shape)
            rows.append((count_params(block), macs, out))
            shape = out
        return tuple(rows)

    @property
    def params(self) -> list[int]:
        """Parameters of every block, with a head for 10 classes (table 5.3)."""
        return [row[0] for row in self._profile]

    @property
    def macs(self) -> list[int]:
        """Multiply-adds of every block for one example, with a head for 10 classes."""
        return [row[1] for row in self._profile]

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Output shape of every block for one example."""
        return [row[2] for row in self._profile]


# Factories are module-level functions, so that backbones can be sent to other processes.
def _stem(in_channels: int, width: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(in_channels, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
    )


def _blocks(width: int, strides: tuple[int, ...], stem_from: int = 0) -> nn.Module:
    made: list[nn.Module] = [ResidualBlock(width, stride) for stride in strides]
    if stem_from:
        made.insert(0, _stem(stem_from, width))
    return made[0] if len(made) == 1 else nn.Sequential(*made)


def _linear(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, outputs), nn.ReLU())


def _conv(inputs: int, outputs: int, kernel: int, pool: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel), nn.ReLU(), nn.MaxPool2d(pool))


def resnet(width: int = 64, size: int = 32, *, modules: int = 7, in_channels: int = 3) -> Backbone:
    """The ResNet of the CTrL experiments: the same width everywhere (table 5.3b).

    Args:
        width: channels; 64 in the thesis.
        size: side of the images.
        modules: 7, or 10 / 3 for the ablation of section 5.6.5: the same layers cut finer (every
            pair of residual blocks is split) or coarser (neighbours are merged).
    """

    stem = partial(_stem, in_channels, width)

    def blocks(*strides: int) -> Callable[[], nn.Module]:
        return partial(_blocks, width, strides)

    def with_stem(*strides: int) -> Callable[[], nn.Module]:
        return partial(_blocks, width, strides, in_channels)

    cuts: dict[int, tuple[Callable[[], nn.Module], ...]] = {
        3: (with_stem(1, 1, 2, 1), blocks(2, 1, 2, 1)),
        7: (stem, blocks(1, 1), blocks(2, 1), blocks(2, 1), blocks(2), blocks(1)),
        10: (stem, *(blocks(s) for s in (1, 1, 2, 1, 2, 1, 2, 1))),
    }
    if modules not in cuts:
        raise ValueError(f"modules is {modules}; the ResNet can be cut into 3, 7 or 10")
    name = f"resnet{width}" + ("" if modules == 7 else f"/{modules}")
    return Backbone(name, cuts[modules], width, (in_channels, size, size), pool=True)


def mlp(inputs: int | tuple[int, ...] = 784, hidden: int = 1000, *, depth: int = 2) -> Backbone:
    """The perceptron of permuted MNIST: blocks of one linear layer and ReLU (table 5.3a)."""
    shape = (inputs,) if isinstance(inputs, int) else tuple(inputs)
    size = int(torch.Size(shape).numel())

    layers = [partial(_linear, size, hidden), *[partial(_linear, hidden, hidden)] * (depth - 1)]
    return Backbone(f"mlp{hidden}", tuple(layers), hidden, shape)


def alexnet(width: float = 1.0, size: int = 32) -> Backbone:
    """The AlexNet of HAT: three convolutions, two wide linear layers, head (table 5.3c).

    Every block holds exactly one layer with weights, which is what attention gates need.
    """
    channels = [3, *(max(1, round(c * width)) for c in (64, 128, 256))]
    hidden = max(1, round(2048 * width))
    layers: list[Callable[[], nn.Module]] = []
    side = size
    for i, kernel in enumerate((4, 3, 2)):
        side = side - kernel + 1
        pool = 2 if side >= 2 else 1  # maps of one pixel are left alone
        side //= pool
        if side < 1:
            raise ValueError(f"images of side {size} are too small; AlexNet needs at least 15")

        layers.append(partial(_conv, channels[i], channels[i + 1], kernel, pool))
    flat = channels[-1] * side * side

    layers += [partial(_linear, flat, hidden), partial(_linear, hidden, hidden)]
    return Backbone(f"alexnet×{width:g}", tuple(layers), hidden, (3, size, size))
