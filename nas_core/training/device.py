"""Where and how a run computes: device, seeds, CPU threads, versions, and how long it takes."""

from __future__ import annotations

import contextlib
import math
import os
import platform
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata

import numpy as np
import torch


def require(allowed: bool, name: str, value: object, needed: str) -> None:
    """Raise a ValueError in one form: the name, its value, and what would be right."""
    if not allowed:
        raise ValueError(f"{name} is {value!r}; it must be {needed}")


def pick_device(name: str | torch.device = "auto") -> torch.device:
    """The device to compute on, checked; "auto" takes a GPU where there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        known = '"auto", "cpu", "cuda", "cuda:0", "cuda:1", … or "mps"'
        raise ValueError(f"unknown device {name!r}; use {known}") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        seen = f"{torch.cuda.device_count()} CUDA devices are visible"
        advice = 'use "cpu" or "auto", or install a CUDA build of PyTorch'
        raise ValueError(f"device {name!r} asked for, but {seen}; {advice}")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError('device "mps" asked for, but this machine has none; use "cpu"')
    return device


def describe_device(device: torch.device | str) -> str:
    """One readable line: kind, model and size of the device."""
    device = torch.device(device)
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return f"cuda: {properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    if device.type == "cpu":
        return f"cpu: {platform.machine()}, {torch.get_num_threads()} of {os.cpu_count()} threads"
    return device.type


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and PyTorch's global generators (all devices)."""
    require(0 <= seed < 2**32, "seed", seed, f"in 0…{2**32 - 1}")
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def one_thread() -> None:
    """Compute on one CPU thread: sums are then added in one order, whatever the machine."""
    torch.set_num_threads(1)


def versions() -> dict[str, str]:
    """Versions of what a result depends on, to be stored next to it."""
    found = {"python": platform.python_version(), "torch": str(torch.__version__)}  # with its build
    others = ("torchvision", "torchaudio", "numpy", "scipy", "scikit-learn", "optuna")
    for package in ("nas-workbook", *others):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


@dataclass(frozen=True)
class Timing:
    """Milliseconds per call: the median and a confidence interval of it that assumes nothing."""

    median: float
    low: float
    high: float
    repeats: int


def time_call(
    call: Callable[[], object], device: torch.device | str = "cpu", *, repeats: int = 20,
    warmup: int = 3, confidence: float = 0.95, clock: Callable[[], float] = time.perf_counter,
) -> Timing:  # fmt: skip
    """Time `call`, after `warmup` unmeasured calls, waiting for the device before and after each.

    The interval consists of two order statistics: the number of samples below the true median is
    binomial (½), whatever their distribution. With too few samples it is their whole range.

    Args:
        clock: seconds; `time.thread_time` counts only the processor time of this thread.
    """
    if repeats < 1 or warmup < 0 or not 0 < confidence < 1:
        given = f"repeats={repeats}, warmup={warmup}, confidence={confidence}"
        raise ValueError(f"{given}: need repeats ≥ 1, warmup ≥ 0 and 0 < confidence < 1")
    device = torch.device(device)
    waits = {"cuda": lambda: torch.cuda.synchronize(device), "mps": torch.mps.synchronize}
    wait = waits.get(device.type, lambda: None)
    for _ in range(warmup):
        call()
    samples = []
    for _ in range(repeats):
        wait()
        start = clock()
        call()
        wait()
        samples.append(1e3 * (clock() - start))
    samples.sort()
    # With k samples left out on either side the interval misses with 2 P(Binomial(n, ½) < k).
    k, below = 0, 1
    while below / 2**repeats < (1 - confidence) / 2:
        k += 1
        below += math.comb(repeats, k)
    k = max(k - 1, 0)
    return Timing(statistics.median(samples), samples[k], samples[repeats - 1 - k], repeats)
