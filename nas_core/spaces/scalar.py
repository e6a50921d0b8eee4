"""The smallest super-networks: one number per edge, so that everything about them is known.

The output for input 1 is the sum over the live paths of the product of the numbers on them. With
up to 20 edges every architecture can be listed, so the book tests its methods on these networks.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from nas_core.supernet import Edge, SuperNetwork


def scalar_network(
    weights: Mapping[tuple[str, str], float], source: str = "x", sink: str = "y", *,
    name: str = "scalar network", positions: Mapping[str, tuple[float, float]] | None = None,
) -> SuperNetwork:  # fmt: skip
    """Super-network on `[B, 1]` whose edge (i, j), named `i→j`, multiplies by `weights[i, j]`."""
    edges = []
    for (i, j), weight in weights.items():
        module = nn.Linear(1, 1, bias=False)
        nn.init.constant_(module.weight, float(weight))
        edges.append(Edge(i, j, module))
    return SuperNetwork(edges, source, sink, input_shape=(1,), name=name, positions=positions)


def scalar_fabric(layers: int, seed: int = 0) -> SuperNetwork:
    """Every forward edge, a number from U(0.2, 1) scaled so that the whole computes identity."""
    if layers < 2:
        raise ValueError(f"{layers} layers are too few for a network; give 2 or more")
    generator = torch.Generator().manual_seed(seed)
    nodes = ["x", *(f"l{i}" for i in range(2, layers)), "y"]
    pairs = [(i, j) for i in range(layers) for j in range(i + 1, layers)]
    drawn = (0.2 + 0.8 * torch.rand(len(pairs), generator=generator, dtype=torch.float64)).tolist()
    weights = dict(zip(pairs, drawn, strict=True))
    # The value of a layer is linear in the numbers on its incoming edges.
    for j in range(1, layers):
        total = sum(weights[i, j] for i in range(j))
        weights |= {(i, j): weights[i, j] / total for i in range(j)}
    named = {(nodes[i], nodes[j]): w for (i, j), w in weights.items()}
    return scalar_network(named, name=f"scalar fabric of {layers} layers")
