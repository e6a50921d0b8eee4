"""Chapter 07 on real recordings: a sweep over models and seeds, recorded with its provenance.

    python benchmarks/sanas_study.py FOLDER [--seeds 0 1 2] [--lams 0.7 1.5 0.3 0] [--store FILE]
    python benchmarks/sanas_study.py FOLDER --name hour --stream 3600 --lams 0.5 --blind …

FOLDER is an unpacked Speech Commands folder, complete or in part; keywords are the words with at
least --enough clips, at most ten, and all other words become `unknown`. Every finished model is in
the --store, so an interrupted study continues with the same call.
"""

from __future__ import annotations

import argparse
import sys
from functools import cache
from pathlib import Path

from nas_core.adaptive import SanasConfig, window_table
from nas_core.adaptive.experiment import KeywordProblem, Model, compare, keyword_problem
from nas_core.audio import MFCC
from nas_core.search.sweeps import sweep
from nas_core.training import describe_device, one_thread, pick_device
from nas_core.workbook import record_result

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
STATIC = ("cheapest", "shortcuts", "base", "ds_cnn", "bc_resnet")


@cache
def problem(folder: str, enough: int, sequences: int, seed: int) -> KeywordProblem:
    clips = {p.name: len(list(p.glob("*.wav"))) for p in Path(folder).iterdir() if p.is_dir()}
    keywords = sorted(w for w, n in clips.items() if n >= enough and not w.startswith("_"))
    return keyword_problem(
        folder,
        keywords=keywords[:10],
        sequences=(sequences, sequences // 8, sequences // 8),
        mfcc=MFCC(n_fft=960, hop=640, n_mfcc=20),
        seed=seed,
    )


def trial(kind: str, lam: float, width: int | None, seed: int, spend=None, **settings) -> dict:
    """One model: its row, what each epoch spent on each word, and cost by share of the word."""
    one_thread()
    data = problem(settings["folder"], settings["enough"], settings["sequences"], seed)
    config = SanasConfig(
        epochs=settings["epochs"], warmup_epochs=settings["warmup_epochs"], batch_size=16,
        lr=3e-3, seed=seed,
    )  # fmt: skip
    shape = {"width": 8, "features": 8, "conv1": (6, 6), "conv2": (5, 3), "hidden": 32}
    model = Model(kind, lam, width, spend)
    table, networks, runs = compare(
        data, [model], config, stream_seconds=settings["stream"], progress=False, **shape
    )
    result = {"row": table.to_dict("records")[0]}
    if model.adaptive:
        history = runs[model.name].history
        spent = [c for c in history if c.startswith("macs") or c in ("accuracy", "epoch")]
        result["curve"] = history[spent].to_dict("records")
        windows = window_table(networks[model.name], data.testing).query("step > 0")
        nearest = (windows.share * 4).round() / 4
        result["by_share"] = {str(s): windows.macs[nearest == s].mean() for s in SHARES}
    return result


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sequences", type=int, default=3000)
    parser.add_argument("--epochs", type=int, default=14)
    parser.add_argument("--warmup", type=int, default=6)
    parser.add_argument("--lams", type=float, nargs="*", default=[0.7, 1.5, 0.3, 0.0])
    parser.add_argument(
        "--blind", type=float, nargs="*", default=[0.7], help="λ, blind controllers"
    )
    parser.add_argument(
        "--shuffled", type=float, nargs="*", default=[], help="λ, controllers fed other streams' Φ"
    )
    parser.add_argument(
        "--spend", type=float, nargs="*", default=[],
        help="shares of the full cost that sanas, blind and shuffled are all driven to",
    )  # fmt: skip
    parser.add_argument("--static", nargs="*", default=STATIC, choices=STATIC)
    parser.add_argument("--widths", type=int, nargs="*", default=[2, 4], help="of narrow shortcuts")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--stream", type=float, default=600.0, help="seconds")
    parser.add_argument("--enough", type=int, default=400, help="clips of a keyword")
    parser.add_argument("--name", default="speech_commands", help="of the record")
    parser.add_argument("--store", type=Path, default=None, help="SQLite file")
    return parser.parse_args(argv)


def configuration(argv: list[str]) -> dict:
    """What a record of this command says about its settings."""
    args = arguments(argv)
    return {
        "folder": args.folder.name, "enough": args.enough, "sequences": args.sequences,
        "epochs": args.epochs, "warmup_epochs": args.warmup, "stream": args.stream,
    }  # fmt: skip


def main() -> None:
    args = arguments()
    kinds = {"sanas": args.lams, "blind": args.blind, "shuffled": args.shuffled}
    models = [{"kind": kind, "lam": lam} for kind, lams in kinds.items() for lam in lams]
    models += [{"kind": k, "lam": 0.5, "spend": share} for share in args.spend for k in kinds]
    for kind in args.static:
        narrow = args.widths if kind == "shortcuts" else []
        models += [{"kind": kind, "width": width} for width in (*narrow, None)]
    recorded = configuration(sys.argv[1:])
    settings = recorded | {"folder": str(args.folder.resolve())}
    configs = [
        {"lam": 0.0, "width": None, **model, "seed": seed, **settings}
        for seed in args.seeds
        for model in models
    ]
    table = sweep(trial, configs, store=args.store, workers=0, progress=False)
    done = table[table.status == "done"]
    rows, curves, shares = [], [], []
    for result, seconds in zip(done.to_dict("records"), done.seconds, strict=True):
        row = result["row"] | {"seconds": round(seconds, 1)}
        tag = {"model": row["model"], "seed": row["seed"]}
        rows.append(row)
        if "curve" in result:
            curves += [tag | epoch for epoch in result["curve"]]
            shares.append(tag | result["by_share"])
    options = [a for a in sys.argv[2:] if a not in ("--store", str(args.store))]
    where = {
        "command": " ".join(["python benchmarks/sanas_study.py", args.folder.name, *options]),
        "seeds": args.seeds,
        "config": recorded,
        "device": describe_device(pick_device("cpu")),
    }
    for part, table in (("", rows), ("_training", curves), ("_shares", shares)):
        if table:
            record_result("07_sanas", args.name + part, table, **where)


if __name__ == "__main__":
    main()
