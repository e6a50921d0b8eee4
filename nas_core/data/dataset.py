"""What a data set is, and how examples are divided among training, validation and test."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from nas_core.training import Augment, TensorData


class DataNotFound(FileNotFoundError):
    """The files of a data set are not in the data root; the message says how to get them."""


class CorruptData(ValueError):
    """A file of a data set is not what was published; the message names it."""


@dataclass(frozen=True)
class Dataset:
    """Three splits on one device, and where they come from."""

    name: str
    train: TensorData  # with augmentation, where the set has one
    val: TensorData
    test: TensorData
    classes: tuple[str, ...]
    input_shape: tuple[int, ...]  # (C, H, W)
    task: Literal["classification", "segmentation"] = "classification"
    provenance: dict[str, Any] = field(default_factory=dict)  # source, seed, checksums, …

    def to(self, device: torch.device | str) -> Dataset:
        splits = {name: getattr(self, name).to(device) for name in ("train", "val", "test")}
        return replace(self, **splits)

    def __repr__(self) -> str:
        sizes = " / ".join(str(len(split)) for split in (self.train, self.val, self.test))
        shape = "×".join(map(str, self.input_shape))
        return f"Dataset({self.name}: {sizes} of {shape}, {len(self.classes)} classes)"


def image_dataset(
    name: str, splits: Sequence[tuple[Tensor, Tensor]], classes: tuple[str, ...],
    provenance: dict[str, Any], augment: Augment | None = None,
) -> Dataset:  # fmt: skip
    """A `Dataset` of three pairs (images uint8 `[N, C, H, W]`, targets `[N]` or `[N, H, W]`).

    The pairs are training, validation and test; pixels are scaled to [−1, 1], and `augment` is
    for the training images.
    """
    shape = splits[0][0].shape[1:]
    half = ((0.5,) * shape[0], (0.5,) * shape[0])
    augments = (augment, None, None)
    pairs = zip(splits, augments, strict=True)
    train, val, test = (TensorData(x, y, a, half) for (x, y), a in pairs)
    maps = splits[0][1].dim() > 1
    task: Literal["classification", "segmentation"] = "segmentation" if maps else "classification"
    return Dataset(name, train, val, test, classes, tuple(shape), task, provenance)


def drawn_dataset(
    name: str, draw: Callable[[np.random.Generator], tuple[np.ndarray, np.ndarray]], chunk: int,
    sizes: Sequence[int], classes: tuple[str, ...], seed: int, augment: Augment,
) -> Dataset:  # fmt: skip
    """A set of drawn images; `draw` gives `chunk` images and targets, `sizes` is per split.

    Every chunk has a seed of its own, so the first images are the same whatever the size.
    """
    parts = []
    for split, count in enumerate(sizes):
        seeds = (np.random.SeedSequence([seed, split, n]) for n in range(-(-count // chunk)))
        drawn = [draw(np.random.default_rng(one)) for one in seeds]
        x, y = (torch.from_numpy(np.concatenate(p)[:count]) for p in zip(*drawn, strict=True))
        parts.append((x, y))
    provenance = {"source": f"procedural, nas_core.data.{name}", "seed": seed}
    return image_dataset(name, parts, classes, provenance, augment)


def stratified_order(labels: np.ndarray, seed: int) -> np.ndarray:
    """Random indices `[N]` whose every prefix holds the classes of `labels` nearly in proportion.

    So cutting them anywhere gives stratified parts; balanced classes differ by one example at most.
    """
    rng = np.random.default_rng(np.random.SeedSequence([seed, len(labels)]))
    shuffled = rng.permutation(len(labels))
    position = np.empty(len(labels))
    for label in np.unique(labels):
        members = np.flatnonzero(labels[shuffled] == label)
        position[members] = (np.arange(len(members)) + 0.5) / len(members)
    return shuffled[np.argsort(position, kind="stable")]


def limited(count: int | None, available: int, what: str = "train_limit") -> int:
    """`count` checked against what there is; all of it for None."""
    if count is None:
        return available
    if not 1 <= count <= available:
        raise ValueError(f"{what} is {count}; it must be in 1…{available}")
    return count


def split_sizes(splits: dict[str, int], train_limit: int | None, most: int) -> list[int]:
    """Sizes of a drawn set: those of `splits`, but `train_limit` (1…`most`) for training."""
    train = splits["train"] if train_limit is None else limited(train_limit, most)
    return [train, splits["val"], splits["test"]]


# ------------------------------------------ images for a network that halves them again and again


def zero_pad(data: Dataset, height: int, width: int | None = None, *, label: int = 0) -> Dataset:
    """The same images in the middle of a larger black canvas, `height` × `width` (or square).

    Where targets are maps, added pixels have the class `label`; −100 leaves them out of the loss.
    """
    width = height if width is None else width
    channels, old_height, old_width = data.input_shape
    rows, columns = height - old_height, width - old_width
    if rows < 0 or columns < 0:
        raise ValueError(
            f"{data.name} has {old_height}×{old_width} pixels, more than {height}×{width}"
        )
    frame = (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2)

    def padded(split: TensorData) -> TensorData:
        y = pad(split.y, frame, value=label) if split.y.dim() > 1 else split.y
        return TensorData(pad(split.x, frame), y, split.augment, split.normalise)

    return _mapped(data, padded, (channels, height, width))


def average_pool(data: Dataset, factor: int) -> Dataset:
    """Every `factor` × `factor` pixels become their mean; only for one label per image."""
    channels, height, width = data.input_shape
    if factor < 1 or height % factor or width % factor:
        raise ValueError(f"{height}×{width} pixels of {data.name} do not divide by {factor}")
    if data.task != "classification":
        raise ValueError(f"{data.name} has a label per pixel; those have no mean")

    def pooled(split: TensorData) -> TensorData:
        x = split.x.view(len(split.x), channels, height // factor, factor, width // factor, factor)
        mean = x.float().mean((3, 5))
        x = mean.round().to(torch.uint8) if split.x.dtype == torch.uint8 else mean
        return TensorData(x, split.y, split.augment, split.normalise)

    return _mapped(data, pooled, (channels, height // factor, width // factor))


def _mapped(data: Dataset, change, shape: tuple[int, int, int]) -> Dataset:
    splits = {name: change(getattr(data, name)) for name in ("train", "val", "test")}
    return replace(data, **splits, input_shape=shape)
