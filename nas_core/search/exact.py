"""REINFORCE on a fixed objective, and by enumeration what it estimates, on small spaces."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor

from nas_core.search.reinforce import policy_loss
from nas_core.search.space_profile import all_masks
from nas_core.supernet import BernoulliSampler, ChoiceSampler, Graph
from nas_core.training import descend, make_optimizer, require

Sampler = BernoulliSampler | ChoiceSampler
Objective = Callable[[Tensor], Tensor]
"""D(H): from connectivity-aware masks `[B, E]` to `[B]`, to be minimised."""


def distribution(sampler: Sampler) -> tuple[Tensor, Tensor]:
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


def expected_objective(sampler: Sampler, objective: Objective) -> Tensor:
    """E_{H ~ Γ} D(H) as a sum over all architectures (eq. 12 of the supplement), differentiable."""
    masks, probabilities = distribution(sampler)
    return (probabilities * objective(masks).to(probabilities)).sum()


def exact_gradient(sampler: Sampler, objective: Objective) -> Tensor:
    """∇_Γ̂ E_{H ~ Γ} D(H), `[E]`, by enumeration and autograd."""
    return torch.autograd.grad(expected_objective(sampler, objective), sampler.logits)[0]


def scores(sampler: Sampler) -> tuple[Tensor, Tensor, Tensor]:
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
    return probabilities @ (estimate - probabilities @ estimate).square().sum(1)


def baseline_of(values: Tensor, baseline: str) -> Tensor | float:
    """D̃ for a batch of values `[B]`: "none", "mean" (eq. 3.25) or "others" (leave one out).

    "mean" contains the sample it is used for, which shrinks the estimate by (B − 1) / B; "others"
    does not, and is unbiased.
    """
    known = baseline in ("none", "mean", "others")
    require(known, "baseline", baseline, "'none', 'mean' or 'others'")
    if baseline == "others":
        require(len(values) >= 2, "number of samples", len(values), "at least 2 for 'others'")
        return (values.sum() - values) / (len(values) - 1)
    return values.mean() if baseline == "mean" else 0.0


def sampled_gradients(
    sampler: Sampler, objective: Objective, *, samples: int, repeats: int,
    baseline: str = "mean", generator: torch.Generator | None = None,
) -> Tensor:  # fmt: skip
    """Independent REINFORCE estimates of the same gradient, `[repeats, E]`.

    Args:
        samples: architectures drawn for one estimate.
        baseline: name of D̃, see `baseline_of`.
    """
    how = (sampler, objective, samples, baseline, generator)
    losses = (_sampled_loss(*how)[0] for _ in range(repeats))
    return torch.stack([torch.autograd.grad(loss, sampler.logits)[0] for loss in losses])


def _sampled_loss(
    sampler: Sampler, objective: Objective, samples: int, baseline: str,
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The loss of one REINFORCE step, and the mean objective of its samples."""
    sample = sampler.sample(samples, generator)
    values = objective(sample.mask)
    return policy_loss(sample.log_prob, values, baseline_of(values, baseline)), values.mean()


class Learned(NamedTuple):
    """What `learn_distribution` recorded; row t is the state *before* step t, the last the end."""

    history: pd.DataFrame  # step, objective (mean over the samples, or exact), entropy
    probabilities: Tensor  # [steps + 1, E]
    mask: Tensor  # bool [E], the deterministic architecture at the end


def learn_distribution(
    sampler: Sampler, objective: Objective, *, steps: int, samples: int | None, lr: float = 0.1,
    baseline: str = "mean", generator: torch.Generator | None = None,
) -> Learned:  # fmt: skip
    """Lower E_{H ~ Γ} D(H) in the sampler's logits by Adam: `budgeted` without data and weights.

    Args:
        samples: architectures drawn per step; None follows the exact gradient of eq. 3.16
            instead, for spaces of at most 20 edges.
        baseline: name of D̃, see `baseline_of`.
    """
    require(steps >= 1, "steps", steps, "at least 1")
    optimizer = make_optimizer(sampler.parameters(), "adam", lr=lr)
    rows, trace = [], [sampler.probabilities()]
    for step in range(steps):
        if samples is None:
            loss = mean = expected_objective(sampler, objective)
        else:
            loss, mean = _sampled_loss(sampler, objective, samples, baseline, generator)
        rows.append({"step": step, "objective": mean.item(), "entropy": sampler.entropy().item()})
        descend(loss, optimizer)
        trace.append(sampler.probabilities())
    return Learned(pd.DataFrame(rows), torch.stack(trace), sampler.mode())


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
