"""The cell space against brute force: strings, classes of equal functions, masks."""

from __future__ import annotations

import itertools
import random

import pytest
import torch

from nas_core.spaces import cells as c


def test_strings_are_those_of_nasbench201():
    text = "|nor_conv_3x3~0|+|nor_conv_3x3~0|avg_pool_3x3~1|+|skip_connect~0|none~1|skip_connect~2|"
    assert c.parse_cell(text) == (3, 3, 4, 1, 0, 1)
    assert c.cell_string((3, 3, 4, 1, 0, 1)) == text
    rng = random.Random(0)
    for _ in range(200):
        cell = c.random_cell(rng)
        assert c.parse_cell(c.cell_string(cell)) == cell


@pytest.mark.parametrize(
    "text", ["", "|x~0|+|none~0|none~1|+|none~0|none~1|none~2|", "|none~0|+|none~1|none~0|+|a|"]
)
def test_other_strings_are_refused(text):
    with pytest.raises(ValueError, match="cell of 4 nodes|expected <op>"):
        c.parse_cell(text)


def test_wrong_cells_are_refused():
    with pytest.raises(ValueError, match=r"6 operations numbered 0…4"):
        c.check_cell((0, 1, 2))
    with pytest.raises(ValueError, match=r"6 operations numbered 0…4"):
        c.check_cell((0, 1, 2, 3, 4, 5))


def test_mutation_changes_exactly_one_edge():
    rng = random.Random(1)
    cell = (1, 2, 3, 4, 1, 2)
    for _ in range(100):
        child = c.mutate(cell, rng)
        assert sum(a != b for a, b in zip(cell, child, strict=True)) == 1


def _random_function(cell, x, matrices):
    """The cell with one fixed random matrix for each kind of operation."""
    values = [x]
    for j in range(1, c.NODES):
        total = torch.zeros_like(x)
        for (i, to), op in zip(c.EDGES, cell, strict=True):
            if to == j and op != c.NONE:
                total = total + (values[i] if op == c.SKIP else matrices[op] @ values[i])
        values.append(total.relu())
    return values[-1]


def test_classes_are_those_of_equal_functions():
    """Oracle: numeric fingerprints of all cells over {none, skip, two kinds of matrix}."""
    g = torch.Generator().manual_seed(0)
    x = torch.rand(32, generator=g, dtype=torch.float64)
    m = {op: torch.randn(32, 32, generator=g, dtype=torch.float64) for op in (c.CONV1, c.CONV3)}
    by_formula: dict = {}
    for cell in itertools.product((c.NONE, c.SKIP, c.CONV1, c.CONV3), repeat=6):
        y = _random_function(cell, x, m)
        by_formula.setdefault(c.cell_function(cell), []).append(y)
    for values in by_formula.values():  # same formula: same numbers
        assert all(torch.allclose(v, values[0], rtol=1e-10) for v in values)
    # The other way round weights must differ from edge to edge (two equal convolutions of a sum
    # are one of twice the weight), so numbers can only bound the classes from below.
    alive = [v[0] for f, v in by_formula.items() if f is not None]
    prints = {tuple(f"{n:.9e}" for n in v.tolist()) for v in alive}
    assert 0.8 * len(alive) < len(prints) <= len(alive)


def test_counts():
    assert len(list(c.all_cells())) == 15_625
    every = c.canonical_cells()
    assert len(every) == 6_835 and every[0] == (0,) * 6
    assert all(c.canonical(cell) == cell for cell in every)
    assert sum(c.NONE not in cell for cell in every) == 3_472


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return c.cell_network(channels=4)


def test_network_has_the_cells_and_their_costs(net):
    arch = c.cell_architecture(net, (c.CONV3, c.NONE, c.SKIP, c.NONE, c.NONE, c.CONV1))
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


def test_masks_go_both_ways(net):
    rng = random.Random(2)
    for _ in range(50):
        cell = c.random_cell(rng)
        mask = c.cell_mask(net, cell)
        back = c.cell_of_mask(net, mask)
        # Edges on no path are pruned, which does not change the function.
        assert c.cell_function(back) == c.cell_function(cell)
    with pytest.raises(ValueError, match="has 4 operations"):
        c.cell_of_mask(net, torch.ones(len(net.graph), dtype=torch.bool))
