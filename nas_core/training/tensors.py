"""Data that lives on one device as two tensors; batches are cut out and augmented there."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from nas_core.training.checkpoint import fingerprint
from nas_core.training.device import require

IGNORED = -100  # the label of padded target pixels; `cross_entropy` skips it by default
Normalise = tuple[Sequence[float], Sequence[float]]  # mean and standard deviation per channel


class Splits(Protocol):
    """What training needs of a data set; `nas_core.data.Dataset` is one."""

    @property
    def train(self) -> TensorData: ...
    @property
    def val(self) -> TensorData: ...


@dataclass(frozen=True)
class Augment:
    """Random crops, then random mirror images, of whole batches and of any dtype.

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
        return self._draw(x, generator)(x, 0)

    def pair(self, x: Tensor, y: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Images `[B, C, H, W]` and their target maps `[B, H, W]`, moved alike."""
        move = self._draw(x, generator)
        return move(x, 0), move(y.unsqueeze(1), IGNORED).squeeze(1)

    def _draw(self, x: Tensor, generator: torch.Generator) -> Callable[[Tensor, int], Tensor]:
        """Draw a move for every example of `x`, to be applied to images or maps `[B, ?, H, W]`."""
        (batch, _, height, width), p = x.shape, self.padding
        drawn: Any = {"generator": generator, "device": x.device}
        corner = torch.randint(2 * p + 1, (2, batch), **drawn) if p else None
        mirrored = torch.rand(batch, **drawn).view(-1, 1, 1, 1) < 0.5 if self.flip else None

        def move(x: Tensor, fill: int) -> Tensor:
            if corner is not None:  # index arithmetic: no Python loop over examples
                wide = pad(x, [p] * 4, value=fill)
                windows = wide.unfold(2, height, 1).unfold(3, width, 1)  # [B, ?, 2p+1, 2p+1, H, W]
                x = windows[torch.arange(batch, device=x.device), :, corner[0], corner[1]]
            return x if mirrored is None else torch.where(mirrored, x.flip(-1), x)

        return move


class TensorData:
    """Inputs and targets on one device.

    Args:
        x: tensor or array `[N, ...]`; images `[N, C, H, W]` take least memory as uint8.
        y: targets `[N]` or maps `[N, H, W]`; `[N, 1]` and one-hot rows `[N, K]` are converted.
        augment: applied to every batch of raw `x` (and of `y`, if it is a map).
        normalise: `(mean, std)` per channel, of values in [0, 1]; applied last.
    """

    def __init__(
        self, x: Tensor | np.ndarray, y: Tensor | np.ndarray,
        augment: Augment | None = None, normalise: Normalise | None = None,
    ):  # fmt: skip
        x, y = torch.as_tensor(x), _class_numbers(torch.as_tensor(y))
        if len(x) != len(y):
            raise ValueError(f"x has {len(x)} examples and y has {len(y)}; give one target each")
        if x.device != y.device:
            raise ValueError(f"x is on {x.device} and y on {y.device}; move them to one device")
        if augment is not None and x.dim() != 4:
            raise ValueError(f"augment needs images [N, C, H, W]; x is {list(x.shape)}")
        self.x, self.y, self.augment, self.normalise = x, y, augment, normalise
        if normalise is None:
            return
        mean, std = (torch.tensor(v, dtype=torch.float32, device=x.device) for v in normalise)
        if not len(mean) == len(std) == x.shape[1]:
            counts = f"{len(mean)} means and {len(std)} deviations for {x.shape[1]} channels"
            raise ValueError(f"normalise has {counts}; give one per channel")
        if (std <= 0).any():
            raise ValueError(f"standard deviation {normalise[1]}; it must be above 0")
        if x.is_floating_point() and len(x) and x.abs().max() > 8:
            found = f"values up to {x.abs().max():.3g}, but normalise is for values in [0, 1]"
            raise ValueError(f"x has {found}; divide x by 255, or keep it as uint8")
        scale = 255.0 if x.dtype == torch.uint8 else 1.0  # of the raw values
        shape = (1, -1) + (1,) * (x.dim() - 2)
        self._centre, self._spread = (scale * mean).view(shape), (scale * std).view(shape)

    def __len__(self) -> int:
        return len(self.x)

    def __repr__(self) -> str:
        kind = f"{list(self.x.shape)} {str(self.x.dtype).removeprefix('torch.')}"
        return f"TensorData({kind}, {self.x.device}, augment={self.augment})"

    @property
    def device(self) -> torch.device:
        return self.x.device

    def to(self, device: torch.device | str) -> TensorData:
        return self._like(self.x.to(device), self.y.to(device), self.augment)

    def subset(self, indices: Tensor | Sequence[int]) -> TensorData:
        """The examples at `indices`, in that order; there must be at least one."""
        index = torch.as_tensor(indices, device=self.device)
        if len(index) == 0:
            raise ValueError("the subset has no indices, so it would hold no examples")
        return self._like(self.x[index], self.y[index], self.augment)

    def plain(self) -> TensorData:
        """The same examples without augmentation (shares memory)."""
        return self._like(self.x, self.y, None)

    def _like(self, x: Tensor, y: Tensor, augment: Augment | None) -> TensorData:
        """The same normalisation for other examples; checks nothing anew."""
        other = copy.copy(self)
        other.x, other.y, other.augment = x, y, augment
        if self.normalise is not None:
            other._centre, other._spread = self._centre.to(x.device), self._spread.to(x.device)
        return other

    def fingerprint(self) -> str:
        """Identity of the values, of the augmentation and of the normalisation."""
        return fingerprint(self.x, self.y, self.augment, self.normalise)

    def inputs(self, raw: Tensor) -> Tensor:
        """Rows of `x` as the float32 values a network gets."""
        if self.normalise is None:
            return raw.float() / 255.0 if raw.dtype == torch.uint8 else raw.float()
        return (raw.float() - self._centre) / self._spread

    def batches(
        self, batch_size: int, *, seed: int, epoch: int = 0, shuffle: bool = True,
        drop_last: bool = False,
    ) -> Iterator[tuple[Tensor, Tensor]]:  # fmt: skip
        """Batches `(x float32 [B, ...], y)`, every example once.

        Order and augmentation depend on `(seed, epoch)` and the kind of device alone, so that a
        resumed run sees the bytes that the interrupted one would have seen.
        """
        require(batch_size >= 1, "batch_size", batch_size, "at least 1")
        order_seed, augment_seed = derived_seeds(seed, epoch)
        order = None
        if shuffle:  # drawn on the CPU: the same order on every device
            generator = torch.Generator().manual_seed(order_seed)
            order = torch.randperm(len(self), generator=generator).to(self.device)
        generator = torch.Generator(self.device).manual_seed(augment_seed)
        end = len(self) - len(self) % batch_size if drop_last else len(self)
        for start in range(0, end, batch_size):
            rows = slice(start, start + batch_size)
            index = rows if order is None else order[rows]
            x, y = self.x[index], self.y[index]
            if self.augment is not None and y.dim() > 1:
                x, y = self.augment.pair(x, y, generator)
            elif self.augment is not None:
                x = self.augment(x, generator)
            yield self.inputs(x), y


def _class_numbers(y: Tensor) -> Tensor:
    """Targets `[N]` or `[N, H, W]` as int64; floating-point ones are left as they are."""
    if y.dim() == 2:
        one_hot = ((y == 0) | (y == 1)).all() and (y.sum(1) == 1).all()
        if y.shape[1] != 1 and not one_hot:
            raise ValueError(f"y is {list(y.shape)}, not one-hot; give [N] or maps [N, H, W]")
        y = y[:, 0] if y.shape[1] == 1 else y.argmax(1)
    return y if y.is_floating_point() else y.long()


def derived_seeds(*key: int) -> tuple[int, int]:
    """Two seeds that are independent of each other and between different keys."""
    first, second = np.random.SeedSequence(key).generate_state(2)
    return int(first), int(second)
