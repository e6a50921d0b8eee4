"""Progressive neural networks: a column per task that listens to all earlier columns."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from nas_core.continual.backbones import Backbone
from nas_core.continual.fit import FitConfig, FitReport, accuracy, fit, validation_set
from nas_core.continual.learners.base import Learner
from nas_core.continual.library import tensor_bytes
from nas_core.continual.tasks import Task


class PNN(Learner):
    """h_t^l = f_t^l(h_t^(l−1)) + Σ_{j<t} u_tj^l(h_j^(l−1)), where u has the form of f.

    Every pair of columns costs one more backbone without its first block, so memory is
    T·N + T(T−1)/2·(N − N_1): the sizes which the thesis' tables 5.5–5.13 print.
    """

    name = "PNN"

    def __init__(self, backbone: Backbone, config: FitConfig | None = None, *, seed: int = 0):
        super().__init__(backbone, config, seed=seed)
        self.columns: Any = nn.ModuleList()  # columns[t]["own"][l], columns[t]["from j"][l − 1]
        self.ways: list[int] = []

    def _add_column(self, way: int) -> nn.ModuleDict:
        b = self.backbone
        parts = {"own": b.path(way)}
        for j in range(len(self.columns)):
            parts[f"from {j}"] = nn.ModuleList([b.block(n, way) for n in range(1, len(b))])
        self.columns.append(nn.ModuleDict(parts))
        self.ways.append(way)
        return self.columns[-1]

    def _forward(self, x: Tensor, task: int) -> Tensor:
        inputs = [x] * (task + 1)  # what block l of every column gets
        for layer in range(len(self.backbone)):
            last = layer == len(self.backbone) - 1
            outputs = []
            for t in range(task + 1):
                if last and t < task:
                    continue  # heads of other tasks are not needed
                column = self.columns[t]
                h = column["own"][layer](inputs[t])
                if layer:
                    for j in range(t):
                        h = h + column[f"from {j}"][layer - 1](inputs[j])
                outputs.append(h)
            inputs = outputs
        return inputs[-1]

    def learn_once(self, task: Task, lr: float, weight_decay: float, beta: int | None) -> FitReport:
        seed = self.seed_for(task)
        for p in self.columns.parameters():
            p.requires_grad_(False)
        column = self._add_column(task.way).to(self.device)
        self.columns.eval()
        val = validation_set(task, self.config.val_copies, seed)

        def net(x: Tensor) -> Tensor:
            return self._forward(x, task.id)

        (report,) = fit(
            [column],
            lambda x, y, active: [nn.functional.cross_entropy(net(x), y)],
            lambda active: [accuracy(net, val)],
            task, self.config, lr, weight_decay, seed=seed, beta=beta or 0,
            curves=None if beta is None else lambda: [accuracy(net, task.test)],
        )  # fmt: skip
        return report

    def predict(self, x: Tensor, task_id: int) -> Tensor:
        if not 0 <= task_id < len(self.columns):
            raise ValueError(f"task {task_id} was not learnt; there are {len(self.columns)}")
        self.columns.eval()
        with torch.no_grad():
            return self._forward(x, task_id)

    def memory(self) -> dict[str, int]:
        return {
            "parameters": tensor_bytes(self.columns.parameters()),
            "statistics": tensor_bytes(self.columns.buffers()),
        }

    def state_dict(self) -> dict[str, Any]:
        weights = self.columns.state_dict()
        return {**super().state_dict(), "ways": self.ways, "weights": weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.columns, self.ways = nn.ModuleList(), []
        for way in state["ways"]:
            self._add_column(way)
        self.columns.load_state_dict(state["weights"])
