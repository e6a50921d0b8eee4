"""Layers that several spaces are built from."""

from __future__ import annotations

from torch import nn


def conv_bn(
    inputs: int, outputs: int, kernel: int = 3, stride: int = 1, *, bias: bool = False
) -> nn.Sequential:
    """Convolution that keeps the resolution (divided by the stride), then batch norm."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=bias)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


def pooled_linear(channels: int, classes: int) -> nn.Sequential:
    """Classifier of the mean over the map: `[B, channels, H, W]` → `[B, classes]`."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


class SumReLU(nn.ReLU):
    """ReLU of the sum at a node; the sum takes one cycle of its own in the distributed cost."""

    unit_ops = 1


def initialize(net: nn.Module, *kinds: type[nn.Conv2d | nn.Linear]) -> None:
    """He's initialisation of all layers of these kinds, biases zero."""
    for module in net.modules():
        if isinstance(module, kinds):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
