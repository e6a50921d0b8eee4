"""`python -m nas_core.workbook` is the `nas-workbook` command."""

from nas_core.workbook.cli import main

raise SystemExit(main())
