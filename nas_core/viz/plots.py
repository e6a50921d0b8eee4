"""The plots of the book: trade-off fronts, training histories, radar charts.

Every function returns the axes. Groups differ by colour *and* by marker or dash.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib import ticker
from matplotlib.axes import Axes

from nas_core.viz.geometry import PALETTE

_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_HISTORY = {
    "loss": "training loss", "cost_mean": "mean cost of the samples",
    "entropy": "entropy of Γ, nats", "val_accuracy": "validation accuracy",
}  # fmt: skip
_BUDGET: dict[str, Any] = {"color": PALETTE[3], "lw": 1, "ls": (0, (4, 3))}
_DASHES = ((), (5, 2), (1.5, 1.5), (6, 2, 1.5, 2), (3, 1), (8, 2), (1, 3))


def style(ax: Axes, *, xlabel: str = "", ylabel: str = "", title: str = "") -> Axes:
    """The common look: light grid, no box, small type."""
    ax.grid(True, color="#E4E4E4", linewidth=0.7)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=8)
    ax.set_xlabel(xlabel or ax.get_xlabel(), fontsize=9)
    ax.set_ylabel(ylabel or ax.get_ylabel(), fontsize=9)
    ax.set_title(title or ax.get_title(), fontsize=10)
    return ax


def _legend(ax: Axes, **options: Any) -> None:
    """A legend without box whose texts are names: "$" in them starts no formula."""
    for text in ax.legend(frameon=False, **options).get_texts():
        text.set_parse_math(False)


def _column(frame: pd.DataFrame, name: str) -> np.ndarray:
    if name not in frame:
        raise ValueError(f"no column {name!r}; there are {list(frame.columns)}")
    return frame[name].to_numpy(dtype=float)


def on_front(cost: Any, value: Any) -> np.ndarray:
    """bool `[N]`: the points that `search.pareto_front` selects."""
    from nas_core.search.pareto import pareto_front

    points = pd.DataFrame({"cost": np.asarray(cost, float), "value": np.asarray(value, float)})
    return points.index.isin(pareto_front(points, "cost", "value").index)


def plot_pareto(
    frame: pd.DataFrame, cost: str = "cost", value: str = "accuracy", *, ax: Axes | None = None,
    group: str | None = None, error: str | None = None, budgets: Sequence[float] = (),
    log: bool = False, xlabel: str = "", ylabel: str = "", title: str = "",
) -> Axes:  # fmt: skip
    """Cost against quality, one point per row; a step line joins the points of the front.

    Args:
        cost, value: columns (lower cost is better, higher value is better).
        group: column whose values get a colour and a marker each.
        error: column with the half height of error bars; `budgets` are vertical lines.
    """
    ax = ax or plt.subplots(figsize=(5.4, 3.6), layout="constrained")[1]
    x, y = _column(frame, cost), _column(frame, value)
    bars = None if error is None else _column(frame, error)
    labels = frame[group].astype(str).to_numpy() if group else np.full(len(frame), "")
    front = on_front(x, y)
    order = np.flatnonzero(front)[np.argsort(x[front], kind="stable")]
    ax.step(x[order], y[order], where="post", color="#999999", lw=1.2, zorder=2)
    for i, name in enumerate(dict.fromkeys(labels)):
        rows = labels == name
        colour, marker = PALETTE[i % len(PALETTE)], _MARKERS[i % len(_MARKERS)]
        if bars is not None:
            ax.errorbar(x[rows], y[rows], bars[rows], fmt="none", ecolor=colour, elinewidth=1)
        faces = [colour if f else "white" for f in front[rows]]
        look: dict[str, Any] = {"c": faces, "marker": marker, "edgecolors": colour}
        ax.scatter(x[rows], y[rows], s=34, zorder=3, label=name or None, **look)
    for budget in budgets:
        ax.axvline(budget, zorder=1, **_BUDGET)
    if log:
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))
        ax.xaxis.set_minor_formatter(ticker.NullFormatter())
    if group:
        _legend(ax, fontsize=8)
    return style(ax, xlabel=xlabel or cost, ylabel=ylabel or value, title=title)


def plot_history(
    history: pd.DataFrame, columns: Mapping[str, str] = _HISTORY, *, x: str = "epoch",
    budget: float | None = None, warmup: float | None = None, group: str | None = None,
    title: str = "",
) -> np.ndarray:  # fmt: skip
    """Small multiples of a training history, one panel per column; returns the array of axes.

    Args:
        history: tidy frame, one row per epoch (and per run, when `group` names a column).
        columns: columns to show, each with its title.
        budget: horizontal line in the panel of `cost_mean`.
        warmup: number of epochs that a grey band marks.
    """
    size, n = (2.7 * len(columns) + 0.4, 2.5), len(columns)
    figure, axes = plt.subplots(1, n, figsize=size, layout="constrained", squeeze=False)
    runs = [("", history)] if group is None else list(history.groupby(group, sort=False))
    for ax, (column, label) in zip(axes[0], columns.items(), strict=True):
        for i, (name, rows) in enumerate(runs):
            colour, dash = PALETTE[i % len(PALETTE)], _DASHES[i % len(_DASHES)]
            xs, ys = _column(rows, x), _column(rows, column)
            seen = np.isfinite(ys)  # a column may be measured every few epochs only
            ax.plot(xs[seen], ys[seen], color=colour, dashes=dash, lw=1.6, label=str(name) or None)
        if budget is not None and column == "cost_mean":
            ax.axhline(budget, **_BUDGET)
            ax.annotate("budget", (1, budget), (0, 2), xycoords=("axes fraction", "data"),
                        textcoords="offset points", fontsize=7, ha="right", va="bottom",
                        color=PALETTE[3])  # fmt: skip
        if warmup:
            ax.axvspan(_column(history, x).min(), warmup, color="#EFEFEF", zorder=0, lw=0)
        style(ax, xlabel=x, title=label)
        ax.xaxis.set_major_locator(ticker.MaxNLocator("auto", integer=True, steps=[1, 2, 5, 10]))
        if abs(ax.get_ylim()[1]) >= 1e4:
            ax.yaxis.set_major_formatter(ticker.EngFormatter(sep=" "))
    if group is not None:
        _legend(axes[0, -1], fontsize=7, title=group, title_fontsize=7)
    if title:
        figure.suptitle(title, fontsize=11)
    return axes[0]


def plot_radar(scores: pd.DataFrame, *, ax: Axes | None = None, title: str = "") -> Axes:
    """Radar chart: one polygon per row, one spoke per column (thesis fig. 5.1).

    Scores are finite; more is better. A spoke goes from a column's lowest value to its highest.
    """
    if scores.shape[1] < 3:
        raise ValueError(f"a radar chart needs at least 3 columns, got {list(scores.columns)}")
    ax = ax or plt.subplots(figsize=(5.0, 4.2), subplot_kw={"projection": "polar"})[1]
    angles = np.linspace(0, 2 * np.pi, scores.shape[1], endpoint=False)
    values = scores.to_numpy(dtype=float)
    centre, rim = values.min(0), values.max(0)
    width = np.where(rim == centre, 1.0, rim - centre)
    radius = 0.1 + 0.9 * np.clip((values - centre) / width, 0, 1)  # the worst stays visible
    for i, (name, r) in enumerate(zip(scores.index, radius, strict=True)):
        colour = PALETTE[i % len(PALETTE)]
        ring = np.append(np.arange(len(angles)), 0)
        ax.plot(angles[ring], r[ring], color=colour, dashes=_DASHES[i % len(_DASHES)], lw=1.7,
                marker=_MARKERS[i % len(_MARKERS)], ms=4, label=str(name))  # fmt: skip
        ax.fill(angles[ring], r[ring], color=colour, alpha=0.06)
    spans = zip(scores.columns, centre, rim, strict=True)
    spokes = [f"{name}\n{low:.3g} – {high:.3g}" for name, low, high in spans]
    ax.set(theta_offset=np.pi / 2, theta_direction=-1, ylim=(0, 1.03), yticks=[0.1, 0.55, 1.0])
    ax.set_xticks(angles, spokes, fontsize=8)
    ax.tick_params(axis="x", pad=13)
    ax.set_yticklabels([])
    ax.grid(color="#DDDDDD", linewidth=0.7)
    ax.spines["polar"].set_color("#BBBBBB")
    _legend(ax, loc="upper left", bbox_to_anchor=(1.3, 1.1), fontsize=8)
    ax.set_title(title, fontsize=10, pad=16)
    return ax
