"""What the tests of the chapters share: their bands, their exercises, controls that must fail."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from nas_core.workbook import Book, bands, notebooks, separates
from nas_core.workbook.expectations import Band


def claimed(chapter: str) -> dict[str, Band]:
    """The bands of a chapter, by the name of the expectation."""
    return bands(Book.load().find(chapter).path)


def assert_separated(found: Mapping[str, Band], controls: Mapping[str, float]) -> None:
    """Every band has a control, and every control falls clearly outside its band."""
    assert set(controls) == set(found)
    weak = {n: (found[n], v) for n, v in controls.items() if not separates(found[n], float(v))}
    assert not weak


def each_mistake(controls: Mapping[str, Mapping[str, Callable[[], float]]]) -> Any:
    """One test for every (band, mistake) of `{band: {mistake: function}}`."""
    pairs = [(name, mistake) for name, mistakes in controls.items() for mistake in mistakes]
    return pytest.mark.parametrize(("name", "mistake"), pairs)


def assert_all_named(found: Mapping[str, Band], source: str) -> None:
    """Every band of a chapter is spoken of in the file of its controls."""
    assert not [name for name in found if f'"{name}"' not in source]


def exercises(chapter: str, kind: str, **names: Any) -> dict[str, Any]:
    """The functions of a chapter's solution cells, of `kind` "solution" or "stub"."""
    tag = {"solution": "solution", "stub": "answer"}[kind]
    for cell in notebooks.arranged(notebooks.read(Book.load().find(chapter).path)).cells:
        if tag in notebooks.tags(cell):
            exec(cell.source, names)
    return names
