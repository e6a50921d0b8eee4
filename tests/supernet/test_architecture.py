"""Architectures: identity, extraction, recalibration, ONNX."""

import networkx as nx
import pytest
import torch
from torch import nn

from nas_core.supernet import (
    Architecture,
    Edge,
    SuperNetwork,
    count_params,
    recalibrate_batch_norm,
)
from tests.supernet.graphs import small_net


def chosen(net, *off: int) -> Architecture:
    mask = torch.ones(net.num_edges, dtype=torch.bool)
    mask[list(off)] = False
    return Architecture.from_mask(net.graph, mask)


def test_dead_ends_are_dropped():
    net = small_net()
    arch = chosen(net, 4, 6)  # without c→b and c→y nothing leaves c
    assert arch.kept == (0, 1, 2, 5)
    assert arch.edges == ("x→a", "a→b", "skip", "b→y")
    assert not arch.is_empty and chosen(net, 0).is_empty


def test_identity_hash_and_json():
    net = small_net()
    a, b = chosen(net, 3), chosen(small_net(seed=1), 3)
    assert a == b and hash(a) == hash(b) and len({a, b, chosen(net, 1)}) == 2
    assert Architecture.from_json(net.graph, a.to_json()) == a
    other = SuperNetwork([("x", "y", nn.Linear(1, 1))], "x", "y")
    with pytest.raises(ValueError, match="belongs to the space 'supernet'"):
        Architecture.from_json(other.graph, a.to_json())


def test_networkx_view():
    graph = chosen(small_net(), 3).to_networkx()
    assert isinstance(graph, nx.MultiDiGraph)
    assert graph.number_of_edges("a", "b") == 2 and "c" not in graph
    assert graph["a"]["b"]["skip"]["kind"] == "shortcut"


def test_extracted_network_equals_the_masked_one():
    net = small_net().eval()
    x = torch.randn(4, 3, 6, 6)
    for off in [(), (3,), (1, 3), (2, 6)]:
        arch = chosen(net, *off)
        plain = arch.extract(net)
        torch.testing.assert_close(plain(x), net(x, arch.mask), atol=1e-6, rtol=1e-6)
        assert count_params(plain) == arch.params
        assert not any(isinstance(m, SuperNetwork) for m in plain.modules())


def test_extracted_network_owns_its_weights():
    net = small_net()
    plain = chosen(net, 3).extract(net)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with torch.no_grad():
        for p in plain.parameters():
            p.zero_()
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in before.items())


def test_extracting_nothing_or_from_elsewhere_is_refused():
    net = small_net()
    with pytest.raises(ValueError, match="without a path"):
        chosen(net, 0).extract(net)
    other = SuperNetwork([("x", "y", nn.Linear(1, 1))], "x", "y")
    with pytest.raises(ValueError, match="belongs to the space 'supernet'"):
        chosen(net).extract(other)


def test_recalibration_gives_the_statistics_of_the_data():
    net = small_net()
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.fill_(7.0)
    batches = [torch.randn(16, 3, 6, 6) for _ in range(4)]
    arch = chosen(net, 3)
    plain = arch.extract(net, recalibrate=[(x, None) for x in batches])
    with torch.no_grad():
        maps = plain.x_a[0](torch.cat(batches))
    torch.testing.assert_close(
        plain.x_a[1].running_mean, maps.mean((0, 2, 3)), atol=1e-5, rtol=1e-4
    )
    assert plain.x_a[1].momentum == 0.1
    assert net.edge_modules[0][1].running_mean[0] == 7.0  # the super-network is left alone


def test_recalibration_keeps_modes():
    net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).eval()
    recalibrate_batch_norm(net, [torch.randn(8, 3)])
    assert not net.training and not net[1].training


def test_onnx_export_equals_pytorch(tmp_path):
    net = small_net().eval()
    arch = chosen(net, 3)
    assert arch.export_onnx(net, tmp_path / "net.onnx") < 1e-5
    assert (tmp_path / "net.onnx").stat().st_size > 1000


def test_onnx_export_that_differs_is_refused(tmp_path):
    class Noisy(nn.Module):
        def forward(self, x):
            return x + torch.rand_like(x)

    net = SuperNetwork([("x", "y", Noisy())], "x", "y", input_shape=(3,))
    with pytest.raises(ValueError, match="differ by"):
        Architecture.full(net.graph).export_onnx(net, tmp_path / "net.onnx")
    assert not (tmp_path / "net.onnx").exists()


def test_onnx_needs_an_input_shape(tmp_path):
    net = SuperNetwork([("x", "y", nn.Linear(3, 3))], "x", "y")
    with pytest.raises(ValueError, match="input_shape"):
        Architecture.full(net.graph).export_onnx(net, tmp_path / "net.onnx")


def test_extraction_keeps_the_op_of_the_sink():
    edges = [("x", "y", nn.Linear(3, 4)), ("x", "y", nn.Linear(3, 4))]
    net = SuperNetwork(edges, "x", "y", node_ops={"x": nn.Tanh(), "y": nn.Softmax(1)})
    plain, x = Architecture.full(net.graph).extract(net), torch.randn(5, 3)
    torch.testing.assert_close(plain(x), net(x))
    torch.testing.assert_close(plain(x).sum(1), torch.ones(5))


@pytest.mark.parametrize(
    "name",
    ["global", "None", "class", "x", "graph", "code", "forward", "training", "keys", "x²", "1",
     "$x^2$", "→", "ﬁ", "_modules", "__init__", "self", "print"],
)  # fmt: skip
def test_edges_of_any_name_are_extracted(name):
    edges = [Edge("x", "h", nn.Linear(3, 3), name), Edge("h", "y", nn.Linear(3, 3), f"{name}.2")]
    net = SuperNetwork(edges, "x", "y", input_shape=(3,))
    x = torch.randn(2, 3)
    torch.testing.assert_close(Architecture.full(net.graph).extract(net)(x), net(x))


@pytest.mark.parametrize(
    "norm", [nn.utils.weight_norm, nn.utils.spectral_norm, nn.utils.parametrizations.weight_norm]
)
@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
def test_hooks_that_compute_weights_survive_extraction(norm, tmp_path):
    net = SuperNetwork(
        [("x", "h", norm(nn.Linear(3, 3))), ("h", "y", nn.Linear(3, 2))], "x", "y", input_shape=(3,)
    )
    x = torch.randn(4, 3)
    net(x).sum().backward()  # the weight is now a tensor with a history
    net.eval()
    plain = Architecture.full(net.graph).extract(net)
    torch.testing.assert_close(plain(x), net(x))
    plain.train()
    before = [p.clone() for p in plain.parameters()]
    torch.optim.SGD(plain.parameters(), 0.1).zero_grad()
    plain(x).square().sum().backward()
    torch.optim.SGD(plain.parameters(), 0.1).step()
    assert any(not torch.equal(a, b) for a, b in zip(before, plain.parameters(), strict=True))


def test_extraction_keeps_the_mode_of_every_module():
    net = small_net()
    net.edge_modules[0].eval()  # a frozen stem
    plain = chosen(net).extract(net)
    assert plain.training and not plain.x_a.training and plain.a_b.training


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not an architecture written"),
        ("[]", "not an architecture written"),
        ('{"fingerprint": "FP", "space": "supernet"}', "not an architecture written"),
        ('{"fingerprint": "FP", "space": "s", "edges": ["x→a", "skip", "b→y", "c→b"]}', "no path"),
        ('{"fingerprint": "FP", "space": "s", "edges": ["x→a", "skip", "b→y", "b→y"]}', "twice"),
        ('{"fingerprint": "FP", "space": "s", "edges": ["nope"]}', "no edge called 'nope'"),
        ('{"fingerprint": "FP", "space": "s", "edges": 3}', "not an architecture written"),
        ('{"fingerprint": "0", "space": "s", "edges": []}', "belongs to the space 's' .0.*FP"),
    ],
)  # fmt: skip
def test_damaged_records_are_refused(text, words):
    graph = small_net().graph
    text, words = (t.replace("FP", graph.fingerprint) for t in (text, words))
    with pytest.raises(ValueError, match=words):
        Architecture.from_json(graph, text)


def normed(*before: nn.Module) -> nn.Sequential:
    return nn.Sequential(*before, nn.BatchNorm1d(2))


def test_recalibration_leaves_nothing_of_the_old_statistics():
    for old in (7.0, float("nan"), float("inf")):
        net = normed()
        net[0].running_mean.fill_(old)
        net[0].running_var.fill_(old)
        x = torch.randn(8, 2)
        recalibrate_batch_norm(net, [x])
        torch.testing.assert_close(net[0].running_mean, x.mean(0))
        torch.testing.assert_close(net[0].running_var, x.var(0))


def test_recalibration_weights_batches_by_their_rows():
    net, x = normed(), torch.randn(10, 2)
    recalibrate_batch_norm(net, [x[:6], x[6:8], x[8:]])
    torch.testing.assert_close(net[0].running_mean, x.mean(0))
    variances = [x[:6].var(0) * 6, x[6:8].var(0) * 2, x[8:].var(0) * 2]
    torch.testing.assert_close(net[0].running_var, sum(variances) / 10)


def test_recalibration_keeps_dropout_off_and_gradients_away():
    net, x = normed(nn.Dropout(0.9)).train(), torch.randn(400, 2) * 0.5
    net[1].momentum = 0.3
    recalibrate_batch_norm(net, [x])
    torch.testing.assert_close(net[1].running_var, x.var(0))
    assert net.training and net[0].training and net[1].training and net[1].momentum == 0.3
    assert not net[1]._forward_pre_hooks


def test_recalibration_needs_batches():
    net = normed()
    net[0].running_mean.fill_(7.0)
    used_up = iter([torch.randn(4, 2)])
    next(used_up)
    for nothing in ([], used_up, (b for b in [])):
        with pytest.raises(ValueError, match="no batch .* used up"):
            recalibrate_batch_norm(net, nothing)
    assert net[0].running_mean[0] == 7 and net.training
    with pytest.raises(ValueError, match="one value per channel"):
        recalibrate_batch_norm(net, [torch.randn(1, 2)] * 3)
    recalibrate_batch_norm(nn.Linear(2, 2), [torch.randn(1, 2)])  # nothing to do


def test_a_last_batch_of_one_row_with_1x1_maps_passes_recalibration():
    net, x = normed(nn.Linear(2, 2)), torch.randn(9, 2)
    recalibrate_batch_norm(net, [(x[:8], None), (x[8:], None)])
    torch.testing.assert_close(net[1].running_mean, net[0](x[:8]).mean(0).detach())


def test_recalibration_within_a_super_network_touches_what_is_called():
    net = small_net()
    net.edge_modules[1][1].running_mean.fill_(7.0)
    mask = torch.tensor([True, False, True, False, False, True, False])
    wrapped = nn.ModuleList([net])
    wrapped.forward = lambda x: net(x, mask)
    recalibrate_batch_norm(wrapped, [torch.randn(4, 3, 6, 6), torch.randn(1, 3, 6, 6)])
    assert net.edge_modules[1][1].running_mean[0] == 7
    assert net.edge_modules[0][1].running_mean.abs().sum() > 0


def test_onnx_of_doubles(tmp_path):
    net = SuperNetwork([("x", "y", nn.Linear(3, 2))], "x", "y", input_shape=(3,)).double()
    assert Architecture.full(net.graph).export_onnx(net, tmp_path / "net.onnx") < 1e-6
