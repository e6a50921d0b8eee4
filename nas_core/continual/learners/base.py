"""The interface of all learners, and the family that shares one path of modules."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from nas_core.continual.backbones import Backbone
from nas_core.continual.fit import FitConfig, FitReport, accuracy, fit, sweep, validation_set
from nas_core.continual.library import Library, tensor_bytes
from nas_core.continual.tasks import Task
from nas_core.training import derived_seeds


class Learner:
    """Learns tasks one after the other: `learn(task)`, then `predict(x, task_id)`.

    Args:
        backbone: recipe of the network.
        config: of the training on each task; its grid is searched per task, on the task's
            validation set.
        seed: of weights and batches.
    """

    name = "learner"

    def __init__(self, backbone: Backbone, config: FitConfig | None = None, *, seed: int = 0):
        self.backbone, self.config, self.seed = backbone, config or FitConfig(), seed
        self.seen = 0
        self.device: torch.device | str = "cpu"

    # ---- what a new learner writes

    def learn_once(self, task: Task, lr: float, weight_decay: float, beta: int | None) -> FitReport:
        """Learn the next task with these hyper-parameters; `beta` asks for a learning curve."""
        raise NotImplementedError

    def predict(self, x: Tensor, task_id: int) -> Tensor:
        """Logits `[B, classes]`."""
        raise NotImplementedError

    def memory(self) -> dict[str, int]:
        """Bytes that must be kept to go on learning, by kind.

        "parameters", "fisher", "replay", … make up the "Mem." of the thesis; "statistics" are
        the running means and variances of batch norm.
        """
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors; learners add what they keep."""
        return {"learner": self.name, "backbone": self.backbone.name, "seen": self.seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state of the same learner on the same backbone; learners take their part.

        Raises:
            ValueError: for the state of another learner or backbone.
        """
        found = state.get("learner", "no learner"), state.get("backbone", "no backbone")
        if found != (self.name, self.backbone.name):
            raise ValueError(
                f"this is the state of {found[0]} on {found[1]}, "
                f"not of {self.name} on {self.backbone.name}"
            )
        self.seen = state["seen"]

    # ---- what they all share

    def learn(self, task: Task, *, beta: int | None = None) -> FitReport:
        """Learn the next task of a stream; of the grid's trials the best on validation is kept.

        Args:
            beta: also record test accuracy after 0…beta batches (for LCA@beta).
        """
        if task.id != self.seen:
            raise ValueError(f"task {task.id} came, but task {self.seen} is next: tasks in order")
        if task.input_shape != self.backbone.input_shape:
            raise ValueError(
                f"{task.name} has inputs {task.input_shape}, "
                f"{self.backbone.name} wants {self.backbone.input_shape}"
            )
        grid = self.config.grid()
        self.device = task.train.device
        trials = [_Trial(self, task, lr, decay, beta) for lr, decay in grid]
        done = sweep(_run_trial, trials, self.config.processes)
        best, report = max(done, key=lambda pair: pair[1].val_accuracy)
        self.__dict__ = best.__dict__
        self.seen += 1
        report.macs = sum(r.macs for _, r in done)  # the search for hyper-parameters is training
        return report

    def total_memory(self, *, statistics: bool = False) -> int:
        """Bytes to keep; batch-norm statistics count only if asked for."""
        return sum(b for kind, b in self.memory().items() if statistics or kind != "statistics")

    def seed_for(self, task: Task) -> int:
        """Seed of everything random on this task; also seeds PyTorch for new weights."""
        seed = derived_seeds(self.seed, task.id)[0]
        torch.manual_seed(seed)
        return seed


class _Trial:
    def __init__(self, learner: Learner, task: Task, lr: float, decay: float, beta: int | None):
        self.learner, self.task, self.lr, self.decay, self.beta = learner, task, lr, decay, beta


def _run_trial(trial: _Trial) -> tuple[Learner, FitReport]:
    learner = copy.deepcopy(trial.learner)
    return learner, learner.learn_once(trial.task, trial.lr, trial.decay, trial.beta)


class LibraryLearner(Learner):
    """A learner whose predictors are paths in a `Library`."""

    def __init__(self, backbone: Backbone, config: FitConfig | None = None, *, seed: int = 0):
        super().__init__(backbone, config, seed=seed)
        self.library = Library(backbone)

    def predict(self, x: Tensor, task_id: int) -> Tensor:
        self.library.eval()
        with torch.no_grad():
            return self.library(x, task_id)

    def memory(self) -> dict[str, int]:
        return {
            "parameters": tensor_bytes(self.library.parameters()),
            "statistics": tensor_bytes(self.library.buffers()),
        }

    def state_dict(self) -> dict[str, Any]:
        library = {"structure": self.library.structure(), "weights": self.library.state_dict()}
        return {**super().state_dict(), **library}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.library.rebuild(state["structure"])
        self.library.load_state_dict(state["weights"])
        self.library.eval()


class SharedPath(LibraryLearner):
    """One path for all tasks but for the layers that each task owns.

    Args:
        own: numbers of the layers that every task gets anew (−1 is the head); "all" for all.
        freeze: shared modules stay as the first task left them, batch-norm statistics included.
    """

    def __init__(
        self, backbone: Backbone, config: FitConfig | None = None, *, seed: int = 0,
        own: tuple[int, ...] | str = (), freeze: bool = False,
    ):  # fmt: skip
        super().__init__(backbone, config, seed=seed)
        layers = range(len(backbone))
        self.own = set(layers) if isinstance(own, str) else {layers[i] for i in own}
        self.freeze = freeze

    def learn_once(self, task: Task, lr: float, weight_decay: float, beta: int | None) -> FitReport:
        t, seed = task.id, self.seed_for(task)
        path = [t if layer in self.own else 0 for layer in range(len(self.backbone))]
        new = self.library.grow(path, task.way)
        self.library.to(self.device)
        train = new if self.freeze else self.library.path(t)
        self.before_task(task, seed)
        report = self.fit_path(nn.ModuleList(train), task, lr, weight_decay, beta, seed)
        self.after_task(task, seed)
        return report

    def fit_path(
        self, trained: nn.Module, task: Task, lr: float, weight_decay: float, beta: int | None,
        seed: int,
    ) -> FitReport:  # fmt: skip
        """Train `trained`, modules of the task's path; the rest of it stays in eval mode."""
        val = validation_set(task, self.config.val_copies, seed)
        self.library.eval()

        def net(x: Tensor) -> Tensor:
            return self.library(x, task.id)

        frozen = set(self.library.parameters()) - set(trained.parameters())
        for p in frozen:
            p.requires_grad_(False)
        (report,) = fit(
            [trained],
            lambda x, y, active: [self.loss(x, y, task)],
            lambda active: [accuracy(net, val)],
            task, self.config, lr, weight_decay, seed=seed, beta=beta or 0,
            curves=None if beta is None else lambda: [accuracy(net, task.test)],
        )  # fmt: skip
        for p in frozen:
            p.requires_grad_(True)
        return report

    def loss(self, x: Tensor, y: Tensor, task: Task) -> Tensor:
        """What is minimised on a batch of the task."""
        return nn.functional.cross_entropy(self.library(x, task.id), y)

    def before_task(self, task: Task, seed: int) -> None:
        """Called before training, with the path in place."""

    def after_task(self, task: Task, seed: int) -> None:
        """Called after training, with the best weights in place."""


class Independent(SharedPath):
    """A new predictor for every task."""

    name = "Independent"

    def __init__(self, backbone: Backbone, config: FitConfig | None = None, *, seed: int = 0):
        super().__init__(backbone, config, seed=seed, own="all")


class Finetune(SharedPath):
    """One predictor, head included, trained on and on."""

    name = "Finetune"


class NewHead(SharedPath):
    """A shared trunk and a head per task; the trunk is frozen after the first task or not."""

    def __init__(
        self, backbone: Backbone, config: FitConfig | None = None, *, seed: int = 0,
        freeze: bool = True,
    ):  # fmt: skip
        super().__init__(backbone, config, seed=seed, own=(-1,), freeze=freeze)
        self.name = f"New-head {'freeze' if freeze else 'finetune'}"


class NewLeg(SharedPath):
    """A first layer per task, all else shared; frozen after the first task or not."""

    def __init__(
        self, backbone: Backbone, config: FitConfig | None = None, *, seed: int = 0,
        freeze: bool = True,
    ):  # fmt: skip
        super().__init__(backbone, config, seed=seed, own=(0,), freeze=freeze)
        self.name = f"New-leg {'freeze' if freeze else 'finetune'}"
