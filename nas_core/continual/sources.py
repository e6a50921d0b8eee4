"""Where the images of a stream come from: the embedded families or the real data sets.

Both catalogues answer to the same seven roles, so that one description of a stream serves both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from nas_core.continual.families import CLASSES, SPLITS, draw_family
from nas_core.data import DataNotFound, data_root, stratified_order

# role: (data set of CTrL, share of its training images that is kept for validation)
REAL: dict[str, tuple[str, float]] = {
    "digits": ("mnist", 1 / 6),
    "rainbow_digits": ("rainbow_mnist", 1 / 6),
    "wild_digits": ("svhn", 26040 / 73257),
    "clothes": ("fashion_mnist", 1 / 6),
    "textures": ("dtd", 0.5),
    "objects": ("cifar10", 0.2),
    # Table 5.1 says 40,000 / 10,000, but the tasks of appendix A take 450 / 50 of each class.
    "many_objects": ("cifar100", 0.1),
}
ROLES = tuple(REAL)
_BY_NAME = {name: role for role, (name, _) in REAL.items()}


class Catalogue(Protocol):
    """Seven roles, each with classes and three disjoint pools of images."""

    size: int

    def name(self, role: str) -> str: ...
    def classes(self, role: str) -> tuple[str, ...]: ...
    def pool(self, role: str, split: str) -> tuple[Tensor, Tensor]: ...
    def plain_digits(self, split: str) -> tuple[Tensor, Tensor]: ...


def role_of(name: str) -> str:
    """The role that a data set plays: `"mnist"` → `"digits"`; roles stand for themselves."""
    known = _BY_NAME.get(name.replace("-", "_"), _BY_NAME.get(name.replace("-", "")))
    if known is None and name not in ROLES:
        raise ValueError(f"{name!r} is neither a role nor a data set of CTrL; see sources.REAL")
    return known or name


@dataclass(frozen=True)
class Embedded:
    """The families of `families.py`: no files, any number of images.

    Args:
        size: side of the images.
        pool_sizes: images per class for training, validation and test.
    """

    size: int = 32
    pool_sizes: tuple[int, int, int] = (200, 60, 40)
    seed: int = 0

    def name(self, role: str) -> str:
        return role_of(role)

    def classes(self, role: str) -> tuple[str, ...]:
        return CLASSES[role_of(role)]

    def pool(self, role: str, split: str) -> tuple[Tensor, Tensor]:
        count = self.pool_sizes[SPLITS.index(split)]
        return _drawn(role_of(role), count, self.size, split, self.seed)

    def plain_digits(self, split: str) -> tuple[Tensor, Tensor]:
        """Grey digits `[N, 1, size, size]`."""
        x, y = self.pool("digits", split)
        return x[:, :1], y


@lru_cache(maxsize=64)
def _drawn(role, count, size, split, seed) -> tuple[Tensor, Tensor]:
    return draw_family(role, count, size=size, split=split, seed=seed)


@dataclass(frozen=True)
class Real:
    """CTrL's data sets as RGB images (thesis table 5.1: 32×32), read by torchvision.

    Validation images are set apart once (stratified, by `seed`), so that no task validates on
    what another one was trained on.

    Args:
        root: folder with the data sets; default `NAS_DATA`.
        embedded_for: roles whose files are allowed to be missing: the embedded family of the
            same role takes their place (its name says so).
        stand_in: images per class of those families for training, validation and test.
        size: side of the images; less than 32 makes short runs on a processor affordable.
    """

    root: str | None = None
    seed: int = 0
    embedded_for: tuple[str, ...] = ()
    stand_in: tuple[int, int, int] = (600, 300, 200)
    size: int = 32

    def name(self, role: str) -> str:
        role = role_of(role)
        return f"embedded {role}" if role in self.embedded_for else REAL[role][0]

    def classes(self, role: str) -> tuple[str, ...]:
        role = role_of(role)
        return CLASSES[role] if role in self.embedded_for else self._images(role)["classes"]

    def pool(self, role: str, split: str) -> tuple[Tensor, Tensor]:
        role = role_of(role)
        if role in self.embedded_for:
            return Embedded(self.size, self.stand_in).pool(role, split)
        return self._images(role)[split]

    def _images(self, role: str) -> dict[str, Any]:
        file = REAL["digits" if role == "rainbow_digits" else role][0]
        return _images(file, str(data_root(self.root)), self.seed, self.size)

    def plain_digits(self, split: str) -> tuple[Tensor, Tensor]:
        """Grey digits in their own resolution `[N, 1, 28, 28]`."""
        return _images("mnist", str(data_root(self.root)), self.seed, None)[split]


def catalogue(kind: str, size: int, pool_sizes: Sequence[int], seed: int = 0) -> Embedded | Real:
    """The images of a chapter: "embedded", or "real" with a family for each missing data set.

    Raises:
        DataNotFound: for "real" when not one of the data sets is there.
    """
    pools = (pool_sizes[0], pool_sizes[1], pool_sizes[2])
    if kind == "embedded":
        return Embedded(size, pools, seed)
    if kind != "real":
        raise ValueError(f"images {kind!r} are unknown; choose 'embedded' or 'real'")
    real, missing = Real(size=size, seed=seed), []
    for role in ROLES:
        try:
            real.classes(role)
        except DataNotFound as error:
            missing.append(role)
            if len(missing) == len(ROLES):
                raise DataNotFound(f"no data set of CTrL is there; the last: {error}") from error
    return Real(size=size, seed=seed, embedded_for=tuple(missing), stand_in=pools)


@lru_cache(maxsize=8)
def _images(name: str, root: str, seed: int, size: int | None) -> dict[str, Any]:
    """`{split: (uint8 images, labels), "classes": names}` of one data set; RGB if resized."""
    x, y, x_test, y_test, classes = _READ[name](Path(root))
    order = stratified_order(y.numpy(), seed)
    val = round(REAL[_BY_NAME[name]][1] * len(y))
    parts = {
        "train": (x[order[val:]], y[order[val:]]),
        "val": (x[order[:val]], y[order[:val]]),
        "test": (x_test, y_test),
    }
    ready = {s: (a if size is None else _to_rgb(a, size), b) for s, (a, b) in parts.items()}
    return {**ready, "classes": tuple(classes)}


def _to_rgb(x: Tensor, size: int) -> Tensor:
    if x.shape[-1] != size:
        parts = [
            interpolate(p.float(), size=size, mode="bilinear", antialias=True)
            for p in x.split(4096)
        ]
        x = torch.cat(parts).round().clamp(0, 255).to(torch.uint8)
    return x.expand(-1, 3, -1, -1) if x.shape[1] == 1 else x


def _torchvision(name: str, root: Path, command: str, *sets) -> list[Any]:
    try:
        return [make() for make in sets]
    except (RuntimeError, OSError) as error:
        raise DataNotFound(
            f"{name} is not in {root}, or not whole ({error}). Fetch it with\n    {command}\n"
            f"or name its role in embedded_for to use the embedded family instead."
        ) from error


def _read_plain(cls_name: str, name: str):
    """MNIST, Fashion-MNIST, CIFAR: arrays with official training and test sets."""

    def read(root: Path):
        from torchvision import datasets

        cls = getattr(datasets, cls_name)
        train, test = _torchvision(
            name, root, f"nas-workbook data fetch {name}",
            lambda: cls(str(root), train=True), lambda: cls(str(root), train=False),
        )  # fmt: skip

        def images(part) -> Tensor:
            x = torch.as_tensor(np.asarray(part.data))
            return x.unsqueeze(1) if x.dim() == 3 else x.permute(0, 3, 1, 2).contiguous()

        def labels(part) -> Tensor:
            return torch.as_tensor(np.asarray(part.targets), dtype=torch.int64)

        return images(train), labels(train), images(test), labels(test), train.classes

    return read


def _read_svhn(root: Path):
    from torchvision.datasets import SVHN

    train, test = _torchvision(
        "svhn", root, "nas-workbook data fetch svhn",
        lambda: SVHN(str(root), split="train"), lambda: SVHN(str(root), split="test"),
    )  # fmt: skip
    tensors = [torch.from_numpy(a) for p in (train, test) for a in (p.data, p.labels.astype(int))]
    return *tensors, tuple("0123456789")


def _read_dtd(root: Path):
    """DTD, partition 1. The thesis joins its training and validation images and cuts them anew."""
    from torchvision.datasets import DTD

    sets = _torchvision(
        "dtd", root, "nas-workbook data fetch dtd",
        *(lambda s=s: DTD(str(root), split=s) for s in SPLITS),
    )  # fmt: skip
    data = [_shrunk(part) for part in sets]
    (x, y), (xv, yv), (xt, yt) = data
    return torch.cat([x, xv]), torch.cat([y, yv]), xt, yt, sets[0].classes


def _shrunk(images) -> tuple[Tensor, Tensor]:
    rows = [(np.asarray(image.resize((32, 32))), label) for image, label in images]
    x = torch.from_numpy(np.stack([row[0] for row in rows])).permute(0, 3, 1, 2)
    return x.contiguous(), torch.tensor([row[1] for row in rows])


_READ = {
    "mnist": _read_plain("MNIST", "mnist"),
    "fashion_mnist": _read_plain("FashionMNIST", "fashion_mnist"),
    "cifar10": _read_plain("CIFAR10", "cifar10"),
    "cifar100": _read_plain("CIFAR100", "cifar100"),
    "svhn": _read_svhn,
    "dtd": _read_dtd,
}
