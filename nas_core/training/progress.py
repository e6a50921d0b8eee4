"""One way to show progress, which keeps out of logs and of executed notebooks."""

from __future__ import annotations

import os
import sys
from typing import Any

from tqdm import tqdm


def progress_bar(total: int | None, show: bool | str = True, *, initial: int = 0) -> tqdm[Any]:
    """A bar on standard output; silent when that is no terminal.

    Args:
        show: False for none, True, or a label. The environment variable `NAS_PROGRESS` overrides
            the terminal check: "1" always shows the bar (say, in a notebook), "0" never.
    """
    wish = os.environ.get("NAS_PROGRESS", "")
    visible = bool(show) and (wish == "1" or (wish != "0" and sys.stdout.isatty()))
    return tqdm(
        total=total,
        desc=show if isinstance(show, str) else None,
        initial=initial,
        file=sys.stdout,
        disable=not visible,
        leave=False,
        dynamic_ncols=True,
    )
