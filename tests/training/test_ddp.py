"""Two gloo processes give the weights of one process with the same global batch."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nas_core.training import TensorData, load_checkpoint
from nas_core.training.ddp import Shard

ROOT = Path(__file__).parents[2]


def _torchrun(processes: int, out: Path, *values: str, checkpoint: Path | None = None) -> str:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    command = [
        sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}",
        "--master-addr=127.0.0.1", f"--master-port={port}",
        "-m", "nas_core.training.ddp", "tests.training.ddp_job:small", "--out", str(out), *values,
    ]  # fmt: skip
    if checkpoint:
        command += ["--checkpoint", str(checkpoint)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=ROOT, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_two_processes_equal_one(tmp_path):
    one, two = tmp_path / "one.pt", tmp_path / "two.pt"
    assert "1 processes" in _torchrun(1, one)
    assert "2 processes" in _torchrun(2, two)
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
            assert len(batch) < world
            continue
        assert len({len(part) for part in parts}) == 1  # equal shares: gradients may be averaged
        together = torch.stack(parts, 1).flatten()
        assert torch.equal(together, batch[: len(together)])
        assert len(batch) - len(together) < world


def test_wrong_shards_are_refused():
    with pytest.raises(ValueError, match="rank 2 of 2"):
        Shard(_data(), 2, 2)
    with pytest.raises(ValueError, match="choose a multiple"):
        next(Shard(_data(), 0, 2).batches(5, seed=0))


def test_without_torchrun_it_says_so(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "nas_core.training.ddp", "a:b", "--out", str(tmp_path / "w.pt")],
        capture_output=True, text=True, cwd=ROOT,
        env={k: v for k, v in os.environ.items() if k != "RANK"},
    )  # fmt: skip
    assert done.returncode == 2 and "start this with torchrun" in done.stderr
