"""Two gloo processes give the weights of one process with the same global batch."""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.ddp import Shard, searched
from nas_core import search
from nas_core.search.trial import Setup, search_trial
from nas_core.training import TensorData, load_checkpoint

ROOT = Path(__file__).parents[2]
SCRIPT = str(ROOT / "benchmarks/ddp.py")


def _torchrun(words: list[str], folder: Path) -> str:
    command = [sys.executable, "-m", "torch.distributed.run", *words]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, capture_output=True, text=True, env=env, cwd=folder, timeout=1500
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_two_processes_equal_one(tmp_path):
    one, two = tmp_path / "one.pt", tmp_path / "two.pt"
    for processes, out in ((1, one), (2, two)):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        where = [
            f"--nproc-per-node={processes}",
            "--master-addr=127.0.0.1",
            f"--master-port={port}",
        ]
        job = [SCRIPT, "tests.training.ddp_job:small", "--out", out.name]
        assert f"{processes} processes" in _torchrun([*where, *job], tmp_path)
    a, b = load_checkpoint(one)["model"], load_checkpoint(two)["model"]
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-9, atol=1e-11)
    first = load_checkpoint(one)["history"]
    assert first[-1]["loss"] < first[0]["loss"]


def _data(n=37):
    return TensorData(torch.arange(n).view(n, 1).float(), torch.arange(n))


@pytest.mark.parametrize("world", [1, 2, 3])
def test_shards_are_the_global_batches_dealt_out(world):
    whole = [y for _, y in _data().batches(12, seed=3, epoch=1)]
    shards = [
        [y for _, y in Shard(_data(), rank, world).batches(12, seed=3, epoch=1)]
        for rank in range(world)
    ]
    for n, batch in enumerate(whole):
        parts = [shard[n] for shard in shards if n < len(shard)]
        if not parts:
            assert len(batch) < 2 * world  # a single row each, or none
            continue
        assert len({len(part) for part in parts}) == 1  # equal shares: gradients may be averaged
        together = torch.stack(parts, 1).flatten()
        assert torch.equal(together, batch[: len(together)])
        assert len(batch) - len(together) < world


@pytest.mark.parametrize(("rows", "batches"), [(66, 1), (67, 1), (68, 2), (2, 1), (128, 2)])
def test_no_process_gets_a_last_batch_of_one_row(rows, batches):
    for rank in range(2):
        sizes = [len(y) for _, y in Shard(_data(rows), rank, 2).batches(64, seed=0)]
        assert len(sizes) == batches and (min(sizes) > 1 or rows == 2)


def test_wrong_shards_are_refused():
    with pytest.raises(ValueError, match="rank 2 of 2"):
        Shard(_data(), 2, 2)
    with pytest.raises(ValueError, match="choose a multiple"):
        next(Shard(_data(), 0, 2).batches(5, seed=0))


def test_without_torchrun_it_says_so(tmp_path):
    done = subprocess.run(
        [sys.executable, SCRIPT, "a:b", "--out", str(tmp_path / "w.pt")],
        capture_output=True, text=True, cwd=ROOT,
        env={k: v for k, v in os.environ.items() if k != "RANK"},
    )  # fmt: skip
    assert done.returncode == 2 and "start this with torchrun" in done.stderr


def test_command_of_the_readme_on_a_smaller_scale(tmp_path):
    text = (ROOT / "README.md").read_text(encoding="utf-8").replace("\\\n", " ")
    (line,) = [line for line in text.splitlines() if line.startswith("torchrun ")]
    for large, small in (
        ("--nproc-per-node=4", "--nproc-per-node=2"),
        ("dataset=cifar10", "dataset=digits"),
        ("blocks=3", "blocks=2 channels=(2,4,8)"),
        ("epochs=300", "epochs=1"),
        ("benchmarks/ddp.py", SCRIPT),
    ):
        assert large in line
        line = line.replace(large, small)
    assert "1 epochs, 2 processes" in _torchrun(shlex.split(line)[1:], tmp_path)
    assert load_checkpoint(tmp_path / "resnet20.pt")["history"][0]["val_accuracy"] > 0
    assert len(list((tmp_path / "build").glob("resnet20.*"))) == 2  # one of each process


def test_job_of_a_saved_run(tmp_path):
    """The architecture that a search found, with new weights; another space is refused."""
    setup = Setup(
        space_args=(("blocks_per_group", 2), ("channels", (2, 4, 8))), train_limit=64, val_limit=64
    )
    trial = search_trial(setup, 1.0, search.BudgetConfig(epochs=2, warmup_epochs=1))
    trial.run.save(tmp_path / "run.pt")
    values = {"run": str(tmp_path / "run.pt"), "dataset": "digits", "epochs": 3}
    space = dict(setup.space_args)
    model, images, config = searched(torch.device("cpu"), space_args=space, **values)
    x, _ = next(images.test.batches(5, seed=0))
    assert config.epochs == 3 and model(x).shape == (5, 10)
    sizes = {n: p.shape for n, p in trial.network.named_parameters()}
    assert {n: p.shape for n, p in model.named_parameters()} == sizes
    space["blocks_per_group"] = 3
    with pytest.raises(ValueError, match="belongs to the space"):
        searched(torch.device("cpu"), space_args=space, **values)
