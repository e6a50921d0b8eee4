"""Data-parallel training of one network with torchrun.

    torchrun --standalone --nproc-per-node=2 -m nas_core.training.ddp \\
        nas_core.search.ddp_jobs:plain_resnet --out weights.pt dataset=digits epochs=20

A *job* is a function `job(device, **values) -> (model, splits, TrainConfig)`. Every process takes
its rows of each global batch, so that `batch_size` means the same with 1, 2 or 8 processes.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from nas_core.training.checkpoint import save_atomic
from nas_core.training.device import seed_everything
from nas_core.training.loop import LoopResult
from nas_core.training.supervised import TrainConfig, evaluate, train_classifier
from nas_core.training.tensors import Splits, TensorData


class Shard(TensorData):
    """The rows of one process: of each global batch every `world`-th, beginning with `rank`.

    Order and augmentation are drawn for the whole batch, so that they do not depend on the
    number of processes. Up to `world` − 1 rows of a last, shorter batch are left out.
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
        for x, y in whole:
            end = len(x) - len(x) % self.world
            if end:
                yield x[self.rank : end : self.world], y[self.rank : end : self.world]


@dataclass(frozen=True)
class _Shards:
    """`Splits` of one process: its part of the training data, all of the validation data."""

    train: TensorData
    val: TensorData


def train_data_parallel(
    model: nn.Module,
    data: Splits,
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
    device = data.train.device
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
        _Shards(Shard(data.train, rank, world), data.val),
        config,
        forward=forward,
        checkpoint=None if checkpoint is None else f"{checkpoint}.{rank}",
        progress=progress if rank == 0 else False,
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("job", help="module:function that returns (model, splits, TrainConfig)")
    parser.add_argument("values", nargs="*", metavar="NAME=VALUE", help="arguments of the job")
    parser.add_argument("--out", type=Path, required=True, help="file for the trained weights")
    parser.add_argument("--checkpoint", type=Path, help="resume from here; one file per process")
    parser.add_argument("--seed", type=int, default=0, help="of the first weights")
    args = parser.parse_intermixed_args(argv)
    if "RANK" not in os.environ:
        parser.error("start this with torchrun: see python -m nas_core.training.ddp --help")
    module, _, name = args.job.partition(":")
    pairs = [value.partition("=") for value in args.values]
    if wrong := [key for key, equals, _ in pairs if not equals]:
        parser.error(f"{wrong[0]!r} is no NAME=VALUE")
    job = getattr(importlib.import_module(module), name)
    cuda = torch.cuda.is_available()
    local = int(os.environ["LOCAL_RANK"])
    device = torch.device("cuda", local) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if cuda else "gloo")
    try:
        seed_everything(args.seed)
        model, data, config = job(device, **{key: _literal(value) for key, _, value in pairs})
        result = train_data_parallel(model, data, config, checkpoint=args.checkpoint)
        if dist.get_rank() == 0:
            weights = {"model": model.state_dict(), "history": result.history.rows}
            save_atomic(weights, args.out)
            accuracy = evaluate(model, data.val)["accuracy"]
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
