"""Noisy pictures of thin curves with gaps: drawn, no download.

A stand-in for vessels and roads. A curve is a few pixels of low contrast, and discs hide parts of
the picture: the truth goes on behind them, so that a gap is filled by those who see where a curve
leads, not by those who look at one place.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from nas_core.data.dataset import Dataset, image_dataset, split_sizes

CLASSES = ("background", "curve")
SIZE = 48
SPLITS = {"train": 60, "val": 40, "test": 100}
MOST = 5_000  # training pictures that can be asked for
POINTS = np.linspace(0, 1, 100)[:, None]  # positions along a curve


def draw(
    size: int, rng: np.random.Generator, count: int | None = None
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """A picture uint8 `[size, size]` of `count` curves (2–4), and where they are, bool, alike."""
    axis = np.arange(size) + 0.5
    pixels = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1)  # [size, size, 2]
    light = 0.45 + 0.1 * np.sin(pixels @ rng.normal(0, 6 / size, 2) + rng.uniform(0, 6.3))
    truth = np.zeros((size, size), bool)
    for _ in range(rng.integers(2, 5) if count is None else count):
        ends = rng.uniform(0, 2 * np.pi) + np.array([0, np.pi]) + rng.normal(0, 0.5, 2)
        start, end = size / 2 * (1 + 1.5 * np.stack([np.sin(ends), np.cos(ends)], -1))
        bend = (start + end) / 2 + rng.normal(0, size / 4, 2)
        t = POINTS  # a quadratic Bézier curve from border to border
        line = (1 - t) ** 2 * start + 2 * t * (1 - t) * bend + t**2 * end  # [100, 2]
        gap = (axis[:, None, None] - line.T[:, None, None]) ** 2  # [2, size, 1, 100]: rows, columns
        distance = np.sqrt((gap[0] + gap[1].swapaxes(0, 1)).min(2))  # [size, size]
        half = rng.uniform(0.7, 1.3) * size / SIZE  # of the width
        light += rng.uniform(0.1, 0.22) * np.clip(half + 0.5 - distance, 0, 1)
        truth |= distance < half
    for _ in range(rng.integers(3, 7)):
        centre, radius = rng.uniform(0, size, 2), rng.uniform(2, 5) * size / SIZE
        light[np.linalg.norm(pixels - centre, axis=-1) < radius] = rng.uniform(0.4, 0.5)
    light += rng.normal(0, 0.1, light.shape)
    return (np.clip(light, 0, 1) * 255 + 0.5).astype(np.uint8), truth


def curves(size: int | None, train_limit: int | None, seed: int) -> Dataset:
    """60 / 40 / 100 pictures (up to 5,000 for training, by `train_limit`), in [−1, 1].

    The first pictures are the same ones whatever the limit. Sides of 16 to 256 pixels.
    """
    size = SIZE if size is None else size
    if not 16 <= size <= 256:
        raise ValueError(f"size is {size}; curves are drawn on 16 to 256 pixels")
    counts = split_sizes(SPLITS, train_limit, MOST)
    splits = []
    for split, count in enumerate(counts):
        seeds = (np.random.SeedSequence([seed, split, k]) for k in range(count))
        drawn = [draw(size, np.random.default_rng(one)) for one in seeds]
        x, y = (torch.from_numpy(np.stack(part)) for part in zip(*drawn, strict=True))
        splits.append((x.unsqueeze(1), y.long()))
    provenance = {"source": "procedural, nas_core.data.curves", "seed": seed}
    return image_dataset("curves", splits, CLASSES, provenance)
