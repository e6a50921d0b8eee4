"""Convolutional neural fabrics: every path through columns × scales at once (thesis fig. 3.2)."""

from __future__ import annotations

import math
from numbers import Integral

from torch import Tensor, nn

from nas_core.spaces.layers import SumReLU, conv_bn, initialize
from nas_core.supernet import Edge, Graph, SuperNetwork


def conv_fabric(
    columns: int, scales: int, channels: int, num_classes: int, *,
    task: str = "classification", input_shape: tuple[int, int, int] | None = None,
) -> SuperNetwork:  # fmt: skip
    """A grid of nodes: columns run left to right, each scale has half the resolution of the last.

    Node `"l.s"` is the ReLU of the sum of what arrives from its three neighbours in the column to
    the left: from the finer scale by a stride-2 convolution (kind "down"), from the same scale
    ("same"), and from the coarser scale by a convolution after ×2 up-sampling ("up"). Every edge
    is a 3×3 convolution with bias and its own batch norm; all have `channels` filters. Edges
    within a column exist in the first one (fine → coarse) and in the last one: fine → coarse for
    classification, whose output `[B, num_classes]` is read at the coarsest scale; coarse → fine
    for segmentation, whose output `[B, num_classes, H, W]` is read at the finest.

    Args:
        columns, scales, channels: in the thesis W of 1 to 8; 6 for 32×32 images and 9 for 256×256;
            F of 128 (64 for segmentation). Segmentation needs at least two columns.
        input_shape: (C, H, W), both sides divisible by 2^(scales − 1); 3 channels and a coarsest
            map of 1×1 when absent.
    """
    if task not in ("classification", "segmentation"):
        raise ValueError(f"task {task!r} is unknown; use 'classification' or 'segmentation'")
    sizes = {"columns": columns, "scales": scales, "channels": channels, "num_classes": num_classes}
    least = {"columns": 1 if task == "classification" else 2, "num_classes": 2}
    for what, value in sizes.items():
        low = least.get(what, 1)
        if not isinstance(value, Integral) or value < low:
            raise ValueError(f"{what} is {value!r}; {task} needs an integer of at least {low}")
    if input_shape is None:
        input_shape = (3, 2 ** (scales - 1), 2 ** (scales - 1))
    _check_resolution(scales, tuple(input_shape))
    classify, last = task == "classification", columns - 1
    end = scales - 1 if classify else 0  # the scale that the head reads

    # The order of the edges is part of the distributed cost: see nas_core.costs.distributed.
    edges = [Edge("input", "0.0", conv_bn(input_shape[0], channels, bias=True), "stem", "stem")]

    def connect(column: int, scale: int, from_column: int, from_scale: int) -> None:
        kind = ("up", "same", "down")[scale - from_scale + 1]
        stride = 2 if kind == "down" else 1
        up = kind == "up"
        module = UpConv(channels) if up else conv_bn(channels, channels, 3, stride, bias=True)
        edges.append(Edge(f"{from_column}.{from_scale}", f"{column}.{scale}", module, kind=kind))

    for s in range(1, scales):
        connect(0, s, 0, s - 1)
    for column in range(1, columns):
        for s in range(scales):
            for t in range(max(s - 1, 0), min(s + 2, scales)):
                connect(column, s, column - 1, t)
    for s in range(1, scales if columns > 1 else 0):
        to, source = (s, s - 1) if classify else (scales - 1 - s, scales - s)
        connect(last, to, last, source)
    pool = classify and max(input_shape[1:]) > 2 ** (scales - 1)
    head = Head(channels, num_classes, pool=pool, flatten=classify)
    edges.append(Edge(f"{last}.{end}", "output", head, "head", "head"))

    grid = {f"{c}.{s}": (float(c), float(-s)) for c in range(columns) for s in range(scales)}
    net = SuperNetwork(
        edges, "input", "output", node_ops={node: SumReLU() for node in grid},
        input_shape=tuple(input_shape),
        name=f"conv_fabric(W={columns}, scales={scales}, F={channels}, {task})",
        positions={"input": (-1.0, 0.0), **grid, "output": (float(columns), float(-end))},
    )  # fmt: skip
    initialize(net, nn.Conv2d)
    return net


def share_by_scale(graph: Graph, kept: Tensor) -> dict[int, float]:
    """Mean of `kept` (a mask or probabilities, `[E]`) over the edges to each scale, 0 the finest.

    Stem and head do not count.
    """
    found: dict[int, list[float]] = {}
    for edge, value in zip(graph.edges, kept.tolist(), strict=True):
        if edge.kind not in ("stem", "head"):
            found.setdefault(int(edge.target.split(".")[1]), []).append(float(value))
    return {scale: sum(values) / len(values) for scale, values in sorted(found.items())}


class UpConv(nn.Sequential):
    """×2 nearest-neighbour up-sampling, then 3×3 convolution and batch norm."""

    thesis_macs_divisor = 4  # the thesis counts the resolution *before* up-sampling

    def __init__(self, channels: int):
        super().__init__(nn.Upsample(scale_factor=2.0), *conv_bn(channels, channels, bias=True))


class Head(nn.Sequential):
    """1×1 convolution to the classes, of the pooled map or of every pixel."""

    unit_ops = 0  # the thesis does not count it in the distributed cost

    def __init__(self, inputs: int, outputs: int, *, pool: bool, flatten: bool):
        before = (nn.AdaptiveAvgPool2d(1),) if pool else ()
        after = (nn.Flatten(),) if flatten else ()
        super().__init__(*before, nn.Conv2d(inputs, outputs, 1), *after)


def _check_resolution(scales: int, input_shape: tuple[int, ...]) -> None:
    if len(input_shape) != 3:
        raise ValueError(f"input_shape {input_shape} is not (channels, height, width)")
    step = 2 ** (scales - 1)
    height, width = input_shape[1:]
    if common := math.gcd(height, width) % step:
        fits = (common & -common).bit_length()  # the lowest bit: how often both can be halved, + 1
        raise ValueError(
            f"{scales} scales do not fit {height}×{width} pixels: both sides must be divisible by "
            f"2^{scales - 1} = {step}; use at most {fits} scales, or pad the images"
        )
