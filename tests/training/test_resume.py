"""A run that is killed at arbitrary moments ends with the same bits as one that is not."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nas_core.training import load_checkpoint

HELPER = Path(__file__).with_name("kill_and_resume.py")
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def identical(left, right, where="record"):
    """Compare nested containers bit by bit; name the first difference."""
    assert type(left) is type(right), where
    if isinstance(left, torch.Tensor):
        assert left.dtype == right.dtype and left.shape == right.shape, where
        assert left.numpy().tobytes() == right.numpy().tobytes(), where
    elif isinstance(left, dict):
        assert list(left) == list(right), where
        for key in left:
            identical(left[key], right[key], f"{where}[{key!r}]")
    elif isinstance(left, list | tuple):
        assert len(left) == len(right), where
        for i, (a, b) in enumerate(zip(left, right, strict=True)):
            identical(a, b, f"{where}[{i}]")
    else:
        assert left == right, where


@pytest.mark.parametrize(("optimizer", "seed"), [("sgd", 0), ("adam", 1)])
def test_sigkill_at_random_moments_changes_no_bit(tmp_path, optimizer, seed):
    env = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(HELPER), str(tmp_path), optimizer, "4", str(seed)],
        capture_output=True, text=True, timeout=1500, env=env, cwd=HELPER.parents[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    killed_at = json.loads(done.stdout.splitlines()[-1])
    assert len(killed_at) >= 2 and max(killed_at) >= 1, f"killed after {killed_at} epochs only"
    whole, killed = (load_checkpoint(tmp_path / f"{name}.pt") for name in ("whole", "killed"))
    identical(whole, killed)
    assert len(whole["last"]["history"]["rows"]) == 14
    assert {"momentum_buffer", "exp_avg"} & set(whole["last"]["state"]["optimizer"]["state"][0])


def test_the_comparison_notices_a_single_bit():
    one = {"w": [torch.tensor([1.0, 0.0])]}
    other = {"w": [torch.tensor([1.0, -0.0])]}
    identical(one, {"w": [one["w"][0].clone()]})
    with pytest.raises(AssertionError, match=r"record\['w'\]\[0\]"):
        identical(one, other)
