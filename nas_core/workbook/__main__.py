"""`python -m nas_core.workbook` is the `nas-workbook` command."""

import sys

from nas_core.workbook.cli import main

sys.exit(main())
