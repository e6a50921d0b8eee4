"""Data-parallel training of one network with torchrun.

    torchrun --standalone --nproc-per-node=2 benchmarks/ddp.py \\
        plain_resnet --out weights.pt dataset=digits epochs=20

A *job* is a function `job(device, **values) -> (model, splits, TrainConfig)`: one of this file, or
`module:function`. Every process takes its rows of each global batch, so that `batch_size` means
the same with 1, 2 or 8 processes.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from nas_core import data, spaces
from nas_core.search.run import Run
from nas_core.training import (
    LoopResult,
    Splits,
    TensorData,
    TrainConfig,
    evaluate,
    save_atomic,
    seed_everything,
    train_classifier,
)


def plain_resnet(
    device: torch.device,
    dataset: str = "cifar10",
    blocks: int = 3,
    channels: tuple[int, ...] = (16, 32, 64),
    **config: Any,
) -> tuple[nn.Module, data.Dataset, TrainConfig]:
    """A job: ResNet-(6·blocks + 2) as a plain module; `config` holds fields of `TrainConfig`."""
    images = data.load(dataset, device=str(device))
    channels_in, height, width = images.input_shape
    fabric = spaces.resnet_fabric(
        blocks, len(images.classes), channels=channels, input_shape=(channels_in, height, width)
    )
    return spaces.plain_resnet(fabric.graph).extract(fabric), images, TrainConfig(**config)


def searched(
    device: torch.device,
    run: str,
    space: str = "resnet_fabric",
    dataset: str = "cifar10",
    space_args: dict[str, Any] | None = None,
    **config: Any,
) -> tuple[nn.Module, data.Dataset, TrainConfig]:
    """A job: the architecture of a saved `Run` of this space, with new weights."""
    images = data.load(dataset, device=str(device))
    net = getattr(spaces, space)(
        **(space_args or {}), num_classes=len(images.classes), input_shape=images.input_shape
    )
    return Run.load(run).architecture.extract(net), images, TrainConfig(**config)


class Shard(TensorData):
    """The rows of one process: of each global batch every `world`-th, beginning with `rank`.

    Order and augmentation are drawn for the whole batch, so that they do not depend on the
    number of processes. Up to `world` − 1 rows of a last, shorter batch are left out, and all of
    it where a process would get a single row, in which batch norm finds no variance.
    """

    def __init__(self, whole: TensorData, rank: int, world: int):
        super().__init__(whole.x, whole.y, whole.augment, whole.normalise)
        if not 0 <= rank < world:
            raise ValueError(f"rank {rank} of {world} processes; it must be 0…{world - 1}")
        self.rank, self.world = rank, world

    def batches(
        self,
        batch_size: int,
        *,
        seed: int,
        epoch: int = 0,
        shuffle: bool = True,
        drop_last: bool = False,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        if batch_size % self.world:
            raise ValueError(
                f"batch_size {batch_size} cannot be shared by {self.world} processes; "
                "choose a multiple"
            )
        whole = super().batches(
            batch_size, seed=seed, epoch=epoch, shuffle=shuffle, drop_last=drop_last
        )
        for n, (x, y) in enumerate(whole):
            share = len(x) // self.world
            if share > 1 or (share == 1 and (n == 0 or len(x) == batch_size)):
                end = share * self.world
                yield x[self.rank : end : self.world], y[self.rank : end : self.world]


@dataclass(frozen=True)
class _Shards:
    """`Splits` of one process: its part of the training data, all of the validation data."""

    train: TensorData
    val: TensorData


def train_data_parallel(
    model: nn.Module,
    splits: Splits,
    config: TrainConfig,
    *,
    checkpoint: str | Path | None = None,
    progress: bool | str = True,
) -> LoopResult:
    """`train_classifier` over all processes of the group that torchrun started.

    Gradients are averaged, so without batch norm the weights are those of one process with the
    same global batch, up to rounding. Batch norm uses the statistics of the global batch on GPUs
    (SyncBatchNorm) and those of each process's rows on CPUs, which have no such layer.

    Args:
        model: the same weights in every process; trained in place.
        checkpoint: each process keeps its own, `<checkpoint>.<rank>`, and resumes from it.
    """
    rank, world = dist.get_rank(), dist.get_world_size()
    device = splits.train.device
    model.to(device)
    if device.type == "cuda":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    parallel = DistributedDataParallel(
        model, device_ids=[device.index] if device.type == "cuda" else None
    )

    def forward(module: nn.Module, x: Tensor) -> Tensor:
        return parallel(x) if module.training else module(x)

    return train_classifier(
        model,
        _Shards(Shard(splits.train, rank, world), splits.val),
        config,
        forward=forward,
        checkpoint=None if checkpoint is None else f"{checkpoint}.{rank}",
        progress=progress if rank == 0 else False,
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("job", help="plain_resnet, searched, or module:function")
    parser.add_argument("values", nargs="*", metavar="NAME=VALUE", help="arguments of the job")
    parser.add_argument("--out", type=Path, required=True, help="file for the trained weights")
    parser.add_argument("--checkpoint", type=Path, help="resume from here; one file per process")
    parser.add_argument("--seed", type=int, default=0, help="of the first weights")
    args = parser.parse_intermixed_args(argv)
    if "RANK" not in os.environ:
        parser.error("start this with torchrun: see the first lines of benchmarks/ddp.py")
    module, _, name = args.job.rpartition(":")
    pairs = [value.partition("=") for value in args.values]
    if wrong := [key for key, equals, _ in pairs if not equals]:
        parser.error(f"{wrong[0]!r} is not of the form NAME=VALUE")
    job = getattr(importlib.import_module(module), name) if module else globals()[name]
    cuda = torch.cuda.is_available()
    local = int(os.environ["LOCAL_RANK"])
    device = torch.device("cuda", local) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if cuda else "gloo")
    try:
        seed_everything(args.seed)
        model, splits, config = job(device, **{key: _literal(value) for key, _, value in pairs})
        result = train_data_parallel(model, splits, config, checkpoint=args.checkpoint)
        if dist.get_rank() == 0:
            weights = {"model": model.state_dict(), "history": list(result.history)}
            save_atomic(weights, args.out)
            accuracy = evaluate(model, splits.val)["accuracy"]
            print(f"{result.epochs} epochs, {dist.get_world_size()} processes: {accuracy:.4f}")
    finally:
        dist.destroy_process_group()


def _literal(text: str) -> object:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


if __name__ == "__main__":
    main()
