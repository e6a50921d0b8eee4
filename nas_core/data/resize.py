"""Making images fit a network that halves them again and again."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch.nn.functional import pad

from nas_core.data.dataset import Dataset
from nas_core.training import TensorData


def zero_pad(data: Dataset, height: int, width: int | None = None, *, label: int = 0) -> Dataset:
    """The same images in the middle of a larger black canvas, e.g. 28 → 32 or 250 → 256 pixels.

    Args:
        height, width: of the result; width = height when absent.
        label: class of the added pixels where targets are maps (`-100` leaves them out of the
            loss).
    """
    width = height if width is None else width
    channels, old_height, old_width = data.input_shape
    rows, columns = height - old_height, width - old_width
    if rows < 0 or columns < 0:
        raise ValueError(
            f"{data.name} has {old_height}×{old_width} pixels, more than {height}×{width}; "
            "padding cannot make images smaller"
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
