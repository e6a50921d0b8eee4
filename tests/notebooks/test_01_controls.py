"""Chapter 01: for every band a control that must fall outside it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from nas_core.search import CellTable, hypervolume, one_shot, pareto_front
from nas_core.search import strategies as st
from nas_core.search.cell_batch import DIGIT_CELLS, table_data
from nas_core.training import evaluate
from nas_core.workbook import chapter
from tests.notebooks.book import assert_all_named, claimed, separates

CHAPTER = "01_search_strategies"
CLAIMED = claimed(CHAPTER)


@pytest.fixture(scope="module")
def cfg():
    return chapter(CHAPTER, device="cpu")


@pytest.fixture(scope="module")
def table():
    return CellTable.load()


def outside(name: str, control: float) -> bool:
    return separates(CLAIMED[name], float(control))


def final_regret(strategy, table, cfg, start=0, times=1, **problem):
    """Mean regret in %, over as many seeds as the chapter takes, or `times` as many."""
    runs = [
        st.run_search(strategy, st.Problem(table, cfg.trainings, seed, **problem), seed)
        for seed in range(start, start + times * cfg.seeds)
    ]
    return 100 * np.mean([run.regret.iloc[-1] for run in runs])


@pytest.fixture(scope="module")
def blind(table, cfg):
    """Random search, and the same with other seeds."""
    return [final_regret(st.random_search, table, cfg, start, times=4) for start in (0, 500)]


def test_other_points_have_other_distances():
    """Each arrangement of points judged by the formula of the other one."""
    n, grid = 20, 1 / 20
    random = (n + 3) / (2 * (n + 1) * (n + 2))
    assert outside("grid: measured / known distance", random / grid)
    assert outside("random: measured / known distance", grid / random)


def test_the_row_of_another_seed_is_further_off(table, cfg):
    rows = np.random.default_rng(0).choice(len(table), 20, replace=False)
    seeds = [
        np.stack([table.accuracies(epochs=e, seed=seed)[rows] for e in (1, 2, 4)])
        for seed in (0, 1)
    ]
    off = np.abs(seeds[0] - seeds[1])
    assert outside("trained alone: mean difference to the table", off.mean())


def test_a_favourite_of_the_seeds_that_judge_has_no_regret(table):
    """The fault that the band must not let through: to be judged by what was chosen by."""
    regret = []
    for s in range(table.seeds):
        truth = table.accuracies(seed=s)
        regret.append(100 * (truth.max() - truth[np.argmax(table.accuracies(seed=s))]))
    assert outside("regret of a seed's favourite among all cells, in %", np.mean(regret))


def test_random_search_does_not_differ_from_itself(blind):
    first, again = blind
    assert outside("grid search: regret in %, minus that of random search", again - first)
    assert outside("four that learn: regret in %, minus that of random search", again - first)
    assert outside("train the largest: regret in %, minus that of random search", again - first)


def test_evolution_without_selection_does_not_differ_from_itself(table, cfg):
    def drift(problem, seed):
        st.evolution(problem, seed, sample=1)

    first, again = (final_regret(drift, table, cfg, start, times=4) for start in (0, 500))
    name = "no selection: regret in %, minus that with a tournament of sixteen"
    assert outside(name, first - again)


def test_untrained_shared_weights_do_not_rank(table, cfg):
    train, held_out = table_data()
    torch.manual_seed(0)
    rows = np.random.default_rng(0).choice(len(table), cfg.shared_cells, replace=False)
    cells = [table.cells[r] for r in rows]
    proxy = one_shot.shared_accuracies(
        DIGIT_CELLS, DIGIT_CELLS.network(), cells, train.subset(range(256)), held_out["val"]
    )
    rank = spearmanr(proxy, table.accuracies()[rows]).statistic
    assert outside("rank correlation of shared weights with the truth", rank)


def test_any_cell_is_as_good_as_the_median_one(table):
    """A relaxation that learned nothing names a cell at random."""
    truth = table.accuracies()
    of_random = (truth.max() - np.median(truth)) / (truth.max() - np.median(truth))
    assert outside("DARTS: regret / that of the median cell", of_random)


def test_random_search_under_a_budget_does_not_differ_from_itself(table, cfg):
    limit = table.about.macs.max() / 2
    first, again = (
        final_regret(st.random_search, table, cfg, start, max_macs=limit) for start in (0, 500)
    )
    name = "under a budget: regret of random search in %, minus that of the largest that fits"
    assert outside(name, again - first)


def test_five_cells_make_no_front(table, cfg):
    reference = (float(table.about.macs.max()), 0.1)
    every = table.about.assign(accuracy=table.accuracies())

    def volume(frame):
        front = pareto_front(frame, "macs", "accuracy")
        return hypervolume(list(zip(front.macs, front.accuracy, strict=True)), reference)

    few = np.mean([volume(every.sample(5, random_state=s)) for s in range(cfg.front_seeds)])
    name = "hypervolume of NSGA-II as a share of the true front's"
    assert outside(name, few / volume(every))


def test_an_untrained_network_is_at_chance(table):
    _, held_out = table_data()
    torch.manual_seed(0)
    net = DIGIT_CELLS.network(channels=16)
    untrained = DIGIT_CELLS.architecture(net, table.best(split="val")).extract(net).eval()
    accuracy = evaluate(untrained, held_out["test"])["accuracy"]
    assert outside("test accuracy of the network to be compressed", accuracy)


def test_labels_alone_change_nothing():
    """The student trained twice from labels: the ratio of its errors is 1."""
    assert outside("error with distillation / error without", 1.0)


def test_every_band_has_a_control():
    assert_all_named(CLAIMED, Path(__file__).read_text())
