"""The book around the library: settings of a chapter, its claims, exercises, results, runner.

Names are loaded when first used, so that the command line starts quickly.
"""

from importlib import import_module
from typing import Any

_HOME = {
    "Book": "book",
    "BookError": "book",
    "Chapter": "book",
    "ChapterConfig": "config",
    "chapter": "config",
    "ExpectationError": "config",
    "expect": "config",
    "record_result": "results",
    "replay": "results",
}
__all__ = ["checks", *_HOME]


def __getattr__(name: str) -> Any:
    if name == "checks":
        return import_module(f"{__name__}.checks")
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__} has no attribute {name!r}")
