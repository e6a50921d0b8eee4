"""Progressive neural networks: a column per task that listens to all earlier columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from nas_core.continual.backbones import Backbone
from nas_core.continual.fit import FitReport, Trial
from nas_core.continual.learners.base import Learner


class Columns(nn.Module):
    """One network per task, with connections from every earlier one."""

    def __init__(self, backbone: Backbone):
        super().__init__()
        self.backbone, self.ways = backbone, list[int]()
        self.columns: Any = nn.ModuleList()  # columns[t]["own"][l], columns[t]["from j"][l − 1]

    def add(self, way: int) -> nn.ModuleDict:
        """The column of the next task."""
        b = self.backbone
        parts = {"own": b.path(way)}
        for j in range(len(self.columns)):
            parts[f"from {j}"] = nn.ModuleList([b.block(n, way) for n in range(1, len(b))])
        self.columns.append(nn.ModuleDict(parts))
        self.ways.append(way)
        return self.columns[-1]

    def forward(self, x: Tensor, task: int) -> Tensor:
        inputs = [x] * (task + 1)  # what block `layer` of every column gets
        for layer in range(len(self.backbone)):
            # Heads of other tasks are not needed.
            first = task if layer == len(self.backbone) - 1 else 0
            outputs = []
            for t in range(first, task + 1):
                h = self.columns[t]["own"][layer](inputs[t])
                for j in range(t if layer else 0):
                    h = h + self.columns[t][f"from {j}"][layer - 1](inputs[j])
                outputs.append(h)
            inputs = outputs
        return inputs[-1]  # [B, classes]


@dataclass(eq=False, kw_only=True)
class PNN(Learner):
    """h_t^l = f_t^l(h_t^(l−1)) + Σ_{j<t} u_tj^l(h_j^(l−1)), where u has the form of f.

    Every pair of columns costs one more backbone without its first block, so memory is
    T·N + T(T−1)/2·(N − N_1): the sizes which the thesis' tables 5.5–5.13 print.
    """

    name = "PNN"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.net = Columns(self.backbone)

    def learn_once(self, trial: Trial) -> FitReport:
        return self.fit_one(trial, self.net.add(trial.task.way))

    def structure(self) -> dict[str, Any]:
        return {"ways": list(self.net.ways)}

    def rebuild(self, structure: dict[str, Any]) -> None:
        self.net = Columns(self.backbone)
        for way in structure["ways"]:
            self.net.add(way)
