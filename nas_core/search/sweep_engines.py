"""Where the trials of a sweep run: worker processes of this machine, or a Ray cluster.

Both engines are generators of `Outcome`s, one per trial in the order of finishing. They retry
by themselves, and closing them ends what is still running.
"""

from __future__ import annotations

import contextlib
import json
import logging
import multiprocessing
import os
import signal
import socket
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

import cloudpickle

Trial = tuple[str, Mapping[str, Any]]  # key and configuration
OWN_COLUMNS = frozenset({"status", "error", "attempts", "seconds", "worker"})  # of the table
HTTP2_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"  # and empty SETTINGS


class SweepError(ValueError):
    """A sweep that cannot start as asked."""


class ClusterUnreachable(SweepError):
    """No Ray cluster answers at the address."""


class ClusterTooSmall(SweepError):
    """No node of the cluster has what one trial needs: it would wait for ever."""


class Outcome(NamedTuple):
    """How a trial ended."""

    key: str
    result: str | None  # JSON text; None: it failed
    error: str | None
    attempts: int
    seconds: float
    worker: str  # host and process


def check_picklable(fn: Callable) -> bytes:
    """`fn` as bytes that another process can run; raises SweepError when that is impossible."""
    if not callable(fn):
        raise SweepError(f"fn is {fn!r}; give a function that takes a configuration's values")
    try:
        return cloudpickle.dumps(fn)
    except Exception as error:  # whatever an attribute's own __reduce__ raises
        raise SweepError(
            f"{fn!r} cannot be sent to another process ({error}); it probably holds an open file, "
            "a lock or a database. Open those inside the function"
        ) from error


def run_trial(fn: Callable, config: Mapping[str, Any]) -> tuple[str | None, str | None, float, str]:
    """Call `fn(**config)`: JSON text of the result, or the error's; seconds; host and process."""
    start = time.perf_counter()
    result = error = None
    try:
        value = fn(**config)
        if not isinstance(value, Mapping):
            raise TypeError(f"fn returned {type(value).__name__}; give a dict of names to values")
        if taken := OWN_COLUMNS & value.keys():
            raise ValueError(f"fn returned {sorted(taken)}, columns of the sweep's own; rename")
        result = json.dumps(dict(value), default=_plain)
    except (Exception, SystemExit) as exception:  # Ctrl-C is for the sweep, not for a trial
        last = traceback.extract_tb(exception.__traceback__)[-1]
        where = f"{os.path.basename(last.filename)}:{last.lineno}"
        error = f"{type(exception).__name__}: {exception} ({where})"
    return result, error, time.perf_counter() - start, f"{socket.gethostname()}:{os.getpid()}"


def _plain(value: Any) -> Any:
    """Numbers and arrays of numpy and torch as Python's own."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is not JSON-able; return numbers, strings or lists")


# -------------------------------------------------------------------- processes of this machine


@dataclass
class _Worker:
    process: Any
    pipe: Connection
    trial: Trial | None = None
    started: float = 0.0


def local_outcomes(
    fn: Callable, payload: bytes, trials: Sequence[Trial], *, retries: int, workers: int
) -> Generator[Outcome, None, None]:
    """Run trials in `workers` processes; a process that dies is replaced, its trial retried."""
    waiting = deque(trials)
    attempts = dict.fromkeys((key for key, _ in trials), 0)
    if workers == 0:
        while waiting:
            key, config = waiting.popleft()
            attempts[key] += 1
            result, error, seconds, where = run_trial(fn, config)
            if result is None and attempts[key] <= retries:
                waiting.append((key, config))
            else:
                yield Outcome(key, result, error, attempts[key], seconds, where)
        return
    # "spawn": a fork of a process with threads (torch, CUDA, Jupyter) can hang.
    context = multiprocessing.get_context("spawn")
    pool: list[_Worker] = []

    def start() -> _Worker:
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, payload), daemon=True)
        process.start()
        theirs.close()
        return _Worker(process, ours)

    try:
        pool = [start() for _ in range(min(workers, len(trials)))]
        while waiting or any(w.trial for w in pool):
            for w in pool:
                if w.trial is None and waiting:
                    w.trial, w.started = waiting.popleft(), time.perf_counter()
                    attempts[w.trial[0]] += 1
                    with contextlib.suppress(OSError):  # it died while idle: seen below
                        w.pipe.send(dict(w.trial[1]))
            busy: dict[Any, _Worker] = {w.pipe: w for w in pool if w.trial}
            for pipe in wait(list(busy)):
                w = busy[pipe]
                assert w.trial is not None
                key = w.trial[0]
                try:
                    result, error, seconds, where = w.pipe.recv()
                except (EOFError, OSError):
                    w.process.join()
                    code = w.process.exitcode
                    how = signal.Signals(-code).name if code and code < 0 else f"exit code {code}"
                    result, error = None, f"WorkerLost: its process ended with {how}"
                    seconds = time.perf_counter() - w.started
                    where = f"{socket.gethostname()}:{w.process.pid}"
                    w.process, w.pipe = (new := start()).process, new.pipe
                trial, w.trial = w.trial, None
                if result is None and attempts[key] <= retries:
                    waiting.append(trial)
                else:
                    yield Outcome(key, result, error, attempts[key], seconds, where)
    finally:
        for w in pool:
            w.pipe.close()  # an idle process ends by itself
            if w.trial:
                w.process.terminate()
        for w in pool:
            w.process.join(timeout=10)
            w.process.kill()
            w.process.join()


def _serve(pipe: Connection, payload: bytes) -> None:
    """Body of a worker process: configurations in, results out, until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    fn = cloudpickle.loads(payload)
    while True:
        try:
            config = pipe.recv()
        except EOFError:
            return
        pipe.send(run_trial(fn, config))


# -------------------------------------------------------------------- Ray


def ray_outcomes(
    fn: Callable,
    trials: Sequence[Trial],
    *,
    retries: int,
    cpus: float,
    gpus: float,
    address: str | None,
) -> Generator[Outcome, None, None]:
    """Run trials as tasks of a Ray cluster; a lost node's trials are retried on the others.

    A connection that the process has is used and kept; one made here ends with the trials.
    """
    ray, ours = _connect(address)  # here, not at the first `next`: errors come before anything runs
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(n.get("CPU", 0) >= cpus and n.get("GPU", 0) >= gpus for n in nodes):
        if ours:
            ray.shutdown()
        raise ClusterTooSmall(
            f"a trial needs {cpus:g} CPUs and {gpus:g} GPUs, which none of the {len(nodes)} nodes "
            "has; ask for less, or add such a node with `ray start --address=…`"
        )
    return _ray_outcomes(ray, ours, fn, trials, retries, cpus, gpus)


def _ray_outcomes(ray, ours, fn, trials, retries, cpus, gpus) -> Generator[Outcome, None, None]:
    # By value: importing this package, with torch, would hold up trials that need neither.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=0)(run_trial)
    function = ray.put(fn)
    waiting = deque(trials)
    attempts = dict.fromkeys((key for key, _ in trials), 0)
    running: dict[Any, tuple[Trial, float]] = {}
    try:
        while waiting or running:
            slots = 2 * max(1, int(ray.cluster_resources().get("CPU", 1) / max(cpus, 0.01)))
            while waiting and len(running) < slots:  # a queue this long keeps every node busy
                trial = waiting.popleft()
                attempts[trial[0]] += 1
                ref = task.remote(function, dict(trial[1]))
                running[ref] = trial, time.perf_counter()
            ready, _ = ray.wait(list(running), num_returns=1, timeout=1.0)
            for ref in ready:
                trial, started = running.pop(ref)
                key = trial[0]
                try:
                    result, error, seconds, where = ray.get(ref)
                except ray.exceptions.RayError as lost:
                    result, where = None, "lost"
                    why = getattr(lost, "cause", None) or lost
                    error = f"WorkerLost: {type(why).__name__}: {why}".splitlines()[0]
                    seconds = time.perf_counter() - started
                if result is None and attempts[key] <= retries:
                    waiting.append(trial)
                else:
                    yield Outcome(key, result, error, attempts[key], seconds, where)
    finally:
        for ref in running:
            ray.cancel(ref, force=True)
        if ours:
            ray.shutdown()


def _connect(address: str | None) -> tuple[Any, bool]:
    """The `ray` module, connected; whether it was connected here."""
    try:
        import ray
    except ImportError as error:
        raise SweepError(
            "engine='ray' needs Ray: pip install 'nas-workbook[ray]'; engine='local' needs nothing"
        ) from error
    if ray.is_initialized():
        return ray, False
    target = address or os.environ.get("RAY_ADDRESS") or "auto"
    try:
        host, _, port = target.removeprefix("ray://").rpartition(":")
        if host and port.isdigit():  # Ray itself would knock for many minutes
            with socket.create_connection((host, int(port)), timeout=10) as probe:
                if os.environ.get("RAY_USE_TLS") != "1":
                    probe.sendall(HTTP2_HELLO)
                    if probe.recv(9)[3:4] != b"\x04":  # RFC 9113, 3.4: a SETTINGS frame
                        raise ConnectionError("another kind of server answers")
        ray.init(address=target, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError) as error:  # OSError: also ConnectionError, timeouts
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ClusterUnreachable(
            f"no Ray cluster answers at {target!r} ({reason}). Start one with "
            "`ray start --head --port=6379`, join machines with "
            "`ray start --address=<head>:6379`, and give address='<head>:6379' or set RAY_ADDRESS"
        ) from error
    return ray, True
