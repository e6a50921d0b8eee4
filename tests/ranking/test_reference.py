"""The typed tables of the source's chapter 5 agree with what can be computed from them."""

import pytest

from nas_core.data import reference
from nas_core.ranking import metrics


def test_all_six_are_there():
    rows = [len(reference.load(f"yu_table_5_{k}")) for k in range(1, 7)]
    assert rows == [4, 5, 4, 2, 4, 22]
    for k in range(1, 7):
        assert f"table 5.{k}" in reference.load(f"yu_table_5_{k}").attrs["source"]


@pytest.mark.parametrize("k", [3, 4])
def test_p_above_random_from_the_ranks(k):
    frame = reference.load(f"yu_table_5_{k}").dropna(subset="best_rank")
    for row in frame.itertuples():
        assert round(metrics.p_above_random(row.best_rank, 423_624, 10), 2) == row.p


def test_p_values_of_table_5_1_follow_on_ptb_and_not_on_cifar():
    frame = reference.load("yu_table_5_1").set_index("search")

    def p(name, what):
        a, b = ((frame.loc[n, what], frame.loc[n, f"{what}_std"], 10) for n in (name, "Random"))
        return metrics.welch_from_moments(a, b)

    for name in ("ENAS", "DARTS", "NAO"):
        assert p(name, "ppl") == pytest.approx(frame.loc[name, "ppl_p"], abs=0.045)
    assert p("ENAS", "acc") < 0.001 < 0.01 == frame.loc["ENAS", "acc_p"]


def test_the_tables_agree_with_each_other():
    first, second = (reference.load(f"yu_table_5_{k}").set_index("search") for k in (1, 2))
    assert first.loc["NAO", "acc"] == second.loc["NAO", "mean"]
    third, last = reference.load("yu_table_5_3").set_index("search"), reference.load("yu_table_5_6")
    seven = last[last.n == 7].set_index("search")
    for name in ("DARTS", "NAO", "ENAS"):
        assert third.loc[name, "acc"] == seven.loc[name, "mean"]
        assert third.loc[name, "best_acc"] == seven.loc[name, "best"]
