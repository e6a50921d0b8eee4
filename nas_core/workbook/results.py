"""Recorded results: `data/results/<chapter>/<name>.json`, each with where it comes from."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nas_core.training import versions
from nas_core.workbook.book import Book

_FIELDS = ("chapter", "name", "command", "seeds", "device", "versions", "recorded", "config")
_LIMIT = 1_000_000  # bytes; results are versioned, so they stay small


def record_result(
    chapter: str,
    name: str,
    rows: pd.DataFrame | Sequence[dict[str, Any]],
    *,
    command: str,
    seeds: Sequence[int] = (),
    device: str = "",
    config: dict[str, Any] | None = None,
    root: str | Path | None = None,
) -> Path:
    """Write the rows of a run with what it takes to repeat it; returns the file.

    `command` is the command line that makes the run, `seeds` the seeds in it, `device` words for
    the device (`describe_device`), `config` further settings. Raises `ValueError` for an unknown
    chapter, a name that is no plain word, no rows, an empty command, or more than 1 MB.
    """
    book = Book.load(root)
    found = book.find(chapter)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise ValueError(f"result name {name!r}: use letters, digits, '_', '-' and '.' alone")
    if not command.strip():
        raise ValueError("command is empty: a result must say how it was made")
    table = rows.to_dict("records") if isinstance(rows, pd.DataFrame) else [dict(r) for r in rows]
    if not table:
        raise ValueError(f"result {name!r} has no rows")
    record = {
        "chapter": found.name,
        "name": name,
        "command": command.strip(),
        "seeds": list(seeds),
        "device": device,
        "versions": versions(),
        "recorded": datetime.now(UTC).strftime("%Y-%m-%d"),
        "config": config or {},
        "rows": table,
    }
    text = json.dumps(_plain(record), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    if len(text.encode()) > _LIMIT:
        raise ValueError(
            f"result {name!r} takes {len(text.encode()):,} bytes; {_LIMIT:,} is the limit: "
            "record a summary of it"
        )
    path = found.results / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
    return path


def read_results(chapter: str | None = None, root: str | Path | None = None) -> list[dict]:
    """The records of one chapter or of all, as written; a damaged file raises `ValueError`."""
    book = Book.load(root)
    chapters = [book.find(chapter)] if chapter else list(book.chapters.values())
    records = []
    for found in chapters:
        for path in sorted(found.results.glob("*.json")):
            try:
                record = json.loads(path.read_text(encoding="utf-8"))
                missing = [f for f in (*_FIELDS, "rows") if f not in record]
            except ValueError as error:
                raise ValueError(f"{path} is no result file: {error}") from error
            if missing:
                raise ValueError(f"{path} lacks {', '.join(missing)}")
            records.append(record)
    return records


def replay(chapter: str, root: str | Path | None = None) -> pd.DataFrame:
    """All recorded rows of a chapter in one table.

    Columns: `result`, those of the rows, then `command`, `seeds`, `device`, `versions`,
    `recorded`. Without recorded results the table is empty but has these columns.
    """
    origin = ["command", "seeds", "device", "versions", "recorded"]
    frames = []
    for record in read_results(chapter, root):
        frame = pd.DataFrame(record["rows"])
        frame.insert(0, "result", record["name"])
        for column in origin:
            value = record[column]
            if column == "versions":
                value = ", ".join(f"{k} {v}" for k, v in value.items())
            elif column == "seeds":
                value = ", ".join(map(str, value))
            frame[column] = value
        frames.append(frame)
    if not frames:
        return pd.DataFrame(columns=["result", *origin])
    table = pd.concat(frames, ignore_index=True)
    return table[[c for c in table if c not in origin] + origin]


def _plain(value: Any) -> Any:
    """JSON's own types; what is not finite becomes null."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if hasattr(value, "tolist"):  # numpy and torch, scalars included
        return _plain(value.tolist())
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    raise TypeError(f"{value!r} of type {type(value).__name__} cannot be written as JSON")
