"""Architectures: identity, extraction, recalibration, ONNX."""

import networkx as nx
import pytest
import torch
from torch import nn

from nas_core.supernet import Architecture, SuperNetwork, count_params, recalibrate_batch_norm
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
    with pytest.raises(ValueError, match="differs"):
        Architecture.full(net.graph).export_onnx(net, tmp_path / "net.onnx")
    assert not (tmp_path / "net.onnx").exists()


def test_onnx_needs_an_input_shape(tmp_path):
    net = SuperNetwork([("x", "y", nn.Linear(3, 3))], "x", "y")
    with pytest.raises(ValueError, match="input_shape"):
        Architecture.full(net.graph).export_onnx(net, tmp_path / "net.onnx")
