"""Recurrent segmentation: U-Nets that refine their own mask (K. Yu's thesis, chapter 2).

A recurrent network sees the same image several times. What it remembers between two looks is the
mask it has just predicted, or a hidden state, or both:

* U-Net-B, U-Net-G: one look, with batch or group norm. Rec-Simple: the mask joins the image.
* Rec-Last, Rec-Middle: a convolutional GRU behind the decoder, or in place of the central block.
* DRU(ℓ), SRU(ℓ): the mask joins the image, and the part of the U-Net below level ℓ is replaced by
  a recurrent unit with two gates, or with one.

All of them are one class, `RecurrentUNet`, with different parts; `segmenter` builds them by name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, logsigmoid, max_pool2d
from torch.utils.flop_counter import FlopCounterMode

from nas_core.search.reinforce import policy_loss
from nas_core.training import (
    LoopResult,
    Splits,
    TensorData,
    TrainConfig,
    descend,
    eval_mode,
    train_classifier,
)

MakeBlock = Callable[[int, int], nn.Sequential]  # (channels in, channels out)

# ------------------------------------------------------------------------------------ the U-Net


def block(incoming: int, outgoing: int, norm: str = "group", convs: int = 1) -> nn.Sequential:
    """3×3 convolution, normalization, ReLU; `convs` times, 1 or 2.

    The thesis' parameter counts hold for one convolution; the released code has two.
    """
    # min(8, C) groups, or the largest smaller number that divides C
    groups = next(g for g in range(min(8, outgoing), 0, -1) if outgoing % g == 0)
    layers: list[nn.Module] = []
    for k in range(convs):
        layers += [
            nn.Conv2d(outgoing if k else incoming, outgoing, 3, padding=1),
            nn.BatchNorm2d(outgoing) if norm == "batch" else nn.GroupNorm(groups, outgoing),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers)


class Hourglass(nn.Module):
    """Levels of an encoder and a decoder with skips between them, around a centre.

    Args:
        widths: channels of every level, each twice the last; may be empty.
        centre: maps `[B, widths[-1], h, w]` to twice as many channels.
        out: channels of the output, `widths[0]` when 0.
    """

    def __init__(
        self, incoming: int, widths: Sequence[int], centre: nn.Module, make: MakeBlock, out: int = 0
    ):
        super().__init__()
        before, after = [incoming, *widths], [out or widths[0], *widths[1:]] if widths else []
        self.down = nn.ModuleList(make(b, w) for b, w in zip(before, widths, strict=False))
        self.centre = centre
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * w, w, 2, stride=2) for w in widths)
        self.merge = nn.ModuleList(make(2 * w, a) for w, a in zip(widths, after, strict=True))

    def encode(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """What arrives at the centre, `[B, c, H/2^levels, W/2^levels]`, and skips, finest first."""
        skips = []
        for down in self.down:
            skips.append(down(x))  # [B, width, h, w]
            x = max_pool2d(skips[-1], 2)  # [B, width, h/2, w/2]
        return x, skips

    def decode(self, x: Tensor, skips: list[Tensor]) -> Tensor:
        """From the output of the centre back to the resolution of the input."""
        for up, merge, skip in reversed(list(zip(self.up, self.merge, skips, strict=True))):
            x = merge(torch.cat([skip, up(x)], 1))  # [B, 2·width, h, w] → [B, width, h, w]
        return x

    def forward(self, x: Tensor) -> Tensor:
        deepest, skips = self.encode(x)
        return self.decode(self.centre(deepest), skips)


def below(incoming: int, widths: Sequence[int], make: MakeBlock, out: int = 0) -> Hourglass:
    """The part of a U-Net whose levels and central block have these widths."""
    *levels, deepest = widths
    centre = make(levels[-1], deepest) if levels else make(incoming, out or deepest)
    return Hourglass(incoming, levels, centre, make, out)


# ------------------------------------------------------------------------------ recurrent units


def _linear(net: Hourglass) -> Hourglass:
    """Without the last ReLU: a gate σ(max(0, ·)) could never fall below ½."""
    last: Any = net.merge[0] if len(net.merge) else net.centre
    del last[-1]
    return net


class GatedUnit(nn.Module):
    """DRU and SRU: a part of the U-Net as recurrent unit (eqs 2.1–2.4 and 2.6).

    The gates see e only; h reaches them through the mask that the network is fed. f_s of eq. 2.5
    has no layer of its own: it is the next level of the decoder.

    Args:
        incoming: channels of e.
        widths: of the part of the U-Net that is replaced; the hidden state has `widths[0]`.
        dual: with the reset gate r (DRU), or without (SRU).
    """

    def __init__(self, incoming: int, widths: Sequence[int], make: MakeBlock, *, dual: bool):
        super().__init__()
        self.f_z = _linear(below(incoming, widths, make))
        self.f_h = _linear(below(incoming, widths, make))
        self.f_r = _linear(below(incoming, widths, make, out=incoming)) if dual else None

    def forward(self, e: Tensor, h: Tensor | None = None) -> Tensor:
        """e `[B, incoming, H, W]` and h_{t−1} (ones when absent) to h_t, `[B, hidden, H, W]`."""
        z = self.f_z(e).sigmoid()  # [B, hidden, H, W]: what stays as it is (2.1)
        if self.f_r is not None:
            e = self.f_r(e).sigmoid() * e  # [B, incoming, H, W] (2.3)
        candidate = self.f_h(e).tanh()  # (2.2), (2.6)
        return z * (1 if h is None else h) + (1 - z) * candidate  # (2.4)


class ConvGRU(nn.Module):
    """The standard gated recurrent unit, its linear maps replaced by blocks; h_0 is zero."""

    def __init__(self, incoming: int, hidden: int, make: MakeBlock):
        super().__init__()
        self.hidden = hidden
        gates = [_linear(below(incoming + hidden, [hidden], make)) for _ in range(3)]
        self.f_z, self.f_r, self.f_h = gates

    def forward(self, e: Tensor, h: Tensor | None = None) -> Tensor:
        if h is None:
            h = e.new_zeros(len(e), self.hidden, *e.shape[2:])
        both = torch.cat([e, h], 1)  # [B, incoming + hidden, H, W]
        z, r = self.f_z(both).sigmoid(), self.f_r(both).sigmoid()
        candidate = self.f_h(torch.cat([e, r * h], 1)).tanh()
        return z * h + (1 - z) * candidate


# --------------------------------------------------------------------------------- the networks


class RecurrentUNet(nn.Module):
    """A U-Net that is applied several times to one image; `segmenter` builds the named ones.

    Args:
        incoming: channels of the image.
        classes: K, at least 2.
        unit: "dru", "sru", "gru", or None for no hidden state.
        level: ℓ, how many levels the encoder has before the unit; the unit replaces the rest of
            the U-Net. `depth` (the default): the central block only. −1: the unit follows the
            whole U-Net.
        mask: feed the logits of the last iteration, beside the image; zeros at first.
        channels: of the first level; they double with every level.
        depth: number of poolings; sides of the image must be divisible by 2^depth.
        convs: convolutions of a block, 1 or 2.
        norm: "group" or "batch".
        iterations: what `forward` does by default.
    """

    def __init__(
        self,
        incoming: int,
        classes: int,
        *,
        unit: str | None = None,
        level: int | None = None,
        mask: bool = False,
        channels: int = 8,
        depth: int = 4,
        convs: int = 1,
        norm: str = "group",
        iterations: int = 3,
    ):
        super().__init__()
        level = depth if level is None else level
        allowed: dict[str, tuple[Any, tuple[Any, ...]]] = {
            "unit": (unit, (None, "dru", "sru", "gru")), "norm": (norm, ("group", "batch")),
            "convs": (convs, (1, 2)), "level": (level, tuple(range(-1, depth + 1))),
        }  # fmt: skip
        for what, (value, values) in allowed.items():
            if value not in values:
                raise ValueError(f"{what} is {value!r}; it must be one of {values}")
        if min(incoming, channels, iterations) < 1 or classes < 2 or depth < 0:
            raise ValueError(
                f"incoming {incoming}, channels {channels} and iterations {iterations} must be at "
                f"least 1, classes {classes} at least 2, depth {depth} not negative"
            )
        self.incoming, self.classes, self.depth = incoming, classes, depth
        self.feeds_mask, self.stateful = mask, unit is not None
        self.iterations = iterations if mask or unit else 1
        make = partial(block, norm=norm, convs=convs)
        widths = [channels * 2**k for k in range(depth + 1)]
        first = incoming + classes * mask
        self.stem: nn.Module = nn.Identity()
        if level < 0:
            self.stem, first, level, widths = below(first, widths, make), channels, 0, [channels]
        arriving = widths[level - 1] if level else first  # channels of e
        if unit is None:
            centre: nn.Module = below(arriving, widths[level:], make)
        elif unit == "gru":
            centre = ConvGRU(arriving, widths[level], make)
        else:
            centre = GatedUnit(arriving, widths[level:], make, dual=unit == "dru")
        self.body = Hourglass(first, widths[:level], centre, make)
        self.head = nn.Conv2d(channels, classes, 1)

    def refine(self, x: Tensor) -> Iterator[Tensor]:
        """The logits `[B, K, H, W]` of one iteration after another, computed as they are taken."""
        factor, unit = 2**self.depth, self.body.centre
        wrong = x.dim() != 4 or x.shape[1] != self.incoming
        if wrong or any(side % factor for side in x.shape[2:]):
            raise ValueError(
                f"an input is {list(x.shape)}; it must be [B, {self.incoming}, height, width] with "
                f"both sides divisible by {factor}: see nas_core.data.zero_pad"
            )
        mask = x.new_zeros(len(x), self.classes, *x.shape[2:])
        arriving: tuple[Tensor, list[Tensor]] | None = None
        h = None
        while True:
            if arriving is None or self.feeds_mask:  # else the encoder sees the same again
                seen = torch.cat([x, mask], 1) if self.feeds_mask else x
                arriving = self.body.encode(self.stem(seen))
            e, skips = arriving  # e is [B, c, H/2^ℓ, W/2^ℓ]
            h = unit(e, h) if self.stateful else unit(e)
            mask = self.head(self.body.decode(h, skips))
            yield mask

    def forward(self, x: Tensor, iterations: int | None = None) -> Tensor:
        """Images `[B, C, H, W]` to the logits of every iteration, `[T, B, K, H, W]`."""
        steps = self.iterations if iterations is None else iterations
        if steps < 1:
            raise ValueError(f"iterations is {steps}; it must be at least 1")
        if steps > 1 and not (self.stateful or self.feeds_mask):
            raise ValueError(f"iterations is {steps}, but a plain U-Net remembers nothing; use 1")
        return torch.stack(list(islice(self.refine(x), steps)))


BASELINES: dict[str, dict[str, Any]] = {
    "U-Net-B": {"norm": "batch"},
    "U-Net-G": {},
    "Rec-Simple": {"mask": True},
    "Rec-Last": {"unit": "gru", "level": -1},
    "Rec-Middle": {"unit": "gru"},
}


def segmenter(name: str, incoming: int, classes: int, **options: Any) -> RecurrentUNet:
    """A network of the thesis by its name there: one of `BASELINES`, "DRU(4)", "SRU(0)", ….

    Args:
        options: of `RecurrentUNet`; they win over what the name says. `mask=False` is DRU without
            the mask in its input (section 2.4.3).
    """
    named = BASELINES.get(name)
    if named is None and (gated := re.fullmatch(r"(DRU|SRU)\((\d)\)", name)):
        named = {"unit": gated[1].lower(), "level": int(gated[2]), "mask": True}
    if named is None:
        known = ", ".join((*BASELINES, "DRU(ℓ)", "SRU(ℓ)"))
        raise ValueError(f"unknown network {name!r}; choose from {known}")
    return RecurrentUNet(incoming, classes, **{**named, **options})


@torch.no_grad()
def count_macs(net: RecurrentUNet, height: int, width: int, iterations: int | None = None) -> int:
    """Multiply-adds of the convolutions, for one image and all iterations."""
    x = next(net.parameters()).new_zeros(1, net.incoming, height, width)
    with eval_mode(net), FlopCounterMode(display=False) as counter:
        net(x, iterations)
    return counter.get_total_flops() // 2


# ------------------------------------------------------------------------------------- training


def recurrent_loss(logits: Tensor, y: Tensor, alpha: float = 0.4) -> Tensor:
    """Σ_t α^(N−t) · cross-entropy of iteration t (eqs 2.7 and 2.8).

    Args:
        logits: `[N, B, K, H, W]`.
        y: `[B, H, W]`; pixels below 0 are ignored.
        alpha: 1 or 0.4 in the thesis.
    """
    losses = torch.stack([cross_entropy(step, y) for step in logits])  # [N]
    left = torch.arange(len(losses) - 1, -1, -1, device=losses.device)  # N−t
    return (alpha**left * losses).sum()


@dataclass(frozen=True)
class RecurrentConfig(TrainConfig):
    """`TrainConfig` and what `train_recurrent` adds, so that a checkpoint knows both."""

    alpha: float = 0.4
    iterations: int = 1


def train_recurrent(
    net: RecurrentUNet,
    data: Splits,
    config: TrainConfig,
    alpha: float = 0.4,
    iterations: int | None = None,
    *,
    checkpoint: str | Path | None = None,
    progress: bool | str = True,
) -> LoopResult:
    """`train_classifier` with the loss over all iterations; val_… measure the last iteration.

    Args:
        alpha: see `recurrent_loss`.
        iterations: N, the network's own number when absent.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha}; it must be in 0…1")
    steps = net.iterations if iterations is None else iterations
    full = RecurrentConfig(**{**asdict(config), "alpha": alpha, "iterations": steps})

    def forward(model: nn.Module, x: Tensor) -> Tensor:
        logits = model(x, steps)  # [N, B, K, H, W]
        return logits if model.training else logits[-1]

    return train_classifier(
        net, data, full, forward=forward, loss=partial(recurrent_loss, alpha=alpha),
        checkpoint=checkpoint, progress=progress,
    )  # fmt: skip


# ----------------------------------------------------------------- how many iterations, per image


def glimpses(logits: Tensor) -> Tensor:
    """What a rule for stopping knows after every iteration, `[T, B, K, H, W]` → `[T, B, 3]`.

    Means over pixels: entropy, change of probabilities (at first from 1/K), share of class 0.
    """
    p = logits.softmax(2)
    entropy = -(p * p.clamp(min=1e-9).log()).sum(2)  # [T, B, H, W]
    change = p.diff(dim=0, prepend=torch.full_like(p[:1], 1 / p.shape[2])).abs().sum(2) / 2
    return torch.stack([part.mean((2, 3)) for part in (entropy, change, p[:, :, 0])], -1)


class StopController(nn.Module):
    """Stops after iteration t < T with probability σ(w·g_t + b_t): T is an architecture per image.

    Ours; REINFORCE (eq. 3.25) trains it on `glimpses`, with the network fixed.
    """

    def __init__(self, iterations: int, inputs: int = 3):
        super().__init__()
        self.register_buffer("mean", torch.zeros(inputs))  # of the training images
        self.register_buffer("std", torch.ones(inputs))
        self.weight = nn.Parameter(torch.zeros(inputs))
        self.bias = nn.Parameter(torch.zeros(iterations - 1))

    def _logits(self, seen: Tensor) -> Tensor:
        return ((seen[:-1] - self.mean) / self.std @ self.weight).T + self.bias  # [B, T−1]

    def forward(self, seen: Tensor) -> Tensor:
        """`[T, B, F]` to the log-probabilities of stopping after each iteration, `[B, T]`."""
        z = self._logits(seen)
        reached = torch.cat([z.new_zeros(len(z), 1), logsigmoid(-z).cumsum(1)], 1)
        return reached + torch.cat([logsigmoid(z), z.new_zeros(len(z), 1)], 1)

    def decide(self, seen: Tensor) -> Tensor:
        """The iteration, counted from 0, after which each image stops: int64 `[B]`."""
        stops = self._logits(seen) > 0  # [B, T−1]
        return torch.cat([stops, stops.new_ones(len(stops), 1)], 1).int().argmax(1)

    def fit(self, seen: Tensor, losses: Tensor, price: float, steps: int = 400) -> StopController:
        """Descend E[loss + price · iterations]; losses `[T, B]` of training images."""
        self.mean, self.std = seen.mean((0, 1)), seen.std((0, 1)) + 1e-6
        objective = losses + price * torch.arange(1, len(losses) + 1)[:, None]
        optimizer = torch.optim.Adam([self.weight, self.bias], lr=0.05)
        for _ in range(steps):
            log_prob = self(seen)  # [B, T]
            drawn = log_prob.exp().multinomial(1)  # [B, 1]
            chosen, mean = objective.T.gather(1, drawn)[:, 0], objective.mean(0)
            descend(policy_loss(log_prob.gather(1, drawn)[:, 0], chosen, mean), optimizer)
        return self


# ------------------------------------------------------------------------------------- measures


def confusion(predicted: Tensor, y: Tensor, classes: int) -> Tensor:
    """How many pixels of class i (row) were called j (column): int64 `[K, K]`.

    Args:
        predicted, y: whole numbers of one shape; pixels whose y is below 0 are left out.
    """
    if predicted.shape != y.shape or max(int(y.max()), int(predicted.max())) >= classes:
        raise ValueError(
            f"predicted {list(predicted.shape)} and y {list(y.shape)} must have one shape and "
            f"classes below {classes}; the largest are {predicted.max()} and {y.max()}"
        )
    kept = y >= 0
    pairs = classes * y[kept] + predicted[kept]
    return torch.bincount(pairs, minlength=classes**2).view(classes, classes)


def scores(counts: Tensor) -> dict[str, float]:
    """mIoU, mRec, mPrec and mF1 of a confusion matrix: means over the classes.

    A class that is neither in the truth nor predicted does not count; a class that is only in one
    of them has 0.
    """
    counts = counts.double()
    hit, truth, called = counts.diagonal(), counts.sum(1), counts.sum(0)
    there = truth + called > 0
    if not there.any():
        raise ValueError("there are no pixels to measure on")

    of = {"mIoU": truth + called - hit, "mRec": truth, "mPrec": called, "mF1": (truth + called) / 2}
    return {k: float((hit / whole.clamp(min=0.5))[there].mean()) for k, whole in of.items()}


def break_even(score: Tensor, truth: Tensor) -> float:
    """Precision at the threshold where it equals the recall (P/R of table 2.5).

    They are equal where as many pixels are called positive as are positive. Of pixels with equal
    scores, a part is taken, with their mean precision.

    Args:
        score: larger for more likely positive.
        truth: bool, of the same shape; at least one is True.
    """
    positives = int(truth.sum())
    if not positives:
        raise ValueError("no pixel is positive, so precision and recall have no threshold")
    threshold = score.flatten().sort(descending=True).values[positives - 1]
    above, tied = score > threshold, score == threshold
    share = (positives - above.sum()) / tied.sum()
    return float(((truth & above).sum() + share * (truth & tied).sum()) / positives)


@torch.no_grad()
def measure(
    predict: Callable[[Tensor], Tensor], data: TensorData, batch_size: int = 32
) -> list[dict[str, float]]:
    """A row of `scores` for every iteration; for two classes also break_even, of class 1.

    Args:
        predict: images to logits `[T, B, K, H, W]`: a network (measured in eval mode), or any
            function, such as one that averages the members of an ensemble.
        data: measured without augmentation.
    """
    batches = data.plain().batches(batch_size, seed=0, shuffle=False)
    with eval_mode(predict) if isinstance(predict, nn.Module) else nullcontext():
        parts = [(predict(x).float(), y) for x, y in batches]
    logits = torch.cat([part for part, _ in parts], 1)  # [T, N, K, H, W]
    y, rows = torch.cat([part for _, part in parts]), []
    for t, step in enumerate(logits):
        row = {"iteration": t + 1, **scores(confusion(step.argmax(1), y, step.shape[1]))}
        if step.shape[1] == 2:
            margin = step[:, 1] - step[:, 0]
            row["break_even"] = break_even(margin[y >= 0], y[y >= 0] == 1)
        rows.append(row)
    return rows
