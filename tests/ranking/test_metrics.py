"""Metrics of rankings against hand cases, scipy, and the printed tables of the source."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as hs
from scipy import stats

from nas_core.ranking import metrics as m

PRINTED = [  # rank, p of tables 5.3 and 5.4
    (57079, 0.24),
    (19552, 0.62),
    (96939, 0.07),
    (3543, 0.92),
    (4610, 0.90),
]


def test_kendall_by_hand():
    """Four architectures, one of six pairs out of order; with one tie, τ-b has √(6·5)."""
    assert m.kendall([1, 2, 3, 4], [1, 2, 4, 3]) == pytest.approx(4 / 6)
    assert m.kendall([1, 2, 3, 4], [1, 2, 3, 3]) == pytest.approx(5 / math.sqrt(6 * 5))
    assert m.kendall([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)


def test_sparse_kendall_by_hand():
    """.9001 and .9004 are one rank; the pair that the scores swap no longer counts."""
    truth, scores = [0.9001, 0.9004, 0.95, 0.97], [2, 1, 3, 4]
    assert m.kendall(truth, scores) == pytest.approx(4 / 6)
    assert m.sparse_kendall(truth, scores) == pytest.approx(5 / math.sqrt(6 * 5))
    assert m.sparse_spearman(truth, scores) == pytest.approx(
        stats.spearmanr([1.5, 1.5, 3, 4], scores).statistic
    )


@settings(max_examples=50, deadline=None)
@given(hs.integers(0, 10_000))
def test_only_the_sparse_metric_ignores_jitter_within_a_bin(seed):
    rng = np.random.default_rng(seed)
    bins = rng.integers(800, 820, 40)
    scores = rng.normal(size=40)
    truths = [(bins + rng.uniform(-0.49, 0.49, 40)) / 1000 for _ in range(2)]
    one, two = (m.sparse_kendall(t, scores) for t in truths)
    assert one == pytest.approx(two, abs=1e-12)
    assert one == pytest.approx(stats.kendalltau(bins, scores).statistic, abs=1e-12)


def test_the_plain_metric_changes_with_jitter():
    assert m.kendall([0.9001, 0.9004], [1, 2]) == -m.kendall([0.9004, 0.9001], [1, 2])


@settings(max_examples=50, deadline=None)
@given(hs.integers(0, 10_000))
def test_against_scipy(seed):
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, 12, 30), rng.integers(0, 12, 30)
    assert m.kendall(a, b) == pytest.approx(stats.kendalltau(a, b).statistic)
    assert m.spearman(a, b) == pytest.approx(stats.spearmanr(a, b).statistic)
    x, y = rng.normal(size=8), rng.normal(1, 2, size=5)
    assert m.welch(x, y) == pytest.approx(stats.ttest_ind(x, y, equal_var=False).pvalue)


def test_the_released_variant_compares_sorted_bins_with_those_in_order_of_score():
    truth, scores = np.array([0.9011, 0.9018, 0.95, 0.97]), np.array([3, 1, 2, 4])
    # in order of score: .9018, .95, .9011, .97: bins 901, 950, 901, 970 against 901, 901, 950, 970
    want = stats.kendalltau([901, 901, 950, 970], [901, 950, 901, 970]).statistic
    assert m.sparse_kendall(truth, scores, variant="released") == pytest.approx(want)
    assert want != pytest.approx(m.sparse_kendall(truth, scores))
    with pytest.raises(ValueError, match="'rounded' or 'released'"):
        m.sparse_kendall(truth, scores, variant="other")


@pytest.mark.parametrize(("rank", "p"), PRINTED)
def test_tables_5_3_and_5_4_hold_the_power_and_not_equation_5_1(rank, p):
    assert round(m.p_above_random(rank, 423_624, 10), 2) == p
    assert round(m.p_above_random(rank, 423_624, 10, printed=True), 2) == round(1 - p, 2) != p


def test_p_above_random_by_simulation():
    rng = np.random.default_rng(0)
    draws = rng.integers(1, 101, (20_000, 5))  # ranks in a space of 100
    assert (draws > 20).all(1).mean() == pytest.approx(m.p_above_random(20, 100, 5), abs=0.01)
    with pytest.raises(ValueError, match="rank 0 of 100"):
        m.p_above_random(0, 100, 5)


@pytest.mark.parametrize(
    ("mean", "std", "p"), [(59.88, 1.92, 0.70), (60.61, 2.54, 0.58), (61.99, 1.95, 0.02)]
)
def test_welch_from_the_means_of_table_5_1(mean, std, p):
    """The table prints .73, .62 and .02, from figures that were not rounded."""
    found = m.welch_from_moments((mean, std, 10), (60.13, 0.65, 10))
    assert found == pytest.approx(p, abs=0.006)


def test_welch_without_spread():
    assert m.welch([1, 1], [1, 1]) == 1 and m.welch([1, 1], [2, 2]) == 0
    with pytest.raises(ValueError, match="at least two"):
        m.welch([1.0], [1.0, 2.0])


def test_final_accuracy_and_rank():
    truth, scores = [0.1, 0.9, 0.5, 0.7], [4, 1, 3, 2]
    assert m.final_accuracy(truth, scores, top=2) == pytest.approx(0.3)
    assert m.rank_of(0.7, truth) == 2 and m.rank_of(0.95, truth) == 1
    with pytest.raises(ValueError, match="top is 5"):
        m.final_accuracy(truth, scores, top=5)


def test_equal_size_keeps_nothing_of_the_ranking_by_size():
    rng = np.random.default_rng(0)
    sizes = rng.integers(0, 10, 300)
    truth = sizes + rng.normal(size=300)
    by_size = sizes + 0.01 * rng.normal(size=300)  # nothing but size
    knows = truth + 0.3 * rng.normal(size=300)
    table = m.beside_size(truth, {"by size": by_size, "knows": knows}, sizes)
    assert table.loc["by size", "SpR"] > 0.85 and abs(table.loc["by size", "at equal size"]) < 0.1
    assert table.loc["knows", "at equal size"] > 0.7
    assert list(table.index)[-1] == "size" and math.isnan(table.loc["size", "at equal size"])
    # one size: it is τ-b of all pairs
    whole = m.kendall_at_equal_size(truth, knows, np.zeros(300))
    assert whole == pytest.approx(stats.kendalltau(truth, knows).statistic)


def test_wrong_input_is_named():
    with pytest.raises(ValueError, match=r"truths \[2\] and scores \[3\]"):
        m.kendall([1, 2], [1, 2, 3])
    with pytest.raises(ValueError, match="NaN"):
        m.spearman([1, 2, math.nan], [1, 2, 3])
    with pytest.raises(ValueError, match="step is 0"):
        m.sparse_kendall([1, 2], [1, 2], step=0)
    assert math.isnan(m.spearman([1, 1, 1], [1, 2, 3]))
