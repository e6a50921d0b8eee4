"""Make the table of chapter 01: every cell with an operation on each edge, trained on the digits.

    python -m nas_core.search.make_table --store table.sqlite --out data/tables/digit_cells.csv.xz

The command may be stopped and started again at will; it goes on where it was. `--engine ray`
spreads it over a cluster. 4,096 cells compute 3,472 different functions, which are trained once
each, with three seeds. A trial of the sweep is the about 60 cells that share their first three
operations.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas_core import data
from nas_core.search.cell_batch import CellTraining, count_right, train_cells
from nas_core.search.sweeps import ENGINES, grid, sweep
from nas_core.spaces.cells import (
    CONV1,
    CONV3,
    POOL,
    SKIP,
    Cell,
    canonical_cells,
    cell_architecture,
    cell_network,
)
from nas_core.supernet import SuperNetwork
from nas_core.training import TensorData

TABLE_OPS = (SKIP, CONV1, CONV3, POOL)
SEEDS = (0, 1, 2)
TRAINING = CellTraining()


def table_cells() -> list[Cell]:
    """The cells of the table: one of each function, `none` on no edge, in order."""
    return sorted({c for c in canonical_cells() if set(c) <= set(TABLE_OPS)})


@cache
def table_data() -> tuple[TensorData, dict[str, TensorData]]:
    """640 digits to train on, 797 to validate, 360 to test (the registry's test set)."""
    digits = data.load("digits", size=8)
    everything, val = digits.train, digits.val
    rest = TensorData(
        torch.cat([everything.x[640:], val.x]),
        torch.cat([everything.y[640:], val.y]),
        None,
        everything.normalise,
    )
    return everything.subset(range(640)), {"val": rest, "test": digits.test}


@cache
def initial_network(seed: int) -> SuperNetwork:
    """The weights that every cell of this seed starts from: common random numbers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return cell_network()


def train_alone(cell: Cell, seed: int, config: CellTraining = TRAINING) -> dict[str, list[int]]:
    """One cell as a plain module, by the same recipe: what the table is checked against.

    Returns the right answers after each reported epoch, as `train_cells` does for one cell.
    """
    train, held_out = table_data()
    supernet = initial_network(seed)
    net = cell_architecture(supernet, cell).extract(supernet)
    optimiser = config.optimiser(net.parameters())
    schedule = config.schedule(optimiser, len(train))
    right: dict[str, list[int]] = {name: [] for name in held_out}
    for epoch in range(config.epochs):
        net.train()
        for x, y in train.batches(config.batch_size, seed=seed, epoch=epoch, drop_last=True):
            loss = F.cross_entropy(net(x), y)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            schedule.step()
        if epoch + 1 in config.report:
            for name, part in held_out.items():
                right[name].append(int(count_right(net, part)))
    return right


def train_group(first: str, seed: int) -> dict[str, Any]:
    """One trial: the cells whose first three operations are `first`, side by side."""
    torch.set_num_threads(1)
    cells = [c for c in table_cells() if c[:3] == tuple(map(int, first))]
    train, held_out = table_data()
    start = time.process_time()
    right = train_cells(initial_network(seed), cells, train, held_out, TRAINING, seed=seed)
    return {
        "cells": ["".join(map(str, c)) for c in cells],
        "right": {name: counts.tolist() for name, counts in right.items()},
        "cpu_seconds": round(time.process_time() - start, 2),
    }


def measure_group(first: str, repeats: int = 15) -> dict[str, Any]:
    """One trial: latency and length of a training step of each cell alone, on one thread."""
    torch.set_num_threads(1)
    cells = [c for c in table_cells() if c[:3] == tuple(map(int, first))]
    train, _ = table_data()
    supernet = initial_network(0)
    x, y = next(iter(train.batches(TRAINING.batch_size, seed=0)))
    latency, step = [], []
    for cell in cells:
        net = cell_architecture(supernet, cell).extract(supernet).train()
        step.append(milliseconds(_training_step(net, x, y), repeats))
        net.eval()
        with torch.inference_mode():
            latency.append(milliseconds(partial(net, x), repeats))
    return {
        "cells": ["".join(map(str, c)) for c in cells],
        "latency_ms": latency,
        "step_ms": step,
    }


def _training_step(net: nn.Module, x: Tensor, y: Tensor) -> Callable[[], None]:
    optimiser = TRAINING.optimiser(net.parameters())

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        F.cross_entropy(net(x), y).backward()
        optimiser.step()

    return step


def milliseconds(call: Callable[[], object], repeats: int) -> float:
    """Median of `repeats` calls after two to warm up, in processor time: others do not count."""
    times = []
    for _ in range(repeats + 2):
        start = time.thread_time()
        call()
        times.append(1e3 * (time.thread_time() - start))
    return round(statistics.median(times[2:]), 4)


def assemble(trained: pd.DataFrame, measured: pd.DataFrame) -> pd.DataFrame:
    """One row per cell: macs, params, times, and right answers per split, seed and epoch."""
    supernet = initial_network(0)
    columns: dict[str, dict[str, Any]] = {}
    for row in measured.itertuples():
        for cell, latency, step in zip(row.cells, row.latency_ms, row.step_ms, strict=True):
            arch = cell_architecture(supernet, tuple(map(int, cell)))
            about = {"macs": arch.macs, "params": arch.params}
            columns[cell] = {**about, "latency_ms": latency, "step_ms": step}
    for row in trained.sort_values("seed").itertuples():
        for split, counts in row.right.items():
            for cell, per_epoch in zip(row.cells, counts, strict=True):
                for epoch, right in zip(TRAINING.report, per_epoch, strict=True):
                    columns[cell][f"{split}_s{row.seed}_e{epoch}"] = right
    frame = pd.DataFrame.from_dict(columns, orient="index").sort_index()
    return frame.rename_axis("cell").reset_index()


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--store", type=Path, default=Path("digit_cells.sqlite"))
    parser.add_argument("--out", type=Path, default=Path("data/tables/digit_cells.csv.xz"))
    parser.add_argument("--engine", choices=ENGINES, default="local")
    parser.add_argument("--address", help="of the Ray cluster")
    parser.add_argument("--workers", type=int, default=1)
    args = parser.parse_args(argv)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    first = sorted({"".join(map(str, cell[:3])) for cell in table_cells()})
    where = {"engine": args.engine, "address": args.address, "workers": args.workers}
    trained = sweep(train_group, grid(seed=SEEDS, first=first), store=args.store, **where)
    if trained.attrs["interrupted"]:
        raise SystemExit("interrupted; the same command goes on")
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
        "command": "python -m nas_core.search.make_table",
        "data": "scikit-learn digits, 8×8; 640 train, 797 val, 360 test",
        "examples": {name: len(part) for name, part in {"train": train, **held_out}.items()},
        "training": vars(TRAINING),
        "seeds": SEEDS,
        "network": "cell_network(channels=8): stem 3×3 stride 2, one cell at 4×4, mean, linear",
        "times": f"median thread time of batch {TRAINING.batch_size}, one thread, plain module",
        "cpu_seconds": round(float(trained.cpu_seconds.sum()), 1),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "processor": platform.machine(),
        "made": time.strftime("%Y-%m-%d", time.gmtime()),
    }
    name = args.out.name.split(".")[0] + ".json"
    (args.out.parent / name).write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n")
    minutes = trained.cpu_seconds.sum() / 60
    print(f"{len(frame)} cells in {args.out}, {minutes:.0f} minutes of training")


if __name__ == "__main__":
    # By its own name: the cached functions of a `__main__` cannot be sent to a cluster.
    import_module("nas_core.search.make_table").main()
