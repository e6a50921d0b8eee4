"""Functions that the sweep tests send to worker processes."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path


def square(x: int, folder: str | None = None) -> dict:
    if folder:  # one line per call: how often was this really run?
        with open(Path(folder) / f"{x}.calls", "a") as f:
            f.write(f"{os.getpid()}\n")
    return {"square": x * x}


def dies_once(x: int, folder: str) -> dict:
    """Trial 3 kills its own process with SIGKILL on the first attempt."""
    marker = Path(folder) / "died"
    if x == 3 and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return square(x, folder)


def always_fails_on_two(x: int, folder: str) -> dict:
    out = square(x, folder)
    if x == 2:
        raise RuntimeError("two is not to my liking")
    return out


def slow(x: int, folder: str, pause: float = 0.3) -> dict:
    time.sleep(pause)
    return square(x, folder)


def kinds(**config) -> dict:
    return {"kinds": " ".join(type(value).__name__ for value in config.values())}


def returns_a_number(x: int) -> float:
    return float(x)


def calls(folder: Path) -> dict[int, int]:
    """How often each trial ran."""
    return {int(f.stem): len(f.read_text().split()) for f in folder.glob("*.calls")}
