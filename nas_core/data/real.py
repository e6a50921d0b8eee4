"""Real data sets that are downloaded: their files, checksums, and the one reader of torchvision's.

Nothing uses the network but `fetch_real`. torchvision is imported inside functions.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import shutil
import struct
import tarfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from urllib.request import urlopen

import numpy as np
import torch
from torch import Tensor

from nas_core.data.dataset import (
    CorruptData,
    DataNotFound,
    Dataset,
    image_dataset,
    limited,
    stratified_order,
)
from nas_core.training import Augment


@dataclass(frozen=True)
class RealSet:
    """The files of one set, and how `load` divides them where it knows the set."""

    source: str
    chapters: str = ""  # which ones read it, where `load` does not
    torchvision: str = ""  # its class there
    files: tuple[tuple[str, str], ...] = ()  # (path below the root, published md5)
    folder: str = ""  # or: what its archive is unpacked into,
    pattern: str = ""  # files in there,
    count: int = 0  # as many as were published,
    archive: tuple[str, str] = ("", "")  # and where it is: (url, published md5 or sha256)
    val: int = 0  # validation images, cut from the official training images
    augment: Augment | None = None

    def missing(self, root: Path) -> str | None:
        """The first path that is not below `root`, or None."""
        paths = [file for file, _ in self.files] or [self.folder]
        return next((path for path in paths if not (root / path).exists()), None)


def _mnist(folder: str, *sums: str) -> tuple[tuple[str, str], ...]:
    # Of the unpacked idx files (torchvision only knows the sums of the archives).
    parts = [f"{part}-{kind}" for part in ("train", "t10k") for kind in _IDX]
    return tuple((f"{folder}/raw/{p}-ubyte", s) for p, s in zip(parts, sums, strict=True))


_IDX = ("images-idx3", "labels-idx1")
_TF = "https://storage.googleapis.com/download.tensorflow.org/data/speech_commands_"


def _speech_commands(version: str, count: int, sha256: str) -> RealSet:
    return RealSet(
        "Warden (2018), CC BY 4.0", "06 and 07",
        folder=f"SpeechCommands/speech_commands_{version}", pattern="*/*_nohash_*.wav", count=count,
        archive=(f"{_TF}{version}.tar.gz", sha256),
    )  # fmt: skip


# Crops and flips as in thesis section 3.5.2: pad to 36×36 and cut 32×32. Digits and clothes are
# not mirrored (a mirrored digit is another sign).
SETS: dict[str, RealSet] = {
    "mnist": RealSet(
        "LeCun, Bottou, Bengio, Haffner (1998)", torchvision="MNIST", val=12_000,
        augment=Augment(2), files=_mnist(
            "MNIST", "6bbc9ace898e44ae57da46a324031adb", "a25bea736e30d166cdddb491f175f624",
            "2646ac647ad5339dbf082846283269ea", "27ae3e4e09519cfbb04c329615203637",
        ),
    ),
    "fashion_mnist": RealSet(
        "Xiao, Rasul, Vollgraf (2017), MIT", torchvision="FashionMNIST", val=12_000,
        augment=Augment(2), files=_mnist(
            "FashionMNIST", "f4a8712d7a061bf5bd6d2ca38dc4d50a", "9018921c3c673c538a1fc5bad174d6f9",
            "8181f5470baa50b63fa0f6fddb340f0a", "15d484375f8d13e6eb1aabb0c3f46965",
        ),
    ),
    "cifar10": RealSet(
        "Krizhevsky (2009)", torchvision="CIFAR10", val=5_000, augment=Augment(2, flip=True),
        files=(
            ("cifar-10-batches-py/data_batch_1", "c99cafc152244af753f735de768cd75f"),
            ("cifar-10-batches-py/data_batch_2", "d4bba439e000b95fd0a9bffe97cbabec"),
            ("cifar-10-batches-py/data_batch_3", "54ebc095f3ab1f0389bbae665268c751"),
            ("cifar-10-batches-py/data_batch_4", "634d18415352ddfa80567beed471001a"),
            ("cifar-10-batches-py/data_batch_5", "482c414d41f54cd18b22e5b47cb7c3cb"),
            ("cifar-10-batches-py/test_batch", "40351d587109b95175f43aff81a1287e"),
            ("cifar-10-batches-py/batches.meta", "5ff9c542aee3614f3951f8cda6e48888"),
        ),
    ),
    "cifar100": RealSet(
        "Krizhevsky (2009)", torchvision="CIFAR100", val=5_000, augment=Augment(2, flip=True),
        files=(
            ("cifar-100-python/train", "16019d7e3df5f24257cddd939b257f8d"),
            ("cifar-100-python/test", "f0ef6b0ae62326f3e7ffdfab6717acfc"),
            ("cifar-100-python/meta", "7973b15100ade9c7d40fb424638fde48"),
        ),
    ),
    "svhn": RealSet(
        "Netzer et al. (2011)", "08 to 10", torchvision="SVHN", files=(
            ("train_32x32.mat", "e26dedcc434d2e4c54c9b2d4a06d8373"),
            ("test_32x32.mat", "eb5a983be6a315427106f1b164d9cef3"),
        ),
    ),
    "dtd": RealSet(
        "Cimpoi et al. (2014)", "08 to 10", torchvision="DTD", folder="dtd",
        pattern="dtd/images/*/*.jpg", count=5640, archive=(
            "https://www.robots.ox.ac.uk/~vgg/data/dtd/download/dtd-r1.0.1.tar.gz",
            "fff73e5086ae6bdbea199a49dfb8a4c1",
        ),
    ),
    "speech_commands_v0.01": _speech_commands(
        "v0.01", 64_727, "743935421bb51cccdb6bdd152e04c5c70274e935c82119ad7faeec31780d811d"
    ),
    "speech_commands_v0.02": _speech_commands(
        "v0.02", 105_829, "af14739ee7dc311471de98f5f9d2c9191b18aedfe957f4a6ff791c709868ff58"
    ),
}  # fmt: skip


class Images(NamedTuple):
    """A set of images as it was published: training (without a validation cut) and test."""

    x: Tensor  # uint8 [N, C, H, W]
    y: Tensor  # int64 [N]
    x_test: Tensor
    y_test: Tensor
    classes: tuple[str, ...]


def read_images(name: str, root: Path, *, check: bool = True) -> Images:
    """One of torchvision's sets from `root`, never downloaded.

    DTD is partition 1, its training and validation images joined, made 32×32.

    Args:
        check: compare the published md5 sums first.

    Raises:
        DataNotFound: when files are missing; names the command that fetches them.
        CorruptData: when a file's checksum is not the published one, or it cannot be read.
    """
    from torchvision import datasets

    spec = SETS[name]
    if missing := spec.missing(root):
        raise DataNotFound(
            f"{name} is not in {root} ({missing} is missing). Fetch it with\n"
            f"    nas-workbook data fetch {name}\n"
            "or point NAS_DATA (or root=…) at the folder that holds it."
        )
    if check:
        _check_files(name, spec, root)
    make = getattr(datasets, spec.torchvision)
    choices: list[dict[str, Any]] = [{"train": True}, {"train": False}]
    if name in ("svhn", "dtd"):
        choices = [{"split": s} for s in ("train", "val", "test") if s != "val" or name == "dtd"]
    try:
        parts = [make(str(root), **choice) for choice in choices]
        pairs = [_shrunk(part) if name == "dtd" else _tensors(part) for part in parts]
    except (RuntimeError, OSError, KeyError, pickle.UnpicklingError, struct.error) as error:
        raise CorruptData(f"{name} in {root} cannot be read: {error}") from error
    x, y = (torch.cat(tensors) for tensors in zip(*pairs[:-1], strict=True))
    classes = tuple("0123456789") if name == "svhn" else tuple(parts[0].classes)
    return Images(x, y, *pairs[-1], classes)


def _tensors(part) -> tuple[Tensor, Tensor]:
    x = torch.as_tensor(np.asarray(part.data))
    if x.dim() == 3:  # MNIST [N, H, W]
        x = x.unsqueeze(1)
    elif x.shape[-1] == 3:  # CIFAR [N, H, W, 3]; SVHN is [N, 3, H, W] already
        x = x.permute(0, 3, 1, 2)
    labels = part.labels if hasattr(part, "labels") else part.targets
    return x.contiguous(), torch.as_tensor(np.asarray(labels, dtype=np.int64))


def _shrunk(images, side: int = 32) -> tuple[Tensor, Tensor]:
    rows = [(np.asarray(image.resize((side, side))), label) for image, label in images]
    x = torch.from_numpy(np.stack([row[0] for row in rows])).permute(0, 3, 1, 2)
    return x.contiguous(), torch.tensor([row[1] for row in rows])


def load_real(name: str, root: Path, train_limit: int | None, seed: int) -> Dataset:
    """Official test set, validation cut from the official training set.

    CIFAR: 45,000 / 5,000 / 10,000. MNIST and Fashion-MNIST: 48,000 / 12,000 / 10,000. The cut is
    stratified and depends on `seed`. Pixels are scaled to [−1, 1]. Raises what `read_images` does.
    """
    spec, images = SETS[name], read_images(name, root)
    order = stratified_order(images.y.numpy(), seed)
    val, train = order[: spec.val], order[spec.val :]
    train = train[: limited(train_limit, len(train))]
    splits = [(images.x[index], images.y[index]) for index in (train, val)]
    splits.append((images.x_test, images.y_test))
    provenance = {"source": spec.source, "seed": seed, "md5": dict(spec.files)}
    return image_dataset(name, splits, images.classes, provenance, spec.augment)


# ------------------------------------------------------------------------------------ download


def fetch_real(name: str, root: Path) -> None:
    """Download one of `SETS` below `root`; nothing is done where it is there already.

    The files arrive in a hidden folder, are checked there, and take their names in one step each:
    what has its name is whole.

    Raises:
        CorruptData: when what arrives, or what is there already, is not what was published.
        OSError: when `root` cannot be written.
    """
    spec = SETS[name]
    if not spec.missing(root):
        _check_files(name, spec, root)
        found = len(list((root / spec.folder).glob(spec.pattern))) if spec.folder else 0
        if found != spec.count:
            raise CorruptData(
                f"{root / spec.folder} holds {found:,} of the {spec.count:,} published files: a "
                "part of the set, or what an interrupted download left. Use it as it is, or rename "
                f"it and run nas-workbook data fetch {name} again"
            )
        return
    part = root / f".{name}.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        if spec.folder:
            _unpack(spec, part)
        else:
            _by_torchvision(spec, part)
        if missing := spec.missing(part):
            raise CorruptData(f"the download of {name} holds no {missing}; try again later")
        _check_files(name, spec, part)
        for path in [file for file, _ in spec.files] or [spec.folder]:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            os.replace(part / path, root / path)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _by_torchvision(spec: RealSet, folder: Path) -> None:
    from torchvision import datasets

    make = getattr(datasets, spec.torchvision)
    if spec.torchvision == "SVHN":
        for split in ("train", "test"):
            make(str(folder), split=split, download=True)
    else:
        make(str(folder), train=True, download=True)


def _unpack(spec: RealSet, folder: Path) -> None:
    """Download an archive, check it, unpack it into `folder / spec.folder`."""
    from tqdm import tqdm

    url, published = spec.archive
    archive = folder / url.rsplit("/", 1)[1]
    with urlopen(url) as answer, open(archive, "wb") as file:
        size = int(answer.headers.get("Content-Length") or 0) or None
        with tqdm.wrapattr(answer, "read", total=size, desc=archive.name) as body:
            shutil.copyfileobj(body, file, 1 << 20)
    _check_sum(
        archive, published, "The connection broke off, or the archive has changed; try again."
    )
    with tarfile.open(archive) as content:
        content.extractall(folder / spec.folder, filter="data")


def _check_files(name: str, spec: RealSet, root: Path) -> None:
    for file, published in spec.files:
        advice = f"Delete it and fetch it again with\n    nas-workbook data fetch {name}"
        _check_sum(root / file, published, advice)


def _check_sum(path: Path, published: str, advice: str) -> None:
    kind = "md5" if len(published) == 32 else "sha256"
    found = _digest(path, kind, path.stat().st_size, path.stat().st_mtime_ns)
    if found != published:
        raise CorruptData(
            f"{path} is damaged: its {kind} is {found}, published is {published}. {advice}"
        )


@cache
def _digest(path: Path, kind: str, size: int, changed: int) -> str:
    """Checksum of a file; not computed twice while its size and time stay the same."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, kind).hexdigest()
