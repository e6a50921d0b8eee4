"""Training on one task: Adam, early stopping in steps, multiply-adds measured, learning curve.

One loop serves all learners. It trains K *candidates* side by side: they share batches and one
backward pass but no trainable weight, so each one ends exactly where it would have ended alone.
Most learners have K = 1; MNTDP-D trains all its paths at once.
"""

from __future__ import annotations

import copy
import itertools
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from nas_core.continual.tasks import Task
from nas_core.training import TensorData, derived_seeds, one_thread


@dataclass(frozen=True)
class FitConfig:
    """How one task is trained (section 5.6.1); the defaults are the thesis' own."""

    lr: tuple[float, ...] = (1e-2, 1e-3)  # grid of learning rates of Adam
    weight_decay: tuple[float, ...] = (0.0, 1e-5, 1e-4)  # grid
    batch_size: int = 64
    max_steps: int = 10_000  # in case patience never runs out
    patience: int = 300  # steps without a better validation accuracy
    eval_every: int = 10  # steps between two looks at the validation set
    val_copies: int = 0  # augmented copies of every validation example (S^long: 4)
    processes: int = 1  # for the grid

    def __post_init__(self):
        if not self.lr or not self.weight_decay:
            raise ValueError("lr and weight_decay need at least one value each")
        for name in ("batch_size", "max_steps", "patience", "eval_every", "processes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.val_copies < 0:
            raise ValueError(f"val_copies is {self.val_copies}; it must be at least 0")

    def grid(self) -> list[tuple[float, float]]:
        """All (learning rate, weight decay) pairs."""
        return list(itertools.product(self.lr, self.weight_decay))


@dataclass
class FitReport:
    """What training on a task gave."""

    val_accuracy: float
    steps: int
    macs: int  # of training steps; looking at validation or test examples is not training
    lr: float = 0.0
    weight_decay: float = 0.0
    curve: list[float] = field(default_factory=list)  # test accuracy after 0, 1, … β batches
    choice: str = ""  # what the learner decided, in words
    details: dict[str, Any] = field(default_factory=dict)


class Meter:
    """Counts the multiply-adds of steps by measuring the first one of each kind.

    Forward *and* backward pass are counted, as PyTorch's FlopCounterMode sees them (its FLOPs are
    two per multiply-add), so a frozen trunk costs its forward pass only.
    """

    def __init__(self):
        self.macs = 0.0
        self._per_example: dict[Any, float] = {}

    def run(self, key: Any, examples: int, step: Callable[[], Any]) -> Any:
        """Run `step`, whose cost per example depends on `key` alone, and count it."""
        if key in self._per_example:
            out = step()
        else:
            with FlopCounterMode(display=False) as counter:
                out = step()
            self._per_example[key] = counter.get_total_flops() / 2 / examples
        self.macs += self._per_example[key] * examples
        return out


def accuracy(predict: Callable[[Tensor], Tensor], data: TensorData, batch_size: int = 512) -> float:
    """Share of examples whose largest logit is the right one."""
    right = 0
    with torch.no_grad():
        for x, y in data.batches(batch_size, seed=0, shuffle=False):
            right += int((predict(x).argmax(1) == y).sum())
    return right / len(data)


def validation_set(task: Task, copies: int, seed: int) -> TensorData:
    """The validation examples, and augmented copies of each for very small tasks."""
    plain = task.val.plain()
    if not copies or task.train.augment is None:
        return plain
    g = torch.Generator(plain.device).manual_seed(derived_seeds(seed, task.id, 7)[0])
    moved = [task.train.augment(plain.x, g) for _ in range(copies)]
    x = torch.cat([plain.x, *moved])
    return TensorData(x, plain.y.repeat(copies + 1), normalise=plain.normalise)


def training_batches(
    data: TensorData, batch_size: int, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches without end; a last partial batch is dropped unless it is the only one."""
    for epoch in itertools.count():
        yield from data.batches(
            batch_size, seed=seed, epoch=epoch, drop_last=len(data) >= batch_size
        )


def fit(
    candidates: Sequence[nn.Module],
    losses: Callable[[Tensor, Tensor, list[int]], list[Tensor]],
    accuracies: Callable[[list[int]], list[float]],
    task: Task,
    config: FitConfig,
    lr: float,
    weight_decay: float,
    *,
    seed: int,
    curves: Callable[[], list[float]] | None = None,
    beta: int = 5,
    before_step: Callable[[], None] | None = None,
    after_step: Callable[[], None] | None = None,
    batches: Iterator[tuple[Tensor, Tensor]] | None = None,
) -> list[FitReport]:
    """Train every candidate until its validation accuracy has not risen for `patience` steps.

    Args:
        candidates: the trainable modules of each; they must not share parameters.
        losses: `(x, y, active)` → one scalar loss per active candidate.
        accuracies: active candidates → validation accuracy of each.
        curves: test accuracy of each candidate; called after 0, 1, … `beta` batches.
        before_step, after_step: called just before and just after the optimiser's update.
        batches: default are those of the training split.

    Returns:
        One report per candidate; each candidate is left in its best state and in eval mode.
    """
    meter = Meter()
    groups = [{"params": list(c.parameters())} for c in candidates]
    optimiser = torch.optim.Adam(groups, lr=lr, weight_decay=weight_decay, fused=True)
    if batches is None:
        batches = training_batches(task.train, config.batch_size, seed)
    count = len(candidates)
    best = [-1.0] * count
    best_step = [0] * count
    best_state: list[dict] = [{} for _ in candidates]
    points: list[list[float]] = [[] for _ in candidates]
    active = list(range(count))

    def look(step: int) -> None:
        for c in active:
            candidates[c].eval()
        for c, value in zip(active, accuracies(active), strict=True):
            if value > best[c]:
                best[c], best_step[c] = value, step
                best_state[c] = copy.deepcopy(candidates[c].state_dict())

    def record_curve() -> None:
        if curves is not None:
            for c in candidates:
                c.eval()
            for own, value in zip(points, curves(), strict=True):
                own.append(value)

    look(0)
    record_curve()
    step = 0
    while active and step < config.max_steps:
        step += 1
        x, y = next(batches)
        for c in active:
            candidates[c].train()

        def forward_backward(x=x, y=y, now=tuple(active)) -> Tensor:
            total = torch.stack(losses(x, y, list(now))).sum()
            total.backward()
            return total.detach()

        optimiser.zero_grad(set_to_none=True)  # candidates that have stopped keep no gradient
        total = meter.run(tuple(active), len(x), forward_backward)
        if before_step is not None:
            before_step()
        optimiser.step()
        if after_step is not None:
            after_step()
        if step <= beta:
            record_curve()
        if step % config.eval_every == 0 or step == config.max_steps:
            if not torch.isfinite(total):
                raise FloatingPointError(
                    f"the loss became {total.item()} at step {step} of {task.name} with lr {lr:g}; "
                    "take smaller learning rates into the grid"
                )
            look(step)
            active = [c for c in active if step - best_step[c] < config.patience]
    for c, module in enumerate(candidates):
        module.load_state_dict(best_state[c])
        module.eval()
        points[c] += points[c][-1:] * (beta + 1 - len(points[c]))
    return [
        FitReport(best[c], step, round(meter.macs), lr, weight_decay, points[c])
        for c in range(count)
    ]


def sweep(run: Callable[[Any], Any], trials: Sequence[Any], processes: int = 1) -> list[Any]:
    """`run(trial)` for every trial, in order, in this process or in several of one thread each."""
    if processes == 1 or len(trials) == 1:
        return [run(trial) for trial in trials]
    context = multiprocessing.get_context("spawn")
    workers = min(processes, len(trials))
    with ProcessPoolExecutor(workers, mp_context=context, initializer=one_thread) as pool:
        return list(pool.map(run, trials))
