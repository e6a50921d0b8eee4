"""Measured latency: what is measured, how often, and the table made from it."""

import json
from dataclasses import replace

import pytest
import torch
from scipy.stats import binom
from torch import nn

from nas_core.costs import price
from nas_core.costs.latency import (
    Latency,
    LatencyTable,
    Timing,
    check_table,
    latency_table,
)
from nas_core.spaces import conv_fabric
from nas_core.supernet import SuperNetwork
from nas_core.training import describe_device, time_call


class FakeClock:
    """Time that only `spend` moves, so that timings are exact."""

    def __init__(self):
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_warm_up_is_not_measured_and_the_median_is():
    clock = FakeClock()
    durations = iter([100.0, 100.0, *[1.0, 5.0, 2.0, 4.0, 3.0]])

    def call():
        clock.now += next(durations)

    timing = time_call(call, repeats=5, warmup=2, clock=clock)
    assert timing == Timing(median=3000.0, low=1000.0, high=5000.0, repeats=5)


def test_the_interval_covers_the_true_median_as_often_as_it_says():
    generator = torch.Generator().manual_seed(0)
    n, trials, hits = 20, 1000, 0
    true_median = torch.log(torch.tensor(2.0)).item()  # of the exponential distribution
    for _ in range(trials):
        samples = iter(torch.empty(n).exponential_(generator=generator).tolist())
        clock = FakeClock()

        def call(samples=samples, clock=clock):
            clock.now += next(samples)

        timing = time_call(call, repeats=n, warmup=0, clock=clock)
        hits += timing.low <= 1e3 * true_median <= timing.high
    exact = 1 - 2 * binom.cdf(5, n, 0.5)  # 95.9 %
    assert abs(hits / trials - exact) < 0.02


def test_the_device_is_waited_for_around_every_call(monkeypatch):
    waits = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: waits.append(device.type))
    time_call(lambda: None, "cuda", repeats=3, warmup=2)
    assert waits == ["cuda"] * 6


@pytest.mark.parametrize("options", [{"repeats": 0}, {"warmup": -1}, {"confidence": 1.0}])
def test_bad_measurement_settings_are_refused(options):
    with pytest.raises(ValueError, match="need repeats"):
        time_call(lambda: None, **options)


class Busy(nn.Module):
    """A linear layer that notes its calls and how it was called."""

    def __init__(self):
        super().__init__()
        self.layer, self.calls = nn.Linear(4, 4), []

    def forward(self, x):
        self.calls.append((len(x), self.training, torch.is_inference_mode_enabled()))
        return self.layer(x)


def two_paths() -> tuple[SuperNetwork, torch.Tensor]:
    net = SuperNetwork(
        [("x", "a", Busy()), ("x", "b", Busy()), ("a", "y", Busy()), ("b", "y", Busy())],
        "x", "y", input_shape=(4,),
    )  # fmt: skip
    for module in net.edge_modules:
        module.calls.clear()  # of counting multiply-adds
    return net, torch.tensor([[True, False, True, False], [False, True, False, True]])


def test_only_kept_modules_run_in_evaluation_mode_and_once_per_architecture():
    net, masks = two_paths()
    net.train()
    net.edge_modules[0].eval()
    cost = Latency(net, batch_size=3, repeats=4, warmup=2)
    first = cost(masks[:1])
    assert [len(m.calls) for m in net.edge_modules] == [6, 0, 6, 0]
    assert set(net.edge_modules[0].calls) == {(3, False, True)}
    assert torch.equal(cost(masks[[0, 0]]), first.repeat(2))
    assert len(net.edge_modules[0].calls) == 6  # remembered
    assert net.training and not net.edge_modules[0].training  # modes are back
    assert cost(torch.zeros(1, 4, dtype=torch.bool)).item() == 0
    assert cost.timing(masks[0]).repeats == 4


def test_fresh_latency_is_stochastic_and_times_once_per_call():
    net, masks = two_paths()
    cost = Latency(net, fresh=True)
    values = torch.cat([cost(masks) for _ in range(5)])
    assert [len(m.calls) for m in net.edge_modules] == [5] * 4
    assert len(values.unique()) > 1
    assert price(cost, masks).shape == (2,)


def test_a_network_that_computes_more_takes_longer():
    net = conv_fabric(3, 4, 32, 10, input_shape=(3, 32, 32))
    full = torch.ones(net.num_edges, dtype=torch.bool)
    narrow = torch.zeros(net.num_edges, dtype=torch.bool)
    narrow[net.graph.of_kind("stem", "head", "down")] = True
    cost = Latency(net, batch_size=4, repeats=9)
    slow, fast = (cost.timing(net.graph.reachable(m)) for m in (full, narrow))
    assert fast.low <= fast.median <= fast.high and fast.median < slow.median


def test_table_prices_every_edge_and_its_error_is_reported(tmp_path):
    net = conv_fabric(3, 4, 32, 10, input_shape=(3, 32, 32))
    table = latency_table(net, batch_size=4, repeats=9)
    assert set(table.edges) == {e.name for e in net.graph.edges} and table.error is None
    torch.manual_seed(0)
    masks = net.graph.reachable(torch.rand(12, net.num_edges) < 0.8)
    checked = check_table(table, Latency(net, batch_size=4, repeats=9), masks)
    error = checked.error
    assert error["networks"] >= 6 and error["median_relative"] <= error["worst_relative"]
    assert error["rank_correlation"] > 0.5
    checked.save(tmp_path / "table.json")
    again = LatencyTable.load(tmp_path / "table.json")
    assert again == checked
    cost = again.cost(net.graph)
    by_hand = checked.factor * sum(t.median for t in table.edges.values())
    assert cost(torch.ones(1, net.num_edges, dtype=torch.bool)).item() == pytest.approx(by_hand)
    assert cost.unit == "ms"


def test_the_reported_error_is_that_of_the_sum():
    """With invented timings factor and error are known; a wrong table is not called good."""
    edges = [(a, b, Busy()) for m in "abc" for a, b in (("x", m), (m, "y"))]
    net = SuperNetwork(edges, "x", "y", input_shape=(4,))
    paths = torch.eye(3, dtype=torch.bool).repeat_interleave(2, dim=1)
    masks = torch.cat([paths, paths[:1] | paths[1:2], torch.ones(1, 6, dtype=torch.bool)])
    masks = masks.unique(dim=0)  # c, b, a, a + b, all
    truth = Latency(net)
    for mask, value in zip(masks, (8.0, 4.0, 2.0, 6.0, 14.0), strict=True):
        truth._known["cpu torch.float32", _key(mask)] = Timing(value, value, value, 1)

    def table(*prices):
        names = [e.name for e in net.graph.edges]
        timings = [Timing(p, p, p, 1) for p in prices]
        edges = dict(zip(names, timings, strict=True))
        return LatencyTable(net.graph.name, net.graph.fingerprint, describe_device("cpu"), 1, edges)

    good = check_table(table(0.5, 0.5, 1, 1, 2, 2), truth, masks)
    exact = {"networks": 5, "median_relative": 0, "worst_relative": 0, "rank_correlation": 1}
    assert good.factor == 2 and good.error == pytest.approx(exact)
    assert torch.equal(good.cost(net.graph)(masks), truth(masks))
    # Sums 2, 4, 8, 12, 14 of a table that has a and c the wrong way round: factor 1 (the median
    # of 4, 1/4, 1), then 4 for 4 and 12 for 6.
    bad = check_table(table(4, 4, 2, 2, 1, 1), truth, masks)
    assert bad.factor == 1 and bad.error["worst_relative"] == 1
    assert bad.error["rank_correlation"] < 0.5


def _key(mask):
    import numpy as np

    return np.packbits(mask.numpy()).tobytes()


def test_bad_tables_are_refused(tmp_path):
    net, masks = two_paths()
    table = latency_table(net, repeats=1, warmup=0)
    other = conv_fabric(1, 2, 2, 10)
    with pytest.raises(ValueError, match="this latency table belongs to the space 'supernet'"):
        table.cost(other.graph)
    with pytest.raises(ValueError, match="with batch_size 1, not 2"):
        check_table(table, Latency(net, batch_size=2), masks)
    with pytest.raises(ValueError, match="give at least 4"):
        check_table(table, Latency(net), masks)
    for text in ("{", "[]", json.dumps({"edges": {"a": 1}})):
        (tmp_path / "t.json").write_text(text)
        with pytest.raises(ValueError, match="not a latency table"):
            LatencyTable.load(tmp_path / "t.json")
    bare = SuperNetwork([("x", "y", nn.Linear(2, 2))], "x", "y")
    for build in (Latency, latency_table):
        with pytest.raises(ValueError, match="input_shape"):
            build(bare)
    with pytest.raises(ValueError, match="batch_size is 0"):
        Latency(net, batch_size=0)


def test_a_network_without_parameters_or_of_doubles_is_measured():
    pool = SuperNetwork([("x", "y", nn.AvgPool1d(2))], "x", "y", input_shape=(3, 4))
    doubles = SuperNetwork([("x", "y", nn.Linear(4, 2))], "x", "y", input_shape=(4,)).double()
    for net in (pool, doubles):
        before = torch.get_rng_state()
        assert Latency(net, repeats=1, warmup=0)(torch.ones(1, 1, dtype=torch.bool)).item() > 0
        assert latency_table(net, repeats=1, warmup=0).edges["x→y"].repeats == 1
        assert torch.equal(before, torch.get_rng_state())  # training draws the same with it
    assert latency_table(doubles, repeats=1, warmup=0).dtype == "float64"


def test_an_edge_is_measured_with_the_op_of_the_node_it_leads_to():
    edges = [("x", "h", nn.Linear(4, 4)), ("h", "y", nn.Linear(4, 4))]
    op = Busy()
    net = SuperNetwork(edges, "x", "y", node_ops={"h": op}, input_shape=(4,))
    op.calls.clear()
    latency_table(net, batch_size=2, repeats=3, warmup=1)
    assert op.calls == [(2, False, True)] * 4  # only for the edge into h


def test_a_table_knows_the_conditions_it_was_measured_under(tmp_path):
    net, _ = two_paths()
    table = latency_table(net, repeats=1, warmup=0)
    assert table.cost(net.graph, "cpu").unit == "ms"
    phone = replace(table, device="phone")
    assert phone.cost(net.graph).name == "latency table (phone)"
    with pytest.raises(ValueError, match="with device 'phone', not 'cpu: "):
        phone.cost(net.graph, "cpu")
    for change in ({"device": "phone"}, {"dtype": "float16"}, {"torch_version": "0.1"}):
        key, value = next(iter(change.items()))
        with pytest.raises(ValueError, match=f"with {key} '{value}', not "):
            check_table(replace(table, **change), Latency(net), torch.ones(1, 4).bool())
    other = SuperNetwork(
        [(a, b, nn.Linear(4, 4)) for a, b in ("xa", "xb", "ay", "by")], "x", "y", input_shape=(4,)
    )
    with pytest.raises(ValueError, match="belongs to the space"):
        table.cost(other.graph)


@pytest.mark.parametrize(
    ("timing", "words"),
    [
        (Timing(-1.0, -2.0, 0.0, 3), "impossible times"),
        (Timing(float("nan"), 0.0, 1.0, 3), "impossible times"),
        (Timing(2.0, 0.0, 1.0, 3), "impossible times"),
    ],
)
def test_impossible_times_are_refused(timing, words, tmp_path):
    net, _ = two_paths()
    table = latency_table(net, repeats=1, warmup=0)
    with pytest.raises(ValueError, match=words):
        replace(table, edges={**table.edges, "x→a": timing})
    with pytest.raises(ValueError, match="factor above 0"):
        replace(table, factor=-1.0)
    missing = replace(table, edges={"x→a": table.edges["x→a"]})
    with pytest.raises(ValueError, match=r"no time for edges \['x→b', 'a→y', 'b→y'\]"):
        missing.cost(net.graph)
    table.save(tmp_path / "t.json")
    text = (tmp_path / "t.json").read_text().replace('"repeats": 1', '"repeats": 1, "more": 0')
    (tmp_path / "t.json").write_text(text)
    with pytest.raises(ValueError, match="not a latency table"):
        LatencyTable.load(tmp_path / "t.json")


def test_measurements_are_remembered_per_device_and_dtype():
    net, masks = two_paths()
    cost = Latency(net, repeats=1, warmup=0)
    cost(masks[:1])
    assert [where for where, _ in cost._known] == ["cpu torch.float32"]
