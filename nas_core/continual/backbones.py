"""Backbones cut into blocks, one module per layer of a path (thesis table 5.3).

A `Backbone` makes blocks; it holds no weights. The last block is the head: an average over the
maps where there are maps, then one linear layer. `Head.embed` gives the features before it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor, nn

from nas_core.spaces.layers import conv_bn
from nas_core.supernet import count_macs, count_params
from nas_core.training import require


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
        first, second = conv_bn(width, width, 3, stride), conv_bn(width, width)
        self.body = nn.Sequential(*first, nn.ReLU(), *second)
        self.shortcut = nn.Identity() if stride == 1 else conv_bn(width, width, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


@dataclass(frozen=True)
class Backbone:
    """A recipe for the blocks of a path."""

    name: str
    layers: tuple[Callable[[], nn.Module], ...]  # one factory per block but the head
    features: int  # inputs of the head's linear layer
    input_shape: tuple[int, ...]
    pool: bool = False  # average the maps before that layer

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
    def _profile(self) -> list[tuple[int, int, tuple[int, ...]]]:
        """Parameters, and for one example multiply-adds and output shape; with a 10-way head."""
        rows, shape = [], self.input_shape
        with torch.random.fork_rng(devices=[]):  # counting must not change the global generator
            blocks = self.path(10)
        for block in blocks:
            macs, shape = count_macs(block, shape)
            rows.append((count_params(block), macs, shape))
        return rows

    params = property(lambda self: [row[0] for row in self._profile], doc="Table 5.3, per block")
    macs = property(lambda self: [row[1] for row in self._profile], doc="Multiply-adds, per block")
    shapes = property(lambda self: [row[2] for row in self._profile], doc="Of outputs, per block")


# Factories are module-level functions, so that backbones can be sent to other processes.
def _blocks(width: int, strides: tuple[int, ...], stem_from: int = 0) -> nn.Module:
    made: list[nn.Module] = [ResidualBlock(width, stride) for stride in strides]
    if stem_from:
        made.insert(0, nn.Sequential(*conv_bn(stem_from, width), nn.ReLU()))
    return made[0] if len(made) == 1 else nn.Sequential(*made)


def _linear(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, outputs), nn.ReLU())


def _conv(inputs: int, outputs: int, kernel: int, pool: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel), nn.ReLU(), nn.MaxPool2d(pool))


def resnet(width: int = 64, size: int = 32, *, modules: int = 7, in_channels: int = 3) -> Backbone:
    """The ResNet of the CTrL experiments: `width` channels everywhere (table 5.3b).

    With 10 or 3 modules (section 5.6.5) the same layers are cut finer or coarser.
    """
    strides: dict[int, tuple[tuple[int, ...], ...]]  # of the blocks in each module
    strides = {3: ((1, 1, 2, 1), (2, 1, 2, 1)), 7: ((), (1, 1), (2, 1), (2, 1), (2,), (1,))}
    strides[10] = ((), *((s,) for s in (1, 1, 2, 1, 2, 1, 2, 1)))
    require(modules in strides, "modules", modules, "3, 7 or 10")
    stems = (in_channels, *[0] * (len(strides[modules]) - 1))
    layers = tuple(partial(_blocks, width, *a) for a in zip(strides[modules], stems, strict=True))
    name = f"resnet{width}" + ("" if modules == 7 else f"/{modules}")
    return Backbone(name, layers, width, (in_channels, size, size), pool=True)


def mlp(inputs: int | tuple[int, ...] = 784, hidden: int = 1000, *, depth: int = 2) -> Backbone:
    """The perceptron of permuted MNIST: blocks of one linear layer and ReLU (table 5.3a)."""
    shape = (inputs,) if isinstance(inputs, int) else tuple(inputs)
    first, more = partial(_linear, math.prod(shape), hidden), partial(_linear, hidden, hidden)
    return Backbone(f"mlp{hidden}", (first, *[more] * (depth - 1)), hidden, shape)


def alexnet(width: float = 1.0, size: int = 32) -> Backbone:
    """The AlexNet of HAT: three convolutions, two wide linear layers, head (table 5.3c).

    Every block holds exactly one layer with weights, which is what attention gates need.
    """
    channels = [3, *(max(1, round(c * width)) for c in (64, 128, 256))]
    hidden, side = max(1, round(2048 * width)), size
    layers: list[Callable[[], nn.Module]] = []
    for i, kernel in enumerate((4, 3, 2)):
        side = side - kernel + 1
        pool = 2 if side >= 2 else 1  # maps of one pixel are not pooled
        side //= pool
        require(side >= 1, "size", size, "at least 15 for AlexNet")
        layers.append(partial(_conv, channels[i], channels[i + 1], kernel, pool))
    flat = channels[-1] * side * side
    layers += [partial(_linear, flat, hidden), partial(_linear, hidden, hidden)]
    return Backbone(f"alexnet×{width:g}", tuple(layers), hidden, (3, size, size))
