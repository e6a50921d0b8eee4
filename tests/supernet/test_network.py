"""The forward pass: only what is selected is computed, and it is computed right."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from nas_core.supernet import Architecture, Edge, SuperNetwork
from tests.supernet.graphs import conv, small_net


def random_masks(net: SuperNetwork, batch: int, p: float = 0.6, seed: int = 0):
    return torch.rand(batch, net.num_edges, generator=torch.Generator().manual_seed(seed)) < p


def naive(net: SuperNetwork, x: torch.Tensor, row: list[bool]) -> torch.Tensor | None:
    """Oracle: eq. 3.7 by recursion from the sink, for one architecture."""
    graph = net.graph

    def value(node: int):
        if node == 0:
            op = net.node_op(0)
            return x if op is None else op(x)
        terms = [
            net.edge_modules[e](inner)
            for e in range(len(graph))
            if row[e]
            and graph.edge_targets[e] == node
            and (inner := value(graph.edge_sources[e])) is not None
        ]
        if not terms:
            return None
        op = net.node_op(node)
        total = torch.stack(terms).sum(0)
        return total if op is None else op(total)

    return value(len(graph.nodes) - 1)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.3, 0.6, 0.9]))
def test_every_row_equals_its_own_network(seed, p):
    net = small_net().eval()
    mask = random_masks(net, 8, p, seed)
    x = torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
    y = net(x, mask)
    for b in range(8):
        expected = naive(net, x[b : b + 1], mask[b].tolist())
        expected = torch.zeros(1, 5) if expected is None else expected
        torch.testing.assert_close(y[b : b + 1], expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(net(x[b : b + 1], mask[b]), expected, atol=1e-5, rtol=1e-5)


def test_gradients_equal_those_of_separate_rows():
    net = small_net().eval()  # no batch statistics, so rows are independent
    mask, x = random_masks(net, 8, 0.7), torch.randn(8, 3, 6, 6)
    twin = copy.deepcopy(net)
    x1, x2 = x.clone().requires_grad_(), x.clone().requires_grad_()
    net(x1, mask).square().sum().backward()
    sum(twin(x2[b : b + 1], mask[b]).square().sum() for b in range(8)).backward()
    torch.testing.assert_close(x1.grad, x2.grad, atol=1e-4, rtol=1e-4)
    for p, q in zip(net.parameters(), twin.parameters(), strict=True):
        expected = torch.zeros_like(p) if q.grad is None else q.grad
        got = torch.zeros_like(p) if p.grad is None else p.grad
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


def test_sampling_changes_the_output():
    net = small_net().eval()
    x = torch.randn(1, 3, 6, 6).expand(16, -1, -1, -1)
    outputs = net(x, random_masks(net, 16))
    assert torch.unique(outputs.round(decimals=4), dim=0).shape[0] > 4


def test_modules_see_only_the_rows_that_selected_them():
    net = small_net()
    mask = random_masks(net, 32, 0.7)
    pruned = net.graph.reachable(mask)
    seen: dict[int, int] = {}
    for e, module in enumerate(net.edge_modules):
        module.register_forward_hook(lambda m, i, o, e=e: seen.__setitem__(e, len(i[0])))
    net(torch.randn(32, 3, 6, 6), mask)
    assert seen == {e: int(n) for e, n in enumerate(pruned.sum(0)) if n}


def test_a_mask_for_the_batch_never_calls_what_it_leaves_out():
    net = small_net()
    mask = torch.tensor([True, True, False, False, True, True, True])  # c→… hangs in the air
    called = set()
    for e, module in enumerate(net.edge_modules):
        module.register_forward_hook(lambda m, i, o, e=e: called.add(e))
    net(torch.randn(4, 3, 6, 6), mask)
    assert called == {0, 1, 5}


def test_batch_norm_statistics_come_from_the_selected_rows():
    net = small_net()
    mask = torch.ones(6, net.num_edges, dtype=torch.bool)
    mask[3:, 1] = False
    x = torch.randn(6, 3, 6, 6)
    inputs = []
    net.edge_modules[1].register_forward_hook(lambda m, i, o: inputs.append(i[0]))
    net(x, mask)
    expected = net.edge_modules[1][0](inputs[0]).mean((0, 2, 3)) * 0.1  # momentum of batch norm
    torch.testing.assert_close(net.edge_modules[1][1].running_mean, expected, atol=1e-6, rtol=1e-4)
    assert len(inputs[0]) == 3


def test_a_single_row_with_1x1_maps_does_not_crash_training():
    edges = [
        ("x", "y", nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))),
        ("x", "y", nn.Conv2d(3, 4, 1)),
    ]
    net = SuperNetwork(edges, "x", "y")
    with pytest.raises(ValueError, match="more than 1 value"):
        net.edge_modules[0](torch.randn(1, 3, 1, 1))  # what would happen without help
    mask = torch.tensor([[True, True], [False, True], [False, True]])
    before = net.edge_modules[0][1].running_mean.clone()
    net(torch.randn(3, 3, 1, 1), mask).sum().backward()
    assert torch.equal(net.edge_modules[0][1].running_mean, before)
    assert net.edge_modules[0][1].training


def test_dead_rows_give_zeros_and_no_gradient():
    net = small_net()
    x = torch.randn(4, 3, 6, 6)
    mask = torch.ones(4, net.num_edges, dtype=torch.bool)
    mask[2, 0] = False
    assert torch.equal(net(x, mask)[2], torch.zeros(5))
    none = torch.zeros(4, net.num_edges, dtype=torch.bool)
    assert torch.equal(net(x, none), torch.zeros(4, 5))
    assert torch.equal(net(x, none[0]), torch.zeros(4, 5))


def test_dead_output_without_input_shape_is_still_known():
    net = SuperNetwork([("x", "h", nn.Linear(3, 4)), ("h", "y", nn.Linear(4, 2))], "x", "y")
    assert net(torch.randn(5, 3), torch.zeros(2, dtype=torch.bool)).shape == (5, 2)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6))
def test_removing_a_dead_end_never_changes_the_output(seed):
    net = small_net().eval()
    mask, x = random_masks(net, 6, 0.5, seed), torch.randn(6, 3, 6, 6)
    assert torch.equal(net(x, mask), net(x, net.graph.reachable(mask)))


def test_forward_is_reentrant():
    """An edge module that runs the same super-network inside itself does not disturb it."""

    class Nested(nn.Module):
        def forward(self, x):
            inner = holder[0]
            if not getattr(self, "inside", False):
                self.inside = True
                inner(torch.randn_like(x), torch.ones(len(x), 2, dtype=torch.bool).tril())
                self.inside = False
            return x * 2

    holder = []
    net = SuperNetwork([("x", "y", Nested()), ("x", "y", nn.Identity())], "x", "y")
    holder.append(net)
    x = torch.randn(3, 4)
    mask = torch.tensor([[True, True], [True, False], [False, True]])
    torch.testing.assert_close(net(x, mask), x * torch.tensor([[3.0], [2.0], [1.0]]))


def test_identity_edges_are_not_changed_in_place():
    net = SuperNetwork(
        [("x", "a", nn.Identity()), ("a", "y", nn.Identity()), ("x", "y", nn.Identity())], "x", "y"
    )
    x = torch.randn(4, 3)
    kept = x.clone()
    for mask in (None, torch.ones(4, 3, dtype=torch.bool)):
        torch.testing.assert_close(net(x, mask), 2 * kept)
        assert torch.equal(x, kept)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_memory_formats_agree(layout):
    net = small_net().eval()
    mask, x = random_masks(net, 8, 0.7), torch.randn(8, 3, 6, 6)
    expected = net(x, mask)
    got = net.to(memory_format=layout)(x.to(memory_format=layout), mask)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_counts_per_edge():
    graph = small_net().graph
    assert graph.macs.tolist() == [
        3 * 4 * 9 * 36, 4 * 4 * 9 * 36, 0, 4 * 4 * 9 * 36, 4 * 4 * 9 * 36, 4 * 5, 144 * 5,
    ]  # fmt: skip
    assert graph.params.tolist() == [108 + 8, 144 + 8, 0, 144 + 8, 144 + 8, 25, 725]
    assert graph.shapes["b"] == (4, 6, 6) and graph.shapes["y"] == (5,)


def test_summands_must_agree_in_shape():
    edges = [("x", "y", conv(3, 4)), ("x", "y", conv(3, 4, stride=2))]
    with pytest.raises(ValueError, match="summands must agree"):
        SuperNetwork(edges, "x", "y", input_shape=(3, 8, 8))


def test_a_module_that_does_not_fit_is_named():
    edges = [("x", "h", conv(3, 4)), ("h", "y", conv(5, 4))]
    with pytest.raises(ValueError, match="h→y"):
        SuperNetwork(edges, "x", "y", input_shape=(3, 8, 8))


def test_shared_modules_and_non_modules_are_refused():
    shared = nn.Linear(3, 3)
    with pytest.raises(ValueError, match="x→h and edge h→y share parameters"):
        SuperNetwork([("x", "h", shared), ("h", "y", shared)], "x", "y")
    with pytest.raises(TypeError, match="x→y carries a function"):
        SuperNetwork([("x", "y", lambda x: x)], "x", "y")


def test_wrong_batch_of_masks_is_refused():
    with pytest.raises(ValueError, match=r"\[4, 7\]"):
        small_net()(torch.randn(4, 3, 6, 6), torch.ones(3, 7, dtype=torch.bool))


def test_state_dict_survives_and_training_updates_only_selected_modules():
    net = small_net()
    mask = torch.tensor([True, False, True, False, False, True, False])
    net(torch.randn(4, 3, 6, 6), mask).sum().backward()
    with_grad = {
        e for e, m in enumerate(net.edge_modules) if any(p.grad is not None for p in m.parameters())
    }
    assert with_grad == {0, 5}
    twin = small_net(seed=1)
    twin.load_state_dict(net.state_dict())
    x = torch.randn(2, 3, 6, 6)
    assert torch.equal(net.eval()(x), twin.eval()(x))


def test_edge_accepts_names_and_kinds():
    net = SuperNetwork([Edge("x", "y", nn.Linear(2, 2), "mine", "linear")], "x", "y")
    assert net.graph.edges[0].name == "mine" and net.graph.of_kind("linear") == [0]
    assert Architecture.full(net.graph).edges == ("mine",)


def test_real_weights_of_ones_and_zeros_are_a_mask():
    net = small_net().eval()
    x = torch.randn(4, 3, 6, 6)
    for mask in random_masks(net, 6, 0.7):
        torch.testing.assert_close(net(x, weights=mask.float()), net(x, mask))
    mask = random_masks(net, 4, 0.7)
    torch.testing.assert_close(net(x, mask, torch.ones(7)), net(x, mask))
    torch.testing.assert_close(net(x, mask, mask[0].float()), net(x, mask & mask[0]))
    assert torch.equal(net(x, weights=torch.zeros(7)), torch.zeros(4, 5))
    with pytest.raises(ValueError, match=r"weights of shape \[6\].*expected \[7\]"):
        net(x, weights=torch.ones(6))


def test_real_weights_have_the_right_gradient():
    net = small_net(channels=2).double().eval()
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    w = torch.rand(7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda w: net(x, weights=w), w)


def test_every_way_through_the_network_ends_with_the_op_of_the_sink():
    edges = [("x", "h", nn.Linear(3, 4)), ("h", "y", nn.Linear(4, 5)), ("x", "y", nn.Linear(3, 5))]
    net = SuperNetwork(edges, "x", "y", node_ops={"y": nn.Softmax(1)}, input_shape=(3,)).eval()
    x, full = torch.randn(4, 3), torch.ones(4, 3, dtype=torch.bool)
    extracted = Architecture.full(net.graph).extract(net)
    for y in (net(x), net(x, full), net(x, full[0]), net(x, weights=torch.ones(3)), extracted(x)):
        torch.testing.assert_close(
            y, net.edge_modules[2](x).add(net.edge_modules[1](net.edge_modules[0](x))).softmax(1)
        )
