"""Many runs, one table: `sweep(fn, configs)` on the processes of one machine or on a Ray cluster.

Every finished trial is in a SQLite file before the next one starts, so that whatever stops a
sweep (Ctrl-C, a crash, a lost node) costs the trials in flight and no others; the same call
continues it.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pandas as pd

from nas_core.search.sweep_engines import (
    OWN_COLUMNS,
    ClusterTooSmall,
    ClusterUnreachable,
    Outcome,
    SweepError,
    Trial,
    check_picklable,
    local_outcomes,
    ray_outcomes,
)
from nas_core.training import progress_bar

__all__ = [
    "BadConfig",
    "ClusterTooSmall",
    "ClusterUnreachable",
    "DuplicateConfigs",
    "SweepError",
    "UnknownEngine",
    "WrongStore",
    "grid",
    "sweep",
]

ENGINES = ("local", "ray")


class UnknownEngine(SweepError):
    """`engine` is none of those there are."""


class BadConfig(SweepError):
    """A configuration cannot be written as JSON, or is no mapping of names to values."""


class DuplicateConfigs(SweepError):
    """Two configurations are equal: their trials could not be told apart."""


class WrongStore(SweepError):
    """The file holds another sweep, or no sweep."""


def grid(**axes: Sequence[Any]) -> list[dict[str, Any]]:
    """Every combination of the values given for each name, last name fastest."""
    return [dict(zip(axes, v, strict=True)) for v in itertools.product(*axes.values())]


def sweep(
    fn: Callable[..., Mapping[str, Any]],
    configs: Iterable[Mapping[str, Any]],
    *,
    engine: str = "local",
    store: str | Path | None = None,
    workers: int = 1,
    retries: int = 1,
    cpus: float = 1.0,
    gpus: float = 0.0,
    address: str | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Call `fn(**config)` for every configuration; failures are retried and never stop the rest.

    Args:
        fn: returns a mapping of names to JSON-able values. Functions of a notebook are fine.
        configs: mappings of JSON-able values, all different.
        engine: "local", `workers` processes on this machine, or "ray", an existing cluster.
        store: SQLite file. Trials that it has as done are not run again; failed ones are.
            None: the results live in memory only.
        workers: processes (local); 0 runs the trials in this process, one after the other.
        retries: further attempts after a trial raised or its process or node was lost.
        cpus, gpus: what a trial needs on a Ray cluster; `gpus=0.25` puts four on one GPU. The
            local engine has no GPUs to deal out and refuses them.
        address: of the Ray cluster; None: the environment's `RAY_ADDRESS`, else this machine's.
        progress: show a progress bar.

    Returns:
        One row per configuration, in the given order: its values, those of the result,
        `status` ("done", "failed", "pending"), `error`, `attempts`, `seconds` and `worker`.
        `.attrs["interrupted"]` is True when Ctrl-C ended it early; nothing finished is lost.

    Raises:
        UnknownEngine, ClusterUnreachable, ClusterTooSmall, BadConfig, DuplicateConfigs,
        WrongStore: before anything runs; all are `SweepError`s, which are `ValueError`s.
    """
    if engine not in ENGINES:
        raise UnknownEngine(f"engine {engine!r}; there are {', '.join(map(repr, ENGINES))}")
    if workers < 0 or retries < 0:
        raise SweepError(f"workers={workers}, retries={retries}; neither may be negative")
    if cpus < 0 or gpus < 0 or (gpus and engine == "local"):
        raise SweepError(
            f"cpus={cpus:g}, gpus={gpus:g} of a trial with engine={engine!r}; neither may be "
            "negative, and only 'ray' deals out GPUs"
        )
    trials = _keyed(configs)
    name = f"{getattr(fn, '__module__', '?')}.{getattr(fn, '__qualname__', type(fn).__name__)}"
    payload = check_picklable(fn)
    with closing(_Store(store, name)) as db:
        todo = db.enter(trials)
        interrupted = False
        if engine == "ray" and todo:
            outcomes = ray_outcomes(
                fn, todo, retries=retries, cpus=cpus, gpus=gpus, address=address
            )
        else:
            outcomes = local_outcomes(fn, payload, todo, retries=retries, workers=workers)
        bar = progress_bar(len(trials), "sweep" if progress else False)
        bar.update(len(trials) - len(todo))
        try:
            for outcome in outcomes:
                db.finish(outcome)
                bar.update(1)
        except KeyboardInterrupt:
            interrupted = True
        finally:
            outcomes.close()  # ends the worker processes
            bar.close()
        table = db.table(trials)
    table.attrs["interrupted"] = interrupted
    return table


def _keyed(configs: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Configurations by their hash, checked."""
    trials: dict[str, dict[str, Any]] = {}
    for number, config in enumerate(configs):
        if not isinstance(config, Mapping) or not all(isinstance(k, str) for k in config):
            raise BadConfig(f"configuration {number} is {config!r}; give a dict with string keys")
        if taken := OWN_COLUMNS & config.keys():
            raise BadConfig(
                f"configuration {number} names {sorted(taken)}, columns of the sweep's own; rename"
            )
        for key, value in config.items():
            try:
                json.dumps(value, allow_nan=False)
            except (TypeError, ValueError) as error:
                raise BadConfig(
                    f"configuration {number}: {key}={value!r} ({type(value).__name__}) is not "
                    f"JSON-able: {error}. Give numbers, strings, lists or dicts of them"
                ) from error
        text = json.dumps(config, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        if digest in trials:
            first = list(trials).index(digest)
            raise DuplicateConfigs(
                f"configurations {first} and {number} are both {text}; vary a seed, or drop one"
            )
        trials[digest] = dict(config)
    return trials


class _Store:
    """One SQLite file: a row per trial, written the moment it ends."""

    def __init__(self, path: str | Path | None, function: str):
        try:
            self.db = sqlite3.connect(":memory:" if path is None else path, timeout=30.0)
            owner = self._owner(function)
        except sqlite3.Error as error:
            raise WrongStore(
                f"{path} is not a sweep store ({error}); choose another file"
            ) from error
        if owner != function:
            raise WrongStore(
                f"{path} holds trials of {owner}, not of {function}; choose another file"
            )

    def _owner(self, function: str) -> str:
        """Whose trials the file holds; a new file becomes this function's."""
        names = self.db.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        if foreign := {name for (name,) in names} - {"sweep", "trials"}:
            return f"another program (tables {', '.join(sorted(foreign))})"
        with self.db:
            self.db.execute("CREATE TABLE IF NOT EXISTS sweep (function TEXT)")
            self.db.execute(
                "CREATE TABLE IF NOT EXISTS trials (key TEXT PRIMARY KEY, config TEXT, "
                "status TEXT, result TEXT, error TEXT, attempts INT, seconds REAL, "
                "worker TEXT, finished TEXT)"
            )
            known = self.db.execute("SELECT function FROM sweep").fetchone()
            if known is None:
                self.db.execute("INSERT INTO sweep VALUES (?)", (function,))
        return known[0] if known else function

    def enter(self, trials: Mapping[str, Mapping]) -> list[Trial]:
        """Write down what is planned; returns the trials that are not done."""
        rows = [(key, json.dumps(config)) for key, config in trials.items()]
        with self.db:
            self.db.executemany(
                "INSERT OR IGNORE INTO trials (key, config, status) VALUES (?, ?, 'pending')", rows
            )
        done = {key for (key,) in self.db.execute("SELECT key FROM trials WHERE status = 'done'")}
        return [trial for trial in trials.items() if trial[0] not in done]

    def finish(self, o: Outcome) -> None:
        with self.db:
            self.db.execute(
                "UPDATE trials SET status = ?, result = ?, error = ?, attempts = ?, seconds = ?, "
                "worker = ?, finished = ? WHERE key = ?",
                (
                    "failed" if o.result is None else "done",
                    o.result,
                    o.error,
                    o.attempts,
                    o.seconds,
                    o.worker,
                    time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                    o.key,
                ),
            )

    def table(self, trials: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
        columns = "key, status, result, error, attempts, seconds, worker"
        stored = {row[0]: row for row in self.db.execute(f"SELECT {columns} FROM trials")}
        rows = []
        for key, config in trials.items():
            _, status, result, error, attempts, seconds, worker = stored[key]
            values = json.loads(result) if result else {}
            about = {"status": status, "error": error, "attempts": attempts or 0}
            rows.append({**config, **values, **about, "seconds": seconds, "worker": worker})
        return pd.DataFrame(rows)

    def close(self) -> None:
        self.db.close()
