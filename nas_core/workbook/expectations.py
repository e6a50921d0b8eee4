"""`expect()`: a claim of a chapter that is checked on every execution."""

from __future__ import annotations

import ast
import math
from pathlib import Path
from typing import Any

Band = tuple[float, float]


class ExpectationError(AssertionError):
    """A measured value lies outside the band that the book claims."""


def expect(name: str, value: Any, lo: float, hi: float) -> None:
    """Print a verdict on `lo <= value <= hi`; raise `ExpectationError` outside the band.

    The line names the band and never the value: it is the same on every machine, and nbval
    compares it. `value` is a number, or a tensor or array that holds a single one.
    """
    if not (math.isfinite(lo) and math.isfinite(hi) and lo <= hi):
        raise ValueError(f"expect({name!r}): [{lo}, {hi}] is no band; give finite lo <= hi")
    try:
        number = float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"expect({name!r}): {value!r} is no single number") from error
    if not lo <= number <= hi:  # also when it is not a number
        raise ExpectationError(f"✗ {name}: {number:.6g} lies outside [{lo:.10g}, {hi:.10g}]")
    print(f"✓ {name}: within [{lo:.10g}, {hi:.10g}]")


def bands(notebook: str | Path) -> dict[str, Band]:
    """Every band that a notebook claims: name of the expectation -> (lo, hi).

    Read from the source without executing it, for tests that put a negative control against each
    band. Raises `ValueError` where a band is not literal or a name appears twice.
    """
    import nbformat

    found: dict[str, Band] = {}
    cells = nbformat.read(str(notebook), as_version=4).cells
    for index, cell in enumerate(c for c in cells if c.cell_type == "code"):
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
