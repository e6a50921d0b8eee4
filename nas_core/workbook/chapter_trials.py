"""One trial of a chapter as a function of plain values, for `nas-workbook sweep`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

from nas_core.workbook.book import Book, BookError


def strategy_trial(
    chapter: str,
    profile: str,
    seed: int,
    strategy: str = "random",
    trainings: int = 180,
    budget: float = 1.0,
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
    problem = strategies.Problem(table, trainings, max_macs=limit)
    run = strategies.run_search(known[strategy], problem, seed).iloc[-1]
    return {
        "macs": table.macs(run.incumbent),
        "val_accuracy": table.accuracy(run.incumbent),
        "test_accuracy": run.test,
        "regret": run.regret,
    }


def budgeted_trial(
    chapter: str, profile: str, seed: int, budget: float | None = None, **changes: Any
) -> dict[str, Any]:
    """Chapter 03: a budgeted search; `budget` is a share of the full cost.

    `changes` are fields of `BudgetConfig`, such as `lam`, or settings of the chapter.
    """
    from nas_core.search import BudgetConfig, Setup, search_trial
    from nas_core.training import one_thread

    settings = Book.load().find(chapter).profile(profile) | changes
    one_thread()
    setup = Setup(
        space_args=(
            ("blocks_per_group", settings["blocks"]),
            ("channels", tuple(settings["channels"])),
        ),
        dataset=settings["dataset"],
        size=settings["size"],
        train_limit=settings["train_limit"],
        val_limit=settings["val_limit"],
        device=settings.get("device", "cpu"),
    )
    known = {field.name for field in fields(BudgetConfig)}
    values: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in settings.items() if k in known
    }
    share = settings["shares"][0] if budget is None else budget
    trial = search_trial(setup, share, BudgetConfig(**values | {"seed": seed}))
    row = {k: v for k, v in trial.row.items() if k not in ("seed", "seconds", "lam", "kind")}
    return {**row, "lam": values.get("lam")} if "lam" not in changes else row


TRIALS: dict[int, Callable[..., dict[str, Any]]] = {1: strategy_trial, 3: budgeted_trial}


def axes_of(number: int, profile: dict[str, Any]) -> set[str]:
    """Names that a grid of this chapter may vary."""
    if number not in TRIALS:
        ready = ", ".join(f"{n:02d}" for n in TRIALS)
        raise BookError(f"chapter {number:02d} has no trial to sweep; there are {ready}")
    if number == 1:
        return {"strategy", "trainings", "budget"}
    from nas_core.search import BudgetConfig

    names = {f.name for f in fields(BudgetConfig)} | set(profile) | {"device", "budget"}
    return names - {"seed", "seeds", "shares"}
