"""Folders of pictures with a mask each: cell nuclei, vessels, roads, streets.

None of these is downloaded; they come from a form, or in parts that are put together by hand. Every
set has a `Layout`: where the pictures are, where the mask of a picture is, and what its values
mean.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nas_core.data.dataset import CorruptData, DataNotFound, Dataset, image_dataset, limited
from nas_core.data.places import by_hand_is_here
from nas_core.training import Augment
from nas_core.training.tensors import IGNORED

Pair = tuple[Path, Path]  # a picture and its mask


@dataclass(frozen=True)
class Layout:
    """One set below the data root."""

    folder: str
    pairs: Callable[[Path], tuple[list[Pair], list[Pair], list[Pair]]]  # training, val, test
    classes: tuple[str, ...]
    home: str  # where it comes from, and in which form it is expected
    mode: str = "RGB"  # of the pictures; "L" is grey
    meaning: tuple[int, ...] = ()  # class of every mask value 0…255; () is "above 127 is class 1"
    reduce: int = 1  # so many pixels each way become one: whole pictures would not fit in memory

    def read(self, pairs: list[Pair]) -> tuple[Tensor, Tensor]:
        """Pictures uint8 `[N, C, H, W]` and classes int64 `[N, H, W]`."""
        table = np.array(self.meaning or [0] * 128 + [1] * 128)
        images = [read_picture(image, self.mode, self.reduce) for image, _ in pairs]
        # a mask keeps the middle one of its pixels: values have no mean
        masks = [table[read_picture(mask, "L")[_every(self.reduce)]] for _, mask in pairs]
        for (image, _), x, y in zip(pairs, images, masks, strict=True):
            if x.shape[:2] != images[0].shape[:2] or x.shape[:2] != y.shape:
                raise CorruptData(
                    f"{image} has {x.shape[:2]} rows and columns, its mask {y.shape}, the first "
                    f"picture {images[0].shape[:2]}; all must be equal"
                )
        x = np.stack(images).reshape(len(images), *masks[0].shape, -1).transpose(0, 3, 1, 2)
        return torch.from_numpy(np.ascontiguousarray(x)), torch.from_numpy(np.stack(masks))


def mask_folder(name: str, root: Path, train_limit: int | None, seed: int) -> Dataset:
    """One of `LAYOUTS`, mirrored in training, in [−1, 1]. The splits are fixed; `seed` is unused.

    Raises `DataNotFound` when the folder or a mask is missing, `CorruptData` when a file cannot be
    read or sizes differ.
    """
    layout = LAYOUTS[name]
    if not by_hand_is_here(name, root):
        by_hand(name, root)
    train, val, test = layout.pairs(root / layout.folder)
    parts = [train[: limited(train_limit, len(train))], val, test]
    for split, part in zip(("training", "validation", "test"), parts, strict=True):
        if not part:
            raise DataNotFound(
                f"{root / layout.folder} has no {split} pictures. {name} is expected as: "
                f"{layout.home}"
            )
    splits = [layout.read(part) for part in parts]
    return image_dataset(name, splits, layout.classes, {"source": layout.home}, Augment(flip=True))


def by_hand(name: str, root: Path) -> None:
    """Say what to put where."""
    layout = LAYOUTS[name]
    raise DataNotFound(
        f"{name} is not in {root / layout.folder}, and has to be put there by hand: {layout.home}"
    )


def _every(step: int) -> tuple[slice, slice]:
    return slice(step // 2, None, step), slice(step // 2, None, step)


def read_picture(path: Path, mode: str, reduce: int = 1) -> np.ndarray:
    """Pixels uint8 `[H, W, 3]` or, in mode "L", `[H, W]` of a picture, means of reduce × reduce."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as picture:
            return np.asarray(picture.convert(mode).reduce(reduce))
    except FileNotFoundError as error:
        raise DataNotFound(f"{path} is missing, but another file names it") from error
    except (UnidentifiedImageError, OSError) as error:
        raise CorruptData(f"{path} is not a readable picture; replace it") from error


# ------------------------------------------------------------------------------- what lies where


def _nuclei(folder: Path) -> tuple[list[Pair], list[Pair], list[Pair]]:
    pairs = [(p, folder / "masks" / p.name) for p in sorted((folder / "images").glob("*.png"))]
    return pairs[:200], pairs[200:250], pairs[250:]


def _drive(folder: Path) -> tuple[list[Pair], list[Pair], list[Pair]]:
    def part(name: str) -> list[Pair]:
        images = sorted((folder / name / "images").glob("*.tif"))
        return [(p, folder / name / "1st_manual" / f"{p.name[:2]}_manual1.gif") for p in images]

    return part("training")[:16], part("training")[16:], part("test")


def _roads(folder: Path) -> tuple[list[Pair], list[Pair], list[Pair]]:
    def part(name: str) -> list[Pair]:
        images = sorted((folder / name).glob("*.tiff"))
        return [(p, folder / f"{name}_labels" / f"{p.stem}.tif") for p in images]

    return part("train"), part("val"), part("test")


def _cityscapes(folder: Path) -> tuple[list[Pair], list[Pair], list[Pair]]:
    def part(name: str) -> list[Pair]:
        images = sorted((folder / "leftImg8bit" / name).glob("*/*_leftImg8bit.png"))
        masks = folder / "gtFine" / name
        ids = "_gtFine_labelIds.png"
        return [
            (p, masks / p.parent.name / p.name.replace("_leftImg8bit.png", ids)) for p in images
        ]

    train = part("train")
    cut = len(train) - max(1, len(train) // 6)
    return train[:cut], train[cut:], part("val")  # the masks of the official test are secret


# The 19 classes that are trained, by their number in the files `labelIds`.
STREETS = {
    7: "road", 8: "sidewalk", 11: "building", 12: "wall", 13: "fence", 17: "pole",
    19: "traffic light", 20: "traffic sign", 21: "vegetation", 22: "terrain", 23: "sky",
    24: "person", 25: "rider", 26: "car", 27: "truck", 28: "bus", 31: "train",
    32: "motorcycle", 33: "bicycle",
}  # fmt: skip
LAYOUTS = {
    "nuclei": Layout(
        "nuclei", _nuclei, ("background", "nucleus"),
        "nuclei/images/*.png and nuclei/masks/*.png of the same names, grey and of one size; the "
        "first 200 are for training, 50 for validation, the others for the test. Made from the "
        "256×256 pictures of stage1_train of BBBC038v1, https://bbbc.broadinstitute.org/BBBC038 "
        "(CC0), shuffled and halved; a mask is the union of a picture's nuclei.",
        mode="L",
    ),
    "drive": Layout(
        "DRIVE", _drive, ("background", "vessel"),
        "DRIVE/training and DRIVE/test with images/ and 1st_manual/, as published at "
        "https://drive.grand-challenge.org (registration); 16 / 4 / 20 pictures of 565×584.",
    ),
    "massachusetts_roads": Layout(
        "massachusetts_roads", _roads, ("background", "road"),
        "massachusetts_roads/train, train_labels, val, val_labels, test, test_labels, as published "
        "at https://www.cs.toronto.edu/~vmnih/data; read at a quarter of their 1500×1500 pixels.",
        reduce=4,
    ),
    "cityscapes": Layout(
        "cityscapes", _cityscapes,
        tuple(STREETS.values()),
        "cityscapes/leftImg8bit and cityscapes/gtFine, as published at "
        "https://www.cityscapes-dataset.com (registration); read at 128×256 pixels. A sixth of the "
        "training pictures is for validation, the official validation pictures are the test.",
        meaning=tuple(list(STREETS).index(k) if k in STREETS else IGNORED for k in range(256)),
        reduce=8,
    ),
}  # fmt: skip
