"""What every chapter calls: `chapter()` for its settings, `expect()` for its claims."""

from __future__ import annotations

import hashlib
import json
import math
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from nas_core.training import describe_device, one_thread, pick_device, seed_everything, versions
from nas_core.workbook import environment, results
from nas_core.workbook.book import Book, Chapter, same_kind

if TYPE_CHECKING:
    import pandas as pd


class ChapterConfig(dict[str, Any]):
    """Settings of one chapter at one profile: `cfg.epochs` or `cfg["epochs"]`, read only."""

    chapter: Chapter
    profile: str
    seed: int
    device: torch.device

    def __init__(self, chapter: Chapter, profile: str, seed: int, device: torch.device, **settings):
        super().__init__(settings)
        self.__dict__.update(chapter=chapter, profile=profile, seed=seed, device=device)

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        known = ", ".join(self) or "none"
        told = f"chapter {self.chapter.name} has no setting {name!r}"
        raise AttributeError(f"{told}; meta.yaml lists {known}")

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"settings are read only: pass {name}=… to chapter() instead")

    __setitem__ = __setattr__

    def __reduce__(self) -> Any:  # how copies and pickles are made
        return partial(type(self), self.chapter, self.profile, self.seed, self.device, **self), ()

    def __repr__(self) -> str:
        settings = ", ".join(f"{k}={v!r}" for k, v in self.items())
        return f"{self.chapter.name} at {self.profile}, seed {self.seed}: {settings or 'no knobs'}"

    def environment(self) -> str:
        """One line, of this machine: device, versions, whether a smoke run may differ."""
        found = [describe_device(self.device), *(f"{k} {v}" for k, v in versions().items())]
        if self.profile == "smoke" and not environment.comparable():
            found.append("digits may differ from the book's: start with `nas-workbook lab`")
        return " · ".join(found)

    def results(self) -> pd.DataFrame:
        """Recorded larger runs of this chapter, see `replay`."""
        return results.replay(self.chapter.name, root=self.chapter.root)

    def record(self, name: str, rows: list[dict[str, Any]], **config: Any) -> Path | None:
        """Keep the rows of a larger run with its command and settings; at smoke nothing, None."""
        if self.profile == "smoke":
            return None
        made: dict[str, Any] = {
            "command": f"nas-workbook run {self.chapter.number:02d} --profile {self.profile}",
            "seeds": sorted({row.get("seed", self.seed) for row in rows}),
            "device": describe_device(self.device),
            "config": {**self, **config},
            "root": self.chapter.root,
        }
        return results.record_result(self.chapter.name, name, rows, **made)

    def checkpoint(self, name: str) -> Path | None:
        """File from which a run with these settings resumes; None at smoke, which never does."""
        if self.profile == "smoke":
            return None
        text = json.dumps([self.chapter.name, self.profile, self.seed, dict(self)], sort_keys=True)
        mark = hashlib.sha256(text.encode()).hexdigest()[:8]
        folder = self.chapter.root / "build" / "checkpoints" / self.chapter.name
        folder /= f"{self.profile}-{mark}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{name}.pt"


def chapter(
    name: str, *, profile: str = "smoke", seed: int = 0, device: str = "auto", **overrides: Any
) -> ChapterConfig:
    """Settings of chapter `name` at `profile`; also seeds everything and fixes one CPU thread.

    `overrides` replace settings of the profile, unless they are None. Raises `ValueError` for an
    unknown chapter, profile or setting, `TypeError` for a value of another type than the setting.
    """
    import matplotlib
    import pandas as pd

    found = Book.load().find(name)
    settings = found.profile(profile)
    if unknown := ", ".join(sorted(set(overrides) - set(settings))):
        known = ", ".join(settings) or "none"
        raise ValueError(f"{found.name} has no setting {unknown}; it has {known}")
    given = {k: v for k, v in overrides.items() if v is not None}
    for key, value in given.items():
        if not same_kind(value, default := settings[key]):
            told = f"{key}={value!r} is a {type(value).__name__}; the {profile} profile has"
            raise TypeError(f"{told} {default!r}, a {type(default).__name__}")
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise ValueError(f"seed is {seed!r}; it must be a whole number from 0 to 2**32 - 1")
    # With these, two executions of a notebook write the same text and pictures.
    matplotlib.rcParams.update({"svg.hashsalt": "nas-workbook", "figure.dpi": 80})
    matplotlib.rcParams["savefig.dpi"] = 80
    pd.set_option("display.width", 100, "display.precision", 3)
    one_thread()
    seed_everything(seed)
    return ChapterConfig(found, profile, seed, pick_device(device), **{**settings, **given})


class ExpectationError(AssertionError):
    """A measured value lies outside the band that the book claims."""


def expect(name: str, value: Any, lo: float, hi: float) -> None:
    """Print a verdict on `lo <= value <= hi`; raise `ExpectationError` outside the band.

    The line names the band and not the value, so that it is the same on every machine. `value`
    is a number, or a tensor or array with a single one.
    """
    if not (math.isfinite(lo) and math.isfinite(hi) and lo <= hi):
        raise ValueError(f"expect({name!r}): [{lo}, {hi}] is no band; give finite lo <= hi")
    try:
        number = float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"expect({name!r}): {value!r} is no single number") from error
    if not lo <= number <= hi:  # NaN is outside as well
        raise ExpectationError(f"✗ {name}: {number:.6g} lies outside [{lo:.10g}, {hi:.10g}]")
    print(f"✓ {name}: within [{lo:.10g}, {hi:.10g}]")
