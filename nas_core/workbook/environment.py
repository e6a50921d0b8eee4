"""Settings of every run that is compared: the same bytes on every x86-64 processor with AVX2.

Libraries have code for each kind of processor. Results then differ in their last bits, and training
amplifies that until architectures differ. These settings select the same code everywhere, at a loss
of speed: longer profiles run without them. The square root of a tensor is not covered; optimizers
here are `fused`, which do not call it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

# Sums in one order.
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
ONE_PATH = {
    "MKL_CBWR": "COMPATIBLE", "ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2",
    "OPENBLAS_CORETYPE": "Haswell", "NPY_DISABLE_CPU_FEATURES": "X86_V4 AVX512_ICL AVX512_SPR",
}  # fmt: skip
QUIET = {"PYTHONHASHSEED": "0", "NAS_PROGRESS": "0"}  # outputs without progress bars
COMPARABLE = {**ONE_THREAD, **ONE_PATH, **QUIET}  # smoke runs and tests
FAST = {**ONE_THREAD, **QUIET}  # longer profiles


def comparable() -> bool:
    """Whether this process computes what the committed chapters show, to the last digit."""
    return all(os.environ.get(k) == v for k, v in {**ONE_THREAD, **ONE_PATH}.items())


def lab_environment(book: Path) -> dict[str, str]:
    """For JupyterLab and its kernels: the numbers of the book at `book`, with progress bars."""
    settings = {**COMPARABLE, "NAS_PROGRESS": "1", "NAS_BOOK": str(book)}
    return {**os.environ, **settings, **own_kernel()}


def own_kernel() -> dict[str, str]:
    """Variables that make this interpreter the kernel `python3`, which the notebooks name.

    Jupyter takes the first kernel of that name on its path, so this interpreter's comes first.
    """
    path = [str(Path(sys.prefix, "share", "jupyter")), os.environ.get("JUPYTER_PATH", "")]
    return {"JUPYTER_PATH": os.pathsep.join(filter(None, path))}
