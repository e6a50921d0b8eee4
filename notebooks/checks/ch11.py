"""Checks of chapter 11, second-order pooling."""

from __future__ import annotations

import torch
from torch import Tensor

from nas_core.pooling import SMSO
from nas_core.workbook.checks import Problem, compare, exercise


def _smso(x: Tensor, weight: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    layer = SMSO(*weight.shape, scale=False, shift=False)
    with torch.no_grad():
        layer.weight.copy_(weight)
        return beta + gamma * layer(x)


def _variant(x: Tensor, weight: Tensor, gamma: Tensor, beta: Tensor, mistake: str) -> Tensor:
    """The layer with one of the usual mistakes."""
    s = x.flatten(2).transpose(1, 2) @ weight  # [B, n, p]
    n = s.shape[1]
    s = s if mistake == "mean" else s - s.mean(1, keepdim=True)
    q = s.square().sum(1) / (n - 1 if mistake == "normalized" else 1)
    q = q if mistake == "norm" else q / weight.square().sum(0)
    dof = n if mistake == "degrees" else n - 1
    return beta + gamma * ((2 * q).sqrt() - (2 * dof - 1) ** 0.5)


def _is(mistake: str):
    return lambda got, want, *given: torch.allclose(
        torch.as_tensor(got).float(), _variant(*given, mistake), atol=1e-3
    )


@exercise("11.1", "the SMSO layer")
def ex_11_1(answer) -> Problem:
    """`fn(x [B, c, h, w], weight [c, p], gamma [p], beta [p]) -> [B, p]`."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(3, 5, 3, 4, generator=g)
    weight = torch.randn(5, 4, generator=g)
    gamma, beta = torch.rand(4, generator=g) + 0.5, torch.randn(4, generator=g)
    return compare(
        answer,
        _smso,
        {
            "centered maps": (x - x.mean((2, 3), keepdim=True), weight, gamma, beta),
            "maps with a mean": (x + 2, weight, gamma, beta),
        },
        tolerance=1e-3,
        hints=[
            (_is("mean"), "subtract the mean over positions, before or after the projection"),
            (_is("normalized"), "q is the sum over positions; do not divide by n − 1"),
            (_is("degrees"), "with the mean subtracted there are n − 1 degrees of freedom, not n"),
            (_is("norm"), "divide by the squared length of each column of the weight"),
        ],
    )


def _random_maclaurin(x: Tensor, first: Tensor, second: Tensor) -> Tensor:
    return (x @ first) * (x @ second) / first.shape[1] ** 0.5


@exercise("11.2", "a random Maclaurin sketch")
def ex_11_2(answer) -> Problem:
    """`fn(x [N, c], first [c, d], second [c, d]) -> [N, d]`."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(4, 5, generator=g)
    first, second = (torch.randint(0, 2, (5, 9), generator=g) * 2.0 - 1.0 for _ in range(2))
    return compare(
        answer,
        _random_maclaurin,
        {"four samples": (x, first, second)},
        hints=[
            (
                lambda got, want, x, a, b: torch.allclose(got, want * a.shape[1] ** 0.5),
                "the inner products come out d times too large: divide the sketch by √d",
            ),
            (
                lambda got, want, x, a, b: torch.allclose(got, want / a.shape[1] ** 0.5),
                "divide by √d once; the inner product of two sketches then has 1/d",
            ),
            (
                lambda got, want, x, a, b: torch.allclose(got, (x @ a) / a.shape[1] ** 0.5),
                "one projection gives ⟨x, y⟩; multiply it by the second one",
            ),
        ],
    )
