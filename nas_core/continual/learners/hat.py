"""Hard attention to the task: units are reserved by gates that are learnt almost binary."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from nas_core.continual.backbones import Backbone
from nas_core.continual.fit import FitReport, Trial
from nas_core.continual.learners.base import Learner
from nas_core.continual.library import tensor_bytes


class Gated(nn.Module):
    """One trunk whose units are multiplied by the gates of a task, and a head per task."""

    def __init__(self, backbone: Backbone, slope: float):
        super().__init__()
        self.backbone, self.slope, self.ways = backbone, slope, list[int]()
        self.trunk: Any = nn.ModuleList([backbone.block(n, 2) for n in range(len(backbone) - 1)])
        self.heads: Any = nn.ModuleList()
        self.embeddings: Any = nn.ModuleList()  # per task a ParameterList, one vector per layer

    @property
    def layers(self) -> list[Any]:
        return [_only_weighted_layer(block) for block in self.trunk]

    def add(self, way: int) -> None:
        """Head and gates of the next task."""
        self.ways.append(way)
        self.heads.append(self.backbone.block(len(self.backbone) - 1, way))
        vectors = [nn.Parameter(torch.randn(len(layer.weight))) for layer in self.layers]
        self.embeddings.append(nn.ParameterList(vectors))

    def gates(self, task: int, slope: float | None = None) -> list[Tensor]:
        """a_t of every layer, each `[units]`."""
        s = self.slope if slope is None else slope
        return [torch.sigmoid(s * e) for e in self.embeddings[task]]

    def forward(self, x: Tensor, task: int, slope: float | None = None) -> Tensor:
        for block, gate in zip(self.trunk, self.gates(task, slope), strict=True):
            x = block(x)  # [B, units] or [B, units, H, W]
            x = x * gate.view(1, -1, *[1] * (x.dim() - 2))
        return self.heads[task](x)


@dataclass(eq=False, kw_only=True)
class HAT(Learner):
    """A fixed network whose units are switched by a_t^l = σ(s·e_t^l), one embedding e per task.

    Updates of weights between units that earlier tasks reserved are scaled by
    1 − min(a_≤t of the output, a_≤t of the input); the sparsity term asks a task for few *new*
    units (Serrà et al. 2018). "Wide" HAT is the same on a wider backbone, e.g. `alexnet(6.5)`.
    The backbone needs exactly one layer with weights per block (`alexnet`, `mlp`).

    Args:
        sparsity: weight of the sparsity term, chosen for the whole stream (†).
        s_max: slope of the gates at the end of an annealing period, and in prediction.
        period: steps in which the slope runs from 1/s_max to s_max.
    """

    sparsity: float = 0.75
    s_max: float = 400.0
    period: int = 20
    name = "HAT"

    def __post_init__(self) -> None:
        super().__post_init__()
        torch.manual_seed(self.seed)
        self.net = Gated(self.backbone, self.s_max)
        # Maximum over past tasks of the gates, per layer [units].
        self.reserved = [torch.zeros(len(layer.weight)) for layer in self.net.layers]

    def sparsity_term(self, gates: list[Tensor]) -> Tensor:
        """Share of the units that no earlier task reserved and this one wants."""
        free = [1 - r for r in self.reserved]
        wanted = torch.stack([(g * f).sum() for g, f in zip(gates, free, strict=True)]).sum()
        return wanted / torch.stack([f.sum() for f in free]).sum().clamp(min=1e-6)

    def free(self) -> list[tuple[Tensor, Tensor]]:
        """Per layer the factors for updates of weight and bias: 0 where earlier tasks rely on it.

        A weight is reserved as far as the unit it feeds *and* the unit it reads are.
        """
        factors, before = [], None
        for layer, out in zip(self.net.layers, self.reserved, strict=True):
            weight = layer.weight  # [units, inputs] or [units, inputs, H, W]
            mask = out.view(-1, 1).expand(len(out), weight.shape[1])
            if before is not None:
                mask = torch.minimum(mask, _spread(before, weight.shape[1]))
            factors.append((1 - mask.reshape(*mask.shape, *[1] * (weight.dim() - 2)), 1 - out))
            before = out
        return factors

    def learn_once(self, trial: Trial) -> FitReport:
        t, net = trial.task.id, self.net
        net.add(trial.task.way)
        net.to(self.device)
        self.reserved = [r.to(self.device) for r in self.reserved]
        trained = nn.ModuleList([net.trunk, net.heads[t], net.embeddings[t]])
        factors = self.free()
        step, s = 0, 1 / self.s_max

        def loss(x: Tensor, y: Tensor) -> Tensor:
            nonlocal step, s
            position = (step % self.period) / max(1, self.period - 1)
            s = 1 / self.s_max + (self.s_max - 1 / self.s_max) * position
            step += 1
            sparsity = self.sparsity_term(net.gates(t, s))
            return cross_entropy(net(x, t, s), y) + self.sparsity * sparsity

        start: list[tuple[Tensor, Tensor]] = []

        def before_step() -> None:
            for e in net.embeddings[t]:
                if e.grad is not None:  # steep gates have no gradient: undo their slope
                    inner = (s * e.detach()).clamp(-50, 50)
                    flat = e.detach().clamp(-50, 50)
                    e.grad *= self.s_max / s * (inner.cosh() + 1) / (flat.cosh() + 1)
            nn.utils.clip_grad_norm_(trained.parameters(), 1e4)
            start[:] = [(m.weight.detach().clone(), m.bias.detach().clone()) for m in net.layers]

        def after_step() -> None:
            # Adam makes steps of full size out of the smallest gradients, so it is the update
            # that is scaled; with plain gradient descent the two are the same.
            with torch.no_grad():
                for m, (w, b), (free_w, free_b) in zip(net.layers, start, factors, strict=True):
                    m.weight.copy_(torch.lerp(w, m.weight, free_w))
                    m.bias.copy_(torch.lerp(b, m.bias, free_b))

        # Weight decay would move reserved weights, so there is none.
        report = self.fit_one(
            replace(trial, weight_decay=0.0),
            trained,
            loss=loss,
            before_step=before_step,
            after_step=after_step if t else None,
        )
        with torch.no_grad():
            gates = net.gates(t)
            self.reserved = [torch.maximum(r, g) for r, g in zip(self.reserved, gates, strict=True)]
        used = sum(float((g > 0.5).sum()) for g in gates) / sum(len(g) for g in gates)
        report.choice = f"{used:.0%} of the units"
        return report

    def memory(self) -> dict[str, int]:
        gates = tensor_bytes(self.net.embeddings.parameters())
        weights = tensor_bytes(self.net.parameters()) - gates
        return {"parameters": weights, "attention": gates + tensor_bytes(self.reserved)}

    def structure(self) -> dict[str, Any]:
        return {"ways": list(self.net.ways), "reserved": self.reserved}

    def rebuild(self, structure: dict[str, Any]) -> None:
        self.net = Gated(self.backbone, self.s_max)
        for way in structure["ways"]:
            self.net.add(way)
        self.reserved = list(structure["reserved"])


def _only_weighted_layer(block: nn.Module) -> nn.Module:
    weighted = [m for m in block.modules() if any(True for _ in m.parameters(recurse=False))]
    if len(weighted) != 1 or not isinstance(weighted[0], nn.Conv2d | nn.Linear):
        raise ValueError(
            "attention gates need blocks with exactly one convolution or linear layer "
            "(alexnet, mlp); the ResNet's blocks have several layers with batch norm"
        )
    return weighted[0]


def _spread(reserved: Tensor, inputs: int) -> Tensor:
    """Reservation of every *input* of a layer: a flattened map has several inputs per channel."""
    if inputs % len(reserved):
        raise ValueError(f"{inputs} inputs do not come from {len(reserved)} units")
    return reserved.repeat_interleave(inputs // len(reserved)).view(1, -1)
