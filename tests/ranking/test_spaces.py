"""Spaces: their counts, exact; one interface; NAS-Bench-101's cells and its hash."""

import itertools
import math
import random

import networkx as nx
import pytest

from nas_core.ranking import spaces as sp
from nas_core.spaces.cells import CellSpace

COUNTS = {
    "RNN-2": (sp.rnn(2), 32),
    "RNN sharing": (sp.rnn_sharing, 12),
    "tiny": (sp.tiny, 125),
    "NAS-Bench-201": (sp.nasbench201, 15_625),
    "NAS-Bench-Macro": (sp.linear(8, 3), 6_561),
    "depth V1": (sp.depth(1), 3_125),
    "depth V2": (sp.depth(2), 12_500),
}


@pytest.mark.parametrize("name", COUNTS)
def test_counts_by_enumeration(name):
    space, count = COUNTS[name]
    assert len(space) == count == len(set(space))


def test_counts_by_arithmetic():
    assert sp.rnn(12).size == math.factorial(12) * 4**12 == 8_036_313_307_545_600
    assert sp.darts(cells=1).size == 180 * 8**8
    assert sp.darts(7, cells=1).size == 180 * 7**8
    assert sp.darts().size == (180 * 8**8) ** 2
    assert sp.depth(1, shared=False).size == 3_125**4
    assert sp.depth(2, shared=False).size == 12_500**4
    with pytest.raises(ValueError, match="version is 3"):
        sp.depth(3)


def benchmark_name(cell, zeros):
    """The unique string of NAS-Bench-201's authors; `zeros` keeps nothing as a summand `#`."""
    space, names = sp.nasbench201, ["0"]
    op = dict(zip(space.edges, (space.ops[o] for o in cell), strict=True))
    for j in range(1, 4):
        terms = []
        for i in range(j):
            if op[i, j] == "none" or names[i] == "#":
                terms += ["#"] * zeros
            else:
                skip = op[i, j] == "skip_connect"
                terms.append(names[i] if skip else f"({names[i]})@{op[i, j]}")
        names.append("+".join(sorted(terms)) or "#")
    return names[-1]


def test_equal_cells_of_nasbench201():
    """Four counts of "different cells", each of something else.

    6,466 is the benchmark's own: its strings keep a sum of zeros as a summand, so that equal cells
    may differ. 5,390 drops the zeros. `CellSpace.function` also flattens copied sums, 4,930; where
    nodes are rectified a copied sum is no sum of copies, 6,835.
    """
    cells = list(sp.nasbench201)
    assert len({benchmark_name(cell, True) for cell in cells}) == 6_466
    assert len({benchmark_name(cell, False) for cell in cells}) == 5_390
    for rectified, count in ((True, 6_835), (False, 4_930)):
        space = CellSpace(rectified=rectified)
        assert len({space.function(cell) for cell in cells}) == count
    assert sum(sp.tiny.function(cell) is not None for cell in sp.tiny) == 116


@pytest.mark.parametrize(
    "space", [sp.rnn(3), sp.linear(4, 3), sp.darts(3, nodes=2), sp.NB101Space(5), sp.tiny]
)
def test_one_interface(space):
    rng = random.Random(0)
    for _ in range(50):
        cell = space.sample(rng)
        child = space.mutate(cell, rng)
        assert space.hamming(cell, child) == 1 and space.hamming(cell, cell) == 0
        assert isinstance(space.canonical(cell), tuple)
    with pytest.raises(ValueError):
        space.hamming(cell, cell[:-1])


def test_sampling_is_uniform_over_the_32_cells():
    rng, space = random.Random(0), sp.rnn(2)
    counts = {cell: 0 for cell in space}
    for _ in range(6_400):
        counts[space.sample(rng)] += 1
    chi = sum((n - 200) ** 2 / 200 for n in counts.values())
    assert chi < 61.1  # 99.9 % of χ² with 31 degrees of freedom


# ---------------------------------------------------------------- NAS-Bench-101


@pytest.mark.parametrize(("vertices", "count"), [(3, 7), (4, 91), (5, 2_532)])
def test_nasbench101_by_enumeration(vertices, count):
    """The hash separates the cells exactly as the search over renumberings does."""
    space = sp.NB101Space(vertices)
    classes = {}
    for cell in space:
        classes.setdefault(space.canonical(cell), set()).add(space.hash(cell))
    assert len(classes) == count
    assert all(hashes == {space.hash(cell)} for cell, hashes in classes.items())
    assert all(space.canonical(cell) == cell and space.valid(cell) for cell in classes)
    assert len(set.union(*classes.values())) == count


def test_canonical_cells_against_networkx():
    space, rng = sp.NB101Space(5), random.Random(1)
    cells = [space.sample(rng) for _ in range(40)]

    def graph(cell):
        adjacency, labels = sp.pruned(*space.graph(cell))
        g = nx.DiGraph()
        g.add_nodes_from((v, {"op": op}) for v, op in enumerate(labels))
        g.add_edges_from(
            (i, j) for i, row in enumerate(adjacency) for j, bit in enumerate(row) if bit
        )
        return g

    graphs = [graph(cell) for cell in cells]
    seen = {True: 0, False: 0}
    for a, b in itertools.combinations(range(40), 2):
        same = nx.is_isomorphic(graphs[a], graphs[b], node_match=lambda x, y: x == y)
        assert same == (space.canonical(cells[a]) == space.canonical(cells[b]))
        seen[same] += 1
    assert min(seen.values()) > 0


def test_pruning_by_hand():
    # 0→1→3 and 0→2, which leads nowhere
    adjacency = [[0, 1, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert sp.pruned(adjacency, [-1, 0, 1, -2]) == ([[0, 1, 0], [0, 0, 1], [0, 0, 0]], [-1, 0, -2])
    assert sp.pruned([[0, 0], [0, 0]], [-1, -2]) == ([], [])


def test_random_nas_is_not_uniform_over_cells():
    """Row 33: χ² rejects uniformity of encodings over the 91 cells, and accepts `distinct`."""
    from scipy.stats import chisquare

    space, rng = sp.NB101Space(4), random.Random(0)
    cells = space.distinct()
    by_encoding = {cell: 0 for cell in cells}
    for _ in range(9_100):
        by_encoding[space.canonical(space.sample(rng))] += 1
    by_cell = {cell: 0 for cell in cells}
    for _ in range(9_100):
        by_cell[rng.choice(cells)] += 1
    assert chisquare(list(by_encoding.values())).pvalue < 1e-6
    assert chisquare(list(by_cell.values())).pvalue > 0.01
