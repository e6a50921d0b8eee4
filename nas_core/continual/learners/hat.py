"""Hard attention to the task: units are reserved by gates that are learnt almost binary."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from nas_core.continual.backbones import Backbone
from nas_core.continual.fit import FitConfig, FitReport, accuracy, fit, validation_set
from nas_core.continual.learners.base import Learner
from nas_core.continual.library import tensor_bytes
from nas_core.continual.tasks import Task


class HAT(Learner):
    """A fixed network whose units are switched by a_t^l = σ(s·e_t^l), one embedding e per task.

    Updates of weights between units that earlier tasks reserved are scaled by
    1 − min(a_≤t of the output, a_≤t of the input); the sparsity term asks a task for few *new*
    units (Serrà et al. 2018). "Wide" HAT is the same on a wider backbone, e.g. `alexnet(6.5)`.

    Args:
        backbone: with exactly one layer with weights per block and no batch norm (`alexnet`,
            `mlp`).
        sparsity: weight of the sparsity term, chosen for the whole stream (†).
        s_max: slope of the gates at the end of an annealing period, and in prediction.
        period: steps in which the slope runs from 1/s_max to s_max.
    """

    name = "HAT"

    def __init__(
        self, backbone: Backbone, config: FitConfig | None = None, *, seed: int = 0,
        sparsity: float = 0.75, s_max: float = 400.0, period: int = 20,
    ):  # fmt: skip
        super().__init__(backbone, config, seed=seed)
        self.sparsity, self.s_max, self.period = sparsity, s_max, period
        torch.manual_seed(seed)
        self.trunk: Any = nn.ModuleList([backbone.block(n, 2) for n in range(len(backbone) - 1)])
        self.layers: list[Any] = [_only_weighted_layer(block) for block in self.trunk]
        self.units = [layer.weight.shape[0] for layer in self.layers]
        self.heads: Any = nn.ModuleList()
        self.embeddings: Any = nn.ModuleList()  # per task a ParameterList, one vector per layer
        self.reserved = [torch.zeros(n) for n in self.units]  # max over past tasks of the gates

    def gates(self, task: int, slope: float | None = None) -> list[Tensor]:
        """a_t of every layer, each `[units]`; the slope defaults to s_max."""
        s = self.s_max if slope is None else slope
        return [torch.sigmoid(s * e) for e in self.embeddings[task]]

    def _forward(self, x: Tensor, task: int, slope: float | None = None) -> Tensor:
        for block, gate in zip(self.trunk, self.gates(task, slope), strict=True):
            x = block(x)
            x = x * gate.view(1, -1, *[1] * (x.dim() - 2))
        return self.heads[task](x)

    def _grow(self, way: int) -> None:
        self.heads.append(self.backbone.block(len(self.backbone) - 1, way))
        vectors = [nn.Parameter(torch.randn(n)) for n in self.units]
        self.embeddings.append(nn.ParameterList(vectors))

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
        for layer, out in zip(self.layers, self.reserved, strict=True):
            weight = layer.weight
            mask = out.view(-1, 1).expand(len(out), weight.shape[1])
            if before is not None:
                mask = torch.minimum(mask, _spread(before, weight.shape[1]))
            factors.append((1 - mask.reshape(*mask.shape, *[1] * (weight.dim() - 2)), 1 - out))
            before = out
        return factors

    def learn_once(self, task: Task, lr: float, weight_decay: float, beta: int | None) -> FitReport:
        seed = self.seed_for(task)
        self._grow(task.way)
        t = task.id
        for module in (self.trunk, self.heads, self.embeddings):
            module.to(self.device)
        self.reserved = [r.to(self.device) for r in self.reserved]
        trained = nn.ModuleList([self.trunk, self.heads[t], self.embeddings[t]])
        val = validation_set(task, self.config.val_copies, seed)
        at = {"slope": 1 / self.s_max, "step": 0}

        def losses(x: Tensor, y: Tensor, active: list[int]) -> list[Tensor]:
            position = (at["step"] % self.period) / max(1, self.period - 1)
            at["slope"] = 1 / self.s_max + (self.s_max - 1 / self.s_max) * position
            at["step"] += 1
            loss = nn.functional.cross_entropy(self._forward(x, t, at["slope"]), y)
            return [loss + self.sparsity * self.sparsity_term(self.gates(t, at["slope"]))]

        factors = self.free() if t else []
        start: list[tuple[Tensor, Tensor]] = []

        def before_step() -> None:
            start[:] = [(m.weight.detach().clone(), m.bias.detach().clone()) for m in self.layers]
            s = at["slope"]
            for e in self.embeddings[t]:
                if e.grad is not None:  # steep gates have no gradient: undo their slope
                    inner = (s * e.detach()).clamp(-50, 50)
                    flat = e.detach().clamp(-50, 50)
                    e.grad *= self.s_max / s * (inner.cosh() + 1) / (flat.cosh() + 1)
            nn.utils.clip_grad_norm_(trained.parameters(), 1e4)

        def after_step() -> None:
            # Adam makes steps of full size out of the smallest gradients, so it is the update
            # that is scaled; with plain gradient descent the two are the same.
            with torch.no_grad():
                for m, (w, b), (free_w, free_b) in zip(self.layers, start, factors, strict=True):
                    m.weight.copy_(torch.lerp(w, m.weight, free_w))
                    m.bias.copy_(torch.lerp(b, m.bias, free_b))

        (report,) = fit(
            [trained], losses, lambda active: [accuracy(lambda x: self._forward(x, t), val)],
            task, self.config, lr, 0.0, seed=seed, beta=beta or 0,
            curves=None if beta is None
            else lambda: [accuracy(lambda x: self._forward(x, t), task.test)],
            before_step=before_step, after_step=after_step if t else None,
        )  # fmt: skip
        with torch.no_grad():
            gates = self.gates(t)
            self.reserved = [torch.maximum(r, g) for r, g in zip(self.reserved, gates, strict=True)]
            used = sum(float((g > 0.5).sum()) for g in gates) / sum(self.units)
        report.choice = f"{used:.0%} of the units"
        return report

    def predict(self, x: Tensor, task_id: int) -> Tensor:
        if not 0 <= task_id < len(self.heads):
            raise ValueError(f"task {task_id} was not learnt; there are {len(self.heads)}")
        with torch.no_grad():
            return self._forward(x, task_id)

    def memory(self) -> dict[str, int]:
        weights = [*self.trunk.parameters(), *self.heads.parameters()]
        gates = [*self.embeddings.parameters(), *self.reserved]
        return {"parameters": tensor_bytes(weights), "attention": tensor_bytes(gates)}

    def state_dict(self) -> dict[str, Any]:
        return {
            **super().state_dict(),
            "ways": [head.linear.out_features for head in self.heads],
            "trunk": self.trunk.state_dict(),
            "heads": self.heads.state_dict(),
            "embeddings": self.embeddings.state_dict(),
            "reserved": self.reserved,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.heads, self.embeddings = nn.ModuleList(), nn.ModuleList()
        for way in state["ways"]:
            self._grow(way)
        for part in ("trunk", "heads", "embeddings"):
            getattr(self, part).load_state_dict(state[part])
        self.reserved = list(state["reserved"])


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
