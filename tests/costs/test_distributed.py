"""The distributed cost: every printed value, a slow second implementation, and its laws."""

import math
from itertools import pairwise

import networkx as nx
import numpy as np
import pytest
import torch
from torch import nn

import nas_core.costs.distributed as module
from nas_core.costs.distributed import Distributed, longest_first, unit_ops
from nas_core.data import reference
from nas_core.spaces import conv_fabric, plain_resnet, resnet_fabric
from nas_core.supernet import SuperNetwork

CNF = {1: (12, 12, 12), 2: (39, 26, 19), 4: (83, 47, 31), 8: (171, 90, 53)}  # n = 1, 2, 4
RESNET = {3: 20, 5: 32, 7: 44, 9: 56, 18: 110}  # depth


WHOLE_FABRIC = {1: 320, 2: 179, 4: 110}  # n = 18; printed as rows B-ResNet of tables 3.6 to 3.9


@pytest.mark.parametrize("columns", CNF)
def test_all_twelve_printed_values_of_the_fabric(columns):
    net = conv_fabric(columns, 6, 2, 10)
    mask = torch.ones(1, net.num_edges, dtype=torch.bool)
    assert tuple(Distributed(net, n)(mask).item() for n in (1, 2, 4)) == CNF[columns]


@pytest.mark.parametrize("blocks", RESNET)
def test_all_printed_values_of_the_resnets(blocks):
    net = resnet_fabric(blocks, channels=(2, 2, 2))
    mask = plain_resnet(net.graph).mask.unsqueeze(0)
    depth = RESNET[blocks]
    values = [Distributed(net, n)(mask).item() for n in (1, 2, 4, math.inf)]
    assert values == [depth + 2, depth, depth, depth]


def test_the_whole_resnet_fabric():
    """A block is one operation, its sum another, a projection a third; shortcuts are free."""
    net = resnet_fabric(18, channels=(2, 2, 2))
    mask = torch.ones(1, net.num_edges, dtype=torch.bool)
    assert {n: Distributed(net, n)(mask).item() for n in WHOLE_FABRIC} == WHOLE_FABRIC
    block = net.edge_modules[net.graph.index("0.in→0.0 conv")]
    assert unit_ops(block) == unit_ops(net.node_op(2), node=True) == 1
    assert unit_ops(net.node_op(net.graph.nodes.index("0.in")), node=True) == 0
    assert unit_ops(net.edge_modules[net.graph.index("0.in→0.0 shortcut")]) == 0


@pytest.mark.parametrize(
    ("table", "n"),
    [("table_3_5", 1), ("table_3_6", 2), ("table_3_7", 4), ("table_3_8", 1), ("table_3_9", 2)],
)
def test_every_printed_row_that_can_be_computed(table, n):
    """The searched networks are not printed, except where one costs what the whole fabric does."""
    depth = {f"ResNet-{d}": d + 2 * (n == 1) for d in RESNET.values()}
    width = {f"CNF W={w}": values[(1, 2, 4).index(n)] for w, values in CNF.items()}
    frame = reference.load(table)
    computed = {**depth, **width}
    known = frame[frame["family"].isin(["ResNet", "CNF"])]
    assert known["cycles"].tolist() == [computed[model] for model in known["model"]]
    assert set(depth) <= set(known["model"])
    searched = frame.loc[frame["family"] == "B-ResNet", "cycles"]
    assert (WHOLE_FABRIC[n] in searched.tolist()) == (table != "table_3_5")
    assert searched.max() <= WHOLE_FABRIC[n]  # no architecture takes more


def greedy_by_hand(operations: nx.DiGraph, n: float) -> list[list[str]]:
    """Spec 1.6 word by word, one architecture at a time; an independent second implementation."""
    insertion = {op: i for i, op in enumerate(operations)}
    post, seen = [], set()

    def search(op):
        seen.add(op)
        for successor in sorted(operations.successors(op), key=insertion.get, reverse=True):
            if successor not in seen:
                search(successor)
        post.append(op)

    for op in operations:
        if op not in seen:
            search(op)
    remaining, cycles = post[::-1], []
    while remaining:
        waiting = set(remaining)
        ready = [op for op in remaining if waiting.isdisjoint(operations.predecessors(op))]
        cycles.append(ready[: len(ready) if n == math.inf else int(n)])
        remaining = [op for op in remaining if op not in cycles[-1]]
    return cycles


@pytest.mark.parametrize("n", [2, 3, 4, 7, math.inf])
def test_the_schedule_is_the_one_of_the_algorithm(n):
    net = conv_fabric(4, 4, 2, 10)
    torch.manual_seed(1)
    masks = net.graph.reachable(torch.rand(60, net.num_edges) < 0.75)
    cost = Distributed(net, n)
    values = cost(masks)
    for mask, value in zip(masks, values, strict=True):
        expected = greedy_by_hand(cost.operations(mask), n)
        assert value == len(expected)
        assert [sorted(c) for c in cost.schedule(mask)] == [sorted(c) for c in expected]


def random_space(seed: int) -> SuperNetwork:
    """A random graph with one to three layers per edge and some sums that take a cycle."""
    generator = torch.Generator().manual_seed(seed)

    def draw(high):
        return int(torch.randint(high, (), generator=generator))

    size = 7
    pairs = [(i, i + 1) for i in range(size - 1)]
    pairs += [(i, j) for i in range(size) for j in range(i + 2, size) if draw(2)]
    order = torch.randperm(len(pairs), generator=generator).tolist()
    edges = [
        (*pairs[k], nn.Sequential(*[nn.Linear(2, 2) for _ in range(1 + draw(3))])) for k in order
    ]
    ops = {}
    for node in range(1, size):
        ops[node] = nn.ReLU()
        ops[node].unit_ops = 1
    return SuperNetwork(edges, 0, size - 1, node_ops=ops)


@pytest.mark.parametrize("seed", range(6))
def test_agrees_with_the_second_implementation_on_random_graphs(seed):
    net = random_space(seed)
    torch.manual_seed(seed)
    masks = net.graph.reachable(torch.rand(30, net.num_edges) < 0.7)
    for n in (2, 3):
        cost = Distributed(net, n)
        expected = [len(greedy_by_hand(cost.operations(m), n)) for m in masks]
        assert cost(masks).tolist() == expected


@pytest.mark.parametrize("space", ["conv", "resnet", "random"])
def test_limits_are_the_number_of_operations_and_the_critical_path(space):
    build = {
        "conv": lambda: conv_fabric(3, 4, 2, 10),
        "resnet": lambda: resnet_fabric(3, channels=(2, 2, 2)),
        "random": lambda: random_space(11),
    }
    net = build[space]()
    torch.manual_seed(2)
    masks = net.graph.reachable(torch.rand(40, net.num_edges) < 0.8)
    costs = {n: Distributed(net, n) for n in (1, 2, 5, math.inf)}
    values = {n: cost(masks) for n, cost in costs.items()}
    assert len(masks.unique(dim=0)) > 5
    for b, mask in enumerate(masks):
        operations = costs[1].operations(mask)
        longest = nx.dag_longest_path_length(operations, default_weight=1)
        assert values[1][b] == len(operations)
        assert values[math.inf][b] == (longest + 1 if len(operations) else 0)
        for n in (2, 5):  # Graham's bound for list schedules, and the two lower bounds
            bound = len(operations) / n + (1 - 1 / n) * values[math.inf][b]
            least = max(math.ceil(len(operations) / n), values[math.inf][b])
            assert least <= values[n][b] <= bound + 1e-9


def figure_3_8() -> tuple[SuperNetwork, torch.Tensor, torch.Tensor]:
    """One space whose 9-module architecture takes 6 cycles and whose 10-module one takes 5."""

    def chain(prefix, length):
        nodes = ["in", *[f"{prefix}{i}" for i in range(1, length)], "out"]
        return [(a, b, nn.Linear(1, 1)) for a, b in pairwise(nodes)]

    parts = {p: chain(p, k) for p, k in (("a", 6), ("b", 3), ("c", 5), ("d", 5))}
    net = SuperNetwork([edge for part in parts.values() for edge in part], "in", "out")
    part_of = torch.tensor([p for p, part in enumerate(parts.values()) for _ in part])
    return net, part_of < 2, part_of >= 2


def test_a_larger_network_may_take_fewer_cycles():
    net, nine, ten = figure_3_8()
    assert (nine.sum(), ten.sum()) == (9, 10)
    assert Distributed(net, 2)(torch.stack([nine, ten])).tolist() == [6.0, 5.0]
    # Negative control: with one unit the order is the other way round.
    assert Distributed(net, 1)(torch.stack([nine, ten])).tolist() == [9.0, 10.0]


def test_no_additive_cost_agrees():
    """No prices per edge, fitted freely, reproduce the cycles of sampled architectures."""
    net = conv_fabric(3, 3, 2, 10)
    torch.manual_seed(0)
    masks = net.graph.reachable(torch.rand(400, net.num_edges) < 0.8).unique(dim=0)
    sums = masks.double()

    def residual(n):
        cycles = Distributed(net, n)(masks)
        fitted = sums @ torch.linalg.lstsq(sums, cycles.unsqueeze(1), driver="gelsd").solution[:, 0]
        return (fitted - cycles).abs().max()

    assert residual(4) > 1


def test_repeated_architectures_are_remembered(monkeypatch):
    net = conv_fabric(3, 3, 2, 10)
    cost = Distributed(net, 2)
    torch.manual_seed(0)
    masks = net.graph.reachable(torch.rand(20, net.num_edges) < 0.8)
    first = cost(masks)
    scheduled = []
    original = module.list_schedule

    def counted(ops, present, n):
        scheduled.append(present)
        return original(ops, present, n)

    monkeypatch.setattr(module, "list_schedule", counted)
    assert torch.equal(cost(masks), first) and not scheduled
    full = torch.ones(1, net.num_edges, dtype=torch.bool)
    assert not (masks == full).all(1).any()
    both = torch.cat([masks, full])
    expected = torch.cat([first, Distributed(net, 2)(full)])
    scheduled.clear()
    assert torch.equal(cost(both), expected) and len(scheduled) == 1
    monkeypatch.setattr(module, "REMEMBERED", 0)  # forgetting changes nothing
    narrow = torch.zeros(1, net.num_edges, dtype=torch.bool)
    narrow[0, [0, 1, 2, -1]] = True
    assert torch.equal(cost(torch.cat([both, narrow]))[:-1], expected)
    assert torch.equal(cost(both), expected)


def test_allocations_are_callables_and_their_schedules_are_checked():
    net = conv_fabric(3, 4, 2, 10)
    torch.manual_seed(0)
    masks = net.graph.reachable(torch.rand(20, net.num_edges) < 0.9)
    masks = masks[masks.any(1)]
    greedy = Distributed(net, 2)(masks)
    assert torch.equal(Distributed(net, 2, greedy_by_hand)(masks), greedy)
    sequential = Distributed(net, 2, lambda ops, n: [[op] for op in nx.topological_sort(ops)])
    assert torch.equal(sequential(masks), Distributed(net, 1)(masks))
    best = Distributed(net, 2, longest_first)(masks)
    assert (best >= Distributed(net, math.inf)(masks)).all()

    def at_once(ops, n):
        return [list(ops)]

    def backwards(ops, n):
        return [[op] for op in reversed(list(nx.topological_sort(ops)))]

    for wrong, message in (
        (at_once, "but n is 2"),
        (backwards, "but it needs"),
        (lambda ops, n: [[op] for op in nx.topological_sort(ops)][:-1], "never runs"),
        (lambda ops, n: [["nonsense"]], "no such operation"),
        (lambda ops, n: [[next(iter(ops))] * 2], "twice"),
    ):
        with pytest.raises(ValueError, match=message):
            Distributed(net, 2, wrong)(masks[:1])


def test_what_counts_as_an_operation():
    assert unit_ops(nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1), nn.Linear(1, 1))) == 2
    assert unit_ops(nn.Identity()) == 0
    assert unit_ops(nn.ReLU(), node=True) == 0
    assert unit_ops(None) == 0


def test_an_empty_architecture_takes_no_cycles():
    net = conv_fabric(2, 3, 2, 10)
    dead = torch.zeros(2, net.num_edges, dtype=torch.bool)
    dead[1] = True
    assert Distributed(net, 2)(dead)[0] == 0
    assert Distributed(net, 1)(dead[:1]).tolist() == [0.0]
    assert Distributed(net, 2).schedule(dead[0]) == []


@pytest.mark.parametrize("n", [0, -1, 1.5, True, "two"])
def test_n_must_be_a_number_of_units(n):
    with pytest.raises(ValueError, match="parallel units"):
        Distributed(conv_fabric(1, 2, 2, 10), n)


def test_n_may_be_a_numpy_integer():
    assert Distributed(conv_fabric(1, 2, 2, 10), np.int64(2)).name == "distributed (n=2)"
