"""Cell spaces: a small graph whose every edge carries one of five operations.

The four-node cell is that of NAS-Bench-201 (six edges, 15,625 cells, the same strings), so one
code reads both its tables and our own. Many cells compute the same function: an edge that leads
nowhere may carry anything, a node that only copies another may be merged with it. `canonical`
gives one cell of each class; 5,773 classes are left here.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from functools import cache

import torch
from torch import Tensor, nn

from nas_core.supernet import Architecture, Edge, SuperNetwork

NODES = 4
EDGES = tuple((i, j) for j in range(1, NODES) for i in range(j))  # the order of NAS-Bench-201
OPS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
NONE, SKIP, CONV1, CONV3, POOL = range(len(OPS))

Cell = tuple[int, ...]  # number of the operation on each edge, in the order of EDGES


def check_cell(cell: Cell) -> Cell:
    """`cell` as a tuple; raises ValueError unless it holds one operation number per edge."""
    cell = tuple(int(op) for op in cell)
    if len(cell) != len(EDGES) or any(not 0 <= op < len(OPS) for op in cell):
        raise ValueError(
            f"a cell has {len(EDGES)} operations numbered 0…{len(OPS) - 1}, got {cell}"
        )
    return cell


def cell_string(cell: Cell) -> str:
    """NAS-Bench-201's notation, e.g. `|nor_conv_3x3~0|+|none~0|skip_connect~1|+|…|`."""
    by_edge = dict(zip(EDGES, check_cell(cell), strict=True))
    return "+".join(
        "|" + "|".join(f"{OPS[by_edge[i, j]]}~{i}" for i in range(j)) + "|" for j in range(1, NODES)
    )


def parse_cell(text: str) -> Cell:
    """Read `cell_string` back; raises ValueError that names the part it does not know."""
    groups = [group.strip("|").split("|") for group in text.strip().split("+")]
    if [len(group) for group in groups] != list(range(1, NODES)):
        raise ValueError(f"{text!r} is no cell of {NODES} nodes, such as {cell_string((3,) * 6)!r}")
    cell = []
    for group in groups:
        for i, part in enumerate(group):
            op, _, source = part.partition("~")
            if op not in OPS or source != str(i):
                raise ValueError(f"{part!r} in {text!r}: expected <op>~{i} with an op of {OPS}")
            cell.append(OPS.index(op))
    return tuple(cell)


def all_cells() -> Iterator[Cell]:
    """Every cell, last edge fastest."""
    return itertools.product(range(len(OPS)), repeat=len(EDGES))


def random_cell(rng: random.Random) -> Cell:
    """A cell drawn uniformly from all encodings."""
    return tuple(rng.randrange(len(OPS)) for _ in EDGES)


def mutate(cell: Cell, rng: random.Random) -> Cell:
    """`cell` with the operation of one edge replaced by another one."""
    edge = rng.randrange(len(EDGES))
    other = rng.choice([op for op in range(len(OPS)) if op != cell[edge]])
    return (*cell[:edge], other, *cell[edge + 1 :])


def cell_function(cell: Cell) -> str | None:
    """What a cell computes, as a formula in which order and copies no longer show; None: nothing.

    Node j holds ReLU of the sum over its edges. A lone skip copies its (already rectified) source,
    so the two nodes are one.
    """
    by_edge = dict(zip(EDGES, cell, strict=True))
    value: list[str | None] = ["x"]
    for j in range(1, NODES):
        terms = []
        for i in range(j):
            op, source = by_edge[i, j], value[i]
            if op != NONE and source is not None:
                terms.append(source if op == SKIP else f"{OPS[op]}({source})")
        lone_copy = len(terms) == 1 and terms[0] in value
        value.append(terms[0] if lone_copy else f"[{'+'.join(sorted(terms))}]" if terms else None)
    return value[-1]


@cache
def _representatives() -> dict[str | None, Cell]:
    """One cell per function, the first in the order of `all_cells`: the one with most `none`."""
    first: dict[str | None, Cell] = {}
    for cell in all_cells():
        first.setdefault(cell_function(cell), cell)
    return first


def canonical(cell: Cell) -> Cell:
    """The one cell that stands for all cells with the same function."""
    return _representatives()[cell_function(check_cell(cell))]


def canonical_cells() -> list[Cell]:
    """One cell of every class, in order; the first (all `none`) computes nothing."""
    return sorted(_representatives().values())


# -------------------------------------------------------------------- networks


def cell_network(
    *, channels: int = 8, input_shape: tuple[int, int, int] = (1, 8, 8), classes: int = 10
) -> SuperNetwork:
    """Super-network that holds every cell: parallel edges of one node pair are its operations.

    Stem (3×3 convolution, stride 2) → cell → head (mean over the map, linear). Edge names are
    `stem`, `head` and `<i>→<j> <op>`; nodes rectify. Weights come from torch's global generator.
    """

    def convolution(kernel: int) -> nn.Module:
        conv = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(channels))

    makers = {
        SKIP: nn.Identity,
        CONV1: lambda: convolution(1),
        CONV3: lambda: convolution(3),
        POOL: lambda: nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False),
    }
    stem = nn.Sequential(
        nn.Conv2d(input_shape[0], channels, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(channels),
    )
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))
    edges = [Edge("input", "0", stem, "stem", "stem")]
    for i, j in EDGES:
        for op, make in makers.items():
            edges.append(Edge(str(i), str(j), make(), f"{i}→{j} {OPS[op]}", OPS[op]))
    edges.append(Edge(str(NODES - 1), "output", head, "head", "head"))
    return SuperNetwork(
        edges,
        "input",
        "output",
        node_ops={str(node): nn.ReLU() for node in range(NODES)},
        input_shape=input_shape,
        name="digit-cells",
    )


def cell_mask(supernet: SuperNetwork, cell: Cell) -> Tensor:
    """bool `[E]`: the edges of `cell_network` that this cell uses, dead ends pruned."""
    graph = supernet.graph
    mask = torch.zeros(len(graph), dtype=torch.bool)
    mask[[graph.index("stem"), graph.index("head")]] = True
    for (i, j), op in zip(EDGES, check_cell(cell), strict=True):
        if op != NONE:
            mask[graph.index(f"{i}→{j} {OPS[op]}")] = True
    return graph.reachable(mask)


def cell_architecture(supernet: SuperNetwork, cell: Cell) -> Architecture:
    """The cell as an `Architecture` of `cell_network`."""
    return Architecture.from_mask(supernet.graph, cell_mask(supernet, cell))


def cell_of_mask(supernet: SuperNetwork, mask: Tensor) -> Cell:
    """The cell that a mask selects; raises ValueError where a node pair has two operations."""
    chosen = {supernet.graph.edges[e].name for e in mask.nonzero().flatten().tolist()}
    cell = []
    for i, j in EDGES:
        ops = [op for op in range(1, len(OPS)) if f"{i}→{j} {OPS[op]}" in chosen]
        if len(ops) > 1:
            raise ValueError(f"edge {i}→{j} has {len(ops)} operations in this mask, a cell has one")
        cell.append(ops[0] if ops else NONE)
    return tuple(cell)
