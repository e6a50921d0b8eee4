"""The score-function estimator and its baselines (thesis eqs. 3.6 and 3.25)."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def policy_loss(log_prob: Tensor, objective: Tensor, baseline: Tensor | float) -> Tensor:
    """mean_b (D_b − D̃) log P(H_b): its gradient estimates ∇ E[D] for the distribution.

    Minimising it makes good architectures likely. The mean makes the learning rate of Γ
    independent of the batch size; the authors' code sums.

    Args:
        log_prob: `[B]`, differentiable.
        objective: `[B]`, D of every sample, to be minimised; used as a constant.
        baseline: D̃, a number or `[B]`; it may depend on its own sample only through an average.
    """
    shapes = f"log_prob {list(log_prob.shape)} and objective {list(objective.shape)}"
    if log_prob.shape != objective.shape:
        raise ValueError(f"{shapes} must agree")
    if isinstance(baseline, Tensor) and baseline.shape not in ((), objective.shape):
        raise ValueError(
            f"baseline {list(baseline.shape)} must be a number or have the shape of the "
            f"objective, {list(objective.shape)}"
        )
    return ((objective - baseline).detach().to(log_prob) * log_prob).mean()


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
    """Σ_{u ≥ t} discount^(u−t) r_u along dimension 1 of `[B, T]`; discount 0 keeps the rewards."""
    total, out = torch.zeros_like(rewards[:, 0]), []
    for t in reversed(range(rewards.shape[1])):
        total = rewards[:, t] + discount * total
        out.append(total)
    return torch.stack(out[::-1], 1)
