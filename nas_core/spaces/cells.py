"""Cell spaces: a small graph whose every edge carries one operation of a list.

`CellSpace()` is the space of NAS-Bench-201 (four nodes, six edges, five operations, 15,625 cells,
the same strings), so the same code reads its tables and our own. Many cells compute the same
function: an edge that leads nowhere may carry any operation, and a node that only copies another
may be merged with it. `function` gives the formula of a cell; the space has 6,835 different ones.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property

import torch
from torch import Tensor, nn

from nas_core.spaces.layers import conv_bn, pooled_linear
from nas_core.supernet import Architecture, Edge, SuperNetwork

Cell = tuple[int, ...]  # for each edge of the cell the number of its operation in `space.ops`

OPERATIONS: dict[str, Callable[[int], nn.Module]] = {
    "skip_connect": lambda channels: nn.Identity(),
    "nor_conv_1x1": lambda channels: conv_bn(channels, channels, 1),
    "nor_conv_3x3": lambda channels: conv_bn(channels, channels, 3),
    "avg_pool_3x3": lambda channels: nn.AvgPool2d(3, 1, 1, count_include_pad=False),
}
"""Module of an operation for a number of channels. Add your own; "none" has no module."""


@dataclass(frozen=True)
class CellSpace:
    """All cells of a number of nodes and a list of operations.

    Node 0 is the input, the last node the output; node j receives the sum of its edges i→j, i < j.
    """

    nodes: int = 4
    ops: tuple[str, ...] = ("none", *OPERATIONS)
    rectified: bool = True  # nodes apply ReLU to their sum; else (NAS-Bench-201) convolutions do

    def __post_init__(self) -> None:
        unknown = set(self.ops) - OPERATIONS.keys() - {"none"}
        if self.nodes < 2 or not self.ops or unknown or len(set(self.ops)) < len(self.ops):
            raise ValueError(
                f"nodes={self.nodes}, ops={self.ops}; at least 2 nodes and different operations "
                f"of {', '.join(('none', *OPERATIONS))} are needed (see OPERATIONS)"
            )

    @cached_property
    def edges(self) -> tuple[tuple[int, int], ...]:
        """(i, j) of each edge, in the order of NAS-Bench-201."""
        return tuple((i, j) for j in range(1, self.nodes) for i in range(j))

    def __len__(self) -> int:
        return len(self.ops) ** len(self.edges)

    def __iter__(self) -> Iterator[Cell]:
        """Every cell, last edge fastest."""
        return itertools.product(range(len(self.ops)), repeat=len(self.edges))

    def check(self, cell: Cell) -> Cell:
        """`cell` as a tuple; raises ValueError unless it has one operation number per edge."""
        cell = tuple(int(op) for op in cell)
        if len(cell) != len(self.edges) or any(not 0 <= op < len(self.ops) for op in cell):
            numbers = f"{len(self.edges)} operations numbered 0…{len(self.ops) - 1}"
            raise ValueError(f"a cell has {numbers}, not {cell}")
        return cell

    def sample(self, rng: random.Random) -> Cell:
        """A cell drawn uniformly from all encodings."""
        return tuple(rng.randrange(len(self.ops)) for _ in self.edges)

    def mutate(self, cell: Cell, rng: random.Random) -> Cell:
        """`cell` with the operation of one edge replaced by another one."""
        edge = rng.randrange(len(self.edges))
        other = rng.choice([op for op in range(len(self.ops)) if op != cell[edge]])
        return (*cell[:edge], other, *cell[edge + 1 :])

    def hamming(self, a: Cell, b: Cell) -> int:
        """Number of edges that carry another operation."""
        return sum(x != y for x, y in zip(a, b, strict=True))

    # ---------------------------------------------------------------- as text

    def string(self, cell: Cell) -> str:
        """NAS-Bench-201's notation, e.g. `|nor_conv_3x3~0|+|none~0|skip_connect~1|+|…|`."""
        op = dict(zip(self.edges, self.check(cell), strict=True))
        groups = ([f"{self.ops[op[i, j]]}~{i}" for i in range(j)] for j in range(1, self.nodes))
        return "+".join(f"|{'|'.join(group)}|" for group in groups)

    def parse(self, text: str) -> Cell:
        """Read `string` back; raises ValueError that names the part it does not know."""
        groups = [group.strip("|").split("|") for group in text.strip().split("+")]
        if [len(group) for group in groups] != list(range(1, self.nodes)):
            example = self.string((len(self.ops) - 1,) * len(self.edges))
            raise ValueError(f"{text!r} is not a cell of {self.nodes} nodes, such as {example!r}")
        cell = []
        for group in groups:
            for i, part in enumerate(group):
                op, _, source = part.partition("~")
                if op not in self.ops or source != str(i):
                    raise ValueError(f"{part!r} in {text!r}: expected <op>~{i}, op of {self.ops}")
                cell.append(self.ops.index(op))
        return tuple(cell)

    # ---------------------------------------------------------------- equal cells

    def function(self, cell: Cell) -> str | None:
        """What a cell computes, as a formula without the order of sums and copies; None: nothing.

        A skip passes on the value of its source: one summand where nodes are rectified (a node
        that receives nothing else is its source), otherwise the summands one by one.
        """
        by_edge = dict(zip(self.edges, cell, strict=True))
        value: list[list[str]] = [["x"]]  # the summands of each node; [] computes nothing
        for j in range(1, self.nodes):
            terms, ops = [], []
            for i in range(j):
                if (op := self.ops[by_edge[i, j]]) != "none" and value[i]:
                    ops.append(op)
                    terms += value[i] if op == "skip_connect" else [f"{op}({'+'.join(value[i])})"]
            if self.rectified and ops not in ([], ["skip_connect"]):
                terms = [f"[{'+'.join(sorted(terms))}]"]
            value.append(sorted(terms))
        return "+".join(value[-1]) or None

    def canonical(self, cell: Cell) -> Cell:
        """The first of all cells with the same function: the one with most `none`."""
        return _first_cells(self)[self.function(self.check(cell))]

    def distinct(self) -> list[Cell]:
        """One cell of every function, in order. Lists the whole space, about 10 µs a cell."""
        return sorted(_first_cells(self).values())

    # ---------------------------------------------------------------- networks

    def network(
        self, *, channels: int = 8, input_shape: tuple[int, int, int] = (1, 8, 8),
        classes: int = 10, name: str = "digit-cells",
    ) -> SuperNetwork:  # fmt: skip
        """Super-network of all cells: `stem`, parallel edges `<i>→<j> <op>` and `head`."""

        def module(op: str) -> nn.Module:
            made = OPERATIONS[op](channels)
            if self.rectified or not any(isinstance(m, nn.Conv2d) for m in made.modules()):
                return made
            return nn.Sequential(nn.ReLU(), *made.children())

        stem = conv_bn(input_shape[0], channels, 3, stride=2)
        head = pooled_linear(channels, classes)
        edges = [Edge("input", "0", stem, "stem", "stem")]
        for i, j in self.edges:
            for op in (op for op in self.ops if op != "none"):
                edges.append(Edge(str(i), str(j), module(op), f"{i}→{j} {op}", op))
        edges.append(Edge(str(self.nodes - 1), "output", head, "head", "head"))
        rectify = {str(node): nn.ReLU() for node in range(self.nodes)} if self.rectified else None
        return SuperNetwork(
            edges, "input", "output", node_ops=rectify, input_shape=input_shape, name=name
        )

    def groups(self, supernet: SuperNetwork) -> Tensor:
        """Numbers of the network's edges, int64 `[edges, ops]`; only without "none"."""
        index = supernet.graph.index
        return torch.tensor([[index(f"{i}→{j} {op}") for op in self.ops] for i, j in self.edges])

    def mask(self, supernet: SuperNetwork, cell: Cell) -> Tensor:
        """bool `[E]`: the edges of `network()` that this cell uses, dead ends pruned."""
        ops = zip(self.edges, (self.ops[op] for op in self.check(cell)), strict=True)
        names = ["stem", "head", *(f"{i}→{j} {op}" for (i, j), op in ops if op != "none")]
        mask = torch.zeros(len(supernet.graph), dtype=torch.bool)
        mask[[supernet.graph.index(name) for name in names]] = True
        return supernet.graph.reachable(mask)

    def architecture(self, supernet: SuperNetwork, cell: Cell) -> Architecture:
        """The cell as an `Architecture` of `network()`."""
        return Architecture.from_mask(supernet.graph, self.mask(supernet, cell))

    def cell_of(self, supernet: SuperNetwork, mask: Tensor) -> Cell:
        """The cell that a mask selects; raises ValueError unless a node pair has one operation."""
        chosen = {supernet.graph.edges[e].name for e in mask.nonzero().flatten().tolist()}
        cell = []
        for i, j in self.edges:
            ops = [n for n, op in enumerate(self.ops) if f"{i}→{j} {op}" in chosen]
            if not ops and "none" in self.ops:
                ops = [self.ops.index("none")]
            if len(ops) != 1:
                fault = f"edge {i}→{j} has {len(ops)} operations"
                raise ValueError(f"{fault} in this mask, a cell has one")
            cell.append(ops[0])
        return tuple(cell)


@cache
def _first_cells(space: CellSpace) -> dict[str | None, Cell]:
    first: dict[str | None, Cell] = {}
    for cell in space:
        first.setdefault(space.function(cell), cell)
    return first
