"""The ResNet fabric: every plain ResNet is one of its architectures (thesis fig. 3.1)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from nas_core.spaces.layers import SumReLU, conv_bn, initialize, pooled_linear
from nas_core.supernet import Architecture, Edge, Graph, SuperNetwork


def resnet_fabric(
    blocks_per_group: int, num_classes: int = 10, *,
    channels: Sequence[int] = (16, 32, 64), input_shape: tuple[int, int, int] = (3, 32, 32),
) -> SuperNetwork:  # fmt: skip
    """Groups of basic blocks, with further blocks that lead from one group to the next.

    Every block contributes two parallel edges: its two convolutions, and its shortcut (identity,
    or 1×1 convolution where the shape changes), which are removable separately. Besides its
    sequential input, block d of group g > 0 receives blocks from a(g−1, n−2−d), from
    a(g−1, n−1−d) unless d = 0, and from a(g−1, n−3−d) unless d = n−1; a(g, j) is the output of
    block j of group g and a(g, −1) the input of the group. A node is the ReLU of its sum.

    Args:
        blocks_per_group: n; 3, 5, 7, 9 and 18 contain ResNet-20, -32, -44, -56 and -110.
        channels: of each group; from group to group the resolution is halved.
        input_shape: (C, H, W); H and W must be divisible by 2^(groups − 1).
    """
    n, groups = blocks_per_group, len(channels)
    if n < 2:
        raise ValueError(f"blocks_per_group is {n}; a fabric needs at least 2")
    step = 2 ** (groups - 1)
    if input_shape[1] % step or input_shape[2] % step:
        fault = (
            f"input of {input_shape[1]}×{input_shape[2]} pixels cannot be halved {groups - 1} times"
        )
        raise ValueError(f"{fault}; both sides must be divisible by {step}")
    edges = [Edge("input", "0.in", conv_bn(input_shape[0], channels[0]), "stem", "stem")]

    def output(g: int, j: int) -> str:
        """Name of a(g, j)."""
        return f"{g}.{j}" if j >= 0 else f"{g - 1}.{n - 1}" if g else "0.in"

    def block(source: str, target: str) -> None:
        g, h = _rank(source)[0], _rank(target)[0]
        wide, stride = channels[h], 2 ** (h - g)
        first, second = conv_bn(channels[g], wide, 3, stride), conv_bn(wide, wide)
        convolutions = Block(*first, nn.ReLU(), *second)
        shortcut = nn.Identity() if g == h else conv_bn(channels[g], wide, 1, stride)
        kind = "shortcut" if g == h else "projection"
        edges.append(Edge(source, target, convolutions, f"{source}→{target} conv", "conv"))
        edges.append(Edge(source, target, shortcut, f"{source}→{target} {kind}", kind))

    for g in range(groups):
        for d in range(n):
            block(output(g, d - 1), output(g, d))
            for j in (n - 2 - d, n - 1 - d, n - 3 - d) if g else ():
                if -1 <= j < n - 1:
                    block(output(g - 1, j), output(g, d))
    last = output(groups - 1, n - 1)
    edges.append(Edge(last, "output", pooled_linear(channels[-1], num_classes), "head", "head"))
    sums = {output(g, d): SumReLU() for g in range(groups) for d in range(n)}
    net = SuperNetwork(
        edges, "input", "output", node_ops={"0.in": nn.ReLU(), **sums}, input_shape=input_shape,
        name=f"resnet_fabric(n={n})", positions=_serpentine(n, groups),
    )  # fmt: skip
    initialize(net, nn.Conv2d)
    return net


class Block(nn.Sequential):
    """The two convolutions of a basic block; one operation of the distributed cost."""

    unit_ops = 1


def plain_resnet(graph: Graph) -> Architecture:
    """The sequential architecture of a ResNet fabric: ResNet-(6n+2) for three groups."""
    inner = sorted({*graph.nodes} - {graph.source, graph.sink}, key=_rank)
    pairs = {*zip([graph.source, *inner], [*inner, graph.sink], strict=True)}
    mask = [(edge.source, edge.target) in pairs for edge in graph.edges]
    return Architecture.from_mask(graph, torch.tensor(mask))


def kept_by_group(architecture: Architecture) -> list[float]:
    """Share of the blocks into each group of a ResNet fabric that keep their convolutions."""
    graph, kept = architecture.graph, set(architecture.kept)
    groups: dict[int, list[bool]] = {}
    for e in graph.of_kind("conv"):
        groups.setdefault(_rank(graph.edges[e].target)[0], []).append(e in kept)
    return [sum(flags) / len(flags) for _, flags in sorted(groups.items())]


def _rank(node: str) -> tuple[int, int]:
    group, block = node.split(".")
    return int(group), -1 if block == "in" else int(block)


def _serpentine(n: int, groups: int) -> dict[str, tuple[float, float]]:
    """Each group is a row. Every second row runs backwards, below the blocks that lead to it."""
    at = {"input": (-1.0, 0.0), "0.in": (0.0, 0.0)}
    x, direction = 0, 1
    for g in range(groups):
        for d in range(n):
            # The first block of a row lies under the second last node of the row above.
            x += direction
            at[f"{g}.{d}"] = (float(x), float(-g))
        direction = -direction
    at["output"] = (x - direction * 1.0, -(groups - 1.0))
    return at
