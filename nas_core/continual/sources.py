"""Where the images of a stream come from: the embedded families or the real data sets.

Both know the same seven data sets, so that one description of a stream serves both: "objects" is
CIFAR-10 among the real ones, and coloured shapes among the embedded ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from nas_core.continual.families import CLASSES, SPLITS, draw_family
from nas_core.data import DataNotFound, data_root, read_images, stratified_order
from nas_core.training import require

# data set: (its name in CTrL, share of its training images that is kept for validation)
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
_BY_NAME = {name: dataset for dataset, (name, _) in REAL.items()}
_drawn = lru_cache(maxsize=64)(draw_family)


def dataset_of(name: str) -> str:
    """The data set with this name in CTrL: `"mnist"` → `"digits"`; `"digits"` is itself."""
    known = _BY_NAME.get(name.replace("-", "_"), _BY_NAME.get(name.replace("-", "")))
    if known is None and name not in REAL:
        raise ValueError(f"{name!r} is no data set of CTrL; choose from {[*REAL, *_BY_NAME]}")
    return known or name


class TaskSource(Protocol):
    """Seven data sets, each with classes and three disjoint pools of images."""

    def name(self, dataset: str) -> str: ...
    def classes(self, dataset: str) -> tuple[str, ...]: ...
    def pool(self, dataset: str, split: str) -> tuple[Tensor, Tensor]: ...
    def plain_digits(self, split: str) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True)
class Embedded:
    """The families of `families.py`: no files, any number of images."""

    size: int = 32  # side of the images
    pool_sizes: tuple[int, int, int] = (200, 60, 40)  # per class: training, validation, test
    seed: int = 0

    def name(self, dataset: str) -> str:
        return dataset_of(dataset)

    def classes(self, dataset: str) -> tuple[str, ...]:
        return CLASSES[dataset_of(dataset)]

    def pool(self, dataset: str, split: str) -> tuple[Tensor, Tensor]:
        count = self.pool_sizes[SPLITS.index(split)]
        return _drawn(dataset_of(dataset), count, size=self.size, split=split, seed=self.seed)

    def plain_digits(self, split: str) -> tuple[Tensor, Tensor]:
        """Grey digits `[N, 1, size, size]`."""
        x, y = self.pool("digits", split)
        return x[:, :1], y


@dataclass(frozen=True)
class Real:
    """CTrL's data sets as RGB images (thesis table 5.1: 32×32).

    Validation images are set apart once (stratified, by `seed`), so that no task validates on
    what another one was trained on. DTD's training and validation images are joined and cut anew.
    """

    root: str | None = None  # folder with the data sets; default `NAS_DATA`
    seed: int = 0
    embedded_for: tuple[str, ...] = ()  # data sets that the embedded family stands in for
    stand_in: tuple[int, int, int] = (600, 300, 200)  # `pool_sizes` of those families
    size: int = 32  # side of the images; less than 32 makes short runs on a processor affordable

    def name(self, dataset: str) -> str:
        dataset = dataset_of(dataset)
        return f"embedded {dataset}" if dataset in self.embedded_for else REAL[dataset][0]

    def classes(self, dataset: str) -> tuple[str, ...]:
        dataset = dataset_of(dataset)
        return CLASSES[dataset] if dataset in self.embedded_for else self._read(dataset)["classes"]

    def pool(self, dataset: str, split: str) -> tuple[Tensor, Tensor]:
        dataset = dataset_of(dataset)
        if dataset in self.embedded_for:
            return Embedded(self.size, self.stand_in).pool(dataset, split)
        return self._read(dataset)[split]

    def _read(self, dataset: str) -> dict[str, Any]:
        file = REAL[dataset][0].removeprefix("rainbow_")
        return _images(file, str(data_root(self.root)), self.seed, self.size)

    def plain_digits(self, split: str) -> tuple[Tensor, Tensor]:
        """Grey digits in their own resolution `[N, 1, 28, 28]`."""
        return _images("mnist", str(data_root(self.root)), self.seed, None)[split]


def task_source(kind: str, size: int, pool_sizes: Sequence[int], seed: int = 0) -> Embedded | Real:
    """The images of a chapter: "embedded", or "real" with a family for each missing data set.

    Raises `DataNotFound` for "real" when not one of the data sets is there.
    """
    pools = (pool_sizes[0], pool_sizes[1], pool_sizes[2])
    if kind == "embedded":
        return Embedded(size, pools, seed)
    require(kind == "real", "images", kind, "'embedded' or 'real'")
    missing: list[str] = []
    for dataset in REAL:
        try:
            Real(size=size, seed=seed).classes(dataset)
        except DataNotFound as error:
            missing.append(dataset)
            if len(missing) == len(REAL):
                raise DataNotFound(f"no data set of CTrL is there; the last: {error}") from error
    return Real(size=size, seed=seed, embedded_for=tuple(missing), stand_in=pools)


@lru_cache(maxsize=8)
def _images(name: str, root: str, seed: int, size: int | None) -> dict[str, Any]:
    """`{split: (uint8 images, labels), "classes": names}` of one data set; RGB if resized."""
    x, y, x_test, y_test, classes = read_images(name, root)
    order = stratified_order(y.numpy(), seed)
    val = round(REAL[_BY_NAME[name]][1] * len(y))
    cut = {"train": (x[order[val:]], y[order[val:]]), "val": (x[order[:val]], y[order[:val]])}
    cut["test"] = (x_test, y_test)
    return {**{s: (_to_rgb(a, size), b) for s, (a, b) in cut.items()}, "classes": tuple(classes)}


def _to_rgb(x: Tensor, size: int | None) -> Tensor:
    if size is None:
        return x
    if x.shape[-1] != size:
        resize = partial(interpolate, size=size, mode="bilinear", antialias=True)
        x = torch.cat([resize(part.float()) for part in x.split(4096)])
        x = x.round().clamp(0, 255).to(torch.uint8)
    return x.expand(-1, 3, -1, -1) if x.shape[1] == 1 else x
