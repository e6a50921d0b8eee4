"""Chapter 03: for every band a control that must fall outside it."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nas_core import costs
from nas_core.search import BudgetConfig
from nas_core.search.trial import Setup, search_trial
from nas_core.spaces import kept_by_group, plain_resnet, resnet_fabric
from nas_core.supernet import Architecture, BernoulliSampler
from nas_core.training import evaluate
from nas_core.workbook import chapter
from tests.notebooks.book import assert_all_named, claimed, separates

CHAPTER = "03_budgeted_super_networks"
CLAIMED = claimed(CHAPTER)


@pytest.fixture(scope="module")
def smoke():
    cfg = chapter(CHAPTER, device="cpu")
    setup = Setup(
        space_args=(("blocks_per_group", cfg.blocks), ("channels", tuple(cfg.channels))),
        dataset=cfg.dataset,
        size=cfg.size,
        train_limit=cfg.train_limit,
    )
    config = BudgetConfig(
        epochs=cfg.epochs,
        warmup_epochs=cfg.warmup_epochs,
        batch_size=cfg.batch_size,
        lr=cfg.lr,
        milestones=tuple(cfg.milestones),
        gamma_lr=cfg.gamma_lr,
        gamma_momentum=cfg.gamma_momentum,
        lam=cfg.lam,
    )
    return setup, config, cfg.shares


@pytest.fixture(scope="module")
def paid(smoke):
    """A search that pays for computation."""
    setup, config, shares = smoke
    return search_trial(setup, shares[-1], config)


@pytest.fixture(scope="module")
def free(smoke):
    """The same search with λ = 0."""
    setup, config, shares = smoke
    return search_trial(setup, shares[0], replace(config, lam=0.0))


def outside(name: str, control: float) -> bool:
    return separates(CLAIMED[name], float(control))


def test_counting_without_additions_misses_the_printed_figure():
    fabric = resnet_fabric(3)
    arch = plain_resnet(fabric.graph)
    exact = costs.computation(fabric)(arch.mask[None])
    assert outside("operations of ResNet-20 in the thesis' convention", exact)
    assert outside("parameters of ResNet-20", costs.memory(fabric).per_edge.sum())


def test_ignoring_the_sample_changes_the_output():
    torch.manual_seed(0)
    net = resnet_fabric(3, 10, channels=(4, 8, 16), input_shape=(3, 8, 8)).eval()
    sampler = BernoulliSampler(net.graph, logit=0.5, fixed=net.graph.of_kind("stem", "head"))
    mask = sampler.sample(32, torch.Generator().manual_seed(0)).mask
    x = torch.randn(32, 3, 8, 8)
    gap = (net(x, mask) - net(x)).abs().max()
    assert outside("largest difference between 32 networks at once and one by one", gap)


def test_without_lambda_budgets_are_not_met(free, paid):
    assert outside("share of the searches that meet their budget", free.row["meets_budget"])
    assert outside("cost with λ = 0, as a share of the full network", paid.row["cost_share"])


def test_an_untrained_network_is_at_chance(smoke):
    setup, _, _ = smoke
    images = setup.load(0)
    _, net, *_ = setup.start(0)
    untrained = Architecture.full(net.graph).extract(net).eval()
    chance = evaluate(untrained, images.test)["accuracy"]
    assert outside(
        "test accuracy of the worst network found, relative to the ResNet", chance / 0.95
    )


def test_a_frozen_distribution_keeps_its_entropy(smoke):
    setup, config, shares = smoke
    frozen = search_trial(
        replace(setup, train_limit=100),
        shares[0],
        replace(config, gamma_lr=0.0, epochs=2, warmup_epochs=1, milestones=()),
    )
    sampler = BernoulliSampler(
        frozen.supernet.graph, fixed=frozen.supernet.graph.of_kind("stem", "head")
    )
    left = frozen.row["entropy"] / sampler.entropy().item()
    assert outside("entropy left at the end, as a share of that at γ = 0.95", left)


def test_paying_for_computation_does_not_spare_the_upper_rows(paid):
    *upper, last = kept_by_group(paid.architecture)
    control = sum(upper) / 2 - last
    name = "blocks kept in the upper rows minus in the last row, paying for memory"
    assert outside(name, control)


def test_leaving_the_network_alone_changes_nothing(paid, smoke):
    images = smoke[0].load(0)
    inside = plain_resnet(paid.supernet.graph)
    stale = [inside.extract(paid.supernet).eval() for _ in range(2)]
    a, b = (evaluate(net, images.val)["loss"] for net in stale)
    name = "validation loss of the ResNet inside: trained on / as left"
    assert outside(name, a / b)


def test_another_network_differs_from_the_exported_one(paid):
    x = torch.randn(4, 1, 8, 8)
    other = Architecture.full(paid.supernet.graph).extract(paid.supernet).eval()
    gap = (paid.network(x) - other(x)).abs().max()
    assert outside("largest difference between PyTorch and onnxruntime", gap)


def test_every_band_has_a_control():
    assert_all_named(CLAIMED, Path(__file__).read_text())
