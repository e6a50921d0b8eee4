"""Train many cells at once: K small networks side by side in the channels of one tensor.

Alone, a network of a few thousand parameters spends its time in the overhead of calls. Here the
value of a node is `[B, K·C, H, W]`, the convolutions of all cells into a node are one grouped
convolution, and every cell computes only the operation it has on an edge. The arithmetic is that
of the cells extracted from `CellSpace.network()`; the tests compare the two step by step.

The end of the file says how the book's own table was trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas_core import data
from nas_core.spaces.cells import OPERATIONS, Cell, CellSpace
from nas_core.supernet import SuperNetwork
from nas_core.training import TensorData, make_optimizer, train_epoch


class CellBatch(nn.Module):
    """K cells, each with its own copy of the weights that `supernet` has on its edges.

    Args:
        space: its nodes are rectified.
        supernet: `space.network()`; it is not changed.
        cells: the K cells, none of which may hold `none`.
    """

    def __init__(self, space: CellSpace, supernet: SuperNetwork, cells: Sequence[Cell]):
        super().__init__()
        self.space, self.cells = space, tuple(cells)
        k = len(self.cells)
        named = [[space.ops[op] for op in space.check(cell)] for cell in self.cells]
        if not space.rectified or any("none" in ops for ops in named):
            raise ValueError(
                "cells trained side by side need an operation on every edge and rectified nodes: "
                f"{space}, {self.cells[0]}"
            )
        names = [edge.name for edge in supernet.graph.edges]
        modules = dict(zip(names, supernet.edge_modules, strict=True))
        self.stem = _Convolution([modules["stem"]] * k, groups=1, stride=2)
        linear = next(m for m in modules["head"].modules() if isinstance(m, nn.Linear))
        self.weight = nn.Parameter(linear.weight.detach().repeat(k, 1, 1))  # [K, classes, C]
        self.bias = nn.Parameter(linear.bias.detach().repeat(k, 1))  # [K, classes]
        self.edges = nn.ModuleList()
        for e, (i, j) in enumerate(space.edges):
            candidates = {op: modules[f"{i}→{j} {op}"] for op in space.ops}
            self.edges.append(_EdgeOperations([ops[e] for ops in named], candidates))

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[B, K, classes]` of all cells on one batch `[B, 1, H, W]`."""
        value = self.stem(x)  # [B, K·C, H, W], at half the size
        values = [F.relu(value).view(len(x), len(self.cells), -1, *value.shape[2:])]
        for j in range(1, self.space.nodes):
            arriving = [
                op(values[i])  # [B, K, C, H, W]
                for op, (i, to) in zip(self.edges, self.space.edges, strict=True)
                if to == j
            ]
            values.append(F.relu(sum(arriving[1:], arriving[0])))
        pooled = values[-1].mean((3, 4))  # [B, K, C]
        return torch.einsum("bkc,koc->bko", pooled, self.weight) + self.bias


class _EdgeOperations(nn.Module):
    """One edge i→j of all cells: `[B, K, C, H, W]` → the same, each cell by its own operation.

    Cells are sorted by their operation, which costs a copy each way; where they are sorted already,
    slices are enough.
    """

    there: Tensor
    back: Tensor

    def __init__(self, ops: Sequence[str], candidates: Mapping[str, nn.Module]):
        super().__init__()
        known = list(candidates)
        there = torch.tensor([known.index(op) for op in ops]).argsort(stable=True)
        self.register_buffer("there", there)
        self.register_buffer("back", there.argsort())
        self.is_sorted = bool((there == torch.arange(len(ops))).all())
        self.counts = {op: n for op in known if (n := ops.count(op))}
        self.convolutions = nn.ModuleDict()
        for op, n in self.counts.items():
            if op not in ("skip_connect", "avg_pool_3x3"):
                self.convolutions[op] = _Convolution([candidates[op]] * n, groups=n)

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.is_sorted else _Permute.apply(x, self.there, self.back)
        parts = []
        for op, part in zip(self.counts, x.split([*self.counts.values()], 1), strict=True):
            if op == "avg_pool_3x3":  # [B, n, C, HW] @ [HW, HW]
                part = (part.flatten(3) @ _pooling(*x.shape[3:]).to(x.dtype)).view(part.shape)
            elif op in self.convolutions:  # [B, n·C, H, W] and back
                part = self.convolutions[op](part.flatten(1, 2)).view(part.shape)
            parts.append(part)
        y = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
        return y if self.is_sorted else _Permute.apply(y, self.back, self.there)


class _Permute(torch.autograd.Function):
    """`x[:, order]`; with the inverse known, its gradient is a copy instead of a sum."""

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

    def __init__(self, sources: Sequence[Any], *, groups: int, stride: int = 1):
        super().__init__()
        self.groups, self.stride = groups, stride
        self.weight = nn.Parameter(torch.cat([s[0].weight.detach() for s in sources]))
        self.norm = nn.BatchNorm2d(len(self.weight)).to(self.weight.dtype)

    def forward(self, x: Tensor) -> Tensor:
        padding = self.weight.shape[-1] // 2
        return self.norm(F.conv2d(x, self.weight, None, self.stride, padding, 1, self.groups))


# -------------------------------------------------------------------- the table of the digits

DIGIT_CELLS = CellSpace(ops=tuple(OPERATIONS))  # an operation on every edge: 4,096 cells


@dataclass(frozen=True)
class CellTraining:
    """How every cell of the table is trained, alone or in a batch."""

    epochs: int = 4
    report: tuple[int, ...] = (1, 2, 4)  # epochs after which the networks are evaluated
    batch_size: int = 16
    lr: float = 0.15  # SGD with Nesterov momentum; cosine to zero over all steps
    momentum: float = 0.9
    weight_decay: float = 5e-4

    def optimizer(self, parameters) -> torch.optim.Optimizer:
        return make_optimizer(
            parameters, lr=self.lr, momentum=self.momentum, nesterov=True,
            weight_decay=self.weight_decay,
        )  # fmt: skip


def train_cells(
    net: nn.Module,
    train: TensorData,
    held_out: Mapping[str, TensorData],
    config: CellTraining,
    *,
    seed: int,
) -> dict[str, Tensor]:
    """Train a `CellBatch` of K cells, or one plain network (K = 1).

    Returns:
        For each name of `held_out` the number of right answers, int64 `[K, len(report)]`.

    Raises:
        FloatingPointError: when a loss is not finite.
    """
    optimizer = config.optimizer(net.parameters())
    steps = config.epochs * (len(train) // config.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    right: dict[str, list[Tensor]] = {name: [] for name in held_out}

    def loss(x: Tensor, y: Tensor) -> Tensor:
        logits = _logits(net, x)
        # Sum over cells: the gradient of a cell does not depend on the other cells.
        each = y.repeat_interleave(logits.shape[1])  # [B·K]
        return F.cross_entropy(logits.flatten(0, 1), each, reduction="sum") / len(y)

    for epoch in range(config.epochs):
        net.train()
        batches = train.batches(config.batch_size, seed=seed, epoch=epoch, drop_last=True)
        mean = train_epoch(batches, loss, optimizer, schedule=schedule)
        if not mean < float("inf"):
            raise FloatingPointError(f"the loss is {mean} in epoch {epoch}")
        if epoch + 1 in config.report:
            for name, part in held_out.items():
                right[name].append(count_right(net, part))
    return {name: torch.stack(counts, 1) for name, counts in right.items()}


def _logits(net: nn.Module, x: Tensor) -> Tensor:
    logits = net(x)
    return logits if logits.dim() == 3 else logits.unsqueeze(1)  # [B, K, classes]


@torch.no_grad()
def count_right(net: nn.Module, data: TensorData, batch_size: int = 128) -> Tensor:
    """Right answers of every network of a batch, int64 `[K]` (of a plain network: `[1]`)."""
    net.eval()
    total: Tensor | int = 0
    for x, y in data.batches(batch_size, seed=0, shuffle=False):
        total = total + (_logits(net, x).argmax(2) == y[:, None]).sum(0)
    return torch.as_tensor(total)


@cache
def table_data() -> tuple[TensorData, dict[str, TensorData]]:
    """640 digits to train on, 797 to validate, 360 to test (the registry's test set)."""
    digits = data.load("digits", size=8)
    everything, val = digits.train, digits.val
    x, y = torch.cat([everything.x[640:], val.x]), torch.cat([everything.y[640:], val.y])
    rest = TensorData(x, y, None, everything.normalise)
    return everything.subset(range(640)), {"val": rest, "test": digits.test}


@cache
def initial_network(seed: int) -> SuperNetwork:
    """The weights that every cell of this seed starts from: common random numbers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return DIGIT_CELLS.network()


def train_alone(cell: Cell, seed: int) -> dict[str, Tensor]:
    """One cell as a plain module, by the recipe of the table, to check the table."""
    supernet = initial_network(seed)
    net = DIGIT_CELLS.architecture(supernet, cell).extract(supernet)
    return train_cells(net, *table_data(), CellTraining(), seed=seed)
