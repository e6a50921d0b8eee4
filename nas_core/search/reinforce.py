"""The score-function estimator and its baselines (thesis eqs. 3.6 and 3.25)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nas_core.training import MovingAverage

__all__ = ["MovingAverage", "overspend", "policy_loss", "reward_to_go"]


def policy_loss(log_prob: Tensor, objective: Tensor, baseline: Tensor | float) -> Tensor:
    """Scalar whose gradient is the estimate of ∇ E[objective] with respect to the distribution.

    mean_b of (D_b − D̃) log P(H_b), so that minimising it makes cheap, accurate architectures
    likely. The mean makes the learning rate of Γ independent of the batch size; the authors'
    code sums.

    Args:
        log_prob: `[B]`, differentiable.
        objective: `[B]`, D of every sample, to be minimised; used as a constant.
        baseline: D̃, a number or `[B]`; it must not depend on the sample it is used for more than
            through an average.
    """
    if log_prob.shape != objective.shape:
        raise ValueError(
            f"log_prob {list(log_prob.shape)} and objective {list(objective.shape)} must agree"
        )
    if isinstance(baseline, Tensor) and baseline.shape not in ((), objective.shape):
        raise ValueError(
            f"baseline {list(baseline.shape)} must be a number or have the shape of the "
            f"objective, {list(objective.shape)}"
        )
    advantage = (objective - baseline).detach().to(log_prob)
    return (advantage * log_prob).mean()


def overspend(cost: Tensor, budget: float, scale: float) -> Tensor:
    """max(0, C − C_max) / scale, the hinge of eq. 3.9.

    Args:
        scale: above 0; the cost of the full network makes λ a number without a unit. For costs
            that can be negative see `SpaceProfile.scale`.
    """
    if not 0 < scale < math.inf:
        raise ValueError(f"scale is {scale}; overspending is measured in a positive, finite unit")
    return ((cost - budget) / scale).clamp(min=0)


def reward_to_go(rewards: Tensor, discount: float) -> Tensor:
    """Σ_{u ≥ t} discount^(u−t) r_u along dimension 1 of `[B, T]`.

    Discount 0 credits every step with its own reward only, discount 1 with all that follow.
    """
    total = torch.zeros_like(rewards[:, 0])
    out = []
    for t in reversed(range(rewards.shape[1])):
        total = rewards[:, t] + discount * total
        out.append(total)
    return torch.stack(out[::-1], 1)
