"""Counting: parameters and multiply-adds of a module for one example."""

from __future__ import annotations

import torch
from torch import nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode


def count_params(module: nn.Module) -> int:
    """Number of parameters, each counted once."""
    return sum(p.numel() for p in module.parameters())


def count_macs(module: nn.Module, input_shape: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
    """Multiply-adds of `module` for one example, and the shape of its output.

    Convolutions, linear and recurrent layers count; normalisation, biases, activations, pooling
    and additions are free. Nothing is computed: the module runs on PyTorch's meta device under
    its FlopCounterMode, whose FLOPs are twice the multiply-adds.

    Args:
        module: any module that maps one tensor to one tensor.
        input_shape: shape of one example, without the batch dimension.
    """
    meta = {k: v.to("meta") for k, v in (module.state_dict(keep_vars=True)).items()}
    training = {m: m.training for m in module.modules()}
    module.eval()  # batch norm in training mode refuses a single example with 1×1 maps
    try:
        with torch.no_grad(), torch.device("meta"), FlopCounterMode(display=False) as counter:
            output = functional_call(module, meta, (torch.empty(1, *input_shape),))
    finally:
        for m, mode in training.items():
            m.training = mode
    return counter.get_total_flops() // 2, tuple(output.shape[1:])
