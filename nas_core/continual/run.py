"""Running a learner through a stream: the measures of section 5.3.1, one tidy row per task.

`accuracy[i, t]` is the test accuracy on task t after learning tasks 0…i. The measures need only
the last row and the diagonal; every other entry may be NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from nas_core.continual.learners.base import Learner, plain, refuse_difference
from nas_core.continual.streams import Stream, Task
from nas_core.search.sweeps import map_trials
from nas_core.training import accuracy, load_checkpoint, progress_bar, require, save_atomic

VERSION = 3  # raise it when the same settings give other numbers, or files of another form

_LISTS = ("rows", "curves", "details")  # of a run, one entry per task


def _square(accuracy) -> np.ndarray:
    matrix = np.asarray(accuracy, dtype=float)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not len(matrix):
        raise ValueError(f"accuracy is [T, T] with T ≥ 1, got {list(matrix.shape)}")
    needed = np.concatenate([matrix[-1], np.diag(matrix)])
    if not ((needed >= 0) & (needed <= 1)).all():  # NaN is neither
        raise ValueError("the last row and the diagonal of accuracy must be numbers in [0, 1]")
    return matrix


def average_accuracy(accuracy) -> float:
    """A(S): mean accuracy over all tasks after the last one (eq. 5.1)."""
    return float(_square(accuracy)[-1].mean())


def forgetting(accuracy) -> float:
    """F(S): mean over t < T of accuracy at the end minus that just after task t (eq. 5.2).

    Negative means that the learner forgot; 0 for a stream of one task.
    """
    matrix = _square(accuracy)
    change = matrix[-1, :-1] - np.diag(matrix)[:-1]
    return float(change.mean()) if len(change) else 0.0


def transfer(accuracy, alone: float) -> float:
    """T(S): accuracy on the last task minus `alone`, that of the same learner without a past.

    Equation 5.3; `alone` is measured after learning the last task as the only one.
    """
    require(0 <= alone <= 1, "alone", alone, "an accuracy in [0, 1]")
    return float(_square(accuracy)[-1, -1] - alone)


def learning_curve_area(curves: Sequence[Sequence[float]], beta: int = 5) -> float:
    """LCA@β: mean over tasks and over b = 0…β of test accuracy after b batches (eq. 5.4).

    `curves` holds per task the accuracies after 0, 1, 2, … batches, at least β + 1 of them.
    """
    require(beta >= 0, "beta", beta, "at least 0")
    if not len(curves) or any(len(curve) < beta + 1 for curve in curves):
        raise ValueError(f"LCA@{beta} needs {beta + 1} accuracies for every task")
    return float(np.mean([np.mean(curve[: beta + 1]) for curve in curves]))


def megabytes(count: int) -> float:
    """Bytes in the unit of the thesis' tables: 10⁶ bytes."""
    return count / 1e6


@dataclass
class StreamRun:
    """What `run_stream` gives back."""

    learner: Learner
    stream: Stream
    accuracy: np.ndarray  # [T, T], NaN where not measured
    rows: list[dict[str, Any]] = field(default_factory=list)
    curves: list[list[float]] = field(default_factory=list)
    details: list[dict[str, Any]] = field(default_factory=list)  # of every task's `FitReport`
    alone: float | None = None  # accuracy on the last task without a past
    beta: int | None = 5

    @property
    def table(self) -> pd.DataFrame:
        """One row per task."""
        frame = pd.DataFrame(self.rows)
        frame.insert(3, "final", self.accuracy[-1])
        return frame

    def summary(self) -> dict[str, Any]:
        """The columns of the thesis' tables."""
        out: dict[str, Any] = {"stream": self.stream.name, "learner": self.learner.name}
        out |= {"A": average_accuracy(self.accuracy), "F": forgetting(self.accuracy)}
        out["memory_mb"] = megabytes(self.learner.total_memory())
        out["training_gmacs"] = sum(row["macs"] for row in self.rows) / 1e9
        if self.alone is not None:
            out["T"] = transfer(self.accuracy, self.alone)
        if self.beta is not None:
            out[f"LCA@{self.beta}"] = learning_curve_area(self.curves, self.beta)
        return out


def _tested(learner: Learner, task: Task, task_id: int) -> float:
    return accuracy(partial(learner.predict, task_id=task_id), task.test)


def run_stream(
    learner: Learner, stream: Stream, *, alone: float | None = None, beta: int | None = 5,
    full_matrix: bool = False, checkpoint: str | Path | None = None, progress: bool | str = False,
) -> StreamRun:  # fmt: skip
    """Learn the tasks of a stream in order and measure; `full_matrix`: all past tasks each time.

    `alone` is a new learner's accuracy on `stream.only(len(stream) - 1)`, for T(S), eq. 5.3. With
    `beta`, test accuracy is recorded after 0…beta batches of each task. A run goes on from its
    `checkpoint`, written after every task, or raises `ValueError` if a setting differs.
    """
    count = len(stream)
    run = StreamRun(learner, stream, np.full((count, count), np.nan), alone=alone, beta=beta)
    # What makes two runs the same one; how many processes share the work does not.
    config = {k: plain(v) for k, v in vars(learner.config).items() if k != "processes"}
    identity = {
        "version": VERSION, "stream": stream.fingerprint, "seed": learner.seed, "beta": beta,
        "full_matrix": full_matrix, **config, **learner.identity(),
    }  # fmt: skip
    if learner.seen:
        known = f"{learner.name} has already learnt {learner.seen} tasks"
        raise ValueError(f"{known}; a run starts with a new learner, or from its checkpoint")
    if checkpoint is not None and Path(checkpoint).exists():
        _resume(run, load_checkpoint(checkpoint), identity, str(checkpoint))
    start = learner.seen
    bar = progress_bar(count, learner.name if progress is True else progress, initial=start)
    for t in range(start, count):
        task = stream[t]
        report = learner.learn(task, beta=beta)
        run.accuracy[t, t] = _tested(learner, task, t)
        for i in range(t if full_matrix else 0):
            run.accuracy[t, i] = _tested(learner, stream[i], i)
        run.curves.append(report.curve)
        run.details.append(report.details)
        row = {"task": t + 1, "name": task.name, "after": float(run.accuracy[t, t]),
               "val": report.val_accuracy,
               "memory_mb": megabytes(learner.total_memory())}  # fmt: skip
        row |= {k: getattr(report, k) for k in ("macs", "steps", "lr", "weight_decay", "choice")}
        row["diverged"] = len(report.details.get("diverged", ()))  # points of the grid
        run.rows.append(row)
        if checkpoint is not None:
            lists = {name: getattr(run, name) for name in _LISTS}
            state = {"run": identity, "learner": learner.state_dict(), **lists}
            save_atomic({**state, "accuracy": torch.from_numpy(run.accuracy)}, checkpoint)
        bar.update()
    bar.close()
    for i in np.flatnonzero(np.isnan(run.accuracy[-1])).tolist():
        run.accuracy[-1, i] = _tested(learner, stream[i], i)
    return run


def _resume(run: StreamRun, state: dict[str, Any], wanted: dict[str, Any], file: str) -> None:
    found = state.get("run")
    refuse_difference(f"the run in {file}", found if isinstance(found, dict) else {}, wanted)
    matrix, seen = np.asarray(state["accuracy"]), state["learner"]["seen"]
    sizes = [len(state[name]) for name in _LISTS]
    if matrix.shape != run.accuracy.shape or sizes != [seen] * 3:
        found = f"accuracies {list(matrix.shape)} and {sizes} rows, curves and details"
        needed = f"{list(run.accuracy.shape)} and {seen} of each are needed"
        raise ValueError(f"the run in {file} has {found} for {seen} tasks; {needed}")
    run.learner.load_state_dict(state["learner"])
    run.accuracy[:] = matrix
    for name in _LISTS:
        setattr(run, name, list(state[name]))


def check_input_shift(learner: Learner, stream: Stream, least: float = 0.05) -> tuple[float, float]:
    """Refuse an S^in whose first network, unchanged, already solves the last task.

    Returns the test accuracy of the first task's network on the first and on the last task. Raises
    `ValueError` when the difference is less than `least`: then the stream tests nothing.
    """
    first, last = stream[0], stream[len(stream) - 1]
    if first.classes != last.classes:
        raise ValueError(f"{stream.name}: the last task has other labels than the first")
    own, shifted = (_tested(learner, task, 0) for task in (first, last))
    if shifted > own - least:
        found = f"the network of {first.name} has {own:.3f} there, {shifted:.3f} on {last.name}"
        raise ValueError(f"{stream.name}: {found}: the change asks nothing of a learner")
    return own, shifted


def tune_stream(
    make: Callable[[float], Learner], stream: Stream, values: Sequence[float], processes: int = 1
) -> tuple[float, pd.DataFrame]:
    """Choose a constraint strength for the whole stream, as the † rows of the thesis do.

    Returns the value whose learner has the best final mean validation accuracy, and the table.
    """

    def score(value: float) -> float:
        learner = make(value)
        run_stream(learner, stream, beta=None)
        each = [accuracy(partial(learner.predict, task_id=t.id), t.val.plain()) for t in stream]
        return float(np.mean(each))

    scores = map_trials(score, list(values), processes)
    table = pd.DataFrame({"value": list(values), "val_accuracy": scores})
    return float(table.loc[table["val_accuracy"].idxmax(), "value"]), table
