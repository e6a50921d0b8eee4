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
    """The book, a chapter's name or its entry in `meta.yaml` is not as it must be."""


def find_book(start: str | Path | None = None) -> Path:
    """Folder that holds `notebooks/meta.yaml`.

    Looked for in `NAS_BOOK`, then in `start` (default: the working directory) and its parents,
    then beside the installed package. Raises `BookError` when there is none.
    """
    if named := os.environ.get("NAS_BOOK"):
        if (Path(named) / _META).is_file():
            return Path(named).resolve()
        raise BookError(f"NAS_BOOK is {named!r}, but there is no {_META} in it")
    here = Path(start or Path.cwd()).resolve()
    for folder in (here, *here.parents, Path(__file__).resolve().parents[2]):
        if (folder / _META).is_file():
            return folder
    raise BookError(
        f"no {_META} in {here} or above it: change into the book's folder or set NAS_BOOK to it"
    )


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
        """The settings of one profile: those of `smoke` with the profile's own on top."""
        if name not in PROFILES:
            raise BookError(f"profile {name!r} is unknown; choose one of {', '.join(PROFILES)}")
        if name not in self.profiles:
            raise BookError(
                f"chapter {self.name} has no profile {name!r}, only {', '.join(self.profiles)}"
            )
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
        """Read `meta.yaml`; raises `BookError` naming the entry that is wrong."""
        folder = Path(root).resolve() if root else find_book()
        source = folder / _META
        try:
            meta = yaml.safe_load(source.read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise BookError(f"cannot read {source}: {error}") from error
        if not isinstance(meta, dict) or not {"title", "parts", "chapters"} <= set(meta):
            raise BookError(f"{source} needs a title, parts and chapters")
        entry: Any = "parts"
        try:
            parts = {p["id"]: p["title"] for p in meta["parts"]}
            chapters = {}
            for entry, values in meta["chapters"].items():
                chapters[entry] = chapter = Chapter(name=entry, root=folder, **values)
                assert chapter.number >= 0 and chapter.part in parts, "number or part is wrong"
        except (AssertionError, AttributeError, KeyError, TypeError, ValueError) as error:
            raise BookError(f"{source}: entry {entry!r} is not as it must be: {error}") from error
        return cls(folder, meta["title"], parts, chapters)

    @property
    def ready(self) -> list[Chapter]:
        return [c for c in self.chapters.values() if c.status == "ready"]

    def find(self, which: str | int) -> Chapter:
        """The chapter of this number (3, "03"), name or part of a name."""
        text = str(which).removesuffix(".ipynb")
        if text.isdigit():
            found = [c for c in self.chapters.values() if c.number == int(text)]
        else:
            found = [c for n, c in self.chapters.items() if text in n]
        if len(found) == 1:
            return found[0]
        what = "ambiguous" if found else "unknown"
        allowed = [c.name for c in found] or list(self.chapters)
        raise BookError(f"chapter {text!r} is {what}; choose one of {', '.join(allowed)}")


def same_kind(value: Any, setting: Any) -> bool:
    """Whether `value` may replace `setting`.

    Whole numbers pass for real ones, tuples for lists; a setting of None takes anything.
    """
    if setting is None:
        return True
    if isinstance(setting, bool) or isinstance(value, bool):
        return type(value) is type(setting)
    if isinstance(setting, float):
        return isinstance(value, int | float)
    if isinstance(setting, list | tuple):
        return isinstance(value, list | tuple)
    return isinstance(value, type(setting))
