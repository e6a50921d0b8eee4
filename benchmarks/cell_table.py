"""Make the table of chapter 01: every cell with an operation on each edge, trained on the digits.

    python benchmarks/cell_table.py --store table.sqlite --out data/tables/digit_cells.csv.xz

The command may be stopped and started again at will; it continues where it was. `--engine ray`
spreads it over a cluster, `--first 000 --seeds 0` makes a small part. 4,096 cells compute 3,472
different functions, which are trained once each, with three seeds. A trial of the sweep is the
about 60 cells that share their first three operations.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas_core.files import write_atomic
from nas_core.search import grid, sweep
from nas_core.search.cell_batch import DIGIT_CELLS, CellBatch, table_data
from nas_core.spaces.cells import Cell
from nas_core.supernet import SuperNetwork
from nas_core.training import (
    TensorData,
    descend,
    make_optimizer,
    one_thread,
    time_call,
    train_epoch,
    versions,
)

SEEDS = (0, 1, 2)
# Cells are written with the numbers of NAS-Bench-201's operations, whose 0 is "none".
DIGITS = {str(n): op for n, op in enumerate(DIGIT_CELLS.ops, start=1)}


@dataclass(frozen=True)
class CellTraining:
    """How every cell of the table is trained, alone or in a batch."""

    epochs: int = 4
    report: tuple[int, ...] = (1, 2, 4)  # epochs after which the networks are evaluated
    batch_size: int = 16
    lr: float = 0.15  # SGD with Nesterov momentum; cosine to zero over all steps
    momentum: float = 0.9
    weight_decay: float = 5e-4

    def optimizer(self, parameters) -> torch.optim.Optimizer:
        return make_optimizer(
            parameters, lr=self.lr, momentum=self.momentum, nesterov=True,
            weight_decay=self.weight_decay,
        )  # fmt: skip


def train_cells(
    net: nn.Module,
    train: TensorData,
    held_out: Mapping[str, TensorData],
    config: CellTraining,
    *,
    seed: int,
) -> dict[str, Tensor]:
    """Train a `CellBatch` of K cells, or one plain network (K = 1).

    Returns:
        For each name of `held_out` the number of right answers, int64 `[K, len(report)]`.

    Raises:
        FloatingPointError: when a loss is not finite.
    """
    optimizer = config.optimizer(net.parameters())
    steps = config.epochs * (len(train) // config.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    right: dict[str, list[Tensor]] = {name: [] for name in held_out}

    def loss(x: Tensor, y: Tensor) -> Tensor:
        logits = _logits(net, x)
        # Sum over cells: the gradient of a cell does not depend on the other cells.
        each = y.repeat_interleave(logits.shape[1])  # [B·K]
        return F.cross_entropy(logits.flatten(0, 1), each, reduction="sum") / len(y)

    for epoch in range(config.epochs):
        net.train()
        batches = train.batches(config.batch_size, seed=seed, epoch=epoch, drop_last=True)
        mean = train_epoch(batches, loss, optimizer, schedule=schedule)
        if not mean < float("inf"):
            raise FloatingPointError(f"the loss is {mean} in epoch {epoch}")
        if epoch + 1 in config.report:
            for name, part in held_out.items():
                right[name].append(count_right(net, part))
    return {name: torch.stack(counts, 1) for name, counts in right.items()}


def _logits(net: nn.Module, x: Tensor) -> Tensor:
    logits = net(x)
    return logits if logits.dim() == 3 else logits.unsqueeze(1)  # [B, K, classes]


@torch.no_grad()
def count_right(net: nn.Module, data: TensorData, batch_size: int = 128) -> Tensor:
    """Right answers of every network of a batch, int64 `[K]` (of a plain network: `[1]`)."""
    net.eval()
    total: Tensor | int = 0
    for x, y in data.batches(batch_size, seed=0, shuffle=False):
        total = total + (_logits(net, x).argmax(2) == y[:, None]).sum(0)
    return torch.as_tensor(total)


def initial_network(seed: int) -> SuperNetwork:
    """The weights that every cell of this seed starts from: common random numbers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return DIGIT_CELLS.network()


def train_alone(cell: Cell, seed: int) -> dict[str, Tensor]:
    """One cell as a plain module, by the recipe of the table, to check the table."""
    supernet = initial_network(seed)
    net = DIGIT_CELLS.architecture(supernet, cell).extract(supernet)
    return train_cells(net, *table_data(), CellTraining(), seed=seed)


TRAINING = CellTraining()


def text(cell: Sequence[int]) -> str:
    return "".join(str(op + 1) for op in cell)


def group(first: str) -> list[Cell]:
    """The cells of the table, one of each function, whose first three operations are `first`."""
    return [cell for cell in DIGIT_CELLS.distinct() if text(cell).startswith(first)]


def train_group(first: str, seed: int) -> dict[str, Any]:
    """One trial: the cells of a group, side by side."""
    one_thread()
    cells = group(first)
    train, held_out = table_data()
    start = time.process_time()
    batch = CellBatch(DIGIT_CELLS, initial_network(seed), cells)
    right = train_cells(batch, train, held_out, TRAINING, seed=seed)
    return {
        "cells": [text(cell) for cell in cells],
        "right": {name: counts.tolist() for name, counts in right.items()},
        "cpu_seconds": round(time.process_time() - start, 2),
    }


def measure_group(first: str, repeats: int = 15) -> dict[str, Any]:
    """One trial: latency and length of a training step of each cell alone, on one thread."""
    one_thread()
    cells = group(first)
    train, _ = table_data()
    supernet = initial_network(0)
    x, y = next(iter(train.batches(TRAINING.batch_size, seed=0)))
    latency, step = [], []
    for cell in cells:
        net = DIGIT_CELLS.architecture(supernet, cell).extract(supernet).train()
        step.append(milliseconds(_training_step(net, x, y), repeats))
        net.eval()
        with torch.inference_mode():
            latency.append(milliseconds(partial(net, x), repeats))
    return {"cells": [text(cell) for cell in cells], "latency_ms": latency, "step_ms": step}


def _training_step(net: nn.Module, x: Tensor, y: Tensor) -> Callable[[], object]:
    optimizer = TRAINING.optimizer(net.parameters())
    return lambda: descend(F.cross_entropy(net(x), y), optimizer)


def milliseconds(call: Callable[[], object], repeats: int) -> float:
    """Median, in processor time of this thread: other processes do not count."""
    timing = time_call(call, repeats=repeats, warmup=2, clock=time.thread_time)
    return round(1e3 * timing.median, 4)


def assemble(trained: pd.DataFrame, measured: pd.DataFrame) -> pd.DataFrame:
    """One row per cell: macs, params, times, and right answers per split, seed and epoch."""
    supernet = initial_network(0)
    columns: dict[str, dict[str, Any]] = {}
    for row in measured.itertuples():
        for name, latency, step in zip(row.cells, row.latency_ms, row.step_ms, strict=True):
            arch = DIGIT_CELLS.architecture(supernet, tuple(int(digit) - 1 for digit in name))
            about = {"macs": arch.macs, "params": arch.params}
            columns[name] = {**about, "latency_ms": latency, "step_ms": step}
    for row in trained.sort_values("seed").itertuples():
        for split, counts in row.right.items():
            for name, per_epoch in zip(row.cells, counts, strict=True):
                for epoch, right in zip(TRAINING.report, per_epoch, strict=True):
                    columns[name][f"{split}_s{row.seed}_e{epoch}"] = right
    frame = pd.DataFrame.from_dict(columns, orient="index").sort_index()
    return frame.rename_axis("cell").reset_index()


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--store", type=Path, default=Path("digit_cells.sqlite"))
    parser.add_argument("--out", type=Path, default=Path("data/tables/digit_cells.csv.xz"))
    parser.add_argument("--first", nargs="*", help="groups, by their first three operations")
    parser.add_argument("--seeds", type=int, nargs="*", default=SEEDS)
    parser.add_argument("--engine", choices=("local", "ray"), default="local")
    parser.add_argument("--address", help="of the Ray cluster")
    parser.add_argument("--workers", type=int, default=1)
    args = parser.parse_args(argv)
    first = args.first or sorted({text(cell[:3]) for cell in DIGIT_CELLS.distinct()})
    where = {"engine": args.engine, "address": args.address, "workers": args.workers}
    trained = sweep(train_group, grid(seed=args.seeds, first=first), store=args.store, **where)
    if trained.attrs["interrupted"]:
        raise SystemExit("interrupted; the same command continues it")
    times = args.store.with_suffix(".times.sqlite")
    measured = sweep(measure_group, grid(first=first), store=times, **where)
    for table in (trained, measured):
        if (bad := table[table.status != "done"]).size:
            raise SystemExit(f"{len(bad)} trials are missing, first: {bad.iloc[0].error}")
    frame = assemble(trained, measured)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    frame.to_csv(args.out, index=False)
    train, held_out = table_data()
    about = {
        "command": "python benchmarks/cell_table.py",
        "data": "scikit-learn digits, 8×8; 640 train, 797 val, 360 test",
        "examples": {name: len(part) for name, part in {"train": train, **held_out}.items()},
        "digits": DIGITS,
        "training": vars(TRAINING),
        "seeds": args.seeds,
        "network": "8 channels: stem 3×3 stride 2, one cell at 4×4, mean, linear",
        "times": f"median thread time of batch {TRAINING.batch_size}, one thread, plain module",
        "cpu_seconds": round(float(trained.cpu_seconds.sum()), 1),
        "versions": versions(),
        "processor": platform.machine(),
        "made": time.strftime("%Y-%m-%d", time.gmtime()),
    }
    name = args.out.name.split(".")[0] + ".json"
    write_atomic(args.out.parent / name, json.dumps(about, indent=1, ensure_ascii=False) + "\n")
    minutes = trained.cpu_seconds.sum() / 60
    print(f"{len(frame)} cells in {args.out}, {minutes:.0f} minutes of training")


if __name__ == "__main__":
    main()
