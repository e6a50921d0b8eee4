"""Elastic weight consolidation: a quadratic pull towards weights that mattered."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from nas_core.continual.backbones import Backbone
from nas_core.continual.fit import FitConfig
from nas_core.continual.learners.base import SharedPath
from nas_core.continual.library import tensor_bytes
from nas_core.continual.tasks import Task

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

    def __init__(
        self, backbone: Backbone, config: FitConfig | None = None, *, seed: int = 0,
        strength: float = 100.0, online: bool = False, decay: float = 1.0,
        task_heads: bool = True, examples: int = 200,
    ):  # fmt: skip
        super().__init__(backbone, config, seed=seed, own=(-1,) if task_heads else ())
        if strength < 0:
            raise ValueError(f"strength is {strength}; it must be at least 0")
        self.name = "Online EWC" if online else "EWC"
        self.strength, self.online, self.decay, self.examples = strength, online, decay, examples
        self.fishers: list[Named] = []
        self.anchors: list[Named] = []

    def _protected(self, task: int) -> Named:
        """Parameters that all tasks share."""
        path = self.library.path(task)
        shared = path[:-1] if self.own else path
        return {
            f"{layer}.{n}": p
            for layer, block in enumerate(shared)
            for n, p in block.named_parameters()
        }

    def penalty(self, task: int) -> Tensor:
        """Σ over the past of the quadratic pull; 0 on the first task."""
        params = self._protected(task)
        pulls = [
            quadratic_penalty(params, a, f) for a, f in zip(self.anchors, self.fishers, strict=True)
        ]
        return self.strength * torch.stack(pulls).sum() if pulls else torch.zeros(())

    def loss(self, x: Tensor, y: Tensor, task: Task) -> Tensor:
        loss = super().loss(x, y, task)
        return loss + self.penalty(task.id) if self.anchors else loss

    def after_task(self, task: Task, seed: int) -> None:
        """Estimate the Fisher around the weights just found."""
        net = nn.Sequential(*self.library.path(task.id)).eval()
        x, _ = next(task.train.plain().batches(self.examples, seed=seed))
        fisher = fisher_diagonal(net, x)  # names are "layer.parameter", as in _protected
        kept = self._protected(task.id)
        fisher = {n: fisher[n] for n in kept}
        anchor = {n: p.detach().clone() for n, p in kept.items()}
        if self.online and self.fishers:
            old = self.fishers.pop()
            self.anchors.pop()
            fisher = {n: self.decay * old[n] + f for n, f in fisher.items()}
        self.fishers.append(fisher)
        self.anchors.append(anchor)

    def memory(self) -> dict[str, int]:
        return {
            **super().memory(),
            "fisher": tensor_bytes(t for f in self.fishers for t in f.values()),
            "anchors": tensor_bytes(t for a in self.anchors for t in a.values()),
        }

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "fishers": self.fishers, "anchors": self.anchors}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.fishers, self.anchors = list(state["fishers"]), list(state["anchors"])
