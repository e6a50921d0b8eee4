"""Execute chapters: each in a process of its own that is watched, timed and measured."""

from __future__ import annotations

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
from typing import IO, Any

import psutil

from nas_core.workbook import notebooks
from nas_core.workbook.book import BookError, Chapter
from nas_core.workbook.environment import COMPARABLE, FAST

LIMITS = {"smoke": 300.0, "study": 4 * 3600.0, "paper": 14 * 86400.0}  # seconds
Report = Callable[["Job", int, int], None]  # job, cell that starts, number of cells


@dataclass(frozen=True)
class Job:
    """One execution of one chapter."""

    chapter: Chapter
    profile: str = "smoke"
    parameters: dict[str, Any] = field(default_factory=dict)  # beside the profile
    limit: float | None = None  # seconds; None: that of meta.yaml or of the profile

    def __post_init__(self) -> None:
        self.chapter.profile(self.profile)  # raises when there is none
        allowed = notebooks.parameters(self.source())
        if unknown := set(self.parameters) - set(allowed):
            raise BookError(
                f"{self.chapter.name} has no parameter {', '.join(sorted(unknown))}; "
                f"it has {', '.join(allowed)}"
            )
        for name, value in self.injected().items():
            default = allowed.get(name)
            if default is not None and not _fits(value, default):
                raise BookError(
                    f"{self.chapter.name}: {name} = {value!r} does not fit the default {default!r}"
                )
        if self.limit is not None and self.limit <= 0:
            raise BookError(f"the time limit is {self.limit} s; it must be positive")

    def source(self) -> Any:
        """The chapter without outputs, its stubs folded."""
        nb = notebooks.read(self.chapter.path)
        notebooks.fold_stubs(nb)
        return notebooks.without_outputs(nb)

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
        """Hash of everything that the outputs depend on: cells, parameters, library, results.

        Larger profiles write results themselves, so only smoke, which replays them, counts them.
        """
        digest = hashlib.sha256(notebooks.fingerprint(self.source()).encode())
        settings = [self.injected(), self.chapter.profile(self.profile), _versions()]
        digest.update(json.dumps(settings, sort_keys=True).encode())
        library = Path(__file__).resolve().parents[1]
        files = [p for end in ("py", "js", "yaml") for p in library.rglob(f"*.{end}")]
        replayed = self.chapter.results.glob("*.json") if self.profile == "smoke" else []
        for path in [*sorted(files), *sorted(replayed)]:
            digest.update(path.name.encode() + path.read_bytes())
        return digest.hexdigest()


@dataclass
class Outcome:
    """What became of a job."""

    chapter: str
    profile: str
    verdict: str  # "passed", "kept" (finished by an earlier run), "FAILED", "TIMEOUT", "stopped"
    minutes: float
    peak_mb: float  # of the kernel and its children
    cells: str  # "30/30"
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
        outcome = outcome or _execute(job, stop, cell_started)
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
    except (OSError, ValueError):
        return None
    if record["key"] != job.key() or not job.output.is_file():
        return None
    return Outcome(**{**record["outcome"], "verdict": "kept"})


def _execute(job: Job, stop: threading.Event, cell_started: Report | None) -> Outcome:
    if stop.is_set():
        return Outcome(job.chapter.name, job.profile, "stopped", 0.0, 0.0, "0/0", "not started")
    job.record.unlink(missing_ok=True)
    job.output.unlink(missing_ok=True)
    key, started = job.key(), time.monotonic()
    worker = subprocess.Popen(
        [sys.executable, "-m", "nas_core.workbook.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        env={
            **os.environ,
            **(COMPARABLE if job.profile == "smoke" else FAST),
            "NAS_BOOK": str(job.chapter.root),
        },
        start_new_session=True,  # Ctrl-C reaches the runner alone, which then ends the worker
    )
    assert worker.stdin and worker.stdout and worker.stderr
    json.dump(
        {
            "notebook": job.source(),
            "parameters": job.injected(),
            "folder": str(job.chapter.path.parent),
            "output": str(job.output),
        },
        worker.stdin,
    )
    worker.stdin.close()
    watch = _Watch(job, cell_started)
    readers = [
        threading.Thread(target=watch.read_events, args=(worker.stdout,)),
        threading.Thread(target=watch.read_errors, args=(worker.stderr,)),
    ]
    for reader in readers:
        reader.start()
    ended = ""
    while worker.poll() is None:
        watch.measure(worker.pid)
        if stop.is_set():
            ended = "stopped"
        elif time.monotonic() - started > job.seconds:
            ended = "TIMEOUT"
        if ended:
            _kill_tree(worker)
        time.sleep(0.1)
    for reader in readers:
        reader.join()
    verdict, message = watch.verdict(ended, job.seconds)
    outcome = Outcome(
        job.chapter.name,
        job.profile,
        verdict,
        round((time.monotonic() - started) / 60, 3),
        round(watch.peak / 2**20, 1),
        f"{watch.cell}/{watch.cells}",
        message,
    )
    if verdict == "passed":
        job.record.parent.mkdir(parents=True, exist_ok=True)
        temporary = job.record.with_suffix(".tmp")
        temporary.write_text(json.dumps({"key": key, "outcome": asdict(outcome)}, indent=1))
        os.replace(temporary, job.record)
    return outcome


class _Watch:
    """What the runner knows of one worker: its cell, its result, its memory."""

    def __init__(self, job: Job, cell_started: Report | None):
        self.job, self.cell_started = job, cell_started
        self.cell = self.cells = self.peak = 0
        self.result: dict[str, Any] | None = None
        self.errors: list[str] = []

    def read_events(self, stream: IO[str]) -> None:
        for line in stream:
            event = json.loads(line)
            if "cell" in event:
                self.cell, self.cells = event["cell"], event["of"]
                if self.cell_started:
                    self.cell_started(self.job, self.cell, self.cells)
            else:
                self.result = event
                self.peak = max(self.peak, event["peak_bytes"])

    def read_errors(self, stream: IO[str]) -> None:
        self.errors = stream.read().strip().splitlines()[-3:]

    def measure(self, pid: int) -> None:
        """Sum of resident bytes over the worker's children: the kernel and what it starts."""
        total = 0
        try:
            for child in psutil.Process(pid).children(recursive=True):
                try:
                    total += child.memory_info().rss
                except psutil.Error:
                    continue
        except psutil.Error:
            return
        self.peak = max(self.peak, total)

    def verdict(self, ended: str, limit: float) -> tuple[str, str]:
        at = f"in cell {self.cell} of {self.cells}"
        if ended == "TIMEOUT":
            return ended, f"time limit of {limit:g} s reached {at}"
        if ended:
            return ended, at
        if self.result is None:
            return "FAILED", f"the worker died {at}: {' '.join(self.errors)}"
        return ("FAILED", self.result["error"]) if self.result["error"] else ("passed", "")


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


def _fits(value: Any, default: Any) -> bool:
    if isinstance(default, bool) or isinstance(value, bool):
        return type(value) is type(default)
    if isinstance(default, float):
        return isinstance(value, int | float)
    if isinstance(default, list | tuple):
        return isinstance(value, list | tuple)
    return isinstance(value, type(default))


def _versions() -> dict[str, str]:
    """Of what outputs depend on, read without importing it: importing takes seconds."""
    found = {"python": sys.version.split()[0]}
    for package in ("torch", "torchvision", "torchaudio", "numpy", "scikit-learn", "pandas"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
