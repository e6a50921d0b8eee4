"""Training on one task: Adam, early stopping in steps, multiply-adds measured, learning curve.

One loop serves all learners. It trains K *candidates* side by side: they share batches and one
backward pass but no trainable weight, so each one ends exactly where it would have ended alone.
Most learners have K = 1; MNTDP-D trains all its paths at once.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from nas_core.continual.streams import Task, standard_augmentation
from nas_core.training import EarlyStopping, TensorData, derived_seeds, descend, make_optimizer

Batches = Iterator[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class FitConfig:
    """How one task is trained (section 5.6.1); the defaults are the thesis' own."""

    lr: tuple[float, ...] = (1e-2, 1e-3)  # grid of learning rates of Adam
    weight_decay: tuple[float, ...] = (0.0, 1e-5, 1e-4)  # grid
    batch_size: int = 64
    max_steps: int = 10_000  # in case patience never runs out
    patience: int = 300  # steps without a better validation accuracy
    eval_every: int = 10  # steps between two measurements on the validation set
    val_copies: int = 0  # augmented copies of every validation example (S^long: 4)
    processes: int = 1  # for the grid

    def __post_init__(self) -> None:
        if min(self.lr, default=0) <= 0 or min(self.weight_decay, default=-1) < 0:
            given = f"lr is {self.lr} and weight_decay {self.weight_decay}"
            raise ValueError(f"{given}; give values of lr above 0, of weight_decay at least 0")
        positive = ("batch_size", "max_steps", "patience", "eval_every", "processes")
        for name, least in {**dict.fromkeys(positive, 1), "val_copies": 0}.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}")


@dataclass(frozen=True)
class Trial:
    """One point of the grid on one task: all that one training needs to know."""

    task: Task
    seed: int  # of new weights and of batches
    lr: float
    weight_decay: float
    beta: int | None = None  # record test accuracy after 0…beta batches; None: do not
    gamma_lr: float | None = None  # learning rate of Γ, for MNTDP-S
    max_steps: int | None = None  # in the place of the configuration's


@dataclass
class FitReport:
    """What training on a task gave."""

    val_accuracy: float
    steps: int
    macs: int  # of training steps; measuring on validation or test examples is not training
    lr: float = 0.0
    weight_decay: float = 0.0
    curve: list[float] = field(default_factory=list)  # test accuracy after 0, 1, … β batches
    choice: str = ""  # what the learner decided, in words
    details: dict[str, Any] = field(default_factory=dict)  # plain values, kept by `StreamRun`


class Diverged(FloatingPointError):
    """The loss of every candidate became infinite or not a number; `macs` were spent on it."""

    macs = 0


class Meter:
    """Counts the multiply-adds of steps by measuring the first one of each kind.

    Forward *and* backward pass are counted, as PyTorch's FlopCounterMode does (its FLOPs are two
    per multiply-add), so a frozen trunk costs its forward pass only.
    """

    def __init__(self) -> None:
        self.macs = 0.0
        self._per_example: dict[Any, float] = {}

    @contextmanager
    def step(self, kind: Any, examples: int) -> Iterator[None]:
        """Count what runs inside; its cost per example depends on `kind` alone."""
        if kind in self._per_example:
            yield
        else:
            with FlopCounterMode(display=False) as counter:
                yield
            self._per_example[kind] = counter.get_total_flops() / 2 / examples
        self.macs += self._per_example[kind] * examples


def validation_set(task: Task, copies: int, seed: int) -> TensorData:
    """The validation examples, and cropped and mirrored copies of each for very small tasks."""
    plain = task.val.plain()
    if not copies:
        return plain
    if task.spec.pixels is not None:
        raise ValueError(f"{task.name} has permuted pixels, which no crop keeps; set val_copies=0")
    augment = standard_augmentation(plain.x.shape[-1])
    g = torch.Generator(plain.device).manual_seed(derived_seeds(seed, task.id, 7)[0])
    x = torch.cat([plain.x, *(augment(plain.x, g) for _ in range(copies))])
    return TensorData(x, plain.y.repeat(copies + 1), normalise=plain.normalise)


def training_batches(data: TensorData, batch_size: int, seed: int) -> Batches:
    """Batches without end; a last partial batch is dropped unless it is the only one."""
    drop = len(data) >= batch_size
    for epoch in itertools.count():
        yield from data.batches(batch_size, seed=seed, epoch=epoch, drop_last=drop)


def fit(
    candidates: Sequence[nn.Module],
    losses: Callable[[Tensor, Tensor, Sequence[int]], list[Tensor]],
    scores: Callable[[TensorData, Sequence[int]], list[float]],
    trial: Trial, config: FitConfig, *, batches: Batches | None = None,
    before_step: Callable[[], None] | None = None, after_step: Callable[[], None] | None = None,
    latest: bool = False,
) -> list[FitReport]:  # fmt: skip
    """Train every candidate until its validation accuracy has not risen for `patience` steps.

    Each candidate is left in its best state and in eval mode. One whose loss is not finite stops
    at once, with a validation accuracy of −1; `Diverged` is raised when no candidate is left.
    Candidates share no parameters. `losses(x, y, active)` gives a scalar loss per active candidate,
    `scores(data, which)` the accuracy of each. `before_step` and `after_step` frame the optimizer's
    update. With `latest` the last of equally accurate states is kept, and not the first.
    """
    task, count, meter = trial.task, len(candidates), Meter()
    groups = [{"params": list(c.parameters())} for c in candidates]
    optimizer = make_optimizer(groups, "adam", lr=trial.lr, weight_decay=trial.weight_decay)
    batches = batches or training_batches(task.train, config.batch_size, trial.seed)
    val = validation_set(task, config.val_copies, trial.seed)
    watches = [EarlyStopping(config.patience) for _ in candidates]
    best_state: list[dict] = [{} for _ in candidates]
    curves: list[list[float]] = [[] for _ in candidates]
    active, diverged = list(range(count)), set()
    step, last = 0, trial.max_steps or config.max_steps
    while True:
        looking = bool(active) and (step % config.eval_every == 0 or step == last)
        early = trial.beta is not None and step <= trial.beta
        if looking or early:
            for candidate in candidates:
                candidate.eval()
        if looking:
            for c, value in zip(active, scores(val, active), strict=True):
                if watches[c].update(value, step) or (latest and value == watches[c].best):
                    best_state[c] = copy.deepcopy(candidates[c].state_dict())
            active = [c for c in active if not watches[c].is_over(step)]
        if early:
            for curve, value in zip(curves, scores(task.test, range(count)), strict=True):
                curve.append(value)
        if not active or step >= last:
            break
        step += 1
        x, y = next(batches)
        for c in active:
            candidates[c].train()
        with meter.step(tuple(active), len(x)):
            each = torch.stack(losses(x, y, active))  # [active]
            # No weight is shared, so each candidate gets the gradient of its own loss.
            descend(each.sum(), optimizer, before_step=before_step)
        if after_step is not None:
            after_step()
        # Only where validation accuracy is measured anyway: reading a loss waits for the device.
        if step % config.eval_every == 0 or step == last:
            finite = each.isfinite().tolist()
            diverged |= {c for c, ok in zip(active, finite, strict=True) if not ok}
            active = [c for c in active if c not in diverged]
    if len(diverged) == count:
        where = f"at step {step} of {task.name} with lr {trial.lr:g}"
        error = Diverged(f"the loss is not finite {where}; take smaller learning rates")
        error.macs = round(meter.macs)
        raise error
    reports = []
    for c, (module, watch, curve) in enumerate(zip(candidates, watches, curves, strict=True)):
        module.load_state_dict(best_state[c])
        curve += curve[-1:] * ((trial.beta or 0) + 1 - len(curve))
        best = -1.0 if c in diverged or watch.best is None else watch.best
        spent = (step, round(meter.macs), trial.lr, trial.weight_decay)
        reports.append(FitReport(best, *spent, curve))
    return reports
