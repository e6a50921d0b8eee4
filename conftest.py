"""Settings of every test session, whatever folder it is started for: kernels inherit them."""

import os

from nas_core.workbook.environment import COMPARABLE

os.environ.update(COMPARABLE)  # before torch is imported
