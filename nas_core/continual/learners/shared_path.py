"""Learners with one path for all tasks: fine-tuning and its relatives, EWC, experience replay."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.functional import cross_entropy

from nas_core.continual.fit import FitReport, Trial
from nas_core.continual.learners.base import LibraryLearner
from nas_core.continual.library import tensor_bytes
from nas_core.continual.streams import Task
from nas_core.training import derived_seeds

Named = dict[str, Tensor]


@dataclass(eq=False, kw_only=True)
class SharedPath(LibraryLearner):
    """One path for all tasks but for the layers that each task owns: five baselines in one.

    With all layers owned it is a new network per task (Independent), with none one network that
    is trained on and on (Finetune); with the head or the first layer it is New-head or New-leg.
    """

    label: str = "Shared path"  # its name in tables
    own: tuple[int, ...] | str = ()  # layers that every task gets anew (−1: the head), or "all"
    freeze: bool = False  # shared modules stay as the first task left them

    def __post_init__(self) -> None:
        super().__post_init__()
        self.name = self.label
        layers = range(len(self.backbone))
        self.own = tuple(layers if isinstance(self.own, str) else (layers[i] for i in self.own))

    def learn_once(self, trial: Trial) -> FitReport:
        t = trial.task.id
        path = [t if layer in self.own else 0 for layer in range(len(self.backbone))]
        new = self.library.grow(path, trial.task.way)
        trained = new if self.freeze else self.library.path(t)
        return self.fit_one(trial, trained, lambda x, y: self.loss(x, y, t))

    def loss(self, x: Tensor, y: Tensor, task: int) -> Tensor:
        """What is minimised on a batch of the task."""
        return cross_entropy(self.library(x, task), y)


def fisher_diagonal(net: nn.Module, x: Tensor, *, chunk: int = 32) -> Named:
    """Diagonal of the Fisher information, mean over the examples `x` of E_y[(∂ log p(y|x)/∂θ)²].

    The expectation over y is exact: one pass per class, weighted by the network's own p(y|x).
    `net` must be in eval mode: batch statistics would make the examples depend on each other.
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
    pulls = [(fisher[n] * (params[n] - anchor[n]) ** 2).sum() for n in fisher]
    return 0.5 * torch.stack(pulls).sum()


@dataclass(eq=False, kw_only=True)
class EWC(SharedPath):
    """Fine-tuning with λ/2 Σ_t Σ_i F_ti (θ_i − θ*_ti)² added to the loss.

    Memory is N + 2TN: a Fisher and a copy of the weights per task; online it is 3N. Table 5.4
    counts a shared head, which is protected like the trunk.
    """

    strength: float = 100.0  # λ, chosen for the whole stream (the † rows of the thesis)
    online: bool = False  # one running Fisher around the latest weights
    decay: float = 1.0  # of the running Fisher, per task
    task_heads: bool = True  # every task has a head of its own, which needs no protection
    examples: int = 200  # of the training set that the Fisher is estimated on
    name = "EWC"
    kept = ("fishers", "anchors")

    def __post_init__(self) -> None:
        self.own = (-1,) if self.task_heads else ()
        self.label = "Online EWC" if self.online else "EWC"
        super().__post_init__()
        if not 0 <= self.strength < math.inf or not 0 <= self.decay <= 1:
            values = f"strength is {self.strength} and decay {self.decay}"
            raise ValueError(f"{values}; strength must be at least 0 and decay in [0, 1]")
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

    def learn_once(self, trial: Trial) -> FitReport:
        report = super().learn_once(trial)
        self.consolidate(trial.task, trial.seed)
        return report

    def consolidate(self, task: Task, seed: int) -> None:
        """Estimate the Fisher of a task around the weights just found."""
        net = nn.Sequential(*self.library.path(task.id)).eval()
        x, _ = next(task.train.plain().batches(self.examples, seed=seed))
        every, now = fisher_diagonal(net, x), self.protected(task.id)
        fisher = {n: every[n] for n in now}
        if self.online and self.fishers:
            self.anchors.pop()
            old = self.fishers.pop()
            fisher = {n: self.decay * old[n] + f for n, f in fisher.items()}
        self.fishers.append(fisher)
        self.anchors.append({n: p.detach().clone() for n, p in now.items()})

    def memory(self) -> dict[str, int]:
        fishers, anchors = (
            tensor_bytes(t for named in part for t in named.values())
            for part in (self.fishers, self.anchors)
        )
        return {**super().memory(), "fisher": fishers, "anchors": anchors}


class Buffer:
    """Examples `x` (float32, as the network gets them), labels `y` and task numbers `task`."""

    def __init__(self, places: int = 15):
        self.places = places
        if places < 1:
            raise ValueError(f"{self} has no place; give it at least 1")
        self.x = torch.empty(0)
        self.y = self.task = torch.empty(0, dtype=torch.int64)
        self.offered = 0  # examples that were offered

    def __repr__(self) -> str:
        """Kind and size, which do not change with what is stored."""
        return f"{type(self).__name__}({self.places})"

    def __len__(self) -> int:
        return len(self.y)

    def offer(self, x: Tensor, y: Tensor, task: int, generator: torch.Generator) -> None:
        """Keep some of the examples of a task, which come in random order."""
        raise NotImplementedError

    def _append(self, x: Tensor, y: Tensor, task: int) -> None:
        self.x = torch.cat([self.x, x]) if len(self) else x.clone()
        self.y = torch.cat([self.y.to(y), y])
        self.task = torch.cat([self.task.to(y), torch.full_like(y, task)])

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """`count` examples, uniformly without replacement; all when there are fewer."""
        rows = torch.randperm(len(self), generator=generator)[:count].to(self.y.device)
        return self.x[rows], self.y[rows], self.task[rows]


class Ring(Buffer):
    """The last examples of every class of every task (`places` of each); grows with the stream."""

    def offer(self, x: Tensor, y: Tensor, task: int, generator: torch.Generator) -> None:
        kept = [(y == c).nonzero().flatten()[-self.places :] for c in y.unique().tolist()]
        rows = torch.cat(kept)
        self._append(x[rows], y[rows], task)
        self.offered += len(y)


class Reservoir(Buffer):
    """A fixed number of places; after n examples each is kept with probability places/n."""

    def offer(self, x: Tensor, y: Tensor, task: int, generator: torch.Generator) -> None:
        free = min(self.places - len(self), len(y))
        if free:
            self._append(x[:free], y[:free], task)
        # Example number n (counted from 1) takes a random place out of n, if that is in the store.
        numbers = self.offered + 1 + torch.arange(free, len(y))
        drawn = torch.rand(len(numbers), generator=generator, dtype=torch.float64) * numbers
        taken = {int(p): row for row, p in enumerate(drawn.tolist(), free) if p < self.places}
        pairs = torch.tensor([*taken.items()], dtype=torch.int64, device=y.device).view(-1, 2)
        places, rows = pairs.unbind(1)  # of two that take the same place the last one wins
        self.x[places], self.y[places], self.task[places] = x[rows], y[rows], task
        self.offered += len(y)


@dataclass(eq=False, kw_only=True)
class ExperienceReplay(SharedPath):
    """Fine-tuning on every batch together with as many examples of the past."""

    buffer: Buffer = field(default_factory=Ring)  # or a `Reservoir`; copied
    task_heads: bool = True  # every task has its own head, and old examples go through theirs
    name = "ER"

    def __post_init__(self) -> None:
        self.own = (-1,) if self.task_heads else ()
        self.label = "ER (reservoir)" if isinstance(self.buffer, Reservoir) else "ER"
        super().__post_init__()
        self.buffer = copy.deepcopy(self.buffer)
        self._generator = torch.Generator()

    def learn_once(self, trial: Trial) -> FitReport:
        self._generator = torch.Generator().manual_seed(derived_seeds(trial.seed, 1)[0])
        report = super().learn_once(trial)
        data = trial.task.train.plain()
        x, y = next(data.batches(len(data), seed=trial.seed))
        self.buffer.offer(x, y, trial.task.id, self._generator)
        return report

    def loss(self, x: Tensor, y: Tensor, task: int) -> Tensor:
        """Mean of the losses on the batch and on the examples drawn from the past."""
        if not len(self.buffer):
            return super().loss(x, y, task)
        old_x, old_y, old_task = self.buffer.draw(len(x), self._generator)
        h = torch.cat([x, old_x])  # together, so that batch norm sees both
        *trunk, head = self.library.path(task)
        for block in trunk:
            h = block(h)
        logits, old, past = head(h[: len(x)]), h[len(x) :], torch.zeros_like(old_y, dtype=h.dtype)
        for t in old_task.unique().tolist():
            rows, own = old_task == t, self.library.path(t)[-1]
            past[rows] = cross_entropy(own(old[rows]), old_y[rows], reduction="none")
        return cross_entropy(logits, y) + past.mean()

    def memory(self) -> dict[str, int]:
        return {**super().memory(), "replay": tensor_bytes([self.buffer.x])}

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "buffer": vars(self.buffer)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        vars(self.buffer).update(state["buffer"])
