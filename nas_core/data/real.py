"""Real data sets that are downloaded: their files, checksums, and the one reader of torchvision's.

Nothing uses the network but `fetch_real`. torchvision is imported inside functions.
"""

import hashlib
import os
import pickle
import shutil
import struct
import tarfile
from collections.abc import Iterable
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
from nas_core.data.places import SETS, RealSet, data_root
from nas_core.training import Augment


def known(name: str, names: Iterable[str]) -> None:
    """Refuse a name that is not among `names`."""
    if name not in names:
        raise ValueError(f"unknown data set {name!r}; choose from {', '.join(names)}")


class Images(NamedTuple):
    """A set of images as it was published: training (without a validation cut) and test."""

    x: Tensor  # uint8 [N, C, H, W]
    y: Tensor  # int64 [N]
    x_test: Tensor
    y_test: Tensor
    classes: tuple[str, ...]


def read_images(name: str, root: str | Path | None = None, *, check: bool = True) -> Images:
    """One of torchvision's sets as it was published, never downloaded; `root` as for `data_root`.

    DTD is partition 1, its training and validation images joined, made 32×32. Raises `DataNotFound`
    when files are missing, and `CorruptData` when one cannot be read or, with `check`, its md5 sum
    is not the published one.
    """
    from torchvision import datasets

    known(name, [n for n, spec in SETS.items() if spec.torchvision])
    root, spec = data_root(root), SETS[name]
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
    augment = Augment(**spec.augment) if spec.augment else None
    provenance = {"source": spec.source, "seed": seed, "md5": spec.files}
    return image_dataset(name, splits, images.classes, provenance, augment)


# ------------------------------------------------------------------------------------ download


def fetch_real(name: str, root: Path) -> None:
    """Download one of `SETS` below `root`; nothing is done where it is there already.

    The files arrive in a hidden folder, are checked there, and take their names in one step each:
    what has its name is whole. Raises `CorruptData` when what arrives, or what is there already, is
    not what was published, and `OSError` when `root` cannot be written.
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
        for path in spec.files or [spec.folder]:
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

    archive = folder / spec.archive.rsplit("/", 1)[1]
    with urlopen(spec.archive) as answer, open(archive, "wb") as file:
        size = int(answer.headers.get("Content-Length") or 0) or None
        with tqdm.wrapattr(answer, "read", total=size, desc=archive.name) as body:
            shutil.copyfileobj(body, file, 1 << 20)
    _check_sum(
        archive, spec.checksum, "The connection broke off, or the archive has changed; try again."
    )
    # Python before 3.11.4 has no filters; the checksum has named the content already
    safe: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
    with tarfile.open(archive) as content:
        content.extractall(folder / spec.folder, **safe)


def _check_files(name: str, spec: RealSet, root: Path) -> None:
    for file, published in spec.files.items():
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
