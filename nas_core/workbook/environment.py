"""Environment of every run that is compared: the same bytes on every x86-64 processor with AVX2.

Matrix products, convolutions and vector functions pick code by processor; a last bit that
differs grows in training until digits and chosen architectures differ. These settings hold all
libraries to one path. They cost some speed, so longer profiles run without them. The square root
of a tensor is the one common operation they do not cover: optimisers here are `fused`, which
does not call it.
"""

from __future__ import annotations

ONE_THREAD = {  # sums in one order
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}
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
