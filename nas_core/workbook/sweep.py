"""`nas-workbook sweep`: many trials of a chapter, as functions of plain values; table, picture."""

from __future__ import annotations

import argparse
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from nas_core.workbook.book import Book, BookError
from nas_core.workbook.cli import literal


def strategy_trial(
    chapter: str, profile: str, seed: int, strategy="random", trainings=60, budget=1.0
) -> dict[str, Any]:
    """Chapter 01: one search on the table; accuracy and multiply-adds of what it ends with.

    `budget` is a share of the multiply-adds of the largest cell.
    """
    from nas_core.search import strategies
    from nas_core.search.tabular import CellTable

    known = strategies.named()
    if strategy not in known:
        raise ValueError(f"strategy {strategy!r}; there are {', '.join(known)}")
    table = CellTable.load()
    limit = budget * table.about.macs.max()
    problem = strategies.Problem(table, trainings, seed, max_macs=limit)
    run = strategies.run_search(known[strategy], problem, seed).iloc[-1]
    return {
        "macs": int(table.cost(run.incumbent)),
        "val_accuracy": problem.score(run.incumbent),
        "test_accuracy": run.test,
        "regret": run.regret,
    }


def budgeted_trial(
    chapter: str, profile: str, seed: int, budget: float | None = None, **changes: Any
) -> dict[str, Any]:
    """Chapter 03: a budgeted search; `budget` is a share of the full cost.

    `changes` are fields of `BudgetConfig`, such as `lam`, or settings of the chapter.
    """
    from nas_core.search import BudgetConfig
    from nas_core.search.trial import Setup, search_trial
    from nas_core.training import one_thread

    settings = Book.load().find(chapter).profile(profile) | changes
    one_thread()
    space = ("blocks_per_group", settings["blocks"]), ("channels", tuple(settings["channels"]))
    data = {k: settings[k] for k in ("dataset", "size", "train_limit", "val_limit")}
    setup = Setup(space_args=space, device=settings.get("device", "cpu"), **data)
    known = {field.name for field in fields(BudgetConfig)}
    values: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in settings.items() if k in known
    }
    share = settings["shares"][0] if budget is None else budget
    trial = search_trial(setup, share, BudgetConfig(**values | {"seed": seed}))
    row = {k: v for k, v in trial.row.items() if k not in ("seed", "seconds", "lam", "kind")}
    return row if "lam" in changes else {**row, "lam": values.get("lam")}


TRIALS: dict[int, Callable[..., dict[str, Any]]] = {1: strategy_trial, 3: budgeted_trial}


def axes_of(number: int, wanted: set[str], profile: dict[str, Any]) -> set[str]:
    """Names that a grid of this chapter may vary; loads the library only when it must ask it."""
    if number == 1:
        return {"strategy", "trainings", "budget"}
    names = (set(profile) | {"device", "budget"}) - {"seed", "seeds", "shares"}
    if wanted <= names:
        return names
    from nas_core.search import BudgetConfig

    return names | {f.name for f in fields(BudgetConfig)} - {"seed"}


def run_sweep(book: Book, args: argparse.Namespace) -> int:
    """What the command does; returns its exit code."""
    chapter = book.find(args.chapter)
    settings = chapter.profile(args.profile)
    if chapter.number not in TRIALS:
        ready = ", ".join(f"{n:02d}" for n in TRIALS)
        raise BookError(f"chapter {chapter.number:02d} has no trial to sweep; there are {ready}")
    axes = dict(pairs := [axis(text) for text in args.grid])
    if len(axes) < len(pairs):
        raise BookError(f"--grid names one thing twice: {' '.join(args.grid)}")
    allowed = axes_of(chapter.number, set(axes), settings)
    if args.gpus:
        if "device" not in allowed:
            raise BookError(f"chapter {chapter.number:02d} computes on CPUs; drop --gpus")
        axes = {"device": ["cuda"], **axes}
    if unknown := set(axes) - allowed:
        raise BookError(f"--grid cannot vary {sorted(unknown)}; it can {sorted(allowed)}")
    if args.seeds < 1:
        raise BookError(f"--seeds {args.seeds}; at least 1 is needed")
    from nas_core.search import grid, sweep

    configs = grid(
        chapter=[chapter.name], profile=[args.profile], **axes, seed=list(range(args.seeds))
    )
    out = args.out or book.root / "build" / "sweeps"
    out.mkdir(parents=True, exist_ok=True)
    mark = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
    stem = f"{chapter.number:02d}-{args.profile}-{mark}"
    store = args.store or out / f"{stem}.sqlite"
    how = {k: getattr(args, k) for k in ("engine", "workers", "retries", "gpus", "address")}
    table = sweep(TRIALS[chapter.number], configs, store=store, **how)
    table.to_csv(out / f"{stem}.csv", index=False)
    done = table[table.status == "done"]
    print(f"{len(done)} of {len(table)} trials done: {out / stem}.csv")
    if table.attrs["interrupted"]:
        print("interrupted; the same command goes on")
    for row in table[table.status == "failed"].itertuples():
        print(f"failed: {row.error}")
    if len(done):
        report(done, list(axes), out / f"{stem}.png", chapter.title)
    return 130 if table.attrs["interrupted"] else int(len(done) < len(table))


def axis(text: str) -> tuple[str, list]:
    """`lam=4,8` as name and values; commas within brackets belong to a value."""
    name, equals, values = text.partition("=")
    if not equals or not values:
        raise ValueError(f"--grid {text!r} is no NAME=V1,V2,…")
    return name, [literal(value) for value in re.split(r",(?![^(]*\))", values)]


def report(done, axes: list[str], picture: Path, title: str) -> None:
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
    fig, ax = plt.subplots(figsize=(8, 4), layout="constrained")
    plot_pareto(
        means.assign(name=names, bars=bars), "macs", "val_accuracy", ax=ax,
        group="name" if 1 < len(means) <= 7 and axes else None,
        error=None if bars is None else "bars",
        xlabel="multiply-adds", ylabel="validation accuracy, ± over seeds", title=title,
    )  # fmt: skip
    if legend := ax.get_legend():  # beside the axes, where it covers no error bar
        handles, labels = ax.get_legend_handles_labels()
        legend.remove()
        fig.legend(handles, labels, loc="outside right upper", fontsize=8)
    fig.savefig(picture, dpi=120)
    plt.close(fig)
    print(f"Pareto front: {picture}")
