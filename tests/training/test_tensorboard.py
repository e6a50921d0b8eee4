"""Histories of checkpoints and of saved runs arrive in TensorBoard's writer."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest

from benchmarks.to_tensorboard import main
from nas_core.training import run_epochs, save_atomic


@pytest.fixture
def written(monkeypatch):
    """Stands in for TensorBoard, which is optional: (folder, name, value, step) of each scalar."""
    scalars = []

    class SummaryWriter:
        def __init__(self, folder):
            self.folder = folder

        def add_scalar(self, name, value, step):
            scalars.append((self.folder, name, value, step))

        def flush(self):
            pass

        close = flush

    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    return scalars


def test_a_checkpoint_gives_every_epoch(tmp_path, written):
    path = tmp_path / "run.pt"
    run_epochs(lambda e: {"loss": 1 / (e + 1)}, 3, state={}, checkpoint=path, progress=False)
    main([str(path), "tb"])
    losses = [(step, round(value, 5)) for _, name, value, step in written if name == "loss"]
    assert losses == [(0, 1.0), (1, 0.5), (2, 0.33333)]


def test_a_saved_run_gives_its_numbers(tmp_path, written):
    columns = {"epoch": [0, 1], "cost": [4.0, 2.0], "phase": ["a", "a"]}
    save_atomic({"history": columns}, tmp_path / "run.pt")
    main([str(tmp_path / "run.pt"), "tb"])
    assert [w for w in written if w[1] != "epoch"] == [
        ("tb", "cost", 4.0, 0), ("tb", "cost", 2.0, 1),
    ]  # fmt: skip


def test_without_tensorboard_it_says_how_to_get_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(SystemExit):
        main([str(tmp_path / "run.pt"), "tb"])
    assert "nas-workbook[dashboard]" in capsys.readouterr().err
