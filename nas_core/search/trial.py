"""After a search: a shortlist, the chosen network alone, and the trials of chapter 03.

`shortlist` and `derive` take any search. `Setup` and what follows describe the trials of the
chapter as plain values, which can be repeated from a table row, sent to another process and
resumed. A *share* is a budget divided by the cost of the full super-network.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nas_core import costs, data, spaces, training
from nas_core.search.budgeted import BudgetConfig, budgeted
from nas_core.search.run import Run
from nas_core.supernet import Architecture, BernoulliSampler, ChoiceSampler, SuperNetwork
from nas_core.training import Splits, TrainConfig


def shortlist(
    supernet: SuperNetwork, sampler: BernoulliSampler | ChoiceSampler, cost: costs.Cost,
    budget: float, examples: Splits, *,
    size: int = 5, compared: int = 40, draws: int = 1000, seed: int = 0,
) -> list[Architecture]:  # fmt: skip
    """Affordable architectures drawn from Γ, best first; train each alone for a short time, choose.

    Of `draws` samples the `compared` ones that cost most within the budget are ranked by their loss
    on `examples.val` with the shared weights. Batch norm uses the statistics of the batch for that,
    since its running ones mix architectures. At most `size` are returned.
    """
    graph = supernet.graph
    drawn = sampler.sample(draws, torch.Generator().manual_seed(seed)).mask.cpu()
    masks = torch.unique(graph.reachable(drawn), dim=0)  # [N, E]
    prices = costs.price(cost, masks)
    affordable = masks.any(1) & (prices <= budget)
    masks, prices = masks[affordable], prices[affordable]
    masks = masks[prices.argsort(descending=True, stable=True)[:compared]]
    norms = [m for m in supernet.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    tracked = [norm.track_running_stats for norm in norms]
    with training.eval_mode(supernet):
        try:
            for norm in norms:  # statistics of the batch, while the running ones stay as they are
                norm.training, norm.track_running_stats = True, False
            nets = [partial(supernet, mask=mask) for mask in masks]
            losses = [training.evaluate(net, examples.val)["loss"] for net in nets]
        finally:
            for norm, tracks in zip(norms, tracked, strict=True):
                norm.track_running_stats = tracks
    order = sorted(range(len(masks)), key=losses.__getitem__)[:size]
    return [Architecture.from_mask(graph, masks[n]) for n in order]


def derive(
    architecture: Architecture,
    supernet: SuperNetwork,
    images: Splits,
    retrain: TrainConfig | None = None,
) -> nn.Module:
    """The chosen network on its own: extract, recalibrate batch norm, and train on if asked to.

    Args:
        retrain: continue training the extracted weights on `images.train`; None leaves them.

    Returns:
        A plain module in eval mode; `architecture.export_onnx(network, path)` writes it.
    """
    batches = images.train.plain().batches(256, seed=0, shuffle=True)
    network = architecture.extract(supernet, recalibrate=batches)
    if retrain is not None:
        training.train_classifier(network, images, retrain, progress=False)
    return network.eval()


# ------------------------------------------------------------------- trials of chapter 03


@dataclass(frozen=True)
class Setup:
    """What is searched, and on what."""

    space: str = "resnet_fabric"  # a builder in nas_core.spaces
    space_args: tuple[tuple[str, Any], ...] = (("blocks_per_group", 3),)  # of the builder
    dataset: str = "digits"  # see nas_core.data
    size: int | None = None  # of embedded images, in pixels
    train_limit: int | None = None  # number of training images; all of them if None
    val_limit: int | None = None  # number of validation images
    cost: str = "computation"  # a function of nas_core.costs: "computation" or "memory"
    device: str = "cpu"

    def load(self, seed: int) -> data.Dataset:
        """The data set; the division into training and validation follows the seed."""
        how: Any = {"size": self.size, "train_limit": self.train_limit, "device": self.device}
        images = data.load(self.dataset, seed=seed, **how)
        if self.val_limit is not None and self.val_limit < len(images.val):
            images = replace(images, val=images.val.subset(range(self.val_limit)))
        return images

    def start(self, seed: int) -> tuple[data.Dataset, SuperNetwork, costs.AdditiveCost, float]:
        """Data, super-network, its cost, and what everything in it costs together."""
        images = self.load(seed)
        training.seed_everything(seed)
        shape = {"num_classes": len(images.classes), "input_shape": images.input_shape}
        net = getattr(spaces, self.space)(**dict(self.space_args), **shape)
        cost = getattr(costs, self.cost)(net)
        return images, net, cost, cost(torch.ones(1, net.num_edges, dtype=torch.bool)).item()


@dataclass
class Trial:
    """A measured network, and how it was found."""

    row: dict[str, Any]  # plain values, a line of the results table
    network: nn.Module  # the derived network, recalibrated
    supernet: SuperNetwork
    architecture: Architecture
    run: Run | None = None  # None for networks that were not searched


def search_trial(
    setup: Setup, share: float, config: BudgetConfig, *,
    checkpoint: str | Path | None = None, progress: bool | str = False,
) -> Trial:  # fmt: skip
    """Search with the budget at `share` of the full cost and measure what is found.

    The derived network keeps the weights of the search; its batch-norm statistics are
    re-estimated on the training data. Select by `val_accuracy`, report `test_accuracy`.
    """
    images, net, cost, full = setup.start(config.seed)
    sampler = BernoulliSampler(net.graph, fixed=net.graph.of_kind("stem", "head"))
    start = time.perf_counter()
    run = budgeted(
        net, sampler, cost, share * full, images, config, checkpoint=checkpoint, progress=progress
    )
    seconds = time.perf_counter() - start
    network = derive(run.architecture, net, images)
    entropy = float(run.history.entropy.iloc[-1])
    found = {"lam": config.lam, "meets_budget": run.meets_budget, "entropy": entropy}
    measured = _measured(network, run.architecture, images, run.cost, full)
    end = {"seed": config.seed, "seconds": round(seconds, 1)}
    row = {"kind": "budgeted", "share": share, **found, **measured, **end}
    return Trial(row, network, net, run.architecture, run)


def plain_trial(
    setup: Setup, config: TrainConfig, architecture: Architecture | None = None, *,
    checkpoint: str | Path | None = None, progress: bool | str = False,
) -> Trial:  # fmt: skip
    """Train one fixed architecture from scratch: the baseline at its own cost.

    Args:
        architecture: of the space of `setup`; the plain ResNet of a ResNet fabric when None.
    """
    images, net, cost, full = setup.start(config.seed)
    arch = spaces.plain_resnet(net.graph) if architecture is None else architecture
    network = arch.extract(net)
    start = time.perf_counter()
    training.train_classifier(network, images, config, checkpoint=checkpoint, progress=progress)
    end = {"seed": config.seed, "seconds": round(time.perf_counter() - start, 1)}
    own = cost(arch.mask.unsqueeze(0)).item()
    measured = _measured(network.eval(), arch, images, own, full)
    kind = "ResNet" if architecture is None else "given"
    return Trial({"kind": kind, "share": own / full, **measured, **end}, network, net, arch)


def _measured(
    network: nn.Module, arch: Architecture, images: data.Dataset, cost: float, full: float
) -> dict[str, Any]:
    size: dict[str, Any] = {"macs": arch.macs, "params": arch.params, "edges": len(arch.kept)}
    for name, part in (("val_accuracy", images.val), ("test_accuracy", images.test)):
        size[name] = training.accuracy(network, part)
    return {"cost": cost, "cost_share": cost / full, **size}


def front(
    setup: Setup, shares: Sequence[float], seeds: Sequence[int], config: BudgetConfig,
    plain: TrainConfig, *,
    checkpoint: Callable[[str], Path | None] = lambda name: None, progress: bool = False,
) -> list[Trial]:  # fmt: skip
    """For every seed a budgeted search with every share, and the plain ResNet.

    Args:
        checkpoint: file for a trial of this name, or None; finished trials are read back from it.
    """
    trials = []
    for seed in seeds:
        for share in shares:
            name, own = f"share-{share:g}-seed-{seed}", replace(config, seed=seed)
            how: Any = {"checkpoint": checkpoint(name), "progress": progress and name}
            trials.append(search_trial(setup, share, own, **how))
        name = f"plain-seed-{seed}"
        how = {"checkpoint": checkpoint(name), "progress": progress and name}
        trials.append(plain_trial(setup, replace(plain, seed=seed), **how))
    return trials
