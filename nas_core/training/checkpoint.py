"""Checkpoints, fingerprints of what made them, and the state of all random generators."""

from __future__ import annotations

import hashlib
import io
import random
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nas_core.files import write_atomic


class CorruptCheckpoint(ValueError):
    """The file exists but cannot be read as a checkpoint."""


def save_atomic(obj: Any, path: str | Path) -> None:
    """Write tensors and plain values; TypeError names the first that could not be read back."""
    buffer = io.BytesIO()
    torch.save(plain(obj), buffer)
    write_atomic(path, buffer.getbuffer())


_PLAIN = {type(None), bool, int, float, complex, str, bytes}
_READABLE = {*_PLAIN, torch.Size, torch.device, torch.dtype}


def plain(value: Any, where: str = "record") -> Any:
    """`value` with NumPy's numbers as Python's; refuses what a checkpoint cannot hold."""
    kind = type(value)
    if kind in _READABLE or isinstance(value, Tensor):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, dict):
        pairs = {plain(k, where): plain(v, f"{where}[{k!r}]") for k, v in value.items()}
        if kind is OrderedDict:  # a state_dict also carries the versions of its modules
            pairs = OrderedDict(pairs)
            pairs.__dict__.update(value.__dict__)
        return pairs
    if kind in (list, tuple):
        if set(map(type, value)) <= _PLAIN:  # histories are long lists of numbers
            return value
        return kind(plain(item, f"{where}[{n}]") for n, item in enumerate(value))
    raise TypeError(
        f"{where} is a {kind.__module__}.{kind.__qualname__}; a checkpoint holds tensors, numbers, "
        "strings, None, and lists, tuples and dicts of them"
    )


def load_checkpoint(path: str | Path, device: torch.device | str = "cpu") -> Any:
    """Read what `save_atomic` wrote; runs no code from the file.

    Raises:
        FileNotFoundError: when there is no such file.
        CorruptCheckpoint: when it is damaged, or holds more than tensors and plain values.
    """
    if not Path(path).exists():
        raise FileNotFoundError(f"no checkpoint at {path}; a run that saves there comes first")
    why = "it is cut short or of another kind; put a copy back, or give this run another file"
    try:  # a broken byte can raise half a dozen kinds of exceptions
        with zipfile.ZipFile(path) as archive:  # torch.load does not look at the checksums
            if damaged := archive.testzip():
                why = f"the checksum of {damaged} differs: put a copy back, or delete it to start"
                raise ValueError("damaged after it was written")
        why = "its checksums are right, but it holds more than plain values, which could run code"
        return torch.load(path, map_location=device, weights_only=True)
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise CorruptCheckpoint(f"{path} is not a readable checkpoint: {why} ({reason})") from error


def fingerprint(*parts: Any) -> str:
    """Twelve hexadecimal digits that differ when a part differs: a tensor's values or a `repr`."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            digest.update(f"{part.dtype} {list(part.shape)}".encode())
            flat = part.detach().cpu().contiguous().flatten()
            if len(flat):
                digest.update(flat.view(torch.uint8).numpy().data)
        else:
            digest.update(f"{part!r};".encode())
    return digest.hexdigest()[:12]


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
    for index, one in enumerate(state.get("cuda", [])[: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(one.cpu(), index)
