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
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from nas_core.training.checkpoint import load_checkpoint, rng_state, save_atomic, set_rng_state
from nas_core.training.device import require

if TYPE_CHECKING:
    import pandas as pd


class NonFiniteLoss(RuntimeError):
    """A loss or a weight is NaN or infinite; `epoch` and `checkpoint` (last good) are kept."""

    def __init__(self, what: str, epoch: int, checkpoint: Path | None):
        self.epoch, self.checkpoint = epoch, checkpoint
        good = f"the last good state (before epoch {epoch}) is in {checkpoint}"
        kept = good if checkpoint else "no checkpoint was asked for, so nothing is kept"
        super().__init__(
            f"{what} in epoch {epoch}; {kept}. Lower the learning rate (÷ 3 to ÷ 10), or look at "
            "the inputs of that epoch for values that are not finite."
        )


class History(list[dict[str, Any]]):
    """One row of plain values per epoch."""

    def append(self, row: Mapping[str, Any]) -> None:
        """Add an epoch; numbers of NumPy and PyTorch become Python's."""
        numbers = (Tensor, np.generic)
        super().append({k: v.item() if isinstance(v, numbers) else v for k, v in row.items()})

    def frame(self) -> pd.DataFrame:
        """Tidy table: a row per epoch, a column per quantity."""
        import pandas as pd

        return pd.DataFrame(list(self))

    def state_dict(self) -> dict[str, Any]:
        return {"rows": list(self)}

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        self[:] = state_dict["rows"]


class EarlyStopping:
    """Remembers the best value, and when it was seen; a tie or NaN is no improvement.

    Args:
        patience: stop this many epochs (or steps) after the last improvement; None never stops.
        mode: whether a larger ("max") or a smaller ("min") value is better.
    """

    def __init__(self, patience: int | None, mode: Literal["max", "min"] = "max"):
        require(mode in ("max", "min"), "mode", mode, '"max" or "min"')
        require(patience is None or patience >= 1, "patience", patience, "at least 1")
        self.patience, self.sign = patience, 1 if mode == "max" else -1
        self.best: float | None = None
        self.best_at: int | None = None

    def update(self, value: float, at: int) -> bool:
        """Whether `value`, seen at epoch or step `at`, is the best so far."""
        worse = self.best is not None and self.sign * value <= self.sign * self.best
        if worse or math.isnan(value):
            return False
        self.best, self.best_at = value, at
        return True

    def is_over(self, at: int) -> bool:
        """Whether patience has run out at epoch or step `at`."""
        if self.patience is None or self.best_at is None:
            return False
        return at - self.best_at >= self.patience


class MovingAverage:
    """Exponential moving average of means over batches; `keep` is the share of the old value."""

    def __init__(self, keep: float = 0.9):
        require(0 <= keep < 1, "keep", keep, "in [0, 1)")
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
    body: Callable[[int], Mapping[str, Any]], epochs: int, *, state: Mapping[str, Any],
    checkpoint: str | Path | None = None, progress: bool | str = True,
    monitor: str | None = None, patience: int | None = None, mode: Literal["max", "min"] = "max",
    config: Mapping[str, Any] | None = None,
) -> LoopResult:  # fmt: skip
    """Call `body(epoch)` for epochs 0, 1, …, and keep what it returned.

    With a checkpoint, everything is saved after each epoch, and a run whose file exists goes on
    from there with the same bits, whatever ended it: `body` must draw its random numbers from the
    global generators, from generators in `state`, or from (seed, epoch).

    Args:
        body: one epoch; returns numbers (or words) to be recorded.
        state: by name, everything that changes: objects with state_dict and load_state_dict.
        monitor, patience, mode: stop after `patience` epochs without a new best `monitor`; the
            modules of `state` then get the weights of the best epoch, also when the epochs ran out.
        config: everything else that determines the result, as plain values. A checkpoint that was
            made with others is refused; only `epochs` may differ, so that a run can be extended.

    Raises:
        NonFiniteLoss: when a loss (any name that ends so) or a weight is not finite.
    """
    require(epochs >= 0, "epochs", epochs, "at least 0")
    if patience is not None and monitor is None:
        raise ValueError(f"patience is {patience}; give it a monitor to watch")
    path = None if checkpoint is None else Path(checkpoint)
    config = dict(config or {})
    modules = {name: part for name, part in state.items() if isinstance(part, nn.Module)}
    history, stopping = History(), EarlyStopping(patience, mode)
    best_weights: dict[str, Any] | None = None  # of the modules; only with patience

    def save() -> None:
        if path is not None:
            parts = {name: part.state_dict() for name, part in state.items()}
            record = {"state": parts, "history": history.state_dict(), "best": best_weights}
            save_atomic({**record, "rng": rng_state(), "config": config}, path)

    def resume() -> None:
        nonlocal best_weights, stopping
        if path is not None:
            record = load_checkpoint(path)
            _check_identity(record, state, config, path)
            for name, part in state.items():
                part.load_state_dict(record["state"][name])
            history.load_state_dict(record["history"])
            best_weights, stopping = record["best"], EarlyStopping(patience, mode)
            for epoch, row in enumerate(history if monitor else []):
                stopping.update(row[monitor or ""], epoch)
            set_rng_state(record["rng"])

    if path is not None and path.exists():
        resume()
    else:
        save()  # so that Ctrl-C or NaN in the first epoch also has a state to go back to
    resumed_from, interrupted = len(history), False
    bar = progress_bar(epochs, progress, initial=resumed_from)
    try:
        while len(history) < epochs and not stopping.is_over(len(history) - 1):
            epoch = len(history)
            row = {"epoch": epoch, **body(epoch)}
            if wrong := _not_finite(row, modules):
                raise NonFiniteLoss(wrong, epoch, path)
            history.append(row)
            if monitor and monitor not in row:
                raise ValueError(f"monitor is {monitor!r}; an epoch returns {sorted(row)}")
            if monitor and stopping.update(history[-1][monitor], epoch) and patience:
                best_weights = {n: copy.deepcopy(m.state_dict()) for n, m in modules.items()}
            save()
            numbers = [(k, f"{v:.3g}") for k, v in history[-1].items() if isinstance(v, float)]
            bar.set_postfix(dict(numbers[:4]), refresh=False)
            bar.update()
    except KeyboardInterrupt:
        interrupted = True
        resume()  # drops the unfinished epoch, so that weights and history agree
    finally:
        bar.close()
    if best_weights is not None and patience is not None and not interrupted:
        for name, weights in best_weights.items():
            modules[name].load_state_dict(weights)
    early = stopping.is_over(len(history) - 1) and len(history) < epochs
    return LoopResult(
        history, len(history), resumed_from, interrupted, early, stopping.best_at, stopping.best
    )


def progress_bar(total: int | None, show: bool | str = True, *, initial: int = 0) -> tqdm[Any]:
    """A bar on standard output, if that is a terminal: logs stay clean.

    Args:
        show: False for none, True, or a label. The environment variable `NAS_PROGRESS` overrides
            the terminal check: "1" always shows the bar (say, in a notebook), "0" never.
    """
    forced = os.environ.get("NAS_PROGRESS", "")
    visible = bool(show) and (forced == "1" or (forced != "0" and sys.stdout.isatty()))
    return tqdm(
        total=total, desc=show if isinstance(show, str) else None, initial=initial,
        file=sys.stdout, disable=not visible, leave=False, dynamic_ncols=True,
    )  # fmt: skip


def _check_identity(record: Any, state: Mapping[str, Any], config: dict, path: Path) -> None:
    """Refuse a checkpoint that something else has made, and name what differs."""
    if not isinstance(record, dict) or "state" not in record:
        raise ValueError(f"{path} is not a checkpoint of a training loop")
    own = "give this run a file of its own"
    if set(record["state"]) != set(state):
        parts = f"holds {sorted(record['state'])}, this run has {sorted(state)}"
        raise ValueError(f"{path} {parts}; it belongs to another run: {own}")
    old = record["config"]
    for key in sorted({*old, *config} - {"epochs"}):
        if key not in old or key not in config or old[key] != config[key]:
            made = f"with {key} = {old[key]!r}" if key in old else f"without {key}"
            now = f"has {config[key]!r}" if key in config else "has none"
            raise ValueError(
                f"{path} was made {made}, this run {now}; {own}, or go on with the old value"
            )


def _not_finite(row: Mapping[str, Any], modules: Mapping[str, nn.Module]) -> str:
    """What is NaN or infinite after an epoch; asked once per epoch, as it waits for the device."""
    for key, value in row.items():
        if key.endswith("loss") and not math.isfinite(value):
            return f"{key} is {float(value)}"
    for name, module in modules.items():
        tensors = [t.detach() for t in module.state_dict().values() if t.is_floating_point()]
        if tensors and not torch.stack([t.isfinite().all() for t in tensors]).all():
            return f"a weight of {name!r} is not finite"
    return ""
