"""Face-like pictures whose every pixel is hair, skin or background: drawn, no download.

A stand-in for Part Labels (`part_labels`) with its three classes and its one hard question: hair,
skin and background differ by place and shape more than by colour.
"""

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nas_core.data.dataset import Dataset, drawn_dataset, split_sizes
from nas_core.training import Augment

Floats = NDArray[Any]  # float32

CLASSES = ("hair", "skin", "background")
SIZES = (16, 32, 64)
SPLITS = {"train": 600, "val": 200, "test": 400}
MOST = 10_000  # training pictures that can be asked for
CHUNK = 100


def draw_faces(
    count: int, size: int, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Pictures uint8 `[n, 3, size, size]` and their maps of classes int64 `[n, size, size]`.

    The random numbers do not depend on the size (but for the noise): the same faces, finer.
    """

    def uniform(low: float, high: float, *shape: int) -> Floats:
        return rng.uniform(low, high, (count, *shape, 1, 1)).astype(np.float32)

    axis = (np.arange(size, dtype=np.float32) + 0.5) * (2 / size) - 1  # −1…1 across the picture
    x, y = axis[None, None, :], axis[None, :, None]
    tilt = uniform(-0.25, 0.25)
    dx, dy = x - uniform(-0.2, 0.2), y - uniform(-0.1, 0.2)
    u, v = dx + tilt * dy, dy - tilt * dx  # seen from the middle of the face
    width, height = uniform(0.36, 0.5), uniform(0.48, 0.62)
    face = np.hypot(u / width, v / height) < 1
    face |= (np.abs(u) < 0.45 * width) & (v > 0)  # the neck
    cap, fall = uniform(1.15, 1.5), uniform(-0.2, 0.9)  # thickness; how far hair falls
    locks = np.hypot(u / (width * cap), (v + 0.12) / (height * cap)) < 1
    locks &= v < fall
    hairline = uniform(-0.45, -0.2) + 0.25 * np.cos(u / width * uniform(0, 3)) - 0.25
    hair = locks & (~face | (v < hairline)) & (uniform(0, 1) > 0.07)  # some are bald
    target = np.where(hair, 0, np.where(face, 1, 2))

    tone = uniform(0.25, 1.0, 1)  # from dark to light skin
    skin = tone * np.array([0.95, 0.76, 0.64], np.float32)[:, None, None] + uniform(-0.05, 0.05, 3)
    hair_colour = uniform(0.05, 0.8, 1) * np.array([1, 0.8, 0.55], np.float32)[:, None, None]
    hair_colour = hair_colour + uniform(-0.06, 0.06, 3)
    strands = 1 + 0.25 * np.sin(uniform(15, 40, 1) * u[:, None] + 3 * np.sin(4 * v[:, None]))
    stretch, waves = uniform(1, 9, 3, 2), uniform(0, 6.3, 3)
    pattern = np.sin(stretch[:, :, 0] * x[:, None] + stretch[:, :, 1] * y[:, None] + waves)
    # Half of the grounds have a colour like skin or hair, so that colour alone does not decide.
    ground = np.where(uniform(0, 1, 1) < 0.5, uniform(0.1, 0.9, 3), skin + uniform(-0.15, 0.15, 3))
    part = target[:, None]
    image = np.where(part == 1, skin, ground + 0.12 * pattern)
    image = np.where(part == 0, hair_colour * strands, image)
    dark = np.hypot((np.abs(u) - 0.42 * width) / (0.2 * width), (v + 0.1) / (0.1 * height)) < 1
    dark |= np.hypot(u / (0.35 * width), (v - 0.5 * height) / (0.09 * height)) < 1  # the mouth
    image = image * np.where(dark & (target == 1), 0.45, 1)[:, None]
    light = 1 + uniform(-0.35, 0.35, 1) * x[:, None] + uniform(-0.2, 0.2, 1)
    noise = rng.standard_normal(image.shape, dtype=np.float32)
    image = np.clip(light * image + 0.04 * noise, 0, 1)
    return (image * 255 + 0.5).astype(np.uint8), target.astype(np.int64)


def faces(size: int | None, train_limit: int | None, seed: int) -> Dataset:
    """600 / 200 / 400 pictures of 32×32 (or 16, 64), in [−1, 1], with a class per pixel."""
    size = 32 if size is None else size
    if size not in SIZES:
        raise ValueError(f"size is {size}; faces come in {', '.join(map(str, SIZES))}")
    sizes, draw = split_sizes(SPLITS, train_limit, MOST), partial(draw_faces, CHUNK, size)
    return drawn_dataset("faces", draw, CHUNK, sizes, CLASSES, seed, Augment(flip=True))
