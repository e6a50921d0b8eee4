"""Experience replay: a small store of old examples that every step rehearses."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from nas_core.continual.fit import Trial
from nas_core.continual.learners.base import SharedPath
from nas_core.continual.library import tensor_bytes
from nas_core.training import derived_seeds


class Buffer:
    """Examples `x` (float32, as the network gets them), labels `y` and task numbers `task`."""

    def __init__(self) -> None:
        self.x = torch.empty(0)
        self.y = self.task = torch.empty(0, dtype=torch.int64)
        self.offered = 0  # examples that came by

    def __repr__(self) -> str:
        """Kind and size, which do not change with what is stored."""
        return f"{type(self).__name__}({vars(self).get('per_class', vars(self).get('size'))})"

    def __len__(self) -> int:
        return len(self.y)

    def offer(self, x: Tensor, y: Tensor, task: int, generator: torch.Generator) -> None:
        """Let the examples of a task (in random order) come by."""
        raise NotImplementedError

    def _append(self, x: Tensor, y: Tensor, task: int) -> None:
        tasks = torch.full_like(y, task)
        self.x = torch.cat([self.x, x]) if len(self) else x.clone()
        self.y = torch.cat([self.y.to(y), y])
        self.task = torch.cat([self.task.to(y), tasks])

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """`count` examples, uniformly without replacement; all when there are fewer."""
        rows = torch.randperm(len(self), generator=generator)[:count].to(self.y.device)
        return self.x[rows], self.y[rows], self.task[rows]


class Ring(Buffer):
    """The last `per_class` examples of every class of every task; it grows with the stream."""

    def __init__(self, per_class: int = 15):
        super().__init__()
        if per_class < 1:
            raise ValueError(f"per_class is {per_class}; it must be at least 1")
        self.per_class = per_class

    def offer(self, x: Tensor, y: Tensor, task: int, generator: torch.Generator) -> None:
        kept = [(y == c).nonzero().flatten()[-self.per_class :] for c in y.unique().tolist()]
        rows = torch.cat(kept)
        self._append(x[rows], y[rows], task)
        self.offered += len(y)


class Reservoir(Buffer):
    """A fixed number of places; after n examples each of them is kept with probability size/n."""

    def __init__(self, size: int):
        super().__init__()
        if size < 1:
            raise ValueError(f"size is {size}; it must be at least 1")
        self.size = size

    def offer(self, x: Tensor, y: Tensor, task: int, generator: torch.Generator) -> None:
        free = min(self.size - len(self), len(y))
        if free:
            self._append(x[:free], y[:free], task)
            self.offered += free
        left = len(y) - free
        if not left:
            return
        # Example number n (counted from 1) takes a random place out of n, if that is in the store.
        numbers = self.offered + 1 + torch.arange(left)
        place = (torch.rand(left, generator=generator, dtype=torch.float64) * numbers).long()
        taken = {int(p): i for i, p in enumerate(place.tolist()) if p < self.size}  # last one wins
        places = torch.tensor(list(taken), dtype=torch.int64, device=y.device)
        rows = free + torch.tensor(list(taken.values()), dtype=torch.int64, device=y.device)
        self.x[places], self.y[places], self.task[places] = x[rows], y[rows], task
        self.offered += left


@dataclass(eq=False, kw_only=True)
class ExperienceReplay(SharedPath):
    """Fine-tuning on every batch together with as many examples of the past.

    Args:
        buffer: `Ring(15)` is the thesis' "ER", `Reservoir(size)` its "ER (Reservoir)".
        task_heads: every task has its own head, and old examples go through theirs.
    """

    buffer: Buffer = field(default_factory=lambda: Ring())
    task_heads: bool = True
    name = "ER"

    def __post_init__(self) -> None:
        self.own = (-1,) if self.task_heads else ()
        super().__post_init__()
        self.name = "ER (reservoir)" if isinstance(self.buffer, Reservoir) else "ER"
        self._generator = torch.Generator()

    def before_task(self, trial: Trial) -> None:
        self._generator = torch.Generator().manual_seed(derived_seeds(trial.seed, 1)[0])

    def loss(self, x: Tensor, y: Tensor, task: int) -> Tensor:
        """Mean of the losses on the batch and on the examples drawn from the past."""
        if not len(self.buffer):
            return super().loss(x, y, task)
        old_x, old_y, old_task = self.buffer.draw(len(x), self._generator)
        h = torch.cat([x, old_x])  # together, so that batch norm sees both
        *trunk, head = self.library.path(task)
        for block in trunk:
            h = block(h)
        logits, old = head(h[: len(x)]), h[len(x) :]
        past = torch.zeros_like(old_y, dtype=h.dtype)
        for t in old_task.unique().tolist():
            rows = old_task == t
            head = self.library.path(t)[-1]
            past[rows] = cross_entropy(head(old[rows]), old_y[rows], reduction="none")
        return cross_entropy(logits, y) + past.mean()

    def after_task(self, trial: Trial) -> None:
        data = trial.task.train.plain()
        x, y = next(data.batches(len(data), seed=trial.seed))
        self.buffer.offer(x, y, trial.task.id, self._generator)

    def memory(self) -> dict[str, int]:
        return {**super().memory(), "replay": tensor_bytes([self.buffer.x])}

    def structure(self) -> dict[str, Any]:
        return {**super().structure(), "buffer": vars(self.buffer)}

    def rebuild(self, structure: dict[str, Any]) -> None:
        super().rebuild(structure)
        self.buffer.__dict__.update(structure["buffer"])
