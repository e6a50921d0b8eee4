"""Train many cells at once: K small networks side by side in the channels of one tensor.

Alone, a network of a few thousand parameters spends its time in the overhead of calls. Here the
value of a node is `[B, K·C, H, W]`, the convolutions of all cells into a node are one grouped
convolution, and every cell computes only the operation it has on an edge. The arithmetic is that
of `cell_network`'s extracted cells; the tests compare the two step by step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas_core.spaces.cells import CONV1, CONV3, EDGES, NODES, NONE, OPS, POOL, SKIP, Cell
from nas_core.supernet import SuperNetwork
from nas_core.training import TensorData


@dataclass(frozen=True)
class CellTraining:
    """How every cell of the table is trained, alone or in a batch."""

    epochs: int = 4
    report: tuple[int, ...] = (1, 2, 4)  # epochs after which the networks are evaluated
    batch_size: int = 16
    lr: float = 0.15  # SGD with Nesterov momentum; cosine to zero over all steps
    momentum: float = 0.9
    weight_decay: float = 5e-4

    def optimiser(self, parameters) -> torch.optim.Optimizer:
        return torch.optim.SGD(
            parameters,
            lr=self.lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            nesterov=True,
        )

    def schedule(self, optimiser: torch.optim.Optimizer, examples: int):
        steps = self.epochs * (examples // self.batch_size)
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)


class CellBatch(nn.Module):
    """K cells, each with its own copy of the weights that `supernet` has on its edges.

    Args:
        supernet: a `cell_network`; it is not changed.
        cells: the K cells, none of which may hold `none`.
    """

    def __init__(self, supernet: SuperNetwork, cells: Sequence[Cell]):
        super().__init__()
        self.cells = tuple(cells)
        k = len(self.cells)
        if bare := [cell for cell in self.cells if NONE in cell]:
            raise ValueError(
                f"cells trained side by side need an operation on every edge: {bare[0]}"
            )
        modules = {
            edge.name: supernet.edge_modules[e] for e, edge in enumerate(supernet.graph.edges)
        }
        self.stem = _Convolution([modules["stem"]] * k, groups=1, kernel=3, stride=2)
        linear = next(m for m in modules["head"].modules() if isinstance(m, nn.Linear))
        self.weight = nn.Parameter(linear.weight.detach().repeat(k, 1, 1))  # [K, classes, C]
        self.bias = nn.Parameter(linear.bias.detach().repeat(k, 1))
        self.edges = nn.ModuleList(
            _EdgeOperations(
                [cell[e] for cell in self.cells],
                {op: modules[f"{i}→{j} {OPS[op]}"] for op in range(1, len(OPS))},
            )
            for e, (i, j) in enumerate(EDGES)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[B, K, classes]` of all cells on one batch `[B, 1, H, W]`."""
        k = len(self.cells)
        value = self.stem(x)
        values = [F.relu(value).view(len(x), k, -1, *value.shape[2:])]
        for j in range(1, NODES):
            arriving = [
                op(values[i]) for op, (i, to) in zip(self.edges, EDGES, strict=True) if to == j
            ]
            values.append(F.relu(sum(arriving[1:], arriving[0])))
        pooled = values[-1].mean((3, 4))  # [B, K, C]
        return torch.einsum("bkc,koc->bko", pooled, self.weight) + self.bias


class _EdgeOperations(nn.Module):
    """One edge i→j of all cells: `[B, K, C, H, W]` → the same, each cell by its own operation.

    Cells are brought into the order of their operations, which costs a copy each way; cells that
    come sorted (`table_cells` sorts by the first edges) are only sliced.
    """

    there: Tensor
    back: Tensor

    def __init__(self, ops: Sequence[int], candidates: Mapping[int, nn.Module]):
        super().__init__()
        op_of = torch.tensor(ops)
        there = op_of.argsort(stable=True)
        self.register_buffer("there", there)
        self.register_buffer("back", there.argsort())
        self.is_sorted = bool((there == torch.arange(len(ops))).all())
        self.counts = [(op, ops.count(op)) for op in sorted(set(ops))]
        self.convolutions = nn.ModuleDict(
            {
                str(op): _Convolution(
                    [candidates[op]] * n, groups=n, kernel=1 if op == CONV1 else 3
                )
                for op, n in self.counts
                if op in (CONV1, CONV3)
            }
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.is_sorted else _Permute.apply(x, self.there, self.back)
        parts = []
        for part, (op, _) in zip(x.split([n for _, n in self.counts], 1), self.counts, strict=True):
            if op == POOL:
                part = (part.flatten(3) @ _pooling(*x.shape[3:]).to(x.dtype)).view(part.shape)
            elif op != SKIP:
                part = self.convolutions[str(op)](part.flatten(1, 2)).view(part.shape)
            parts.append(part)
        y = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
        return y if self.is_sorted else _Permute.apply(y, self.back, self.there)


class _Permute(torch.autograd.Function):
    """`x[:, order]`; knowing the inverse, its gradient is a copy and not a sum into zeros."""

    @staticmethod
    def forward(ctx, x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.inverse = inverse
        return x.index_select(1, order)

    @staticmethod
    def backward(ctx, grad: Tensor):
        return grad.index_select(1, ctx.inverse), None, None


@cache
def _pooling(height: int, width: int) -> Tensor:
    """The matrix `[HW, HW]` of a 3×3 mean without padding: on tiny maps faster than pooling."""
    delta = torch.eye(height * width, dtype=torch.float64).view(-1, 1, height, width)
    return F.avg_pool2d(delta, 3, 1, 1, count_include_pad=False).flatten(1)


class _Convolution(nn.Module):
    """Convolution and batch norm of many independent networks at once."""

    def __init__(self, sources: Sequence[Any], *, groups: int, kernel: int, stride: int = 1):
        super().__init__()
        self.groups, self.stride, self.padding = groups, stride, kernel // 2
        self.weight = nn.Parameter(torch.cat([s[0].weight.detach() for s in sources]))
        self.norm = nn.BatchNorm2d(len(self.weight)).to(self.weight.dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(F.conv2d(x, self.weight, None, self.stride, self.padding, 1, self.groups))


def train_cells(
    supernet: SuperNetwork,
    cells: Sequence[Cell],
    train: TensorData,
    held_out: Mapping[str, TensorData],
    config: CellTraining,
    *,
    seed: int,
) -> dict[str, Tensor]:
    """Train K cells side by side from the weights of `supernet`.

    Returns:
        For each name of `held_out` the number of right answers, int64 `[K, len(report)]`.

    Raises:
        FloatingPointError: when a loss is not finite.
    """
    net = CellBatch(supernet, cells)
    optimiser = config.optimiser(net.parameters())
    schedule = config.schedule(optimiser, len(train))
    right: dict[str, list[Tensor]] = {name: [] for name in held_out}
    for epoch in range(config.epochs):
        net.train()
        for x, y in train.batches(config.batch_size, seed=seed, epoch=epoch, drop_last=True):
            logits = net(x)
            # Sum over cells: no cell's gradient depends on what is trained beside it.
            flat = logits.flatten(0, 1)
            loss = F.cross_entropy(flat, y.repeat_interleave(len(cells)), reduction="sum") / len(x)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            schedule.step()
        if not torch.isfinite(loss):
            raise FloatingPointError(f"loss {loss.item()} in epoch {epoch} of {len(cells)} cells")
        if epoch + 1 in config.report:
            for name, data in held_out.items():
                right[name].append(count_right(net, data))
    return {name: torch.stack(counts, 1) for name, counts in right.items()}


@torch.no_grad()
def count_right(net: nn.Module, data: TensorData, batch_size: int = 128) -> Tensor:
    """Right answers of every network of a batch, int64 `[K]` (of a plain network: `[1]`)."""
    net.eval()
    total: Tensor | int = 0
    for x, y in data.batches(batch_size, seed=0, shuffle=False):
        logits = net(x)
        logits = logits if logits.dim() == 3 else logits.unsqueeze(1)
        total = total + (logits.argmax(2) == y[:, None]).sum(0)
    return torch.as_tensor(total)
