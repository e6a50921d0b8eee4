"""Recorded results: `data/results/<chapter>/<name>.json`, each with where it comes from."""

from __future__ import annotations

import importlib
import json
import math
import re
import shlex
import sys
import textwrap
from collections.abc import Iterator, Sequence
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
# Numbers that are settings of a row, and measurements to show first; all others come after.
_SETTINGS = ("share", "budget", "lam", "λ/λ*", "samples", "width", "epoch", "tasks")
_FIRST = ("test_accuracy", "accuracy", "A", "F", "T", "macs", "cost", "val_accuracy")


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
    from nas_core.training import versions

    found = Book.load(root).find(chapter)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise ValueError(f"result name {name!r}: use letters, digits, '_', '-' and '.' alone")
    if not command.strip():
        raise ValueError("command is empty: a result must say how it was made")
    table = list(rows) if isinstance(rows, Sequence) else rows.to_dict("records")
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
    write_atomic(path, text)
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
    """All recorded rows of a chapter in one table.

    Columns: `result`, those of the rows, then `command`, `seeds`, `device`, `versions`,
    `recorded`. Without recorded results the table is empty but has these columns.
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


def means(record: dict[str, Any]) -> pd.DataFrame:
    """A record's rows as text: a row per setting, mean ± standard deviation over seeds."""
    import pandas as pd

    frame = pd.DataFrame(record["rows"])
    curves = frame.map(lambda v: isinstance(v, list | dict) or len(str(v)) > 40).any()
    frame = frame.loc[:, ~curves].drop(columns="seed", errors="ignore")
    frame = frame.astype({c: float for c in frame.select_dtypes("bool")})
    numbers = frame.select_dtypes("number")
    varies = [c for c in frame if frame[c].nunique(dropna=False) > 1]
    by = [c for c in varies if c not in numbers or c in _SETTINGS]
    if not by:
        frame, by = frame.assign(result=record["name"]), ["result"]
    groups = frame.groupby(by, dropna=False, sort=False)
    values = sorted(set(numbers) & set(_FIRST), key=_FIRST.index)
    values += [c for c in numbers if c not in (*by, *values)]
    return groups[values].agg(_spread).reset_index()


def _spread(values: pd.Series) -> str:
    known = values.dropna()
    if known.empty:
        return "–"
    return f"{known.mean():.3g}" + (f" ± {round(known.std(), 12):.2g}" if len(known) > 1 else "")


def in_words(record: dict[str, Any], width: int = 100, rows: int = 12) -> str:
    """A record for a terminal: what, means, command and origin, in lines of at most `width`."""
    table = means(record)
    title = f"{record['chapter']} / {record['name']}: {len(record['rows'])} rows"
    text = table.head(rows).to_string(index=False)
    while max(map(len, text.splitlines())) > width - 2 and table.shape[1] > 1:
        table = table.iloc[:, :-1]  # the last columns matter least
        text = table.head(rows).to_string(index=False)
    more = f"\n  … and {len(table) - rows} more" if len(table) > rows else ""
    seeds = ", ".join(map(str, record["seeds"][:8])) or "none named"
    seeds += f" … ({len(record['seeds'])})" if len(record["seeds"]) > 8 else ""
    origin = f"seeds {seeds} · {record['device'] or 'device not named'} · {record['recorded']}"
    whole = re.sub(r"'[^']*'|\"[^\"]*\"", lambda m: m[0].replace(" ", "\0"), record["command"])
    lines = textwrap.wrap(whole, width - 6, break_on_hyphens=False)  # not within quotes
    lines = textwrap.indent(" \\\n".join(lines).replace("\0", " "), "    ").splitlines()
    return "\n".join([title, textwrap.indent(text, "  ") + more, *lines, f"  {origin}"])


def outdated(record: dict[str, Any], root: str | Path | None = None) -> Iterator[str]:
    """What a record's command would do otherwise today; nothing when it still makes the record."""
    where = f"{record['chapter']} / {record['name']}"
    try:
        now = configuration(record["command"], Book.load(root))
    except (ValueError, ImportError, SystemExit) as error:
        yield f"{where}: {record['command']!r} does not run: {error}"
        return
    for key, value in (now or {}).items():
        want = json.dumps(_plain(value))
        have = json.dumps(record["config"].get(key, "not recorded"))
        if want != have:
            yield f"{where}: {key} was {have}, the command would use {want}"


def configuration(command: str, book: Book) -> dict[str, Any] | None:
    """Settings with which a recorded command would run now; None where its script does not tell.

    A script of `benchmarks/` tells through a function `configuration(argv)`. Raises `ValueError`
    for a command that would be refused.
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
    if words[0] == "python" and words[1].startswith("benchmarks/"):
        if not (book.root / words[1]).is_file():
            raise ValueError(f"there is no {words[1]}")
        folder = str(book.root / "benchmarks")
        if folder not in sys.path:
            sys.path.insert(0, folder)  # scripts there import their neighbours by name
        script = importlib.import_module(Path(words[1]).stem)
        return script.configuration(words[2:]) if hasattr(script, "configuration") else None
    raise ValueError("it is neither `nas-workbook run` nor a script of benchmarks/")


def _plain(value: Any) -> Any:
    """JSON's own types; what is not finite becomes null."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if hasattr(value, "tolist"):  # numpy and torch, scalars included
        return _plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    raise TypeError(f"{value!r} of type {type(value).__name__} cannot be written as JSON")
