"""The cell space against brute force: strings, classes of equal functions, masks."""

from __future__ import annotations

import random
from collections import Counter

import pytest
import torch

from nas_core.spaces.cells import OPERATIONS, CellSpace

FULL = CellSpace()  # NAS-Bench-201's operations
OWN = CellSpace(ops=tuple(OPERATIONS))  # the same without "none"
SUMS = CellSpace(rectified=False)  # nodes are plain sums, as in NAS-Bench-201


def test_strings_are_those_of_nasbench201():
    text = "|nor_conv_3x3~0|+|nor_conv_3x3~0|avg_pool_3x3~1|+|skip_connect~0|none~1|skip_connect~2|"
    assert FULL.parse(text) == (3, 3, 4, 1, 0, 1)
    assert FULL.string((3, 3, 4, 1, 0, 1)) == text
    rng = random.Random(0)
    for space in (FULL, OWN, CellSpace(5, ("none", "skip_connect"))):
        for _ in range(100):
            cell = space.sample(rng)
            assert space.parse(space.string(cell)) == cell


@pytest.mark.parametrize(
    "text", ["", "|x~0|+|none~0|none~1|+|none~0|none~1|none~2|", "|none~0|+|none~1|none~0|+|a|"]
)
def test_other_strings_are_refused(text):
    with pytest.raises(ValueError, match="cell of 4 nodes|expected <op>"):
        FULL.parse(text)


def test_wrong_cells_are_refused():
    for cell in ((0, 1, 2), (0, 1, 2, 3, 4, 5)):
        with pytest.raises(ValueError, match=r"6 operations numbered 0…4"):
            FULL.check(cell)


@pytest.mark.parametrize(
    "given", [{"nodes": 1}, {"ops": ()}, {"ops": ("warp",)}, {"ops": ("none", "none")}]
)
def test_impossible_spaces_are_refused(given):
    with pytest.raises(ValueError, match="at least 2 nodes and different operations of none, skip"):
        CellSpace(**given)


def test_spaces_are_values():
    assert CellSpace(4, FULL.ops) == FULL and hash(CellSpace(4, FULL.ops)) == hash(FULL)
    assert OWN != FULL and CellSpace(nodes=5).edges[-1] == (3, 4)


def test_mutation_changes_exactly_one_edge():
    rng = random.Random(1)
    cell = (1, 2, 3, 4, 1, 2)
    for _ in range(100):
        child = FULL.mutate(cell, rng)
        assert FULL.hamming(cell, child) == 1 and FULL.check(child) == child


def test_samples_are_uniform():
    space, rng = CellSpace(3, ("none", "skip_connect")), random.Random(0)
    counts = Counter(space.sample(rng) for _ in range(4000))
    assert set(counts) == set(space) and min(counts.values()) > 400  # 500 ± 21 expected


def _random_function(space, cell, x, matrices):
    """The cell with one fixed random matrix for each kind of operation."""
    values = [x]
    for j in range(1, space.nodes):
        total = torch.zeros_like(x)
        for (i, to), op in zip(space.edges, cell, strict=True):
            if to == j and space.ops[op] != "none":
                skip = space.ops[op] == "skip_connect"
                total = total + (values[i] if skip else matrices[op](values[i]))
        values.append(total.relu() if space.rectified else total)
    return values[-1]


@pytest.mark.parametrize("rectified", [True, False])
def test_classes_are_those_of_equal_functions(rectified):
    """Oracle: numeric fingerprints of all cells over {none, skip, two kinds of matrix}."""
    space = CellSpace(4, FULL.ops[:4], rectified)
    g = torch.Generator().manual_seed(0)
    x = torch.rand(32, generator=g, dtype=torch.float64)
    m = torch.randn(2, 32, 32, generator=g, dtype=torch.float64) / 32**0.5
    matrices = {n: lambda v, m=m[n - 2]: m @ v.relu() for n in (2, 3)}
    by_formula: dict = {}
    for cell in space:
        y = _random_function(space, cell, x, matrices)
        by_formula.setdefault(space.function(cell), []).append(y)
    for values in by_formula.values():  # same formula: same numbers
        assert all(torch.allclose(v, values[0], rtol=1e-10) for v in values)
    # The other way round weights must differ from edge to edge (two equal convolutions of a sum
    # are one of twice the weight), so numbers can only bound the classes from below.
    alive = [v[0] for f, v in by_formula.items() if f is not None]
    prints = {tuple(f"{n:.9e}" for n in v.tolist()) for v in alive}
    assert 0.8 * len(alive) < len(prints) <= len(alive)


def published_form(space, cell):
    """NAS-Bench-201's own normal form: a zero stays a summand, so some equal cells count twice."""
    by_edge = dict(zip(space.edges, cell, strict=True))
    nodes = ["0"]
    for j in range(1, space.nodes):
        terms = []
        for i in range(j):
            op = space.ops[by_edge[i, j]]
            if op == "none" or nodes[i] == "#":
                terms.append("#")
            else:
                terms.append(nodes[i] if op == "skip_connect" else f"({nodes[i]})@{op}")
        nodes.append("+".join(sorted(terms)))
    return nodes[-1]


def test_counts():
    assert len(FULL) == sum(1 for _ in FULL) == 15_625 and len(OWN) == 4_096
    every = FULL.distinct()
    assert len(every) == 6_835 and every[0] == (0,) * 6
    assert all(FULL.canonical(cell) == cell for cell in every)
    assert sum(0 not in cell for cell in every) == len(OWN.distinct()) == 3_472
    # What the paper of NAS-Bench-201 counts, and what remains of it when zeros are left out.
    assert len({published_form(FULL, cell) for cell in FULL}) == 6_466
    assert len(SUMS.distinct()) == 4_930


def test_spaces_of_other_sizes():
    space = CellSpace(3, ("skip_connect", "nor_conv_1x1"))
    # Node 1 a copy of node 0: then x + conv(x) can be written in two ways, all else in one.
    assert len(space) == 8 and len(space.distinct()) == 7
    assert space.function((0, 0, 1)) == space.function((0, 1, 0))
    assert len(CellSpace(5, OWN.ops)) == 4**10
    torch.manual_seed(0)
    big = CellSpace(5)
    net = big.network(channels=4)
    x = torch.randn(2, 1, 8, 8)
    for seed in range(5):
        cell = big.sample(random.Random(seed))
        mask = big.mask(net, cell)
        if mask.any():
            assert net(x, mask).shape == (2, 10)
            assert big.function(big.cell_of(net, mask)) == big.function(cell)


def test_own_operations_can_be_added(monkeypatch):
    monkeypatch.setitem(OPERATIONS, "max_pool_3x3", lambda channels: torch.nn.MaxPool2d(3, 1, 1))
    space = CellSpace(3, ("none", "max_pool_3x3"))
    net = space.network(channels=2)
    mask = space.mask(net, (1, 0, 1))
    assert net(torch.randn(2, 1, 8, 8), mask).shape == (2, 10)


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return FULL.network(channels=4)


def test_network_has_the_cells_and_their_costs(net):
    ops = ("nor_conv_3x3", "none", "skip_connect", "none", "none", "nor_conv_1x1")
    arch = FULL.architecture(net, tuple(FULL.ops.index(op) for op in ops))
    pixels = 16
    stem, head = 9 * 4 * pixels, 4 * 10
    assert arch.macs == stem + head + pixels * 4 * 4 * (9 + 1)
    assert arch.edges == (
        "stem",
        "0→1 nor_conv_3x3",
        "1→2 skip_connect",
        "2→3 nor_conv_1x1",
        "head",
    )


def test_nodes_that_are_not_rectified_have_convolutions_that_are():
    net = CellSpace(rectified=False).network(channels=2)
    index = net.graph.index("0→1 nor_conv_3x3")
    assert isinstance(net.edge_modules[index][0], torch.nn.ReLU)
    assert net.node_op(1) is None


def test_masks_go_both_ways(net):
    rng = random.Random(2)
    for _ in range(50):
        cell = FULL.sample(rng)
        back = FULL.cell_of(net, FULL.mask(net, cell))
        # Edges on no path are pruned, which does not change the function.
        assert FULL.function(back) == FULL.function(cell)
    everything = torch.ones(len(net.graph), dtype=torch.bool)
    with pytest.raises(ValueError, match="has 4 operations"):
        FULL.cell_of(net, everything)
    with pytest.raises(ValueError, match="has 0 operations"):
        OWN.cell_of(net, ~everything)
    groups = OWN.groups(net)
    assert groups.shape == (6, 4)
    assert net.graph.edges[groups[0, 2]].name == "0→1 nor_conv_3x3"
