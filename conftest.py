"""Settings of every test session, whatever folder it is started for: kernels inherit them."""

import os

# One thread adds sums in one order; set before torch is imported.
os.environ.update({"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "NAS_PROGRESS": "0"})
