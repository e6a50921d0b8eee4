"""Run many trials of a chapter, here or on a Ray cluster, and draw their Pareto front.

    nas-workbook sweep 03 --grid lam=4,8 budget=0.25,0.4 --seeds 5
    nas-workbook sweep 01 --grid strategy=random,evolution budget=0.25,0.5,1 --seeds 20
    nas-workbook sweep 03 --grid budget=0.2,0.3 --profile study --engine ray \\
        --address head:6379 --gpus 0.25

Finished trials are kept in a file under build/sweeps: the same command goes on where it was
stopped. Exit code: 0 when all are done, 1 when some failed, 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
from pathlib import Path

from nas_core.workbook.cli.run import literal


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("chapter", help="number or name")
    parser.add_argument("--grid", nargs="*", default=[], metavar="NAME=V1,V2", help="what varies")
    parser.add_argument("--seeds", type=int, default=1, help="seeds 0…N-1 of every combination")
    parser.add_argument("--profile", default="smoke", help="smoke (default), study or paper")
    parser.add_argument("--engine", default="local", help="local (default) or ray")
    parser.add_argument("--address", help="of the Ray cluster; else RAY_ADDRESS")
    parser.add_argument("--workers", type=int, default=1, help="processes, for the local engine")
    parser.add_argument("--gpus", type=float, default=0.0, help="of a trial on Ray, e.g. 0.25")
    parser.add_argument("--retries", type=int, default=1, help="of a trial that fails")
    parser.add_argument("--store", type=Path, help="SQLite file with the finished trials")
    parser.add_argument("--out", type=Path, help="folder for table and picture: build/sweeps")


def main(args: argparse.Namespace) -> int:
    from nas_core.search.sweeps import grid, sweep
    from nas_core.workbook.book import Book, BookError
    from nas_core.workbook.chapter_trials import TRIALS, axes_of

    book = Book.load()
    chapter = book.find(args.chapter)
    settings = chapter.profile(args.profile)
    allowed = axes_of(chapter.number, settings)
    axes = dict(pairs := [_axis(text) for text in args.grid])
    if len(axes) < len(pairs):
        raise BookError(f"--grid names one thing twice: {' '.join(args.grid)}")
    if args.gpus:
        if "device" not in allowed:
            raise BookError(f"chapter {chapter.number:02d} computes on CPUs; drop --gpus")
        axes = {"device": ["cuda"], **axes}
    if unknown := set(axes) - allowed:
        raise BookError(f"--grid cannot vary {sorted(unknown)}; it can {sorted(allowed)}")
    if args.seeds < 1:
        raise BookError(f"--seeds {args.seeds}; at least 1 is needed")
    configs = grid(
        chapter=[chapter.name], profile=[args.profile], **axes, seed=list(range(args.seeds))
    )
    out = args.out or book.root / "build" / "sweeps"
    out.mkdir(parents=True, exist_ok=True)
    mark = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
    stem = f"{chapter.number:02d}-{args.profile}-{mark}"
    table = sweep(
        TRIALS[chapter.number],
        configs,
        engine=args.engine,
        store=args.store or out / f"{stem}.sqlite",
        workers=args.workers,
        retries=args.retries,
        gpus=args.gpus,
        address=args.address,
    )
    table.to_csv(out / f"{stem}.csv", index=False)
    done = table[table.status == "done"]
    print(f"{len(done)} of {len(table)} trials done: {out / stem}.csv")
    if table.attrs["interrupted"]:
        print("interrupted; the same command goes on")
    for row in table[table.status == "failed"].itertuples():
        print(f"failed: {row.error}")
    if len(done):
        _report(done, list(axes), out / f"{stem}.png", chapter.title)
    return 130 if table.attrs["interrupted"] else int(len(done) < len(table))


def _axis(text: str) -> tuple[str, list]:
    name, equals, values = text.partition("=")
    if not equals or not values:
        raise ValueError(f"--grid {text!r} is no NAME=V1,V2,…")
    return name, [literal(value) for value in re.split(r",(?![^(]*\))", values)]  # (1,2) is one


def _report(done, axes: list[str], picture: Path, title: str) -> None:
    """Mean over seeds of every combination, those on the front marked; and the picture."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    from nas_core.search import pareto_front
    from nas_core.viz import plot_pareto

    numbers = ["macs", "val_accuracy", "test_accuracy"]
    if axes:
        groups = done.groupby(axes, dropna=False, sort=False)
        means = groups[numbers].mean().assign(**{"±": groups["test_accuracy"].std()}).reset_index()
        bars = groups["val_accuracy"].std().to_numpy()
    else:
        means, bars = done[numbers].reset_index(drop=True), None
    # Selected on validation accuracy, which is drawn; the test column is only reported.
    on_front = pareto_front(means, cost="macs", value="val_accuracy").index
    means.insert(0, "front", ["*" if i in on_front else "" for i in means.index])
    print(means.to_string(index=False, float_format=lambda v: f"{v:.4g}"))
    names = [" ".join(f"{a}={row[a]}" for a in axes) for row in means.to_dict("records")]
    fig, ax = plt.subplots(figsize=(6.5, 4), layout="constrained")
    plot_pareto(
        means.assign(name=names, bars=bars), "macs", "val_accuracy", ax=ax,
        group="name" if 1 < len(means) <= 7 and axes else None,
        error=None if bars is None else "bars",
        xlabel="multiply-adds", ylabel="validation accuracy, ± over seeds", title=title,
    )  # fmt: skip
    fig.savefig(picture, dpi=120)
    plt.close(fig)
    print(f"Pareto front: {picture}")
