"""All data sets by name."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from urllib.error import URLError

import torch

from nas_core.data.colour_shapes import colour_shapes
from nas_core.data.curves import curves
from nas_core.data.dataset import DataNotFound, Dataset
from nas_core.data.digits import digits
from nas_core.data.faces import faces
from nas_core.data.mask_folders import LAYOUTS, by_hand, mask_folder
from nas_core.data.part_labels import fetch_part_labels, part_labels
from nas_core.data.places import FILES, SETS, by_hand_is_here, data_root
from nas_core.data.real import fetch_real, known, load_real

# Need no files: (size, train_limit, seed) -> Dataset.
EMBEDDED: dict[str, Callable[[int | None, int | None, int], Dataset]]
EMBEDDED = {"digits": digits, "colour_shapes": colour_shapes, "faces": faces, "curves": curves}
# Read from the data root: (root, train_limit, seed) -> Dataset.
REAL: dict[str, Callable[[Path, int | None, int], Dataset]] = {
    **{name: partial(load_real, name) for name in SETS if name not in FILES},
    "part_labels": part_labels,
    **{name: partial(mask_folder, name) for name in LAYOUTS},
}
# Sets that are not downloaded: functions that raise `DataNotFound` with what to put where.
ADVICE: dict[str, Callable[[Path], None]] = {
    "part_labels": fetch_part_labels,
    **{name: partial(by_hand, name) for name in LAYOUTS},
}


def available() -> tuple[str, ...]:
    """Names that `load` knows, those that need no files first."""
    return (*EMBEDDED, *REAL)


def load(
    name: str,
    *,
    root: str | Path | None = None,
    device: torch.device | str = "cpu",
    size: int | None = None,
    train_limit: int | None = None,
    seed: int = 0,
) -> Dataset:
    """A data set by name, as tensors on `device`; never downloads.

    Real sets lie in `root` (see `data_root`); `size` is the side of embedded images that come in
    several; `train_limit` keeps that many training examples (stratified); `seed` decides the
    validation examples and what is drawn. Raises `ValueError` for an unknown name, size or limit,
    and what `read_images` does.
    """
    if name in EMBEDDED:
        return EMBEDDED[name](size, train_limit, seed).to(device)
    if name in FILES:
        readers = f"chapters {FILES[name].chapters} read it"
        raise ValueError(f"{name} is no set of single examples; {readers}")
    known(name, available())
    if size is not None:
        raise ValueError(f"size is {size}; {name} comes in one size only")
    return REAL[name](data_root(root), train_limit, seed).to(device)


def fetch(name: str, root: str | Path | None = None) -> Path:
    """Download a real data set into the data root, which is returned; nothing for embedded sets.

    The only function that uses the network. Raises `ValueError` for an unknown name, `DataNotFound`
    where the download fails or the set must be fetched by hand.
    """
    folder = data_root(root)
    if name not in EMBEDDED:
        known(name, (*available(), *FILES))
        try:
            if name not in ADVICE:
                fetch_real(name, folder)
            elif name == "part_labels" or not by_hand_is_here(name, folder):
                ADVICE[name](folder)
        except URLError as error:
            raise DataNotFound(
                f"{name} could not be downloaded ({error.reason}); check the connection and try "
                f"again, or put its files into {folder} by hand"
            ) from error
        except DataNotFound:
            raise
        except OSError as error:  # a file where a folder is needed, read-only, a full disk
            raise DataNotFound(
                f"{name} cannot be put into {folder} ({error.strerror or error}); give a folder "
                "that can be written, by --root or NAS_DATA"
            ) from error
    return folder
