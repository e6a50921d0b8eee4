"""One point of a cost–accuracy plot: search under a budget, take the network out, measure it.

Everything is a plain value, so that a trial can be repeated from a table row, sent to another
process and resumed. A *share* is a budget divided by the cost of the full super-network.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nas_core import costs, data
from nas_core.search.budgeted import BudgetConfig, budgeted
from nas_core.search.run import Run
from nas_core.spaces import conv_fabric, plain_resnet, resnet_fabric
from nas_core.supernet import Architecture, BernoulliSampler, SuperNetwork
from nas_core.training import TrainConfig, evaluate, seed_everything, train_classifier

COSTS: dict[str, Callable[[SuperNetwork], costs.AdditiveCost]] = {
    "computation": costs.computation,
    "memory": costs.memory,
}
SPACES: dict[str, Callable[..., SuperNetwork]] = {
    "resnet_fabric": resnet_fabric,
    "conv_fabric": conv_fabric,
}


@dataclass(frozen=True)
class Setup:
    """What is searched, and on what."""

    space: str = "resnet_fabric"  # a name in SPACES
    space_args: tuple[tuple[str, Any], ...] = (("blocks_per_group", 3),)  # of its builder
    dataset: str = "digits"  # see nas_core.data
    size: int | None = None  # of embedded images, in pixels
    train_limit: int | None = None  # number of training images; all of them if None
    val_limit: int | None = None  # number of validation images
    cost: str = "computation"  # a name in COSTS
    device: str = "cpu"

    def load(self, seed: int) -> data.Dataset:
        """The data set; the division into training and validation follows the seed."""
        images = data.load(
            self.dataset,
            size=self.size,
            train_limit=self.train_limit,
            device=self.device,
            seed=seed,
        )
        if self.val_limit is not None and self.val_limit < len(images.val):
            images = replace(images, val=images.val.subset(range(self.val_limit)))
        return images

    def build(self, images: data.Dataset, seed: int) -> SuperNetwork:
        """The super-network with weights drawn from the seed."""
        seed_everything(seed)
        return SPACES[self.space](
            **dict(self.space_args), num_classes=len(images.classes), input_shape=images.input_shape
        )


@dataclass
class Trial:
    """A measured network, and how it was found."""

    row: dict[str, Any]  # plain values, a line of the results table
    network: nn.Module  # the derived network, recalibrated
    supernet: SuperNetwork
    architecture: Architecture
    run: Run | None = None  # None for networks that were not searched


def search_trial(
    setup: Setup,
    share: float,
    config: BudgetConfig,
    *,
    checkpoint: str | Path | None = None,
    progress: bool | str = False,
) -> Trial:
    """Search with the budget at `share` of the full cost and measure what is found.

    The derived network keeps the weights of the search; its batch-norm statistics are
    re-estimated on the training data. Selecting belongs on `val_accuracy`, reporting on
    `test_accuracy`.
    """
    images = setup.load(config.seed)
    net = setup.build(images, config.seed)
    cost = COSTS[setup.cost](net)
    full = cost(torch.ones(1, net.num_edges, dtype=torch.bool)).item()
    sampler = BernoulliSampler(net.graph, fixed=net.graph.of_kind("stem", "head"))
    start = time.perf_counter()
    run = budgeted(
        net, sampler, cost, share * full, images, config, checkpoint=checkpoint, progress=progress
    )
    seconds = time.perf_counter() - start
    network = derive(run.architecture, net, images)
    row = {
        "kind": "budgeted",
        "share": share,
        "lam": config.lam,
        "meets_budget": run.meets_budget,
        "entropy": float(run.history.entropy.iloc[-1]),
        **_measured(network, run.architecture, images, full, run.cost),
        "seed": config.seed,
        "seconds": round(seconds, 1),
    }
    return Trial(row, network, net, run.architecture, run)


def plain_trial(
    setup: Setup,
    config: TrainConfig,
    architecture: Architecture | None = None,
    *,
    kind: str = "ResNet",
    checkpoint: str | Path | None = None,
    progress: bool | str = False,
) -> Trial:
    """Train one fixed architecture from scratch: the baseline at its own cost.

    Args:
        architecture: of the space of `setup`; the plain ResNet of a ResNet fabric when None.
    """
    images = setup.load(config.seed)
    net = setup.build(images, config.seed)
    arch = plain_resnet(net.graph) if architecture is None else architecture
    cost = COSTS[setup.cost](net)
    full = cost(torch.ones(1, net.num_edges, dtype=torch.bool)).item()
    network = arch.extract(net)
    start = time.perf_counter()
    train_classifier(network, images, config, checkpoint=checkpoint, progress=progress)
    seconds = time.perf_counter() - start
    own = cost(arch.mask.unsqueeze(0)).item()
    row = {
        "kind": kind,
        "share": own / full,
        **_measured(network, arch, images, full, own),
        "seed": config.seed,
        "seconds": round(seconds, 1),
    }
    return Trial(row, network, net, arch)


def derive(
    architecture: Architecture,
    supernet: SuperNetwork,
    images: data.Dataset,
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
        train_classifier(network, images, retrain, progress=False)
    return network.eval()


def front(
    setup: Setup,
    shares: Sequence[float],
    seeds: Sequence[int],
    config: BudgetConfig,
    plain: TrainConfig,
    *,
    checkpoint: Callable[[str], Path | None] = lambda name: None,
    progress: bool = False,
) -> list[Trial]:
    """A budgeted search for every share and seed, and the plain ResNet for every seed.

    Args:
        checkpoint: file for a trial of this name, or None; finished trials are read back from it.
    """
    trials = []
    for seed in seeds:
        for share in shares:
            name = f"share-{share:g}-seed-{seed}"
            trials.append(
                search_trial(
                    setup,
                    share,
                    replace(config, seed=seed),
                    checkpoint=checkpoint(name),
                    progress=name if progress else False,
                )
            )
        name = f"plain-seed-{seed}"
        trials.append(
            plain_trial(
                setup,
                replace(plain, seed=seed),
                checkpoint=checkpoint(name),
                progress=name if progress else False,
            )
        )
    return trials


def describe(setup: Setup, config: BudgetConfig | TrainConfig) -> dict[str, Any]:
    """Setup and configuration as plain values, to be stored beside results."""
    return {"setup": asdict(setup), "config": asdict(config)}


def _measured(
    network: nn.Module, arch: Architecture, images: data.Dataset, full: float, cost: float
) -> dict[str, Any]:
    network.eval()
    return {
        "cost": cost,
        "cost_share": cost / full,
        "macs": arch.macs,
        "params": arch.params,
        "edges": len(arch.kept),
        "val_accuracy": evaluate(network, images.val)["accuracy"],
        "test_accuracy": evaluate(network, images.test)["accuracy"],
    }
