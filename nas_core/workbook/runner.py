"""Execute chapters: each in a process of its own that is watched, timed and measured."""

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
from concurrent.futures import ThreadPoolExecutor
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
        return float(self.limit or self.chapter.limits.get(self.profile) or LIMITS[self.profile])

    @property
    def label(self) -> str:
        """Name of the files of this run: chapter, profile unless smoke, hash of parameters."""
        text = json.dumps(self.parameters, sort_keys=True)
        profile = "" if self.profile == "smoke" else f".{self.profile}"
        mark = f".{hashlib.sha256(text.encode()).hexdigest()[:8]}" if self.parameters else ""
        return self.chapter.name + profile + mark

    @property
    def output(self) -> Path:
        return self.chapter.root / "build" / "notebooks" / f"{self.label}.ipynb"

    @property
    def record(self) -> Path:
        return self.chapter.root / "build" / "runs" / f"{self.label}.json"

    def key(self) -> str:
        """Hash of everything that the outputs depend on: cells, parameters, library, data.

        Larger profiles write results themselves, so only smoke, which replays them, counts them.
        """
        packages = ("torch", "torchvision", "torchaudio", "numpy", "scikit-learn", "pandas")
        versions = [sys.version, *map(metadata.version, packages)]  # importing would take seconds
        settings = [self.injected(), self.chapter.profile(self.profile), versions]
        digest = hashlib.sha256(notebooks.fingerprint(self.source()).encode())
        digest.update(json.dumps(settings, sort_keys=True).encode())
        root, library = self.chapter.root, Path(__file__).resolve().parents[1]
        files = [p for p in library.rglob("*") if p.suffix in (".py", ".js", ".css", ".yaml")]
        files += (root / "notebooks" / "checks").glob("*.py")
        files += (p for folder in SHIPPED_DATA for p in (root / folder).rglob("*") if p.is_file())
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
    settings = COMPARABLE if job.profile == "smoke" else FAST
    settings = {**settings, **own_kernel(job.chapter.root / "build")}
    words = map(str, (job.output, job.chapter.path.parent, os.getpid()))
    log = job.record.with_suffix(".log")
    write_atomic(log, "")
    with log.open("w") as errors:
        worker = subprocess.Popen(
            [sys.executable, "-m", "nas_core.workbook.worker", *words],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            encoding="utf-8",
            env={**os.environ, **settings, "NAS_BOOK": str(job.chapter.root)},
            start_new_session=True,  # Ctrl-C reaches the runner alone, which then ends the worker
        )
    cell = cells = peak = 0
    result: dict[str, Any] | None = None

    def read_events() -> None:
        nonlocal cell, cells, result
        for line in worker.stdout or ():
            event = json.loads(line)
            if "error" in event:
                result = event
                continue
            cell, cells = event["cell"], event["of"]
            if cell_started:
                cell_started(job, cell, cells)

    reader = threading.Thread(target=read_events)
    reader.start()
    ended = ""
    while worker.poll() is None:
        used, resident = _measure(worker.pid)
        peak = max(peak, resident)
        if stop.is_set():
            ended = "stopped"
        elif used > job.seconds:
            ended = f"time limit of {job.seconds:g} s of processor time reached"
        elif time.monotonic() - began > WALL * job.seconds:
            ended = f"time limit of {WALL * job.seconds:g} s of waiting reached"
        if ended:
            for process in reversed(_tree(worker.pid)):
                with contextlib.suppress(psutil.Error):
                    process.kill()
            worker.wait()
        time.sleep(0.1)
    reader.join()
    where = f"in cell {cell} of {cells}"
    if ended:
        outcome.verdict = "stopped" if ended == "stopped" else "TIMEOUT"
        outcome.message = where if ended == "stopped" else f"{ended} {where}"
    elif result is None:
        last = " ".join(log.read_text(errors="replace").split("\n")[-4:])
        outcome.verdict, outcome.message = "FAILED", f"the worker died {where}: {last}"
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


def _tree(pid: int) -> list[psutil.Process]:
    """A process and all that it has started, as far as they still run."""
    with contextlib.suppress(psutil.Error):
        return [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    return []


def _measure(pid: int) -> tuple[float, int]:
    """Processor seconds of a worker's process tree so far, and resident bytes of its children."""
    seconds, resident = 0.0, 0
    for process in _tree(pid):
        with contextlib.suppress(psutil.Error):
            seconds += sum(process.cpu_times()[:4])  # own and of ended children, user + system
            resident += process.memory_info().rss if process.pid != pid else 0
    return seconds, resident


def summary(outcomes: Sequence[Outcome], folder: Path) -> str:
    """The table at the end of a run, in Markdown; also written as `summary.md`."""
    rows = [("chapter", "profile", "verdict", "minutes", "peak MB", "cells", "message")]
    for o in outcomes:
        message = o.message.replace("|", "/").split("\n")[0][:100]
        numbers = f"{o.minutes:.2f}", f"{o.peak_mb:.0f}", o.cells, message
        rows.append((o.chapter, o.profile, o.verdict, *numbers))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rules = ["-" * width for width in widths]
    lines = [
        f"| {' | '.join(cell.ljust(w) for cell, w in zip(row, widths, strict=True))} |"
        for row in (rows[0], rules, *rows[1:])
    ]
    passed, minutes = sum(o.good for o in outcomes), sum(o.minutes for o in outcomes)
    lines += ["", f"{passed} of {len(outcomes)} passed, {minutes:.1f} minutes"]
    write_atomic(folder / "summary.md", "\n".join(lines) + "\n")
    return "\n".join(lines)
