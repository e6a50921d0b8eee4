"""Networks that every task adds parts to: columns (PNN), gates (HAT), adapters (Learn to grow)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from nas_core.continual.backbones import Backbone
from nas_core.continual.fit import FitReport, Meter, Trial, training_batches
from nas_core.continual.learners.base import Learner, LibraryLearner
from nas_core.continual.library import Library, tensor_bytes
from nas_core.supernet import count_params
from nas_core.training import descend, make_optimizer


class PerTask(nn.Module):
    """A network with parts of its own for every task; `add(way)` makes those of the next task."""

    def __init__(self, backbone: Backbone):
        super().__init__()
        self.backbone, self.ways = backbone, list[int]()  # number of classes of every task

    def structure(self) -> dict[str, Any]:
        return {"ways": list(self.ways)}

    def rebuild(self, structure: dict[str, Any]) -> None:
        for way in structure["ways"]:
            self.add(way)

    def add(self, way: int) -> nn.Module:
        raise NotImplementedError


class Columns(PerTask):
    """One network per task, with connections from every earlier one."""

    def __init__(self, backbone: Backbone):
        super().__init__(backbone)
        self.columns: Any = nn.ModuleList()  # columns[t]["own"][l], columns[t]["from j"][l − 1]

    def add(self, way: int) -> nn.ModuleDict:
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

    Memory is T·N + T(T−1)/2·(N − N_1), as in the thesis' tables 5.5–5.13.
    """

    name = "PNN"

    def new_net(self) -> Columns:
        return Columns(self.backbone)

    def learn_once(self, trial: Trial) -> FitReport:
        return self.fit_one(trial, [self.net.add(trial.task.way)])


class Gated(PerTask):
    """One trunk whose units are multiplied by the gates of a task, and a head per task."""

    def __init__(self, backbone: Backbone, slope: float):
        super().__init__(backbone)
        self.slope = slope
        self.trunk: Any = nn.ModuleList([backbone.block(n, 2) for n in range(len(backbone) - 1)])
        self.layers = [_only_weighted_layer(block) for block in self.trunk]
        self.heads: Any = nn.ModuleList()
        self.embeddings: Any = nn.ModuleList()  # per task a ParameterList, one vector per layer

    def add(self, way: int) -> nn.Module:
        self.ways.append(way)
        self.heads.append(self.backbone.block(len(self.backbone) - 1, way))
        vectors = [nn.Parameter(torch.randn(len(layer.weight))) for layer in self.layers]
        self.embeddings.append(nn.ParameterList(vectors))
        return nn.ModuleList([self.heads[-1], self.embeddings[-1]])

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
    """

    sparsity: float = 0.75  # weight of the sparsity term, chosen for the whole stream (†)
    s_max: float = 400.0  # slope of the gates at the end of an annealing period, and in prediction
    period: int = 20  # steps in which the slope rises from 1/s_max to s_max
    name = "HAT"
    kept = ("reserved",)

    def __post_init__(self) -> None:
        super().__post_init__()
        # Maximum over past tasks of the gates, per layer [units].
        self.reserved = [torch.zeros(len(layer.weight)) for layer in self.net.layers]

    def new_net(self) -> Gated:
        torch.manual_seed(self.seed)
        return Gated(self.backbone, self.s_max)

    def sparsity_term(self, gates: list[Tensor]) -> Tensor:
        """Share of the units that no earlier task reserved and this one uses."""
        free = [1 - r for r in self.reserved]
        used = torch.stack([(g * f).sum() for g, f in zip(gates, free, strict=True)]).sum()
        return used / torch.stack([f.sum() for f in free]).sum().clamp(min=1e-6)

    def free(self) -> list[tuple[Tensor, Tensor]]:
        """Per layer the factors for updates of weight and bias: 0 where earlier tasks rely on it.

        A weight is reserved as far as the unit it feeds *and* the unit it reads are.
        """
        factors, before = [], None
        for layer, out in zip(self.net.layers, self.reserved, strict=True):
            units, inputs, *kernel = layer.weight.shape
            mask = out.view(-1, 1).expand(units, inputs)
            if before is not None:  # a flattened map has several inputs per channel
                mask = torch.minimum(mask, before.repeat_interleave(inputs // len(before)))
            factors.append((1 - mask.reshape(units, inputs, *[1] * len(kernel)), 1 - out))
            before = out
        return factors

    def learn_once(self, trial: Trial) -> FitReport:
        t, net = trial.task.id, self.net
        own = net.add(trial.task.way).to(self.device)
        self.reserved = [r.to(self.device) for r in self.reserved]
        factors = self.free()
        step, low, s = 0, 1 / self.s_max, 1 / self.s_max

        def loss(x: Tensor, y: Tensor) -> Tensor:
            nonlocal step, s
            s = low + (self.s_max - low) * ((step % self.period) / max(1, self.period - 1))
            step += 1
            sparsity = self.sparsity_term(net.gates(t, s))
            return cross_entropy(net(x, t, s), y) + self.sparsity * sparsity

        start: list[tuple[Tensor, Tensor]] = []  # weights and biases before the step

        def before_step() -> None:
            for e in net.embeddings[t]:
                if e.grad is not None:  # steep gates have no gradient: undo their slope
                    inner, flat = ((v * e.detach()).clamp(-50, 50) for v in (s, 1))
                    e.grad *= self.s_max / s * (inner.cosh() + 1) / (flat.cosh() + 1)
            nn.utils.clip_grad_norm_([*net.trunk.parameters(), *own.parameters()], 1e4)
            start[:] = [(m.weight.detach().clone(), m.bias.detach().clone()) for m in net.layers]

        @torch.no_grad()
        def after_step() -> None:
            # Adam makes steps of full size out of the smallest gradients, so it is the update
            # that is scaled; with plain gradient descent the two are the same.
            for m, (w, b), (free_w, free_b) in zip(net.layers, start, factors, strict=True):
                m.weight.copy_(torch.lerp(w, m.weight, free_w))
                m.bias.copy_(torch.lerp(b, m.bias, free_b))

        trial = replace(trial, weight_decay=0.0)  # it would move reserved weights
        hooks = {"before_step": before_step, "after_step": after_step if t else None}
        report = self.fit_one(trial, [net.trunk, own], loss, **hooks)
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


def _only_weighted_layer(block: nn.Module) -> Any:
    weighted = [m for m in block.modules() if any(True for _ in m.parameters(recurse=False))]
    if len(weighted) != 1 or not isinstance(weighted[0], nn.Conv2d | nn.Linear):
        raise ValueError("attention gates need blocks with exactly one layer (alexnet, mlp)")
    return weighted[0]


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
            conv = nn.Conv2d(into[0], out[0], 1, bias=False)
            return nn.Sequential(nn.AdaptiveAvgPool2d(out[1:]), conv)
        few = nn.Linear(math.prod(into), 8, bias=False), nn.Linear(8, out[0], bias=False)
        return nn.Sequential(nn.Flatten(), *few)

    def forward(self, x: Tensor, task: int) -> Tensor:
        for layer, module in enumerate(self.path(task)):
            h, key = module(x), f"{layer}_{task}"
            x = h + self.adapters[key](x) if key in self.adapters else h
        return x

    def structure(self) -> dict[str, Any]:
        return {**super().structure(), "adapters": list(self.adapters)}

    def rebuild(self, structure: dict[str, Any]) -> None:
        super().rebuild(structure)
        for key in structure["adapters"]:
            self.adapters[key] = self.adapter(int(key.split("_")[0]))


class Option(NamedTuple):
    """One way to compute a layer: a module of the library or a new one, perhaps adapted."""

    owner: int
    module: nn.Module
    adapter: nn.Module | None
    new: list[nn.Module]  # what the library would gain


@dataclass(eq=False, kw_only=True)
class LearnToGrow(LibraryLearner):
    """A differentiable search over {reuse module i, adapt module i, new} at every layer.

    The search mixes all options of a layer with weights softmax(α); α follows the loss on the
    validation set, the modules that on the training set. The strongest option of each layer is
    kept and trained; old modules stay frozen. An adapted module is an old one plus a small
    parallel map. The head is always new (Li et al. 2019).
    """

    search_steps: int = 100  # half of them on weights and half on α
    alpha_lr: float = 0.02
    penalty: float = 0.05  # on the expected share of the backbone's parameters that are new
    name = "Learn-to-grow"

    def new_net(self) -> AdaptedLibrary:
        return AdaptedLibrary(self.backbone)

    def learn_once(self, trial: Trial) -> FitReport:
        t, library = trial.task.id, self.net
        picked, macs = self._search(trial) if t else ([], 0)
        path = [option.owner for option in picked]
        path += [t] * (len(self.backbone) - len(path))
        trained = library.grow(path, trial.task.way)
        words = ["new"] * len(path)
        for layer, option in enumerate(picked):
            if option.owner != t:
                words[layer] = f"t{option.owner + 1}" + "+" * (option.adapter is not None)
            if option.adapter is not None:
                library.adapters[f"{layer}_{t}"] = option.adapter
                trained.append(option.adapter)
        report = self.fit_one(trial, trained)
        report.macs += macs
        report.choice = " ".join(words)
        return report

    def _search(self, trial: Trial) -> tuple[list[Option], int]:
        """The strongest option of every layer but the head, and the multiply-adds spent."""
        task, library, b, device = trial.task, self.net, self.backbone, self.device
        library.to(device).eval().requires_grad_(False)
        options: list[list[Option]] = []
        for layer in range(len(b) - 1):
            owners = sorted({path[layer] for path in library.paths})
            old = [(o, library.module(layer, o)) for o in owners]
            adapters = [library.adapter(layer).to(device) for _ in old]
            row = [Option(o, m, None, []) for o, m in old]
            row += [Option(*pair, a, [a]) for pair, a in zip(old, adapters, strict=True)]
            block = b.block(layer, task.way).to(device)
            options.append([*row, Option(task.id, block, None, [block])])
        head = b.block(len(b) - 1, task.way).to(device)
        alphas = [nn.Parameter(torch.zeros(len(row), device=device)) for row in options]

        def mixed(x: Tensor) -> Tensor:
            for row, alpha in zip(options, alphas, strict=True):
                outputs = [m(x) if a is None else m(x) + a(x) for _, m, a, _ in row]
                shares = alpha.softmax(0).view(-1, *[1] * outputs[0].dim())  # [O, 1, …]
                x = (shares * torch.stack(outputs)).sum(0)
            return head(x)

        shares = [[sum(map(count_params, o.new)) / sum(b.params) for o in row] for row in options]
        prices = [torch.tensor(row, device=device) for row in shares]  # of options, per layer
        fresh = nn.ModuleList([head, *(part for row in options for o in row for part in o.new)])
        weights = make_optimizer(fresh.parameters(), "adam", lr=trial.lr)
        choice = make_optimizer(alphas, "adam", lr=self.alpha_lr)
        meter, size = Meter(), self.config.batch_size
        of_weights = training_batches(task.train, size, trial.seed)
        of_alphas = training_batches(task.val, size, trial.seed)
        for step in range(self.search_steps):
            batches = of_alphas if step % 2 else of_weights
            turn, other = (choice, weights) if step % 2 else (weights, choice)
            x, y = next(batches)
            with meter.step("search", len(x)):
                new = torch.stack([a.softmax(0) @ p for a, p in zip(alphas, prices, strict=True)])
                descend(cross_entropy(mixed(x), y) + self.penalty * new.sum(), turn, clear=[other])
        best = [row[int(a.argmax())] for row, a in zip(options, alphas, strict=True)]
        return best, round(meter.macs)
