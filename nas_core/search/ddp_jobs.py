"""What `python -m nas_core.training.ddp` (under torchrun) can train: see its docstring."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from nas_core import data, spaces
from nas_core.search.run import Run
from nas_core.search.trial import SPACES
from nas_core.training import TrainConfig


def plain_resnet(
    device: torch.device,
    dataset: str = "cifar10",
    blocks: int = 3,
    channels: tuple[int, ...] = (16, 32, 64),
    **config: Any,
) -> tuple[nn.Module, data.Dataset, TrainConfig]:
    """ResNet-(6·blocks + 2) as a plain module; `config` holds fields of `TrainConfig`."""
    images = data.load(dataset, device=str(device))
    channels_in, height, width = images.input_shape
    fabric = spaces.resnet_fabric(
        blocks, len(images.classes), channels=channels, input_shape=(channels_in, height, width)
    )
    return spaces.plain_resnet(fabric.graph).extract(fabric), images, TrainConfig(**config)


def searched(
    device: torch.device,
    run: str,
    space: str = "resnet_fabric",
    dataset: str = "cifar10",
    space_args: dict[str, Any] | None = None,
    **config: Any,
) -> tuple[nn.Module, data.Dataset, TrainConfig]:
    """The architecture of a saved `Run`, with new weights; the space must be that of the run."""
    images = data.load(dataset, device=str(device))
    net = SPACES[space](
        **(space_args or {}), num_classes=len(images.classes), input_shape=images.input_shape
    )
    return Run.load(run).architecture.extract(net), images, TrainConfig(**config)
