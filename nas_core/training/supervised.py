"""Train and measure one network on labelled data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from nas_core.training.loop import History, LoopResult, run_epochs
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

    def __post_init__(self) -> None:
        if self.optimizer not in ("sgd", "adam"):
            raise ValueError(f'optimizer is {self.optimizer!r}; it must be "sgd" or "adam"')
        if self.epochs < 0 or self.batch_size < 1:
            raise ValueError(f"epochs {self.epochs} must be ≥ 0, batch_size {self.batch_size} ≥ 1")
        if not self.lr > 0:
            raise ValueError(f"lr is {self.lr}; it must be above 0")
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(f"milestones {self.milestones} must be increasing")

    def lr_at(self, epoch: int) -> float:
        """Learning rate of an epoch: a step function, so that resuming needs no schedule."""
        return self.lr * self.lr_factor ** sum(epoch >= m for m in self.milestones)


def train_classifier(
    model: nn.Module,
    data: Splits,
    config: TrainConfig,
    *,
    forward: Callable[[nn.Module, Tensor], Tensor] | None = None,
    checkpoint: str | Path | None = None,
    progress: bool | str = True,
) -> LoopResult:
    """Minimise the cross-entropy on `data.train`; measure on `data.val` after every epoch.

    Args:
        model: trained in place, on the device of the data. Outputs `[B, K]`, or `[B, K, H, W]`
            with a class per pixel.
        forward: `forward(model, x)` where calling the model is not enough.
        checkpoint: as in `run_epochs`.

    Returns:
        The history has epoch, lr, loss, val_loss and val_accuracy.
    """
    device = data.train.device
    amp = device.type == "cuda" if config.amp == "auto" else config.amp
    layout = torch.channels_last if device.type == "cuda" else torch.preserve_format
    model.to(device=device)
    if device.type == "cuda":
        model.to(memory_format=torch.channels_last)
    optimizer = _optimizer(model, config)

    def outputs(x: Tensor) -> Tensor:
        x = x.to(memory_format=layout) if x.dim() == 4 else x
        with torch.autocast(device.type, torch.bfloat16, enabled=amp):
            return (model(x) if forward is None else forward(model, x)).float()

    def one_epoch(epoch: int) -> dict[str, float]:
        lr = config.lr_at(epoch)
        for group in optimizer.param_groups:
            group["lr"] = lr
        model.train()
        total, seen = torch.zeros((), device=device), 0
        # A last batch of one example has no variance for batch norm to divide by.
        lonely = len(data.train) > config.batch_size and len(data.train) % config.batch_size == 1
        batches = data.train.batches(
            config.batch_size, seed=config.seed, epoch=epoch, drop_last=lonely
        )
        for x, y in batches:
            loss = cross_entropy(outputs(x), y)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            total += loss.detach() * len(x)  # stays on the device: no step waits for the GPU
            seen += len(x)
        model.eval()
        val = evaluate(outputs, data.val, config.batch_size)
        return {
            "lr": lr,
            "loss": total.item() / max(seen, 1),
            "val_loss": val["loss"],
            "val_accuracy": val["accuracy"],
        }

    return run_epochs(
        one_epoch,
        config.epochs,
        state={"model": model, "optimizer": optimizer},
        history=History(),
        checkpoint=checkpoint,
        progress=progress,
        monitor="val_accuracy",
        patience=config.patience,
        config=asdict(config),
    )


def _optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    if config.optimizer == "adam":
        return torch.optim.Adam(
            model.parameters(), lr=config.lr, weight_decay=config.weight_decay, fused=True
        )
    return torch.optim.SGD(
        model.parameters(),
        lr=config.lr,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
    )


@torch.no_grad()
def evaluate(
    model: Callable[[Tensor], Tensor], data: TensorData, batch_size: int = 512
) -> dict[str, float]:
    """Mean cross-entropy and accuracy over all targets (pixels, where they are maps).

    Args:
        model: a module (measured in eval mode, then put back) or any function from inputs to
            outputs `[B, K, ...]`. Targets below 0 are ignored, as by `cross_entropy`.
        data: measured without augmentation, in order.
    """
    if len(data) == 0:
        raise ValueError("there are no examples to evaluate on")
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    modes = [module.training for module in modules]
    for module in modules:
        module.training = False
    loss = torch.zeros((), dtype=torch.float64, device=data.device)
    right, count = torch.zeros_like(loss), torch.zeros_like(loss)
    for x, y in data.plain().batches(batch_size, seed=0, shuffle=False):
        output = model(x).float()
        loss += cross_entropy(output, y, reduction="sum")
        right += (output.argmax(1) == y).sum()
        count += (y >= 0).sum()
    for module, mode in zip(modules, modes, strict=True):
        module.training = mode  # one by one: frozen parts may have been in eval mode before
    return {"loss": (loss / count).item(), "accuracy": (right / count).item()}
