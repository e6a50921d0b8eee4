"""The table at the end of a run, printed and saved as build/summary.csv and .md."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path

from nas_core.workbook.runner import Outcome

_COLUMNS = ("chapter", "profile", "verdict", "minutes", "peak MB", "cells", "message")


def table(outcomes: Sequence[Outcome]) -> str:
    """Aligned columns for a terminal, which is Markdown too."""
    rows = [_COLUMNS, *(_row(o) for o in outcomes)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_COLUMNS))]
    lines = [
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    passed = sum(o.good for o in outcomes)
    minutes = sum(o.minutes for o in outcomes)
    return "\n".join([*lines, "", f"{passed} of {len(outcomes)} passed, {minutes:.1f} minutes"])


def save_summary(outcomes: Sequence[Outcome], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    _replace(folder / "summary.md", table(outcomes) + "\n")
    temporary = folder / "summary.csv.tmp"
    with temporary.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([_COLUMNS, *(_row(o, full=True) for o in outcomes)])
    os.replace(temporary, folder / "summary.csv")


def _row(outcome: Outcome, full: bool = False) -> tuple[str, ...]:
    message = outcome.message if full else outcome.message.replace("|", "/").split("\n")[0][:100]
    minutes, peak = f"{outcome.minutes:.2f}", f"{outcome.peak_mb:.0f}"
    return (
        *(outcome.chapter, outcome.profile, outcome.verdict),
        *(minutes, peak, outcome.cells, message),
    )


def _replace(path: Path, text: str) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
