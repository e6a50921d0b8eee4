"""Growing, early exit and pruning measured: rows go to data/results/17_… and 18_….

    python benchmarks/growing_study.py grow
    python benchmarks/growing_study.py prune
    python benchmarks/growing_study.py tickets
    python benchmarks/growing_study.py timing

`grow` uses `colour_shapes` at 16×16, every seed draws its own images. The other two use the digits
at 8×8, every seed has its own training images. A command that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import copy
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
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
    extract,
    grow_and_prune,
    overthinking,
    pruning,
)
from nas_core.search import grid, sweep
from nas_core.supernet import count_macs
from nas_core.training import (
    TrainConfig,
    describe_device,
    evaluate,
    one_thread,
    pick_device,
    time_call,
    train_classifier,
)
from nas_core.workbook.results import record_result

BUILD = Path("build/growing_study")
SEEDS = (0, 1, 2, 3, 4)
PLAN = Plan(width=8, cells=(1, 1, 1, 1), dense=False, size=16, stem_pool=2)
SMALL = Plan(width=8, cells=(1, 1, 1, 1), dense=False, size=8, in_channels=1)
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
    "SNIP, 512 examples": {"score_examples": 512},
}


def prune_trial(
    rule: str, keep: float, seed: int, train: int, epochs: int, lr: float, batch_size: int
) -> dict:
    one_thread()
    options = dict(RULES[rule])
    plans = schedule(epochs, lr, True, 0 if keep == 1 else options.pop("steps", 1))
    data = load("digits", train_limit=train, seed=seed)
    torch.manual_seed(seed)
    net = GrowingNetwork(SMALL, 1)
    config = GrowConfig(plans, keep=keep, batch_size=batch_size, seed=seed, **options)
    grow_and_prune(net, data, config, progress=False)
    layers = {k: int(w.count_nonzero()) / w.numel() for k, w in pruning.weights(net).items()}
    return measured(net, data) | {"layers": {k: round(v, 3) for k, v in layers.items()}}


# ------------------------------------------------------------------------------- lottery tickets


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


STARTS = ("its own start", "drawn anew", "random mask")


def ticket_trial(
    start: str, keep: float, seed: int, train: int, epochs: int, lr: float, batch_size: int
) -> dict:
    """Train, prune the smallest weights, go back to `start`, train again with the mask."""
    one_thread()
    data = load("digits", train_limit=train, seed=seed)
    torch.manual_seed(seed)
    net = perceptron()
    parts = pruning.weights(net)

    def fit(masks: dict[str, Tensor]) -> None:
        config = TrainConfig(epochs, batch_size, lr, milestones=(int(0.7 * epochs),), seed=seed)
        train_classifier(
            net, data, config, progress=False,
            forward=lambda m, x: functional_call(m, {k: parts[k] * masks[k] for k in masks}, (x,)),
        )  # fmt: skip

    first = copy.deepcopy(net.state_dict())
    masks = pruning.lottery_ticket(net, first, fit, keep)
    if start == "random mask":
        generator = torch.Generator().manual_seed(seed)
        layers = pruning.layer_counts(masks)
        masks = pruning.keep_best(pruning.random(parts, generator), layers)
        net.load_state_dict(first)
    elif start == "drawn anew":
        torch.manual_seed(seed + 1000)
        net.load_state_dict(perceptron().state_dict())
    fit(masks)
    pruning.apply(parts, masks)
    net.eval()
    accuracy = evaluate(net, data.test)["accuracy"]
    return {"test_accuracy": accuracy, "weights": pruning.count(masks)}


# ------------------------------------------------------------------------- which zeros save time

CUTS = ("all weights", "20 % of the weights", "50 % of the filters")


def timing_trial(network: str, batch: int, seed: int, width: int) -> dict:
    """Milliseconds of a pruned network after everything dead has been taken out."""
    one_thread()
    torch.manual_seed(seed)
    plan = Plan(width=width, cells=(1, 1, 1, 1), dense=False, stem_pool=2)
    net = GrowingNetwork(plan).eval()
    named, parts = dict(net.named_parameters()), pruning.weights(net)
    size = pruning.magnitude(parts)
    if network == "20 % of the weights":
        pruning.apply(parts, pruning.keep_best(size, pruning.count(parts) // 5))
    elif network == "50 % of the filters":
        pruning.apply(named, pruning.keep_filters(size, 0.5, named))
    small, x = extract(net), torch.randn(batch, 3, 32, 32)
    with torch.inference_mode():
        spent = time_call(lambda: small(x), clock=time.thread_time).median
    executed = count_macs(small, (3, 32, 32))[0]
    return {"macs": exit_macs(net)[-1], "executed": executed, "ms_per_image": spent / batch}


def _common(train: int, epochs: int, lr: float, batch_size: int) -> dict[str, list[Any]]:
    return {"train": [train], "epochs": [epochs], "lr": [lr], "batch_size": [batch_size]}


_SHAPES, _DIGITS = _common(4000, 20, 0.02, 64), _common(600, 12, 0.03, 32)
STUDIES: dict[str, tuple[str, Any, list[dict[str, Any]]]] = {
    "grow": ("17_growing_and_early_exit", grow_trial, grid(seed=SEEDS, row=[*ROWS], **_SHAPES)),
    "prune": (
        "18_pruning_as_search",
        prune_trial,
        grid(
            keep=[0.1, 0.05, 0.2],
            seed=SEEDS,
            rule=[r for r in RULES if r != "SNIP, 512 examples"],
            **_DIGITS,
        )
        + grid(keep=[0.1], seed=SEEDS, rule=["SNIP, 512 examples"], **_DIGITS)
        + grid(keep=[1.0, 0.8, 0.5], seed=SEEDS, rule=["SNIP"], **_DIGITS),
    ),
    "timing": (
        "18_pruning_as_search",
        timing_trial,
        grid(seed=SEEDS, network=CUTS, batch=[1, 64], width=[32]),
    ),
    "tickets": (
        "18_pruning_as_search",
        ticket_trial,
        grid(
            keep=[1.0, 0.2, 0.05, 0.02], seed=range(10), start=STARTS, **_common(600, 30, 0.05, 32)
        ),
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
        chapter, given.study, table.drop(columns=dropped, errors="ignore"),
        command=f"python benchmarks/growing_study.py {given.study}",
        seeds=sorted(set(table.seed)), device=describe_device(pick_device("cpu")),
        config=configuration([given.study]),
    )  # fmt: skip
    print(path)


def configuration(argv: list[str]) -> dict[str, Any]:
    """What the record of this command would name as its configuration now."""
    config = STUDIES[argv[0]][2][0]
    plan = {"grow": PLAN, "prune": SMALL}.get(argv[0])
    shape = (
        {} if plan is None else {"cells": list(plan.cells), "width": plan.width, "size": plan.size}
    )
    return {k: config[k] for k in FIXED if k in config} | shape


if __name__ == "__main__":
    main()
