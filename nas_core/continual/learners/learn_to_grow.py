"""Learn to grow (Li et al. 2019): per layer reuse an old module, adapt one, or make a new one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from nas_core.continual.backbones import Backbone
from nas_core.continual.fit import FitReport, Meter, Trial, training_batches
from nas_core.continual.learners.base import LibraryLearner
from nas_core.continual.library import Library
from nas_core.training import descend, make_optimizer


class AdaptedLibrary(Library):
    """A library in which a task may add a small parallel map to an old module."""

    def __init__(self, backbone: Backbone):
        super().__init__(backbone)
        self.adapters = nn.ModuleDict()  # "layer_task"

    def adapter(self, layer: int) -> nn.Module:
        """A map of few weights from the input of a layer to its output."""
        into = self.backbone.shapes[layer - 1] if layer else self.backbone.input_shape
        out = self.backbone.shapes[layer]
        if len(into) == 3 and len(out) == 3:
            return nn.Sequential(
                nn.AdaptiveAvgPool2d(out[1:]), nn.Conv2d(into[0], out[0], 1, bias=False)
            )
        size = int(torch.Size(into).numel())
        return nn.Sequential(
            nn.Flatten(), nn.Linear(size, 8, bias=False), nn.Linear(8, out[0], bias=False)
        )

    def forward(self, x: Tensor, task: int) -> Tensor:
        for layer, module in enumerate(self.path(task)):
            h = module(x)
            key = f"{layer}_{task}"
            x = h + self.adapters[key](x) if key in self.adapters else h
        return x

    def structure(self) -> dict[str, Any]:
        return {**super().structure(), "adapters": list(self.adapters)}

    def rebuild(self, structure: dict[str, Any]) -> None:
        super().rebuild(structure)
        made = {key: self.adapter(int(key.split("_")[0])) for key in structure["adapters"]}
        self.adapters = nn.ModuleDict(made)


class Option(NamedTuple):
    """One way to compute a layer: a module of the library or a new one, perhaps adapted."""

    owner: int
    module: nn.Module
    adapter: nn.Module | None


@dataclass(eq=False, kw_only=True)
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

    search_steps: int = 100
    alpha_lr: float = 0.02
    penalty: float = 0.05
    name = "Learn-to-grow"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.net = AdaptedLibrary(self.backbone)

    def learn_once(self, trial: Trial) -> FitReport:
        t, library = trial.task.id, self.net
        picked, macs = self._search(trial) if t else ([], 0)
        path = [option.owner for option in picked]
        path += [t] * (len(self.backbone) - len(path))
        for layer, option in enumerate(picked):
            if option.adapter is not None:
                library.adapters[f"{layer}_{t}"] = option.adapter
        new = library.grow(path, trial.task.way)
        mine = [m for key, m in library.adapters.items() if key.endswith(f"_{t}")]
        report = self.fit_one(trial, nn.ModuleList([*new, *mine]))
        report.macs += macs
        names = ["new" if o.owner == t else f"t{o.owner + 1}" for o in picked]
        names = [n + "+" * (o.adapter is not None) for n, o in zip(names, picked, strict=True)]
        report.choice = " ".join(names + ["new"] * (len(path) - len(names)))
        return report

    def _search(self, trial: Trial) -> tuple[list[Option], int]:
        """The strongest option of every layer but the head, and the multiply-adds spent."""
        task, library, depth = trial.task, self.net, len(self.backbone)
        library.to(self.device).eval().requires_grad_(False)
        options: list[list[Option]] = []
        for layer in range(depth - 1):
            owners = sorted({path[layer] for path in library.paths})
            old = [(o, library.module(layer, o)) for o in owners]
            row = [Option(o, m, None) for o, m in old]
            row += [Option(o, m, library.adapter(layer).to(self.device)) for o, m in old]
            row.append(Option(task.id, self.backbone.block(layer, task.way).to(self.device), None))
            options.append(row)
        head = self.backbone.block(depth - 1, task.way).to(self.device)
        alphas = [nn.Parameter(torch.zeros(len(row), device=self.device)) for row in options]
        fresh = nn.ModuleList([head])
        for row in options:
            fresh.extend([*(o.adapter for o in row if o.adapter is not None), row[-1].module])
        total = sum(self.backbone.params)

        def price(option: Option) -> float:
            """New parameters of an option as a share of the network's."""
            new = [option.adapter] + [option.module] * (option.owner == task.id)
            return sum(p.numel() for m in new if m is not None for p in m.parameters()) / total

        prices = [torch.tensor([price(o) for o in row], device=self.device) for row in options]
        weights = make_optimizer(fresh.parameters(), "adam", lr=trial.lr)
        choice = make_optimizer(alphas, "adam", lr=self.alpha_lr)

        def mixed(x: Tensor) -> Tensor:
            for row, alpha in zip(options, alphas, strict=True):
                outputs = [m(x) if a is None else m(x) + a(x) for _, m, a in row]
                shares = alpha.softmax(0).view(-1, *[1] * outputs[0].dim())  # [O, 1, …]
                x = (shares * torch.stack(outputs)).sum(0)
            return head(x)

        meter, size = Meter(), self.config.batch_size
        of_weights = training_batches(task.train, size, trial.seed)
        of_alphas = training_batches(task.val, size, trial.seed)
        for step in range(self.search_steps):
            batches = of_alphas if step % 2 else of_weights
            turn, other = (choice, weights) if step % 2 else (weights, choice)
            x, y = next(batches)

            def learn(x=x, y=y, turn=turn, other=other) -> None:
                new = torch.stack([a.softmax(0) @ p for a, p in zip(alphas, prices, strict=True)])
                descend(cross_entropy(mixed(x), y) + self.penalty * new.sum(), turn, clear=[other])

            meter.run("search", len(x), learn)
        best = [row[int(a.argmax())] for row, a in zip(options, alphas, strict=True)]
        return best, round(meter.macs)
