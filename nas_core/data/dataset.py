"""What a data set is, and how examples are divided among training, validation and test."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch

from nas_core.training import TensorData


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


def stratified_order(labels: np.ndarray, seed: int) -> np.ndarray:
    """A random order whose every prefix holds the classes nearly in proportion.

    Balanced classes differ by one example at most.

    Args:
        labels: `[N]`, any integers.

    Returns:
        Indices `[N]`; cutting them anywhere gives stratified parts.
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
