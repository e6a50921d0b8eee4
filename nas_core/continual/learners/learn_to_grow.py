"""Learn to grow (Li et al. 2019): per layer reuse an old module, adapt one, or make a new one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from nas_core.continual.backbones import Backbone
from nas_core.continual.fit import (
    FitConfig,
    FitReport,
    Meter,
    accuracy,
    fit,
    training_batches,
    validation_set,
)
from nas_core.continual.learners.base import LibraryLearner
from nas_core.continual.tasks import Task


class LearnToGrow(LibraryLearner):
    """A differentiable search over {reuse module i, adapt module i, new} at every layer.

    The search mixes all options of a layer with weights softmax(α); α follows the loss on the
    validation set, the modules that on the training set. The strongest option of each layer is
    kept and trained; old modules stay frozen. An adapted module is an old one plus a small
    parallel map. The head is always new.

    Args:
        search_steps: steps of the search, half on weights and half on α.
        alpha_lr: learning rate of α.
        penalty: added to the loss per expected share of the backbone's parameters that are new.
    """

    name = "Learn-to-grow"

    def __init__(
        self, backbone: Backbone, config: FitConfig | None = None, *, seed: int = 0,
        search_steps: int = 100, alpha_lr: float = 0.02, penalty: float = 0.05,
    ):  # fmt: skip
        super().__init__(backbone, config, seed=seed)
        self.search_steps, self.alpha_lr, self.penalty = search_steps, alpha_lr, penalty
        self.adapters = nn.ModuleDict()  # "layer_task"

    def _adapter(self, layer: int) -> nn.Module:
        """A map of few weights from the input of a layer to its output."""
        into = self.backbone.input_shape if not layer else self.backbone.shapes[layer - 1]
        out = self.backbone.shapes[layer]
        if len(into) == 3 and len(out) == 3:
            return nn.Sequential(
                nn.AdaptiveAvgPool2d(out[1:]), nn.Conv2d(into[0], out[0], 1, bias=False)
            )
        size = int(torch.Size(into).numel())
        return nn.Sequential(
            nn.Flatten(), nn.Linear(size, 8, bias=False), nn.Linear(8, out[0], bias=False)
        )

    def _run(self, x: Tensor, task: int) -> Tensor:
        for layer, module in enumerate(self.library.path(task)):
            h = module(x)
            key = f"{layer}_{task}"
            x = h + self.adapters[key](x) if key in self.adapters else h
        return x

    def learn_once(self, task: Task, lr: float, weight_decay: float, beta: int | None) -> FitReport:
        t, seed, depth = task.id, self.seed_for(task), len(self.backbone)
        macs, names = 0, ["new"] * depth
        path = [t] * depth
        if t:
            picked, macs = self._search(task, lr, seed)
            path = [owner for owner, _ in picked] + [t]
            for layer, (owner, adapter) in enumerate(picked):
                names[layer] = "new" if owner == t else f"t{owner + 1}"
                if adapter is not None:
                    self.adapters[f"{layer}_{t}"] = adapter
                    names[layer] += "+"
        new = self.library.grow(path, task.way)
        self.library.to(self.device)
        mine = [m for key, m in self.adapters.items() if key.endswith(f"_{t}")]
        trained = nn.ModuleList([*new, *mine])
        for p in self.library.parameters():
            p.requires_grad_(False)
        trained.requires_grad_(True)
        self.library.eval()
        val = validation_set(task, self.config.val_copies, seed)
        (report,) = fit(
            [trained], lambda x, y, active: [cross_entropy(self._run(x, t), y)],
            lambda active: [accuracy(lambda x: self._run(x, t), val)],
            task, self.config, lr, weight_decay, seed=seed, beta=beta or 0,
            curves=None if beta is None
            else lambda: [accuracy(lambda x: self._run(x, t), task.test)],
        )  # fmt: skip
        report.macs += macs
        report.choice = " ".join(names)
        return report

    def _search(
        self, task: Task, lr: float, seed: int
    ) -> tuple[list[tuple[int, nn.Module | None]], int]:
        """The strongest option of every layer but the head: owner, and an adapter or None."""
        t, depth = task.id, len(self.backbone)
        for p in self.library.parameters():
            p.requires_grad_(False)
        self.library.eval()
        options: list[list[tuple[int, nn.Module, nn.Module | None]]] = []
        for layer in range(depth - 1):
            owners = sorted({path[layer] for path in self.library.paths})
            old = [(o, self.library.module(layer, o)) for o in owners]
            row: list[tuple[int, nn.Module, nn.Module | None]] = [(o, m, None) for o, m in old]
            row += [(o, m, self._adapter(layer).to(self.device)) for o, m in old]
            row.append((t, self.backbone.block(layer, task.way).to(self.device), None))
            options.append(row)
        head = self.backbone.block(depth - 1, task.way).to(self.device)
        alphas = [nn.Parameter(torch.zeros(len(row), device=self.device)) for row in options]
        fresh = nn.ModuleList([head])
        for row in options:
            fresh.extend([*(a for _, _, a in row if a is not None), row[-1][1]])
        total = sum(self.backbone.params)
        weights = torch.optim.Adam(fresh.parameters(), lr=lr, fused=True)
        choice = torch.optim.Adam(alphas, lr=self.alpha_lr, fused=True)
        prices = [
            torch.tensor(
                [
                    sum(p.numel() for p in (a or nn.Identity()).parameters())
                    + (sum(p.numel() for p in m.parameters()) if o == t else 0)
                    for o, m, a in row
                ],
                device=self.device,
            )
            / total
            for row in options
        ]

        def mixed(x: Tensor) -> Tensor:
            for row, alpha in zip(options, alphas, strict=True):
                outputs = [m(x) if a is None else m(x) + a(x) for _, m, a in row]
                shape = (-1, *[1] * outputs[0].dim())
                x = (alpha.softmax(0).view(shape) * torch.stack(outputs)).sum(0)
            return head(x)

        meter = Meter()
        train = training_batches(task.train, self.config.batch_size, seed)
        val = training_batches(task.val, self.config.batch_size, seed)
        for step in range(self.search_steps):
            x, y = next(train if step % 2 == 0 else val)

            def forward_backward(x=x, y=y) -> None:
                cost = torch.stack(
                    [a.softmax(0) @ p for a, p in zip(alphas, prices, strict=True)]
                ).sum()
                (cross_entropy(mixed(x), y) + self.penalty * cost).backward()

            weights.zero_grad(set_to_none=True)
            choice.zero_grad(set_to_none=True)
            meter.run("search", len(x), forward_backward)
            (weights if step % 2 == 0 else choice).step()
        best = [row[int(a.argmax())] for row, a in zip(options, alphas, strict=True)]
        return [(owner, adapter) for owner, _, adapter in best], round(meter.macs)

    def predict(self, x: Tensor, task_id: int) -> Tensor:
        self.library.eval()
        with torch.no_grad():
            return self._run(x, task_id)

    def memory(self) -> dict[str, int]:
        out = super().memory()
        adapters = sum(p.numel() * p.element_size() for p in self.adapters.parameters())
        return {**out, "adapters": adapters}

    def state_dict(self) -> dict[str, Any]:
        state = {"keys": list(self.adapters), "weights": self.adapters.state_dict()}
        return {**super().state_dict(), "adapters": state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.adapters = nn.ModuleDict(
            {key: self._adapter(int(key.split("_")[0])) for key in state["adapters"]["keys"]}
        )
        self.adapters.load_state_dict(state["adapters"]["weights"])
