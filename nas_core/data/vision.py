"""Real image sets, read by torchvision's classes from a data root; nothing is downloaded here
unless `fetch` is called.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision import datasets
from torchvision.datasets.utils import calculate_md5

from nas_core.data.dataset import CorruptData, DataNotFound, Dataset, limited, stratified_order
from nas_core.training import Augment, TensorData

# Published md5 sums of the unpacked idx files (torchvision only knows those of the archives).
_MNIST = {
    "MNIST/raw/train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "MNIST/raw/train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "MNIST/raw/t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "MNIST/raw/t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
_FASHION = {
    "FashionMNIST/raw/train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
    "FashionMNIST/raw/train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
    "FashionMNIST/raw/t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
    "FashionMNIST/raw/t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
}


def _cifar_files(cls: type[datasets.CIFAR10]) -> dict[str, str]:
    files = [*cls.train_list, *cls.test_list, [cls.meta["filename"], cls.meta["md5"]]]
    return {f"{cls.base_folder}/{name}": md5 for name, md5 in files}


@dataclass(frozen=True)
class VisionSet:
    """How one of torchvision's sets is read, checked and divided."""

    cls: Callable[..., datasets.VisionDataset]
    files: dict[str, str]  # path below the root: md5
    val: int  # of the official training images
    augment: Augment
    source: str


# Crops and flips as in thesis section 3.5.2: pad to 36×36 and cut 32×32. Digits and clothes are
# not mirrored (a mirrored digit is another sign).
VISION: dict[str, VisionSet] = {
    "mnist": VisionSet(
        datasets.MNIST, _MNIST, 12_000, Augment(2), "LeCun, Bottou, Bengio, Haffner (1998)"
    ),
    "fashion_mnist": VisionSet(
        datasets.FashionMNIST, _FASHION, 12_000, Augment(2), "Xiao, Rasul, Vollgraf (2017), MIT"
    ),
    "cifar10": VisionSet(
        datasets.CIFAR10,
        _cifar_files(datasets.CIFAR10),
        5_000,
        Augment(2, flip=True),
        "Krizhevsky (2009)",
    ),
    "cifar100": VisionSet(
        datasets.CIFAR100,
        _cifar_files(datasets.CIFAR100),
        5_000,
        Augment(2, flip=True),
        "Krizhevsky (2009)",
    ),
}


def load_vision(name: str, root: Path, train_limit: int | None, seed: int) -> Dataset:
    """One of `VISION`, from `root`: official test set, validation cut from the training set.

    CIFAR: 45,000 / 5,000 / 10,000. MNIST and Fashion-MNIST: 48,000 / 12,000 / 10,000. The cut is
    stratified and depends on `seed`. Pixels are scaled to [−1, 1].

    Raises:
        DataNotFound: when files are missing; names the command that fetches them.
        CorruptData: when a file's checksum is not the published one; names the file.
    """
    spec = VISION[name]
    _check_files(name, spec, root)
    try:
        x, labels, classes = _arrays(spec.cls(str(root), train=True, download=False))
        x_test, y_test, _ = _arrays(spec.cls(str(root), train=False, download=False))
    except (RuntimeError, OSError, pickle.UnpicklingError, struct.error) as error:
        raise CorruptData(f"{name} in {root} cannot be read: {error}") from error
    order = stratified_order(labels, seed)
    val, train = order[: spec.val], order[spec.val :]
    train = train[: limited(train_limit, len(train))]
    y = torch.from_numpy(labels)
    channels = x.shape[1]
    half = ((0.5,) * channels, (0.5,) * channels)
    return Dataset(
        name,
        TensorData(x[train], y[train], spec.augment, half),
        TensorData(x[val], y[val], normalise=half),
        TensorData(x_test, torch.from_numpy(y_test), normalise=half),
        classes=classes,
        input_shape=tuple(x.shape[1:]),
        provenance={"source": spec.source, "seed": seed, "md5": dict(spec.files)},
    )


def fetch_vision(name: str, root: Path) -> None:
    """Download one of `VISION` into `root`, by torchvision."""
    spec = VISION[name]
    root.mkdir(parents=True, exist_ok=True)
    spec.cls(str(root), train=True, download=True)
    _check_files(name, spec, root)


def _check_files(name: str, spec: VisionSet, root: Path) -> None:
    missing = [file for file in spec.files if not (root / file).is_file()]
    if missing:
        raise DataNotFound(
            f"{name} is not in {root} ({missing[0]} is missing). Fetch it with\n"
            f"    nas-workbook data fetch {name}\n"
            "or point NAS_DATA (or root=…) at the folder that holds it."
        )
    for file, published in spec.files.items():
        found = calculate_md5(str(root / file))
        if found != published:
            raise CorruptData(
                f"{root / file} is damaged: its md5 is {found}, published is {published}. Delete "
                f"it and fetch it again with\n    nas-workbook data fetch {name}"
            )


def _arrays(raw: datasets.VisionDataset) -> tuple[Tensor, np.ndarray, tuple[str, ...]]:
    """Images uint8 `[N, C, H, W]`, labels int64 `[N]`, class names."""
    images = torch.as_tensor(np.asarray(raw.data))
    images = images.unsqueeze(1) if images.dim() == 3 else images.permute(0, 3, 1, 2)
    labels = np.asarray(raw.targets, dtype=np.int64)
    return images.contiguous(), labels, tuple(raw.classes)
