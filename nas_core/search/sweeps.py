"""Many trials, one table: `sweep(fn, configs)` on processes of this machine or on a Ray cluster.

Every finished trial is in a SQLite file before the next one starts. When a sweep stops (Ctrl-C, a
crash, a lost node), only the trials in progress are lost; the same call continues it.
`map_trials` is the plain map for a grid inside one trial.
"""

from __future__ import annotations

import copyreg
import functools
import hashlib
import importlib
import inspect
import itertools
import json
import logging
import os
import re
import signal
import socket
import sqlite3
import sys
import threading
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import closing, contextmanager
from dataclasses import asdict, is_dataclass
from pathlib import Path
from types import CodeType, SimpleNamespace
from typing import Any

import cloudpickle
import pandas as pd

from nas_core.training import progress_bar

OWN_COLUMNS = ("status", "error", "attempts", "seconds", "worker")  # of the table
HTTP2_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"  # and empty SETTINGS

# What an engine is: how to start a trial, and how many may be under way.
Engine = tuple[Callable[[dict[str, Any]], Future], Callable[[], int]]


class SweepError(ValueError):
    """A sweep that cannot start: wrong input, a store of another sweep, no cluster."""


def grid(**axes: Iterable[Any]) -> list[dict[str, Any]]:
    """Every combination of the values given for each name, last name fastest."""
    return [dict(zip(axes, v, strict=True)) for v in itertools.product(*axes.values())]


def sweep(
    fn: Callable[..., Mapping[str, Any]], configs: Iterable[Mapping[str, Any]], *,
    engine: str = "local", store: str | Path | None = None, workers: int = 1, retries: int = 1,
    cpus: float = 1.0, gpus: float = 0.0, address: str | None = None, version: str | None = None,
    progress: bool = True,
) -> pd.DataFrame:  # fmt: skip
    """Call `fn(**config)` for every configuration; failures are retried and never stop the rest.

    Args:
        fn: returns a mapping of names to JSON-able values. Functions of a notebook or a script
            are fine; the script is not run again in the workers.
        configs: mappings of JSON-able values (numpy's numbers too), all different.
        engine: "local", `workers` processes on this machine, or "ray", an existing cluster.
        store: SQLite file; trials that it has as done are not run again. None: in memory only.
        workers: processes (local); 0 runs the trials in this process, one after the other.
        retries: further attempts after a trial raised or its process or node was lost.
        cpus, gpus: what a trial needs on a Ray cluster; `gpus=0.25` puts four on one GPU.
        address: of the Ray cluster; None: the environment's `RAY_ADDRESS`, else this machine's.
        version: what the store calls the code of `fn`; by default `code_version(fn)`. Give the
            same text after an edit if the old results are still valid.

    Returns:
        One row per configuration, in the given order: its values, those of the result,
        `status` ("done", "failed", "pending"), `error`, `attempts`, `seconds` and `worker`.
        `.attrs["interrupted"]` is True when Ctrl-C ended it early; nothing finished is lost.

    Raises:
        SweepError: before anything runs.
    """
    if engine not in ("local", "ray"):
        raise SweepError(f"engine {engine!r}; there are 'local', 'ray'")
    if workers < 0 or retries < 0:
        raise SweepError(f"workers={workers}, retries={retries}; neither may be negative")
    if cpus < 0 or gpus < 0 or (gpus and engine == "local"):
        raise SweepError(
            f"cpus={cpus:g}, gpus={gpus:g} of a trial with engine={engine!r}; neither may be "
            "negative, and only 'ray' assigns GPUs"
        )
    trials, payload, interrupted = _keyed(configs), _pickled(fn), False
    with closing(_open_store(store, _owner(fn, version))) as db:
        with db:
            new = "INSERT OR IGNORE INTO trials (key, config, status) VALUES (?, ?, 'pending')"
            db.executemany(new, [(key, json.dumps(config)) for key, config in trials.items()])
        done = {key for (key,) in db.execute("SELECT key FROM trials WHERE status = 'done'")}
        todo = [(key, config) for key, config in trials.items() if key not in done]
        if engine == "ray" and todo:
            runs = _on_ray(fn, cpus, gpus, address)
        else:
            runs = _on_this_machine(fn, payload, workers)
        with runs as how, progress_bar(len(trials), progress and "sweep") as bar:
            bar.update(len(done & trials.keys()))
            try:
                for row in _outcomes(how, todo, retries):
                    with db:
                        db.execute(_FINISH, row)
                    bar.update(1)
            except KeyboardInterrupt:
                interrupted = True
        table = _table(db, trials)
    table.attrs["interrupted"] = interrupted
    return table


def map_trials(
    fn: Callable[[Any], Any],
    items: Sequence[Any],
    processes: int = 1,
    keep: type[Exception] | tuple[type[Exception], ...] = (),
) -> list[Any]:
    """`fn(item)` for every item, in order, in this process or in several of one thread each.

    Args:
        processes: 1 computes here. The processes are kept for the next call.
        keep: exceptions that count as results: the list holds the exception of an item whose call
            raises one, and the other items go on. Any other exception ends the map.
    """

    def call(item: Any, parent: int | None = None) -> Any:
        if parent is not None:
            _follow(parent)
        try:
            return fn(item)
        except keep as error:
            return error

    if processes == 1 or len(items) <= 1:
        return [call(item) for item in items]
    import joblib

    with joblib.parallel_config(backend="loky", inner_max_num_threads=1, max_nbytes=None):
        run = joblib.Parallel(min(processes, len(items)), batch_size=1)
        return run(joblib.delayed(call)(item, os.getpid()) for item in items)


def plain(value: Any) -> Any:
    """Numbers and arrays of numpy and torch as Python's own, also inside lists and dicts."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Mapping):
        return {k: plain(v) for k, v in value.items()}
    return type(value)(map(plain, value)) if type(value) in (list, tuple) else value


def _keyed(configs: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Configurations by their hash, checked."""
    trials: dict[str, dict[str, Any]] = {}
    for number, config in enumerate(configs):
        which = f"configuration {number}"
        if not isinstance(config, Mapping) or not all(isinstance(k, str) for k in config):
            raise SweepError(f"{which} is {config!r}; give a dict with string keys")
        if taken := config.keys() & OWN_COLUMNS:
            raise SweepError(f"{which} names {sorted(taken)}, columns of the sweep's own; rename")
        config = plain(config)
        try:
            text = json.dumps(config, sort_keys=True, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise SweepError(f"{which} is {config}, which is not JSON-able: {error}") from error
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        if digest in trials:
            both = f"configurations {list(trials).index(digest)} and {number}"
            raise SweepError(f"{both} are both {text}; vary a seed, or drop one")
        trials[digest] = config
    return trials


def _pickled(fn: Callable) -> bytes:
    """`fn` as bytes that another process can run."""
    if not callable(fn):
        raise SweepError(f"fn is {fn!r}; give a function that takes a configuration's values")
    # A function that names both `torch` and an attribute `classes` or `ops` seems to use
    # torch.classes or torch.ops, objects that pass for modules and cannot be pickled as such.
    for name in ("classes", "ops"):
        if module := getattr(sys.modules.get("torch"), name, None):
            copyreg.pickle(type(module), lambda m: (importlib.import_module, (m.__name__,)))
    try:
        return cloudpickle.dumps(fn)
    except Exception as error:  # whatever an attribute's own __reduce__ raises
        raise SweepError(
            f"{fn!r} cannot be sent to another process ({error}); it probably holds an open file, "
            "a lock or a database. Open those inside the function"
        ) from error


def _owner(fn: Callable, version: str | None) -> str:
    """What a store calls its function: its full name, and the version of its code."""
    what = inspect.unwrap(fn)
    what = what.func if isinstance(what, functools.partial) else what
    name = getattr(what, "__qualname__", type(what).__name__)
    code = code_version(fn) if version is None else version
    return f"{getattr(what, '__module__', '?')}.{name}" + (f" (code {code})" if code else "")


def code_version(fn: Callable) -> str:
    """Ten hex digits that change with what a function does.

    They cover its compiled code and defaults, the values that a closure, a `partial` or a
    method's object holds, and the functions and constants of the same module that the code names.
    Comments and docstrings do not count, nor does anything in other modules.
    """
    seen: set[Any] = set()

    def of(x: Any) -> Any:
        x = inspect.unwrap(x) if callable(x) else x
        if isinstance(x, functools.partial):
            return ["partial", of(x.func), of(x.args), of(x.keywords)]
        if inspect.ismethod(x):
            return ["method", of(x.__func__), of(vars(x.__self__))]
        if inspect.isfunction(x) and x not in seen:
            seen.add(x)
            cells = [of(cell.cell_contents) for cell in x.__closure__ or ()]
            return [code(x.__code__, x), of(x.__defaults__), of(x.__kwdefaults__), cells]
        if inspect.isroutine(x) or inspect.isclass(x) or inspect.ismodule(x):
            return x.__name__
        if callable(x):  # an object with __call__
            return [type(x).__qualname__, of(type(x).__call__), of(getattr(x, "__dict__", {}))]
        if isinstance(x, Mapping | list | tuple):
            return [of(v) for v in (x.items() if isinstance(x, Mapping) else x)]
        try:
            value = asdict(x) if is_dataclass(x) and not isinstance(x, type) else x
            return json.loads(json.dumps(plain(value)))
        except (TypeError, ValueError):
            return hashlib.sha256(cloudpickle.dumps(x)).hexdigest()

    def code(c: CodeType, f: Any) -> list[Any]:
        inner = [k for k in c.co_consts if k is None or k != f.__doc__]
        consts = [code(k, f) if isinstance(k, CodeType) else repr(k) for k in inner]
        named = [f.__globals__[n] for n in c.co_names if n in f.__globals__]
        own = [g for g in named if getattr(g, "__module__", None) == f.__module__]
        own += [g for g in named if isinstance(g, int | float | str | tuple)]
        return [c.co_code.hex(), c.co_names, consts, [of(g) for g in own if not inspect.isclass(g)]]

    return hashlib.sha256(json.dumps(of(fn)).encode()).hexdigest()[:10]


def run_trial(fn: Callable, config: Mapping[str, Any]) -> dict[str, Any]:
    """Call `fn(**config)`: JSON text of its result or the error; seconds; host and process."""
    start = time.perf_counter()
    result = error = None
    try:
        value = fn(**config)
        if not isinstance(value, Mapping):
            raise TypeError(f"fn returned {type(value).__name__}; give a dict of names to values")
        value = plain(value)
        if taken := value.keys() & OWN_COLUMNS:
            raise ValueError(f"fn returned {sorted(taken)}, columns of the sweep's own; rename")
        for name in config.keys() & value.keys():
            if value[name] != config[name]:  # the table would show the wrong configuration
                called = f"but was called with {name}={config[name]!r}; rename the result"
                raise ValueError(f"fn returned {name}={value[name]!r}, {called}")
        result = json.dumps(value)
    except (Exception, SystemExit) as problem:  # Ctrl-C ends the sweep: no error of the trial
        last = traceback.extract_tb(problem.__traceback__)[-1]
        where = f"{os.path.basename(last.filename)}:{last.lineno}"
        error = f"{type(problem).__name__}: {problem} ({where})"
    seconds, worker = time.perf_counter() - start, f"{socket.gethostname()}:{os.getpid()}"
    return {"result": result, "error": error, "seconds": seconds, "worker": worker}


# -------------------------------------------------------------------- the store

_FINISH = """UPDATE trials SET status = :status, result = :result, error = :error,
    attempts = :attempts, seconds = :seconds, worker = :worker, finished = datetime('now')
    WHERE key = :key"""
_SCHEMA = """CREATE TABLE IF NOT EXISTS sweep (function TEXT); CREATE TABLE IF NOT EXISTS trials
    (key TEXT PRIMARY KEY, config TEXT, status TEXT, result TEXT, error TEXT, attempts INT,
    seconds REAL, worker TEXT, finished TEXT);"""


def _open_store(path: str | Path | None, function: str) -> sqlite3.Connection:
    """One SQLite file: a row per trial, written the moment it ends."""
    try:
        if path is not None:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
        db = sqlite3.connect(":memory:" if path is None else path, timeout=30.0)
        names = db.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        if foreign := {name for (name,) in names} - {"sweep", "trials"}:
            owner = f"another program (tables {', '.join(sorted(foreign))})"
        else:
            db.executescript(_SCHEMA)
            with db:  # a new file belongs to this function
                new = "INSERT INTO sweep SELECT ? WHERE NOT EXISTS (SELECT 1 FROM sweep)"
                db.execute(new, (function,))
            (owner,) = db.execute("SELECT function FROM sweep").fetchone()
    except (sqlite3.Error, OSError) as error:
        raise SweepError(f"{path} is not a sweep store ({error}); choose another file") from error
    if owner != function:
        db.close()
        raise SweepError(
            f"{path} holds trials of {owner}, not of {function}; choose another file. If the "
            "code changed but not its results, pass the `version` that the file names"
        )
    return db


def _table(db: sqlite3.Connection, trials: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    found = db.execute(f"SELECT key, result, {', '.join(OWN_COLUMNS)} FROM trials").fetchall()
    kept = {key: (json.loads(result or "{}"), own) for key, result, *own in found}
    rows = []
    for key, config in trials.items():
        values, own = kept[key]
        # Configurations come first among the columns, and win over values of an older store.
        rows.append(config | values | config | dict(zip(OWN_COLUMNS, own, strict=True)))
    frame = pd.DataFrame(rows)
    return frame.assign(attempts=frame.attempts.fillna(0).astype(int)) if rows else frame


def stored(path: str | Path) -> pd.DataFrame:
    """Configurations and results of the finished trials of a store."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
        done = db.execute("SELECT config, result FROM trials WHERE status = 'done'").fetchall()
    return pd.DataFrame([json.loads(result) | json.loads(config) for config, result in done])


# -------------------------------------------------------------------- where trials run


def _outcomes(
    engine: Engine, trials: Iterable[tuple[str, Any]], retries: int
) -> Iterator[dict[str, Any]]:
    """The rows of trials as they finish; what raised or was lost is started again."""
    submit, slots = engine
    waiting, attempts = deque(trials), Counter[str]()
    running: dict[Future, tuple[tuple[str, Any], float]] = {}
    while waiting or running:
        while waiting and len(running) < slots():
            trial = waiting.popleft()
            attempts[trial[0]] += 1
            running[submit(trial[1])] = trial, time.perf_counter()
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            trial, started = running.pop(future)
            try:
                row = future.result()
            except Exception as lost:  # `run_trial` raises nothing: its process or node is gone
                codes = re.search(r"exit codes of the workers are \{(.+?)\}", str(lost))  # loky's
                cause = getattr(lost, "cause", None) or lost
                why = f"its process ended with {codes[1]}" if codes else ""
                why = why or f"{type(cause).__name__}: {cause}".splitlines()[0]
                row = {"result": None, "error": f"WorkerLost: {why}", "worker": "lost"}
                row["seconds"] = time.perf_counter() - started
            if row["result"] is None and attempts[trial[0]] <= retries:
                waiting.append(trial)
                continue
            status = "failed" if row["result"] is None else "done"
            yield row | {"key": trial[0], "attempts": attempts[trial[0]], "status": status}


@contextmanager
def _on_this_machine(fn: Callable, payload: bytes, workers: int) -> Iterator[Engine]:
    """This process, or `workers` others, each an executor of its own.

    When one is killed, only its own trial is lost; a shared executor (or `joblib.Parallel`) would
    lose those of all processes. loky starts them without running the main script again.
    """
    # By value: importing this package, with torch, would delay trials that need neither.
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    pools: list[Any] = [None] * workers
    last: list[Any] = [None] * workers  # the future that each was given last

    def submit(config: dict[str, Any]) -> Future:
        if not workers:
            done: Future = Future()
            done.set_result(run_trial(fn, config))
            return done
        n = next(n for n, future in enumerate(last) if future is None or future.done())
        if last[n] is None or last[n].exception() is not None:  # not started yet, or killed
            from joblib.externals.loky import ProcessPoolExecutor

            given = (payload, os.getpid())
            pools[n] = ProcessPoolExecutor(1, initializer=_begin, initargs=given)
        last[n] = pools[n].submit(_run, config)
        return last[n]

    try:
        yield submit, lambda: max(workers, 1)
    finally:
        for pool in filter(None, pools):
            pool.shutdown(kill_workers=True)


def _begin(payload: bytes, parent: int) -> None:
    _follow(parent)
    # Once per process, so that caches of the function survive; if it fails, the trial does.
    fn = functools.cache(lambda: cloudpickle.loads(payload))
    sys.modules["_sweep"] = SimpleNamespace(fn=fn)  # type: ignore[assignment]


def _run(config: dict[str, Any]) -> dict[str, Any]:
    kept: Any = sys.modules["_sweep"]
    return run_trial(lambda **values: kept.fn()(**values), config)


def _follow(parent: int) -> None:
    """Ignore Ctrl-C and end with the parent: a trial must not run beside its own repetition."""
    if any(thread.name == "follow" for thread in threading.enumerate()):
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="follow").start()


@contextmanager
def _on_ray(fn: Callable, cpus: float, gpus: float, address: str | None) -> Iterator[Engine]:
    """Tasks of a Ray cluster (joblib's backend for it knows no GPUs, nor which trial was lost).

    A connection that the process has is used and kept; one made here ends with the trials.
    """
    ray, ours = _connect(address)
    refs: dict[Future, Any] = {}
    try:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if not any(n.get("CPU", 0) >= cpus and n.get("GPU", 0) >= gpus for n in nodes):
            raise SweepError(
                f"a trial needs {cpus:g} CPUs and {gpus:g} GPUs, which none of the {len(nodes)} "
                "nodes has; ask for less, or add such a node with `ray start --address=…`"
            )
        ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
        task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=0)(run_trial)
        function = ray.put(fn)

        def submit(config: dict[str, Any]) -> Future:
            ref = task.remote(function, config)
            future = ref.future()
            refs[future] = ref
            return future

        def slots() -> int:  # long enough a queue to keep every node busy
            return 2 * max(1, int(ray.cluster_resources().get("CPU", 1) / max(cpus, 0.01)))

        yield submit, slots
    finally:
        for future, ref in refs.items():
            if not future.done():
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
        if host and port.isdigit():  # Ray itself would try for many minutes
            with socket.create_connection((host, int(port)), timeout=10) as probe:
                if os.environ.get("RAY_USE_TLS") != "1":
                    probe.sendall(HTTP2_HELLO)
                    if probe.recv(9)[3:4] != b"\x04":  # RFC 9113, 3.4: a SETTINGS frame
                        raise ConnectionError("another kind of server answers")
        ray.init(address=target, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError) as error:  # OSError: also ConnectionError, timeouts
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise SweepError(
            f"no Ray cluster answers at {target!r} ({reason}). Start one with "
            "`ray start --head --port=6379`, join machines with "
            "`ray start --address=<head>:6379`, and give address='<head>:6379' or set RAY_ADDRESS"
        ) from error
    return ray, True
