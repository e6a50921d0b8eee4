"""Schedules of the report, and the training loop that grows and prunes along them."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import torch
from torch import Tensor

from nas_core.growing import pruning
from nas_core.growing.network import GrowingNetwork, all_exits, exits_loss, tau
from nas_core.training import Splits, make_optimizer, run_epochs, set_lr, train_epoch


@dataclass(frozen=True)
class Schedule:
    """When the learning rate falls, blocks grow and blocks are pruned.

    Everything happens before the epoch of that number, counted from 0: a block that is pruned at
    epoch 10 has been trained for ten epochs. The defaults are report table 5.
    """

    epochs: int = 250
    lr: float = 0.01
    milestones: tuple[int, ...] = (120, 160, 180)
    gammas: tuple[float, ...] = (0.1, 0.01, 0.01)  # factor of each milestone
    grow: tuple[int, ...] = (25, 50, 75)  # births of blocks 1, 2, …; () trains all from the start
    prune: tuple[int, ...] = ()
    steps: int = 1  # prunings until a block has reached its ratio: 1 is one-shot

    def __post_init__(self) -> None:
        if len(self.milestones) != len(self.gammas) or self.lr <= 0 or self.steps < 1:
            raise ValueError(f"{self} needs a gamma per milestone, lr above 0 and a step")
        for epochs in (self.milestones, self.grow, self.prune):
            if list(epochs) != sorted(set(epochs)) or {-1, *epochs} - {*range(-1, self.epochs + 1)}:
                raise ValueError(f"epochs {epochs} must be increasing, in 0…{self.epochs}")

    def lr_at(self, epoch: int) -> float:
        """Learning rate: lr times the factor of every milestone that was reached."""
        passed = zip(self.milestones, self.gammas, strict=True)
        return self.lr * math.prod(gamma for m, gamma in passed if m <= epoch)

    def prunings(self, births: tuple[int, ...] | None = None) -> list[tuple[int, int, int]]:
        """All prunings as (epoch, block, step), step in 1 … steps.

        Every pruning epoch prunes all blocks that are older than it and below their number of
        steps. One-shot: each block once, at the first pruning epoch after its birth.
        """
        events = []
        for block, birth in enumerate((0, *self.grow) if births is None else births):
            epochs = [epoch for epoch in self.prune if epoch > birth][: self.steps]
            events += [(epoch, block, step) for step, epoch in enumerate(epochs, start=1)]
        return sorted(events)

    def scaled(self, epochs: int) -> Schedule:
        """The same shares of another number of epochs; events stay in order and apart."""

        def place(old: tuple[int, ...], rounding: Callable[[float], int]) -> tuple[int, ...]:
            new: list[int] = []
            for e in old:
                new.append(max(rounding(e * epochs / self.epochs), new[-1] + 1 if new else 1))
            if new and new[-1] >= epochs:
                raise ValueError(f"{epochs} epochs are too few for the events {old}")
            return tuple(new)

        # Pruning is rounded up and growing down, so that a block has been trained when pruned.
        milestones = place(self.milestones, round)
        grow, prune = place(self.grow, math.floor), place(self.prune, math.ceil)
        return replace(self, epochs=epochs, milestones=milestones, grow=grow, prune=prune)


BASELINE = Schedule(100, 0.1, (35, 60, 85), (0.1, 0.1, 0.1), ())  # table 1
GROWN = Schedule()  # table 5
ONE_SHOT = replace(GROWN, prune=(10, 35, 60, 85))  # table 6
ITERATIVE = replace(GROWN, prune=(10, 35, 60, 85, 95, 105, 115), steps=3)  # section 4.2


@dataclass(frozen=True)
class GrowConfig:
    """Everything that determines a run besides network and data."""

    schedule: Schedule = GROWN
    keep: float | tuple[float, ...] = 1.0  # share of every block's weights at the end
    # "snip ratios": random within every layer, as many per layer as SNIP would keep
    score: Literal["snip", "magnitude", "random", "snip ratios"] = "snip"
    reinit: pruning.Reinit = "none"  # before SNIP scores
    score_examples: int = 128  # of the batch that SNIP scores
    ramp: bool = True  # τ of the internal classifiers' losses rises; False: all weights are 1
    batch_size: int = 128
    momentum: float = 0.9
    weight_decay: float = 1e-4
    seed: int = 0
    best: bool = True  # end with the best validation epoch after the last growth and pruning


@dataclass
class Grown:
    """What a run leaves besides the trained network."""

    history: Any  # a row per epoch: lr, loss, blocks, kept, val_0 …, val_accuracy (the deepest)
    masks: dict[str, Tensor]  # by name of the weight
    births: tuple[int, ...]  # epoch of every block
    best_epoch: int | None


def grow_and_prune(
    net: GrowingNetwork,
    data: Splits,
    config: GrowConfig,
    *,
    grow_when: Callable[[GrowingNetwork, list[dict[str, float]]], bool] | None = None,
    checkpoint: str | Path | None = None,
    progress: bool | str = True,
) -> Grown:
    """Train `net` along the schedule, in place (report figures 15 and 17).

    Every epoch first prunes, then grows, then trains all classifiers on `exits_loss`. No weight is
    frozen; new ones get the current learning rate. `net` has one block if the schedule grows.

    Args:
        grow_when: `grow_when(net, rows so far)` decides before every epoch whether a block is
            grown, instead of the schedule: a plateau of the loss, or multiply-adds to spare.
        checkpoint: as in `run_epochs`; belongs to this plan, these data and this configuration.
    """
    schedule = config.schedule
    keeps = config.keep if isinstance(config.keep, tuple) else (config.keep,) * len(net.plan.cells)
    net.to(data.train.device)
    optimizer = make_optimizer(
        net.parameters(), lr=schedule.lr, momentum=config.momentum, weight_decay=config.weight_decay
    )
    generator = torch.Generator().manual_seed(config.seed)
    births = [0] * net.blocks  # of blocks that were there from the start
    rows: list[dict[str, float]] = []
    parts = pruning.weights(net)
    masks: dict[str, Tensor] = {}
    hold = pruning.hold(optimizer, parts, masks)  # sees what is added to either later
    best: tuple[float, int, dict[str, Tensor]] | None = None

    def loss(x: Tensor, y: Tensor, epoch: int) -> Tensor:
        logits = net.exits(x)
        depths = net.plan.depths[: len(logits) - 1]
        ramp = tau(epoch, schedule.epochs, depths) if config.ramp else [1.0] * len(depths)
        return exits_loss(logits, y, ramp)

    def prune(epoch: int, block: int, step: int) -> None:
        """Keep int(r · n) of the n weights of a block: classifier, projections, stem included."""
        # Drawn from another seed: the batch is not the first of this epoch.
        batches = data.train.batches(config.score_examples, seed=config.seed + 1, epoch=epoch)
        net.train()
        mine = pruning.weights(net, net.block(block))
        ratio = pruning.keep_ratio(keeps[block], step, schedule.steps)
        keep = pruning.keep_count(ratio, sum(w.numel() for w in mine.values()))
        within = pruning.keep_all(mine) | {k: masks[k] for k in mine if k in masks}
        scored = partial(loss, *next(batches), epoch)
        scores = pruning.magnitude(mine)
        if config.score == "random":
            scores = pruning.random(mine, generator)
        elif config.score != "magnitude":
            scores = pruning.snip(mine, scored, module=net, reinit=config.reinit)
        new = pruning.keep_best(scores, keep, within=within)
        if config.score == "snip ratios":
            counts, scores = pruning.layer_counts(new), pruning.random(mine, generator)
            new = pruning.keep_best(scores, counts, within=within)
        masks.update(new)
        pruning.apply(parts, masks)

    def one_epoch(epoch: int) -> dict[str, float]:
        nonlocal best
        due = [event for event in schedule.prunings(tuple(births)) if event[0] == epoch]
        for _, block, step in due:
            prune(epoch, block, step)
        wanted = epoch in schedule.grow if grow_when is None else grow_when(net, rows)
        if grows := wanted and net.blocks < len(net.plan.cells):
            optimizer.add_param_group({"params": net.grow()})
            births.append(epoch)
            parts.update(pruning.weights(net))
        if due or grows:
            best = None  # a network before its last growth or pruning is another network
        set_lr(optimizer, schedule.lr_at(epoch))
        net.train()
        lonely = len(data.train) > config.batch_size and len(data.train) % config.batch_size == 1
        size, seed = config.batch_size, config.seed
        batches = data.train.batches(size, seed=seed, epoch=epoch, drop_last=lonely)
        value = train_epoch(batches, lambda x, y: loss(x, y, epoch), optimizer)
        logits, y = all_exits(net, data.val)
        right = (logits.argmax(-1) == y).double().mean(1).tolist()  # [exits]
        row = {
            "lr": schedule.lr_at(epoch), "loss": value, "blocks": net.blocks,
            "kept": pruning.count(parts), **{f"val_{i}": a for i, a in enumerate(right)},
            "val_accuracy": right[-1],
        }  # fmt: skip
        if config.best and (best is None or right[-1] > best[0]):
            best = (right[-1], epoch, copy.deepcopy(net.state_dict()))
        rows.append(row)
        return row

    def save() -> dict[str, Any]:
        names = {p: name for name, p in net.named_parameters()}
        return {
            "births": births, "masks": masks, "rows": rows, "best": best,
            "generator": generator.get_state(), "optimizer": optimizer.state_dict(),
            "groups": [[names[p] for p in group["params"]] for group in optimizer.param_groups],
        }  # fmt: skip

    def restore(saved: dict[str, Any]) -> None:
        """Give `net` the blocks it had then, in place; its weights are loaded afterwards."""
        nonlocal best
        again = GrowingNetwork(net.plan, len(saved["births"])).to(data.train.device)
        net.__dict__.update(again.__dict__)
        named = dict(net.named_parameters())
        optimizer.param_groups.clear()
        optimizer.state.clear()
        for group in saved["groups"]:
            optimizer.add_param_group({"params": [named[name] for name in group]})
        optimizer.load_state_dict(saved["optimizer"])
        parts.clear()
        masks.clear()
        parts.update(pruning.weights(net))
        masks.update(saved["masks"])
        births[:], rows[:], best = saved["births"], saved["rows"], saved["best"]
        generator.set_state(saved["generator"])

    state = {"growth": SimpleNamespace(state_dict=save, load_state_dict=restore), "net": net}
    identity: dict[str, Any] = {}
    if checkpoint is not None:
        made_by = {"plan": asdict(net.plan), "grow_when": grow_when is not None}
        prints = {"train data": data.train.fingerprint(), "val data": data.val.fingerprint()}
        identity = asdict(config) | made_by | prints
    try:
        result = run_epochs(
            one_epoch, schedule.epochs, state=state, checkpoint=checkpoint, config=identity,
            progress=progress,
        )  # fmt: skip
    finally:
        hold.remove()
    if best is not None:
        net.load_state_dict(best[2])
    return Grown(result.history.frame(), masks, tuple(births), best[1] if best else None)
