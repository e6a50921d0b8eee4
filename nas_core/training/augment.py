"""Random augmentation of whole batches: index arithmetic, no Python loop over examples.

An augmentation moves pixels only, so it can be applied to an image `[B, C, H, W]` of any dtype and,
with the same random draw, to its map of targets `[B, H, W]`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

IGNORED = -100  # the label of padded target pixels; `cross_entropy` skips it by default


class Augmentation:
    """Base class: `augment(x, generator)` for images, `augment.pair(x, y, generator)` with maps."""

    def draw(self, x: Tensor, generator: torch.Generator) -> Sequence[Tensor]:
        """Random numbers for one batch; `generator` lives on the device of `x`."""
        raise NotImplementedError

    def move(self, x: Tensor, draw: Sequence[Tensor], fill: int) -> Tensor:
        """`x [B, ..., H, W]` with its pixels moved as drawn."""
        raise NotImplementedError

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        return self.move(x, self.draw(x, generator), 0)

    def pair(self, x: Tensor, y: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Move images `[B, C, H, W]` and target maps `[B, H, W]` alike."""
        draw = self.draw(x, generator)
        return self.move(x, draw, 0), self.move(y.unsqueeze(1), draw, IGNORED).squeeze(1)


class RandomCrop(Augmentation):
    """Pad every side with zeros and cut a window of the old size at a random place."""

    def __init__(self, padding: int):
        if padding < 1:
            raise ValueError(f"padding is {padding}; it must be at least 1 pixel")
        self.padding = padding

    def draw(self, x: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Row and column of each window's corner, int64 `[B]` in 0…2·padding."""
        corner = torch.randint(
            2 * self.padding + 1, (2, len(x)), generator=generator, device=x.device
        )
        return corner[0], corner[1]

    def move(self, x: Tensor, draw: Sequence[Tensor], fill: int) -> Tensor:
        height, width = x.shape[-2:]
        windows = pad(x, [self.padding] * 4, value=fill).unfold(2, height, 1).unfold(3, width, 1)
        example = torch.arange(len(x), device=x.device)
        return windows[example, :, draw[0], draw[1]]  # a gather; `windows` itself is only a view

    def __repr__(self) -> str:
        return f"RandomCrop({self.padding})"


class RandomFlip(Augmentation):
    """Mirror left and right with probability ½."""

    def draw(self, x: Tensor, generator: torch.Generator) -> tuple[Tensor]:
        """Which examples to mirror, bool `[B]`."""
        return (torch.rand(len(x), generator=generator, device=x.device) < 0.5,)

    def move(self, x: Tensor, draw: Sequence[Tensor], fill: int) -> Tensor:
        return torch.where(draw[0].view(-1, 1, 1, 1), x.flip(-1), x)

    def __repr__(self) -> str:
        return "RandomFlip()"


class Compose(Augmentation):
    """One augmentation after the other."""

    def __init__(self, steps: Sequence[Augmentation]):
        self.steps = tuple(steps)

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        for step in self.steps:
            x = step(x, generator)
        return x

    def pair(self, x: Tensor, y: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        for step in self.steps:
            x, y = step.pair(x, y, generator)
        return x, y

    def __repr__(self) -> str:
        return f"Compose({list(self.steps)})"
