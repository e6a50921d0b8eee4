"""One module at a time: count it, describe it, call it with checks, copy it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode


def count_params(module: nn.Module) -> int:
    """Number of parameters, each counted once."""
    return sum(p.numel() for p in module.parameters())


def count_macs(
    module: nn.Module, input_shape: tuple[int, ...], what: str = "the module"
) -> tuple[int, tuple[int, ...]]:
    """Multiply-adds of `module` for one example, and the shape of its output.

    Convolutions, linear and recurrent layers and attention count; normalisation, biases,
    activations, pooling and additions are free. Errors name the module as `what`.
    """
    x = example_input(module, input_shape)
    state = {k: v.to("meta") for k, v in chain(module.named_parameters(), module.named_buffers())}

    def on_meta(x: Tensor) -> Tensor:
        with torch.device("meta"):
            return functional_call(module, state, (x.to("meta"),))

    # The meta device computes nothing, but a module that reads values, or keeps tensors that are no
    # buffers, fails there and gets real zeros. A multiply-add counts as two FLOPs.
    for run, example in ((on_meta, x.to("meta")), (module, x)):
        with evaluating(module), torch.no_grad(), FlopCounterMode(display=False) as counter:
            try:
                out = call(run, example, what)
                return counter.get_total_flops() // 2, tuple(out.shape[1:])
            except Exception as error:
                failure = error
    given = f"a {str(x.dtype).removeprefix('torch.')} input of shape {list(input_shape)}"
    raise ValueError(f"{what} cannot process {given}: {failure}") from failure


def describe(module: nn.Module) -> str:
    """One line for readers and fingerprints, e.g. `Conv2d(3, 16, 3×3, stride 2) · BatchNorm2d`."""
    parts = []
    for m in module.modules():
        if isinstance(m, nn.modules.conv._ConvNd):
            kernel = "×".join(map(str, m.kernel_size))
            extra = "" if set(m.stride) == {1} else f", stride {m.stride[0]}"
            extra += "" if set(m.dilation) == {1} else f", dilation {m.dilation[0]}"
            extra += "" if m.groups == 1 else f", {m.groups} groups"
            parts.append(f"{type(m).__name__}({m.in_channels}, {m.out_channels}, {kernel}{extra})")
        elif isinstance(m, nn.Linear):
            parts.append(f"Linear({m.in_features}, {m.out_features})")
        elif not any(True for _ in m.children()):
            parts.append(type(m).__name__)
    plain = type(module) is nn.Sequential or not any(True for _ in module.children())
    return ("" if plain else f"{type(module).__name__}: ") + " · ".join(parts)


def example_input(module: nn.Module, shape: tuple[int, ...], rows: int = 1) -> Tensor:
    """Zeros `[rows, *shape]` of the dtype and on the device of the weights of `module`."""
    weights = (t for t in chain(module.parameters(), module.buffers()) if t.is_floating_point())
    like = next(weights, torch.empty(0))
    return torch.zeros(rows, *shape, dtype=like.dtype, device=like.device)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """All of `module` in evaluation mode; afterwards every part has its old mode again."""
    modes = [(m, m.training) for m in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for m, mode in modes:
            m.training = mode


def call(module: Callable[[Tensor], Any], x: Tensor, what: str) -> Tensor:
    """`module(x)`; ValueError when it changes `x` or does not return one tensor with as many rows.

    One row is too little for batch statistics, so batch norm in training mode uses its running
    statistics for it. (With 1×1 maps it would raise an error and end the training.)
    """
    rows = x.shape[0]
    # PyTorch counts the changes in place, but not of tensors made in inference mode.
    version = None if x.is_inference() else x._version
    alone = rows == 1 and isinstance(module, nn.Module) and module.training
    inside = module.modules() if alone else ()  # type: ignore[attr-defined]
    norms = [m for m in inside if isinstance(m, _BatchNorm) and m.training]
    for m in norms:
        m.training = False
    try:
        out = module(x)
    finally:
        for m in norms:
            m.training = True
    if not isinstance(out, Tensor):
        several = "nn.LSTM, nn.GRU and nn.MultiheadAttention return several"
        fault = f"{what} returns a {type(out).__name__}, expected one tensor"
        raise ValueError(f"{fault}; wrap it in a module that picks one ({several})")
    if version is not None and x._version != version:
        why = "other edges read the same tensor; use inplace=False in its first layer"
        raise ValueError(f"{what} changes its input in place, but {why}")
    if not out.shape or out.shape[0] != rows:
        fault = f"{what} returns shape {list(out.shape)} for {rows} examples"
        raise ValueError(f"{fault}; the first dimension must be the batch")
    return out


def copy_module(module: nn.Module) -> nn.Module:
    """A deep copy. Tensors that hooks have computed (nn.utils.weight_norm) are detached."""
    tensors = (v for m in module.modules() for v in vars(m).values() if isinstance(v, Tensor))
    return copy.deepcopy(module, {id(v): v.detach().clone() for v in tensors if not v.is_leaf})
