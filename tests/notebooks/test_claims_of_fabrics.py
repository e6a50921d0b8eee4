"""Every band of chapters 04 and 05 fails where its claim does not hold."""

import math

import pytest
import torch

from nas_core import costs, data, search, spaces, supernet
from nas_core.training import evaluate
from tests.notebooks.book import assert_separated, claimed


@pytest.fixture(scope="module")
def four():
    return claimed("04")


@pytest.fixture(scope="module")
def five():
    return claimed("05")


def free_search(columns: int, epochs: int = 3):
    """A search in which nothing has a price: what the bands must tell from a budget."""
    torch.manual_seed(0)
    net = spaces.conv_fabric(columns, 3, 8, 10, input_shape=(1, 8, 8))
    sampler = supernet.BernoulliSampler(net.graph, fixed=net.graph.of_kind("stem", "head"))
    config = search.BudgetConfig(
        epochs=epochs, warmup_epochs=1, batch_size=50, lr=0.1, milestones=(), lam=0.0, gamma_lr=1.0
    )
    cost = costs.computation(net)
    budget = cost(torch.ones(1, net.num_edges, dtype=torch.bool)).item()
    digits = data.load("digits", train_limit=300)
    run = search.budgeted(net, sampler, cost, budget, digits, config, progress=False)
    return net, run, digits


def test_controls_of_chapter_04(four):
    net, run, digits = free_search(3)
    mask = run.architecture.mask.unsqueeze(0)
    full = torch.ones_like(mask)
    controls = {
        # Seven columns instead of eight.
        "parameters of the W=8 fabric": count(7, costs.memory),
        # The wrong convention, either way.
        "thesis cost of the W=8 fabric in M": count(8, costs.computation) / 1e6,
        "true macs of the W=8 fabric in M": count(8, lambda n: costs.computation(n, "thesis"))
        / 1e6,
        # No price.
        "computation: cost / full cost": ratio(costs.computation(net), mask, full),
        "memory: cost / full cost": ratio(costs.memory(net), mask, full),
        "edges kept, computation over memory": 1.0,
        # No training.
        "accuracy of the cheap network": untrained(mask[0], digits),
        # No search: Γ as it starts.
        "entropy left / entropy at the start": 1.0,
        # Weights drawn anew when extracting.
        "accuracy after extracting, minus before": untrained(mask[0], digits) - 0.95,
        **segmentation_controls(),
    }
    assert_separated(four, controls)


def untrained(mask, digits):
    torch.manual_seed(1)
    net = spaces.conv_fabric(3, 3, 8, 10, input_shape=(1, 8, 8)).eval()
    return evaluate(lambda x: net(x, mask), digits.test)["accuracy"]


def segmentation_controls():
    faces = data.load("faces", size=16, train_limit=2)
    y = faces.test.y
    return {
        "pixel accuracy at 40 % of the cost": torch.bincount(y.flatten()).max().item() / y.numel(),
        "segmentation: cost / full cost": 1.0,
        "segmentation: share of macs, memory minus computation": 0.0,  # the same network for both
    }


def test_controls_of_chapter_05(five):
    net, run, _ = free_search(4)
    mask, graph = run.architecture.mask.unsqueeze(0), net.graph
    full = torch.ones_like(mask)
    inner = [e for e in range(len(graph)) if graph.edges[e].kind not in ("stem", "head")]
    kept = [e for e in inner if mask[0, e]]
    where = costs.sides(graph, 0.5)
    prices_cost = costs.per_edge(graph, costs.random_prices(graph, 0))
    cloud = costs.per_edge(graph, costs.cloud_prices(graph, 0.5, device=1, network=10, server=0.1))
    controls = {
        # A scheduler that ignores the units reproduces only the n = 1 column and W = 1.
        "printed cycle counts reproduced": 6,
        # Projections forgotten, or counted when they run in parallel.
        "cycles of ResNet-20 on one unit": 20,
        "cycles of ResNet-20 on two units": 22,
        # A block of two cycles whose sum is free: 424, 231 and 134 cycles are in no table.
        "tables that print the cost of the whole fabric": 0,
        # Bounds that hold for no schedule: those of twice as many units.
        "samples outside the bounds of the theory": wrong_bounds(net),
        # A cost that is a sum.
        "worst relative error of the best sum, n = 4": residual_of_a_sum(net),
        "budget missed by n = 1 and n = 4": sum(
            costs.Distributed(net, n)(mask).item() > 12 for n in (1, 4)
        ),
        # The same network for both.
        "edges kept, n = 4 over n = 1": 1.0,
        "most operations in one cycle, n = 4 minus n = 1": 0,
        # No price.
        "mean price of a kept edge / of all edges": kept_price(graph, kept, inner),
        "random price found / of everything": ratio(prices_cost, mask, full),
        "edges that cross the network": sum(where[e] == "network" for e in kept),
        "share of the edges on the server": device_only(where, inner),
        "rank correlation of table and measurement": 0.0,
        "price found under noise / price of everything": ratio(cloud, mask, full),
        "energy saved by the n = 1 network": 0.0,
    }
    assert_separated(five, controls)


def kept_price(graph, kept, inner):
    price = costs.per_edge(graph, costs.random_prices(graph, 0)).per_edge
    return (price[kept].mean() / price[inner].mean()).item()


def wrong_bounds(net):
    sampler = supernet.BernoulliSampler(net.graph, logit=1.5)
    masks = net.graph.reachable(sampler.sample(200, torch.Generator().manual_seed(0)).mask)
    masks = masks[masks.any(1)]
    t = {n: costs.Distributed(net, n)(masks) for n in (1, 2, math.inf)}
    return int((t[2] > torch.maximum((t[1] / 4).ceil(), t[math.inf])).sum())


def residual_of_a_sum(net):
    sampler = supernet.BernoulliSampler(net.graph, logit=1.5)
    masks = net.graph.reachable(sampler.sample(200, torch.Generator().manual_seed(0)).mask)
    values, kept = costs.computation(net)(masks), masks.double()
    prices = torch.linalg.lstsq(kept, values.unsqueeze(1), driver="gelsd").solution
    return (((kept @ prices).squeeze(1) - values).abs().max() / values.mean()).item()


def device_only(where, inner):
    """A network that stays on the device as long as it can: column 0, one call, the last way."""
    on_device = sum(where[e] == "device" for e in inner)
    return 2 / (on_device + 1 + 2)


def count(columns, cost_of):
    net = spaces.conv_fabric(columns, 6, 128, 10)
    return cost_of(net)(torch.ones(1, net.num_edges, dtype=torch.bool)).item()


def ratio(cost, mask, full):
    return (cost(mask) / cost(full)).item()
