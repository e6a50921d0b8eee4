"""Pareto selection, hypervolume and the profile of a space."""

import networkx as nx
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nas_core import costs
from nas_core.search import (
    all_masks,
    count_paths,
    hypervolume,
    pareto_front,
    profile_space,
)
from nas_core.spaces import resnet_fabric
from tests.supernet.graphs import DIAMOND, dags, graph_of, small_net

points = st.lists(
    st.tuples(st.integers(0, 9).map(float), st.integers(0, 9).map(float)), min_size=1, max_size=25
)


@settings(max_examples=100, deadline=None)
@given(points)
def test_front_equals_the_definition(rows):
    frame = pd.DataFrame(rows, columns=["cost", "accuracy"])
    front = pareto_front(frame)
    distinct = set(rows)
    expected = {
        (c, a)
        for c, a in distinct
        if not any((d <= c and b >= a) and (d, b) != (c, a) for d, b in distinct)
    }
    assert set(map(tuple, front.to_numpy())) == expected
    assert len(front) == len(expected)


@settings(max_examples=50, deadline=None)
@given(points)
def test_hypervolume_equals_counting_unit_squares(rows):
    """With integer points the dominated area is a number of unit squares."""
    squares = sum(any(c <= x and a >= y + 1 for c, a in rows) for x in range(10) for y in range(10))
    assert hypervolume(rows, (10.0, 0.0)) == pytest.approx(squares)


def test_front_ignores_missing_numbers_and_names_missing_columns():
    frame = pd.DataFrame({"cost": [1.0, np.nan, 2.0], "accuracy": [0.5, 0.9, np.nan]})
    assert pareto_front(frame).index.tolist() == [0]
    with pytest.raises(ValueError, match="'macs'"):
        pareto_front(frame, cost="macs")


@settings(max_examples=30, deadline=None)
@given(dags(max_nodes=6))
def test_path_count_equals_networkx(graph):
    oracle = nx.all_simple_edge_paths(graph.to_networkx(), graph.source, graph.sink)
    assert count_paths(graph) == len(list(oracle))


@settings(max_examples=30, deadline=None)
@given(dags(max_nodes=6), st.integers(0, 1000))
def test_cheapest_equals_dijkstra(graph, seed):
    weights = torch.rand(len(graph), generator=torch.Generator().manual_seed(seed))
    cost = costs.AdditiveCost(weights)
    simple = nx.DiGraph()
    for edge, w in zip(graph.edges, cost.per_edge.tolist(), strict=True):
        old = simple.get_edge_data(edge.source, edge.target, {"weight": float("inf")})["weight"]
        simple.add_edge(edge.source, edge.target, weight=min(w, old))
    profile = profile_space(graph, cost)
    oracle = nx.dijkstra_path_length(simple, graph.source, graph.sink)
    assert profile.cheapest == pytest.approx(oracle) and profile.cheapest_is_exact
    assert profile.full == pytest.approx(cost.per_edge.sum().item())


def test_architectures_of_the_diamond_are_counted():
    # Paths: e0 e3, e1 e4, e0 e2 e4. Live sub-graphs: the non-empty unions of these.
    profile = profile_space(graph_of(DIAMOND), costs.AdditiveCost([1.0] * 5))
    assert profile.paths == 3 and profile.masks == 32
    assert profile.architectures == 7  # three paths, three pairs, one triple: all distinct


def test_text_is_refused_where_numbers_are_compared():
    frame = pd.DataFrame({"cost": ["9", "10"], "accuracy": [0.5, 0.9]})
    with pytest.raises(ValueError, match="holds text .'9'"):
        pareto_front(frame)
    with pytest.raises(ValueError, match="holds text"):
        pareto_front(frame, cost="accuracy", value="cost")
    boxed = frame.assign(cost=pd.Series([9, 10.5], dtype=object))  # numbers in a mixed column
    assert len(pareto_front(boxed)) == 2


def test_black_box_costs_are_exact_on_small_graphs():
    net = small_net()
    profile = profile_space(net.graph, lambda mask: mask.sum(1).float() ** 2)
    assert profile.cheapest == 9 and profile.cheapest_is_exact  # x→a, skip, b→y


def test_the_cheapest_need_not_be_a_path():
    """A callable may charge less for more edges; negative prices make a union the cheapest."""
    graph = graph_of(DIAMOND)
    profile = profile_space(graph, lambda mask: 10.0 - mask.sum(1).double())
    assert profile.cheapest == 5 and profile.cheapest_is_exact
    assert profile.satisfiable(5) and profile.satisfiable(4.9) is False
    profile = profile_space(graph, costs.AdditiveCost([1.0, 2.0, -5.0, 1.0, 1.0]))
    oracle = min(
        float(mask.double() @ torch.tensor([1.0, 2.0, -5.0, 1.0, 1.0]).double())
        for mask in graph.reachable(all_masks(graph))
        if mask.any()
    )
    assert profile.cheapest == oracle and profile.cheapest_is_exact


def test_nothing_is_exact_where_the_graph_is_large_or_the_cost_random():
    graph = resnet_fabric(3).graph  # 2,448 paths, which were once all tried and called exact
    profile = profile_space(graph, lambda mask: 100.0 - mask.sum(1).double())
    assert not profile.cheapest_is_exact and profile.cheapest == 100 - len(graph)
    assert profile.satisfiable(10) is None
    noise = torch.Generator().manual_seed(0)
    random = profile_space(
        graph_of(DIAMOND), lambda mask: torch.rand(len(mask), generator=noise).double()
    )
    assert not random.cheapest_is_exact


@pytest.mark.parametrize(
    ("prices", "scale"),
    [
        ([1.0, 2, 3, 4, 5], 15),
        ([-1.0, -2, -3, -4, -5], 15),
        ([5.0, -5, 5, -5, 0], 5),  # the whole network costs 0
        ([0.0] * 5, 1),
    ],
)
def test_the_unit_of_overspending_is_positive_for_costs_of_any_sign(prices, scale):
    profile = profile_space(graph_of(DIAMOND), costs.AdditiveCost(prices))
    assert profile.full == sum(prices)
    assert profile.scale == scale if scale != 5 else profile.scale > 0


def test_many_paths_make_the_cheapest_a_guess():
    graph = resnet_fabric(7).graph
    profile = profile_space(graph, lambda mask: mask.sum(1).float())
    assert profile.paths > 5000 and not profile.cheapest_is_exact
    assert profile.satisfiable(profile.cheapest) is True
    assert profile.satisfiable(profile.cheapest - 1) is None


def test_satisfiable():
    profile = profile_space(graph_of(DIAMOND), costs.AdditiveCost([1.0, 2, 3, 4, 5]))
    assert profile.cheapest == 5
    assert profile.satisfiable(5) is True and profile.satisfiable(4.9) is False
