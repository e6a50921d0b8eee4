"""Checks of the exercises: `checks.ex_3_1(my_function)` says ✓ or what differs, with a hint.

One module per chapter (`ch03.py` holds `ex_3_1`, `ex_3_2`, …), loaded when first asked for.
"""

from __future__ import annotations

import importlib
import re
from typing import Any

from nas_core.workbook.checks.framework import Exercise, compare, exercise, same

__all__ = ["Exercise", "compare", "exercise", "same"]


def __getattr__(name: str) -> Any:
    if match := re.fullmatch(r"ex_(\d+)_\d+", name):
        module = f"{__name__}.ch{int(match[1]):02d}"
        try:
            return getattr(importlib.import_module(module), name)
        except ModuleNotFoundError as error:
            if error.name != module:
                raise
            raise AttributeError(f"chapter {match[1]} has no checks") from None
    raise AttributeError(f"module {__name__} has no attribute {name!r}")
