"""Files that are either whole or not there, and the state of all random generators."""

from __future__ import annotations

import os
import random
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch


class CorruptCheckpoint(ValueError):
    """The file exists but cannot be read as a checkpoint."""


def save_atomic(obj: Any, path: str | Path) -> None:
    """Write tensors and plain containers to `path`; a crash leaves the old file or the new one.

    The bytes go to a neighbour file, are forced to disk, and take the name in one step.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(partial, "wb") as file:
            torch.save(obj, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    if os.name == "posix":  # the new name itself must survive a power failure
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def load_checkpoint(path: str | Path, device: torch.device | str = "cpu") -> Any:
    """Read what `save_atomic` wrote; runs no code from the file.

    Raises:
        FileNotFoundError: when there is no such file.
        CorruptCheckpoint: when it is not a whole checkpoint, or holds other things than tensors
            and plain Python values.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(
            f"no checkpoint at {path}; a run that saves there has to come first"
        )
    try:
        with zipfile.ZipFile(path) as archive:  # torch.load does not look at the checksums
            damaged = archive.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(f"checksum of {damaged} differs")
        return torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # half a dozen kinds, depending on the broken byte
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise CorruptCheckpoint(
            f"{path} is not a readable checkpoint ({reason}); delete it to start afresh, or put a "
            "copy of it back"
        ) from error


def rng_state() -> dict[str, Any]:
    """State of Python's, NumPy's and PyTorch's global generators, as plain values and tensors."""
    name, keys, *rest = np.random.get_state(legacy=True)
    state = {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(np.asarray(keys, dtype=np.int64)), *rest),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_rng_state(state: dict[str, Any]) -> None:
    """Put all global generators back to where `rng_state` found them."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"].cpu())
    if "cuda" in state and torch.cuda.is_available():
        for index, one in enumerate(state["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(one.cpu(), index)
