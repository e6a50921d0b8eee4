"""Checks of chapter 12, recurrent segmentation."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from nas_core.workbook.checks import Problem, compare, exercise

Net = Callable[[Tensor], Tensor]


def _dru(e: Tensor, h: Tensor, f_z: Net, f_r: Net, f_h: Net, mistake: str = "") -> Tensor:
    """Eqs 2.1–2.4, or one of the usual mistakes."""
    z, r = f_z(e).sigmoid(), f_r(e).sigmoid()
    seen = e if mistake == "no reset" else r * e
    candidate = f_h(seen) if mistake == "no tanh" else f_h(seen).tanh()
    if mistake == "gru":
        candidate = f_h(e).tanh()
        h = r * h
    old, new = (h, candidate) if mistake != "exchanged" else (candidate, h)
    return z * old + (1 - z) * new


def _is(mistake: str):
    return lambda got, want, *given: torch.allclose(
        torch.as_tensor(got).float(), _dru(*given, mistake), atol=1e-4
    )


@exercise("12.1", "the dual-gated unit")
def ex_12_1(answer) -> Problem:
    """`fn(e [B, c, H, W], h [B, c, H, W], f_z, f_r, f_h) -> [B, c, H, W]`."""
    g = torch.Generator().manual_seed(0)
    e, h = torch.randn(2, 2, 3, 5, 5, generator=g)
    maps = torch.randn(3, 3, 3, generator=g)

    def channels(m: Tensor) -> Net:
        return lambda x: torch.einsum("oc,bchw->bohw", m, x)

    f_z, f_r, f_h = (channels(m) for m in maps)
    return compare(
        answer,
        _dru,
        {
            "1×1 maps": (e, h, f_z, f_r, f_h),
            "a gate that keeps all": (e, h, lambda x: x * 0 + 30, f_r, f_h),
        },
        tolerance=1e-4,
        hints=[
            (
                _is("exchanged"),
                "z is the share of the old state: h_t = z ⊙ h + (1 − z) ⊙ ĥ",
            ),
            (_is("no reset"), "the candidate reads r ⊙ e; without r this is the SRU"),
            (_is("gru"), "the reset gate acts on e, not on the state as in a GRU"),
            (_is("no tanh"), "the candidate is tanh(f_h(r ⊙ e)), between −1 and 1"),
        ],
    )


def _stopping(z: Tensor) -> Tensor:
    stop = z.sigmoid()
    ones = torch.ones_like(stop[:, :1])
    reached = torch.cat([ones, (1 - stop).cumprod(1)], 1)
    return reached * torch.cat([stop, ones], 1)


@exercise("12.2", "when to stop")
def ex_12_2(answer) -> Problem:
    """`fn(z [B, T − 1]) -> [B, T]`."""
    z = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))

    def independent(got: Tensor, want: Tensor, z: Tensor) -> bool:
        got = torch.as_tensor(got).float()
        return got.shape == want.shape and torch.allclose(got[:, :-1], z.sigmoid(), atol=1e-4)

    def without_last(got: Tensor, want: Tensor, z: Tensor) -> bool:
        return torch.as_tensor(got).shape == z.shape

    def going_on(got: Tensor, want: Tensor, z: Tensor) -> bool:
        return torch.allclose(torch.as_tensor(got).float(), _stopping(-z), atol=1e-4)

    return compare(
        answer,
        _stopping,
        {"three scores": (z,), "one score": (z[:, :1],)},
        hints=[
            (
                without_last,
                "a column is missing: an image that has not stopped before stops at the last one",
            ),
            (
                independent,
                "an image stops at t only if it went on before: multiply by all 1 − σ(z_s)",
            ),
            (going_on, "σ(z) is the probability of stopping, not of going on"),
        ],
    )
