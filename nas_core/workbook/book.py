"""Where the book lies and what its `notebooks/meta.yaml` says about each chapter."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

PROFILES = ("smoke", "study", "paper")
_META = Path("notebooks", "meta.yaml")
_MINUTES = ("read", *PROFILES)


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
    needs: tuple[str, ...] = ()  # chapters to read before
    minutes: dict[str, float | str] = field(default_factory=dict)  # or text: "8 on one H200"
    limits: dict[str, float] = field(default_factory=dict)  # seconds per profile, else the default
    profiles: dict[str, dict[str, Any]] = field(default_factory=dict)
    ignored_cells: tuple[dict[str, str], ...] = ()  # what nbval must not compare, and why

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
        return {**self.profiles.get("smoke", {}), **self.profiles[name]}


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
        except (OSError, yaml.YAMLError) as error:
            raise BookError(f"cannot read {source}: {error}") from error
        parts = {p["id"]: p["title"] for p in meta["parts"]}
        entries = meta["chapters"] or {}
        chapters = {n: _chapter(n, entry or {}, folder, parts) for n, entry in entries.items()}
        for chapter in chapters.values():
            if missing := set(chapter.needs) - set(chapters):
                raise BookError(f"{chapter.name} needs {sorted(missing)}, which are no chapters")
        return cls(folder, meta["title"], parts, chapters)

    @property
    def ready(self) -> list[Chapter]:
        return [c for c in self.chapters.values() if c.status == "ready"]

    def find(self, which: str | int) -> Chapter:
        """The chapter of this number (3, "03"), name or beginning of a name."""
        text = str(which).removesuffix(".ipynb")
        if text in self.chapters:
            return self.chapters[text]
        if text.isdigit():
            found = [c for c in self.chapters.values() if c.number == int(text)]
        else:
            found = [c for n, c in self.chapters.items() if n.startswith(text) or text in n]
        if len(found) == 1:
            return found[0]
        what = "ambiguous" if found else "unknown"
        allowed = [c.name for c in found] or list(self.chapters)
        raise BookError(f"chapter {text!r} is {what}; choose one of {', '.join(allowed)}")


def _chapter(name: str, entry: dict[str, Any], root: Path, parts: dict[str, str]) -> Chapter:
    known = set(Chapter.__dataclass_fields__) - {"name", "root"}
    if unknown := set(entry) - known:
        raise BookError(
            f"{name}: unknown keys {sorted(unknown)} in meta.yaml; known are {sorted(known)}"
        )
    if missing := {"title", "part", "question"} - set(entry):
        raise BookError(f"{name}: meta.yaml lacks {sorted(missing)}")
    if not name[:2].isdigit() or name[2:3] != "_":
        raise BookError(f"chapter {name!r} must be named like 03_budgeted_super_networks")
    if entry["part"] not in parts:
        raise BookError(f"{name}: part {entry['part']!r} is none of {', '.join(parts)}")
    if entry.get("status", "planned") not in ("ready", "planned"):
        raise BookError(f"{name}: status {entry['status']!r} is neither 'ready' nor 'planned'")
    for key, allowed in (("profiles", PROFILES), ("limits", PROFILES), ("minutes", _MINUTES)):
        if wrong := set(entry.get(key) or {}) - set(allowed):
            raise BookError(f"{name}: {key} may have {', '.join(allowed)}, not {sorted(wrong)}")
    smoke = set((entry.get("profiles") or {}).get("smoke") or {})
    profiles = {p: dict(v or {}) for p, v in (entry.get("profiles") or {"smoke": {}}).items()}
    for profile, values in profiles.items():
        if extra := set(values) - smoke:
            raise BookError(f"{name}: {profile} sets {sorted(extra)}, which smoke does not have")
    for cell in entry.get("ignored_cells") or ():
        if set(cell) != {"cell", "reason"}:
            raise BookError(f"{name}: every ignored cell needs `cell` and `reason`, got {cell}")
    values = {k: v for k, v in entry.items() if v is not None}
    values |= {
        "profiles": profiles,
        "needs": tuple(entry.get("needs") or ()),
        "ignored_cells": tuple(entry.get("ignored_cells") or ()),
    }
    return Chapter(name=name, root=root, **values)
