"""The plots show what the frames say."""

from __future__ import annotations

import itertools

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from nas_core.viz import plot_history, plot_pareto, plot_radar, to_png
from nas_core.viz.plots import on_front


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


def test_front_against_the_definition():
    """Of points that are equal in both numbers the first is on the front."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        cost, value = rng.integers(0, 6, (2, 12)).astype(float)
        expected = [
            not any(
                (cost[j] <= cost[i] and value[j] >= value[i])
                and (cost[j] < cost[i] or value[j] > value[i] or j < i)
                for j in range(12)
            )
            for i in range(12)
        ]
        assert on_front(cost, value).tolist() == expected
    assert on_front([1, 2], [np.nan, 3]).tolist() == [False, True]


def test_names_in_legends_are_no_formulas():
    frame = pd.DataFrame({"cost": [1, 2], "accuracy": [0.5, 0.7], "method": ["$a", r"$\frac$"]})
    ax = plot_pareto(frame, group="method")
    to_png(ax.figure)
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["$a", r"$\frac$"]
    scores = pd.DataFrame(np.eye(3), index=["$a$", "b", "c"], columns=["x", "y", "z"])
    to_png(plot_radar(scores).figure)


def test_pareto_draws_groups_front_and_budgets():
    frame = pd.DataFrame(
        {"cost": [1, 2, 3, 4], "accuracy": [0.5, 0.7, 0.6, 0.9], "method": ["a", "b", "a", "b"]}
    )
    ax = plot_pareto(frame, group="method", budgets=[2.5])
    step, budget = ax.lines
    assert step.get_xdata().tolist() == [1, 2, 4] and budget.get_xdata() == [2.5, 2.5]
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["a", "b"]
    assert sum(len(c.get_offsets()) for c in ax.collections) == 4
    with pytest.raises(ValueError, match="no column 'macs'.*accuracy"):
        plot_pareto(frame, "macs")


def test_logarithmic_costs_are_written_out_and_apart():
    frame = pd.DataFrame({"cost": [25.0, 40.0, 253.7, 407.5], "accuracy": [0.9, 0.92, 0.94, 0.95]})
    ax = plot_pareto(frame, log=True)
    ax.figure.canvas.draw()
    shown = [t for t in ax.get_xticklabels(which="both") if t.get_text() and t.get_visible()]
    low, high = ax.get_xlim()
    shown = [t for t in shown if low <= t.get_position()[0] <= high]
    assert [t.get_text() for t in shown] == ["50", "100", "200"]
    ends = [(t.get_window_extent().x0, t.get_window_extent().x1) for t in shown]
    assert all(a[1] < b[0] for a, b in itertools.pairwise(ends))


def test_history_skips_epochs_that_were_not_measured():
    history = pd.DataFrame(
        {"epoch": range(6), "loss": np.arange(6.0), "val_accuracy": [0, np.nan] * 3}
    )
    loss, accuracy = plot_history(
        history, {"loss": "training loss", "val_accuracy": "accuracy"}, warmup=2
    )
    assert loss.get_title() == "training loss"
    assert accuracy.lines[0].get_xdata().tolist() == [0, 2, 4]
    seeds = pd.concat([history.assign(seed=s) for s in range(3)])
    costs = seeds.rename(columns={"loss": "cost_mean"})
    (ax,) = plot_history(costs, {"cost_mean": "cost"}, group="seed", budget=3.0)
    assert len(ax.lines) == 4  # three seeds and the budget
    assert ax.get_title() == "cost" and ax.get_legend().get_title().get_text() == "seed"
    (ax,) = plot_history(history.assign(cost_mean=1e6 * (1 + history.loss)), {"cost_mean": "cost"})
    ax.figure.canvas.draw()
    assert "2 M" in [t.get_text() for t in ax.get_yticklabels()]
    assert not any("." in t.get_text() for t in ax.get_xticklabels())


def test_radar_is_scaled_per_spoke():
    scores = pd.DataFrame(
        {"a": [0.0, 1.0], "b": [5.0, 10.0], "memory": [-4.0, -8.0]}, index=["x", "y"]
    )
    ax = plot_radar(scores)
    x, y = (line.get_ydata()[:3] for line in ax.lines)
    assert np.allclose(x, [0.1, 0.1, 1.0]) and np.allclose(y, [1.0, 1.0, 0.1])
    with pytest.raises(ValueError, match="at least 3"):
        plot_radar(scores[["a", "b"]])


def test_plots_are_deterministic():
    frame = pd.DataFrame({"cost": [1, 2, 3], "accuracy": [0.5, 0.7, 0.6]})
    assert to_png(plot_pareto(frame).figure) == to_png(plot_pareto(frame).figure)
