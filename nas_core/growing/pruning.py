"""Masks: which weights of a network are kept, by which score, and how they stay pruned.

Weights, scores and masks are dictionaries with the same names. Convolutions and linear layers are
pruned; biases, batch norm and mixing scalars never are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

Weights = Mapping[str, Tensor]  # name → weight, score, or bool mask, all of the same shapes
Reinit = Literal["none", "score only", "persistent"]


def weights(module: nn.Module, only: Iterable[str] = ("",)) -> dict[str, nn.Parameter]:
    """The prunable weights by name, of the submodules `only` or of all."""
    starts = tuple(f"{name}." if name else "" for name in only)
    found = {
        f"{name}.weight".removeprefix("."): part.get_parameter("weight")
        for name, part in module.named_modules()
        if isinstance(part, nn.Linear | nn.modules.conv._ConvNd) and f"{name}.".startswith(starts)
    }
    if not found:
        raise ValueError("there is no convolution and no linear layer to prune")
    return found


def count(masks: Weights) -> int:
    """Number of kept weights (of non-zero ones, when weights are given)."""
    return sum(int(m.count_nonzero()) for m in masks.values())


def magnitude(weights: Weights) -> dict[str, Tensor]:
    """|w|."""
    return {name: w.detach().abs() for name, w in weights.items()}


def random(weights: Weights, generator: torch.Generator) -> dict[str, Tensor]:
    """Uniform numbers, drawn on the CPU."""
    return {k: torch.rand(w.shape, generator=generator).to(w.device) for k, w in weights.items()}


def snip(
    weights: Mapping[str, nn.Parameter],
    loss: Callable[[], Tensor],
    *,
    module: nn.Module,
    reinit: Reinit = "none",
) -> dict[str, Tensor]:
    """Connection sensitivity |w · ∂L/∂w| (Lee et al., 2019): the gradient of a mask at 1.

    Args:
        loss: of one batch, in training mode; called once.
        module: the network; the statistics of its batch norm come back afterwards.
        reinit: `"none"` scores the weights as they are; `"score only"` scores fresh random weights
            and puts the trained ones back; `"persistent"` leaves the fresh ones in place.
    """
    if reinit not in ("none", "score only", "persistent"):
        raise ValueError(f'reinit is {reinit!r}; use "none", "score only" or "persistent"')
    # Batch norm updates its statistics in the scoring pass, and fresh weights replace trained ones.
    kept = [*module.buffers(), *([] if reinit == "persistent" else weights.values())]
    saved = [tensor.detach().clone() for tensor in kept]
    if reinit != "none":
        for w in weights.values():
            draw(w)
    gradients = torch.autograd.grad(loss(), list(weights.values()), allow_unused=True)
    scores = {
        name: torch.zeros_like(w) if g is None else (w * g).abs().detach()
        for (name, w), g in zip(weights.items(), gradients, strict=True)
    }
    with torch.no_grad():
        for tensor, value in zip(kept, saved, strict=True):
            tensor.copy_(value)
    return scores


@torch.no_grad()
def draw(w: Tensor) -> None:
    """Initial values: He et al. (fan out) for convolutions, PyTorch's for linear layers."""
    if w.dim() > 2:
        nn.init.kaiming_normal_(w, mode="fan_out", nonlinearity="relu")
    else:
        nn.init.kaiming_uniform_(w, a=5**0.5)


def keep_count(ratio: float, total: int) -> int:
    """κ = int(ratio · total), the number of weights that the report keeps of a block."""
    if not 0 <= ratio <= 1:
        raise ValueError(f"keep ratio {ratio}; it must be in 0…1")
    return int(ratio * total)


def keep_ratio(target: float, step: int, steps: int) -> float:
    """Ratio after one of several equal prunings: 1 − (1 − target) · step / steps."""
    return target if step == steps else 1 - (1 - target) * step / steps


def keep_best(
    scores: Weights, keep: int | Mapping[str, int], *, within: Weights | None = None
) -> dict[str, Tensor]:
    """Masks of the weights with the largest scores; of equal ones the first are kept.

    Args:
        keep: how many of all weights together (global), or of every layer (layer-wise).
        within: earlier masks. What they pruned stays pruned, so masks are nested.

    Raises:
        ValueError: when scores are not finite, or `within` leaves fewer weights than `keep`.
    """
    if not isinstance(keep, int):
        each = [keep_best({k: score}, keep[k], within=within) for k, score in scores.items()]
        return {name: mask for masks in each for name, mask in masks.items()}
    flat = torch.cat([score.flatten() for score in scores.values()])
    if not flat.isfinite().all():
        raise ValueError("scores must be finite; the loss of the scored batch was not")
    if within is not None:
        flat = flat.masked_fill(~torch.cat([within[k].flatten() for k in scores]), -torch.inf)
    left = int((flat > -torch.inf).sum())
    if not 0 <= keep <= left:
        raise ValueError(f"cannot keep {keep} of the {left} weights that are left")
    best = torch.zeros_like(flat, dtype=torch.bool)
    best[flat.argsort(descending=True, stable=True)[:keep]] = True
    parts = best.split([score.numel() for score in scores.values()])
    return {k: part.view_as(score) for (k, score), part in zip(scores.items(), parts, strict=True)}


def keep_all(weights: Weights) -> dict[str, Tensor]:
    return {name: torch.ones_like(w, dtype=torch.bool) for name, w in weights.items()}


def layer_counts(masks: Weights) -> dict[str, int]:
    """Kept weights of every layer, as `keep_best` takes them.

    With random scores they are the control that tells whether a score knows more than its ratios.
    """
    return {name: int(mask.sum()) for name, mask in masks.items()}


def keep_filters(scores: Weights, ratio: float, parameters: Weights) -> dict[str, Tensor]:
    """Structured masks: the filters with the largest mean scores, at least one per convolution.

    All convolutions compete; linear layers stay whole.

    Of `parameters`, all of the network by name, batch norm of a removed filter gets a mask too:
    without it the filter would go on as a constant.
    """
    scores = {name: score for name, score in scores.items() if score.dim() > 2}
    means = {name: score.flatten(1).mean(1) for name, score in scores.items()}
    for mean in means.values():
        mean[mean.argmax()] = torch.finfo(mean.dtype).max
    filters = sum(len(mean) for mean in means.values())
    kept = keep_best(means, max(len(means), keep_count(ratio, filters)))
    masks = {k: kept[k].view(-1, *[1] * (s.dim() - 1)).expand_as(s) for k, s in scores.items()}
    for name, mask in kept.items():  # `conv_bn` names the convolution 0 and its batch norm 1
        norm = name.removesuffix("0.weight") + "1."
        masks |= {norm + k: mask for k in ("weight", "bias") if norm + k in parameters}
    return masks


@torch.no_grad()
def apply(weights: Weights, masks: Weights) -> None:
    """Set pruned weights to zero, in place; weights without a mask are left alone."""
    for name, mask in masks.items():
        weights[name].mul_(mask)


def hold(optimizer: torch.optim.Optimizer, weights: Weights, masks: Weights) -> Any:
    """Apply the masks now and after every step of `optimizer`; `.remove()` ends that.

    Momentum would otherwise bring pruned weights back. Masks added later are applied as well.
    """
    apply(weights, masks)
    return optimizer.register_step_post_hook(lambda *_: apply(weights, masks))


def rewind(module: nn.Module, state: Mapping[str, Tensor], masks: Weights) -> None:
    """Set `module` to the `state_dict` of the start or of an early epoch, and prune it again."""
    module.load_state_dict(state)
    apply(dict(module.named_parameters()), masks)


def lottery_ticket(
    module: nn.Module,
    state: Mapping[str, Tensor],
    train: Callable[[Weights], object],
    keep: float,
    rounds: int = 1,
) -> dict[str, Tensor]:
    """Train, prune the smallest weights, rewind, `rounds` times; returns the masks.

    Args:
        module: left rewound and pruned, ready for its last training.
        state: its `state_dict` before training (Frankle and Carbin, 2019) or after an early epoch
            (Frankle et al., 2019); a deep copy.
        train: `train(masks)` trains `module` with these masks held.
        keep: share of all weights at the end; every round keeps keep^(1/rounds) of the rest.
    """
    parts = weights(module)
    masks = keep_all(parts)
    total = count(masks)
    for r in range(1, rounds + 1):
        train(masks)
        left = keep_count(keep ** (r / rounds), total)
        masks = keep_best(magnitude(parts), left, within=masks)
        rewind(module, state, masks)
    return masks
