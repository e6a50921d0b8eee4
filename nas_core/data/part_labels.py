"""Part Labels: hair, skin and background in photographs of faces (Kae et al., 2013; LFW).

Below the root lie `lfw_funneled/<name>/<name>_%04d.jpg`, the maps
`parts_lfw_funneled_gt_images/<name>_%04d.ppm` (red hair, green skin, blue background), and
`parts_train.txt`, `parts_validation.txt`, `parts_test.txt` with a line `<name> <number>` each
(also in a folder `part_labels/` of the root).
"""

from pathlib import Path

import numpy as np
import torch

from nas_core.data.dataset import CorruptData, DataNotFound, Dataset, image_dataset, limited
from nas_core.data.faces import CLASSES
from nas_core.data.mask_folders import read_picture
from nas_core.training import Augment
from nas_core.training.tensors import IGNORED

SIDE, PADDED = 250, 256
LISTS = ("parts_train.txt", "parts_validation.txt", "parts_test.txt")
HOME = "http://vis-www.cs.umass.edu/lfw/part_labels/"


def part_labels(root: Path, train_limit: int | None, seed: int) -> Dataset:
    """1500 / 500 / 927 photographs, zero-padded from 250 to 256 pixels, in [−1, 1].

    The padding, 3 pixels on every side, has no class: its target is −100. Mirrored in training.
    Raises `DataNotFound` when a list or picture is missing, `CorruptData` when a picture cannot be
    read or has another size.
    """
    folder = next((f for f in (root, root / "part_labels") if (f / LISTS[0]).is_file()), None)
    if folder is None:
        raise DataNotFound(
            f"part_labels is not in {root} ({LISTS[0]} is missing). How to get it:\n"
            "    nas-workbook data fetch part_labels"
        )
    splits = [_split(folder, name, train_limit if name == LISTS[0] else None) for name in LISTS]
    return image_dataset("part_labels", splits, CLASSES, {"source": HOME}, Augment(flip=True))


def fetch_part_labels(root: Path) -> None:
    """Say what to put where: Part Labels has no loader that downloads it."""
    raise DataNotFound(
        f"part_labels has to be fetched by hand: from {HOME} take the funneled images, the ground "
        f"truth images and the three lists, and unpack them into {root / 'part_labels'}, so that "
        f"it holds lfw_funneled/, parts_lfw_funneled_gt_images/ and {', '.join(LISTS)}."
    )


def _split(folder: Path, listing: str, limit: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    if not (folder / listing).is_file():
        advice = "see nas-workbook data fetch part_labels"
        raise DataNotFound(f"{folder / listing} is missing; {advice}")
    lines = (folder / listing).read_text(encoding="utf-8").splitlines()
    people = [line.split() for line in lines if line.strip()]
    people = people[: limited(limit, len(people))]
    images = np.zeros((len(people), PADDED, PADDED, 3), np.uint8)
    targets = np.full((len(people), PADDED, PADDED), IGNORED, np.int64)
    inner = slice((PADDED - SIDE) // 2, (PADDED + SIDE) // 2)
    for i, (name, number) in enumerate(people):
        file = f"{name}_{int(number):04d}"
        images[i, inner, inner] = _pixels(folder / "lfw_funneled" / name / f"{file}.jpg")
        colours = _pixels(folder / "parts_lfw_funneled_gt_images" / f"{file}.ppm")
        targets[i, inner, inner] = colours.argmax(axis=2)  # red, green, blue = hair, skin, ground
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(targets)


def _pixels(path: Path) -> np.ndarray:
    """RGB `[250, 250, 3]` of a picture file."""
    pixels = read_picture(path, "RGB")
    if pixels.shape != (SIDE, SIDE, 3):
        raise CorruptData(f"{path} is {pixels.shape[1]}×{pixels.shape[0]}, not {SIDE}×{SIDE}")
    return pixels
