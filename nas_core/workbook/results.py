"""Recorded results: `data/results/<chapter>/<name>.json`, each with the command that makes it."""

from __future__ import annotations

import importlib
import json
import math
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
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
    today = datetime.now(UTC).strftime("%Y-%m-%d")
    record = {
        "chapter": found.name, "name": name, "command": command.strip(), "seeds": list(seeds),
        "device": device, "versions": versions(), "recorded": today, "config": config or {},
        "rows": table,
    }  # fmt: skip
    text = json.dumps(_plain(record), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    if (size := len(text.encode())) > _LIMIT:
        over = f"{size:,} bytes; {_LIMIT:,} is the limit"
        raise ValueError(f"result {name!r} takes {over}: record a summary of it")
    write_atomic(path := found.results / f"{name}.json", text)
    return path


def read_results(chapter: str | None = None, root: str | Path | None = None) -> list[dict]:
    """The records of one chapter or of all, as written; a damaged file raises `ValueError`."""
    book = Book.load(root)
    chapters = [book.find(chapter)] if chapter else list(book.chapters.values())
    records = []
    for path in [p for c in chapters for p in sorted(c.results.glob("*.json"))]:
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is no result file: {error}") from error
        found = record if isinstance(record, dict) else {}
        wrong = [name for name, kind in _FIELDS.items() if not isinstance(found.get(name), kind)]
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
        words = {"seeds": ", ".join(map(str, record["seeds"])), "versions": versions}
        frames.append(frame.assign(**{c: {**record, **words}[c] for c in origin}))
    if not frames:
        return pd.DataFrame(columns=["result", *origin])
    table = pd.concat(frames, ignore_index=True)
    return table[[c for c in table if c not in origin] + origin]


def outdated(record: dict[str, Any], root: str | Path | None = None) -> Iterator[str]:
    """What a record's command would do otherwise now; nothing when it still makes the record."""
    where = f"{record['chapter']} / {record['name']}"
    try:
        now = configuration(record["command"], Book.load(root))
    except (ValueError, ImportError, SystemExit) as error:
        yield f"{where}: {record['command']!r} does not run: {error}"
        return
    for key, value in now.items():
        want = json.dumps(_plain(value))
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
    made_by = script(Path(words[1]).stem, book.root)
    return made_by.configuration(words[2:]) if hasattr(made_by, "configuration") else {}


def script(name: str, root: Path) -> ModuleType:
    """The module `name` of the folder benchmarks/ of a book."""
    folder = root / "benchmarks"
    if not (folder / f"{name}.py").is_file():
        raise ValueError(f"there is no benchmarks/{name}.py in {root}")
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))  # scripts there import their neighbors by name
    return importlib.import_module(name)


def _plain(value: Any) -> Any:
    """JSON's own types; numbers that are not finite become null."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if hasattr(value, "tolist"):  # numpy and torch, scalars included
        return _plain(value.tolist())
    if value is None or isinstance(value, bool | int | str | float):
        return None if isinstance(value, float) and not math.isfinite(value) else value
    raise TypeError(f"{value!r} of type {type(value).__name__} cannot be written as JSON")
