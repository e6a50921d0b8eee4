"""REINFORCE on a fixed objective: the weights are fixed, only Γ learns.

The learning loop of `budgeted` without data and epochs; for spaces whose objective is known, and
for observing the algorithm itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor

from nas_core.search.exact import Objective, baseline_of, expected_objective
from nas_core.search.reinforce import policy_loss
from nas_core.supernet import BernoulliSampler, ChoiceSampler
from nas_core.training import descend, make_optimizer


@dataclass(frozen=True)
class Learned:
    """What `learn_distribution` recorded; row t is the state *before* step t, the last the end."""

    history: pd.DataFrame  # step, objective (mean over the samples, or exact), entropy
    probabilities: Tensor  # [steps + 1, E]
    mask: Tensor  # bool [E], the deterministic architecture at the end


def learn_distribution(
    sampler: BernoulliSampler | ChoiceSampler,
    objective: Objective,
    *,
    steps: int,
    samples: int | None,
    lr: float = 0.1,
    baseline: str = "mean",
    generator: torch.Generator | None = None,
) -> Learned:
    """Lower E_{H ~ Γ} D(H) in the sampler's logits by Adam.

    Args:
        samples: architectures drawn per step; None follows the exact gradient of eq. 3.16
            instead, for spaces of at most 20 edges.
        baseline: as for `sampled_gradients`.
    """
    if steps < 1:
        raise ValueError(f"steps is {steps}; it must be at least 1")
    optimizer = make_optimizer(sampler.parameters(), "adam", lr=lr)
    rows, trace = [], [sampler.probabilities()]
    for step in range(steps):
        if samples is None:
            loss = expected_objective(sampler, objective)
            mean = loss.item()
        else:
            sample = sampler.sample(samples, generator)
            values = objective(sample.mask)
            loss = policy_loss(sample.log_prob, values, baseline_of(values, baseline))
            mean = values.mean().item()
        rows.append({"step": step, "objective": mean, "entropy": sampler.entropy().item()})
        descend(loss, optimizer)
        trace.append(sampler.probabilities())
    return Learned(pd.DataFrame(rows), torch.stack(trace), sampler.mode())
