"""Where and how a run computes: device, seeds, CPU threads, and the versions it ran with."""

from __future__ import annotations

import os
import platform
import random
from importlib import metadata

import numpy as np
import torch


def pick_device(name: str | torch.device = "auto") -> torch.device:
    """The device to compute on; "auto" takes a GPU where there is one.

    Raises:
        ValueError: when the name is unknown or the machine has no such device.
    """
    if isinstance(name, torch.device):
        return name
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(
            f'unknown device {name!r}; use "auto", "cpu", "cuda", "cuda:0", "cuda:1", … or "mps"'
        ) from error
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if (device.index or 0) >= count:
            raise ValueError(
                f"device {name!r} asked for, but {count} CUDA devices are visible to PyTorch "
                f'{torch.__version__}; use "cpu" or "auto", or install a CUDA build'
            )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError('device "mps" asked for, but this machine has none; use "cpu"')
    return device


def describe_device(device: torch.device | str) -> str:
    """One line for people: kind, model and size of the device."""
    device = torch.device(device)
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return f"cuda: {properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    if device.type == "cpu":
        return f"cpu: {platform.machine()}, {torch.get_num_threads()} of {os.cpu_count()} threads"
    return device.type


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and PyTorch's global generators (all devices)."""
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed is {seed}; it must be in 0…{2**32 - 1}")
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def one_thread() -> None:
    """Compute on one CPU thread: sums are then added in one order, whatever the machine."""
    torch.set_num_threads(1)


def versions() -> dict[str, str]:
    """Versions of what a result depends on, to be stored next to it."""
    packages = ("nas-workbook", "torchvision", "torchaudio", "numpy")
    found = {"python": platform.python_version(), "torch": str(torch.__version__)}  # with its build
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
