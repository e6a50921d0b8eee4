"""The epoch loop: progress, checkpoints, resuming, early stopping, and a guard against NaN.

The loop knows nothing of models. It calls `body(epoch)`, and everything that changes from epoch to
epoch is named in `state`; what is in `state` (with the random generators) is what is saved.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import pandas as pd
import torch
from torch import Tensor, nn

from nas_core.training.checkpoint import load_checkpoint, rng_state, save_atomic, set_rng_state
from nas_core.training.progress import progress_bar

Row = dict[str, Any]


class Stateful(Protocol):
    """Whatever can be saved and restored: modules, optimisers, samplers, histories."""

    def state_dict(self) -> Any: ...
    def load_state_dict(self, state_dict: Any, /) -> Any: ...


class NonFiniteLoss(RuntimeError):
    """A loss or a weight is NaN or infinite; `epoch` and `checkpoint` (last good) are kept."""

    def __init__(self, what: str, epoch: int, checkpoint: Path | None):
        self.epoch, self.checkpoint = epoch, checkpoint
        kept = (
            f"the last good state (before epoch {epoch}) is in {checkpoint}"
            if checkpoint
            else "no checkpoint was asked for, so nothing is kept"
        )
        super().__init__(
            f"{what} in epoch {epoch}; {kept}. Lower the learning rate (÷ 3 to ÷ 10), or look at "
            "the inputs of that epoch for values that are not finite."
        )


class History:
    """One row of plain values per epoch."""

    def __init__(self, rows: list[Row] | None = None):
        self.rows: list[Row] = list(rows or [])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Row:
        return self.rows[index]

    def append(self, row: Mapping[str, Any]) -> None:
        self.rows.append({key: _plain(value) for key, value in row.items()})

    def frame(self) -> pd.DataFrame:
        """Tidy table: a row per epoch, a column per quantity."""
        return pd.DataFrame(self.rows)

    def state_dict(self) -> dict[str, Any]:
        return {"rows": [dict(row) for row in self.rows]}

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        self.rows = [dict(row) for row in state_dict["rows"]]


@dataclass(frozen=True)
class LoopResult:
    """How a loop ended."""

    history: History
    epochs: int  # finished, in this call and in those it continued
    resumed_from: int = 0  # epochs that were read from the checkpoint
    interrupted: bool = False  # Ctrl-C
    stopped_early: bool = False  # patience ran out
    best_epoch: int | None = None  # of the monitored quantity
    best_value: float | None = None


def run_epochs(
    body: Callable[[int], Mapping[str, Any]],
    epochs: int,
    *,
    state: Mapping[str, Stateful],
    history: History | None = None,
    checkpoint: str | Path | None = None,
    progress: bool | str = True,
    monitor: str | None = None,
    patience: int | None = None,
    mode: Literal["max", "min"] = "max",
    config: Mapping[str, Any] | None = None,
) -> LoopResult:
    """Call `body(epoch)` for epochs 0, 1, …, and keep what it returned.

    With a checkpoint, everything is saved after each epoch, and a run whose file exists goes on
    from there with the same bits, however it ended: `body` must draw its random numbers from the
    global generators, from generators in `state`, or from (seed, epoch).

    Args:
        body: one epoch; returns numbers (or words) to be recorded.
        state: by name, everything that changes.
        progress: False, True, or a label; see `progress_bar`.
        monitor, patience, mode: stop after `patience` epochs without a new best `monitor`; the
            modules of `state` then get the weights of the best epoch, also when the epochs ran out.
        config: hyper-parameters; a checkpoint made with other ones is refused (`epochs` may grow).

    Raises:
        NonFiniteLoss: when a returned loss, or a weight, is not finite.
        ValueError: when the checkpoint belongs to another run.
    """
    if epochs < 0:
        raise ValueError(f"epochs is {epochs}; it must be at least 0")
    if mode not in ("max", "min"):
        raise ValueError(f'mode is {mode!r}; it must be "max" or "min"')
    if patience is not None and (patience < 1 or monitor is None):
        raise ValueError(f"patience is {patience}; it must be at least 1, with a monitor to watch")
    history = History() if history is None else history
    path = None if checkpoint is None else Path(checkpoint)
    saved = _Saved(state, history, path, dict(config or {}))
    resumed_from = saved.resume() if path is not None and path.exists() else 0
    if path is not None and not path.exists():
        saved.save()  # so that Ctrl-C or NaN in the first epoch also has a state to go back to

    def patience_is_over() -> bool:
        best = _best_epoch(history, monitor, mode)
        return patience is not None and best is not None and len(history) - 1 - best >= patience

    interrupted = False
    bar = progress_bar(epochs, progress, initial=len(history))
    try:
        while len(history) < epochs and not patience_is_over():
            epoch = len(history)
            row = {"epoch": epoch, **body(epoch)}
            _check_finite(row, state, path)
            history.append(row)
            if patience is not None and _best_epoch(history, monitor, mode) == epoch:
                saved.best = _weights(state)
            if path is not None:
                saved.save()
            bar.set_postfix(_summary(history[-1]), refresh=False)
            bar.update()
    except KeyboardInterrupt:
        interrupted = True
        if path is not None:
            saved.resume()  # drops the unfinished epoch, so that weights and history agree
    finally:
        bar.close()
    if patience is not None and saved.best is not None and not interrupted:
        for name, weights in saved.best.items():
            state[name].load_state_dict(weights)
    best = _best_epoch(history, monitor, mode)
    return LoopResult(
        history=history,
        epochs=len(history),
        resumed_from=resumed_from,
        interrupted=interrupted,
        stopped_early=patience_is_over() and len(history) < epochs,
        best_epoch=best,
        best_value=None if best is None else history[best][monitor or ""],
    )


class _Saved:
    """The checkpoint of one loop."""

    def __init__(self, state, history: History, path: Path | None, config: dict[str, Any]):
        self.state, self.history, self.path, self.config = state, history, path, config
        self.best: dict[str, Any] | None = None

    def save(self) -> None:
        assert self.path is not None
        record = {
            "state": {name: part.state_dict() for name, part in self.state.items()},
            "history": self.history.state_dict(),
            "best": self.best,
            "rng": rng_state(),
            "config": self.config,
        }
        save_atomic(record, self.path)

    def resume(self) -> int:
        """Put everything back; the number of finished epochs."""
        assert self.path is not None
        record = load_checkpoint(self.path)
        self._check(record)
        for name, part in self.state.items():
            part.load_state_dict(record["state"][name])
        self.history.load_state_dict(record["history"])
        self.best = record["best"]
        set_rng_state(record["rng"])
        return len(self.history)

    def _check(self, record: dict[str, Any]) -> None:
        if not isinstance(record, dict) or "state" not in record:
            raise ValueError(f"{self.path} is not a checkpoint of a training loop")
        if set(record["state"]) != set(self.state):
            raise ValueError(
                f"{self.path} holds {sorted(record['state'])}, this run has {sorted(self.state)}; "
                "it belongs to another run: give this one a file of its own"
            )
        for key, value in self.config.items():
            old = record["config"].get(key, value)
            if key != "epochs" and old != value:
                raise ValueError(
                    f"{self.path} was made with {key} = {old!r}, this run has {value!r}; delete "
                    "the file to start afresh, or go on with the old value"
                )


def _best_epoch(history: History, monitor: str | None, mode: str) -> int | None:
    """The first epoch with the best value of the monitored quantity; NaN is never the best."""
    if monitor is None or not history.rows:
        return None
    if monitor not in history[-1]:
        raise ValueError(f"monitor is {monitor!r}; an epoch returns {sorted(history[-1])}")
    sign = 1.0 if mode == "max" else -1.0
    epochs = [i for i, row in enumerate(history.rows) if not math.isnan(row[monitor])]
    return max(epochs, key=lambda i: sign * history[i][monitor], default=None)


def _weights(state: Mapping[str, Stateful]) -> dict[str, Any]:
    """Copies of the weights of all modules."""
    modules = {name: part for name, part in state.items() if isinstance(part, nn.Module)}
    return {name: copy.deepcopy(module.state_dict()) for name, module in modules.items()}


def _check_finite(row: Row, state: Mapping[str, Stateful], checkpoint: Path | None) -> None:
    """The one look per epoch at whether numbers still are numbers."""
    epoch = row["epoch"]
    for key, value in row.items():
        if key.endswith("loss") and not math.isfinite(value):
            raise NonFiniteLoss(f"{key} is {float(value)}", epoch, checkpoint)
    for name, part in state.items():
        if not isinstance(part, nn.Module):
            continue
        tensors = [t.detach() for t in part.state_dict().values() if t.is_floating_point()]
        if tensors and not torch.stack([t.isfinite().all() for t in tensors]).all():
            raise NonFiniteLoss(f"a weight of {name!r} is not finite", epoch, checkpoint)


def _plain(value: Any) -> Any:
    """Numbers of NumPy and PyTorch as Python's: rows are stored in files and compared."""
    if isinstance(value, Tensor) or type(value).__module__ == "numpy":
        return value.item()
    return value


def _summary(row: Row) -> dict[str, str]:
    numbers = {k: v for k, v in row.items() if isinstance(v, float) and k != "epoch"}
    return {key: f"{value:.3g}" for key, value in list(numbers.items())[:4]}
