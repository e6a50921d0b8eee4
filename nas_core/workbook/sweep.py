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
    """Chapter 01: one search on the table. `budget` is a share of the largest cell's macs."""
    from nas_core.search import strategies
    from nas_core.search.tabular import CellTable

    known = strategies.named()
    if strategy not in known:
        raise ValueError(f"strategy {strategy!r}; there are {', '.join(known)}")
    table = CellTable.load()
    limit = budget * table.about.macs.max()
    problem = strategies.Problem(table, trainings, seed, max_macs=limit)
    run = strategies.run_search(known[strategy], problem, seed).iloc[-1]
    found = {"macs": int(table.cost(run.incumbent)), "val_accuracy": problem.score(run.incumbent)}
    return found | {"test_accuracy": run.test, "regret": run.regret}


def budgeted_trial(
    chapter: str, profile: str, seed: int, budget: float | None = None, **changes: Any
) -> dict[str, Any]:
    """Chapter 03: a budgeted search. `budget` is a share of the full cost."""
    from nas_core.search import BudgetConfig
    from nas_core.search.trial import Setup, search_trial
    from nas_core.training import one_thread

    settings = Book.load().find(chapter).profile(profile) | changes
    one_thread()
    space = ("blocks_per_group", settings["blocks"]), ("channels", tuple(settings["channels"]))
    data = {k: settings[k] for k in ("dataset", "size", "train_limit", "val_limit")}
    setup = Setup(space_args=space, device=settings.get("device", "cpu"), **data)
    values = {f.name: settings[f.name] for f in fields(BudgetConfig) if f.name in settings}
    values |= {k: tuple(v) for k, v in values.items() if isinstance(v, list)}
    share = settings["shares"][0] if budget is None else budget
    trial = search_trial(setup, share, BudgetConfig(**values | {"seed": seed}))
    row = {k: v for k, v in trial.row.items() if k not in ("seed", "seconds", "lam", "kind")}
    return row if "lam" in changes else {**row, "lam": values.get("lam")}


TRIALS: dict[int, Callable[..., dict[str, Any]]] = {1: strategy_trial, 3: budgeted_trial}


def run_sweep(book: Book, args: argparse.Namespace) -> int:
    """Run the command with its arguments; returns the exit code."""
    chapter = book.find(args.chapter)
    settings, number = chapter.profile(args.profile), chapter.number
    if number not in TRIALS:
        ready = ", ".join(f"{n:02d}" for n in TRIALS)
        raise BookError(f"chapter {number:02d} has no trial to sweep; there are {ready}")
    axes = dict(pairs := [axis(text) for text in args.grid])
    if args.seeds < 1:
        raise BookError(f"--seeds {args.seeds}; at least 1 is needed")
    if len(axes) < len(pairs):
        raise BookError(f"--grid names one thing twice: {' '.join(args.grid)}")
    allowed = {"strategy", "trainings", "budget"}
    if number == 3:
        from nas_core.search import BudgetConfig

        names = {"device", "budget", *settings, *(f.name for f in fields(BudgetConfig))}
        allowed = names - {"seed", "seeds", "shares"}
    if args.gpus:
        if "device" not in allowed:
            raise BookError(f"chapter {number:02d} computes on CPUs; drop --gpus")
        axes = {"device": ["cuda"], **axes}
    if unknown := set(axes) - allowed:
        raise BookError(f"--grid cannot vary {sorted(unknown)}; it can {sorted(allowed)}")
    from nas_core.search import grid, sweep

    fixed, seeds = {"chapter": [chapter.name], "profile": [args.profile]}, list(range(args.seeds))
    mark = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
    (folder := args.out or book.root / "build" / "sweeps").mkdir(parents=True, exist_ok=True)
    files = folder / f"{number:02d}-{args.profile}-{mark}"
    how = {k: getattr(args, k) for k in ("engine", "workers", "retries", "gpus", "address")}
    store = args.store or f"{files}.sqlite"
    table = sweep(TRIALS[number], grid(**fixed, **axes, seed=seeds), store=store, **how)
    table.to_csv(f"{files}.csv", index=False)
    done = table[table.status == "done"]
    print(f"{len(done)} of {len(table)} trials done: {files}.csv")
    for error in table[table.status == "failed"].error:
        print(f"failed: {error}")
    if len(done):
        report(done, list(axes), Path(f"{files}.png"), chapter.title)
    if table.attrs["interrupted"]:
        print("interrupted; the same command goes on")
        return 130
    return int(len(done) < len(table))


def axis(text: str) -> tuple[str, list]:
    """`lam=4,8` as name and values; commas within brackets belong to a value."""
    name, equals, values = text.partition("=")
    if not equals or not values:
        raise ValueError(f"--grid {text!r} is no NAME=V1,V2,…")
    return name, [literal(value) for value in re.split(r",(?![^(]*\))", values)]


def report(done, axes: list[str], picture: Path, title: str) -> None:
    """Print means over seeds, one row per combination, with the front starred; draw them."""
    from matplotlib.figure import Figure

    from nas_core.search import pareto_front
    from nas_core.viz import plot_pareto

    numbers = ["macs", "val_accuracy", "test_accuracy"]
    groups = done.groupby(axes or ["chapter"], dropna=False, sort=False)
    means = groups[numbers].mean().assign(**{"±": groups["test_accuracy"].std()}).reset_index()
    # The front is that of validation accuracy, which is drawn; test accuracy is only reported.
    front = means.index.isin(pareto_front(means, cost="macs", value="val_accuracy").index)
    means.insert(0, "front", ["*" if on else "" for on in front])
    print(means.to_string(index=False, float_format=lambda v: f"{v:.4g}"))
    means["name"] = [" ".join(f"{a}={row[a]}" for a in axes) for row in means.to_dict("records")]
    means["error"] = groups["val_accuracy"].std().fillna(0).to_numpy()
    figure = Figure(figsize=(8, 4), layout="constrained")
    ax, group = figure.subplots(), "name" if 1 < len(means) <= 7 else None
    words = {"xlabel": "multiply-adds", "ylabel": "validation accuracy, ± over seeds"}
    words |= {"title": title, "error": "error"}
    plot_pareto(means, "macs", "val_accuracy", ax=ax, group=group, **words)
    if legend := ax.get_legend():  # beside the axes, where it hides no error bar
        legend.remove()
        figure.legend(*ax.get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    figure.savefig(picture, dpi=120)
    print(f"Pareto front: {picture}")
