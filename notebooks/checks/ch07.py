"""Checks of chapter 07, SANAS."""

from __future__ import annotations

import torch
from torch import Tensor

from nas_core.adaptive import Controller, SanasConfig, returns
from nas_core.workbook.checks import Problem, compare, exercise


def _controller_macs(features: int, hidden: int, edges: int) -> int:
    return Controller(features, edges, hidden=hidden).macs


@exercise("7.1", "the price of deciding")
def ex_7_1(answer) -> Problem:
    return compare(
        answer,
        _controller_macs,
        {"the thesis' sizes": (128, 100, 7), "a small one": (16, 8, 3)},
        hints=[
            (
                lambda got, want, f, h, e: got == h * (f + h) + h * e,
                "a GRU has three gates, each with both matrices",
            ),
            (
                lambda got, want, f, h, e: got == 3 * h * (f + h),
                "the linear layer from the state to the gates is missing",
            ),
            (
                lambda got, want, f, h, e: got in (3 * h * f, 3 * h * f + h * e),
                "each of the three gates reads the state too: a second matrix, hidden × hidden",
            ),
            (
                lambda got, want, f, h, e: got == 4 * h * (f + h) + h * e,
                "four gates are an LSTM's; a GRU has three",
            ),
            (
                lambda got, want, f, h, e: got - want in (3 * h, 6 * h, 3 * h + e, 6 * h + e, e),
                "biases are additions, not multiply-adds: leave them out",
            ),
            (
                lambda got, want, f, h, e: got == 3 * h * (f + h) + f * e,
                "the last layer reads the state (hidden), not Φ (features)",
            ),
            (lambda got, want, *_: got == 2 * want, "multiply-adds, not single operations"),
        ],
    )


def _credit(rewards: Tensor, length: Tensor, discount: float) -> Tensor:
    valid = torch.arange(rewards.shape[1]) < length.unsqueeze(1)
    return returns(rewards * valid, SanasConfig(discount=discount))


def _of_the_past(rewards: Tensor, length: Tensor, discount: float) -> Tensor:
    before = _credit(rewards, length, 0.0).flip(1)  # rewards without the padding
    return _credit(before, torch.full_like(length, rewards.shape[1]), discount).flip(1)


_REWARDS = torch.tensor([[1.0, 2.0, 4.0, 8.0], [3.0, 5.0, 9.0, 9.0], [2.0, 7.0, 7.0, 7.0]])
_LENGTH = torch.tensor([4, 2, 1])


@exercise("7.2", "credit for each step")
def ex_7_2(answer) -> Problem:
    return compare(
        answer,
        _credit,
        {
            "discount 0": (_REWARDS, _LENGTH, 0.0),
            "discount 0.5": (_REWARDS, _LENGTH, 0.5),
            "discount 1": (_REWARDS, _LENGTH, 1.0),
        },
        hints=[
            (
                lambda got, want, r, n, d: torch.allclose(
                    got, _credit(r, torch.full_like(n, r.shape[1]), d)
                ),
                "rewards beyond the end of a sequence are padding and must not count",
            ),
            (
                lambda got, want, r, n, d: torch.allclose(got, _of_the_past(r, n, d)),
                "a step answers for what comes after it, not for what came before",
            ),
            (
                lambda got, want, r, n, d: torch.allclose(got, _credit(r, n, 1.0)),
                "the sum is not discounted: multiply what is carried along by the discount",
            ),
            (
                lambda got, want, r, n, d: torch.allclose(got, want - _credit(r, n, 0.0)),
                "a step's own reward belongs to its return: the sum begins at u = t",
            ),
            (
                lambda got, want, r, n, d: torch.allclose(got, want[:, :1].expand_as(want)),
                "every step got the return of the first one; later steps answer for less",
            ),
            (
                lambda got, want, r, n, d: torch.allclose(
                    got, want * d ** torch.arange(want.shape[1])
                ),
                "count the discount from the step itself: discount^(u − t), not discount^u",
            ),
        ],
    )


def _average(old: float, new: float, keep: float) -> float:
    return keep * old + (1 - keep) * new


@exercise("7.3", "a baseline that remembers")
def ex_7_3(answer) -> Problem:
    return compare(
        answer,
        _average,
        {
            "a surprise": (1.0, 3.0, 0.9),
            "nothing new": (2.0, 2.0, 0.9),
            "no memory": (5.0, 1.0, 0.0),
        },
        hints=[
            (
                lambda got, want, old, new, keep: abs(got - _average(new, old, keep)) < 1e-6,
                "the coefficient is the wrong way round: `keep` belongs to the old value",
            )
        ],
    )
