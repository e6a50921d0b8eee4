"""Prices per edge: tables, random prices, the cloud."""

import pytest
import torch

from nas_core.costs import cloud_prices, per_edge, random_prices, sides
from nas_core.spaces import conv_fabric


@pytest.fixture(scope="module")
def net():
    return conv_fabric(4, 3, 2, 10)


def test_a_table_and_a_vector_give_the_same_cost(net):
    prices = random_prices(net, seed=3)
    vector = [prices[e.name] for e in net.graph.edges]
    masks = net.graph.reachable(torch.rand(20, net.num_edges) < 0.9)
    by_hand = [sum(v for v, keep in zip(vector, m.tolist(), strict=True) if keep) for m in masks]
    for given in (prices, vector, torch.tensor(vector, dtype=torch.float64)):
        torch.testing.assert_close(
            per_edge(net, given)(masks), torch.tensor(by_hand, dtype=torch.float64)
        )


def test_missing_and_unknown_edges_are_named(net):
    prices = random_prices(net.graph, seed=0)
    name = net.graph.edges[5].name
    with pytest.raises(ValueError, match=rf"1 of {net.num_edges} edges .* '{name}'"):
        per_edge(net, {k: v for k, v in prices.items() if k != name})
    with pytest.raises(ValueError, match="unknown edges .'elsewhere'."):
        per_edge(net, {**prices, "elsewhere": 1.0})
    with pytest.raises(ValueError, match=rf"expected one per edge, \[{net.num_edges}\]"):
        per_edge(net, [1.0, 2.0])
    with pytest.raises(ValueError, match="finite"):
        per_edge(net, {**prices, name: float("nan")})


def test_random_prices_are_a_function_of_the_seed(net):
    assert random_prices(net, 1) == random_prices(net, 1) != random_prices(net, 2)
    values = random_prices(net, 1)
    inner = [
        v
        for e, v in zip(net.graph.edges, values.values(), strict=True)
        if "put" not in e.name and e.kind not in ("stem", "head")
    ]
    assert all(0 < v < 1 for v in inner) and len(set(inner)) == len(inner)
    assert values["stem"] == values["head"] == 0


def test_the_cloud_splits_the_fabric_between_two_columns(net):
    where = dict(zip([e.name for e in net.graph.edges], sides(net, 1.5), strict=True))
    assert where["stem"] == "device" and where["head"] == "server"
    for e in net.graph.edges:
        if e.kind in ("stem", "head"):
            continue
        a, b = int(e.source[0]), int(e.target[0])
        expected = "network" if (a, b) == (1, 2) else "device" if b <= 1 else "server"
        assert where[e.name] == expected
    prices = cloud_prices(net, 1.5, device=1, network=50, server=0.5)
    assert set(prices.values()) == {0.0, 1, 50, 0.5}


@pytest.mark.parametrize("border", [-5.0, 99.0])
def test_a_border_outside_the_network_is_refused(net, border):
    with pytest.raises(ValueError, match="does not separate"):
        sides(net, border)
