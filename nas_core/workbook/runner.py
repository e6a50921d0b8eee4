"""Execute chapters: each in a process of its own that is watched, timed and measured."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import IO, Any

import psutil

from nas_core.files import write_atomic
from nas_core.workbook import notebooks
from nas_core.workbook.book import BookError, Chapter, same_kind
from nas_core.workbook.copies import SHIPPED_DATA
from nas_core.workbook.environment import COMPARABLE, FAST, own_kernel

LIMITS = {"smoke": 300.0, "study": 4 * 3600.0, "paper": 14 * 86400.0}  # processor seconds
WALL = 10  # a chapter that waits for something that never comes ends after so many limits
Report = Callable[["Job", int, int], None]  # job, cell that starts, number of cells


@dataclass(frozen=True)
class Job:
    """One execution of one chapter."""

    chapter: Chapter
    profile: str = "smoke"
    parameters: dict[str, Any] = field(default_factory=dict)  # beside the profile
    limit: float | None = None  # processor seconds; None: that of meta.yaml or of the profile

    def __post_init__(self) -> None:
        self.chapter.profile(self.profile)  # raises when there is none
        allowed = notebooks.parameters(self.source())
        if unknown := set(self.parameters) - set(allowed):
            raise BookError(
                f"{self.chapter.name} has no parameter {', '.join(sorted(unknown))}; "
                f"it has {', '.join(allowed)}"
            )
        for name, value in self.injected().items():
            if not same_kind(value, allowed.get(name)):
                raise BookError(
                    f"{self.chapter.name}: {name} = {value!r} does not fit the default "
                    f"{allowed[name]!r}"
                )
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
        given = self.limit or self.chapter.limits.get(self.profile)
        return float(given or LIMITS[self.profile])

    @property
    def label(self) -> str:
        """Name of the files of this run: chapter, profile unless smoke, hash of parameters."""
        text = json.dumps(self.parameters, sort_keys=True)
        parts = [self.chapter.name]
        parts += [self.profile] if self.profile != "smoke" else []
        parts += [hashlib.sha256(text.encode()).hexdigest()[:8]] if self.parameters else []
        return ".".join(parts)

    @property
    def build(self) -> Path:
        return self.chapter.root / "build"

    @property
    def output(self) -> Path:
        return self.build / "notebooks" / f"{self.label}.ipynb"

    @property
    def record(self) -> Path:
        return self.build / "runs" / f"{self.label}.json"

    def key(self) -> str:
        """Hash of everything that the outputs depend on: cells, parameters, library, data.

        Larger profiles write results themselves, so only smoke, which replays them, counts them.
        """
        digest = hashlib.sha256(notebooks.fingerprint(self.source()).encode())
        settings = [self.injected(), self.chapter.profile(self.profile), _versions()]
        digest.update(json.dumps(settings, sort_keys=True).encode())
        root, library = self.chapter.root, Path(__file__).resolve().parents[1]
        files = [p for end in ("py", "js", "css", "yaml") for p in library.rglob(f"*.{end}")]
        files += (root / "notebooks" / "checks").glob("*.py")
        for folder in SHIPPED_DATA:
            files += (p for p in (root / folder).rglob("*") if p.is_file())
        others = root / "data" / "results"  # of which only those of this chapter count
        mine = self.chapter.results if self.profile == "smoke" else None
        for path in sorted(files):
            if others not in path.parents or mine in path.parents:
                digest.update(path.name.encode() + path.read_bytes())
        return digest.hexdigest()


@dataclass
class Outcome:
    """What became of a job."""

    chapter: str
    profile: str
    verdict: str  # "passed", "kept" (finished by an earlier run), "FAILED", "TIMEOUT", "stopped"
    minutes: float = 0.0
    peak_mb: float = 0.0  # of the kernel and its children
    cells: str = "0/0"
    message: str = ""

    @property
    def good(self) -> bool:
        return self.verdict in ("passed", "kept")


def run(
    jobs: Sequence[Job],
    *,
    parallel: int = 1,
    fresh: bool = False,
    cell_started: Report | None = None,
    finished: Callable[[Outcome], None] | None = None,
) -> list[Outcome]:
    """Execute jobs, `parallel` at a time; a failing one does not keep the others from running.

    Jobs that an earlier run finished with the same sources and parameters are kept unless
    `fresh`. Ctrl-C ends what runs, keeps what is finished and returns the outcomes of both.
    """
    if parallel < 1:
        raise BookError(f"{parallel} jobs at a time make no sense; give 1 or more")
    stop = threading.Event()

    def one(job: Job) -> Outcome:
        outcome = _kept(job) if not fresh else None
        try:
            outcome = outcome or _execute(job, stop, cell_started)
        except Exception as error:  # a full disk, say: it costs this chapter only
            message = f"{type(error).__name__}: {error}"
            outcome = Outcome(job.chapter.name, job.profile, "FAILED", message=message)
        if finished and not stop.is_set():
            finished(outcome)
        return outcome

    with ThreadPoolExecutor(parallel) as pool:
        futures = [pool.submit(one, job) for job in jobs]
        try:
            return [f.result() for f in futures]
        except KeyboardInterrupt:
            stop.set()
            return [f.result() for f in futures]


def _kept(job: Job) -> Outcome | None:
    """The outcome of an earlier, finished run of the very same thing."""
    try:
        record = json.loads(job.record.read_text(encoding="utf-8"))
        if record["key"] == job.key() and job.output.is_file():
            return Outcome(**{**record["outcome"], "verdict": "kept"})
    except (OSError, ValueError, KeyError, TypeError):
        pass  # none, or damaged: the chapter runs again
    return None


def _execute(job: Job, stop: threading.Event, cell_started: Report | None) -> Outcome:
    """Start the worker on the prepared notebook and watch it until it ends or must be ended."""
    outcome = Outcome(job.chapter.name, job.profile, "stopped", message="not started")
    if stop.is_set():
        return outcome
    job.record.unlink(missing_ok=True)
    key, began = job.key(), time.monotonic()
    notebooks.write(_parameterized(job), job.output)
    words = map(str, (job.output, job.chapter.path.parent, os.getpid()))
    settings = COMPARABLE if job.profile == "smoke" else FAST
    worker = subprocess.Popen(
        [sys.executable, "-m", "nas_core.workbook.worker", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        env={
            **os.environ,
            **settings,
            **own_kernel(job.build),
            "NAS_BOOK": str(job.chapter.root),
        },
        start_new_session=True,  # Ctrl-C reaches the runner alone, which then ends the worker
    )
    assert worker.stdout and worker.stderr
    cell = cells = peak = 0
    result: dict[str, Any] | None = None
    errors: list[str] = []

    def read_events(stream: IO[str]) -> None:
        nonlocal cell, cells, result
        for line in stream:
            event = json.loads(line)
            if "cell" in event:
                cell, cells = event["cell"], event["of"]
                if cell_started:
                    cell_started(job, cell, cells)
            else:
                result = event

    readers = [
        threading.Thread(target=read_events, args=(worker.stdout,)),
        threading.Thread(target=lambda: errors.extend(worker.stderr or ())),
    ]
    for reader in readers:
        reader.start()
    ended = ""
    while worker.poll() is None:
        used, resident = _measure(worker.pid)
        peak = max(peak, resident)
        if stop.is_set():
            ended = "stopped"
        elif used > job.seconds or time.monotonic() - began > WALL * job.seconds:
            ended = "TIMEOUT"
        if ended:
            _kill_tree(worker)
        time.sleep(0.1)
    for reader in readers:
        reader.join()
    at = f"in cell {cell} of {cells}"
    if ended == "TIMEOUT":
        limit = f"{job.seconds:g} s of processor time"
        if used <= job.seconds:
            limit = f"{WALL * job.seconds:g} s of waiting"
        outcome.verdict, outcome.message = ended, f"time limit of {limit} reached {at}"
    elif ended:
        outcome.message = at
    elif result is None:
        outcome.verdict = "FAILED"
        outcome.message = f"the worker died {at}: {' '.join(e.strip() for e in errors[-3:])}"
    else:
        peak = max(peak, result["peak_bytes"])
        outcome.verdict = "FAILED" if result["error"] else "passed"
        outcome.message = result["error"] or ""
    outcome.minutes = round((time.monotonic() - began) / 60, 3)
    outcome.peak_mb, outcome.cells = round(peak / 2**20, 1), f"{cell}/{cells}"
    if outcome.good:
        write_atomic(job.record, json.dumps({"key": key, "outcome": asdict(outcome)}))
    return outcome


def write_into_book(job: Job, outcome: Outcome) -> None:
    """Put what was executed into the committed notebook; what may not be committed is FAILED."""
    if not outcome.good:
        return
    try:
        nb = notebooks.finished(notebooks.read(job.output), job.chapter.name)
    except BookError as error:
        outcome.verdict, outcome.message = "FAILED", str(error)
        return
    notebooks.write(nb, job.chapter.path)
    outcome.message = "written"


def _parameterized(job: Job) -> Any:
    """The notebook to execute, with a cell that sets what differs from the committed values."""
    nb = job.source()
    if not job.injected():
        return nb
    from papermill.parameterize import parameterize_notebook

    nb.metadata["papermill"] = {}
    for cell in nb.cells:
        cell.metadata.setdefault("tags", [])  # papermill looks there without asking
    nb = parameterize_notebook(nb, job.injected(), kernel_name="python3", language="python")
    del nb.metadata["papermill"]
    return nb


def _measure(pid: int) -> tuple[float, int]:
    """Processor seconds of a worker's process tree so far, and resident bytes of its children."""
    seconds, resident = 0.0, 0
    try:
        worker = psutil.Process(pid)
        for process in [worker, *worker.children(recursive=True)]:
            try:
                seconds += sum(process.cpu_times()[:4])  # own and of ended children, user + system
                resident += process.memory_info().rss if process.pid != pid else 0
            except psutil.Error:
                continue
    except psutil.Error:
        pass
    return seconds, resident


def _kill_tree(process: subprocess.Popen[str]) -> None:
    try:
        children = psutil.Process(process.pid).children(recursive=True)
    except psutil.Error:
        children = []
    for child in children:
        try:
            child.kill()
        except psutil.Error:
            continue
    process.kill()
    process.wait()


def _versions() -> dict[str, str]:
    """Of what outputs depend on, read without importing it: importing takes seconds."""
    found = {"python": sys.version.split()[0]}
    for package in ("torch", "torchvision", "torchaudio", "numpy", "scikit-learn", "pandas"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


_COLUMNS = ("chapter", "profile", "verdict", "minutes", "peak MB", "cells", "message")


def summary(outcomes: Sequence[Outcome], folder: Path) -> str:
    """The table at the end of a run, as Markdown; also written as summary.md and summary.csv."""
    full = [_COLUMNS, *((*_row(o), o.message) for o in outcomes)]
    rows = [(*row[:-1], row[-1].replace("|", "/").split("\n")[0][:100]) for row in full]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_COLUMNS))]
    lines = [
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    passed, minutes = sum(o.good for o in outcomes), sum(o.minutes for o in outcomes)
    lines += ["", f"{passed} of {len(outcomes)} passed, {minutes:.1f} minutes"]
    text = io.StringIO()
    csv.writer(text).writerows(full)
    write_atomic(folder / "summary.csv", text.getvalue())
    write_atomic(folder / "summary.md", "\n".join(lines) + "\n")
    return "\n".join(lines)


def _row(o: Outcome) -> tuple[str, ...]:
    return (o.chapter, o.profile, o.verdict, f"{o.minutes:.2f}", f"{o.peak_mb:.0f}", o.cells)
