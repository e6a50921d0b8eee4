"""The graph against networkx and against enumeration."""

import networkx as nx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from nas_core.supernet import EdgeInfo, Graph, SuperNetwork
from tests.supernet.graphs import DIAMOND, dags, graph_of


def on_live_path(graph: Graph, row: list[bool]) -> list[bool]:
    """Oracle: an edge is live if the source reaches its tail and its head reaches the sink."""
    kept = nx.MultiDiGraph()
    kept.add_nodes_from(graph.nodes)
    for edge, keep in zip(graph.edges, row, strict=True):
        if keep:
            kept.add_edge(edge.source, edge.target)
    from_source = nx.descendants(kept, graph.source) | {graph.source}
    to_sink = nx.ancestors(kept, graph.sink) | {graph.sink}
    return [
        keep and edge.source in from_source and edge.target in to_sink
        for edge, keep in zip(graph.edges, row, strict=True)
    ]


@settings(max_examples=60, deadline=None)
@given(dags(), st.integers(1, 70), st.integers(0, 10**6))
def test_reachable_equals_networkx(graph, batch, seed):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(batch, len(graph), generator=generator) < 0.6
    pruned = graph.reachable(mask)
    assert pruned.tolist() == [on_live_path(graph, row) for row in mask.tolist()]
    assert not (pruned & ~mask).any()
    assert torch.equal(graph.reachable(pruned), pruned)
    assert torch.equal(graph.reachable(mask[0]), pruned[0])


@settings(max_examples=40, deadline=None)
@given(dags(), st.integers(0, 10**6))
def test_connected_equals_networkx(graph, seed):
    mask = torch.rand(5, len(graph), generator=torch.Generator().manual_seed(seed)) < 0.5
    kept, drawn = graph.connected(mask)
    for b, row in enumerate(mask.tolist()):
        part = graph.to_networkx(mask[b])
        part.add_node(graph.source)
        alive = nx.descendants(part, graph.source) | {graph.source}
        expected = [edge.source in alive for edge in graph.edges]
        assert drawn[b].tolist() == expected
        assert kept[b].tolist() == [k and d for k, d in zip(row, expected, strict=True)]


@settings(max_examples=40, deadline=None)
@given(dags())
def test_nodes_are_in_topological_order(graph):
    place = {node: i for i, node in enumerate(graph.nodes)}
    assert all(place[e.source] < place[e.target] for e in graph.edges)
    assert graph.nodes[0] == graph.source and graph.nodes[-1] == graph.sink


def test_cycle_is_named():
    with pytest.raises(ValueError, match=r"cycle.*a → b → a"):
        graph_of([("s", "a"), ("a", "b"), ("b", "a"), ("b", "t")])


def test_second_source_is_named():
    with pytest.raises(ValueError, match=r"source 's'.*\['z'\]"):
        graph_of([("s", "t"), ("z", "t")])


def test_dead_end_is_named():
    with pytest.raises(ValueError, match=r"dead edges.*sink 't'.*\['d'\]"):
        graph_of([("s", "t"), ("s", "d")])


def test_unknown_sink_is_named():
    with pytest.raises(ValueError, match="sink 'q'"):
        graph_of(DIAMOND, sink="q")


def test_source_with_incoming_edges_is_refused():
    with pytest.raises(ValueError, match="source 'a'"):
        graph_of(DIAMOND, source="a")


def test_equal_edge_names_are_refused():
    with pytest.raises(ValueError, match="unique"):
        Graph([EdgeInfo("e", "s", "t"), EdgeInfo("e", "s", "t")], "s", "t")


@pytest.mark.parametrize(
    ("mask", "error", "words"),
    [
        (torch.ones(5), TypeError, "bool"),
        ([True] * 5, TypeError, "list"),
        (torch.ones(4, dtype=torch.bool), ValueError, r"\[5\]"),
        (torch.ones(3, 4, dtype=torch.bool), ValueError, r"\[B, 5\]"),
        (torch.ones(1, 1, 5, dtype=torch.bool), ValueError, r"\[1, 1, 5\]"),
    ],
)
def test_wrong_masks_are_refused(mask, error, words):
    with pytest.raises(error, match=words):
        graph_of(DIAMOND).reachable(mask)


def test_fingerprint_follows_the_structure():
    graph = graph_of(DIAMOND)
    assert graph.fingerprint == graph_of(DIAMOND).fingerprint
    assert graph.fingerprint != graph_of(DIAMOND[::-1]).fingerprint
    assert Graph.from_dict(graph.to_dict()).fingerprint == graph.fingerprint


def test_unknown_edge_is_named():
    with pytest.raises(ValueError, match="'nope'"):
        graph_of(DIAMOND).index("nope")


def test_fingerprint_follows_modules_and_shapes():
    """It keys checkpoints, tables and architectures: a space of other sizes is another space."""

    def net(layer=lambda: nn.Linear(3, 3), shape=(3,), op=None):
        return SuperNetwork([("x", "y", layer())], "x", "y", input_shape=shape, node_ops=op).graph

    def residual():
        class Residual(nn.Module):
            def __init__(self):
                super().__init__()
                self.layer = nn.Linear(3, 3)

            def forward(self, x):
                return x + self.layer(x)

        return Residual()

    plain = net()
    others = [
        net(lambda: nn.Linear(3, 4)),
        net(lambda: nn.Linear(3, 3, bias=False)),
        net(lambda: nn.Sequential(nn.Linear(3, 3), nn.ReLU())),
        net(residual),
        net(shape=(2, 3)),
        net(shape=None),
        net(op={"y": nn.ReLU()}),
        net(op={"y": nn.Tanh()}),
    ]
    assert len({plain.fingerprint, *(g.fingerprint for g in others)}) == 9
    assert net().fingerprint == plain.fingerprint
    for graph in (plain, others[-1]):
        assert Graph.from_dict(graph.to_dict()).fingerprint == graph.fingerprint
    with pytest.raises(ValueError, match=f"sampler.*{plain.fingerprint}.*{others[0].fingerprint}"):
        others[0].require(plain.fingerprint, plain.name, "this sampler")


def test_ops_and_shapes_of_unknown_nodes_are_refused():
    with pytest.raises(ValueError, match=r"unknown nodes \['q'\]"):
        Graph([EdgeInfo("e", "s", "t")], "s", "t", node_ops={"q": "ReLU"})


def test_positions_of_some_nodes_alone_are_refused():
    with pytest.raises(ValueError, match=r"every node or for none; they lack \['t'\]"):
        Graph([EdgeInfo("e", "s", "t")], "s", "t", positions={"s": (0.0, 0.0)})
