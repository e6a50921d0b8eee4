"""Every cost drives the same search: stochastic, measured, black-box, and broken ones."""

import math

import pytest
import torch

from nas_core import costs, data, search, spaces, supernet


def fabric(columns=2):
    torch.manual_seed(0)
    return spaces.conv_fabric(columns, 3, 4, 10, input_shape=(1, 8, 8))


def run(net, cost, budget, *, epochs=8, lam=10.0):
    sampler = supernet.BernoulliSampler(net.graph, fixed=net.graph.of_kind("stem", "head"))
    config = search.BudgetConfig(
        epochs=epochs,
        warmup_epochs=1,
        batch_size=50,
        lr=0.1,
        milestones=(),
        lam=lam,
        gamma_lr=10.0,
        gamma_momentum=0.9,
    )
    digits = data.load("digits", train_limit=400)
    return search.budgeted(net, sampler, cost, budget, digits, config, progress=False)


class Noisy:
    """Multiply-adds as a share of the full network, times a random delay of mean 1."""

    def __init__(self, net):
        self.exact, self.full = costs.computation(net), float(net.graph.macs.sum())
        self.generator = torch.Generator().manual_seed(0)

    def __call__(self, mask):
        delay = torch.empty(len(mask)).exponential_(generator=self.generator)
        return self.exact(mask) / self.full * delay


def test_a_stochastic_cost_makes_the_network_cheaper_and_a_free_one_does_not():
    net = fabric()
    priced = run(net, Noisy(net), 0.3)
    share = priced.architecture.macs / int(net.graph.macs.sum())
    assert share < 0.5
    free = fabric()
    untouched = run(free, Noisy(free), 0.3, lam=0.0)
    assert share < 0.8 * untouched.architecture.macs / int(free.graph.macs.sum())


def test_fresh_latency_drives_a_search():
    net = fabric()
    cost = costs.Latency(net, fresh=True)
    found = run(net, cost, 1e6, epochs=2)
    assert found.cost_unit == "ms" and found.history["cost_mean"].gt(0).all()


def test_a_latency_table_drives_a_search():
    net = fabric()
    table = costs.latency_table(net, repeats=3, warmup=1).cost(net.graph)
    full = table(torch.ones(1, net.num_edges, dtype=torch.bool)).item()
    found = run(net, table, 0.6 * full)
    start, end = (found.history["cost_mean"].iloc[i] for i in (1, -1))
    assert end < 0.7 * full and end < start


def test_exactly_one_edge_crosses_a_dear_network_and_the_work_is_done_behind_it():
    net = fabric(3)
    prices = costs.cloud_prices(net, 0.5, device=1, network=10, server=0.1)
    found = run(net, costs.per_edge(net, prices), 13, epochs=14)
    where = costs.sides(net, 0.5)
    inner = [e for e in found.architecture.kept if net.graph.edges[e].kind not in ("stem", "head")]
    count = {side: sum(where[e] == side for e in inner) for side in ("device", "network", "server")}
    assert count["network"] == 1 and count["server"] > count["device"]
    # Control: without a price the whole border is crossed.
    free = fabric(3)
    everything = run(free, costs.per_edge(free, prices), 13, lam=0.0, epochs=3)
    assert sum(where[e] == "network" for e in everything.architecture.kept) > 3


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda mask: mask.double(), r"returned shape \[.*one number each"),
        (lambda mask: torch.tensor(1.0), r"returned shape \[\]"),
        (lambda mask: torch.full((len(mask),), math.nan), "returned nan"),
    ],
)
def test_a_cost_that_returns_nonsense_is_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        run(fabric(), wrong, 1.0, epochs=2)
