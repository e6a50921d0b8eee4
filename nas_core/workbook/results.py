"""Recorded results: `data/results/<chapter>/<name>.json`, each with the command that makes it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas_core.files import write_atomic
from nas_core.workbook.book import Book

if TYPE_CHECKING:
    import pandas as pd

_FIELDS: dict[str, type] = {
    "chapter": str, "name": str, "command": str, "seeds": list, "device": str,
    "versions": dict, "recorded": str, "config": dict, "rows": list,
}  # fmt: skip
_LIMIT = 1_000_000  # bytes; results are versioned, so they stay small


def record_result(
    chapter: str, name: str, rows: pd.DataFrame | Sequence[dict[str, Any]], *,
    command: str, seeds: Sequence[int] = (), device: str = "",
    config: dict[str, Any] | None = None, root: str | Path | None = None,
) -> Path:  # fmt: skip
    """Write the rows of a run with what it takes to repeat it; returns the file.

    `command` is the command line that makes the run, `device` is in words (`describe_device`),
    `config` holds all other settings. Raises `ValueError` for an unknown chapter, a name that is
    no plain word, no rows, an empty command, or more than 1 MB.
    """
    from nas_core.training import versions

    found = Book.load(root).find(chapter)
    table = list(rows) if isinstance(rows, Sequence) else rows.to_dict("records")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise ValueError(f"result name {name!r}: use letters, digits, '_', '-' and '.' alone")
    if not command.strip():
        raise ValueError("command is empty: a result must say how it was made")
    if not table:
        raise ValueError(f"result {name!r} has no rows")
    record = {
        "chapter": found.name, "name": name, "command": command.strip(), "seeds": list(seeds),
        "device": device, "versions": versions(), "recorded": f"{datetime.now(UTC):%Y-%m-%d}",
        "config": config or {}, "rows": table,
    }  # fmt: skip
    text = json.dumps(plain(record), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    if (size := len(text.encode())) > _LIMIT:
        raise ValueError(f"{size:,} bytes; {_LIMIT:,} is the limit: record a summary of {name!r}")
    write_atomic(path := found.results / f"{name}.json", text)
    return path


def read_results(chapter: str | None = None, root: str | Path | None = None) -> list[dict]:
    """The records of one chapter or of all, as written; a damaged file raises `ValueError`."""
    book = Book.load(root)
    chapters = [book.find(chapter)] if chapter else list(book.chapters.values())
    records = []
    for path in [p for c in chapters for p in sorted(c.results.glob("*.json"))]:
        try:
            record = dict(json.loads(path.read_text(encoding="utf-8")))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path} is no result file: {error}") from error
        wrong = [name for name, kind in _FIELDS.items() if not isinstance(record.get(name), kind)]
        if wrong or not all(isinstance(row, dict) for row in record["rows"]):
            raise ValueError(f"{path} lacks a proper {', '.join(wrong) or 'table of rows'}")
        records.append(record)
    return records


def replay(chapter: str, root: str | Path | None = None) -> pd.DataFrame:
    """All recorded rows of a chapter in one table, which is empty where nothing is recorded.

    Columns: `result`, those of the rows, `command`, `seeds`, `device`, `versions`, `recorded`.
    """
    import pandas as pd

    origin = ["command", "seeds", "device", "versions", "recorded"]
    frames = []
    for record in read_results(chapter, root):
        frame = pd.DataFrame(record["rows"])
        frame.insert(0, "result", record["name"])
        versions = ", ".join(f"{k} {v}" for k, v in record["versions"].items())
        record |= {"seeds": ", ".join(map(str, record["seeds"])), "versions": versions}
        frames.append(frame.assign(**{c: record[c] for c in origin}))
    if not frames:
        return pd.DataFrame(columns=["result", *origin])
    table = pd.concat(frames, ignore_index=True)
    return table[[c for c in table if c not in origin] + origin]


def plain(value: Any) -> Any:
    """`value` in JSON's own types; numbers that are not finite become null."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if hasattr(value, "tolist"):  # numpy and torch, scalars included
        return plain(value.tolist())
    if value is None or isinstance(value, bool | int | str | float):
        return None if isinstance(value, float) and not math.isfinite(value) else value
    raise TypeError(f"{value!r} of type {type(value).__name__} cannot be written as JSON")
