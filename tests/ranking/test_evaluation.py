"""The framework: what it reports of searches whose quality is known."""

import random

import numpy as np
import pytest
from scipy import stats

from nas_core.ranking import evaluation as ev
from nas_core.ranking import metrics
from nas_core.ranking.spaces import tiny

VALUE = {cell: n / 125 for n, cell in enumerate(tiny)}  # the truth


def perfect(seed):
    return max(VALUE, key=VALUE.__getitem__)


def at_random(seed):
    return tiny.sample(random.Random(seed))


def found(**searches):
    return ev.run_searches({"random": at_random, **searches}, VALUE.__getitem__, range(10))


def test_every_search_runs_with_every_seed_and_the_same_truth():
    rows = found(perfect=perfect)
    assert len(rows) == 20 and list(rows.columns) == ["search", "seed", "cell", "accuracy"]
    assert rows.groupby("search").seed.apply(list).tolist() == [list(range(10))] * 2
    assert all(rows.accuracy == rows.cell.map(VALUE))


def test_summary_against_scipy_and_by_hand():
    rows = found(perfect=perfect, again=lambda seed: at_random(seed + 100))
    table = ev.summarize(rows, list(VALUE.values()))
    a, b = (rows[rows.search == n].accuracy.to_numpy() for n in ("random", "again"))
    assert table.loc["again", "Welch p"] == pytest.approx(stats.ttest_ind(a, b, equal_var=False)[1])
    assert table.loc["random", "std"] == pytest.approx(a.std(ddof=1))
    assert np.isnan(table.loc["random", "Welch p"])
    assert table.loc["perfect", "best rank"] == 1 and table.loc["perfect", "std"] == 0
    assert table.loc["perfect", "p(>random)"] == pytest.approx((124 / 125) ** 10)
    rank = 1 + sum(v > b.max() for v in VALUE.values())
    assert table.loc["again", "p(>random)"] == pytest.approx(metrics.p_above_random(rank, 125, 10))


def test_a_second_random_search_is_not_told_apart_and_a_perfect_one_is():
    """Level of the test: about one in twenty of 200 pairs of random searches."""
    rng = random.Random(0)
    values = list(VALUE.values())
    drawn = [[rng.choice(values) for _ in range(20)] for _ in range(200)]
    wrong = np.mean([metrics.welch(d[:10], d[10:]) < 0.05 for d in drawn])
    assert wrong < 0.1
    table = ev.summarize(found(perfect=perfect), values)
    assert table.loc["perfect", "Welch p"] < 0.01


def test_the_reference_must_be_there():
    with pytest.raises(ValueError, match="no search is named 'chance'; there are random"):
        ev.summarize(found(), list(VALUE.values()), reference="chance")
