"""Elastic weight consolidation: a quadratic pull towards weights that mattered."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from nas_core.continual.fit import Trial
from nas_core.continual.learners.base import SharedPath
from nas_core.continual.library import tensor_bytes

Named = dict[str, Tensor]


def fisher_diagonal(net: nn.Module, x: Tensor, *, chunk: int = 32) -> Named:
    """Diagonal of the Fisher information, mean over the examples `x` of E_y[(∂ log p(y|x)/∂θ)²].

    The expectation over y is taken under the model's own distribution and exactly: one pass per
    class. `net` must be in eval mode (batch statistics would tie the examples together).
    """
    params = {n: p.detach() for n, p in net.named_parameters()}
    buffers = {n: b.detach() for n, b in net.named_buffers()}

    def log_p(p: Named, example: Tensor, label: int) -> Tensor:
        logits = functional_call(net, (p, buffers), (example.unsqueeze(0),))
        return logits.log_softmax(1)[0, label]

    total = {n: torch.zeros_like(p) for n, p in params.items()}
    with torch.no_grad():
        probabilities = net(x).softmax(1)
    for label in range(probabilities.shape[1]):
        slope = vmap(grad(lambda p, e, c=label: log_p(p, e, c)), (None, 0), chunk_size=chunk)
        for part, weight in zip(x.split(chunk), probabilities[:, label].split(chunk), strict=True):
            for n, g in slope(params, part).items():
                total[n] += torch.einsum("b,b...->...", weight, g**2)
    return {n: t / len(x) for n, t in total.items()}


def quadratic_penalty(params: Named, anchor: Named, fisher: Named) -> Tensor:
    """½ Σ_i F_i (θ_i − θ*_i)²."""
    parts = [(fisher[n] * (params[n] - anchor[n]) ** 2).sum() for n in fisher]
    return 0.5 * torch.stack(parts).sum()


@dataclass(eq=False, kw_only=True)
class EWC(SharedPath):
    """Fine-tuning with λ/2 Σ_t Σ_i F_ti (θ_i − θ*_ti)² added to the loss.

    Args:
        strength: λ, chosen for the whole stream (the † rows of the thesis).
        online: one running Fisher (decayed by `decay`) around the latest weights, 3N in memory,
            instead of one Fisher and one copy of the weights per task, N + 2TN.
        task_heads: every task has a head of its own, which needs no protection. Without, the
            head is shared and protected too; that is the case which table 5.4's N + 2TN counts.
        examples: of the training set that the Fisher is estimated on.
    """

    strength: float = 100.0
    online: bool = False
    decay: float = 1.0
    task_heads: bool = True
    examples: int = 200
    name = "EWC"

    def __post_init__(self) -> None:
        self.own = (-1,) if self.task_heads else ()
        super().__post_init__()
        if not 0 <= self.strength < math.inf or not 0 <= self.decay <= 1:
            raise ValueError(
                f"strength is {self.strength} and decay {self.decay}; strength must be at least 0 "
                "and decay in [0, 1]"
            )
        self.name = "Online EWC" if self.online else "EWC"
        self.fishers: list[Named] = []
        self.anchors: list[Named] = []

    def protected(self, task: int) -> Named:
        """Parameters that all tasks share, by "layer.parameter"."""
        path = self.library.path(task)
        shared = enumerate(path[:-1] if self.task_heads else path)
        return {f"{i}.{n}": p for i, block in shared for n, p in block.named_parameters()}

    def penalty(self, task: int) -> Tensor:
        """Σ over the past of the quadratic pull; 0 on the first task."""
        params, past = self.protected(task), zip(self.anchors, self.fishers, strict=True)
        pulls = [quadratic_penalty(params, a, f) for a, f in past]
        return self.strength * torch.stack(pulls).sum() if pulls else torch.zeros(())

    def loss(self, x: Tensor, y: Tensor, task: int) -> Tensor:
        loss = super().loss(x, y, task)
        return loss + self.penalty(task) if self.anchors else loss

    def after_task(self, trial: Trial) -> None:
        """Estimate the Fisher around the weights just found."""
        net = nn.Sequential(*self.library.path(trial.task.id)).eval()
        x, _ = next(trial.task.train.plain().batches(self.examples, seed=trial.seed))
        fisher, kept = fisher_diagonal(net, x), self.protected(trial.task.id)
        fisher = {n: fisher[n] for n in kept}
        anchor = {n: p.detach().clone() for n, p in kept.items()}
        if self.online and self.fishers:
            self.anchors.pop()
            old = self.fishers.pop()
            fisher = {n: self.decay * old[n] + f for n, f in fisher.items()}
        self.fishers.append(fisher)
        self.anchors.append(anchor)

    def memory(self) -> dict[str, int]:
        fisher, anchors = (
            tensor_bytes(t for named in part for t in named.values())
            for part in (self.fishers, self.anchors)
        )
        return {**super().memory(), "fisher": fisher, "anchors": anchors}

    def structure(self) -> dict[str, Any]:
        return {**super().structure(), "fishers": self.fishers, "anchors": self.anchors}

    def rebuild(self, structure: dict[str, Any]) -> None:
        super().rebuild(structure)
        self.fishers, self.anchors = list(structure["fishers"]), list(structure["anchors"])
