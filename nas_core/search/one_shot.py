"""One super-network for a whole cell space: weight sharing, DARTS and Gumbel-softmax.

All three train the weights of `space.network()` once. They differ in how the operation of an edge
is chosen: uniformly at random, by a softmax over all operations at once, or by a relaxed sample.
The space has an operation on every edge (no "none").
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas_core.spaces.cells import Cell, CellSpace
from nas_core.supernet import SuperNetwork
from nas_core.training import TensorData, accuracy, descend, make_optimizer, train_epoch


class OneShot(NamedTuple):
    """What a one-shot search found."""

    cell: Cell
    probabilities: Tensor  # [epochs, E], for the graph view; 1 for stem and head


def differentiable_search(
    space: CellSpace, supernet: SuperNetwork, train: TensorData, *, epochs: int,
    kind: str = "darts", batch_size: int = 64, lr: float = 0.1, alpha_lr: float = 0.02,
    temperature: tuple[float, float] = (2.0, 0.3), seed: int = 0,
) -> OneShot:  # fmt: skip
    """First-order DARTS, or its Gumbel-softmax variant: α by Adam, weights by SGD, in turn.

    Half of `train` updates the weights, the other half α. At the end every edge keeps the
    operation with the largest α.

    Args:
        kind: "darts" mixes all operations by softmax(α); "gumbel" runs one sampled operation
            per edge, its gradient through the relaxed sample at a temperature that falls
            geometrically over the epochs.
    """
    if kind not in ("darts", "gumbel"):
        raise ValueError(f"kind {kind!r}; choose 'darts' or 'gumbel'")
    if (half := len(train) // 2) < batch_size:
        raise ValueError(f"{len(train)} examples; each half needs one batch of {batch_size}")
    groups = space.groups(supernet)  # [edges, ops]
    always = torch.ones(len(supernet.graph)).index_fill(0, groups.flatten(), 0)  # stem and head
    alpha = nn.Parameter(torch.zeros(groups.shape))
    parts = train.subset(range(half)), train.subset(range(half, len(train)))
    by_weights = make_optimizer(supernet.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)
    by_alpha = make_optimizer([alpha], "adam", lr=alpha_lr)
    noise, trace = torch.Generator().manual_seed(seed), []

    def edge_weights(tau: float) -> Tensor:
        """A weight per edge of the network, [E]; an edge of weight 0 is not computed."""
        if kind == "darts":
            return always.index_add(0, groups.flatten(), alpha.softmax(1).flatten())
        uniform = torch.rand(alpha.shape, generator=noise).clamp(1e-6, 1 - 1e-6)
        soft = ((alpha - (-uniform.log()).log()) / tau).softmax(1)
        drawn = soft.argmax(1, keepdim=True)
        hard = torch.zeros_like(soft).scatter(1, drawn, 1)
        # Only the one that was drawn runs (as in GDAS, Dong & Yang 2019): its value is 1, its
        # gradient that of the relaxed sample.
        chosen = (hard + soft - soft.detach()).gather(1, drawn)
        return always.index_add(0, groups.gather(1, drawn).flatten(), chosen.flatten())

    supernet.train()
    for epoch in range(epochs):
        tau = temperature[0] * (temperature[1] / temperature[0]) ** (epoch / max(1, epochs - 1))
        batches = [
            part.batches(batch_size, seed=seed, epoch=2 * epoch + n, drop_last=True)
            for n, part in enumerate(parts)
        ]
        for (x, y), (x_alpha, y_alpha) in zip(*batches, strict=True):
            loss = F.cross_entropy(supernet(x_alpha, weights=edge_weights(tau)), y_alpha)
            descend(loss, by_alpha, clear=[by_weights])
            loss = F.cross_entropy(supernet(x, weights=edge_weights(tau)), y)
            descend(loss, by_weights, clear=[by_alpha])
        p = alpha.detach().softmax(1).flatten()
        trace.append(always.index_copy(0, groups.flatten(), p))
    return OneShot(tuple(alpha.argmax(1).tolist()), torch.stack(trace))


def train_shared_weights(
    space: CellSpace, supernet: SuperNetwork, train: TensorData, *, epochs: int,
    batch_size: int = 32, lr: float = 0.1, seed: int = 0,
) -> None:  # fmt: skip
    """Single-path one-shot: every step trains one uniformly drawn cell, in place."""
    groups = space.groups(supernet)  # [edges, ops]
    generator = torch.Generator().manual_seed(seed)
    always = torch.ones(len(supernet.graph), dtype=torch.bool).index_fill(0, groups.flatten(), 0)
    optimizer = make_optimizer(supernet.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)
    steps = max(1, epochs * (len(train) // batch_size))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)

    def loss(x: Tensor, y: Tensor) -> Tensor:
        drawn = torch.randint(len(space.ops), (len(groups), 1), generator=generator)
        mask = always.index_fill(0, groups.gather(1, drawn).flatten(), 1)
        return F.cross_entropy(supernet(x, mask), y)

    supernet.train()
    for epoch in range(epochs):
        batches = train.batches(batch_size, seed=seed, epoch=epoch, drop_last=True)
        train_epoch(batches, loss, optimizer, schedule=schedule)


@torch.no_grad()
def shared_accuracies(
    space: CellSpace, supernet: SuperNetwork, cells: Iterable[Cell], train: TensorData,
    held_out: TensorData,
) -> list[float]:  # fmt: skip
    """Accuracy of each cell with the shared weights, its batch norm re-estimated on `train`."""
    calibration = list(train.batches(128, seed=0, shuffle=False))
    architectures = [space.architecture(supernet, cell) for cell in cells]
    return [accuracy(a.extract(supernet, calibration), held_out) for a in architectures]
