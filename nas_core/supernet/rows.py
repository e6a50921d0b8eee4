"""Moving rows between nodes: differentiable gather and scatter-sum with one buffer per node.

Autograd's `index_select` allocates a full gradient of zeros for *every* consumer of a node, which
would make a sampled super-network that keeps most edges slower than the full one.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor


def gather_rows(x: Tensor, indices: Sequence[Tensor | None]) -> list[Tensor]:
    """Row subsets of `x` `[N, …]`, one per entry of `indices` (int64 `[n]`; None = all rows)."""
    picked = [i for i in indices if i is not None]
    parts = iter(_Gather.apply(x, *picked) if picked else ())
    return [x if i is None else next(parts) for i in indices]


def sum_rows(
    parts: Sequence[tuple[Tensor, Tensor | None]], rows: int, node: str = "the node"
) -> Tensor:
    """Sum of tensors `[n, …]`, each placed at its rows (int64 `[n]`; None = all), as `[rows, …]`.

    Rows that nothing is added to are zero. `node` is named when shapes differ (ValueError).
    """
    if len(parts) == 1 and parts[0][1] is None:
        return parts[0][0]
    whole = [t for t, i in parts if i is None]
    partial = [(t, i) for t, i in parts if i is not None]
    try:
        if any(t.shape != whole[0].shape for t in whole[1:]):
            raise RuntimeError("PyTorch would broadcast these")
        if not partial:
            return sum(whole[2:], whole[0] + whole[1])
        if len(dtypes := {t.dtype for t, _ in parts}) > 1:  # bfloat16 beside float32 (autocast)
            common = reduce(torch.promote_types, dtypes)
            whole = [t.to(common) for t in whole]
            partial = [(t.to(common), i) for t, i in partial]
        tensors, indices = zip(*partial, strict=True)
        return _SumRows.apply(rows, len(whole), *whole, *tensors, *indices)
    except RuntimeError as error:
        if len(shapes := {tuple(t.shape[1:]) for t, _ in parts}) > 1:
            raise ValueError(f"summands of shapes {sorted(shapes)} meet at {node}") from error
        raise


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, *indices: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(*indices)
        ctx.shape = x.shape
        return tuple(_select(x, i) for i in indices)

    @staticmethod
    def backward(ctx, *grads: Tensor):
        total = _zeros_like_rows(grads[0], ctx.shape[0])
        for index, grad in zip(ctx.saved_tensors, grads, strict=True):
            _add(total, index, grad)
        return (total, *[None] * len(grads))


class _SumRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows: int, num_whole: int, *args: Tensor) -> Tensor:
        whole, middle = args[:num_whole], (num_whole + len(args)) // 2
        tensors, indices = args[num_whole:middle], args[middle:]
        ctx.save_for_backward(*indices)
        ctx.num_whole = num_whole
        if len(whole) > 1:
            total = whole[0] + whole[1]
        else:
            total = whole[0].clone() if whole else _zeros_like_rows(tensors[0], rows)
        for extra in whole[2:]:
            total += extra
        for tensor, index in zip(tensors, indices, strict=True):
            _add(total, index, tensor)
        return total

    @staticmethod
    def backward(ctx, grad: Tensor):
        indices = ctx.saved_tensors
        parts = [_select(grad, i) for i in indices]
        return (None, None, *[grad] * ctx.num_whole, *parts, *[None] * len(indices))


def _channels_last(x: Tensor) -> bool:
    last = torch.channels_last
    return x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=last)


def _select(x: Tensor, index: Tensor) -> Tensor:
    """`x[index]` that keeps the memory format; permuted, its rows are copied as whole blocks."""
    if _channels_last(x):
        return x.permute(0, 2, 3, 1).index_select(0, index).permute(0, 3, 1, 2)
    return x.index_select(0, index)


def _add(total: Tensor, index: Tensor, rows: Tensor) -> None:
    """`total[index] += rows` in place."""
    if _channels_last(total):
        total, rows = total.permute(0, 2, 3, 1), rows.permute(0, 2, 3, 1)
    total.index_add_(0, index, rows)


def _zeros_like_rows(x: Tensor, rows: int) -> Tensor:
    layout = torch.channels_last if _channels_last(x) else torch.contiguous_format
    return torch.zeros_like(x[:1].expand(rows, *x.shape[1:]), memory_format=layout)
