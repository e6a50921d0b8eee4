"""The frozen trunk of a search space, and the prior: whose features suit the new task?"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nas_core.continual.library import Library
from nas_core.continual.tasks import Task
from nas_core.training import TensorData

Prefix = tuple[int, ...]  # owners of the first modules of a path


class Trunk:
    """The frozen part of a search space: every prefix is evaluated once and shared."""

    def __init__(self, library: Library, prefixes: Sequence[Prefix]):
        self.library = library
        needed = {p[:n] for p in prefixes for n in range(1, len(p) + 1)}
        self.order = sorted(needed, key=lambda p: (len(p), p))
        self.wanted = set(prefixes)

    def __call__(self, x: Tensor) -> dict[Prefix, Tensor]:
        """Output of every wanted prefix; the empty prefix gives `x` itself."""
        out: dict[Prefix, Tensor] = {(): x}
        with torch.no_grad():
            for prefix in self.order:
                module = self.library.module(len(prefix) - 1, prefix[-1])
                out[prefix] = module(out[prefix[:-1]])
        return {p: out[p] for p in self.wanted}

    def of_all(self, data: TensorData, limit: int) -> dict[Prefix, Tensor] | None:
        """The outputs for all of `data`, or None when they take more than `limit` bytes."""
        parts: list[dict[Prefix, Tensor]] = []
        for x, _ in data.batches(256, seed=0, shuffle=False):
            parts.append(self(x))
            size = sum(t.numel() * 4 for t in parts[0].values()) / len(x) * len(data)
            if size > limit:
                return None
        return {p: torch.cat([part[p] for part in parts]) for p in self.wanted}


def rank_past(
    library: Library, task: Task, *, neighbours: int = 5, leave_one_out: bool = False
) -> list[tuple[int, float]]:
    """The data-driven prior: past tasks by k-NN accuracy on the new task's data in their features.

    Args:
        leave_one_out: over training and validation examples together; default is training
            examples as neighbours of validation examples.

    Returns:
        `(past task, accuracy)`, best first; of equals the latest first.
    """
    trunks: dict[Prefix, float] = {}
    from sklearn.neighbors import KNeighborsClassifier

    trunk = Trunk(library, [p[:-1] for p in library.paths])
    train, val = task.train.plain(), task.val.plain()
    features = []
    head = library.path(0)[-1]
    for data in (train, val):
        parts = []
        for x, _ in data.batches(256, seed=0, shuffle=False):
            parts.append({p: head.embed(h).cpu() for p, h in trunk(x).items()})
        features.append({p: torch.cat([part[p] for part in parts]) for p in parts[0]})
    y_train, y_val = train.y.cpu().numpy(), val.y.cpu().numpy()
    for p in features[0]:
        a, b = features[0][p].numpy(), features[1][p].numpy()
        if leave_one_out:
            x, y = torch.cat([features[0][p], features[1][p]]), torch.cat([train.y, val.y]).cpu()
            near = KNeighborsClassifier(min(neighbours, len(x) - 1)).fit(x.numpy(), y.numpy())
            votes = y[torch.as_tensor(near.kneighbors(return_distance=False))]
            trunks[p] = float((votes.mode(1).values == y).float().mean())
        else:
            near = KNeighborsClassifier(min(neighbours, len(a))).fit(a, y_train)
            trunks[p] = float(near.score(b, y_val))
    scored = [(t, trunks[path[:-1]]) for t, path in enumerate(library.paths)]
    return sorted(scored, key=lambda pair: (-pair[1], -pair[0]))
