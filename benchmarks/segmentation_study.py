"""Recurrent segmentation beside controls of equal cost: data/results/12_recurrent_segmentation.

    python benchmarks/segmentation_study.py curves
    python benchmarks/segmentation_study.py nuclei --epochs 20

Every network is trained with three iterations and measured after each of them, on test images.
U-Nets that spend what DRU(4) spends stand beside it: one with as many parameters, one with as many
multiply-adds, three that vote, one that sees an image and its two mirror images. `nuclei` needs
the data set. Finished trials are in build/segmentation_study; a stopped study goes on from there.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nas_core import data
from nas_core.search import grid, sweep
from nas_core.segmentation import (
    RecurrentUNet,
    confusion,
    count_macs,
    measure,
    scores,
    segmenter,
    train_recurrent,
)
from nas_core.supernet import count_params
from nas_core.training import (
    TrainConfig,
    describe_device,
    one_thread,
    pick_device,
    time_call,
)
from nas_core.workbook import record_result

CHAPTER = "12_recurrent_segmentation"
BUILD = Path("build/segmentation_study")
RECURRENT = ("Rec-Simple", "SRU(4)", "DRU(4)", "DRU(4) without mask")
CONTROLS = (
    "U-Net",
    "U-Net, equal parameters",
    "U-Net, equal macs",
    "U-Net, 3 vote",
    "U-Net, 3 views",
)
MEMBERS = 3  # of the ensemble; the number of iterations, so that the cost is equal
OWN = ("status", "error", "attempts", "seconds", "worker")


def equal_to_dru(
    quantity: Callable[[RecurrentUNet], float], incoming: int, classes: int
) -> RecurrentUNet:
    """The narrowest U-Net that has at least as much of a quantity as DRU(4)."""
    goal = quantity(segmenter("DRU(4)", incoming, classes))
    sizes = (segmenter("U-Net-G", incoming, classes, channels=c) for c in range(8, 64))
    return next(net for net in sizes if quantity(net) >= goal)


def build(name: str, incoming: int, classes: int, side: int, seed: int = 0) -> list[RecurrentUNet]:
    """The networks of a row: one, or the members of an ensemble; `seed` is of their weights."""
    torch.manual_seed(seed)
    if name == "U-Net, equal parameters":
        return [equal_to_dru(count_params, incoming, classes)]
    if name == "U-Net, equal macs":
        return [equal_to_dru(lambda net: count_macs(net, side, side), incoming, classes)]
    known = name.removesuffix(" without mask")
    options = {} if known == name else {"mask": False}
    known = "U-Net-G" if name.startswith("U-Net") else known
    members = MEMBERS if name == "U-Net, 3 vote" else 1
    return [segmenter(known, incoming, classes, **options) for _ in range(members)]


def predictor(name: str, nets: list[RecurrentUNet]) -> Callable[[Tensor], Tensor]:
    """Images to the logits of every iteration, `[T, B, K, H, W]`."""

    def vote(x: Tensor) -> Tensor:
        return torch.stack([net(x).softmax(2) for net in nets]).mean(0).log()

    def views(x: Tensor) -> Tensor:
        seen = [nets[0](x.flip(axes)).flip(axes) for axes in ((), (-1,), (-2,))]
        return torch.stack([logits.softmax(2) for logits in seen]).mean(0).log()

    return {"U-Net, 3 vote": vote, "U-Net, 3 views": views}.get(name, nets[0])


@torch.no_grad()
def milliseconds(call: Callable[[], Tensor]) -> float:
    """Processor time of a call."""
    return time_call(call, repeats=7, clock=time.thread_time).median


# No `torch` in here: cloudpickle would take `sets.classes` for its module `torch.classes`, which
# no other process can receive.
def trial(
    network: str, alpha: float, seed: int, images: str, train: int | None, epochs: int, batch: int,
    lr: float,
) -> dict[str, Any]:  # fmt: skip
    """One row's network(s): what they cost, and their scores after every iteration."""
    one_thread()
    sets = data.load(images, train_limit=train)
    incoming, side, _ = sets.input_shape
    nets = build(network, incoming, len(sets.classes), side, seed)
    start = time.process_time()
    for member, net in enumerate(nets):
        config = TrainConfig(
            epochs=epochs, batch_size=batch, lr=lr, optimizer="adam", seed=100 * seed + member,
            milestones=(int(0.7 * epochs), int(0.9 * epochs)) if epochs >= 10 else (),
            lr_factor=0.3,
        )  # fmt: skip
        train_recurrent(net, sets, config, alpha, progress=False)
        net.eval()
    seconds = time.process_time() - start
    predict, x = predictor(network, nets), sets.test.inputs(sets.test.x[:16])
    looks = MEMBERS if network.endswith(("vote", "views")) else 1  # of each network, or by each
    rows = []
    for row in measure(predict, sets.test):
        steps = int(row["iteration"])
        call = partial(predict, x) if looks > 1 else partial(nets[0], x, steps)
        macs = looks * count_macs(nets[0], side, side, steps)
        rows.append({**row, "macs": macs, "ms": round(milliseconds(call) / len(x), 3)})
    return {
        "rows": rows,
        "params": sum(map(count_params, nets)),
        "train_seconds": round(seconds, 1),
    }


def majority(images: str) -> float:
    """mIoU of calling every test pixel background."""
    y = data.load(images).test.y
    return scores(confusion(torch.zeros_like(y), y, int(y.max()) + 1))["mIoU"]


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", choices=["curves", "nuclei"])
    parser.add_argument("--networks", nargs="*", default=[*CONTROLS, *RECURRENT])
    parser.add_argument("--alphas", type=float, nargs="*", default=[0.4, 1.0])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2, 3, 4])
    parser.add_argument("--train", type=int, default=None, help="number of training images")
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--batch", type=int, default=10)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--name", default=None, help="of the record; that of the images if absent")
    return parser.parse_args(argv)


def configuration(argv: list[str]) -> dict[str, Any]:
    """What the record of this command would name as its configuration now."""
    args = arguments(argv)
    return {k: getattr(args, k) for k in ("images", "train", "epochs", "batch", "lr")}


def main() -> None:
    args, settings = arguments(), configuration(sys.argv[1:])
    configs = []
    for network in args.networks:
        alphas = args.alphas if network in RECURRENT else [1.0]  # one iteration has no weights
        configs += grid(network=[network], alpha=alphas, seed=args.seeds)
    BUILD.mkdir(parents=True, exist_ok=True)
    table = sweep(
        trial, [{**config, **settings} for config in configs],
        store=BUILD / f"{args.images}.sqlite", workers=args.workers,
    )  # fmt: skip
    if table.attrs["interrupted"] or (table.status != "done").any():
        raise SystemExit(f"not finished: {table.error.dropna().unique()}; the same command goes on")
    rows = []
    for result in table.drop(columns=list(OWN)).to_dict("records"):
        same = {k: result[k] for k in ("network", "alpha", "seed", "params", "train_seconds")}
        rows += [same | row for row in result["rows"]]
    rows.append({"network": "all background", "mIoU": majority(args.images)})
    path = record_result(
        CHAPTER, args.name or args.images, rows,
        command=f"python benchmarks/segmentation_study.py {shlex.join(sys.argv[1:])}",
        seeds=args.seeds, config=settings, device=describe_device(pick_device("cpu")),
    )  # fmt: skip
    print(path)


if __name__ == "__main__":
    main()
