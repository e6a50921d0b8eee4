"""Model selection over cost and quality (thesis section 3.5.2.3)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd


def pareto_front(frame: pd.DataFrame, cost: str = "cost", value: str = "accuracy") -> pd.DataFrame:
    """Rows that no other row beats: cheaper or equal in `cost` *and* better or equal in `value`.

    Select on validation numbers, then read the test column of the same rows. Of rows equal in
    both the first is kept. Sorted by cost; rows with missing numbers are never on the front.
    """
    for column in (cost, value):
        if column not in frame:
            raise ValueError(f"no column {column!r}; there are {list(frame.columns)}")
        if words := [v for v in frame[column] if isinstance(v, str)]:
            raise ValueError(
                f"column {column!r} holds text ({words[0]!r}), which sorts alphabetically; "
                "convert it with pandas.to_numeric"
            )
    known = frame.dropna(subset=[cost, value])
    ordered = known.sort_values([cost, value], ascending=[True, False], kind="stable")
    best = ordered[value].cummax().shift(fill_value=-np.inf)
    return ordered[ordered[value] > best]


def hypervolume(points: Sequence[tuple[float, float]], reference: tuple[float, float]) -> float:
    """Area that (cost, value) points dominate within `reference` (highest cost, lowest value).

    Points outside the reference add nothing. Larger is better.
    """
    worst_cost, worst_value = reference
    inside = [(c, v) for c, v in points if c < worst_cost and v > worst_value]
    area, best = 0.0, worst_value
    for c, v in sorted(inside):
        if v > best:
            area += (worst_cost - c) * (v - best)
            best = v
    return area
