"""Environment of every run that is compared: the same bytes on every x86-64 processor with AVX2.

Matrix products, convolutions and vector functions pick code by processor; a last bit that
differs grows in training until digits and chosen architectures differ. These settings hold all
libraries to one path. They cost some speed, so longer profiles run without them. The square root
of a tensor is the one common operation they do not cover: optimizers here are `fused`, which
does not call it.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from nas_core.files import write_atomic

# Sums in one order.
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
ONE_PATH = {
    "MKL_CBWR": "COMPATIBLE",
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "OPENBLAS_CORETYPE": "Haswell",
    "NPY_DISABLE_CPU_FEATURES": "X86_V4 AVX512_ICL AVX512_SPR",
}
QUIET = {
    "PYTHONHASHSEED": "0",
    "NAS_PROGRESS": "0",  # progress bars would end up in the outputs
}
COMPARABLE = {**ONE_THREAD, **ONE_PATH, **QUIET}  # smoke runs and tests
FAST = {**ONE_THREAD, **QUIET}  # longer profiles
LAB = {**COMPARABLE, "NAS_PROGRESS": "1"}  # kernels of JupyterLab: the book's numbers, with bars


def comparable() -> bool:
    """Whether this process computes what the committed chapters show, to the last digit."""
    wanted = {**ONE_THREAD, **ONE_PATH}
    return all(os.environ.get(name) == value for name, value in wanted.items())


def own_kernel(build: Path) -> dict[str, str]:
    """Environment in which the kernel `python3` is this interpreter, and no other's of that name.

    Notebooks name their kernel `python3`; Jupyter takes the first kernel of that name on its
    path. A kernel specification is written into `build`, which then comes first.
    """
    spec = build / "jupyter" / "kernels" / "python3" / "kernel.json"
    words = {
        "argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        "display_name": "Python 3 (ipykernel)",
        "language": "python",
        "metadata": {"debugger": True},
    }
    write_atomic(spec, json.dumps(words, indent=1))
    path = [str(build / "jupyter"), os.environ.get("JUPYTER_PATH", "")]
    return {"JUPYTER_PATH": os.pathsep.join(filter(None, path))}
