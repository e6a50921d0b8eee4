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


def test_a_single_row_does_not_crash_batch_norm_at_a_node_either():
    norm = nn.BatchNorm2d(3)
    norm.running_mean.fill_(0.5)
    net = SuperNetwork(
        [("x", "a", nn.Identity()), ("a", "y", nn.Flatten()), ("x", "y", nn.Flatten())],
        "x", "y", node_ops={"a": norm}, input_shape=(3, 1, 1),
    )  # fmt: skip
    x = torch.randn(4, 3, 1, 1)
    mask = torch.ones(4, 3, dtype=torch.bool)
    mask[1:, 0] = False  # row 0 alone uses node a
    expected = x.flatten(1).clone()
    expected[0] = (2 * x[0] - 0.5).flatten()
    torch.testing.assert_close(net(x, mask), expected, atol=1e-4, rtol=1e-4)
    assert norm.training and norm.running_mean[0] == 0.5


class Starts(nn.Module):
    """A module that changes its input in place, in one mode or in both."""

    def __init__(self, only_training=False):
        super().__init__()
        self.only_training = only_training

    def forward(self, x):
        return x.mul_(2) if self.training or not self.only_training else x * 2


@pytest.mark.parametrize(
    "module",
    [
        nn.ReLU(inplace=True),
        nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 4)),
        nn.Sequential(nn.Identity(), nn.Hardtanh(inplace=True)),
        nn.Sequential(nn.Flatten(), nn.ReLU(inplace=True)),
        Starts(),
    ],
)
@pytest.mark.parametrize("place", ["edge", "op of node"])
def test_a_module_that_changes_its_input_is_refused_when_the_network_is_built(module, place):
    edges = [("x", "a", nn.Linear(4, 4)), ("a", "y", nn.Identity()), ("x", "y", nn.Identity())]
    if place == "edge":
        edges[1] = ("a", "y", module)
    ops = {"a": module} if place == "op of node" else None
    with pytest.raises(ValueError, match=f"{place} a.*changes its input in place.*inplace=False"):
        SuperNetwork(edges, "x", "y", node_ops=ops, input_shape=(4,))


@pytest.mark.parametrize("module", [nn.ReLU(inplace=True), Starts(only_training=True)])
def test_without_a_shape_or_in_training_alone_it_is_refused_when_it_is_called(module):
    net = SuperNetwork([("x", "y", module), ("x", "y", nn.Identity())], "x", "y")
    for mask in (None, torch.ones(2, dtype=torch.bool), torch.ones(3, 2, dtype=torch.bool)):
        with pytest.raises(ValueError, match="edge x→y changes its input in place"):
            net(torch.randn(3, 4), mask)


def test_in_place_layers_behind_others_are_fine():
    edges = [("x", "y", nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True)))]
    net = SuperNetwork([*edges, ("x", "y", nn.Identity())], "x", "y", input_shape=(4,))
    x = torch.randn(3, 4)
    kept = x.clone()
    net(x, torch.ones(3, 2, dtype=torch.bool)).sum().backward()
    assert torch.equal(x, kept)
    with torch.inference_mode():
        assert net(torch.randn(3, 4)).shape == (3, 4)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6))
def test_no_row_depends_on_the_masks_of_other_rows(seed):
    net = small_net().eval()
    x = torch.randn(6, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
    mask, other = random_masks(net, 6, 0.7, seed), random_masks(net, 6, 0.7, seed + 1)
    kept = x.clone()
    changed = torch.cat([mask[:3], other[3:]])
    torch.testing.assert_close(net(x, mask)[:3], net(x, changed)[:3], atol=1e-6, rtol=1e-5)
    assert torch.equal(x, kept)


@pytest.mark.parametrize(
    ("module", "shape", "words"),
    [
        (nn.LSTM(4, 4, batch_first=True), (5, 4), "edge a→y returns a tuple.*picks one"),
        (nn.MultiheadAttention(4, 2), (5, 4), "edge a→y cannot process a float32 input"),
        (nn.Flatten(0), (4,), r"edge a→y returns shape \[4\] for 1 examples"),
    ],
)
def test_modules_that_do_not_map_a_tensor_to_a_tensor_are_named(module, shape, words):
    edges = [("x", "a", nn.Identity()), ("a", "y", module)]
    with pytest.raises(ValueError, match=words):
        SuperNetwork(edges, "x", "y", input_shape=shape)


def test_without_a_shape_they_are_named_when_called():
    net = SuperNetwork([("x", "y", nn.LSTM(4, 4, batch_first=True))], "x", "y")
    with pytest.raises(ValueError, match="edge x→y returns a tuple.*nn.LSTM"):
        net(torch.randn(3, 5, 4))
    net = SuperNetwork([("x", "y", nn.Linear(4, 1)), ("x", "y", nn.Identity())], "x", "y")
    for mask in (None, torch.ones(3, 2, dtype=torch.bool)):
        with pytest.raises(ValueError, match="summands of shapes .* meet at y"):
            net(torch.randn(3, 4), mask)


class ReadsValues(nn.Module):
    """Cannot run on the meta device, where tensors have no values."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return self.layer(x) if x.sum().item() < 1e9 else x


class HiddenTable(nn.Module):
    """Holds a tensor that is no buffer, so it stays on its device."""

    def __init__(self):
        super().__init__()
        self.layer, self.table = nn.Linear(4, 4), torch.ones(4)

    def forward(self, x):
        return self.layer(x) + self.table


class UnsavedBuffer(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.register_buffer("table", torch.ones(4), persistent=False)

    def forward(self, x):
        return self.layer(x) + self.table


@pytest.mark.parametrize(
    "module",
    [
        ReadsValues(),
        HiddenTable(),
        UnsavedBuffer(),
        nn.Linear(4, 4).double(),
        nn.Linear(4, 4).half(),
    ],
)
def test_modules_that_cannot_be_counted_without_values_are_run(module):
    graph = SuperNetwork([("x", "y", module)], "x", "y", input_shape=(4,)).graph
    assert graph.macs.tolist() == [16] and graph.shapes["y"] == (4,)


def test_what_really_fails_is_told():
    class Breaks(nn.Module):
        def forward(self, x):
            raise KeyError("no such stock")

    with pytest.raises(ValueError, match="edge x→y cannot process .* 'no such stock'"):
        SuperNetwork([("x", "y", Breaks())], "x", "y", input_shape=(4,))


def test_parameters_of_two_modules_are_refused():
    a, b = nn.Linear(6, 6, bias=False), nn.Linear(6, 6)
    b.weight = a.weight  # 36 numbers that memory cost would count twice
    edges = [("x", "h", a), ("h", "y", b)]
    with pytest.raises(ValueError, match="edge x→h and edge h→y share parameters"):
        SuperNetwork(edges, "x", "y")
    norm = nn.BatchNorm1d(6)
    edges = [("x", "h", a), ("h", "y", nn.Linear(6, 6))]
    with pytest.raises(ValueError, match="op of node h and the op of node y share parameters"):
        SuperNetwork(edges, "x", "y", node_ops={"h": norm, "y": norm})
    relu = nn.ReLU()  # nothing is shared but code
    SuperNetwork(edges, "x", "y", node_ops={"h": relu, "y": relu})
    tied = nn.Sequential(a, nn.Linear(6, 6, bias=False))
    tied[1].weight = a.weight  # within one edge: counted once
    net = SuperNetwork([("x", "y", tied)], "x", "y", input_shape=(6,))
    assert net.graph.params.tolist() == [36] and net.graph.macs.tolist() == [72]


def test_mixed_dtypes_meet_at_a_node_under_autocast():
    """A bfloat16 convolution and a float32 identity; also backwards."""
    edges = [("x", "a", conv(3, 3)), ("x", "a", nn.Identity()), ("a", "y", nn.Identity())]
    net = SuperNetwork(edges, "x", "y", input_shape=(3, 4, 4))
    x = torch.randn(4, 3, 4, 4, requires_grad=True)
    mask = torch.tensor([[1, 1, 1], [1, 0, 1], [0, 1, 1], [1, 1, 1]]).bool()
    expected = net.eval()(x, mask)
    with torch.autocast("cpu", torch.bfloat16):
        got = {"rows": net(x, mask), "all": net(x), "one": net(x, mask[0])}
    torch.testing.assert_close(got["rows"].float(), expected, atol=0.1, rtol=0.1)
    assert got["rows"].dtype == got["all"].dtype == got["one"].dtype == torch.float32
    got["rows"].sum().backward()
    assert x.grad.isfinite().all() and (x.grad != 0).any()


def test_shapes_follow_ops_that_change_them():
    edges = [("x", "a", conv(3, 2)), ("a", "y", nn.Linear(2, 5))]
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    net = SuperNetwork(
        edges, "x", "y", node_ops={"a": pool, "y": nn.Linear(5, 7)}, input_shape=(3, 4, 4)
    )
    assert net.graph.shapes == {"x": (3, 4, 4), "a": (2,), "y": (7,)}
    x, dead = torch.randn(2, 3, 4, 4), torch.zeros(2, dtype=torch.bool)
    assert net(x, dead).shape == net(x).shape == (2, 7)
    with pytest.raises(ValueError, match="op of the source x must keep the shape"):
        SuperNetwork(
            [("x", "y", nn.Linear(3, 3))], "x", "y", node_ops={"x": nn.Flatten()},
            input_shape=(3, 3),
        )  # fmt: skip
