"""Scores, exact variances and the learning loop against closed forms and enumeration."""

import pytest
import torch

from nas_core.search import all_masks, learn_distribution
from nas_core.search.exact import (
    baseline_of,
    distribution,
    estimator_variance,
    exact_gradient,
    exact_penalty,
    sampled_gradients,
    scores,
    tabulate,
)
from nas_core.supernet import BernoulliSampler, ChoiceSampler
from tests.supernet.graphs import DIAMOND, graph_of

GRAPH = graph_of(DIAMOND)
LOGITS = torch.tensor([0.7, -0.4, 0.2, 1.1, -0.9])
PRICE = torch.tensor([0.3, -0.2, 0.5, -0.7, 0.1], dtype=torch.double)


def sampler(kind="coins"):
    made = BernoulliSampler(GRAPH) if kind == "coins" else ChoiceSampler.paths(GRAPH)
    made.logits.data.copy_(LOGITS)
    return made


def objective(mask):
    return (GRAPH.reachable(mask).double() @ PRICE + 1) ** 2


@pytest.mark.parametrize("kind", ["coins", "paths"])
def test_scores_weigh_up_to_the_exact_gradient_and_to_zero(kind):
    masks, p, s = scores(sampler(kind))
    assert torch.equal(masks, distribution(sampler(kind))[0])
    torch.testing.assert_close(p @ s, torch.zeros(5), atol=1e-6, rtol=0)
    exact = exact_gradient(sampler(kind), objective)
    torch.testing.assert_close((p.double() * objective(masks)) @ s.double(), exact.double())


def test_scores_of_coins_have_a_closed_form():
    masks, _, s = scores(sampler())
    _, drawn = GRAPH.connected(masks)
    torch.testing.assert_close(s, drawn * (masks.float() - torch.sigmoid(LOGITS)))


@pytest.mark.parametrize("b", [0.0, 1.3])
def test_exact_variance_equals_the_measured_one(b):
    masks, p, s = scores(sampler())
    exact = estimator_variance(p.double(), s.double(), objective(masks), b).item()
    sampled = sampled_gradients(
        sampler(), lambda m: objective(m) - b, samples=1, repeats=1500, baseline="none",
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert sampled.var(0).sum().item() == pytest.approx(exact, rel=0.12)


def test_baselines():
    values = torch.tensor([1.0, 2.0, 6.0])
    assert baseline_of(values, "none") == 0
    assert baseline_of(values, "mean").item() == 3
    assert baseline_of(values, "others").tolist() == [4.0, 3.5, 1.5]
    with pytest.raises(ValueError, match="'median'"):
        baseline_of(values, "median")
    with pytest.raises(ValueError, match="at least 2"):
        baseline_of(values[:1], "others")


@pytest.mark.parametrize(("baseline", "factor"), [("mean", 0.5), ("others", 1.0), ("none", 1.0)])
def test_the_batch_mean_shrinks_the_estimate_by_s_minus_1_over_s(baseline, factor):
    """All pairs of masks are listed: no sampling error."""
    masks, p, s = scores(sampler())
    values, expected = objective(masks), torch.zeros(5, dtype=torch.double)
    for i in range(len(p)):
        for j in range(len(p)):
            pair = values[[i, j]]
            advantage = pair - baseline_of(pair, baseline)
            expected += p[i] * p[j] * (advantage.unsqueeze(1) * s[[i, j]]).mean(0)
    exact = exact_gradient(sampler(), objective).double()
    torch.testing.assert_close(expected, factor * exact, atol=1e-6, rtol=1e-4)


def test_a_table_answers_like_the_objective():
    table, masks = tabulate(GRAPH, objective), all_masks(GRAPH)
    shuffled = masks[torch.randperm(32, generator=torch.Generator().manual_seed(0))]
    assert torch.equal(table(shuffled), objective(shuffled))


def test_learning_finds_the_minimum_and_records_the_way():
    pupil = BernoulliSampler(GRAPH, logit=1.0)
    run = learn_distribution(
        pupil, objective, steps=250, samples=32, lr=0.15,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert objective(run.mask[None]).item() == pytest.approx(objective(all_masks(GRAPH)).min())
    assert run.history.step.tolist() == list(range(250)) and run.probabilities.shape == (251, 5)
    assert run.history.entropy.iloc[-1] < 0.2 * run.history.entropy.iloc[0]
    assert torch.equal(run.probabilities[-1], pupil.probabilities())


def test_exact_descent_lowers_the_expectation_at_every_recorded_step():
    run = learn_distribution(sampler(), objective, steps=60, samples=None, lr=0.02)
    assert (run.history.objective.diff().dropna() < 0).all()


def test_learning_follows_the_generator():
    runs = [
        learn_distribution(
            sampler(), objective, steps=5, samples=8, generator=torch.Generator().manual_seed(seed)
        ).probabilities
        for seed in (1, 1, 2)
    ]
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])


def test_no_steps_are_refused():
    with pytest.raises(ValueError, match="steps is 0"):
        learn_distribution(sampler(), objective, steps=0, samples=8)


@pytest.mark.parametrize("seed", range(5))
def test_the_exact_penalty_is_where_the_minimum_starts_to_keep_the_budget(seed):
    generator = torch.Generator().manual_seed(seed)
    loss = torch.rand(12, generator=generator, dtype=torch.double)
    over = (torch.rand(12, generator=generator, dtype=torch.double) - 0.4).clamp(min=0)
    star = exact_penalty(loss, over)
    best_within = loss[over == 0].min()
    assert (loss + (star + 1e-6) * over).min() == best_within
    if star > 0:
        assert (loss + (star - 1e-6) * over).min() < best_within


def test_the_exact_penalty_at_its_limits():
    loss = torch.tensor([0.3, 0.1])
    assert exact_penalty(loss, torch.zeros(2)) == 0  # nothing is over the budget
    assert exact_penalty(loss, torch.tensor([0.2, 0.0])) == 0  # the best of all keeps it
    with pytest.raises(ValueError, match="raise the budget"):
        exact_penalty(loss, torch.ones(2))
