"""Making a *given* network smaller (thesis section 2.3); pruning is in `nas_core.growing`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def quantise_weights(net: nn.Module, bits: int) -> float:
    """Round weights to `bits` bits, in place, symmetric, one scale per output channel.

    Returns the size of all parameters in bytes: quantised weights, their float32 scales, and
    everything else in float32. The arithmetic stays float32 (what rounding does to the answers is
    the same); a shorter latency needs kernels for the small type.
    """
    if not 2 <= bits <= 16:
        raise ValueError(f"bits {bits}; choose 2…16")
    levels = 2 ** (bits - 1) - 1
    weights = _weights(net)
    total = 4.0 * (sum(p.numel() for p in net.parameters()) - sum(w.numel() for w in weights))
    with torch.no_grad():
        for w in weights:
            scale = w.abs().flatten(1).amax(1).clamp_min(1e-12) / levels
            scale = scale.view(-1, *[1] * (w.dim() - 1))
            w.copy_((w / scale).round() * scale)
            total += w.numel() * bits / 8 + 4 * len(scale)
    return total


def distillation_loss(
    logits: Tensor, teacher: Tensor, y: Tensor, *, temperature: float = 3.0, mix: float = 0.7
) -> Tensor:
    """(1 − mix)·cross-entropy + mix·T²·KL(teacher ‖ student), both softened by T (Hinton 2015)."""
    student, goal = (logits / temperature).log_softmax(1), (teacher / temperature).log_softmax(1)
    soft = F.kl_div(student, goal, log_target=True, reduction="batchmean")
    return (1 - mix) * F.cross_entropy(logits, y) + mix * temperature**2 * soft


def _weights(net: nn.Module) -> list[nn.Parameter]:
    layers = [m for m in net.modules() if isinstance(m, nn.Linear | nn.modules.conv._ConvNd)]
    if not layers:
        raise ValueError("the network has no convolution and no linear layer")
    return [m.get_parameter("weight") for m in layers]
