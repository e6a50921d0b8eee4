"""Procedural tasks that tell first-order from second-order pooling.

`feature_maps` draws Gaussian maps whose classes differ in the mean of the channels (order 1) or in
their covariance alone (order 2). `textures` draws grey images: noise filtered with one of several
similar filters, under a contrast and a brightness that differ from image to image.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nas_core.data.dataset import Dataset
from nas_core.training import TensorData

SPLITS = {"train": 2000, "val": 500, "test": 2000}


def feature_maps(
    order: int = 2,
    *,
    classes: int = 8,
    channels: int = 16,
    size: int = 7,
    strength: float = 1.0,
    train: int = SPLITS["train"],
    seed: int = 0,
) -> Dataset:
    """Gaussian maps `[N, channels, size, size]`, float32, independent over positions.

    Args:
        order: 2: all means are 0 and class k has the covariance Q_k Λ Q_kᵀ with a random rotation
            Q_k; the eigenvalues are the same for all. 1: class k has a mean, all covariances are I.
        strength: of the difference: the logarithms of the eigenvalues spread over ±strength, or
            the length of the mean in standard deviations of a position.
        seed: of the classes; the examples of a split have seeds of their own.
    """
    if order not in (1, 2):
        raise ValueError(f"order is {order}; it must be 1 (means) or 2 (covariances)")
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(classes, channels, channels, generator=generator)
    rotation = torch.linalg.qr(noise)[0]  # [K, c, c]
    spread = torch.linspace(-strength, strength, channels).div(2).exp()
    if order == 2:
        mix, mean = rotation * spread, torch.zeros(classes, channels)
    else:
        mix = torch.eye(channels).expand(classes, -1, -1)
        mean = strength * rotation[:, :, 0]

    def draw(split: int, count: int) -> TensorData:
        g = torch.Generator().manual_seed(1000 * (seed + 1) + split)
        y = torch.arange(count) % classes
        z = torch.randn(count, channels, size * size, generator=g)
        x = mix[y] @ z + mean[y].unsqueeze(2)
        return TensorData(x.view(count, channels, size, size), y)

    sizes = {**SPLITS, "train": train}
    train_set, val, test = (draw(i, sizes[name]) for i, name in enumerate(SPLITS))
    names = tuple(f"class {k}" for k in range(classes))
    about = {"source": "drawn", "order": order, "strength": strength, "seed": seed}
    return Dataset(
        f"feature_maps_{order}", train_set, val, test, names, (channels, size, size),
        provenance=about,
    )  # fmt: skip


def textures(
    *, classes: int = 8, size: int = 24, train: int = 1000, spread: float = 0.5, seed: int = 0
) -> Dataset:
    """Grey textures `[N, 1, size, size]`: noise in a band of frequencies around one direction.

    Directions of neighboring classes lie 180°/classes apart; the direction of an image strays
    by `spread` of that (standard deviation), its contrast by a factor of two and its brightness
    by one standard deviation, so that neither tells the class.
    """
    fy = torch.fft.fftfreq(size)[:, None]
    fx = torch.fft.rfftfreq(size)[None, :]
    radius, angle = torch.hypot(fx, fy), torch.atan2(fy.expand(size, size // 2 + 1), fx)

    def draw(split: int, count: int) -> TensorData:
        g = torch.Generator().manual_seed(1000 * (seed + 1) + split)
        y = torch.arange(count) % classes
        step = math.pi / classes
        direction = step * (y + spread * torch.randn(count, generator=g))
        away = angle - direction[:, None, None]
        lobe = torch.exp(-((torch.sin(away) / 0.5) ** 2) - ((radius - 0.2) / 0.08) ** 2)
        white = torch.fft.rfft2(torch.randn(count, size, size, generator=g))
        x = torch.fft.irfft2(white * lobe, s=(size, size))
        x = x / x.std((1, 2), keepdim=True)
        contrast = torch.exp(math.log(2) * torch.randn(count, 1, 1, generator=g) / 2)
        x = contrast * (x + 0.5 * torch.randn(count, size, size, generator=g))
        x = x + torch.randn(count, 1, 1, generator=g)
        return TensorData(_column(x), y)

    sizes = {"train": train, "val": 500, "test": 2000}
    train_set, val, test = (draw(i, count) for i, count in enumerate(sizes.values()))
    names = tuple(f"{180 * k / classes:.0f}°" for k in range(classes))
    about = {"source": "drawn", "spread": spread, "seed": seed}
    return Dataset("textures", train_set, val, test, names, (1, size, size), provenance=about)


def _column(x: Tensor) -> Tensor:
    """One channel in front: `[N, H, W] → [N, 1, H, W]`."""
    return x.unsqueeze(1).contiguous()
