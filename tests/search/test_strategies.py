"""Strategies on a space with a closed-form truth."""

from __future__ import annotations

import inspect
import math
import random

import numpy as np
import optuna
import pandas as pd
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import Kernel, NormalizedKernelMixin, StationaryKernelMixin

from nas_core.search import strategies as s
from nas_core.search.one_shot import (
    differentiable_search,
    shared_accuracies,
    train_shared_weights,
)
from nas_core.search.tabular import CellTable
from nas_core.spaces.cells import OPERATIONS, CellSpace
from nas_core.training import TensorData

SPACE = CellSpace(ops=tuple(OPERATIONS))
CONV1, CONV3 = (SPACE.ops.index(f"nor_conv_{n}x{n}") for n in (1, 3))


@pytest.fixture(scope="module")
def table():
    """Separable: each edge adds what its operation is worth, the third as much as the rest."""
    cells = list(SPACE)
    array = np.array(cells)
    worth = np.array([0.0, 0.5, 1.0, 0.2])
    value = (worth[array] * [1, 1, 3, 1, 1, 1]).sum(1) / 8
    rng = np.random.default_rng(0)
    accuracy = {}
    for epochs in (1, 2, 4):
        noise = rng.normal(0, 0.02 / epochs, (len(cells), 3))
        accuracy["val", epochs] = np.clip(0.2 + 0.5 * value[:, None] + noise + 0.02 * epochs, 0, 1)
    accuracy["test", 4] = (0.2 + 0.5 * value)[:, None] + [0.0, 0.01, 0.02]
    macs = 100 + 900 * (array == CONV3).sum(1) + 100 * (array == CONV1).sum(1)
    about = pd.DataFrame({"macs": macs, "params": macs, "epoch_seconds": 0.04})
    return CellTable("separable", SPACE, cells, accuracy, about)


STRATEGIES = list(s.named())


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_spends_its_budget_and_no_more(table, name):
    run = s.run_search(s.named()[name], s.Problem(table, 12, 0), 0)
    assert 12 * 4 - 4 < run.epochs.iloc[-1] <= 12 * 4
    assert run.epochs.is_monotonic_increasing and (run.regret >= -1e-9).all()
    assert run.seconds.iloc[-1] == pytest.approx(0.04 * run.epochs.iloc[-1])
    again = s.run_search(s.named()[name], s.Problem(table, 12, 0), 0)
    assert again.val.tolist() == run.val.tolist()  # the seed decides


def _final(table, name, trainings, seeds=8, **kwargs):
    runs = [
        s.run_search(s.named()[name], s.Problem(table, trainings, n, **kwargs), n)
        for n in range(seeds)
    ]
    return np.mean([run.regret.iloc[-1] for run in runs])


def test_strategies_that_learn_beat_random_on_a_separable_space(table):
    blind = _final(table, "random", 80)
    assert _final(table, "evolution", 80) < 0.6 * blind
    assert _final(table, "Bayesian", 40) < blind
    assert _final(table, "controller", 240, seeds=3) < blind
    assert _final(table, "Q-learning", 240, seeds=3) < blind


def test_counting_order_leaves_the_first_edges_alone(table):
    problem = s.Problem(table, trainings=16, seed=0)
    run = s.run_search(s.grid_search, problem, 0)
    assert len({cell[:4] for cell in run.cell}) == 1 and len(set(run.cell)) == 16


def test_successive_halving_follows_its_schedule(table):
    """16 for one epoch, 8 go on to two, 4 to four: 16·1 + 8·1 + 4·2 epochs a bracket."""
    problem = s.Problem(table, trainings=8, seed=0)
    run = s.run_search(s.successive_halving, problem, 0)
    assert run["for"].tolist() == [1] * 16 + [2] * 8 + [4] * 4
    assert run.epochs.iloc[-1] == 32
    first, second = run[run["for"] == 1], run[run["for"] == 2]
    survivors = set(first.sort_values("val").cell.iloc[8:])
    assert set(second.cell) == survivors


def test_going_on_costs_the_missing_epochs_only(table):
    problem = s.Problem(table, trainings=3, seed=0)
    cell = table.cells[0]
    for epochs, spent in ((1, 1), (4, 4), (4, 5)):
        problem.train(cell, epochs)
        assert problem.spent == spent
    with pytest.raises(s.BudgetSpent):
        for _ in range(100):
            problem.train(cell)


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_budget_of_multiply_adds_is_never_exceeded(table, name):
    limit = 2_500
    problem = s.Problem(table, 40, 0, max_macs=limit)
    run = s.run_search(s.named()[name], problem, 0)
    assert max(table.cost(cell) for cell in run.cell) <= limit
    scores = {c: others(problem, c) for c in table.cells if table.cost(c) <= limit}
    last = run.iloc[-1]
    assert last.regret == pytest.approx(max(scores.values()) - scores[last.incumbent])
    assert last.test == pytest.approx(others(problem, last.incumbent, "test"))


def test_an_impossible_budget_is_refused_at_the_door(table):
    with pytest.raises(ValueError, match="cheapest has 100"):
        s.Problem(table, 2, 0, max_macs=1)


def test_mutants_are_affordable_and_one_step_away(table):
    problem, rng = s.Problem(table, 2, max_macs=2_500), random.Random(0)
    for _ in range(50):
        cell = problem.random_cell(rng)
        mutant = problem.mutate(cell, rng)
        assert problem.affordable(cell) and problem.affordable(mutant)
        assert sum(a != b for a, b in zip(cell, mutant, strict=True)) == 1


def others(problem, cell, split="val"):
    """Mean over the seeds of a cell that the search does not see."""
    seen = problem.seen[problem.table.row(cell)]
    return np.mean([problem.table.accuracy(cell, split=split, seed=n) for n in {0, 1, 2} - {seen}])


def test_a_search_sees_one_seed_of_a_cell_and_is_judged_by_the_others(table):
    problem = s.Problem(table, 9, 5)
    assert np.bincount(problem.seen).min() > len(table) / 4  # all seeds are drawn alike
    for cell in table.cells[77:80]:
        seen = int(problem.seen[table.row(cell)])
        assert problem.train(cell) == table.accuracy(cell, seed=seen)
        assert problem.train(cell, 1) == table.accuracy(cell, seed=seen, epochs=1)
        for split in ("val", "test"):
            assert problem.score(cell, split) == pytest.approx(others(problem, cell, split))
    assert problem.best == pytest.approx(max(problem.score(c) for c in table.cells))


@pytest.mark.parametrize("name", ["random", "evolution", "Bayesian", "TPE", "controller"])
def test_no_choice_depends_on_unseen_trainings(table, name):
    """Trainings that judge and test accuracies are spoiled: the search stays the same."""
    poisoned = {key: values.copy() for key, values in table._accuracy.items()}
    unseen = s.Problem(table, 15, 0).seen[:, None] != np.arange(3)
    rng = np.random.default_rng(1)
    for (split, _), values in poisoned.items():
        spoil = unseen if split == "val" else np.ones_like(unseen)
        values[spoil] = rng.uniform(size=spoil.sum())
    spoiled = CellTable("spoiled", SPACE, table.cells, poisoned, table.about)
    runs = [s.run_search(s.named()[name], s.Problem(t, 15, 0), 0) for t in (table, spoiled)]
    for column in ("cell", "val", "incumbent"):
        assert runs[0][column].tolist() == runs[1][column].tolist()
    assert runs[0].regret.tolist() != runs[1].regret.tolist()


def test_a_table_of_one_seed_is_judged_by_it():
    accuracy = {("val", 1): np.array([[0.5], [0.7]]), ("test", 1): np.array([[0.4], [0.6]])}
    about = pd.DataFrame({"macs": [1, 2]})
    table = CellTable("one", SPACE, [(0,) * 6, (1,) * 6], accuracy, about)
    assert s.Problem(table, 1).score((1,) * 6) == 0.7


def test_largest_first_goes_down_from_the_largest_that_fits(table):
    run = s.run_search(s.largest_first, s.Problem(table, 20, 0, max_macs=4_000), 0)
    macs = [table.cost(cell) for cell in run.cell]
    assert macs[0] == max(m for m in table.about.macs if m <= 4_000)
    assert macs == sorted(macs, reverse=True) and len(set(run.cell)) == 20


def test_tpe_is_the_same_in_every_version_of_optuna():
    """Its versions 4 and 5 differ in what an argument that is not given means."""
    signature = inspect.signature(optuna.samplers.TPESampler.__init__).parameters
    sampler = s.tpe(7)
    assert (sampler._multivariate, sampler._constant_liar, sampler._group) == (False,) * 3
    assert {"multivariate", "constant_liar", "group", "n_ei_candidates"} <= set(signature)


def test_regret_at_is_a_step_function():
    times = {"epochs": [4, 8, 12], "seconds": [1.0, 2.0, 4.0], "thinking": [0.5, 0.5, 1.0]}
    run = pd.DataFrame({**times, "regret": [0.3, 0.2, 0.1]})
    got = s.regret_at(run, np.array([3, 4, 7, 8, 99]))
    assert math.isnan(got[0]) and got[1:].tolist() == [0.3, 0.3, 0.2, 0.1]
    got = s.regret_at(run, np.array([1.4, 1.6, 2.6, 4.9, 5.0]), clock="seconds")
    assert math.isnan(got[0]) and got[1:].tolist() == [0.3, 0.2, 0.2, 0.1]


@pytest.mark.parametrize("mean, std, best", [(0.0, 1.0, 0.5), (2.0, 0.3, 1.0), (-1.0, 0.2, 1.0)])
def test_expected_improvement_is_the_integral(mean, std, best):
    integral, _ = quad(
        lambda f: (f - best) * norm.pdf(f, mean, std), best, mean + 12 * std + abs(best), limit=200
    )
    got = s.expected_improvement(np.array([mean]), np.array([std]), best)[0]
    assert got == pytest.approx(integral, abs=1e-8)


class _Hamming(StationaryKernelMixin, NormalizedKernelMixin, Kernel):
    """exp(−d/2) of the number of different entries, for scikit-learn."""

    def __init__(self):
        pass

    def __call__(self, X, Y=None, eval_gradient=False):
        Y = X if Y is None else Y
        return np.exp(-(np.asarray(X)[:, None] != np.asarray(Y)[None]).sum(2) / 2.0)


def test_gaussian_process_is_scikit_learns():
    rng = np.random.default_rng(0)
    seen, ask = rng.integers(1, 5, (15, 6)), rng.integers(1, 5, (40, 6))
    values = rng.normal(size=15)
    z = (values - values.mean()) / values.std()
    oracle = GaussianProcessRegressor(_Hamming(), alpha=0.1, optimizer=None).fit(seen, z)
    mean, std = oracle.predict(ask, return_std=True)
    got_mean, got_std = s.gaussian_process(seen, values, ask)
    np.testing.assert_allclose(got_mean, values.mean() + values.std() * mean, atol=1e-6)
    np.testing.assert_allclose(got_std, values.std() * std, atol=1e-6)


def test_token_policy_is_a_distribution_over_cells():
    torch.manual_seed(0)
    policy = s.TokenPolicy(SPACE)
    torch.nn.init.normal_(policy.head.weight)
    g = torch.Generator().manual_seed(0)
    tokens, log_prob = policy.sample(6000, g)
    assert tokens.shape == (6000, 6)
    # Importance identity: E[1/P] over samples is the number of cells, 4⁶.
    first_two = pd.Series(map(tuple, tokens[:, :2].tolist())).value_counts(normalize=True)
    assert first_two.sum() == pytest.approx(1) and len(first_two) <= 16
    whole = {tuple(t): p for t, p in zip(tokens.tolist(), log_prob.tolist(), strict=True)}
    most = max(whole, key=lambda t: whole[t])
    share = (tokens == torch.tensor(most)).all(1).double().mean().item()
    sigma = math.sqrt(math.exp(whole[most]) / 6000)
    assert abs(share - math.exp(whole[most])) < 5 * sigma
    assert sum(math.exp(p) for p in whole.values()) <= 1 + 1e-4


# -------------------------------------------------------------------- one shot


@pytest.fixture
def net():
    torch.manual_seed(0)
    return SPACE.network(channels=4)


def _bright_or_dark():
    g = torch.Generator().manual_seed(0)
    y = torch.randint(2, (256,), generator=g)
    x = torch.randn(256, 1, 8, 8, generator=g) * 0.3 + (2.0 * y - 1).view(-1, 1, 1, 1)
    return TensorData(x, y)


@pytest.mark.parametrize("kind", ["darts", "gumbel"])
def test_differentiable_searches_keep_distributions(net, kind):
    data = _bright_or_dark()
    before = [p.clone() for p in net.parameters()]
    found = differentiable_search(SPACE, net, data, epochs=2, kind=kind, seed=1)
    groups = SPACE.groups(net)
    p = found.probabilities[-1][groups]
    torch.testing.assert_close(p.sum(1), torch.ones(6))
    assert found.cell == tuple(p.argmax(1).tolist())
    assert (p - 0.25).abs().max() > 1e-3  # α has moved
    assert any(not torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
    with pytest.raises(ValueError, match="'darts' or 'gumbel'"):
        differentiable_search(SPACE, net, data, epochs=1, kind="enas")


def test_shared_weights_learn(net):
    data = _bright_or_dark()
    cells = [(CONV3,) * 6, (0, 1, 3, 1, 0, 2)]
    train_shared_weights(SPACE, net, data, epochs=12, seed=0)
    state = {k: v.clone() for k, v in net.state_dict().items() if "running" not in k}
    after = shared_accuracies(SPACE, net, cells, data, data)
    assert min(after) > 0.9
    kept = net.state_dict()
    assert all(torch.equal(v, kept[k]) for k, v in state.items() if "num_batches" not in k)


def test_a_stored_study_holds_the_search(table, tmp_path):
    """What `optuna-dashboard` shows: every training with its value, and none that still runs."""
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    strategy = s.optuna_search(s.tpe, None, storage)
    problem = s.Problem(table, 4)
    run = s.run_search(strategy, problem, 3)
    study = optuna.load_study(study_name="search 3", storage=storage)
    values = [trial.value for trial in study.trials if trial.state.name == "COMPLETE"]
    assert values == run.val.tolist() and len(values) == 4
    assert [trial.state.name for trial in study.trials[4:]] == ["FAIL"]
    with pytest.raises(optuna.exceptions.DuplicatedStudyError):
        s.run_search(strategy, s.Problem(table, 4), 3)
