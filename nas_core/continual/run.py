"""Running a learner through a stream: one tidy row per task, one summary, resumable."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from nas_core.continual import metrics
from nas_core.continual.learners.base import Learner, refuse_difference
from nas_core.continual.tasks import Stream
from nas_core.search.sweeps import map_trials
from nas_core.training import accuracy, load_checkpoint, progress_bar, save_atomic

VERSION = 2  # of what learners compute; raise it when the same settings give other numbers


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
        out: dict[str, Any] = {
            "stream": self.stream.name,
            "learner": self.learner.name,
            "A": metrics.average_accuracy(self.accuracy),
            "F": metrics.forgetting(self.accuracy),
            "memory_mb": metrics.megabytes(self.learner.total_memory()),
            "training_gmacs": sum(row["macs"] for row in self.rows) / 1e9,
        }
        if self.alone is not None:
            out["T"] = metrics.transfer(self.accuracy, self.alone)
        if self.beta is not None:
            out[f"LCA@{self.beta}"] = metrics.learning_curve_area(self.curves, self.beta)
        return out


def run_stream(
    learner: Learner, stream: Stream, *, alone: float | None = None, beta: int | None = 5,
    full_matrix: bool = False, checkpoint: str | Path | None = None, progress: bool | str = False,
) -> StreamRun:  # fmt: skip
    """Learn the tasks of a stream in order and measure.

    Args:
        alone: accuracy of the same kind of learner on the last task alone, for T(S); see
            `accuracy_alone`.
        beta: record test accuracy after the first 0…beta batches of each task; None saves time.
        full_matrix: measure every past task after every task, not only what A and F need.
        checkpoint: file that is written after every task; a run that finds it goes on from there.

    Raises:
        ValueError: for a learner that has a past, and for a checkpoint of another stream,
            learner, option, seed or training; names both values.
    """
    count = len(stream)
    run = StreamRun(learner, stream, np.full((count, count), np.nan), alone=alone, beta=beta)
    # What makes two runs the same one; how many processes share the work does not.
    config = {k: _listed(v) for k, v in vars(learner.config).items() if k != "processes"}
    identity = {
        "version": VERSION, "stream": stream.fingerprint, "seed": learner.seed, "beta": beta,
        "full_matrix": full_matrix, **config, **learner.identity(),
    }  # fmt: skip
    if learner.seen:
        raise ValueError(
            f"{learner.name} has already learnt {learner.seen} tasks; a run starts with a new "
            "learner, and goes on from its checkpoint"
        )
    if checkpoint is not None and Path(checkpoint).exists():
        _resume(run, load_checkpoint(checkpoint), identity, str(checkpoint))
    start = learner.seen
    bar = progress_bar(count, learner.name if progress is True else progress, initial=start)
    for t in range(start, count):
        task = stream[t]
        report = learner.learn(task, beta=beta)
        score = accuracy(partial(learner.predict, task_id=t), task.test)
        run.accuracy[t, t] = score
        for i in range(t if full_matrix else 0):
            run.accuracy[t, i] = accuracy(partial(learner.predict, task_id=i), stream[i].test)
        run.curves.append(report.curve)
        run.details.append(report.details)
        run.rows.append(
            {
                "task": t + 1,
                "name": task.name,
                "after": score,
                "val": report.val_accuracy,
                "memory_mb": metrics.megabytes(learner.total_memory()),
                "macs": report.macs,
                "steps": report.steps,
                "lr": report.lr,
                "weight_decay": report.weight_decay,
                "choice": report.choice,
                "diverged": len(report.details.get("diverged", ())),  # points of the grid
            }
        )
        if checkpoint is not None:
            state = {"run": identity, "learner": learner.state_dict(), "rows": run.rows,
                     "curves": run.curves, "details": run.details,
                     "accuracy": torch.from_numpy(run.accuracy)}  # fmt: skip
            save_atomic(state, checkpoint)
        bar.update()
    bar.close()
    for i in range(count):
        if np.isnan(run.accuracy[-1, i]):
            run.accuracy[-1, i] = accuracy(partial(learner.predict, task_id=i), stream[i].test)
    return run


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _resume(run: StreamRun, state: dict[str, Any], wanted: dict[str, Any], file: str) -> None:
    found = state.get("run")
    refuse_difference(f"the run in {file}", found if isinstance(found, dict) else {}, wanted)
    matrix = np.asarray(state["accuracy"])
    seen = state["learner"]["seen"]
    sizes = [len(state[k]) for k in ("rows", "curves", "details")]
    if matrix.shape != run.accuracy.shape or sizes != [seen] * 3:
        raise ValueError(
            f"the run in {file} has accuracies {list(matrix.shape)} and {sizes} rows, curves and "
            f"details for {seen} tasks; {list(run.accuracy.shape)} and {seen} of each are needed"
        )
    run.learner.load_state_dict(state["learner"])
    run.rows, run.curves = list(state["rows"]), list(state["curves"])
    run.details = list(state["details"])
    run.accuracy[:] = matrix


def accuracy_alone(make: Callable[[], Learner], stream: Stream) -> float:
    """Test accuracy of a fresh learner on the last task of a stream and nothing else (eq. 5.3)."""
    last = stream.only(len(stream) - 1)
    return float(run_stream(make(), last, beta=None).accuracy[-1, -1])


def check_input_shift(learner: Learner, stream: Stream, least: float = 0.05) -> tuple[float, float]:
    """Refuse an S^in whose first network, unchanged, already solves the last task.

    Args:
        learner: one that has learnt at least the first task of the stream and kept it.
        least: accuracy that the first network must lose on the last task's inputs.

    Returns:
        Test accuracy of the first task's network on the first and on the last task.

    Raises:
        ValueError: when it loses less: then the stream tests nothing.
    """
    first, last = stream[0], stream[len(stream) - 1]
    if first.classes != last.classes:
        raise ValueError(f"{stream.name}: the last task has other labels than the first")
    own, shifted = (accuracy(partial(learner.predict, task_id=0), t.test) for t in (first, last))
    if shifted > own - least:
        raise ValueError(
            f"{stream.name}: the network of {first.name} has {own:.3f} there and, unchanged, "
            f"{shifted:.3f} on {last.name}: the change of inputs asks nothing of a learner"
        )
    return own, shifted


def tune_stream(
    make: Callable[[float], Learner], stream: Stream, values: Sequence[float], processes: int = 1
) -> tuple[float, pd.DataFrame]:
    """Choose a constraint strength for the whole stream, as the † rows of the thesis do.

    Args:
        make: value → learner; with several processes it must be picklable.

    Returns:
        The value with the best mean validation accuracy after the last task, and the table.
    """
    scores = map_trials(partial(_tuning, make, stream), list(values), processes)
    table = pd.DataFrame({"value": list(values), "val_accuracy": scores})
    return float(table.loc[table["val_accuracy"].idxmax(), "value"]), table


def _tuning(make: Callable[[float], Learner], stream: Stream, value: float) -> float:
    learner = make(value)
    run_stream(learner, stream, beta=None)
    scores = [accuracy(partial(learner.predict, task_id=t.id), t.val.plain()) for t in stream]
    return float(np.mean(scores))
