"""Enumeration: what REINFORCE estimates, computed without sampling on small spaces."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from nas_core.search.reinforce import policy_loss
from nas_core.search.space_profile import all_masks
from nas_core.supernet import BernoulliSampler, ChoiceSampler, Graph

Objective = Callable[[Tensor], Tensor]
"""D(H): from connectivity-aware masks `[B, E]` to `[B]`, to be minimised."""


def distribution(sampler: BernoulliSampler | ChoiceSampler) -> tuple[Tensor, Tensor]:
    """Every architecture a sampler can draw, bool `[S, E]`, and its probability `[S]`.

    The probabilities are differentiable and sum to one. For spaces of at most 20 edges.
    """
    masks = all_masks(sampler.graph)
    log_prob = sampler.log_prob(masks)
    possible = log_prob.isfinite()
    return masks[possible], log_prob[possible].exp()


def tabulate(graph: Graph, objective: Objective) -> Objective:
    """The same deterministic objective, computed once for every mask, then looked up."""
    values = objective(all_masks(graph))
    place = 2 ** torch.arange(len(graph))  # the order of all_masks
    return lambda mask: values[mask.long() @ place]


def expected_objective(sampler: BernoulliSampler | ChoiceSampler, objective: Objective) -> Tensor:
    """E_{H ~ Γ} D(H) as a sum over all architectures (eq. 12 of the supplement), differentiable."""
    masks, probabilities = distribution(sampler)
    return (probabilities * objective(masks).to(probabilities)).sum()


def exact_gradient(sampler: BernoulliSampler | ChoiceSampler, objective: Objective) -> Tensor:
    """∇_Γ̂ E_{H ~ Γ} D(H), `[E]`, by enumeration and autograd."""
    (gradient,) = torch.autograd.grad(expected_objective(sampler, objective), sampler.logits)
    return gradient


def scores(sampler: BernoulliSampler | ChoiceSampler) -> tuple[Tensor, Tensor, Tensor]:
    """Every architecture `[S, E]`, its probability `[S]` and its score ∇_Γ̂ log P(H | Γ) `[S, E]`.

    The scores are what REINFORCE weighs with the advantage; their expectation is zero.
    """
    masks, probabilities = distribution(sampler)
    each = torch.eye(len(masks)).to(probabilities)
    (score,) = torch.autograd.grad(
        probabilities.log(), sampler.logits, grad_outputs=each, is_grads_batched=True
    )
    return masks, probabilities.detach(), score


def estimator_variance(
    probabilities: Tensor, score: Tensor, values: Tensor, baseline: float | Tensor
) -> Tensor:
    """Total variance (summed over the logits) of the one-sample estimate (D − b) ∇ log P.

    Args:
        probabilities, score: as given by `scores`, `[S]` and `[S, E]`.
        values: D of every architecture, `[S]`.
        baseline: the constant b; the mean of S independent samples divides the variance by S.
    """
    estimate = (values - baseline).unsqueeze(1) * score
    mean = probabilities @ estimate
    return probabilities @ (estimate - mean).square().sum(1)


def baseline_of(values: Tensor, baseline: str) -> Tensor | float:
    """D̃ for a batch of values `[B]`: "none", "mean" (eq. 3.25) or "others" (leave one out).

    "mean" contains the sample it is used for, which shrinks the estimate by (B − 1) / B; "others"
    does not, and is unbiased.
    """
    if baseline == "none":
        return 0.0
    if baseline == "mean":
        return values.mean()
    if baseline == "others":
        if len(values) < 2:
            raise ValueError("baseline 'others' needs at least 2 samples")
        return (values.sum() - values) / (len(values) - 1)
    raise ValueError(f"baseline {baseline!r} is unknown; use 'none', 'mean' or 'others'")


def sampled_gradients(
    sampler: BernoulliSampler | ChoiceSampler,
    objective: Objective,
    *,
    samples: int,
    repeats: int,
    baseline: str = "mean",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Independent REINFORCE estimates of the same gradient, `[repeats, E]`.

    Args:
        samples: architectures drawn for one estimate.
        repeats: number of estimates; their spread is the variance of the method.
        baseline: name of D̃, see `baseline_of`.
    """
    estimates = []
    for _ in range(repeats):
        sample = sampler.sample(samples, generator)
        values = objective(sample.mask)
        loss = policy_loss(sample.log_prob, values, baseline_of(values, baseline))
        estimates.append(torch.autograd.grad(loss, sampler.logits)[0])
    return torch.stack(estimates)


def exact_penalty(loss: Tensor, over: Tensor) -> float:
    """λ*, from which on the minimum of eq. 3.9 keeps the budget: the hinge is an exact penalty.

    Args:
        loss, over: Δ and overspending of every architecture, `[N]`; 0 is within the budget.
    """
    violates = over > 0
    if violates.all():
        raise ValueError("every architecture is over the budget: no λ helps, raise the budget")
    if not violates.any():
        return 0.0
    crossings = (loss[~violates].min() - loss[violates]) / over[violates]
    return max(0.0, crossings.max().item())
