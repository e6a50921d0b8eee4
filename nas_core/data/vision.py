"""Real image sets, read by torchvision's classes from a data root; nothing is downloaded here
unless `fetch` is called.
"""

from __future__ import annotations

import hashlib
import pickle
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

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


_CIFAR10 = {
    "cifar-10-batches-py/data_batch_1": "c99cafc152244af753f735de768cd75f",
    "cifar-10-batches-py/data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "cifar-10-batches-py/data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "cifar-10-batches-py/data_batch_4": "634d18415352ddfa80567beed471001a",
    "cifar-10-batches-py/data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "cifar-10-batches-py/test_batch": "40351d587109b95175f43aff81a1287e",
    "cifar-10-batches-py/batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
}
_CIFAR100 = {
    "cifar-100-python/train": "16019d7e3df5f24257cddd939b257f8d",
    "cifar-100-python/test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
    "cifar-100-python/meta": "7973b15100ade9c7d40fb424638fde48",
}


def _torchvision(name: str, *args: Any, **options: Any) -> Any:
    from torchvision import datasets  # takes seconds

    return getattr(datasets, name)(*args, **options)


@dataclass(frozen=True)
class VisionSet:
    """How one of torchvision's sets is read, checked and divided."""

    cls: Callable[..., Any]
    files: dict[str, str]  # path below the root: md5
    val: int  # of the official training images
    augment: Augment
    source: str


# Crops and flips as in thesis section 3.5.2: pad to 36×36 and cut 32×32. Digits and clothes are
# not mirrored (a mirrored digit is another sign).
VISION: dict[str, VisionSet] = {
    "mnist": VisionSet(
        partial(_torchvision, "MNIST"),
        _MNIST,
        12_000,
        Augment(2),
        "LeCun, Bottou, Bengio, Haffner (1998)",
    ),
    "fashion_mnist": VisionSet(
        partial(_torchvision, "FashionMNIST"),
        _FASHION,
        12_000,
        Augment(2),
        "Xiao, Rasul, Vollgraf (2017), MIT",
    ),
    "cifar10": VisionSet(
        partial(_torchvision, "CIFAR10"),
        _CIFAR10,
        5_000,
        Augment(2, flip=True),
        "Krizhevsky (2009)",
    ),
    "cifar100": VisionSet(
        partial(_torchvision, "CIFAR100"),
        _CIFAR100,
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
        found = _md5(root / file)
        if found != published:
            raise CorruptData(
                f"{root / file} is damaged: its md5 is {found}, published is {published}. Delete "
                f"it and fetch it again with\n    nas-workbook data fetch {name}"
            )


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def _arrays(raw: Any) -> tuple[Tensor, np.ndarray, tuple[str, ...]]:
    """Images uint8 `[N, C, H, W]`, labels int64 `[N]`, class names."""
    images = torch.as_tensor(np.asarray(raw.data))
    images = images.unsqueeze(1) if images.dim() == 3 else images.permute(0, 3, 1, 2)
    labels = np.asarray(raw.targets, dtype=np.int64)
    return images.contiguous(), labels, tuple(raw.classes)
