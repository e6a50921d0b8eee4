"""Train many cells at once: K small networks side by side in the channels of one tensor.

Alone, a network of a few thousand parameters spends its time in the overhead of calls. Here the
value of a node is `[B, K·C, H, W]`, the convolutions of all cells into a node are one grouped
convolution, and every cell computes only the operation it has on an edge. The arithmetic is that
of the cells extracted from `CellSpace.network()`; the tests compare the two step by step.

`benchmarks/cell_table.py` trains the book's own table so; the end of this file holds its data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas_core import data
from nas_core.spaces.cells import OPERATIONS, Cell, CellSpace
from nas_core.supernet import SuperNetwork
from nas_core.training import TensorData


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
            needed = "an operation on every edge and rectified nodes"
            raise ValueError(f"cells trained side by side need {needed}: {space}, {self.cells[0]}")
        names = [edge.name for edge in supernet.graph.edges]
        modules = dict(zip(names, supernet.edge_modules, strict=True))
        self.stem = _Convolution([modules["stem"]] * k, groups=1, stride=2)
        linear = next(m for m in modules["head"].modules() if isinstance(m, nn.Linear))
        self.weight = nn.Parameter(linear.weight.detach().repeat(k, 1, 1))  # [K, classes, C]
        self.bias = nn.Parameter(linear.bias.detach().repeat(k, 1))  # [K, classes]
        self.edges = nn.ModuleList()
        for chosen, (i, j) in zip(zip(*named, strict=True), space.edges, strict=True):
            candidates = {op: modules[f"{i}→{j} {op}"] for op in space.ops}
            self.edges.append(_EdgeOperations(chosen, candidates))

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


@cache
def table_data() -> tuple[TensorData, dict[str, TensorData]]:
    """640 digits to train on, 797 to validate, 360 to test (the registry's test set)."""
    digits = data.load("digits", size=8)
    everything, val = digits.train, digits.val
    x, y = torch.cat([everything.x[640:], val.x]), torch.cat([everything.y[640:], val.y])
    rest = TensorData(x, y, None, everything.normalise)
    return everything.subset(range(640)), {"val": rest, "test": digits.test}
