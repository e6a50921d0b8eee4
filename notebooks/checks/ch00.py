"""Checks of chapter 00."""

from __future__ import annotations

import torch
from torch import Tensor

from nas_core.workbook.checks import Problem, compare, exercise

_MACS = torch.tensor([40, 25, 10, 5])
_CASES = {
    "one architecture": [torch.tensor([[True, False, True, False]]), _MACS],
    "three architectures": [
        torch.tensor([[True] * 4, [False] * 4, [False, True, True, True]]),
        _MACS,
    ],
    "as many architectures as edges": [torch.eye(4, dtype=torch.bool).flip(0), _MACS],
}


def _cost(mask: Tensor, macs: Tensor) -> Tensor:
    return (mask * macs).sum(dim=1).float()


def _summed_over_architectures(got: object, want: Tensor, mask: Tensor, macs: Tensor) -> bool:
    return torch.equal(torch.as_tensor(got).float(), (mask * macs).sum(dim=0).float())


def _summed_over_all(got: object, want: Tensor, mask: Tensor, macs: Tensor) -> bool:
    return torch.as_tensor(got).dim() == 0 and float((mask * macs).sum()) == float(got)  # type: ignore[arg-type]


def _counted_edges(got: object, want: Tensor, mask: Tensor, macs: Tensor) -> bool:
    return torch.equal(torch.as_tensor(got).float(), mask.sum(dim=1).float())


@exercise("0.1", "the cost of a batch of architectures")
def ex_0_1(fn: object) -> Problem:
    """`fn(mask [B, E] bool, macs [E]) -> [B]`: the multiply-adds of the edges that are kept."""
    hints = [
        (_summed_over_architectures, "you summed over the architectures; sum over the edges"),
        (_summed_over_all, "one number per architecture is wanted: sum over the last axis only"),
        (_counted_edges, "you counted edges; weigh each by its multiply-adds"),
    ]
    return compare(fn, _cost, _CASES, hints=hints)
