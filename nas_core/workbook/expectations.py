"""`expect()`: a claim of a chapter that is checked on every execution."""

from __future__ import annotations

import math
from typing import Any


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
