"""Running a learner through a stream: one tidy row per task, one summary, resumable."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from nas_core.continual import metrics
from nas_core.continual.fit import accuracy, sweep
from nas_core.continual.learners.base import Learner
from nas_core.continual.library import tensor_bytes
from nas_core.continual.tasks import Stream
from nas_core.training import load_checkpoint, progress_bar, save_atomic


@dataclass
class StreamRun:
    """What `run_stream` gives back."""

    learner: Learner
    stream: Stream
    accuracy: np.ndarray  # [T, T], NaN where not measured
    rows: list[dict[str, Any]] = field(default_factory=list)
    curves: list[list[float]] = field(default_factory=list)
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
    """
    count = len(stream)
    run = StreamRun(learner, stream, np.full((count, count), np.nan), alone=alone, beta=beta)
    # What makes two runs the same one; how many processes share the work does not.
    settings = {k: v for k, v in vars(learner.config).items() if k != "processes"}
    identity = f"{stream.fingerprint}, seed {learner.seed}, {settings}, beta {beta}"
    if learner.seen:
        raise ValueError(
            f"{learner.name} has already learnt {learner.seen} tasks; a run starts with a new "
            "learner, and goes on from its checkpoint"
        )
    if checkpoint is not None and Path(checkpoint).exists():
        _resume(run, load_checkpoint(checkpoint), identity)
    start = learner.seen
    bar = progress_bar(count, learner.name if progress is True else progress, initial=start)
    for t in range(start, count):
        task = stream[t]
        report = learner.learn(task, beta=beta)
        score = accuracy(partial(learner.predict, task_id=t), task.test)
        run.accuracy[t, t] = score
        if full_matrix:
            for i in range(t):
                run.accuracy[t, i] = accuracy(partial(learner.predict, task_id=i), stream[i].test)
        run.curves.append(report.curve)
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
            }
        )
        if checkpoint is not None:
            state = {"run": identity, "learner": learner.state_dict(),
                     "rows": run.rows, "curves": run.curves,
                     "accuracy": torch.from_numpy(run.accuracy)}  # fmt: skip
            save_atomic(state, checkpoint)
        bar.update()
    bar.close()
    for i in range(count):
        if np.isnan(run.accuracy[-1, i]):
            run.accuracy[-1, i] = accuracy(partial(learner.predict, task_id=i), stream[i].test)
    return run


def _resume(run: StreamRun, state: dict[str, Any], identity: str) -> None:
    if state.get("run") != identity:
        raise ValueError(
            f"the checkpoint belongs to another stream, seed or training than this run of "
            f"{run.stream.name} ({state.get('run')} is not {identity}); delete it to start afresh"
        )
    run.learner.load_state_dict(state["learner"])
    run.rows, run.curves = list(state["rows"]), list(state["curves"])
    run.accuracy[:] = state["accuracy"].numpy()


def accuracy_alone(make: Callable[[], Learner], stream: Stream) -> float:
    """Test accuracy of a fresh learner on the last task of a stream and nothing else (eq. 5.3)."""
    last = stream.only(len(stream) - 1)
    return float(run_stream(make(), last, beta=None).accuracy[-1, -1])


def tune_stream(
    make: Callable[[float], Learner], stream: Stream, values: Sequence[float], processes: int = 1
) -> tuple[float, pd.DataFrame]:
    """Choose a constraint strength for the whole stream, as the † rows of the thesis do.

    Args:
        make: value → learner; with several processes it must be picklable.

    Returns:
        The value with the best mean validation accuracy after the last task, and the table.
    """
    scores = sweep(_Tuning(make, stream), list(values), processes)
    table = pd.DataFrame({"value": list(values), "val_accuracy": scores})
    return float(table.loc[table["val_accuracy"].idxmax(), "value"]), table


class _Tuning:
    def __init__(self, make: Callable[[float], Learner], stream: Stream):
        self.make, self.stream = make, stream

    def __call__(self, value: float) -> float:
        learner = self.make(value)
        run_stream(learner, self.stream, beta=None)
        scores = [
            accuracy(partial(learner.predict, task_id=t), task.val.plain())
            for t, task in enumerate(self.stream)
        ]
        return float(np.mean(scores))


@contextmanager
def executed_parameters() -> Iterator[dict[int, torch.Tensor]]:
    """Collect the parameters of all modules that run inside the block (table 5.4, measured)."""
    seen: dict[int, torch.Tensor] = {}

    def note(module: nn.Module, args: Any, output: Any) -> None:
        for p in module.parameters(recurse=False):
            if isinstance(p, nn.Parameter):  # and no stand-in of a functional call
                seen[id(p)] = p

    handle = nn.modules.module.register_module_forward_hook(note)
    try:
        yield seen
    finally:
        handle.remove()


def inference_bytes(learner: Learner, task_id: int) -> int:
    """Bytes of the parameters that predicting one task really uses."""
    x = torch.zeros(2, *learner.backbone.input_shape, device=learner.device)
    with executed_parameters() as seen:
        learner.predict(x, task_id)
    return tensor_bytes(seen.values())
