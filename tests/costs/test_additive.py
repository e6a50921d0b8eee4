"""Costs that add up, and what is refused from a user's own cost."""

import pytest
import torch

from nas_core import costs
from nas_core.supernet import Architecture
from tests.supernet.graphs import small_net


def random_masks(net, batch=32):
    mask = torch.rand(batch, net.num_edges, generator=torch.Generator().manual_seed(0)) < 0.7
    return net.graph.reachable(mask)


def test_batch_costs_equal_those_of_each_architecture():
    net = small_net()
    masks = random_masks(net)
    architectures = [Architecture.from_mask(net.graph, m) for m in masks]
    assert costs.computation(net)(masks).tolist() == [a.macs for a in architectures]
    assert costs.memory(net)(masks).tolist() == [a.params for a in architectures]


def test_thesis_convention_adds_one_per_element_of_every_sum():
    net = small_net()
    full = torch.ones(1, net.num_edges, dtype=torch.bool)
    elements = 4 * 36  # node b has three summands, node y two
    expected = int(net.graph.macs.sum()) + 2 * elements + 1 * 5
    assert costs.computation(net, "thesis")(full).item() == expected


def test_pruning_never_raises_a_cost():
    net = small_net()
    mask = torch.rand(64, net.num_edges) < 0.5
    for cost in (costs.computation(net), costs.computation(net, "thesis"), costs.memory(net)):
        assert (cost(net.graph.reachable(mask)) <= cost(mask)).all()


def test_unknown_convention_is_named():
    with pytest.raises(ValueError, match="'flops' is unknown"):
        costs.computation(small_net(), "flops")


def test_costs_without_input_shape_are_refused():
    from torch import nn

    from nas_core.supernet import SuperNetwork

    with pytest.raises(ValueError, match="input_shape"):
        costs.computation(SuperNetwork([("x", "y", nn.Linear(1, 1))], "x", "y"))


def test_any_callable_is_a_cost():
    masks = random_masks(small_net())
    assert costs.price(lambda m: m.sum(1).float() ** 2, masks).dtype == torch.float64
    assert costs.price(lambda m: [1.0] * len(m), masks).sum() == 32


@pytest.mark.parametrize(
    ("cost", "words"),
    [
        (lambda m: m.sum().float(), r"returned shape \[\] for 32"),
        (lambda m: m.float(), r"returned shape \[32, 7\]"),
        (lambda m: m.sum(1) * float("nan"), "returned nan for architecture 0"),
        (lambda m: m.sum(1) / 0, "must be finite"),
    ],
)
def test_wrong_costs_are_named(cost, words):
    with pytest.raises(ValueError, match=words):
        costs.price(cost, random_masks(small_net()))


def test_cost_tables_must_be_finite():
    with pytest.raises(ValueError, match="finite"):
        costs.AdditiveCost([1.0, float("inf")])


def test_no_function_shadows_its_module():
    import types

    for name in ("additive", "distributed", "latency"):
        assert isinstance(getattr(costs, name), types.ModuleType)


def test_costs_of_either_sign_add_up():
    """A saving, a free space and mixed signs are costs like others; only their users divide."""
    net = small_net()
    masks = random_masks(net)
    counts = masks.double().sum(1)
    assert torch.equal(costs.price(costs.per_edge(net, [-1.0] * 7), masks), -counts)
    assert costs.price(costs.per_edge(net, [0.0] * 7), masks).abs().sum() == 0
    mixed = costs.per_edge(net, [1.0, -1.0, 0, 0, 0, 0, 0])
    assert torch.equal(costs.price(mixed, masks), masks[:, 0].double() - masks[:, 1].double())
