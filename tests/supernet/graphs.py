"""Small graphs and networks for the tests."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import nn

from nas_core.supernet import EdgeInfo, Graph, SuperNetwork

DIAMOND = [("s", "a"), ("s", "b"), ("a", "b"), ("a", "t"), ("b", "t")]


def graph_of(pairs, source="s", sink="t") -> Graph:
    infos = [EdgeInfo(f"e{i}", str(a), str(b)) for i, (a, b) in enumerate(pairs)]
    return Graph(infos, source, sink)


@st.composite
def dags(draw, max_nodes: int = 7) -> Graph:
    """Random graphs with parallel edges, one source 0 and one sink n−1, edges in random order."""
    n = draw(st.integers(2, max_nodes))
    pairs = [(i, j) for i in range(n) for j in range(i + 1, n)]
    chosen = draw(st.lists(st.sampled_from(pairs), min_size=1, max_size=3 * n))
    for node in range(1, n):  # every node is reached, and reaches the sink
        chosen.append((draw(st.integers(0, node - 1)), node))
        chosen.append((node - 1, draw(st.integers(node, n - 1))))
    order = draw(st.permutations(range(len(chosen))))
    return graph_of([chosen[i] for i in order], "0", str(n - 1))


def conv(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    layer = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs))


def small_net(seed: int = 0, channels: int = 4, size: int = 6) -> SuperNetwork:
    """Five nodes, a parallel pair (convolution and shortcut), ReLU nodes, a classifier."""
    torch.manual_seed(seed)
    c = channels
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c, 5))
    edges = [
        ("x", "a", conv(3, c)),
        ("a", "b", conv(c, c)),
        ("a", "b", nn.Identity(), "skip", "shortcut"),
        ("a", "c", conv(c, c)),
        ("c", "b", conv(c, c)),
        ("b", "y", head),
        ("c", "y", nn.Sequential(nn.Flatten(), nn.Linear(c * size * size, 5))),
    ]
    ops = {"a": nn.ReLU(), "b": nn.ReLU(), "c": nn.Tanh()}
    return SuperNetwork(edges, "x", "y", node_ops=ops, input_shape=(3, size, size))
