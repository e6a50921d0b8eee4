"""One super-network for a whole cell space: weight sharing, DARTS and Gumbel-softmax.

All three train the weights of `cell_network` once. They differ in how the operation of an edge is
chosen: uniformly at random, by a softmax over all operations at once, or by a relaxed sample.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas_core.spaces.cells import EDGES, OPS, Cell, cell_mask
from nas_core.supernet import SuperNetwork, recalibrate_batch_norm
from nas_core.training import TensorData


def edge_groups(supernet: SuperNetwork, ops: Sequence[int]) -> Tensor:
    """Numbers of the super-network's edges, int64 `[6, len(ops)]`: a row per edge of the cell."""
    index = supernet.graph.index
    return torch.tensor([[index(f"{i}→{j} {OPS[op]}") for op in ops] for i, j in EDGES])


class OneShot(NamedTuple):
    """What a one-shot search found."""

    cell: Cell
    probabilities: Tensor  # [epochs, E], for the graph view; 1 for stem and head


def differentiable_search(
    supernet: SuperNetwork,
    train: TensorData,
    *,
    ops: Sequence[int],
    epochs: int,
    kind: str = "darts",
    batch_size: int = 64,
    lr: float = 0.1,
    alpha_lr: float = 0.02,
    temperature: tuple[float, float] = (2.0, 0.3),
    seed: int = 0,
) -> OneShot:
    """First-order DARTS, or its Gumbel-softmax variant: α by Adam, weights by SGD, in turn.

    Half of `train` moves the weights, the other half α. At the end every edge keeps the
    operation with the largest α.

    Args:
        kind: "darts" mixes all operations by softmax(α); "gumbel" runs one sampled operation
            per edge, its gradient through the relaxed sample at a temperature that falls
            geometrically over the epochs.
    """
    if kind not in ("darts", "gumbel"):
        raise ValueError(f"kind {kind!r}; choose 'darts' or 'gumbel'")
    groups = edge_groups(supernet, ops)
    alpha = nn.Parameter(torch.zeros(groups.shape))
    noise = torch.Generator().manual_seed(seed)
    half = len(train) // 2
    parts = train.subset(range(half)), train.subset(range(half, len(train)))
    by_weights = torch.optim.SGD(supernet.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)
    by_alpha = torch.optim.Adam([alpha], lr=alpha_lr, fused=True)
    always = torch.ones(len(supernet.graph)).index_fill(0, groups.flatten(), 0)
    trace = []

    def edge_weights(tau: float) -> Tensor:
        if kind == "darts":
            chosen = alpha.softmax(1)
        else:
            uniform = torch.rand(alpha.shape, generator=noise).clamp(1e-6, 1 - 1e-6)
            soft = ((alpha - (-uniform.log()).log()) / tau).softmax(1)
            hard = F.one_hot(soft.argmax(1), len(ops)).to(soft.dtype)
            chosen = hard + soft - soft.detach()  # value of the one, gradient of the other
        return always.index_add(0, groups.flatten(), chosen.flatten())

    supernet.train()
    for epoch in range(epochs):
        tau = temperature[0] * (temperature[1] / temperature[0]) ** (epoch / max(1, epochs - 1))
        batches = [
            part.batches(batch_size, seed=seed, epoch=2 * epoch + n, drop_last=True)
            for n, part in enumerate(parts)
        ]
        for (x, y), (x_alpha, y_alpha) in zip(*batches, strict=True):
            for optimiser, a, b in ((by_alpha, x_alpha, y_alpha), (by_weights, x, y)):
                loss = F.cross_entropy(_run(supernet, a, edge_weights(tau), kind, groups), b)
                supernet.zero_grad(set_to_none=True)
                by_alpha.zero_grad(set_to_none=True)
                loss.backward()
                optimiser.step()
        p = alpha.detach().softmax(1).flatten()
        trace.append(always.index_copy(0, groups.flatten(), p))
    cell = tuple(ops[n] for n in alpha.argmax(1).tolist())
    return OneShot(cell, torch.stack(trace))


def _run(supernet: SuperNetwork, x: Tensor, weights: Tensor, kind: str, groups: Tensor) -> Tensor:
    if kind == "gumbel":
        # Only the drawn operation runs (as in GDAS, Dong & Yang 2019); its weight, 1, carries the
        # gradient of the relaxed sample to every α of its edge.
        drawn = torch.ones_like(weights).index_fill(0, groups.flatten(), 0)
        keep = weights.detach().index_select(0, groups.flatten()).view(groups.shape).argmax(1)
        drawn[groups.gather(1, keep[:, None]).flatten()] = 1
        weights = weights * drawn
    return supernet(x, weights=weights)


def train_shared_weights(
    supernet: SuperNetwork,
    train: TensorData,
    *,
    ops: Sequence[int],
    epochs: int,
    batch_size: int = 32,
    lr: float = 0.1,
    seed: int = 0,
) -> None:
    """Single-path one-shot: every step trains one uniformly drawn cell, in place."""
    groups = edge_groups(supernet, ops)
    generator = torch.Generator().manual_seed(seed)
    fixed = torch.ones(len(supernet.graph), dtype=torch.bool)
    fixed[groups.flatten()] = False
    stem_and_head = fixed & torch.tensor([e.kind in ("stem", "head") for e in supernet.graph.edges])
    optimiser = torch.optim.SGD(supernet.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)
    steps = epochs * (len(train) // batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    supernet.train()
    for epoch in range(epochs):
        for x, y in train.batches(batch_size, seed=seed, epoch=epoch, drop_last=True):
            drawn = torch.randint(len(ops), (len(EDGES), 1), generator=generator)
            mask = stem_and_head.clone()
            mask[groups.gather(1, drawn).flatten()] = True
            loss = F.cross_entropy(supernet(x, mask), y)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            schedule.step()


@torch.no_grad()
def shared_accuracies(
    supernet: SuperNetwork, cells: Iterable[Cell], train: TensorData, held_out: TensorData
) -> list[float]:
    """Accuracy of each cell with the shared weights, its batch norm re-estimated on `train`."""
    calibration = list(train.batches(128, seed=0, shuffle=False))
    x = held_out.inputs(held_out.x)
    accuracies = []
    for cell in cells:
        mask = cell_mask(supernet, cell)

        class Masked(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.net = supernet

            def forward(self, x: Tensor, mask: Tensor = mask) -> Tensor:
                return self.net(x, mask)

        recalibrate_batch_norm(Masked(), calibration)
        supernet.eval()
        accuracies.append((supernet(x, mask).argmax(1) == held_out.y).float().mean().item())
    return accuracies
