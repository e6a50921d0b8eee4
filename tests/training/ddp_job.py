"""A job for the data-parallel test: no batch norm, so that the result is exactly comparable."""

from __future__ import annotations

import torch
from torch import nn

from nas_core import data
from nas_core.training import TrainConfig


def small(device: torch.device, epochs: int = 2, batch_size: int = 64):
    digits = data.load("digits", size=8, train_limit=320, device=str(device))
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.AvgPool2d(4), nn.Flatten(), nn.Linear(24, 10)
    ).double()
    return _Doubled(model), digits, TrainConfig(epochs=epochs, batch_size=batch_size, lr=0.05)


class _Doubled(nn.Module):
    """Computes in float64, so that the order of sums shows in the last digits only."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x.double())
