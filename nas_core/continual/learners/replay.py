"""Experience replay: a small store of old examples that every step rehearses."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from nas_core.continual.backbones import Backbone
from nas_core.continual.fit import FitConfig
from nas_core.continual.learners.base import SharedPath
from nas_core.continual.library import tensor_bytes
from nas_core.continual.tasks import Task
from nas_core.training import derived_seeds


class Buffer:
    """Examples `x` (float32, as the network gets them), labels `y` and task numbers `task`."""

    def __init__(self) -> None:
        self.x = torch.empty(0)
        self.y = self.task = torch.empty(0, dtype=torch.int64)
        self.offered = 0  # examples that came by

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


class ExperienceReplay(SharedPath):
    """Fine-tuning on every batch together with as many examples of the past.

    Args:
        buffer: `Ring(15)` is the thesis' "ER", `Reservoir(size)` its "ER (Reservoir)".
        task_heads: every task has its own head, and old examples go through theirs.
    """

    def __init__(
        self, backbone: Backbone, config: FitConfig | None = None, *, seed: int = 0,
        buffer: Buffer | None = None, task_heads: bool = True,
    ):  # fmt: skip
        super().__init__(backbone, config, seed=seed, own=(-1,) if task_heads else ())
        self.buffer = Ring() if buffer is None else buffer
        self.name = "ER (reservoir)" if isinstance(self.buffer, Reservoir) else "ER"
        self._generator = torch.Generator()

    def before_task(self, task: Task, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(derived_seeds(seed, 1)[0])

    def loss(self, x: Tensor, y: Tensor, task: Task) -> Tensor:
        """Mean of the losses on the batch and on the examples drawn from the past."""
        if not len(self.buffer):
            return super().loss(x, y, task)
        old_x, old_y, old_task = self.buffer.draw(len(x), self._generator)
        h = torch.cat([x, old_x])  # together, so that batch norm sees both
        *trunk, head = self.library.path(task.id)
        for block in trunk:
            h = block(h)
        logits = head(h[: len(x)])
        old = h[len(x) :]
        past = torch.zeros_like(old_y, dtype=h.dtype)
        for t in old_task.unique().tolist():
            rows = old_task == t
            past[rows] = cross_entropy(
                self.library.path(t)[-1](old[rows]), old_y[rows], reduction="none"
            )
        return cross_entropy(logits, y) + past.mean()

    def after_task(self, task: Task, seed: int) -> None:
        data = task.train.plain()
        x, y = next(data.batches(len(data), seed=seed))
        self.buffer.offer(x, y, task.id, self._generator)

    def memory(self) -> dict[str, int]:
        return {**super().memory(), "replay": tensor_bytes([self.buffer.x])}

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "buffer": vars(self.buffer)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.buffer.__dict__.update(state["buffer"])
