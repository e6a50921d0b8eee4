"""Growing, early exit and pruning measured: rows go to data/results/17_… and 18_….

    python benchmarks/growing_study.py grow
    python benchmarks/growing_study.py prune
    python benchmarks/growing_study.py tickets

All three use `colour_shapes` at 16×16; every seed draws its own images. A command that was stopped
goes on where it was.
"""

from __future__ import annotations

import argparse
import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from nas_core.data import Dataset, average_pool, load
from nas_core.growing import (
    GrowConfig,
    GrowingNetwork,
    Plan,
    Schedule,
    all_exits,
    exit_curve,
    exit_macs,
    grow_and_prune,
    overthinking,
    pruning,
)
from nas_core.search import grid, sweep
from nas_core.training import (
    TrainConfig,
    describe_device,
    evaluate,
    one_thread,
    pick_device,
    train_classifier,
)
from nas_core.workbook.results import record_result

BUILD = Path("build/growing_study")
SEEDS = (0, 1, 2, 3, 4)
PLAN = Plan(width=8, cells=(1, 1, 1, 1), dense=False, size=16, stem_pool=2)
THRESHOLDS = (0.0, 0.3, 0.5, 0.7, 0.9, 1.0)
FIXED = ("train", "epochs", "lr", "batch_size")


def images(train: int, seed: int) -> Dataset:
    return average_pool(load("colour_shapes", train_limit=train, seed=seed), 2)


def schedule(epochs: int, lr: float, grow: bool, steps: int = 0) -> Schedule:
    """The report's shares: growth at 10, 20, 30 % of the epochs, pruning 5 % after a birth.

    The rate falls tenfold at 60 and 85 %: the report's own falls end learning at 64 %.
    """
    tenth = max(2, epochs // 10)
    prune: tuple[int, ...] = ()
    if steps:
        last = 3 * tenth + 1
        prune = (1, tenth + 1, 2 * tenth + 1, last)
        prune += tuple(range(last + 1, last + 4)) if steps > 1 else ()
    return Schedule(
        epochs, lr, (int(0.6 * epochs), int(0.85 * epochs)), (0.1, 0.1),
        grow=(tenth, 2 * tenth, 3 * tenth) if grow else (), prune=prune, steps=max(1, steps),
    )  # fmt: skip


def measured(net: GrowingNetwork, data: Dataset) -> dict[str, Any]:
    """Accuracy of every exit on the test images, and what the network costs."""
    logits, y = all_exits(net, data.test)
    accuracy = (logits.argmax(-1) == y).double().mean(1).tolist()
    row = {f"exit_{i}": a for i, a in enumerate(accuracy)}
    row |= {"test_accuracy": accuracy[-1], "macs": exit_macs(net)[-1]}
    return row | {"weights": pruning.count(pruning.weights(net))}


# ------------------------------------------------------------------ (17) growing, and early exit

# Epochs at which a network that is whole from the start has cost what the grown one has: the grown
# one trains its four depths for 10, 10, 10 and 70 % of the epochs.
ROWS: dict[str, dict[str, Any]] = {
    "base": {"internal": False},
    "base+ic": {},
    "grown": {"grow": True},
    "grown, same head": {"grow": True, "internal": False},
    "base, equal compute": {"internal": False, "shorter": True},
    "base+ic, equal compute": {"shorter": True},
    "grown, rate × 10": {"grow": True, "faster": 10.0},
    "base+ic, rate × 10": {"faster": 10.0},
    "small, 1 cell": {"internal": False, "cells": 1},
    "small, 2 cells": {"internal": False, "cells": 2},
    "small, 3 cells": {"internal": False, "cells": 3},
}


def equal_epochs(epochs: int) -> int:
    """Epochs of the whole network with the multiply-adds of the grown one's `epochs`."""
    macs = exit_macs(GrowingNetwork(PLAN))
    births = (0, *schedule(epochs, 0.1, True).grow, epochs)
    spent = sum((births[b + 1] - births[b]) * m for b, m in enumerate(macs))
    return round(spent / macs[-1])


def grow_trial(row: str, seed: int, train: int, epochs: int, lr: float, batch_size: int) -> dict:
    one_thread()
    chosen = ROWS[row]
    data = images(train, seed)
    plan = replace(PLAN, internal=chosen.get("internal", True))
    plan = replace(plan, cells=plan.cells[: chosen.get("cells")])
    epochs = equal_epochs(epochs) if "shorter" in chosen else epochs
    plans = schedule(epochs, lr * chosen.get("faster", 1.0), chosen.get("grow", False))
    torch.manual_seed(seed)
    net = GrowingNetwork(plan, 1 if plans.grow else None)
    grown = grow_and_prune(
        net, data, GrowConfig(plans, batch_size=batch_size, seed=seed), progress=False
    )
    row_ = measured(net, data) | {"trained": epochs}
    row_["val_accuracy"] = float(grown.history["val_accuracy"].iloc[-1])
    if plan.internal:
        logits, y = all_exits(net, data.test)
        row_["overthinking"] = overthinking(logits, y).double().mean().item()
        row_["curve"] = exit_curve(logits, y, exit_macs(net), THRESHOLDS)
    return row_


# ---------------------------------------------------------------------- (18) pruning while growing

RULES: dict[str, dict[str, Any]] = {
    "SNIP": {},
    "SNIP, scores of random weights": {"reinit": "score only"},
    "SNIP, weights drawn anew": {"reinit": "persistent"},
    "SNIP, iterative": {"steps": 3},
    "magnitude": {"score": "magnitude"},
    "random": {"score": "random"},
    "random, SNIP's ratios": {"score": "snip ratios"},
}
CONTROLS = ("random, SNIP's ratios",)


def prune_trial(
    rule: str, keep: float, seed: int, train: int, epochs: int, lr: float, batch_size: int
) -> dict:
    one_thread()
    options = dict(RULES[rule])
    plans = schedule(epochs, lr, True, 0 if keep == 1 else options.pop("steps", 1))
    data = images(train, seed)
    torch.manual_seed(seed)
    net = GrowingNetwork(PLAN, 1)
    config = GrowConfig(plans, keep=keep, batch_size=batch_size, seed=seed, **options)
    grow_and_prune(net, data, config, progress=False)
    layers = {k: int(w.count_nonzero()) / w.numel() for k, w in pruning.weights(net).items()}
    return measured(net, data) | {"layers": {k: round(v, 3) for k, v in layers.items()}}


# ------------------------------------------------------------------------------- lottery tickets

STARTS = ("its own start", "drawn anew", "random mask")


def ticket_trial(
    start: str, keep: float, seed: int, train: int, epochs: int, lr: float, batch_size: int
) -> dict:
    """Train, prune the smallest weights, go back to `start`, train again with the mask."""
    one_thread()
    data = images(train, seed)
    torch.manual_seed(seed)
    net = GrowingNetwork(replace(PLAN, internal=False))
    parts = pruning.weights(net)

    def fit(masks: dict[str, Tensor], until: int = epochs) -> None:
        config = TrainConfig(
            until, batch_size, lr, seed=seed,
            milestones=tuple(m for m in (int(0.6 * epochs), int(0.85 * epochs)) if m < until),
        )  # fmt: skip
        train_classifier(
            net, data, config, progress=False,
            forward=lambda m, x: functional_call(m, {k: parts[k] * masks[k] for k in masks}, (x,)),
        )  # fmt: skip

    first = copy.deepcopy(net.state_dict())
    early = first
    if start == "its own epoch 2":
        fit(pruning.keep_all(parts), until=2)
        early = copy.deepcopy(net.state_dict())
        net.load_state_dict(first)
    masks = pruning.lottery_ticket(net, early, fit, keep)
    generator = torch.Generator().manual_seed(seed)
    if start == "random mask":
        layers = pruning.layer_counts(masks)
        masks = pruning.keep_best(pruning.random(parts, generator), layers)
        net.load_state_dict(first)
    elif start == "drawn anew":
        torch.manual_seed(seed + 1000)
        net.load_state_dict(GrowingNetwork(net.plan).state_dict())
    fit(masks)
    pruning.apply(parts, masks)
    net.eval()
    kept = {"weights": pruning.count(masks), "macs": exit_macs(net)[-1]}
    return {"test_accuracy": evaluate(net, data.test)["accuracy"], **kept}


def _common(train: int) -> dict[str, list[Any]]:
    return {"train": [train], "epochs": [20], "lr": [0.02], "batch_size": [64]}


STUDIES: dict[str, tuple[str, Any, list[dict[str, Any]]]] = {
    "grow": (
        "17_growing_and_early_exit",
        grow_trial,
        grid(seed=SEEDS, row=[*ROWS], **_common(4000)),
    ),
    "prune": (
        "18_pruning_as_search",
        prune_trial,
        grid(
            seed=SEEDS,
            keep=[0.1],
            rule=[*RULES],
            **_common(3000),
        )
        + grid(
            seed=SEEDS,
            keep=[0.5],
            rule=["SNIP", "SNIP, scores of random weights", "SNIP, iterative", *CONTROLS],
            **_common(3000),
        )
        + grid(seed=SEEDS, keep=[1.0], rule=["SNIP"], **_common(3000)),
    ),
    "tickets": (
        "18_pruning_as_search",
        ticket_trial,
        grid(seed=SEEDS, keep=[0.1], start=STARTS, **_common(2000)),
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--workers", type=int, default=1)
    given = parser.parse_args()
    chapter, trial, configs = STUDIES[given.study]
    BUILD.mkdir(parents=True, exist_ok=True)
    table = sweep(trial, configs, store=BUILD / f"{given.study}.sqlite", workers=given.workers)
    table["diverged"] = table.error.fillna("").str.startswith("NonFiniteLoss")  # a result too
    if table.attrs["interrupted"] or ((table.status != "done") & ~table.diverged).any():
        raise SystemExit(f"not finished: {table.error.dropna().unique()}; the same command goes on")
    dropped = ["status", "error", "attempts", "seconds", "worker", *FIXED]
    path = record_result(
        chapter, given.study, table.drop(columns=dropped),
        command=f"python benchmarks/growing_study.py {given.study}",
        seeds=list(SEEDS), device=describe_device(pick_device("cpu")),
        config=configuration([given.study]),
    )  # fmt: skip
    print(path)


def configuration(argv: list[str]) -> dict[str, Any]:
    """What the record of this command would name as its configuration now."""
    config = STUDIES[argv[0]][2][0]
    plan = {"cells": list(PLAN.cells), "width": PLAN.width, "size": PLAN.size}
    return {k: config[k] for k in FIXED} | plan


if __name__ == "__main__":
    main()
