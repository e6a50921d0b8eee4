"""Chapter 02: what each of its bands must reject, computed with the mistake built in."""

from __future__ import annotations

from functools import cache

import torch
from torch.nn.functional import cosine_similarity

from nas_core.costs import AdditiveCost
from nas_core.search import all_masks, learn_distribution, overspend
from nas_core.search.exact import (
    distribution,
    estimator_variance,
    exact_gradient,
    expected_objective,
    sampled_gradients,
    scores,
    tabulate,
)
from nas_core.spaces import scalar_network
from nas_core.supernet import BernoulliSampler, ChoiceSampler
from tests.notebooks.book import claimed, control_tests

BANDS = claimed("02")

WEIGHTS = {("x", "a"): 0.8, ("x", "b"): 0.7, ("a", "b"): 0.6, ("a", "y"): 0.5, ("b", "y"): 0.5}
NET = scalar_network(WEIGHTS)
GRAPH, COST, BUDGET, FULL = NET.graph, AdditiveCost([3, 1, 2, 4, 1]), 7, 11.0
MASKS = all_masks(GRAPH)
OPTIMUM = torch.tensor([1, 1, 1, 0, 1]).bool()


def delta(mask):
    with torch.no_grad():
        return (NET(torch.ones(len(mask), 1), mask) - 1).square().squeeze(1).double()


@cache
def objective(lam=2.0):
    def penalised(mask):
        live = GRAPH.reachable(mask)
        return delta(live) + lam * overspend(COST(live), BUDGET, FULL)

    return tabulate(GRAPH, penalised)


def coins(logits=(1.0, 0.3, -0.5, 0.8, 0.2)):
    made = BernoulliSampler(GRAPH)
    made.logits.data.copy_(torch.tensor(logits))
    return made


@cache
def exact():
    masks, p, s = scores(coins())
    return masks, p.double(), s.double(), objective()(masks), exact_gradient(coins(), objective())


@cache
def without_connectivity():
    """Scores that also count coins that were never thrown."""
    masks, p, _, values, _ = exact()
    naive = masks.double() - torch.sigmoid(coins().logits.detach()).double()
    return p, naive, values


@cache
def learnt(lam=2.0, sign=1.0, sampler="coins"):
    pupil = BernoulliSampler(GRAPH) if sampler == "coins" else ChoiceSampler.paths(GRAPH)
    run = learn_distribution(
        pupil, lambda m: sign * objective(lam)(m), steps=300, samples=32,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    return run.mask, expected_objective(pupil, objective()).item(), run.history.entropy.iloc[-1]


def gap(value):
    return float(value) - objective()(MASKS).min().item()


def estimate(values=None, sign=1.0):
    draws = torch.Generator().manual_seed(0)
    function = values or (lambda m: sign * objective()(m))
    return sampled_gradients(coins(), function, samples=200, repeats=30, generator=draws).mean(0)


def shuffled(mask):
    """Values that belong to other architectures."""
    order = torch.randperm(32, generator=torch.Generator().manual_seed(1))
    place = mask.long() @ 2 ** torch.arange(5)
    return objective()(MASKS[order])[place]


def theta_gradients(ignore_sampling: bool, sign: float = 1.0):
    """∇θ of the loss when sampling does not reach the network; the exact one beside it."""
    masks, p, *_ = exact()
    parameters = list(NET.parameters())
    loss = lambda m: (NET(torch.ones(len(m), 1), m) - 1).square().squeeze(1)  # noqa: E731
    truth = torch.autograd.grad((p.float() * loss(masks)).sum(), parameters)
    used = torch.ones_like(masks) if ignore_sampling else masks
    got = torch.autograd.grad(sign * (p.float() * loss(used)).sum(), parameters)
    return torch.cat(got).flatten(), torch.cat(truth).flatten()


def pair_expectation(baseline):
    _, p, s, values, _ = exact()
    pairs = torch.cartesian_prod(torch.arange(len(p)), torch.arange(len(p)))
    advantage = values[pairs] - baseline(values[pairs])
    return (p[pairs].prod(1)[:, None] * (advantage[..., None] * s[pairs]).mean(1)).sum(0)


def along(vector):
    truth = exact()[4].double()
    return (vector @ truth / truth.square().sum()).item()


def outside_entropy(outside: bool):
    pupil = BernoulliSampler(GRAPH)
    optimiser = torch.optim.Adam(pupil.parameters(), lr=0.1)
    for _ in range(400):
        masks, p = distribution(pupil)
        p, price = p.double(), COST(GRAPH.reachable(masks))
        over = overspend(p @ price, BUDGET, FULL) if outside else p @ overspend(price, BUDGET, FULL)
        loss = p @ delta(GRAPH.reachable(masks)) + 2 * over
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return pupil.entropy().item()


def entropy_with_offset(baseline):
    run = learn_distribution(
        BernoulliSampler(GRAPH), lambda m: objective()(m) + 10, steps=400, samples=32,
        baseline=baseline, generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    return run.history.entropy.iloc[-1]


def unnormalised_mixtures():
    """Coins thrown everywhere, draws with unconnected edges thrown away: weights below one."""
    generator = torch.Generator().manual_seed(0)
    gamma = torch.sigmoid(5 * torch.randn(2000, 5, generator=generator, dtype=torch.double))
    weight = torch.where(MASKS, gamma[:, None], 1 - gamma[:, None]).prod(2)
    connected = (GRAPH.connected(MASKS)[0] == MASKS).all(1)
    return (weight[:, connected] @ objective()(MASKS[connected])).min()


def wrong_lambda():
    """λ* when violators are compared with the worst architecture within the budget."""
    live = torch.unique(GRAPH.reachable(MASKS), dim=0)
    d, o = delta(live), overspend(COST(live), BUDGET, FULL)
    return ((d[o == 0].max() - d[o > 0]) / o[o > 0]).max()


def noise_ratio_of_sums():
    """Noise at S = 4 over that at S = 256 when the loss sums over the batch."""
    spread = {}
    for size in (4, 256):
        draws = torch.Generator().manual_seed(0)
        g = size * sampled_gradients(
            coins(), objective(), samples=size, repeats=100, generator=draws
        )
        spread[size] = (g - g.mean(0)).square().sum(1).mean().sqrt()
    return spread[4] / spread[256]


def variance(b, score=None):
    _, p, s, values, _ = exact()
    return estimator_variance(p, s if score is None else score, values, b).item()


def mean_objective():
    _, p, _, values, _ = exact()
    return (p @ values).item()


def variance_saved_with_every_coin_counted():
    """Connected draws, but scores as if all coins had been thrown."""
    gamma = torch.sigmoid(coins().logits.detach()).double()
    all_coins = torch.where(MASKS, gamma, 1 - gamma).prod(1)
    b = mean_objective()
    thrown = estimator_variance(all_coins, MASKS.double() - gamma, objective()(MASKS), b).item()
    return 1 - variance(b, without_connectivity()[1]) / thrown


def one_sided_difference():
    """Half of a central difference: the error when the second end is forgotten."""
    worst, here = 0.0, expected_objective(coins(), objective()).item()
    for e in range(5):
        moved = coins()
        moved.logits.data[e] += 0.05
        slope = (expected_objective(moved, objective()).item() - here) / 0.1
        worst = max(worst, abs(slope - exact()[4][e].item()))
    return worst


def cosine(a, b):
    return cosine_similarity(a.double(), b.double(), 0)


def forgotten_drawn():
    p, naive, values = without_connectivity()
    return (p[:, None] * values[:, None] * naive).sum(0)


def sweep_without_penalty():
    return float(COST(learnt(lam=0.0)[0][None]) <= BUDGET)


UNTRAINED = expected_objective(BernoulliSampler(GRAPH), objective()).item()
CONTROLS = {
    "largest entry of the expected score": {
        "coins not thrown are counted": lambda: (
            (without_connectivity()[0] @ without_connectivity()[1]).abs().max()
        ),
    },
    "cosine of Monte-Carlo and exact gradient": {
        "wrong sign": lambda: cosine(estimate(sign=-1), exact()[4]),
        "values of other architectures": lambda: cosine(estimate(shuffled), exact()[4]),
    },
    "scores against autograd": {
        "coins not thrown are counted": lambda: (forgotten_drawn() - exact()[4]).abs().max(),
    },
    "differences against autograd": {
        "one end forgotten": one_sided_difference,
    },
    "cosine for the weights": {
        "sampling ignored": lambda: cosine(*theta_gradients(True)),
        "wrong sign": lambda: cosine(*theta_gradients(False, -1)),
    },
    "cosine for Γ in the same pass": {
        "wrong sign": lambda: cosine(estimate(sign=-1), exact()[4]),
    },
    "share of the variance left by b = E[D]": {
        "no baseline": lambda: variance(0.0) / variance(0.0),
        "added instead of subtracted": lambda: variance(-mean_objective()) / variance(0.0),
    },
    "noise at S=4 over noise at S=256 (√64 = 8)": {"sum for mean": noise_ratio_of_sums},
    "shrinkage by the batch mean at S=2, exactly (S−1)/S": {
        "no baseline": lambda: along(pair_expectation(lambda d: 0 * d)),
        "leave one out": lambda: along(pair_expectation(lambda d: d.flip(1))),
    },
    "direction after shrinking, cosine": {
        "wrong sign": lambda: cosine(
            -pair_expectation(lambda d: d.mean(1, keepdim=True)), exact()[4]
        ),
    },
    "shrinkage by leave-one-out at S=2": {
        "batch mean": lambda: along(pair_expectation(lambda d: d.mean(1, keepdim=True))),
    },
    "gradient of all coins against connected coins": {
        "scores of one rule, draws of the other": lambda: (
            (forgotten_drawn() - exact()[4]).abs().max()
        ),
    },
    "variance saved by connected coins": {
        "every coin counted": variance_saved_with_every_coin_counted
    },
    "λ* of the five numbers": {"worst architecture as reference": wrong_lambda},
    "best of all random mixtures minus the best architecture": {
        "weights that do not add up to one": lambda: gap(unnormalised_mixtures()),
    },
    "E[D] at the end minus min D": {
        "not trained": lambda: gap(UNTRAINED),
        "λ = 0": lambda: gap(learnt(lam=0.0)[1]),
    },
    "differs from the constrained optimum in … edges": {
        "λ = 0": lambda: (learnt(lam=0.0)[0] != OPTIMUM).sum(),
    },
    "share of runs that find the constrained optimum": {
        "λ = 0": lambda: float((learnt(lam=0.0)[0] == OPTIMUM).all()),
        "sign of D": lambda: float((learnt(sign=-1.0)[0] == OPTIMUM).all()),
    },
    "largest gap of E[D] to the minimum": {
        "not trained": lambda: gap(UNTRAINED),
        "λ = 0": lambda: gap(learnt(lam=0.0)[1]),
    },
    "entropy left at the end": {
        "not trained": lambda: BernoulliSampler(GRAPH).entropy().item(),
    },
    "D of the learned path minus D of the best path": {
        "sign of D": lambda: (
            gap(objective()(learnt(sign=-1.0, sampler="paths")[0][None]))
            - gap(objective()(torch.tensor([[1, 0, 0, 1, 0]]).bool()))
        ),
    },
    "what paths leave on the table": {
        "unions allowed": lambda: gap(objective()(learnt()[0][None])),
    },
    "cosine with the gradient of the expected hinge": {
        "wrong sign": lambda: cosine(estimate(sign=-1), exact()[4]),
    },
    "share of the sweep within the budget": {"λ = 0": sweep_without_penalty},
    "entropy with the hinge inside": {"hinge outside": lambda: outside_entropy(True)},
    "entropy with the hinge outside": {"hinge inside": lambda: outside_entropy(False)},
    "entropy left without a baseline": {"with one": lambda: entropy_with_offset("mean")},
    "entropy left with a baseline": {"without one": lambda: entropy_with_offset("none")},
}

test_every_band_has_a_control, test_the_band_rejects_the_mistake = control_tests(BANDS, CONTROLS)
