"""Where the book lies and what its `notebooks/meta.yaml` says about each chapter."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

PROFILES = ("smoke", "study", "paper")
_META = Path("notebooks", "meta.yaml")


class BookError(ValueError):
    """The book, a chapter's name or its entry in `meta.yaml` is wrong."""


def find_book(start: str | Path | None = None) -> Path:
    """The folder that holds `notebooks/meta.yaml`; `BookError` when there is none.

    It is `$NAS_BOOK`, else `start` (default: the working directory) or a folder above it, else
    the one from which the package was installed.
    """
    if named := os.environ.get("NAS_BOOK"):
        if (Path(named) / _META).is_file():
            return Path(named).resolve()
        raise BookError(f"NAS_BOOK is {named!r}, but there is no {_META} in it")
    here = Path(start or Path.cwd()).resolve()
    for folder in (here, *here.parents, Path(__file__).resolve().parents[2]):
        if (folder / _META).is_file():
            return folder
    hint = "change into the book's folder or set NAS_BOOK to it"
    raise BookError(f"no {_META} in {here} or above it: {hint}")


@dataclass(frozen=True)
class Chapter:
    """One entry of `meta.yaml`."""

    name: str  # "03_budgeted_super_networks"; its file is notebooks/<name>.ipynb
    root: Path  # the book's folder
    title: str
    part: str  # id of a part
    question: str
    status: str = "planned"  # "ready" or "planned"
    needs: list[str] = field(default_factory=list)  # chapters to read before
    minutes: dict[str, float | str] = field(default_factory=dict)  # or text: "8 on one H200"
    limits: dict[str, float] = field(default_factory=dict)  # processor seconds per profile
    profiles: dict[str, dict[str, Any]] = field(default_factory=lambda: {"smoke": {}})
    ignored_cells: list[dict[str, str]] = field(default_factory=list)  # not compared, and why

    @property
    def number(self) -> int:
        return int(self.name.split("_")[0])

    @property
    def path(self) -> Path:
        return self.root / "notebooks" / f"{self.name}.ipynb"

    @property
    def results(self) -> Path:
        return self.root / "data" / "results" / self.name

    def profile(self, name: str) -> dict[str, Any]:
        """The settings of one profile: those of `smoke`, replaced by the profile's own."""
        if name not in PROFILES:
            raise BookError(f"profile {name!r} is unknown; choose one of {', '.join(PROFILES)}")
        if name not in (known := self.profiles):
            raise BookError(f"{self.name} has no profile {name!r}, only {', '.join(known)}")
        return {**(self.profiles.get("smoke") or {}), **(self.profiles[name] or {})}


@dataclass(frozen=True)
class Book:
    """The parts and chapters of `meta.yaml`, in order."""

    root: Path
    title: str
    parts: dict[str, str]  # id -> title
    chapters: dict[str, Chapter]

    @classmethod
    def load(cls, root: str | Path | None = None) -> Book:
        """Read `meta.yaml`; raises `BookError` where it is damaged."""
        folder = Path(root).resolve() if root else find_book()
        entry: Any = "title, parts and chapters"
        try:
            meta = yaml.safe_load((folder / _META).read_text(encoding="utf-8"))
            parts = {part["id"]: part["title"] for part in meta["parts"]}
            chapters = {}
            for entry, values in meta["chapters"].items():
                chapters[entry] = Chapter(entry, folder, **values)
            return cls(folder, meta["title"], parts, chapters)
        except (OSError, yaml.YAMLError, AttributeError, LookupError, TypeError) as error:
            raise BookError(f"{folder / _META} is damaged at {entry}: {error}") from error

    @property
    def ready(self) -> list[Chapter]:
        return [c for c in self.chapters.values() if c.status == "ready"]

    def find(self, which: str | int) -> Chapter:
        """The chapter of this number (3, "03"), name or part of a name."""
        text, chapters = str(which).removesuffix(".ipynb"), self.chapters.values()
        number = int(text) if text.isdigit() else None
        found = [c for c in chapters if (c.number == number if text.isdigit() else text in c.name)]
        if len(found) == 1:
            return found[0]
        what, names = "ambiguous" if found else "unknown", [c.name for c in found or chapters]
        raise BookError(f"chapter {text!r} is {what}; choose one of {', '.join(names)}")


def same_kind(value: Any, setting: Any) -> bool:
    """Whether `value` may replace `setting`: an int may replace a float, a tuple a list.

    A setting of None takes any value.
    """
    if setting is None:
        return True
    if isinstance(setting, bool) or isinstance(value, bool):
        return type(value) is type(setting)
    kinds = {float: int | float, list: list | tuple, tuple: list | tuple}
    return isinstance(value, kinds.get(type(setting), type(setting)))
