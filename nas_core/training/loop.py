"""The epoch loop: progress, checkpoints, resuming, early stopping, and a guard against NaN.

The loop does not know about models. It calls `body(epoch)`, and everything that changes from epoch
to epoch is named in `state`; what is in `state` (with the random generators) is what is saved.
"""

from __future__ import annotations

import copy
import math
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from nas_core.training.checkpoint import load_checkpoint, rng_state, save_atomic, set_rng_state

if TYPE_CHECKING:
    import pandas as pd

Row = dict[str, Any]


class NonFiniteLoss(RuntimeError):
    """A loss or a weight is NaN or infinite; `epoch` and `checkpoint` (last good) are kept."""

    def __init__(self, what: str, epoch: int, checkpoint: Path | None):
        self.epoch, self.checkpoint = epoch, checkpoint
        kept = "no checkpoint was asked for, so nothing is kept"
        if checkpoint:
            kept = f"the last good state (before epoch {epoch}) is in {checkpoint}"
        super().__init__(
            f"{what} in epoch {epoch}; {kept}. Lower the learning rate (÷ 3 to ÷ 10), or look at "
            "the inputs of that epoch for values that are not finite."
        )


@dataclass
class History:
    """One row of plain values per epoch."""

    rows: list[Row] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Row:
        return self.rows[index]

    def append(self, row: Mapping[str, Any]) -> None:
        """Add an epoch; numbers of NumPy and PyTorch become Python's."""
        numbers = (Tensor, np.generic)
        self.rows.append({k: v.item() if isinstance(v, numbers) else v for k, v in row.items()})

    def frame(self) -> pd.DataFrame:
        """Tidy table: a row per epoch, a column per quantity."""
        import pandas as pd

        return pd.DataFrame(self.rows)

    def state_dict(self) -> dict[str, Any]:
        return {"rows": list(self.rows)}

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        self.rows = list(state_dict["rows"])


class EarlyStopping:
    """Remembers the best value, and when it was seen; a tie or NaN is no improvement.

    Args:
        patience: stop when the last improvement is this far back, in whatever the caller counts
            (epochs or steps); None never stops.
        mode: whether a larger ("max") or a smaller ("min") value is better.
        by: how much better a value must be to count.
    """

    def __init__(self, patience: int | None, mode: Literal["max", "min"] = "max", by: float = 0.0):
        if mode not in ("max", "min"):
            raise ValueError(f'mode is {mode!r}; it must be "max" or "min"')
        if patience is not None and patience < 1:
            raise ValueError(f"patience is {patience}; it must be at least 1")
        self.patience, self.mode, self.by = patience, mode, by
        self.best: float | None = None
        self.best_at: int | None = None

    def update(self, value: float, at: int) -> bool:
        """Whether `value`, seen at epoch or step `at`, is the best so far."""
        sign = 1 if self.mode == "max" else -1
        if math.isnan(value):
            return False
        if self.best is not None and sign * value <= sign * self.best + self.by:
            return False
        self.best, self.best_at = value, at
        return True

    def is_over(self, at: int) -> bool:
        """Whether patience has run out at epoch or step `at`."""
        if self.patience is None or self.best_at is None:
            return False
        return at - self.best_at >= self.patience


class MovingAverage:
    """Exponential moving average of means over batches.

    Args:
        keep: share of the old value that is kept at every update.
    """

    def __init__(self, keep: float = 0.9):
        if not 0 <= keep < 1:
            raise ValueError(f"keep is {keep}; it must be in [0, 1)")
        self.keep = keep
        self.value: float | None = None

    def update(self, values: Tensor) -> float:
        """Blend the mean of `values` in and return the new average."""
        new = values.mean().item()
        self.value = new if self.value is None else self.keep * self.value + (1 - self.keep) * new
        return self.value

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value}

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        self.value = state_dict["value"]


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
    state: Mapping[str, Any],
    checkpoint: str | Path | None = None,
    progress: bool | str = True,
    monitor: str | None = None,
    patience: int | None = None,
    mode: Literal["max", "min"] = "max",
    config: Mapping[str, Any] | None = None,
) -> LoopResult:
    """Call `body(epoch)` for epochs 0, 1, …, and keep what it returned.

    With a checkpoint, everything is saved after each epoch, and a run whose file exists goes on
    from there with the same bits, whatever ended it: `body` must draw its random numbers from the
    global generators, from generators in `state`, or from (seed, epoch).

    Args:
        body: one epoch; returns numbers (or words) to be recorded.
        state: by name, everything that changes: objects with state_dict and load_state_dict.
        progress: False, True, or a label; see `progress_bar`.
        monitor, patience, mode: stop after `patience` epochs without a new best `monitor`; the
            modules of `state` then get the weights of the best epoch, also when the epochs ran out.
        config: everything else that determines the result, as plain values: hyper-parameters and
            fingerprints of data and network. A checkpoint that was made with other values, or
            lacks one, is refused; only `epochs` may differ, so that a run can be extended.

    Raises:
        NonFiniteLoss: when a returned loss, or a weight, is not finite.
        ValueError: when the checkpoint belongs to another run.
    """
    if epochs < 0:
        raise ValueError(f"epochs is {epochs}; it must be at least 0")
    if patience is not None and monitor is None:
        raise ValueError(f"patience is {patience}; give it a monitor to watch")
    path = None if checkpoint is None else Path(checkpoint)
    config = dict(config or {})
    modules = {name: part for name, part in state.items() if isinstance(part, nn.Module)}
    history, stopping = History(), EarlyStopping(patience, mode)
    best_weights: dict[str, Any] | None = None  # of the modules; only with patience

    def save(path: Path) -> None:
        parts = {name: part.state_dict() for name, part in state.items()}
        record = {"state": parts, "history": history.state_dict(), "best": best_weights}
        save_atomic({**record, "rng": rng_state(), "config": config}, path)

    def resume(path: Path) -> None:
        nonlocal best_weights, stopping
        record = load_checkpoint(path)
        _check_identity(record, state, config, path)
        for name, part in state.items():
            part.load_state_dict(record["state"][name])
        history.load_state_dict(record["history"])
        best_weights, stopping = record["best"], EarlyStopping(patience, mode)
        for epoch, row in enumerate(history.rows if monitor else []):
            stopping.update(row[monitor or ""], epoch)
        set_rng_state(record["rng"])

    if path is not None and path.exists():
        resume(path)
    elif path is not None:
        save(path)  # so that Ctrl-C or NaN in the first epoch also has a state to go back to
    resumed_from, interrupted = len(history), False
    bar = progress_bar(epochs, progress, initial=resumed_from)
    try:
        while len(history) < epochs and not stopping.is_over(len(history) - 1):
            epoch = len(history)
            row = {"epoch": epoch, **body(epoch)}
            _check_finite(row, modules, path)
            history.append(row)
            if monitor and monitor not in row:
                raise ValueError(f"monitor is {monitor!r}; an epoch returns {sorted(row)}")
            if monitor and stopping.update(history[-1][monitor], epoch) and patience:
                best_weights = {n: copy.deepcopy(m.state_dict()) for n, m in modules.items()}
            if path is not None:
                save(path)
            numbers = [(k, f"{v:.3g}") for k, v in history[-1].items() if isinstance(v, float)]
            bar.set_postfix(dict(numbers[:4]), refresh=False)
            bar.update()
    except KeyboardInterrupt:
        interrupted = True
        if path is not None:
            resume(path)  # drops the unfinished epoch, so that weights and history agree
    finally:
        bar.close()
    if best_weights is not None and patience is not None and not interrupted:
        for name, weights in best_weights.items():
            modules[name].load_state_dict(weights)
    return LoopResult(
        history=history,
        epochs=len(history),
        resumed_from=resumed_from,
        interrupted=interrupted,
        stopped_early=stopping.is_over(len(history) - 1) and len(history) < epochs,
        best_epoch=stopping.best_at,
        best_value=stopping.best,
    )


def progress_bar(total: int | None, show: bool | str = True, *, initial: int = 0) -> tqdm[Any]:
    """A bar on standard output; silent when that is no terminal, so that logs stay clean.

    Args:
        show: False for none, True, or a label. The environment variable `NAS_PROGRESS` overrides
            the terminal check: "1" always shows the bar (say, in a notebook), "0" never.
    """
    forced = os.environ.get("NAS_PROGRESS", "")
    visible = bool(show) and (forced == "1" or (forced != "0" and sys.stdout.isatty()))
    return tqdm(
        total=total,
        desc=show if isinstance(show, str) else None,
        initial=initial,
        file=sys.stdout,
        disable=not visible,
        leave=False,
        dynamic_ncols=True,
    )


def _check_identity(
    record: Any, state: Mapping[str, Any], config: dict[str, Any], path: Path
) -> None:
    if not isinstance(record, dict) or "state" not in record:
        raise ValueError(f"{path} is not a checkpoint of a training loop")
    if set(record["state"]) != set(state):
        raise ValueError(
            f"{path} holds {sorted(record['state'])}, this run has {sorted(state)}; "
            "it belongs to another run: give this one a file of its own"
        )
    old = record["config"]
    for key in sorted({*old, *config} - {"epochs"}):
        if key not in old or key not in config or old[key] != config[key]:
            made = f"with {key} = {old[key]!r}" if key in old else f"without {key}"
            now = f"has {config[key]!r}" if key in config else "has none"
            raise ValueError(
                f"{path} was made {made}, this run {now}; give this run a file of its own, or go "
                "on with the old value"
            )


def _check_finite(row: Row, modules: Mapping[str, nn.Module], checkpoint: Path | None) -> None:
    """Refuse NaN and infinity, once per epoch, so that no step has to wait for the device."""
    epoch = row["epoch"]
    for key, value in row.items():
        if key.endswith("loss") and not math.isfinite(value):
            raise NonFiniteLoss(f"{key} is {float(value)}", epoch, checkpoint)
    for name, module in modules.items():
        tensors = [t.detach() for t in module.state_dict().values() if t.is_floating_point()]
        if tensors and not torch.stack([t.isfinite().all() for t in tensors]).all():
            raise NonFiniteLoss(f"a weight of {name!r} is not finite", epoch, checkpoint)
