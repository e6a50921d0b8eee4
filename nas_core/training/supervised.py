"""Supervised training: the step, the epoch and the measures that every loop of the book calls."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from nas_core.training.checkpoint import fingerprint
from nas_core.training.device import require
from nas_core.training.loop import LoopResult, run_epochs
from nas_core.training.tensors import Splits, TensorData


@dataclass(frozen=True)
class TrainConfig:
    """Hyper-parameters of plain training; see thesis section 3.5.2 for the paper's."""

    epochs: int = 300
    batch_size: int = 128
    lr: float = 0.1
    momentum: float = 0.9  # SGD only
    weight_decay: float = 1e-4
    milestones: tuple[int, ...] = ()  # epochs before which the learning rate changes
    lr_factor: float = 0.1  # by how much
    optimizer: Literal["sgd", "adam"] = "sgd"
    patience: int | None = None  # epochs without a better val_accuracy; None trains to the end
    amp: bool | Literal["auto"] = "auto"  # bfloat16 autocast; "auto": on a GPU
    seed: int = 0  # order of the examples and augmentation
    nesterov: bool = False  # SGD only
    schedule: Literal["steps", "cosine"] = "steps"  # "cosine" falls to 0 and needs no milestones

    def __post_init__(self) -> None:
        if self.epochs < 0 or self.batch_size < 1:
            raise ValueError(f"epochs {self.epochs} must be ≥ 0, batch_size {self.batch_size} ≥ 1")
        known = self.schedule in ("steps", "cosine")
        require(known, "schedule", self.schedule, '"steps" or "cosine"')
        if self.schedule == "cosine" and self.milestones:
            raise ValueError(f"milestones {self.milestones} have no place on a cosine")
        check_optimizer(self.optimizer, self.lr, self.momentum, self.weight_decay)
        self.lr_at(0)

    def lr_at(self, epoch: int) -> float:
        """Learning rate of an epoch: a function of the epoch, so that resuming needs no state."""
        if self.schedule == "cosine":
            return cosine_lr(self.lr, epoch, self.epochs)
        return step_lr(self.lr, epoch, self.milestones, self.lr_factor)

    def make_optimizer(self, parameters: Iterable[Any]) -> torch.optim.Optimizer:
        return make_optimizer(
            parameters, self.optimizer, lr=self.lr, momentum=self.momentum,
            nesterov=self.nesterov, weight_decay=self.weight_decay,
        )  # fmt: skip


def check_optimizer(kind: str, lr: float, momentum: float, weight_decay: float) -> None:
    """Refuse wrong values; builds no optimizer, which would import the compiler of PyTorch."""
    require(kind in ("sgd", "adam"), "optimizer", kind, '"sgd" or "adam"')
    require(0 < lr < float("inf"), "lr", lr, "above 0")
    require(0 <= momentum < 1, "momentum", momentum, "in 0…1, 1 excluded")
    require(0 <= weight_decay < float("inf"), "weight_decay", weight_decay, "at least 0")


def make_optimizer(
    parameters: Iterable[Any], kind: str = "sgd", *, lr: float, momentum: float = 0.9,
    nesterov: bool = False, weight_decay: float = 0.0,
) -> torch.optim.Optimizer:  # fmt: skip
    """SGD with momentum, or Adam, which ignores `momentum` and `nesterov`.

    Args:
        parameters: tensors, or groups as PyTorch's optimizers take them; there may be none.
    """
    check_optimizer(kind, lr, momentum, weight_decay)
    groups = list(parameters)
    if not (groups and isinstance(groups[0], dict)):
        groups = [{"params": groups}]
    if kind == "adam":
        return torch.optim.Adam(groups, lr=lr, weight_decay=weight_decay, fused=True)
    return torch.optim.SGD(
        groups, lr=lr, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov
    )


def step_lr(lr: float, epoch: int, milestones: Sequence[int], factor: float = 0.1) -> float:
    """`lr` times `factor` for every milestone that `epoch` has reached."""
    milestones = tuple(milestones)
    require(milestones == tuple(sorted({*milestones})), "milestones", milestones, "increasing")
    return lr * factor ** sum(epoch >= m for m in milestones)


def cosine_lr(lr: float, epoch: int, epochs: int, floor: float = 0.0) -> float:
    """Half a cosine from `lr` in epoch 0 down to `floor` · `lr` after `epochs`."""
    return lr * (floor + (1 - floor) * (1 + float(np.cos(np.pi * epoch / max(epochs, 1)))) / 2)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


def descend(
    loss: Tensor, optimizer: torch.optim.Optimizer, *,
    clear: Sequence[torch.optim.Optimizer] = (), before_step: Callable[[], None] | None = None,
) -> bool:  # fmt: skip
    """One update; none, and False, if the loss depends on no trainable parameter.

    That is so when all weights are frozen, or no architecture of a batch has a complete path.

    Args:
        clear: further optimizers whose parameters receive gradients here but no update.
        before_step: may change the gradients.
    """
    for one in (optimizer, *clear):
        one.zero_grad(set_to_none=True)
    if not loss.requires_grad:
        return False
    loss.backward()
    if before_step is not None:
        before_step()
    optimizer.step()
    return True


def train_epoch(
    batches: Iterable[tuple[Tensor, Tensor]], loss: Callable[[Tensor, Tensor], Tensor],
    optimizer: torch.optim.Optimizer, *,
    schedule: torch.optim.lr_scheduler.LRScheduler | None = None,
) -> float:  # fmt: skip
    """Descend on `loss(x, y)` of every batch; the mean loss, weighted by rows.

    Args:
        schedule: advanced after every step.
    """
    total: Tensor | float = 0.0
    seen = 0
    for x, y in batches:
        value = loss(x, y)
        descend(value, optimizer)
        if schedule is not None:
            schedule.step()
        total = total + value.detach() * len(x)  # stays on the device: no step waits for it
        seen += len(x)
    if seen == 0:
        raise ValueError("there are no training examples, or fewer than one batch of them")
    return float(total) / seen


def on_device(
    model: nn.Module, device: torch.device, *, amp: bool, channels_last: bool,
    forward: Callable[..., Tensor] | None = None,
) -> Callable[..., Tensor]:  # fmt: skip
    """Move `model` to `device`; the function that gives its outputs there, in float32.

    Args:
        amp: compute in bfloat16 where that is safe.
        channels_last: memory layout of images and kernels, the faster one on GPUs.
        forward: called as `forward(model, x, …)` instead of `model(x, …)`.
    """
    model.to(device)
    if channels_last:
        model.to(memory_format=torch.channels_last)
    call = model if forward is None else partial(forward, model)

    def outputs(x: Tensor, *args: Any) -> Tensor:
        x = x.to(memory_format=torch.channels_last) if channels_last and x.dim() == 4 else x
        with torch.autocast(device.type, torch.bfloat16, enabled=amp):
            return call(x, *args).float()

    return outputs


def train_classifier(
    model: nn.Module, data: Splits, config: TrainConfig, *,
    forward: Callable[[nn.Module, Tensor], Tensor] | None = None,
    loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy,
    checkpoint: str | Path | None = None, progress: bool | str = True,
) -> LoopResult:  # fmt: skip
    """Minimise the cross-entropy on `data.train`; measure on `data.val` after every epoch.

    Args:
        model: trained in place, on the device of the data; its outputs are `[B, K]`, or
            `[B, K, H, W]` with a class per pixel.
        forward: `forward(model, x)` where calling the model is not enough.
        loss: of the outputs and targets of a batch, in training; `config` should hold its settings.
        checkpoint: as in `run_epochs`; belongs to this network, these data and this configuration.

    Returns:
        The history has epoch, lr, loss, val_loss and val_accuracy.
    """
    _check_targets(data.train)
    device = data.train.device
    on_gpu = device.type == "cuda"
    amp = on_gpu if config.amp == "auto" else config.amp
    outputs = on_device(model, device, amp=amp, channels_last=on_gpu, forward=forward)
    optimizer = config.make_optimizer(model.parameters())

    def one_epoch(epoch: int) -> dict[str, float]:
        lr = config.lr_at(epoch)
        set_lr(optimizer, lr)
        model.train()
        # A last batch of one example has no variance for batch norm to divide by.
        size = config.batch_size
        lonely = len(data.train) > size and len(data.train) % size == 1
        batches = data.train.batches(size, seed=config.seed, epoch=epoch, drop_last=lonely)
        mean = train_epoch(batches, lambda x, y: loss(outputs(x), y), optimizer)
        model.eval()
        val = evaluate(outputs, data.val, size)
        return {"lr": lr, "loss": mean, "val_loss": val["loss"], "val_accuracy": val["accuracy"]}

    identity = asdict(config)
    if checkpoint is not None:
        shapes = [(name, tuple(part.shape)) for name, part in model.state_dict().items()]
        identity["network"] = fingerprint(str(model), shapes)
        identity |= {f"{part} data": getattr(data, part).fingerprint() for part in ("train", "val")}
        if config.schedule == "cosine":
            identity["epochs of the cosine"] = config.epochs
    return run_epochs(
        one_epoch, config.epochs, state={"model": model, "optimizer": optimizer},
        checkpoint=checkpoint, progress=progress, monitor="val_accuracy",
        patience=config.patience, config=identity,
    )  # fmt: skip


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Every module in eval mode, and afterwards in its own again: frozen parts may differ."""
    modes = {module: module.training for module in model.modules()}
    try:
        for module in modes:
            module.training = False
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@torch.no_grad()
def evaluate(
    model: Callable[[Tensor], Tensor], data: TensorData, batch_size: int = 512
) -> dict[str, float]:
    """Mean cross-entropy and accuracy over all targets (pixels, where they are maps).

    Args:
        model: a module (measured in eval mode, then put back) or any function from inputs to
            outputs `[B, K, ...]`.
        data: measured in order and without augmentation; targets below 0 are ignored.
    """
    if len(data) == 0:
        raise ValueError("there are no examples to evaluate on")
    _check_targets(data)
    totals = torch.zeros(3, dtype=torch.float64, device=data.device)
    with eval_mode(model) if isinstance(model, nn.Module) else nullcontext():
        for x, y in data.plain().batches(batch_size, seed=0, shuffle=False):
            output = model(x).float()  # [B, K, ...]
            totals[0] += cross_entropy(output, y, reduction="sum")
            totals[1] += (output.argmax(1) == y).sum()
            totals[2] += (y >= 0).sum()
    loss, right, count = totals.tolist()  # the only time the device is waited for
    if count == 0:
        raise ValueError("every target is below 0, so there is none to evaluate on")
    return {"loss": loss / count, "accuracy": right / count}


def accuracy(model: Callable[[Tensor], Tensor], data: TensorData, batch_size: int = 512) -> float:
    """Share of the targets whose logit is the largest; arguments as for `evaluate`."""
    return evaluate(model, data, batch_size)["accuracy"]


def _check_targets(data: TensorData) -> None:
    if data.y.is_floating_point():
        raise ValueError(f"targets are {data.y.dtype}; whole numbers are needed: y.long()")
