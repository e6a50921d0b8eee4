"""Second-order pooling measured: rows go to data/results/11_second_order_pooling.

    python benchmarks/pooling_study.py heads
    python benchmarks/pooling_study.py dimension
    python benchmarks/pooling_study.py ablation
    python benchmarks/pooling_study.py dtd

`dtd` needs the data set (`nas-workbook data fetch dtd`) and the package's extra `[backbone]`. A
command that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nas_core.data import Dataset, data_root
from nas_core.data.textures import feature_maps, textures
from nas_core.pooling import (
    BP,
    CBP,
    GAP,
    LRBP,
    MPN,
    SMSO,
    DeepO2P,
    Pooling,
    classifier,
)
from nas_core.search import grid, sweep
from nas_core.training import (
    TensorData,
    TrainConfig,
    describe_device,
    evaluate,
    one_thread,
    pick_device,
    train_classifier,
)
from nas_core.workbook.results import record_result

CHAPTER = "11_second_order_pooling"
BUILD = Path("build/pooling_study")
SEEDS = (0, 1, 2, 3, 4)


class Both(Pooling):
    """Means and SMSO side by side: what the first order adds to the second."""

    def __init__(self, channels: int, p: int):
        super().__init__(channels, channels + p)
        self.parts = nn.ModuleList([GAP(channels), SMSO(channels, p)])

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([part(x) for part in self.parts], 1)

    def macs(self, n: int) -> int:
        return sum(part.macs(n) for part in self.parts)


def head(name: str, c: int, classes: int) -> Pooling:
    """A head by the name of its row."""
    kind, _, number = name.partition(" ")
    p = int(number or 64)
    heads = {
        "GAP": lambda: GAP(c),
        "BP": lambda: BP(c),
        "DeepO2P": lambda: DeepO2P(c),
        "MPN": lambda: MPN(c),
        "MPN-NS": lambda: MPN(c, iterations=5),
        "CBP-RM": lambda: CBP(c, p, "rm"),
        "CBP-TS": lambda: CBP(c, p, "ts"),
        "LRBP": lambda: LRBP(c, classes, m=min(c, 16), rank=8),
        "SMSO": lambda: SMSO(c, p),
        "SMSO-released": lambda: SMSO(c, p, variant="released"),
        "GAP+SMSO": lambda: Both(c, p),
    }
    return heads[kind]()


def trained(
    net: nn.Module, images: Dataset, seed: int, *, epochs: int, lr: float, decay: float = 1e-4
) -> dict[str, float]:
    """Train with Adam and two steps of the rate; accuracies, and time of a batch."""
    config = TrainConfig(
        epochs=epochs, batch_size=64, lr=lr, weight_decay=decay, optimizer="adam",
        milestones=(int(0.6 * epochs), int(0.85 * epochs)), seed=seed,
    )  # fmt: skip
    start = time.process_time()
    train_classifier(net, images, config, progress=False)
    seconds = time.process_time() - start
    net.eval()
    x = images.test.x[:64].float()
    with torch.inference_mode():
        times = []
        for _ in range(12):
            begin = time.thread_time()
            net(x)
            times.append(1e3 * (time.thread_time() - begin))
    return {
        "val_accuracy": evaluate(net, images.val)["accuracy"],
        "test_accuracy": evaluate(net, images.test)["accuracy"],
        "params": sum(p.numel() for p in net.parameters()),
        "ms_per_batch": round(sorted(times)[len(times) // 2], 3),
        "train_seconds": round(seconds, 2),
    }


# ----------------------------------------------------- (a) classes that differ in covariance alone


def heads_trial(name: str, seed: int, strength: float, train: int, epochs: int, lr: float) -> dict:
    one_thread()
    images = feature_maps(2, strength=strength, train=train, seed=seed)
    torch.manual_seed(seed)
    pool = head(name, 16, 8)
    macs = pool.macs(49)
    return {
        **trained(classifier(pool, 8, batch_norm=True), images, seed, epochs=epochs, lr=lr),
        "macs": macs,
    }


HEADS = (
    "GAP", "BP", "DeepO2P", "MPN", "MPN-NS", "CBP-RM 128", "CBP-TS 128", "LRBP", "SMSO 16",
    "SMSO 64", "GAP+SMSO 64",
)  # fmt: skip
DIMENSIONS = tuple(f"SMSO {2**k}" for k in range(4, 10))


# ----------------------------------------------------- (b) what each part of SMSO adds (T1.5, 1.7)

ABLATIONS: dict[str, dict[str, Any]] = {
    "PV": {"transform": "none", "scale": False, "shift": False},
    "PV √": {"scale": False, "shift": False},
    "PV √ β": {"scale": False},
    "PV √ γ": {"shift": False},
    "PV β γ": {"transform": "none"},
    "PV √ β γ": {},
    "PV log β γ": {"transform": "log"},
    "PV ∛ β γ": {"transform": "cbrt"},
    "released": {"variant": "released"},
}


def filtered_textures(seed: int, spread: float, train: int, channels: int = 16) -> Dataset:
    """Textures seen through a fixed bank of random linear filters of different gain."""
    images = textures(spread=spread, train=train, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    gain = torch.randn(channels, 1, 1, 1, generator=generator).exp()
    bank = gain * torch.randn(channels, 1, 5, 5, generator=generator)

    def seen(part: TensorData) -> TensorData:
        return TensorData(nn.functional.conv2d(part.x, bank, stride=2), part.y)

    parts = {name: seen(getattr(images, name)) for name in ("train", "val", "test")}
    return replace(images, **parts, input_shape=tuple(parts["train"].x.shape[1:]))


def ablation_trial(
    row: str, batch_norm: bool, seed: int, spread: float, train: int, epochs: int, lr: float
) -> dict:
    one_thread()
    images = filtered_textures(seed, spread, train)
    torch.manual_seed(seed)
    pool = SMSO(16, 64, **ABLATIONS[row]) if row in ABLATIONS else head(row, 16, 8)
    net = classifier(pool, 8, batch_norm=batch_norm)
    return trained(net, images, seed, epochs=epochs, lr=lr)


# ------------------------------------------------------------- (c) real textures, a real backbone

BLOCKS = {"middle": 11, "last": 16}  # of EfficientNet-Lite0: 112 × 14 × 14 and 320 × 7 × 7


def dtd_images(split: str) -> tuple[Tensor, Tensor]:
    """Partition 1 of DTD at 224 × 224, uint8 `[N, 3, 224, 224]`, and labels."""
    from PIL import Image
    from torchvision.datasets import DTD

    images, labels = [], []
    for image, label in DTD(data_root(), split=split, partition=1):
        small = image.convert("RGB").resize((224, 224), Image.Resampling.BICUBIC)
        images.append(torch.from_numpy(np.array(small)).permute(2, 0, 1))
        labels.append(label)
    return torch.stack(images), torch.tensor(labels)


def dtd_features(block: str) -> Dataset:
    """Features of the DTD images, computed once and kept under build/."""
    kept = BUILD / f"dtd_{block}.pt"
    if not kept.exists():
        from backbones import imagenet_backbone

        body = imagenet_backbone(blocks=BLOCKS[block])
        features = {}
        for name in ("train", "val", "test"):
            x, y = dtd_images(name)
            parts = [body(part / 255) for part in x.split(32)]
            features[name] = (torch.cat(parts).half(), y)
        kept.parent.mkdir(parents=True, exist_ok=True)
        torch.save(features, kept)
    parts = {k: TensorData(x.float(), y) for k, (x, y) in torch.load(kept).items()}
    shape = tuple(parts["train"].x.shape[1:])
    classes = tuple(map(str, range(int(parts["train"].y.max()) + 1)))
    return Dataset(f"dtd_{block}", **parts, classes=classes, input_shape=shape)


def dtd_trial(
    name: str, block: str, reduce: int, train: int, seed: int, epochs: int, lr: float, decay: float
) -> dict:
    one_thread()
    images = dtd_features(block)
    order = torch.randperm(len(images.train), generator=torch.Generator().manual_seed(seed))
    images = replace(images, train=images.train.subset(order[:train]))
    torch.manual_seed(seed)
    incoming, number = images.input_shape[0], 1 + int(images.train.y.max())
    pool = head(name, reduce or incoming, number)
    net = classifier(pool, number, channels=incoming if reduce else None, batch_norm=True)
    return trained(net, images, seed, epochs=epochs, lr=lr, decay=decay)


STUDIES: dict[str, tuple[Any, list[dict[str, Any]]]] = {
    "heads": (
        heads_trial,
        grid(name=HEADS, strength=[0.4], train=[2000], epochs=[20], lr=[3e-3], seed=SEEDS),
    ),
    "dimension": (
        heads_trial,
        grid(name=DIMENSIONS, strength=[0.3], train=[1000], epochs=[20], lr=[3e-3], seed=SEEDS),
    ),
    "ablation": (
        ablation_trial,
        grid(
            row=[*ABLATIONS, "BP", "MPN"],
            batch_norm=[True, False],
            spread=[0.35],
            train=[1000],
            epochs=[20],
            lr=[3e-3],
            seed=SEEDS,
        ),
    ),
    "dtd": (
        dtd_trial,
        grid(
            name=["GAP", "BP", "MPN-NS", "SMSO 64", "SMSO-released 64", "GAP+SMSO 64"],
            block=["last"],
            reduce=[64],
            train=[100, 400],
            epochs=[30],
            lr=[1e-3],
            decay=[1e-3],
            seed=SEEDS,
        )
        + grid(
            name=["GAP", "BP", "SMSO 64", "GAP+SMSO 64"],
            block=["middle"],
            reduce=[64],
            train=[400],
            epochs=[30],
            lr=[1e-3],
            decay=[1e-3],
            seed=SEEDS,
        ),
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--workers", type=int, default=1)
    given = parser.parse_args()
    trial, configs = STUDIES[given.study]
    BUILD.mkdir(parents=True, exist_ok=True)
    if given.study == "dtd":
        for block in BLOCKS:
            dtd_features(block)  # once, before processes share the work
    store = BUILD / f"{given.study}.sqlite"
    table = sweep(trial, configs, store=store, workers=given.workers)
    if table.attrs["interrupted"] or (table.status != "done").any():
        raise SystemExit(f"not finished: {table.error.dropna().unique()}; the same command goes on")
    rows = table.drop(columns=["status", "error", "attempts", "seconds", "worker"])
    fixed = {
        k: rows[k].iloc[0] for k in ("strength", "spread", "epochs", "lr", "decay") if k in rows
    }
    path = record_result(
        CHAPTER, given.study, rows.drop(columns=list(fixed)),
        command=f"python benchmarks/pooling_study.py {given.study}",
        seeds=list(SEEDS), device=describe_device(pick_device("cpu")), config=fixed,
    )  # fmt: skip
    print(path)


def configuration(argv: list[str]) -> dict[str, Any]:
    """What the record of this command would name as its configuration now."""
    configs = STUDIES[argv[0]][1]
    return {
        k: configs[0][k] for k in ("strength", "spread", "epochs", "lr", "decay") if k in configs[0]
    }


if __name__ == "__main__":
    main()
