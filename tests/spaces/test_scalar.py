"""Scalar networks against sums over paths."""

import networkx as nx
import pytest
import torch

from nas_core.search import all_masks
from nas_core.spaces import scalar_fabric, scalar_network

WEIGHTS = {("x", "a"): 0.8, ("x", "b"): 0.7, ("a", "b"): 0.6, ("a", "y"): 0.5, ("b", "y"): 0.5}


def test_the_output_is_a_sum_over_paths_of_products():
    net = scalar_network(WEIGHTS)
    masks = all_masks(net.graph)
    with torch.no_grad():
        got = net(torch.ones(len(masks), 1), masks).squeeze(1)
    for mask, value in zip(masks, got.tolist(), strict=True):
        kept = nx.DiGraph(pair for pair, on in zip(WEIGHTS, mask.tolist(), strict=True) if on)
        expected = 0.0
        if {"x", "y"} <= set(kept):
            for path in nx.all_simple_edge_paths(kept, "x", "y"):
                product = 1.0
                for pair in path:
                    product *= WEIGHTS[pair]
                expected += product
        assert value == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("layers", [2, 4, 6])
def test_a_fabric_has_every_forward_edge_and_computes_the_identity(layers):
    net = scalar_fabric(layers, seed=3)
    assert net.num_edges == layers * (layers - 1) // 2
    x = torch.linspace(-2, 2, 5).unsqueeze(1)
    torch.testing.assert_close(net(x), x)


def test_fabrics_follow_the_seed():
    numbers = [
        torch.cat([w.flatten() for w in scalar_fabric(4, s).parameters()]) for s in (1, 1, 2)
    ]
    assert torch.equal(numbers[0], numbers[1]) and not torch.equal(numbers[0], numbers[2])


def test_one_layer_is_refused():
    with pytest.raises(ValueError, match="1 layers"):
        scalar_fabric(1)
