"""Checks of chapter 02, REINFORCE."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from nas_core.search.exact import baseline_of, exact_penalty
from nas_core.search.reinforce import policy_loss
from nas_core.workbook.checks import Problem, compare, exercise


def _close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a.float(), b.float(), atol=1e-4)


# ---------------------------------------------------------------- 2.1


def _score(mask: Tensor, drawn: Tensor, logits: Tensor) -> Tensor:
    return drawn * (mask.float() - torch.sigmoid(logits))


_MASK = torch.tensor([[1, 1, 0, 1, 0], [0, 1, 0, 0, 1], [1, 0, 0, 0, 0]]).bool()
_DRAWN = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 1], [1, 1, 1, 1, 0]]).bool()
_LOGITS = torch.tensor([3.0, 0.5, 0.0, -1.0, -2.0])


def _sigma(logits: Tensor) -> Tensor:
    return torch.sigmoid(logits)


@exercise("2.1", "the score of a coin")
def ex_2_1(answer) -> Problem:
    every = torch.ones_like(_DRAWN)
    return compare(
        answer,
        _score,
        {
            "three draws with every coin thrown": (_MASK, every, _LOGITS),
            "three draws with some coins not thrown": (_MASK, _DRAWN, _LOGITS),
        },
        hints=[
            (lambda got, want, *_: _close(got, -want), "the sign is reversed"),
            (
                lambda got, want, m, d, z: not d.all() and _close(got, m.float() - _sigma(z)),
                "coins that were not thrown add nothing to log P",
            ),
            (
                lambda got, want, m, d, z: _close(got, want / (_sigma(z) * (1 - _sigma(z)))),
                "this is the derivative by γ; the parameter is γ̂, and dγ/dγ̂ = γ(1 − γ)",
            ),
            (
                lambda got, want, m, d, z: _close(got, torch.where(m, want, 0.0)),
                "an edge that came up off has a score too",
            ),
            (
                lambda got, want, m, d, z: _close(got, torch.where(m, want, -want)),
                "the derivative of log(1 − σ(z)) is −σ(z)",
            ),
        ],
    )


# ---------------------------------------------------------------- 2.2


def _gradients(loss: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., dict[str, Tensor]]:
    """The gradients of a loss by its two arguments: what matters of a surrogate."""

    def gradients(log_prob: Tensor, values: Tensor) -> dict[str, Tensor]:
        leaves = [log_prob.clone().requires_grad_(), values.clone().requires_grad_()]
        result = loss(*leaves)
        if result is None:
            raise ValueError("it returns None: is the `return` missing?")
        if result.shape != ():
            raise ValueError(f"the loss must be one number, not of shape {list(result.shape)}")
        found = torch.autograd.grad(result, leaves, allow_unused=True)
        by_log_prob, by_values = (torch.zeros(len(log_prob)) if g is None else g for g in found)
        return {"gradient by log_prob": by_log_prob, "gradient by D_values": by_values}

    return gradients


def _batch_mean_loss(log_prob: Tensor, values: Tensor) -> Tensor:
    return policy_loss(log_prob, values, baseline_of(values, "mean"))


_LOG_PROB = torch.tensor([-1.0, -2.5, -0.5, -3.0])
_VALUES = torch.tensor([0.2, 1.7, 0.9, 2.4])


def _by_log_prob(test: Callable[[Tensor, Tensor, Tensor], bool]) -> Callable[..., bool]:
    key = "gradient by log_prob"
    return lambda got, want, log_prob, values: test(got[key], want[key], values)


@exercise("2.2", "the policy loss")
def ex_2_2(answer) -> Problem:
    if not callable(answer):
        return f"expected a function, got a {type(answer).__name__}"
    return compare(
        _gradients(answer),
        _gradients(_batch_mean_loss),
        {
            "a batch of four": (_LOG_PROB, _VALUES),
            "four equal values": (_LOG_PROB, torch.full((4,), 1.3)),
        },
        hints=[
            (
                _by_log_prob(lambda got, want, _: _close(got, -want)),
                "the sign is reversed: a low 𝒟 must become more likely when the loss goes down",
            ),
            (
                _by_log_prob(lambda got, want, v: _close(got, v / len(v))),
                "there is no baseline: subtract the mean of the batch",
            ),
            (
                _by_log_prob(lambda got, want, v: _close(got, want * len(v))),
                "the sum over the batch instead of the mean makes it S times too large",
            ),
            (
                _by_log_prob(lambda got, want, v: _close(got, v)),
                "no baseline, and the sum over the batch instead of the mean",
            ),
            (
                _by_log_prob(lambda got, want, v: _close(got, -v / len(v)) or _close(got, -v)),
                "there is no baseline, and the sign is reversed: 𝒟 is a loss",
            ),
            (
                _by_log_prob(lambda got, want, v: _close(got, torch.zeros_like(got))),
                "log_prob gets no gradient: weigh each sample's log_prob, then take the mean",
            ),
            (
                _by_log_prob(
                    lambda got, want, v: any(
                        _close(got, want / v.std(correction=c)) for c in (0, 1)
                    )
                ),
                "leave out the division by the standard deviation: it changes the step's length",
            ),
            (
                lambda got, want, log_prob, v: _close(
                    got["gradient by log_prob"], want["gradient by log_prob"] * log_prob.exp()
                ),
                "this differentiates the probability; REINFORCE weighs the gradient of log P",
            ),
            (
                lambda got, want, *_: bool(got["gradient by D_values"].any()),
                "the advantage is a constant: detach() it, or the weights learn from this loss",
            ),
        ],
    )


# ---------------------------------------------------------------- 2.3


@exercise("2.3", "leave one out")
def ex_2_3(answer) -> Problem:
    def others(values: Tensor) -> Tensor:
        return (values.sum() - values) / (len(values) - 1)

    return compare(
        answer,
        others,
        {
            "two values": (torch.tensor([1.0, 4.0]),),
            "four values": (torch.tensor([0.2, 1.7, 0.9, 2.4]),),
        },
        hints=[
            (
                lambda got, want, v: torch.as_tensor(got).shape == (),
                "every sample is compared with a mean of its own",
            ),
            (
                lambda got, want, v: _close(got, v.mean().expand(len(v))),
                "this is the mean of all samples, the sample itself included",
            ),
            (
                lambda got, want, v: _close(got, want * (len(v) - 1) / len(v)),
                "divide by the number of the others, S − 1",
            ),
            (
                lambda got, want, v: _close(got, v - want),
                "this is the advantage; only the baseline is asked for",
            ),
        ],
    )


# ---------------------------------------------------------------- 2.4


def _crossings(loss: Tensor, over: Tensor) -> Tensor:
    violates = over > 0
    return (loss[~violates].min() - loss[violates]) / over[violates]


@exercise("2.4", "how large is large enough")
def ex_2_4(answer) -> Problem:
    return compare(
        answer,
        exact_penalty,
        {
            "one architecture over the budget": (torch.tensor([0.5, 0.1]), torch.tensor([0, 0.2])),
            "two within, three over": (
                torch.tensor([0.9, 0.4, 0.0, 0.3, 0.1]),
                torch.tensor([0, 0, 0.5, 0.05, 0.2]),
            ),
            "the best of all is within the budget": (
                torch.tensor([0.1, 0.3, 0.2]),
                torch.tensor([0, 0.2, 0.1]),
            ),
            "nothing over the budget": (torch.tensor([0.1, 0.3]), torch.tensor([0.0, 0.0])),
        },
        hints=[
            (
                lambda got, want, d, o: float(want) > 0 and abs(float(got) + float(want)) < 1e-4,
                "the sign is reversed: λ·over has to make up for what a violator's loss is lower",
            ),
            (
                lambda got, want, d, o: float(got) < 0,
                "where the best of all is within the budget every λ ≥ 0 will do: never negative",
            ),
            (
                lambda got, want, d, o: abs(float(got) - _crossings(d, o).min().item()) < 1e-4,
                "this is the first crossing; λ* lies beyond all of them",
            ),
            (
                lambda got, want, d, o: (
                    abs(float(got) - ((d[o == 0].max() - d[o > 0]) / o[o > 0]).max().item()) < 1e-4
                ),
                "compare with the best architecture within the budget, not with the worst",
            ),
            (
                lambda got, want, d, o: (
                    abs(float(got) - float((_crossings(d, o) * o[o > 0]).max())) < 1e-4
                ),
                "divide by the overspending: λ multiplies it",
            ),
            (
                lambda got, want, d, o: abs(float(got) - float(_crossings(d, o).mean())) < 1e-4,
                "this is the mean of the crossings; λ* lies beyond all of them",
            ),
            (
                lambda got, want, d, o: (
                    abs(float(got) - float(((d.min() - d[o > 0]) / o[o > 0]).max())) < 1e-4
                ),
                "compare with the best architecture within the budget, not with the best of all",
            ),
            (
                lambda got, want, d, o: isinstance(got, Exception) and not (o > 0).any(),
                "nothing may be over the budget; then λ* is 0",
            ),
            (
                lambda got, want, d, o: not torch.isfinite(torch.as_tensor(float(got))),
                "divide by the overspending of violators alone; the others overspend by 0",
            ),
        ],
    )
