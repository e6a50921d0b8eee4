"""Chapter 07 on real recordings: trains the models and records the table with its provenance.

    python benchmarks/sanas_study.py FOLDER [--sequences 4000] [--epochs 12] [--lams 0.03 0.1 0.3]

FOLDER is an unpacked Speech Commands folder, complete or in part; keywords are the words with at
least --enough clips, at most ten, and all other words become `unknown`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from nas_core.adaptive import SanasConfig
from nas_core.adaptive.experiment import compare, keyword_problem
from nas_core.audio import MFCC
from nas_core.training import describe_device, one_thread, pick_device
from nas_core.workbook import record_result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sequences", type=int, default=4000)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--lams", type=float, nargs="*", default=[0.03, 0.1, 0.3])
    parser.add_argument("--kinds", nargs="*", default=["base", "shortcuts", "ds_cnn"])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    parser.add_argument("--stream", type=float, default=600.0, help="seconds")
    parser.add_argument("--enough", type=int, default=400, help="clips of a keyword")
    parser.add_argument("--name", default="speech_commands")
    args = parser.parse_args()
    one_thread()
    words = {p.name: len(list(p.glob("*.wav"))) for p in args.folder.iterdir() if p.is_dir()}
    keywords = sorted(w for w, n in words.items() if n >= args.enough and not w.startswith("_"))
    mfcc = MFCC(n_fft=960, hop=640)
    shape = {"width": args.width, "conv1": (6, 8), "conv2": (5, 4), "hidden": 32}
    models = [(kind, 0.0) for kind in args.kinds] + [("sanas", lam) for lam in args.lams]
    models += [("blind", args.lams[len(args.lams) // 2])] if args.lams else []
    rows, curves = [], []
    for seed in args.seeds:
        problem = keyword_problem(
            args.folder,
            keywords=keywords[:10],
            sequences=(args.sequences, args.sequences // 8, args.sequences // 8),
            mfcc=mfcc,
            seed=seed,
        )
        config = SanasConfig(epochs=args.epochs, lr=3e-3, seed=seed)
        for model in models:  # one at a time: what is finished stays when the run is cut short
            table, _, runs = compare(
                problem, [model], config, stream_seconds=args.stream, progress=False, **shape
            )
            print(table.to_string(), flush=True)
            rows += table.to_dict("records")
            for name, run in runs.items():
                columns = [c for c in run.history if c.startswith("macs") or c == "accuracy"]
                history = run.history[["epoch", *columns]].assign(model=name, seed=seed)
                curves += history.to_dict("records") if name.startswith("sanas") else []
            settings = {**vars(args), "folder": args.folder.name, "keywords": keywords[:10]}
            command = "python benchmarks/sanas_study.py " + " ".join(
                [args.folder.name, *sys.argv[2:]]
            )
            where = {"command": command, "seeds": args.seeds, "config": settings}
            where["device"] = describe_device(pick_device("cpu"))
            record_result("07_sanas", args.name, rows, **where)
            if curves:
                record_result("07_sanas", f"{args.name}_training", curves, **where)


if __name__ == "__main__":
    main()
