"""The interface of all learners."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from nas_core.continual.backbones import Backbone
from nas_core.continual.fit import Diverged, FitConfig, FitReport, Trial, fit
from nas_core.continual.library import Library, tensor_bytes
from nas_core.continual.streams import Task
from nas_core.search.sweeps import map_trials
from nas_core.training import accuracy, derived_seeds


@dataclass(eq=False)
class Learner:
    """Learns tasks one after the other: `learn(task)`, then `predict(x, task_id)`.

    A new learner writes `new_net` and `learn_once`. Its module `net` keeps what it has learnt:
    `net(x, task)` gives the logits `[B, classes]` of a task, `net.structure()` everything but the
    weights as plain values, and `net.rebuild(structure)` makes those modules in a new `net`.
    Options are dataclass fields.
    """

    backbone: Backbone  # recipe of the network
    config: FitConfig = field(default_factory=FitConfig)  # its grid is searched on every task
    seed: int = field(default=0, kw_only=True)  # of weights and batches
    name = "learner"
    kept: ClassVar[tuple[str, ...]] = ()  # attributes that are saved beside `net`

    def __post_init__(self) -> None:
        self.seen = 0  # tasks learnt
        self.device: torch.device | str = "cpu"
        self.net: Any = self.new_net()

    def new_net(self) -> nn.Module:
        """`net` before the first task."""
        raise NotImplementedError

    def learn_once(self, trial: Trial) -> FitReport:
        """Learn the next task with the hyper-parameters of the trial."""
        raise NotImplementedError

    # ---- what all learners share

    def learn(self, task: Task, *, beta: int | None = None) -> FitReport:
        """Learn the next task of a stream; of the grid's trials the best on validation is kept.

        Trials that diverge are listed in `report.details["diverged"]`; `FloatingPointError` is
        raised when all of them do. With `beta`, test accuracy after 0…beta batches is recorded too.
        """
        if task.id != self.seen:
            raise ValueError(f"task {task.id} came, but task {self.seen} is next: tasks in order")
        if task.input_shape != self.backbone.input_shape:
            raise ValueError(
                f"{task.name} has inputs {task.input_shape}, "
                f"{self.backbone.name} wants {self.backbone.input_shape}"
            )
        self.device = task.train.device
        done = map_trials(partial(_attempt, self), self.trials(task, beta), self.config.processes)
        lost = [report for learner, report in done if learner is None]
        best, report = max(done, key=lambda pair: pair[1].val_accuracy)  # −1 where it diverged
        if best is None:
            raise FloatingPointError(lost[-1].choice)
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
        self, trial: Trial, trained: Iterable[nn.Module],
        loss: Callable[[Tensor, Tensor], Tensor] | None = None, **hooks: Any,
    ) -> FitReport:  # fmt: skip
        """Train some modules of `net`; all others stay as they are, batch-norm statistics too.

        Args:
            loss: `(x, y)` → scalar; default is the cross-entropy of the task's logits.
            hooks: `before_step`, `after_step` and `latest` of `fit`.
        """
        self.net.to(self.device).eval().requires_grad_(False)
        parts = nn.ModuleList(trained).requires_grad_(True)
        logits = partial(self.net, task=trial.task.id)
        loss = loss or (lambda x, y: cross_entropy(logits(x), y))
        losses, scores = lambda x, y, _: [loss(x, y)], lambda data, _: [accuracy(logits, data)]
        return fit([parts], losses, scores, trial, self.config, **hooks)[0]

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
        options = {f.name: plain(getattr(self, f.name)) for f in fields(self) if f.name not in own}
        return {"learner": self.name, "backbone": b.name, "inputs": list(b.input_shape),
                "modules": b.params, **options}  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors."""
        structure = self.net.structure() | {name: getattr(self, name) for name in self.kept}
        return {"identity": self.identity(), "seen": self.seen,
                "structure": structure, "weights": self.net.state_dict()}  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state of a learner with the same backbone and options."""
        refuse_difference("this state", state.get("identity", {}), self.identity())
        self.seen, self.net = state["seen"], self.new_net()
        self.net.rebuild(state["structure"])
        self.net.load_state_dict(state["weights"])
        self.net.eval()
        for name in self.kept:
            setattr(self, name, copy.copy(state["structure"][name]))


def refuse_difference(what: str, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raise a `ValueError` that names every entry in which the two differ, with both values."""
    names = [k for k in {**wanted, **found} if found.get(k) != wanted.get(k)]
    if names:
        each = [f"{k} is {found.get(k, 'missing')}, not {wanted.get(k, 'known')}" for k in names]
        raise ValueError(f"{what} was made with other settings: " + "; ".join(each))


def plain(value: Any) -> Any:
    """Tuples as lists, and a `repr` of everything that is not a plain value."""
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
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

    def new_net(self) -> Library:
        return Library(self.backbone)

    @property
    def library(self) -> Library:
        return self.net
