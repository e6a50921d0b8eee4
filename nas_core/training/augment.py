"""Random augmentation of whole batches: index arithmetic, no Python loop over examples."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

IGNORED = -100  # the label of padded target pixels; `cross_entropy` skips it by default


def crop(x: Tensor, corner: Tensor, padding: int, fill: int = 0) -> Tensor:
    """Pad every side of `x [B, C, H, W]` and cut the window `[B, C, H, W]` at `corner [2, B]`."""
    height, width = x.shape[-2:]
    windows = pad(x, [padding] * 4, value=fill).unfold(2, height, 1).unfold(3, width, 1)
    example = torch.arange(len(x), device=x.device)
    return windows[example, :, corner[0], corner[1]]  # a gather; `windows` itself is only a view


def mirror(x: Tensor, which: Tensor) -> Tensor:
    """Exchange left and right in the examples of `x [B, C, H, W]` that `which [B]` names."""
    return torch.where(which.view(-1, 1, 1, 1), x.flip(-1), x)


@dataclass(frozen=True)
class Augment:
    """Random crops, then random mirror images; of any dtype.

    Args:
        padding: of the crops, in pixels; each window has a corner in 0…2·padding. 0: no crops.
        flip: mirror left and right with probability ½.
    """

    padding: int = 0
    flip: bool = False

    def __post_init__(self) -> None:
        if self.padding < 0 or not (self.padding or self.flip):
            raise ValueError(f"padding is {self.padding}; give at least 1 pixel, or flip=True")

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Images `[B, C, H, W]` with their pixels moved; `generator` lives on their device."""
        return self._move(x, None, generator)[0]

    def pair(self, x: Tensor, y: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Images `[B, C, H, W]` and their target maps `[B, H, W]`, moved alike."""
        x, maps = self._move(x, y.unsqueeze(1), generator)
        assert maps is not None
        return x, maps.squeeze(1)

    def _move(
        self, x: Tensor, maps: Tensor | None, generator: torch.Generator
    ) -> tuple[Tensor, Tensor | None]:
        if self.padding:
            size = (2, len(x))
            top = 2 * self.padding + 1
            corner = torch.randint(top, size, generator=generator, device=x.device)
            x = crop(x, corner, self.padding)
            maps = None if maps is None else crop(maps, corner, self.padding, IGNORED)
        if self.flip:
            which = torch.rand(len(x), generator=generator, device=x.device) < 0.5
            x = mirror(x, which)
            maps = None if maps is None else mirror(maps, which)
        return x, maps
