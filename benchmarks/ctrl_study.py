"""The CTrL streams on real images: learners, seeds, one row each in data/results.

    NAS_DATA=… python benchmarks/ctrl_study.py transfer --store transfer.sqlite
    NAS_DATA=… python benchmarks/ctrl_study.py long --store long.sqlite --tasks 40
    NAS_DATA=… python benchmarks/ctrl_study.py permuted --store mlp.sqlite --backbone mlp --tasks 10
    python benchmarks/ctrl_study.py chapter --chapter 09_mntdp --store seeds.sqlite --seeds 0 1 2

Data sets whose files are missing are replaced by the embedded family (`--embedded`). A learner's
name may end in " random prior" or " N modules" (of the ResNet). A stopped run goes on from its
store. `--record CHAPTER/NAME` writes what the store holds of the same trials and runs nothing.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd

from nas_core.continual import (
    SYMBOLS,
    FitConfig,
    Real,
    Stream,
    alexnet,
    check_input_shift,
    ctrl_stream,
    make_learner,
    mlp,
    permuted_digits,
    resnet,
    run_stream,
    task_source,
)
from nas_core.search.sweeps import stored, sweep
from nas_core.training import describe_device, one_thread, pick_device
from nas_core.workbook import Book, record_result
from nas_core.workbook.environment import COMPARABLE, comparable

LEARNERS = [
    "Independent", "MNTDP-D", "Finetune", "MNTDP-D random prior", "New-head freeze",
    "New-leg freeze", "MNTDP-S", "ER", "PNN", "MNTDP-D (k=all)", "MNTDP-S (k=all)", "HAT", "EWC",
    "Online EWC", "New-head finetune", "New-leg finetune", "ER (reservoir)", "Learn-to-grow",
]  # fmt: skip
SIZES = {
    "transfer": {"large": (4000, 500), "small": (400, 200), "tiny": (50, 30)},
    "long": {"large": (2000, 500), "small": (25, 15)},
}
PERMUTED = {"train": 2000, "val": 500}


def stream_of(setting: dict[str, Any], name: str, seed: int) -> Stream:
    """The stream of a setting, without augmentation: training is too short for it to pay."""
    if "chapter" in setting:
        source = task_source(setting["data"], setting["size"], setting["pool"])
        sizes = {k: tuple(v) for k, v in setting["sizes"].items()}
        tasks = {"tasks": setting["tasks"]} if name == "long" else {}
        whole = ctrl_stream(name, source, seed=seed, sizes=sizes, augment=False, **tasks)
        return whole.keep(*setting["keep"]) if "keep" in setting else whole
    source = Real(embedded_for=tuple(setting["embedded"]), size=setting["size"])
    options = {"seed": seed, "test_per_class": setting["test_per_class"]}
    if name == "permuted":
        return permuted_digits(source, tasks=setting["tasks"], **PERMUTED, **options)
    sizes = SIZES["long" if name == "long" else "transfer"]
    return ctrl_stream(name, source, sizes=sizes, tasks=setting["tasks"], augment=False, **options)


def make(setting: dict[str, Any], learner: str, seed: int):
    """A learner by its name, "… random prior" and "… 3 modules" included."""
    config = FitConfig(
        lr=tuple(setting["lr"]), weight_decay=(0.0,), max_steps=setting["max_steps"],
        patience=setting["patience"], **setting.get("fit", {"batch_size": 32, "eval_every": 20}),
    )  # fmt: skip
    options: dict[str, Any] = {"strength": setting["strength"]} if "EWC" in learner else {}
    if "MNTDP-S" in learner:
        options = {k: setting[k] for k in ("gamma_lr", "search_steps") if k in setting}
        options["gamma_lr"] = tuple(options.get("gamma_lr", (0.01,)))
    if learner.endswith(" random prior"):
        learner, options = learner.removesuffix(" random prior"), {"prior": "random"}
    cut = re.fullmatch(r"(.*) (\d+) modules", learner)
    learner, modules = (cut[1], int(cut[2])) if cut else (learner, 7)
    width, size = setting["width"], setting["size"]
    if setting["backbone"] == "mlp":
        backbone = mlp((1, 28, 28), width)
    elif setting["backbone"] == "resnet" and learner != "HAT":
        backbone = resnet(width, size, modules=modules)
    else:  # widths are channels of the first layer, those of chapters are factors
        backbone = alexnet(width if "chapter" in setting else width / 64, size)
    return make_learner(learner, backbone, config, seed=seed, **options)


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
    if stream == "in" and learner == "Independent":
        # The first network, unchanged, on the last task; refuses a stream that asks nothing.
        out["unchanged"] = check_input_shift(run.learner, tasks)[1]
    if "MNTDP" in learner:
        paths = run.learner.library.paths
        out["reused"] = [sum(owner != t for owner in path) for t, path in enumerate(paths)]
        if len(paths) <= 26:  # owners of modules as letters: A is the first task
            out["paths"] = ["".join(chr(ord("A") + o) for o in path) for path in paths]
    return out


def results(table: pd.DataFrame, trials: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows to record; T is the last task's accuracy minus that of Independent, seed by seed."""
    setting = trials[0]["setting"]
    table = table[[s == setting for s in table.setting]]
    own = table[table.learner == "Independent"]
    last = {(row.stream, row.seed): row.final[-1] for row in own.itertuples()}
    asked = {(t["stream"], t["learner"], t["seed"]) for t in trials}
    rows = []
    for row in table.to_dict("records"):
        if (row["stream"], row["learner"], row["seed"]) not in asked:
            continue
        alone = last.get((row["stream"], row["seed"]))
        row["T"] = None if alone is None else row["final"][-1] - alone
        if row["stream"] == "long":  # networks per task in the second half
            mb, half = row["mb"], len(row["mb"]) // 2
            row["late price"] = (mb[-1] - mb[half - 1]) / (len(mb) - half) / mb[0]
            row["tasks"] = len(mb)
        kept = {k: _rounded(v) for k, v in row.items() if k not in ("setting", "stream")}
        rows.append({"stream": SYMBOLS.get(row["stream"], row["stream"]), **kept})
        for column in ("paths", "reused"):  # of modular learners alone
            if not isinstance(rows[-1].get(column, ""), str):
                del rows[-1][column]
    return rows


def _rounded(value: Any) -> Any:
    if isinstance(value, list):  # a cell of a table holds one word
        return " ".join(str(_rounded(v)).replace(" ", "_") for v in value)
    return round(value, 4) if isinstance(value, float) else value


def parsed(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["transfer", "long", "permuted", "chapter"])
    parser.add_argument("--store", required=True, help="SQLite file of the finished trials")
    parser.add_argument("--streams", nargs="*", default=["minus", "out", "in", "pl", "plus"])
    parser.add_argument("--learners", nargs="*", default=LEARNERS)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    parser.add_argument("--chapter", help="for `chapter`: streams and training of its smoke run")
    parser.add_argument("--embedded", nargs="*", default=["wild_digits"], help="data sets")
    parser.add_argument("--backbone", choices=["alexnet", "resnet", "mlp"], default="alexnet")
    parser.add_argument("--width", type=int, default=16, help="channels of the first layer")
    parser.add_argument("--size", type=int, default=16, help="side of the images")
    parser.add_argument("--max-steps", type=int, default=300)
    parser.add_argument("--patience", type=int, default=100)
    parser.add_argument("--lr", type=float, nargs="*", default=[0.001])
    parser.add_argument("--search-steps", type=int, help="of MNTDP-S; default --max-steps")
    parser.add_argument("--strength", type=float, default=100.0, help="of EWC")
    parser.add_argument("--test-per-class", type=int, default=100)
    parser.add_argument("--tasks", type=int, default=100, help="of a long or permuted stream")
    parser.add_argument("--record", metavar="CHAPTER/NAME", help="write the stored trials")
    return parser.parse_args(argv)


def configuration(argv: list[str]) -> dict[str, Any]:
    """The setting of a command line, as its record keeps it."""
    given = parsed(argv)
    if given.what == "chapter":
        profile = Book.load().find(given.chapter).profile("smoke")
        fit = {k: profile[k] for k in ("batch_size", "val_copies") if k in profile}
        return {"chapter": given.chapter, "backbone": "alexnet", "fit": fit, **profile}
    keys = ("embedded", "backbone", "width", "size", "max_steps", "patience", "lr", "strength",
            "test_per_class", "tasks")  # fmt: skip
    steps = {} if given.search_steps is None else {"search_steps": given.search_steps}
    return {k: getattr(given, k) for k in keys} | steps


def main() -> None:
    given, setting = parsed(None), configuration(sys.argv[1:])
    if given.what == "chapter" and not comparable():  # compute as the chapters' smoke runs do
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **COMPARABLE})
    many = given.what in ("transfer", "chapter")
    trials = [
        {"stream": stream, "learner": learner, "seed": seed, "setting": setting}
        for seed in given.seeds
        for stream in (given.streams if many else [given.what])
        for learner in given.learners
    ]
    if not given.record:
        table = sweep(study, trials, store=given.store, workers=0, retries=0)
        print(table[["stream", "learner", "seed", "A", "F", "memory_mb", "status"]].to_string())
        return
    one_thread()
    rows = results(stored(given.store), trials)
    print(f"{len(rows)} of {len(trials)} trials are in the store")
    words = [w for w in sys.argv[1:] if w not in ("--record", given.record)]
    words = [Path(w).name if w == given.store else w for w in words]
    chapter, name = given.record.split("/")
    record_result(
        chapter, name, rows, seeds=given.seeds, config=setting,
        command="python benchmarks/ctrl_study.py " + shlex.join(words),
        device=describe_device(pick_device("cpu")),
    )  # fmt: skip


if __name__ == "__main__":
    main()
