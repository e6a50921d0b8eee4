"""The book around the library: settings of a chapter, its claims, exercises, results, runner.

Names are loaded when first used, so that the command line starts quickly.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nas_core.workbook import checks
    from nas_core.workbook.book import Book, BookError, Chapter
    from nas_core.workbook.book_map import draw_book
    from nas_core.workbook.config import ChapterConfig, chapter
    from nas_core.workbook.expectations import ExpectationError, bands, expect, separates
    from nas_core.workbook.results import record_result, replay

_HOME = {
    "Book": "book",
    "BookError": "book",
    "Chapter": "book",
    "ChapterConfig": "config",
    "ExpectationError": "expectations",
    "bands": "expectations",
    "chapter": "config",
    "draw_book": "book_map",
    "expect": "expectations",
    "record_result": "results",
    "replay": "results",
    "separates": "expectations",
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
    "draw_book",
    "expect",
    "record_result",
    "replay",
    "separates",
]


def __getattr__(name: str) -> Any:
    if name == "checks":
        return importlib.import_module(f"{__name__}.checks")
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__} has no attribute {name!r}")
