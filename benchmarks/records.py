"""Recorded results in words, and whether their commands would still make them.

`nas-workbook results` prints a record with `in_words`; with `--check` it calls `outdated`.
"""

from __future__ import annotations

import importlib
import json
import re
import shlex
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from nas_core.workbook.book import Book
from nas_core.workbook.results import plain

# Numbers that are settings of a row, and the measurements that are shown first.
_SETTINGS = ("share", "budget", "lam", "λ/λ*", "samples", "width", "epoch", "tasks")
_FIRST = ("test_accuracy", "accuracy", "A", "F", "T", "macs", "cost", "val_accuracy")


def means(record: dict[str, Any]) -> pd.DataFrame:
    """A record's rows as text: a row per setting, mean ± standard deviation over seeds."""

    def spread(values: pd.Series) -> str:
        text = f"{values.mean():.3g}" if values.count() else "–"
        return text + (f" ± {round(values.std(), 12):.2g}" if values.count() > 1 else "")

    frame = pd.DataFrame(record["rows"]).drop(columns="seed", errors="ignore")
    curves = frame.map(lambda v: isinstance(v, list | dict) or len(str(v)) > 40).any()
    frame = frame.loc[:, ~curves]
    frame = frame.astype({c: float for c in frame.select_dtypes("bool")})
    numbers = [c for c in frame.select_dtypes("number") if c not in _SETTINGS]
    numbers.sort(key=lambda c: _FIRST.index(c) if c in _FIRST else len(_FIRST))
    by = [c for c in frame if c not in numbers and frame[c].nunique(dropna=False) > 1]
    if not by:
        frame, by = frame.assign(result=record["name"]), ["result"]
    return frame.groupby(by, dropna=False, sort=False)[numbers].agg(spread).reset_index()


def in_words(record: dict[str, Any]) -> str:
    """A record for a terminal of 100 columns: means, command and origin."""
    table = means(record)
    while max(map(len, (text := table.to_string(index=False, max_rows=12)).split("\n"))) > 98:
        table = table.iloc[:, :-1]  # the last columns matter least
    command = re.sub(r"'[^']*'|\"[^\"]*\"", lambda m: m[0].replace(" ", "\0"), record["command"])
    lines = textwrap.wrap(command, 94, break_on_hyphens=False)  # never within quotes
    command = " \\\n  ".join(lines).replace("\0", " ")
    seeds = ", ".join(map(str, record["seeds"][:8])) or "none named"
    seeds += f" … ({len(record['seeds'])})" if len(record["seeds"]) > 8 else ""
    origin = f"seeds {seeds} · {record['device'] or 'device not named'} · {record['recorded']}"
    title = f"{record['chapter']} / {record['name']}: {len(record['rows'])} rows\n"
    return title + textwrap.indent(f"{text}\n  {command}\n{origin}", "  ")


def outdated(record: dict[str, Any], root: str | Path | None = None) -> Iterator[str]:
    """What a record's command would do otherwise now; nothing when it still makes the record."""
    where = f"{record['chapter']} / {record['name']}"
    try:
        now = configuration(record["command"], Book.load(root))
    except (ValueError, ImportError, SystemExit) as error:
        yield f"{where}: {record['command']!r} does not run: {error}"
        return
    for key, value in now.items():
        want = json.dumps(plain(value))
        have = json.dumps(record["config"].get(key, "not recorded"))
        if want != have:
            yield f"{where}: {key} was {have}, the command would use {want}"


def configuration(command: str, book: Book) -> dict[str, Any]:
    """Settings with which a recorded command would run now; `ValueError` if it would be refused.

    A script of `benchmarks/` tells them through its function `configuration(argv)`, if it has one.
    """
    words = shlex.split(command)
    if words[:2] == ["nas-workbook", "run"]:
        from nas_core.workbook.cli import build_parser, literal
        from nas_core.workbook.runner import Job

        args = build_parser().parse_args(words[1:])
        (chapter,) = map(book.find, args.chapters)
        job = Job(chapter, args.profile, {n: literal(v) for n, v in args.parameters})
        settings = chapter.profile(args.profile)
        return settings | {k.lower(): v for k, v in job.parameters.items() if k.lower() in settings}
    if words[0] != "python" or not words[1].startswith("benchmarks/"):
        raise ValueError("it is neither `nas-workbook run` nor a script of benchmarks/")
    folder, name = book.root / "benchmarks", Path(words[1]).stem
    if not (folder / f"{name}.py").is_file():
        raise ValueError(f"there is no benchmarks/{name}.py in {book.root}")
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))  # scripts there import their neighbors by name
    script = importlib.import_module(name)
    return script.configuration(words[2:]) if hasattr(script, "configuration") else {}
