"""Execute chapters: each in a process of its own, whose time and memory are measured."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from nas_core.files import write_atomic
from nas_core.workbook import notebooks
from nas_core.workbook.book import BookError, Chapter, same_kind
from nas_core.workbook.copies import SHIPPED_DATA
from nas_core.workbook.environment import COMPARABLE, FAST, own_kernel

LIMITS = {"smoke": 300.0, "study": 4 * 3600.0, "paper": 14 * 86400.0}  # processor seconds
WALL = 10  # a chapter that waits without computing ends after this many limits
PACKAGES = ("torch", "torchvision", "torchaudio", "numpy", "scikit-learn", "pandas")


@dataclass(frozen=True)
class Job:
    """One execution of one chapter. Wrong parameters, types and limits raise `BookError`."""

    chapter: Chapter
    profile: str = "smoke"
    parameters: dict[str, Any] = field(default_factory=dict)  # beside the profile
    limit: float | None = None  # processor seconds; None: that of meta.yaml or of the profile

    def __post_init__(self) -> None:
        self.chapter.profile(self.profile)  # raises when there is none
        name, allowed = self.chapter.name, notebooks.parameters(self.source())
        if unknown := ", ".join(sorted(set(self.parameters) - set(allowed))):
            raise BookError(f"{name} has no parameter {unknown}; it has {', '.join(allowed)}")
        for key, value in self.injected().items():
            if not same_kind(value, default := allowed.get(key)):
                raise BookError(f"{name}: {key} = {value!r} does not fit the default {default!r}")
        if self.limit is not None and self.limit <= 0:
            raise BookError(f"the time limit is {self.limit} s; it must be positive")

    def source(self) -> Any:
        """The chapter without outputs, its exercises arranged."""
        nb = notebooks.read(self.chapter.path)
        return notebooks.without_outputs(notebooks.arranged(nb))

    def injected(self) -> dict[str, Any]:
        """Parameters that differ from those the notebook is committed with."""
        profile = {} if self.profile == "smoke" else {"PROFILE": self.profile}
        return {**profile, **self.parameters}

    @property
    def seconds(self) -> float:
        return float(self.limit or self.chapter.limits.get(self.profile) or LIMITS[self.profile])

    @property
    def label(self) -> str:
        """Name of this run's files: chapter, profile unless smoke, hash of the parameters."""
        text = json.dumps(self.parameters, sort_keys=True)
        profile = [self.profile] * (self.profile != "smoke")
        mark = [hashlib.sha256(text.encode()).hexdigest()[:8]] * bool(self.parameters)
        return ".".join([self.chapter.name, *profile, *mark])

    @property
    def output(self) -> Path:
        return self.chapter.root / "build" / "notebooks" / f"{self.label}.ipynb"

    @property
    def record(self) -> Path:
        return self.chapter.root / "build" / "runs" / f"{self.label}.json"

    def key(self) -> str:
        """Hash of all that the outputs depend on: cells, parameters, versions, library, data.

        Recorded results count at smoke only: longer profiles write them.
        """
        versions = [sys.version, *map(metadata.version, PACKAGES)]  # imports would take seconds
        settings = [self.injected(), self.chapter.profile(self.profile), versions]
        digest = hashlib.sha256(notebooks.fingerprint(self.source()).encode())
        digest.update(json.dumps(settings, sort_keys=True).encode())
        root, library = self.chapter.root, Path(__file__).resolve().parents[1]
        files = [p for p in library.rglob("*") if p.suffix in (".py", ".js", ".css", ".yaml")]
        files += (root / "notebooks" / "checks").glob("*.py")
        files += (p for folder in SHIPPED_DATA for p in (root / folder).rglob("*") if p.is_file())
        results = root / "data" / "results"  # of which a chapter reads its own
        mine = self.chapter.results if self.profile == "smoke" else None
        for path in sorted(files):
            if results not in path.parents or mine in path.parents:
                digest.update(path.name.encode() + path.read_bytes())
        return digest.hexdigest()


@dataclass
class Outcome:
    """What became of a job."""

    chapter: str
    profile: str
    verdict: str  # "passed", "kept" (finished by an earlier run), "FAILED", "TIMEOUT", "stopped"
    minutes: float = 0.0
    peak_mb: float = 0.0  # of the kernel and its children, looked at ten times a second
    cells: str = "0/0"
    message: str = ""

    @property
    def good(self) -> bool:
        return self.verdict in ("passed", "kept")


def run(
    jobs: Sequence[Job], *, parallel: int = 1, fresh: bool = False,
    cell_started: Callable[[Job, int, int], None] = lambda *_: None,
    finished: Callable[[Outcome], None] = lambda _: None,
) -> list[Outcome]:  # fmt: skip
    """Execute jobs, `parallel` at a time; one that fails does not stop the others.

    A job that an earlier run finished (same key) is kept unless `fresh`. Ctrl-C ends what runs.
    `cell_started` gets a job, the number of a cell and the number of cells.
    """
    if parallel < 1:
        raise BookError(f"{parallel} jobs at a time make no sense; give 1 or more")
    stop = threading.Event()

    def one(job: Job) -> Outcome:
        outcome = Outcome(job.chapter.name, job.profile, "stopped", message="not started")
        if stop.is_set():
            return outcome
        try:
            outcome = (None if fresh else _kept(job)) or _execute(job, stop, cell_started)
        except Exception as error:  # a full disk, say, fails this chapter only
            outcome.verdict, outcome.message = "FAILED", f"{type(error).__name__}: {error}"
        if not stop.is_set():
            finished(outcome)
        return outcome

    with ThreadPoolExecutor(parallel) as pool:
        futures = [pool.submit(one, job) for job in jobs]
        try:
            wait(futures)
        except KeyboardInterrupt:
            stop.set()
    return [f.result() for f in futures]


def _kept(job: Job) -> Outcome | None:
    """The outcome of an earlier run with the same key, if that run finished."""
    try:
        record = json.loads(job.record.read_text(encoding="utf-8"))
        if record["key"] == job.key() and job.output.is_file():
            return Outcome(**{**record["outcome"], "verdict": "kept"})
    except (OSError, ValueError, KeyError, TypeError):
        pass  # no record, or a damaged one: the chapter runs again
    return None


def _execute(job: Job, stop: threading.Event, cell_started: Callable) -> Outcome:
    """Start a worker on the prepared notebook and watch it until it ends or reaches a limit."""
    key, began = job.key(), time.monotonic()
    log, events = job.record.with_suffix(".log"), job.record.with_suffix(".events")
    job.record.unlink(missing_ok=True)
    notebooks.write(_parameterized(job), job.output)
    write_atomic(events, "")
    words = map(str, (job.output, job.chapter.path.parent, events))
    settings = COMPARABLE if job.profile == "smoke" else FAST
    settings = {**settings, **own_kernel(), "NAS_BOOK": str(job.chapter.root)}
    seen: dict[str, Any] = {"cell": 0, "of": 0}  # what the worker has reported
    peak, ended = 0, ""
    with (
        log.open("w") as out,
        subprocess.Popen(
            [sys.executable, "-m", "nas_core.workbook.runner", *words],
            stdout=out, stderr=out, env={**os.environ, **settings},
            stdin=subprocess.PIPE,  # closes when this process ends, and then the worker ends
            start_new_session=True,  # Ctrl-C reaches this process only, which ends the worker
        ) as worker,
    ):  # fmt: skip
        while worker.poll() is None:
            used, resident = _measure(worker.pid)
            peak, before = max(peak, resident), seen["cell"]
            seen |= _reported(events)
            if seen["cell"] != before:
                cell_started(job, seen["cell"], seen["of"])
            if stop.is_set():
                ended = "stopped"
            elif used > job.seconds:
                ended = f"time limit of {job.seconds:g} s of processor time reached"
            elif time.monotonic() - began > WALL * job.seconds:
                ended = f"time limit of {WALL * job.seconds:g} s of waiting reached"
            for process in reversed(_tree(worker.pid)) if ended else ():
                with contextlib.suppress(psutil.Error):
                    process.kill()
            time.sleep(0.1)
    seen |= _reported(events)
    where = f"in cell {seen['cell']} of {seen['of']}"
    if ended == "stopped":
        verdict, message = "stopped", where
    elif ended:
        verdict, message = "TIMEOUT", f"{ended} {where}"
    elif "error" not in seen:
        last = " ".join(log.read_text(errors="replace").split("\n")[-4:])
        verdict, message = "FAILED", f"the worker died {where}: {last}"
    elif seen["error"]:
        verdict, message = "FAILED", f"cell {seen['cell']}: {seen['error']}"
    else:
        verdict, message = "passed", ""
    measured = round((time.monotonic() - began) / 60, 3), round(peak / 2**20, 1)
    cells = f"{seen['cell']}/{seen['of']}"
    outcome = Outcome(job.chapter.name, job.profile, verdict, *measured, cells, message)
    if outcome.good:
        write_atomic(job.record, json.dumps({"key": key, "outcome": asdict(outcome)}))
    return outcome


def _reported(events: Path) -> dict[str, Any]:
    """What the worker has reported, the latest value of each name; the last line may be cut."""
    lines = events.read_text().split("\n")[:-1]
    return {k: v for line in lines for k, v in json.loads(line).items()}


def work(path: str, folder: str, events: str) -> None:
    """The worker: execute the notebook `path` in place, with `folder` as working directory.

    For every cell that starts, and at the end, it writes a line of JSON into the file `events`.
    """
    from nbclient import NotebookClient

    threading.Thread(target=_end_with_the_runner, daemon=True).start()
    nb = notebooks.read(path)
    code = [i for i, c in enumerate(nb.cells) if c.cell_type == "code" and c.source.strip()]
    out = open(events, "a", buffering=1)  # noqa: SIM115 — line by line, until the process ends

    def started(cell: Any, cell_index: int) -> None:
        if cell_index in code:
            out.write(json.dumps({"cell": code.index(cell_index) + 1, "of": len(code)}) + "\n")

    client = NotebookClient(
        nb, timeout=None, kernel_name="python3", resources={"metadata": {"path": folder}},
        record_timing=False, on_cell_start=started,
        on_cell_executed=lambda **_: notebooks.write(nb, path),  # outputs survive a kill
    )  # fmt: skip
    error = None
    try:
        client.execute()
    except Exception as failure:  # of a cell, or of a kernel that dies or does not start
        name = getattr(failure, "ename", type(failure).__name__)
        error = f"{name}: {getattr(failure, 'evalue', failure)}"
    notebooks.write(nb, path)
    out.write(json.dumps({"error": error}) + "\n")


def _end_with_the_runner() -> None:
    """The runner holds the other end of stdin; a runner that is killed must leave no kernel."""
    os.read(0, 1)
    for child in psutil.Process().children(recursive=True):
        child.kill()
    os._exit(1)


def _tree(pid: int) -> list[psutil.Process]:
    """A process and its descendants that still run."""
    with contextlib.suppress(psutil.Error):
        return [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    return []


def _measure(pid: int) -> tuple[float, int]:
    """Processor seconds of a process tree so far, and resident bytes of its descendants."""
    seconds, resident = 0.0, 0
    for process in _tree(pid):
        with contextlib.suppress(psutil.Error):
            seconds += sum(process.cpu_times()[:4])  # own and of ended children, user + system
            resident += process.memory_info().rss if process.pid != pid else 0
    return seconds, resident


def _parameterized(job: Job) -> Any:
    """The notebook to execute, with a cell that sets what differs from the committed values."""
    nb = job.source()
    if not job.injected():
        return nb
    from papermill.parameterize import parameterize_notebook

    nb.metadata["papermill"] = {}
    for cell in nb.cells:
        cell.metadata.setdefault("tags", [])  # papermill expects them
    nb = parameterize_notebook(nb, job.injected(), kernel_name="python3", language="python")
    del nb.metadata["papermill"]
    return nb


def write_into_book(job: Job, outcome: Outcome) -> None:
    """Put an execution into the committed notebook; a breach of its rules makes it FAILED."""
    try:
        if outcome.good:
            nb = notebooks.finished(notebooks.read(job.output), job.chapter.name)
            notebooks.write(nb, job.chapter.path)
            outcome.message = "written"
    except BookError as error:
        outcome.verdict, outcome.message = "FAILED", str(error)


def summary(outcomes: Sequence[Outcome], folder: Path) -> str:
    """The table at the end of a run, in Markdown; also written into `folder` as `summary.md`."""
    rows: list[Any] = [("chapter", "profile", "verdict", "minutes", "peak MB", "cells", "message")]
    for o in outcomes:
        numbers = f"{o.minutes:.2f}", f"{o.peak_mb:.0f}", o.cells
        message = o.message.replace("|", "/").split("\n")[0][:100]
        rows.append((o.chapter, o.profile, o.verdict, *numbers, message))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * width for width in widths])
    lines = [f"| {' | '.join(map(str.ljust, row, widths))} |" for row in rows]
    passed, minutes = sum(o.good for o in outcomes), sum(o.minutes for o in outcomes)
    lines += ["", f"{passed} of {len(outcomes)} passed, {minutes:.1f} minutes"]
    write_atomic(folder / "summary.md", "\n".join(lines) + "\n")
    return "\n".join(lines)


if __name__ == "__main__":
    work(*sys.argv[1:])
