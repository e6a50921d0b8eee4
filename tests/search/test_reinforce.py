"""The estimator against enumeration and finite differences; Proposition 1 by enumeration."""

import pytest
import torch
from torch.nn.functional import cosine_similarity

from nas_core.search import MovingAverage, overspend, policy_loss, reward_to_go
from nas_core.search.exact import (
    baseline_of,
    distribution,
    exact_gradient,
    expected_objective,
    sampled_gradients,
)
from nas_core.supernet import BernoulliSampler, ChoiceSampler
from tests.supernet.graphs import DIAMOND, graph_of

QUALITY = torch.tensor([0.1, 0.5, 0.9, 0.3, 0.2])
COST = torch.tensor([3.0, 1.0, 2.0, 4.0, 1.0])


def problem(seed=0):
    graph = graph_of(DIAMOND)
    sampler = BernoulliSampler(graph)
    with torch.no_grad():
        sampler.logits.copy_(torch.randn(5, generator=torch.Generator().manual_seed(seed)))

    def objective(mask):
        live = graph.reachable(mask).double()
        return (live @ QUALITY.double() - 0.8) ** 2 + 0.3 * overspend(live @ COST.double(), 5, 11)

    return sampler, objective


def test_distribution_sums_to_one():
    masks, p = distribution(problem()[0])
    assert p.sum().item() == pytest.approx(1, abs=1e-6) and len(masks) == len(p)


def test_exact_gradient_equals_finite_differences():
    sampler, objective = problem()
    gradient = exact_gradient(sampler, objective)
    eps = 1e-2
    for e in range(5):
        with torch.no_grad():
            sampler.logits[e] += eps
            above = expected_objective(sampler, objective).item()
            sampler.logits[e] -= 2 * eps
            below = expected_objective(sampler, objective).item()
            sampler.logits[e] += eps
        assert gradient[e].item() == pytest.approx((above - below) / (2 * eps), abs=2e-5)


@pytest.mark.parametrize("baseline", ["none", "mean"])
def test_estimates_point_along_the_exact_gradient(baseline):
    sampler, objective = problem()
    estimates = sampled_gradients(
        sampler, objective, samples=400, repeats=100, baseline=baseline,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    exact = exact_gradient(sampler, objective)
    assert cosine_similarity(estimates.mean(0), exact, dim=0) > 0.99
    # The batch mean contains the sample itself, which shrinks the estimate by (S − 1) / S.
    torch.testing.assert_close(estimates.mean(0), exact, atol=4e-3, rtol=0.1)


def test_the_baseline_lowers_the_variance():
    sampler, objective = problem()
    shifted = lambda mask: objective(mask) + 5  # noqa: E731
    spread = {
        baseline: sampled_gradients(
            sampler, shifted, samples=32, repeats=200, baseline=baseline,
            generator=torch.Generator().manual_seed(0),
        ).var(0).sum()
        for baseline in ("none", "mean")
    }  # fmt: skip
    assert spread["mean"] < 0.05 * spread["none"]


def test_the_wrong_sign_would_be_noticed():
    sampler, objective = problem()
    flipped = sampled_gradients(
        sampler, lambda m: -objective(m), samples=400, repeats=50,
        generator=torch.Generator().manual_seed(0),
    ).mean(0)  # fmt: skip
    assert cosine_similarity(flipped, exact_gradient(sampler, objective), dim=0) < -0.9


@pytest.mark.parametrize("seed", range(5))
def test_proposition_1_the_optimum_is_deterministic_and_optimal(seed):
    sampler, objective = problem(seed)
    masks, _ = distribution(sampler)
    best = objective(masks).min().item()
    with torch.no_grad():  # from the middle, so that no start favours an architecture
        sampler.logits.mul_(0.1)
    optimizer = torch.optim.Adam(sampler.parameters(), lr=0.2)
    for _ in range(1500):
        loss = expected_objective(sampler, objective)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    final = expected_objective(sampler, objective).item()
    masks, p = distribution(sampler)
    assert final >= best - 1e-9  # eq. 9 of the supplement: no mixture beats the best architecture
    live = sampler.mode()
    assert objective(live[None]).item() == pytest.approx(final, abs=1e-3)
    delivered = (sampler.graph.reachable(masks) == live).all(1)
    assert p[delivered].sum().item() > 0.99  # nothing else is drawn any more


def test_stochastic_costs_need_no_other_algorithm():
    sampler, objective = problem()
    generator = torch.Generator().manual_seed(0)

    def noisy(mask):
        return objective(mask) + 0.5 * torch.randn(len(mask), generator=generator).double()

    estimate = sampled_gradients(sampler, noisy, samples=2000, repeats=100, generator=generator)
    assert cosine_similarity(estimate.mean(0), exact_gradient(sampler, objective), dim=0) > 0.99


def test_path_sampler_gradient():
    graph = graph_of(DIAMOND)
    sampler = ChoiceSampler.paths(graph)
    objective = lambda m: m.double() @ COST.double()  # noqa: E731
    estimates = sampled_gradients(
        sampler, objective, samples=500, repeats=100, generator=torch.Generator().manual_seed(0)
    )
    exact = exact_gradient(sampler, objective)
    assert cosine_similarity(estimates.mean(0), exact, dim=0) > 0.99


def test_policy_loss_is_a_mean_over_the_batch():
    log_prob = torch.tensor([-1.0, -2.0], requires_grad=True)
    policy_loss(log_prob, torch.tensor([3.0, 5.0]), 4.0).backward()
    assert log_prob.grad.tolist() == [-0.5, 0.5]
    with pytest.raises(ValueError, match="must agree"):
        policy_loss(log_prob, torch.zeros(3), 0.0)


@pytest.mark.parametrize("shape", [(2, 1), (1, 2), (3,), (1,)])
def test_a_baseline_that_would_broadcast_is_refused(shape):
    """[B] − [B, 1] is a matrix, whose mean is another gradient."""
    log_prob = torch.tensor([-1.0, -2.0], requires_grad=True)
    with pytest.raises(ValueError, match="baseline"):
        policy_loss(log_prob, torch.tensor([3.0, 5.0]), torch.ones(shape))
    policy_loss(log_prob, torch.tensor([3.0, 5.0]), torch.tensor(4.0))
    policy_loss(log_prob, torch.tensor([3.0, 5.0]), torch.ones(2))


def test_leaving_one_out_only_changes_the_rate():
    """D_b − mean = (1 − 1/B) (D_b − mean of the others): the same direction, exactly."""
    values, log_prob = torch.rand(8), torch.rand(8, requires_grad=True)
    (mean,) = torch.autograd.grad(policy_loss(log_prob, values, values.mean()), log_prob)
    others = baseline_of(values, "others")
    (left,) = torch.autograd.grad(policy_loss(log_prob, values, others), log_prob)
    torch.testing.assert_close(mean, left * 7 / 8)


def test_moving_average_keeps_nine_tenths_of_the_old_value():
    average = MovingAverage(0.9)
    assert average.update(torch.tensor([2.0])) == 2.0
    assert average.update(torch.tensor([12.0])) == pytest.approx(0.9 * 2 + 0.1 * 12)
    twin = MovingAverage(0.9)
    twin.load_state_dict(average.state_dict())
    assert twin.value == average.value
    with pytest.raises(ValueError, match="keep"):
        MovingAverage(1.0)


def test_overspend_is_a_hinge_in_units_of_the_full_cost():
    assert overspend(torch.tensor([1.0, 5.0, 8.0]), 5.0, 10.0).tolist() == pytest.approx(
        [0, 0, 0.3]
    )


@pytest.mark.parametrize("scale", [0.0, -10.0, float("nan"), float("inf")])
def test_overspend_refuses_a_unit_that_would_turn_the_sign(scale):
    with pytest.raises(ValueError, match="scale"):
        overspend(torch.tensor([1.0, 5.0]), 3.0, scale)


def test_reward_to_go():
    rewards = torch.tensor([[1.0, 2.0, 4.0]])
    assert reward_to_go(rewards, 0.0).tolist() == [[1, 2, 4]]
    assert reward_to_go(rewards, 1.0).tolist() == [[7, 6, 4]]
    assert reward_to_go(rewards, 0.5).tolist() == [[3, 4, 4]]
