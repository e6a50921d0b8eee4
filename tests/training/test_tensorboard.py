"""Histories arrive in TensorBoard's files."""

from __future__ import annotations

import pandas as pd
import pytest

pytest.importorskip("tensorboard", reason="optional: pip install 'nas-workbook[dashboard]'")
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from nas_core.training import run_epochs
from nas_core.training.tensorboard import TensorBoardHistory, write_tensorboard


def _scalars(folder, name):
    events = EventAccumulator(str(folder))
    events.Reload()
    return [(e.step, round(e.value, 5)) for e in events.Scalars(name)]


def test_a_loop_writes_every_epoch(tmp_path):
    history = TensorBoardHistory(tmp_path)
    run_epochs(lambda e: {"loss": 1 / (e + 1)}, 3, state={}, history=history, progress=False)
    assert _scalars(tmp_path, "loss") == [(0, 1.0), (1, 0.5), (2, 0.33333)]


def test_a_finished_history(tmp_path):
    write_tensorboard(pd.DataFrame({"epoch": [0, 1], "cost": [4.0, 2.0], "phase": "a"}), tmp_path)
    assert _scalars(tmp_path, "cost") == [(0, 4.0), (1, 2.0)]
    with pytest.raises(ValueError, match="no column 'step'"):
        write_tensorboard(pd.DataFrame({"epoch": [0]}), tmp_path, step="step")
