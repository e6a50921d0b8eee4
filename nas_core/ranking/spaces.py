"""Search spaces whose size is known, by one interface.

Every space is a value that iterates over all its encodings and has `sample`, `mutate`, `hamming`,
`canonical` and `len`. An encoding is a tuple of ints. `CellSpace` (NAS-Bench-201, and its small
form of three nodes) has the same interface; `tiny` and `nasbench201` below are two of them.
Networks exist for `CellSpace` alone (`network`, `mask`).
"""

from __future__ import annotations

import hashlib
import itertools
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Protocol

from nas_core.spaces.cells import CellSpace

Encoding = tuple[int, ...]


class Space(Protocol):
    """What a sampler or a search needs of a space."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Encoding]: ...
    def sample(self, rng: random.Random) -> Encoding: ...
    def mutate(self, cell: Encoding, rng: random.Random) -> Encoding: ...
    def hamming(self, a: Encoding, b: Encoding) -> int: ...
    def canonical(self, cell: Encoding) -> Encoding: ...


@dataclass(frozen=True)
class ChoiceSpace:
    """Independent choices: position t is a number below `choices[t]`; `len` ends at 2⁶³."""

    choices: tuple[int, ...]
    name: str = ""

    def __post_init__(self) -> None:
        if not self.choices or min(self.choices) < 1:
            raise ValueError(f"choices are {self.choices}; at least one, each of 1 or more")

    @property
    def size(self) -> int:
        return math.prod(self.choices)

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[Encoding]:
        return itertools.product(*map(range, self.choices))

    def sample(self, rng: random.Random) -> Encoding:
        """An encoding drawn uniformly."""
        return tuple(rng.randrange(n) for n in self.choices)

    def mutate(self, cell: Encoding, rng: random.Random) -> Encoding:
        """`cell` with one choice replaced by another one."""
        at = rng.choice([t for t, n in enumerate(self.choices) if n > 1])
        other = rng.choice([v for v in range(self.choices[at]) if v != cell[at]])
        return (*cell[:at], other, *cell[at + 1 :])

    def hamming(self, a: Encoding, b: Encoding) -> int:
        """Number of choices that differ."""
        return sum(x != y for x, y in zip(a, b, strict=True))

    def canonical(self, cell: Encoding) -> Encoding:
        """The encoding itself: different choices are different architectures here."""
        return cell


# ---------------------------------------------------------------- named spaces

nasbench201 = CellSpace(rectified=False)  # 5⁶ = 15,625 strings
tiny = CellSpace(nodes=3, rectified=False)  # 5³ = 125, of which 116 connect input and output

RNN_OPS = ("identity", "sigmoid", "tanh", "relu")


def rnn(nodes: int) -> ChoiceSpace:
    """Recurrent cells: node t takes one of t earlier nodes and an operation, n!·4ⁿ (section 5.2.4).

    An encoding is (previous, operation) for every node; previous 0 is the cell's input.
    """
    pairs = ((t, len(RNN_OPS)) for t in range(1, nodes + 1))
    return ChoiceSpace(tuple(itertools.chain(*pairs)), f"RNN-{nodes}")


rnn_sharing = ChoiceSpace((3, len(RNN_OPS)), "RNN, third node")  # 12 cells of section 5.3.4


def linear(layers: int, ops: int) -> ChoiceSpace:
    """One operation per layer, ops^layers: SPOS, ProxylessNAS, NAS-Bench-Macro (linear(8, 3))."""
    return ChoiceSpace((ops,) * layers, f"linear, {layers} layers")


def darts(ops: int = 8, *, nodes: int = 4, cells: int = 2) -> ChoiceSpace:
    """DARTS: every node of a cell takes two different earlier values, each through an operation.

    The pair of inputs is one choice. A cell of four nodes has 180 pairs of inputs and 8 operations
    (7 without `none`); normal and reduction cell are chosen independently.
    """
    node = [(math.comb(2 + t, 2), ops, ops) for t in range(nodes)]  # 2 outer inputs, t nodes before
    return ChoiceSpace(tuple(itertools.chain(*node)) * cells, "DARTS")


def depth(version: int = 1, *, shared: bool = True) -> ChoiceSpace:
    """Fusion blocks of a depth network (section 7.4.3): five edges with five operations.

    Version 2 chooses one of four upsamplings as well; not `shared`, all four blocks differ.
    """
    if version not in (1, 2):
        raise ValueError(f"version is {version}; it must be 1 or 2")
    block = (5,) * 5 + (4,) * (version - 1)
    return ChoiceSpace(block * (1 if shared else 4), f"depth V{version}")


# ---------------------------------------------------------------- NAS-Bench-101

NB101_OPS = ("conv3x3", "conv1x1", "maxpool3x3")


@dataclass(frozen=True)
class NB101Space:
    """Cells of NAS-Bench-101 with at most `vertices` vertices and `max_edges` edges.

    An encoding is the upper triangle of the adjacency matrix, row by row, then the operations of
    the inner vertices. Many encodings are one cell: vertices without a path from input to output
    are pruned, and the numbering of the others does not matter.
    """

    vertices: int = 5
    max_edges: int = 9

    def __post_init__(self) -> None:
        if not 2 <= self.vertices <= 7:
            raise ValueError(f"vertices is {self.vertices}; NAS-Bench-101 has 2 to 7")

    @property
    def pairs(self) -> list[tuple[int, int]]:
        return list(itertools.combinations(range(self.vertices), 2))

    @cached_property
    def _choices(self) -> ChoiceSpace:
        return ChoiceSpace((2,) * len(self.pairs) + (len(NB101_OPS),) * (self.vertices - 2))

    def __len__(self) -> int:
        """Number of encodings, the invalid ones included; `distinct` lists the cells."""
        return len(self._choices)

    def __iter__(self) -> Iterator[Encoding]:
        """Every valid encoding."""
        return filter(self.valid, self._choices)

    def valid(self, cell: Encoding) -> bool:
        """Whether input and output are connected by at most `max_edges` edges."""
        adjacency, ops = pruned(*self.graph(cell))
        return bool(ops) and sum(map(sum, adjacency)) <= self.max_edges

    def graph(self, cell: Encoding) -> tuple[list[list[int]], list[int]]:
        """Adjacency matrix and labels (−1 input, −2 output) of an encoding, not pruned."""
        adjacency = [[0] * self.vertices for _ in range(self.vertices)]
        for (i, j), bit in zip(self.pairs, cell, strict=False):
            adjacency[i][j] = bit
        return adjacency, [-1, *cell[len(self.pairs) :], -2]

    def sample(self, rng: random.Random) -> Encoding:
        """A valid encoding drawn uniformly, as Random-NAS does: not uniform over the cells."""
        while not self.valid(cell := self._choices.sample(rng)):
            pass
        return cell

    def mutate(self, cell: Encoding, rng: random.Random) -> Encoding:
        """`cell` with an edge or an operation changed; valid."""
        while not self.valid(child := self._choices.mutate(cell, rng)):
            pass
        return child

    def hamming(self, a: Encoding, b: Encoding) -> int:
        """Edges and operations that differ, position by position."""
        return self._choices.hamming(a, b)

    def canonical(self, cell: Encoding) -> Encoding:
        """The smallest encoding of the same cell. Equal cells, and no others, share it."""
        return self.encode(*pruned(*self.graph(cell)))

    def encode(self, adjacency: Sequence[Sequence[int]], labels: Sequence[int]) -> Encoding:
        """The canonical encoding of a pruned graph that may have fewer vertices than the space."""
        if not 2 <= len(labels) <= self.vertices:
            raise ValueError(f"{len(labels)} vertices; cells have 2 to {self.vertices}")
        extra = self.vertices - len(labels)  # vertices without edges, of operation 0
        rows = [(row[0], *[0] * extra, *row[1:]) for row in adjacency]
        rows[1:1] = [(0,) * self.vertices] * extra
        return _smallest(tuple(rows), (labels[0], *[0] * extra, *labels[1:]))

    def hash(self, cell: Encoding) -> str:
        """The published hash of a cell, as NAS-Bench-101's files name it."""
        return nb101_hash(*self.graph(cell))

    def distinct(self) -> list[Encoding]:
        """One canonical encoding per cell: 7, 91 and 2,532 for 3, 4 and 5 vertices (cumulative)."""
        return sorted({self.canonical(cell) for cell in self})


def pruned(
    adjacency: Sequence[Sequence[int]], labels: Sequence[int]
) -> tuple[list[list[int]], list[int]]:
    """The part on paths from the first vertex to the last; empty where they are not connected."""
    n = len(labels)
    ahead, back = {0}, {n - 1}
    for v in range(n):  # vertices are in topological order
        if v in ahead:
            ahead.update(w for w in range(n) if adjacency[v][w])
    for v in reversed(range(n)):
        if v in back:
            back.update(w for w in range(n) if adjacency[w][v])
    keep = sorted(ahead & back)
    if not {0, n - 1} <= set(keep):
        return [], []
    return [[adjacency[i][j] for j in keep] for i in keep], [labels[v] for v in keep]


def nb101_hash(adjacency: Sequence[Sequence[int]], labels: Sequence[int]) -> str:
    """NAS-Bench-101's hash of a graph (Ying et al. 2019): MD5 of neighbourhoods, n rounds.

    Args:
        adjacency: upper triangular, first vertex the input, last the output.
        labels: −1, the numbers of the operations in `NB101_OPS`, −2.
    """
    adjacency, labels = pruned(adjacency, labels)
    vertices = range(len(labels))

    def md5(text: str) -> str:
        return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()

    into = [[w for w in vertices if adjacency[w][v]] for v in vertices]
    out = [[w for w in vertices if adjacency[v][w]] for v in vertices]
    hashes = [md5(str((len(out[v]), len(into[v]), labels[v]))) for v in vertices]

    def joined(neighbours: list[int]) -> str:
        return "".join(sorted(hashes[w] for w in neighbours))

    for _ in vertices:
        hashes = [md5(f"{joined(into[v])}|{joined(out[v])}|{hashes[v]}") for v in vertices]
    return md5(str(sorted(hashes)))


@cache
def _smallest(adjacency: tuple[tuple[int, ...], ...], labels: tuple[int, ...]) -> Encoding:
    n, best = len(labels), None
    for inner in itertools.permutations(range(1, n - 1)):
        order = (0, *inner, n - 1)
        # An order counts where it stays topological: no edge may point back.
        if any(adjacency[order[j]][order[i]] for i, j in itertools.combinations(range(n), 2)):
            continue
        bits = (adjacency[order[i]][order[j]] for i, j in itertools.combinations(range(n), 2))
        code = (*bits, *(labels[v] for v in inner))
        best = code if best is None or code < best else best
    assert best is not None  # the given order is topological
    return best
