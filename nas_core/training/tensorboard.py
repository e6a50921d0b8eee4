"""Curves for TensorBoard, for those who have it (`pip install "nas-workbook[dashboard]"`)."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from pathlib import Path
from typing import Any

import pandas as pd

from nas_core.training.loop import History


class TensorBoardHistory(History):
    """A history for `run_epochs` that also writes every number of an epoch to `folder`.

    A resumed run goes on in the same folder; epochs that it repeats replace the earlier ones.
    """

    def __init__(self, folder: str | Path):
        super().__init__()
        self.folder = Path(folder)
        self._writer = _writer(self.folder, purge=0)

    def append(self, row: Mapping[str, Any]) -> None:
        super().append(row)
        _add(self._writer, self[-1], int(row.get("epoch", len(self) - 1)))
        self._writer.flush()

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        super().load_state_dict(state_dict)
        self._writer.close()
        self._writer = _writer(self.folder, purge=len(self))
        for epoch, row in enumerate(self.rows):
            _add(self._writer, row, epoch)


def write_tensorboard(frame: pd.DataFrame, folder: str | Path, step: str = "epoch") -> None:
    """Write a finished history (`run.history`, `result.history.frame()`) to `folder`."""
    if step not in frame:
        raise ValueError(f"no column {step!r}; there are {list(frame.columns)}")
    writer = _writer(Path(folder), purge=None)
    for row in frame.to_dict("records"):
        _add(writer, row, int(row[step]))
    writer.close()


def _writer(folder: Path, purge: int | None) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError(
            "TensorBoard is not installed: pip install 'nas-workbook[dashboard]'"
        ) from error
    return SummaryWriter(str(folder), purge_step=purge)


def _add(writer: Any, row: Mapping[Any, Any], step: int) -> None:
    for name, value in row.items():
        if isinstance(value, Real) and not isinstance(value, bool):
            writer.add_scalar(str(name), float(value), step)
