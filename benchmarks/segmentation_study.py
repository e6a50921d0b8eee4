"""Recurrent segmentation beside controls of equal cost: data/results/12_recurrent_segmentation.

    python benchmarks/segmentation_study.py curves
    python benchmarks/segmentation_study.py nuclei --epochs 20
    python benchmarks/segmentation_study.py curves --stopping --epochs 25

Every network is trained with three iterations and measured after each of them, on test images.
U-Nets that spend what DRU(4) spends stand beside it: one with as many parameters, one with as many
multiply-adds, three that vote, one that sees an image and its two mirror images. `nuclei` needs
the data set. `--stopping` trains rules that choose the number of iterations of DRU(4) per image.
Finished trials are in build/segmentation_study; a stopped study goes on from there.
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

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from nas_core import data
from nas_core.data.curves import draw
from nas_core.search import grid, sweep
from nas_core.segmentation import (
    RecurrentUNet,
    StopController,
    confusion,
    count_macs,
    glimpses,
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
RECURRENT = (
    "Rec-Simple",
    "Rec-Last",
    "Rec-Middle",
    "SRU(4)",
    "DRU(4)",
    "DRU(4) without mask",
)
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


PRICES = (0.0, 0.001, 0.002, 0.003, 0.005, 0.008, 0.012, 0.02)  # of an iteration, in loss


def half_empty(sets: data.Dataset) -> data.Dataset:
    """Every second picture of every split has no curve at all: one look should be enough."""
    for number, part in enumerate((sets.train, sets.val, sets.test)):
        for k in range(0, len(part.y), 2):
            picture, truth = draw(part.y.shape[-1], np.random.default_rng([7, number, k]), 0)
            part.x[k, 0] = torch.from_numpy(picture).to(part.x)
            part.y[k] = torch.from_numpy(truth).to(part.y)
    return sets


def stopping_trial(
    seed: int, empty: bool, images: str, train: int | None, epochs: int, batch: int, lr: float
) -> dict[str, Any]:
    """One DRU(4), and what rules of several prices do with it on test images.

    Rows of kind: fixed (the same number for all), learned, shuffled (the same numbers, given to
    other images), threshold (stop at a small change), entropy (at a small entropy; both with as
    many iterations as the learned rule on validation images), oracle (knows every loss).
    """
    one_thread()
    sets = data.load(images, train_limit=train)
    if empty:
        sets = half_empty(data.load(images, train_limit=2 * len(sets.train.y)))
    incoming, side, _ = sets.input_shape
    [net] = build("DRU(4)", incoming, len(sets.classes), side, seed)
    config = TrainConfig(
        epochs=epochs, batch_size=batch, lr=lr, optimizer="adam", seed=100 * seed,
        milestones=(int(0.7 * epochs), int(0.9 * epochs)), lr_factor=0.3,
    )  # fmt: skip
    train_recurrent(net, sets, config, 0.4, progress=False)
    net.eval()
    seen, losses, counts = {}, {}, {}
    for split in ("val", "test"):  # the training images are learned by heart
        part = getattr(sets, split)
        x, y = part.inputs(part.x), part.y
        seen[split], losses[split], counts[split] = seen_by_rules(net, x, y)
    macs = [count_macs(net, side, side, t) for t in (1, 2, 3)]
    rows = []

    def add(kind: str, price: float | None, chosen: Any) -> None:
        total = counts["test"][chosen, range(len(chosen))].sum(0)
        mean = float(chosen.float().mean()) + 1
        cost = sum(macs[t] for t in chosen.tolist()) / len(chosen)
        rows.append({"kind": kind, "price": price, "iterations": round(mean, 3), "macs": cost,
                     "mIoU": round(scores(total)["mIoU"], 5)})  # fmt: skip

    images_tested = len(sets.test.y)
    for t in range(3):
        add("fixed", None, seen["test"].new_full((images_tested,), t).long())
    for price in PRICES:
        rule = StopController(3).fit(seen["val"], losses["val"], price)
        chosen = rule.decide(seen["test"])
        add("learned", price, chosen)
        for k in range(20):
            add("shuffled", price, chosen[shuffled(images_tested, k)])
        spent = rule.decide(seen["val"]).float().mean()
        for column, kind in enumerate(("entropy", "threshold")):
            add(kind, price, threshold_rule(seen["val"], spent, column)(seen["test"]))
        paid = losses["test"] + price * (1 + seen["test"].new_tensor([0, 1, 2]))[:, None]
        add("oracle", price, paid.argmin(0))
    return {"rows": rows}


@torch.no_grad()
def seen_by_rules(net: RecurrentUNet, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Glimpses `[T, B, 3]`, losses `[T, B]` and confusions `[T, B, K, K]` of every image."""
    logits = net(x)
    losses = torch.stack([cross_entropy(s, y, reduction="none").mean((1, 2)) for s in logits])
    called = logits.argmax(2)
    counts = [torch.stack([confusion(*pair, logits.shape[2]) for pair in zip(c, y, strict=True)])
              for c in called]  # fmt: skip
    return glimpses(logits), losses, torch.stack(counts)


def shuffled(count: int, seed: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))


def threshold_rule(seen: Tensor, spent: Tensor, column: int = 1) -> Callable[[Tensor], Tensor]:
    """Stop when the mask changes less than a limit; the limit spends nearest to `spent`.

    Args:
        column: of the glimpses; 1 is the change, 0 the entropy.
    """

    def decide(seen: Tensor, limit: Tensor) -> Tensor:
        stops = torch.cat([seen[:-1, :, column] < limit, seen.new_ones(1, seen.shape[1]).bool()])
        return stops.int().argmax(0)

    limits = torch.cat([seen[:-1, :, column].flatten(), seen.new_tensor([0.0, 9.0])]).unique()
    means = torch.stack([decide(seen, limit).float().mean() for limit in limits])
    best = limits[(means - spent).abs().argmin()]
    return lambda other: decide(other, best)


def majority(images: str) -> float:
    """mIoU of calling every test pixel background."""
    y = data.load(images).test.y
    return scores(confusion(torch.zeros_like(y), y, int(y.max()) + 1))["mIoU"]


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", choices=["curves", "nuclei"])
    parser.add_argument("--stopping", action="store_true", help="choose iterations per image")
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


def stopping(args: argparse.Namespace, settings: dict[str, Any]) -> None:
    """The study of `--stopping`, on the pictures as they are and with half of them empty."""
    fixed = {name: [value] for name, value in settings.items()}
    BUILD.mkdir(parents=True, exist_ok=True)
    table = sweep(
        stopping_trial, grid(seed=args.seeds, empty=[False, True], **fixed),
        store=BUILD / f"{args.images}_stopping.sqlite", workers=args.workers,
    )  # fmt: skip
    if table.attrs["interrupted"] or (table.status != "done").any():
        raise SystemExit(f"not finished: {table.error.dropna().unique()}; the same command goes on")
    rows = []
    for result in table.to_dict("records"):
        found: dict[tuple, list[dict]] = {}
        for row in result["rows"]:  # twenty permutations become one row
            found.setdefault((row["kind"], row["price"], row["iterations"]), []).append(row)
        rows += [
            {"seed": result["seed"], "half_empty": result["empty"], **group[0],
             "mIoU": round(sum(r["mIoU"] for r in group) / len(group), 5)}
            for group in found.values()
        ]  # fmt: skip
    path = record_result(
        CHAPTER, args.name or "stopping", rows,
        command=f"python benchmarks/segmentation_study.py {shlex.join(sys.argv[1:])}",
        seeds=args.seeds, config=settings, device=describe_device(pick_device("cpu")),
    )  # fmt: skip
    print(path)


def main() -> None:
    args, settings = arguments(), configuration(sys.argv[1:])
    if args.stopping:
        return stopping(args, settings)
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
