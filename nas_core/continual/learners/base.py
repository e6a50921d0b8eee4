"""The interface of all learners, and the family that shares one path of modules."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from nas_core.continual.backbones import Backbone
from nas_core.continual.fit import Diverged, FitConfig, FitReport, Hook, Trial, fit
from nas_core.continual.library import Library, tensor_bytes
from nas_core.continual.tasks import Task
from nas_core.search.sweeps import map_trials
from nas_core.training import accuracy, derived_seeds


@dataclass(eq=False)
class Learner:
    """Learns tasks one after the other: `learn(task)`, then `predict(x, task_id)`.

    A new learner puts everything that it keeps into one module `net`, whose `net(x, task)` gives
    the logits `[B, classes]` of a task, and writes `learn_once`. Its options are dataclass fields.

    Args:
        backbone: recipe of the network.
        config: of the training on each task; its grid is searched per task, on the task's
            validation set.
        seed: of weights and batches.
    """

    backbone: Backbone
    config: FitConfig = field(default_factory=FitConfig)
    seed: int = field(default=0, kw_only=True)
    name = "learner"

    def __post_init__(self) -> None:
        self.seen = 0  # tasks learnt
        self.device: torch.device | str = "cpu"
        self.net: Any = nn.Module()

    # ---- what a new learner writes

    def learn_once(self, trial: Trial) -> FitReport:
        """Learn the next task with the hyper-parameters of the trial."""
        raise NotImplementedError

    def structure(self) -> dict[str, Any]:
        """All that `rebuild` must know, as plain values and tensors: everything but weights."""
        raise NotImplementedError

    def rebuild(self, structure: dict[str, Any]) -> None:
        """Give `net` the modules that `structure` describes; their weights follow."""
        raise NotImplementedError

    # ---- what they all share

    def learn(self, task: Task, *, beta: int | None = None) -> FitReport:
        """Learn the next task of a stream; of the grid's trials the best on validation is kept.

        Trials that diverge are listed in `report.details["diverged"]`.

        Args:
            beta: also record test accuracy after 0…beta batches (for LCA@beta).

        Raises:
            FloatingPointError: when every trial diverges.
        """
        if task.id != self.seen:
            raise ValueError(f"task {task.id} came, but task {self.seen} is next: tasks in order")
        if task.input_shape != self.backbone.input_shape:
            raise ValueError(
                f"{task.name} has inputs {task.input_shape}, "
                f"{self.backbone.name} wants {self.backbone.input_shape}"
            )
        self.device = task.train.device
        trials = self.trials(task, beta)
        done = map_trials(partial(_attempt, self), trials, self.config.processes)
        kept = [(learner, report) for learner, report in done if learner is not None]
        lost = [report for learner, report in done if learner is None]
        if not kept:
            raise FloatingPointError(lost[-1].choice)
        best, report = max(kept, key=lambda pair: pair[1].val_accuracy)
        self.__dict__ = best.__dict__
        self.seen += 1
        report.macs = sum(r.macs for _, r in done)  # the search for hyper-parameters is training
        if lost:
            report.details["diverged"] = [(r.lr, r.weight_decay) for r in lost]
        return report

    def trials(self, task: Task, beta: int | None) -> list[Trial]:
        """The points of the grid on a task."""
        seed = derived_seeds(self.seed, task.id)[0]
        grid = itertools.product(self.config.lr, self.config.weight_decay)
        return [Trial(task, seed, lr, decay, beta) for lr, decay in grid]

    def fit_one(
        self, trial: Trial, trained: nn.Module, *,
        loss: Callable[[Tensor, Tensor], Tensor] | None = None, config: FitConfig | None = None,
        before_step: Hook | None = None, after_step: Hook | None = None, latest: bool = False,
    ) -> FitReport:  # fmt: skip
        """Train `trained`, a part of `net`; all other parts stay as they are.

        Frozen modules get no gradient and are in eval mode: their batch-norm statistics stay too.

        Args:
            loss: `(x, y)` → scalar; default is the cross-entropy of the task's logits.
            before_step, after_step, latest: see `fit`.
            config: in the place of the learner's own.
        """
        task = trial.task.id
        self.net.to(self.device).eval().requires_grad_(False)
        trained.requires_grad_(True)

        def plain(x: Tensor, y: Tensor) -> Tensor:
            return cross_entropy(self.net(x, task), y)

        (report,) = fit(
            [trained],
            lambda x, y, active: [(loss or plain)(x, y)],
            lambda data, which: [accuracy(lambda x: self.net(x, task), data)],
            trial, config or self.config,
            before_step=before_step, after_step=after_step, latest=latest,
        )  # fmt: skip
        return report

    def predict(self, x: Tensor, task_id: int) -> Tensor:
        """Logits `[B, classes]` of a task that was learnt."""
        if not 0 <= task_id < self.seen:
            raise ValueError(f"task {task_id} was not learnt; so far there are {self.seen}")
        self.net.eval()
        with torch.no_grad():
            return self.net(x, task_id)

    def memory(self) -> dict[str, int]:
        """Bytes that must be kept to go on learning, by kind.

        "parameters", "fisher", "replay", … make up the "Mem." of the thesis; "statistics" are
        the running means and variances of batch norm.
        """
        parameters, buffers = tensor_bytes(self.net.parameters()), tensor_bytes(self.net.buffers())
        return {"parameters": parameters, "statistics": buffers}

    def total_memory(self, *, statistics: bool = False) -> int:
        """Bytes to keep; batch-norm statistics count only if asked for."""
        return sum(b for kind, b in self.memory().items() if statistics or kind != "statistics")

    # ---- saving

    def identity(self) -> dict[str, Any]:
        """What makes two learners the same before they have learnt anything, as plain values."""
        b, own = self.backbone, ("backbone", "config", "seed")
        options = {f.name: _plain(getattr(self, f.name)) for f in fields(self) if f.name not in own}
        return {"learner": self.name, "backbone": b.name, "inputs": list(b.input_shape),
                "modules": b.params, **options}  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors."""
        return {"identity": self.identity(), "seen": self.seen,
                "structure": self.structure(), "weights": self.net.state_dict()}  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state of the same learner.

        Raises:
            ValueError: for another learner, backbone or option; names both values.
        """
        refuse_difference("this state", state.get("identity", {}), self.identity())
        self.seen = state["seen"]
        self.rebuild(state["structure"])
        self.net.load_state_dict(state["weights"])
        self.net.eval()


def refuse_difference(what: str, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raise a `ValueError` that names every entry in which the two differ, with both values."""
    names = [k for k in {**wanted, **found} if found.get(k) != wanted.get(k)]
    if names:
        each = [f"{k} is {found.get(k, 'missing')}, not {wanted.get(k, 'known')}" for k in names]
        raise ValueError(f"{what} was made otherwise than what is asked for: " + "; ".join(each))


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value if isinstance(value, str | int | float | None) else repr(value)


def _attempt(learner: Learner, trial: Trial) -> tuple[Learner | None, FitReport]:
    """A copy of the learner that has learnt the task, or None where training diverged."""
    learner = copy.deepcopy(learner)
    torch.manual_seed(trial.seed)  # for new weights
    try:
        return learner, learner.learn_once(trial)
    except Diverged as error:
        lost = FitReport(-1.0, 0, error.macs, trial.lr, trial.weight_decay, choice=str(error))
        return None, lost


@dataclass(eq=False, kw_only=True)
class LibraryLearner(Learner):
    """A learner whose predictors are paths in a `Library`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.net = Library(self.backbone)

    @property
    def library(self) -> Library:
        return self.net

    def structure(self) -> dict[str, Any]:
        return self.library.structure()

    def rebuild(self, structure: dict[str, Any]) -> None:
        self.library.rebuild(structure)


@dataclass(eq=False, kw_only=True)
class SharedPath(LibraryLearner):
    """One path for all tasks but for the layers that each task owns: five baselines in one.

    With all layers owned it is a new network per task (Independent), with none one network that
    is trained on and on (Finetune); with the head or the first layer it is New-head or New-leg.

    Args:
        label: its name in tables.
        own: numbers of the layers that every task gets anew (−1 is the head); "all" for all.
        freeze: shared modules stay as the first task left them, batch-norm statistics included.
    """

    label: str = "Shared path"
    own: tuple[int, ...] | str = ()
    freeze: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.name = self.label
        layers = range(len(self.backbone))
        self.own = tuple(layers if isinstance(self.own, str) else (layers[i] for i in self.own))

    def learn_once(self, trial: Trial) -> FitReport:
        t = trial.task.id
        path = [t if layer in self.own else 0 for layer in range(len(self.backbone))]
        new = self.library.grow(path, trial.task.way)
        self.library.to(self.device)
        trained = nn.ModuleList(new if self.freeze else self.library.path(t))
        self.before_task(trial)
        report = self.fit_one(trial, trained, loss=lambda x, y: self.loss(x, y, t))
        self.after_task(trial)
        return report

    def loss(self, x: Tensor, y: Tensor, task: int) -> Tensor:
        """What is minimised on a batch of the task."""
        return cross_entropy(self.library(x, task), y)

    def before_task(self, trial: Trial) -> None:
        """Called before training, with the path in place."""

    def after_task(self, trial: Trial) -> None:
        """Called after training, with the best weights in place."""
