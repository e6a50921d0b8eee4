"""The book around the library: settings of a chapter, its claims, exercises, results, runner.

Names are loaded when first used, so that the command line starts quickly.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nas_core.workbook import checks
    from nas_core.workbook.book import Book, BookError, Chapter
    from nas_core.workbook.config import ChapterConfig, chapter
    from nas_core.workbook.expectations import ExpectationError, bands, expect, separates
    from nas_core.workbook.results import record_result, replay

_HOME = {
    "book": ("Book", "BookError", "Chapter"),
    "config": ("ChapterConfig", "chapter"),
    "expectations": ("ExpectationError", "bands", "expect", "separates"),
    "results": ("record_result", "replay"),
}
__all__ = [
    "Book",
    "BookError",
    "Chapter",
    "ChapterConfig",
    "ExpectationError",
    "bands",
    "chapter",
    "checks",
    "expect",
    "record_result",
    "replay",
    "separates",
]


def __getattr__(name: str) -> Any:
    if name == "checks":
        return importlib.import_module(f"{__name__}.checks")
    for module, names in _HOME.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__} has no attribute {name!r}")
