"""Train one super-network, score many architectures with its weights.

`train_supernet` is one loop; how paths are drawn (`single_path`, `fair`), what is added to the loss
(`penalty`) and the settings make it SPOS, FairNAS, ENAS's shared weights, and the methods of the
following chapters.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas_core.ranking.spaces import Encoding, Space
from nas_core.spaces.cells import Cell, CellSpace
from nas_core.supernet import SuperNetwork
from nas_core.training import TensorData, cosine_lr, make_optimizer, set_lr

Draw = Callable[[random.Random], Sequence[Tensor]]
"""Masks `[E]` of one step. Their gradients are averaged before the weights move once."""


@dataclass(frozen=True)
class SuperNetConfig:
    """How a super-network is trained."""

    epochs: int = 100
    batch_size: int = 32
    lr: float = 0.025  # smaller than alone: the shared loss is rougher (section 6.4.2); cosine to 0
    momentum: float = 0.9
    weight_decay: float = 5e-4
    seed: int = 0  # of the paths and of the order of the examples

    def __post_init__(self) -> None:
        if self.epochs < 0 or self.batch_size < 2:
            raise ValueError(
                f"epochs {self.epochs} must be ≥ 0 and batch_size {self.batch_size} ≥ 2"
            )


@dataclass(frozen=True)
class Step:
    """What a penalty may look at, before the weights move."""

    number: int  # 0…total − 1
    total: int
    masks: Sequence[Tensor]  # bool [E], the paths of this step
    x: Tensor
    y: Tensor


Penalty = Callable[[nn.Module, Step], Tensor | None]
"""A term added to the loss of a step (weight plasticity, landmarks); None adds nothing."""


def train_supernet(
    net: SuperNetwork,
    draw: Draw,
    data: TensorData,
    config: SuperNetConfig,
    *,
    penalty: Penalty | None = None,
    after_epoch: Callable[[int], Any] | None = None,
) -> list[float]:
    """Train the shared weights in place; returns the mean loss of every epoch.

    Each step takes a batch and the paths of `draw`, and descends on the mean of their losses (and
    on the penalty once). The cost of an epoch grows with the number of paths per step.

    Args:
        net: weights come as they are; seed torch before building it.
        draw: `single_path(…)`, `fair(…)` or your own.
        after_epoch: called with the number of the finished epoch, for samplers that learn.

    Raises:
        FloatingPointError: when a loss is not finite.
    """
    if len(data) < config.batch_size:
        raise ValueError(f"{len(data)} examples are fewer than one batch of {config.batch_size}")
    rng = random.Random(config.seed)
    optimizer = make_optimizer(
        net.parameters(), lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay
    )
    per_epoch = len(data) // config.batch_size
    total, history, number = config.epochs * per_epoch, [], 0
    for epoch in range(config.epochs):
        net.train()
        losses: list[Tensor] = []  # stay on the device: no step waits for it
        batches = data.batches(config.batch_size, seed=config.seed, epoch=epoch, drop_last=True)
        for x, y in batches:
            set_lr(optimizer, cosine_lr(config.lr, number, total))
            masks = list(draw(rng))
            optimizer.zero_grad(set_to_none=True)
            for mask in masks:  # one graph at a time: memory does not grow with the paths
                loss = F.cross_entropy(net(x, mask), y) / len(masks)
                loss.backward()
                losses.append(loss.detach())
            if penalty and (term := penalty(net, Step(number, total, masks, x, y))) is not None:
                term.backward()
            optimizer.step()
            number += 1
        history.append(sum(torch.stack(losses).tolist()) / per_epoch)
        if not history[-1] < float("inf"):
            raise FloatingPointError(f"the loss is {history[-1]} in epoch {epoch}; lower lr")
        if after_epoch is not None:
            after_epoch(epoch)
    return history


def single_path(
    space: CellSpace, net: SuperNetwork, sample: Callable[[random.Random], Cell] | None = None
) -> Draw:
    """One architecture per step (SPOS): `space.sample`, uniform over encodings (Random-NAS).

    Args:
        sample: another rule, such as a uniform choice among `space.distinct()` (Random-A) or a
            controller (ENAS).
    """
    sample = sample or space.sample
    masks: dict[Cell, Tensor] = {}

    def draw(rng: random.Random) -> list[Tensor]:
        cell = sample(rng)
        while (mask := _mask(space, net, cell, masks)).sum() == 0:
            cell = sample(rng)  # connects nothing, so nothing can be trained
        return [mask]

    return draw


def fair(space: CellSpace, net: SuperNetwork) -> Draw:
    """FairNAS: as many paths per step as operations, each used once on every edge (section 6.4.3).

    Every edge of the cell draws its own permutation of the operations.
    """
    masks: dict[Cell, Tensor] = {}
    ops = range(len(space.ops))

    def draw(rng: random.Random) -> list[Tensor]:
        orders = [rng.sample(ops, len(ops)) for _ in space.edges]
        paths = [_mask(space, net, cell, masks) for cell in zip(*orders, strict=True)]
        return [mask for mask in paths if mask.any()]

    return draw


def _mask(space: CellSpace, net: SuperNetwork, cell: Cell, known: dict[Cell, Tensor]) -> Tensor:
    if cell not in known:
        known[cell] = space.mask(net, cell)
    return known[cell]


# ---------------------------------------------------------------- scores


@torch.no_grad()
def shared_scores(
    net: SuperNetwork,
    masks: Sequence[Tensor],
    data: TensorData,
    *,
    batch_size: int | None = None,
    statistics: str = "batch",
) -> Tensor:
    """Accuracy of architectures with the shared weights, float64 `[N]`.

    Args:
        batch_size: None evaluates everything in one batch. With statistics of the batch, take the
            size of training.
        statistics: "batch" normalizes by the batch at hand (`track_running_stats=False` of section
            6.4.1); "running" by the averages of training, which mix all architectures.
    """
    if statistics not in ("batch", "running"):
        raise ValueError(f"statistics is {statistics!r}; it must be 'batch' or 'running'")
    size = len(data) if batch_size is None else batch_size
    batches = list(data.batches(size, seed=0, shuffle=False))
    with _normalizing(net, by_batch=statistics == "batch"):
        right = [sum((net(x, mask).argmax(1) == y).sum() for x, y in batches) for mask in masks]
    return torch.tensor([int(count) for count in right], dtype=torch.float64) / len(data)


@contextmanager
def _normalizing(net: nn.Module, by_batch: bool) -> Iterator[None]:
    """Evaluation; batch norm uses the statistics of the batch and keeps its own as they are."""
    norms = [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    was, momenta = net.training, [norm.momentum for norm in norms]
    net.eval()
    try:
        for norm in norms if by_batch else ():
            norm.momentum = 0.0
            norm.train()
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        net.train(was)


# ---------------------------------------------------------------- what a search does with scores

Score = Callable[[Sequence[Encoding]], Sequence[float]]  # the larger the better


def best_of_random(space: Space, score: Score, rng: random.Random, count: int) -> Encoding:
    """The best of `count` random architectures, by their score."""
    cells = [space.sample(rng) for _ in range(count)]
    return max(zip(score(cells), cells, strict=True))[1]


def evolve(
    space: Space, score: Score, rng: random.Random, count: int, *, size: int = 50, sample: int = 10
) -> Encoding:
    """The best of `count` architectures that a regularised evolution asks for (SPOS + evolution).

    Args:
        size: of the population; the oldest is removed.
        sample: of the tournament, whose best is mutated.
    """
    first = [space.sample(rng) for _ in range(min(size, count))]
    alive = list(zip(score(first), first, strict=True))
    best = max(alive)
    for _ in range(count - len(alive)):
        child = space.mutate(max(rng.sample(alive, min(sample, len(alive))))[1], rng)
        alive = [*alive[1:], (score([child])[0], child)]
        best = max(best, alive[-1])
    return best[1]
