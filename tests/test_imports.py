"""What importing the library loads, and how long that takes next to PyTorch itself."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Each takes a large share of a second or more, and most users of a room never call it.
HEAVY = (
    "torchvision", "torchaudio", "torch._dynamo", "sklearn", "scipy.stats", "optuna", "ray",
    "matplotlib", "soundfile", "onnxruntime", "nbformat", "tensorboard",
)  # fmt: skip


def _python(code: str) -> str:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=ROOT, timeout=1500)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize("room", ["search", "continual", "spaces", "data"])
def test_heavy_libraries_are_loaded_only_where_they_are_used(room):
    code = f"import sys, nas_core.{room}; print(*[m for m in {HEAVY} if m in sys.modules])"
    assert _python(code).split() == []


def test_configurations_build_no_optimizer():
    """A first optimizer imports PyTorch's compiler, a second of work that a table does not need."""
    code = (
        "import sys; from nas_core.search import BudgetConfig; from nas_core.training import"
        " TrainConfig; BudgetConfig(); TrainConfig(); print('torch._dynamo' in sys.modules)"
    )
    assert _python(code).strip() == "False"


def test_the_package_and_its_atomic_writer_start_without_torch():
    code = "import sys, nas_core.files; print(*[m for m in ('torch', 'numpy') if m in sys.modules])"
    assert _python(code).split() == []


@pytest.mark.skipif(sys.platform == "win32", reason="has no resource module")
def test_importing_search_costs_little_more_than_importing_torch():
    """In processor time of the user, best of three: other work on the machine does not count."""

    def seconds(module: str) -> float:
        code = f"import {module}, resource as r; print(r.getrusage(r.RUSAGE_SELF).ru_utime)"
        return float(_python(code))

    pairs = [(seconds("torch"), seconds("nas_core.search")) for _ in range(3)]
    torch, search = (min(column) for column in zip(*pairs, strict=True))
    assert search <= 1.6 * torch, f"{search:.2f} s against {torch:.2f} s"
