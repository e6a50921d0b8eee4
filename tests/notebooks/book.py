"""What the tests of the chapters share: their bands, their exercises, controls that must fail."""

import ast
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from nas_core.workbook import Book, notebooks

Band = tuple[float, float]
Controls = Mapping[str, Mapping[str, Callable[[], float]]]  # {band: {mistake: function}}


def claimed(chapter: str) -> dict[str, Band]:
    """The bands of a chapter, by the name of the expectation."""
    return bands(Book.load().find(chapter).path)


def assert_separated(found: Mapping[str, Band], controls: Mapping[str, float]) -> None:
    """Every band has a control, and every control falls clearly outside its band."""
    assert set(controls) == set(found)
    weak = {n: (found[n], v) for n, v in controls.items() if not separates(found[n], float(v))}
    assert not weak


def each_mistake(controls: Controls) -> Any:
    """One test for every (band, mistake)."""
    pairs = [(name, mistake) for name, mistakes in controls.items() for mistake in mistakes]
    return pytest.mark.parametrize(("name", "mistake"), pairs)


def control_tests(found: Mapping[str, Band], controls: Controls) -> tuple[Any, Any]:
    """Two tests: every band has a control, and every control falls clearly outside its band.

    A chapter's module lists its `controls`, which compute what the claim is measured on with a
    mistake built in, and takes both tests:

        test_every_band_has_a_control, test_the_band_rejects_the_mistake = control_tests(…)
    """

    def every_band_has_a_control() -> None:
        assert set(controls) == set(found), set(controls) ^ set(found)

    @each_mistake(controls)
    def the_band_rejects_the_mistake(name: str, mistake: str) -> None:
        value = float(controls[name][mistake]())
        assert separates(found[name], value), f"{found[name]} does not reject {value:.4g}"

    return every_band_has_a_control, the_band_rejects_the_mistake


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


def bands(notebook: str | Path) -> dict[str, Band]:
    """Every band that a notebook claims: name of the expectation -> (lo, hi).

    Read from the source without executing it, for tests that put a negative control against each
    band. Raises `ValueError` where a band is not literal or a name appears twice.
    """
    found: dict[str, Band] = {}
    for index, cell in enumerate(notebooks.code_cells(notebooks.read(notebook))):
        for call in _expectations(cell.source):
            where = f"{Path(notebook).name}, code cell {index + 1}"
            try:
                arguments = dict(zip(("name", "value", "lo", "hi"), call.args, strict=False))
                arguments |= {str(k.arg): k.value for k in call.keywords}
                name = ast.literal_eval(arguments["name"])
                lo, hi = (float(ast.literal_eval(arguments[k])) for k in ("lo", "hi"))
            except (KeyError, ValueError, TypeError) as error:
                raise ValueError(
                    f"{where}: expect() needs a literal name and literal bounds"
                ) from error
            if name in found:
                raise ValueError(f"{where}: expect() has the name {name!r} a second time")
            found[name] = (lo, hi)
    return found


def separates(band: Band, control: float) -> bool:
    """Whether a band tells the claim from its negative control.

    The control lies outside, and half the band's width is smaller than half the distance from
    the band's middle to the control.
    """
    lo, hi = band
    half, distance = (hi - lo) / 2, abs(control - (lo + hi) / 2)
    return not lo <= control <= hi and half < distance / 2


def _expectations(source: str) -> list[ast.Call]:
    calls = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Call)]
    return [c for c in calls if ast.unparse(c.func).split(".")[-1] == "expect"]
