"""The CTrL streams on real images: learners, seeds, one row each in data/results.

    NAS_DATA=… python benchmarks/ctrl_study.py transfer --store transfer.sqlite
    NAS_DATA=… python benchmarks/ctrl_study.py long --store long.sqlite --tasks 40

Roles whose data set is missing are played by the embedded family (`--embedded`). A stopped run
goes on from its store. `--record` writes what the store holds and runs nothing.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sqlite3
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pandas as pd

from nas_core.continual import (
    SYMBOLS,
    FitConfig,
    Real,
    Stream,
    alexnet,
    ctrl_stream,
    make_learner,
    resnet,
    run_stream,
)
from nas_core.search.sweep import sweep
from nas_core.training import describe_device, one_thread, pick_device
from nas_core.workbook import record_result

BASELINES = [
    "Independent", "Finetune", "New-head freeze", "New-head finetune", "New-leg freeze",
    "New-leg finetune", "EWC", "Online EWC", "ER", "PNN", "HAT",
]  # fmt: skip
MODULAR = ["MNTDP-D", "MNTDP-S", "MNTDP-D (k=all)", "MNTDP-S (k=all)", "MNTDP-D random prior"]
SIZES = {
    "transfer": {"large": (4000, 500), "small": (400, 200), "tiny": (50, 30)},
    "long": {"large": (2000, 500), "small": (25, 15)},
}


def stream_of(setting: dict[str, Any], name: str, seed: int) -> Stream:
    """The stream of a setting, without augmentation: training is too short for it to pay."""
    catalogue = Real(embedded_for=tuple(setting["embedded"]), size=setting["size"])
    sizes = SIZES["long" if name == "long" else "transfer"]
    return ctrl_stream(
        name, catalogue, seed=seed, sizes=sizes, tasks=setting["tasks"],
        test_per_class=setting["test_per_class"], augment=False,
    )  # fmt: skip


def make(setting: dict[str, Any], learner: str, seed: int):
    """A learner by its name, "… random prior" included."""
    build = alexnet if setting["backbone"] == "alexnet" or learner == "HAT" else resnet
    width = setting["width"] if build is resnet else setting["width"] / 64
    config = FitConfig(
        lr=tuple(setting["lr"]), weight_decay=(0.0,), batch_size=32,
        max_steps=setting["max_steps"], patience=setting["patience"], eval_every=20,
    )  # fmt: skip
    options: dict[str, Any] = {"strength": setting["strength"]} if "EWC" in learner else {}
    if learner.endswith(" random prior"):
        learner, options = learner.removesuffix(" random prior"), {"prior": "random"}
    return make_learner(learner, build(width, setting["size"]), config, seed=seed, **options)


def study(stream: str, learner: str, seed: int, setting: dict[str, Any]) -> dict[str, Any]:
    """One learner through one stream: its summary, and its life task by task."""
    one_thread()
    start = time.process_time()
    tasks = stream_of(setting, stream, seed)
    run = run_stream(make(setting, learner, seed), tasks, beta=None)
    out = {k: v for k, v in run.summary().items() if k not in ("stream", "learner")}
    table = run.table
    out |= {
        "data": tasks.table().dataset.tolist(),
        "train": [s.train for s in tasks.specs],
        "after": table.after.tolist(),
        "final": table.final.tolist(),
        "mb": table.memory_mb.tolist(),
        "cpu_seconds": round(time.process_time() - start, 1),
    }
    if "MNTDP" in learner:
        out["paths"] = ["".join(_letter(o) for o in p) for p in run.learner.library.paths]
    return out


def _letter(owner: int) -> str:
    """Owners of modules as one character each: A is the first task."""
    return chr(ord("A") + owner)


def results(table: pd.DataFrame, learners: list[str]) -> list[dict[str, Any]]:
    """Rows to record; T is the last task's accuracy minus that of Independent, seed by seed."""
    own = table[table.learner == "Independent"]
    last = {(row.stream, row.seed): row.final[-1] for row in own.itertuples()}
    rows = []
    for row in table[table.learner.isin(learners)].to_dict("records"):
        alone = last.get((row["stream"], row["seed"]))
        row["T"] = None if alone is None else row["final"][-1] - alone
        name = SYMBOLS[row["stream"]]
        gone = ("setting", "stream")
        kept = {k: _rounded(v) for k, v in row.items() if k not in gone}
        rows.append({"stream": name, **kept})
        if "paths" in rows[-1] and not isinstance(rows[-1]["paths"], str):
            del rows[-1]["paths"]
    return rows


def stored(store: str) -> pd.DataFrame:
    """The finished trials of a store."""
    with closing(sqlite3.connect(store)) as db:
        found = db.execute("SELECT config, result FROM trials WHERE status = 'done'").fetchall()
    return pd.DataFrame({**json.loads(config), **json.loads(result)} for config, result in found)


def _rounded(value: Any) -> Any:
    if isinstance(value, list):  # a cell of a table holds one word
        return " ".join(str(_rounded(v)).replace(" ", "_") for v in value)
    return round(value, 4) if isinstance(value, float) else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["transfer", "long"])
    parser.add_argument("--store", required=True, help="SQLite file of the finished trials")
    parser.add_argument("--streams", nargs="*", default=["minus", "out", "in", "pl", "plus"])
    parser.add_argument("--learners", nargs="*", default=[*BASELINES, *MODULAR])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    parser.add_argument("--embedded", nargs="*", default=["wild_digits"], help="roles")
    parser.add_argument("--backbone", choices=["alexnet", "resnet"], default="alexnet")
    parser.add_argument("--width", type=int, default=16, help="channels of the first layer")
    parser.add_argument("--size", type=int, default=16, help="side of the images")
    parser.add_argument("--max-steps", type=int, default=300)
    parser.add_argument("--patience", type=int, default=100)
    parser.add_argument("--lr", type=float, nargs="*", default=[0.001])
    parser.add_argument("--strength", type=float, default=100.0, help="of EWC")
    parser.add_argument("--test-per-class", type=int, default=100)
    parser.add_argument("--tasks", type=int, default=100, help="of the long stream")
    parser.add_argument("--record", metavar="NAME", help="write what the store holds, run nothing")
    given = parser.parse_args()
    keys = ("embedded", "backbone", "width", "size", "max_steps", "patience", "lr", "strength",
            "test_per_class", "tasks")  # fmt: skip
    setting = {k: getattr(given, k) for k in keys}
    streams = ["long"] if given.what == "long" else given.streams
    trials = [
        {"stream": stream, "learner": learner, "seed": seed, "setting": setting}
        for seed in given.seeds
        for stream in streams
        for learner in given.learners
    ]
    if given.record:
        table = stored(given.store)
    else:
        table = sweep(study, trials, store=given.store, workers=0, retries=0)
        print(table[["stream", "learner", "seed", "A", "F", "memory_mb", "status"]].to_string())
        return
    one_thread()
    words = [w for w in sys.argv[1:] if w not in ("--record", given.record)]
    words = [Path(w).name if w == given.store else w for w in words]
    chapters = {"10_long_streams": given.learners}
    if given.what == "transfer":
        modular = [m for m in given.learners if m in MODULAR]
        chapters = {"08_ctrl_streams": [b for b in given.learners if b not in modular]}
        chapters["09_mntdp"] = ["Independent", "New-head freeze", "New-leg freeze", *modular]
    for chapter, learners in chapters.items():
        record_result(
            chapter, given.record, results(table, learners), seeds=given.seeds, config=setting,
            command="python benchmarks/ctrl_study.py " + shlex.join(words),
            device=describe_device(pick_device("cpu")),
        )  # fmt: skip


if __name__ == "__main__":
    main()
