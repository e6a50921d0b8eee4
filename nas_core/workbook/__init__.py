"""The book around the library: settings of a chapter, its claims, exercises, results, runner."""

from importlib import import_module
from typing import Any

_HOME = {  # loaded when first used, so that the command line starts quickly
    "Book": "book", "BookError": "book", "Chapter": "book", "ChapterConfig": "config",
    "chapter": "config", "ExpectationError": "config", "expect": "config",
    "record_result": "results", "replay": "results",
}  # fmt: skip
__all__ = ["checks", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__} has no attribute {name!r}")
    module = import_module(f"{__name__}.{_HOME.get(name, name)}")
    return getattr(module, name) if name in _HOME else module
