"""All data sets by name."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from urllib.error import URLError

import torch

from nas_core.data.colour_shapes import colour_shapes
from nas_core.data.dataset import DataNotFound, Dataset
from nas_core.data.digits import digits
from nas_core.data.faces import faces
from nas_core.data.files import FILES, fetch_files
from nas_core.data.part_labels import fetch_part_labels, part_labels
from nas_core.data.vision import VISION, fetch_vision, load_vision

# Need no files: (size, train_limit, seed) -> Dataset.
EMBEDDED: dict[str, Callable[[int | None, int | None, int], Dataset]] = {
    "digits": digits,
    "colour_shapes": colour_shapes,
    "faces": faces,
}
# Read from the data root: (root, train_limit, seed) -> Dataset.
REAL: dict[str, Callable[[Path, int | None, int], Dataset]] = {
    **{name: partial(load_vision, name) for name in VISION},
    "part_labels": part_labels,
}
FETCH: dict[str, Callable[[Path], None]] = {
    **{name: partial(fetch_vision, name) for name in VISION},
    "part_labels": fetch_part_labels,
    **{name: partial(fetch_files, name) for name in FILES},
}


def available() -> tuple[str, ...]:
    """Names that `load` knows, those that need no files first."""
    return (*EMBEDDED, *REAL)


def data_root(root: str | Path | None = None) -> Path:
    """Folder of the real data sets: the argument, else `$NAS_DATA`, else the project's `data/`."""
    if root is not None:
        return Path(root).expanduser()
    if os.environ.get("NAS_DATA"):
        return Path(os.environ["NAS_DATA"]).expanduser()
    for folder in (Path.cwd(), *Path.cwd().parents):  # chapters run in notebooks/
        if (folder / "notebooks").is_dir() and (folder / "data").is_dir():
            return folder / "data"
    return Path("data")


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

    Args:
        root: see `data_root`; only real sets need one.
        size: height and width, for embedded sets that come in several.
        train_limit: keep that many training examples (stratified).
        seed: of the division into training and validation examples, and of procedural sets.

    Raises:
        ValueError: for an unknown name, size or limit.
        DataNotFound, CorruptData: see `load_vision`.
    """
    if name in EMBEDDED:
        return EMBEDDED[name](size, train_limit, seed).to(device)
    if name in FILES:
        raise ValueError(
            f"{name} is no set of single examples; chapters {FILES[name].chapters} read it"
        )
    _known(name, available())
    if size is not None:
        raise ValueError(f"size is {size}; {name} comes in one size only")
    return REAL[name](data_root(root), train_limit, seed).to(device)


def fetch(name: str, root: str | Path | None = None) -> Path:
    """Download a real data set into the data root (the only function that uses the network).

    Returns:
        The root; for an embedded set nothing is done.

    Raises:
        ValueError: for an unknown name.
        DataNotFound: where the download fails, or only people can do it.
    """
    folder = data_root(root)
    if name not in EMBEDDED:
        _known(name, (*available(), *FILES))
        try:
            FETCH[name](folder)
        except URLError as error:
            raise DataNotFound(
                f"{name} could not be downloaded ({error.reason}); check the connection and try "
                f"again, or put its files into {folder} by hand"
            ) from error
    return folder


def _known(name: str, names: tuple[str, ...]) -> None:
    if name not in names:
        raise ValueError(f"unknown data set {name!r}; choose from {', '.join(names)}")
