"""Copies of the book: the student edition, and the notebooks that readers open in JupyterLab."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

from nas_core.files import write_atomic
from nas_core.workbook import notebooks
from nas_core.workbook.book import Book, BookError
from nas_core.workbook.notebooks import tags

# What chapters read, below the book's folder.
SHIPPED_DATA = ("data/results", "data/reference", "data/embedded", "data/tables")


def make_student_edition(book: Book, out: str | Path) -> None:
    """Write the ready chapters without solutions, and what they read, into the new folder `out`.

    A file, or a folder with content (a student's work), raises `BookError`.
    """
    out, source = Path(out), book.root / "notebooks"
    if out.is_file() or (out.exists() and any(out.iterdir())):
        problem = "is a file" if out.is_file() else "is not empty"
        raise BookError(f"{out} {problem}; name a new folder")
    (out / "notebooks").mkdir(parents=True, exist_ok=True)
    for path in [*source.glob("*.yaml"), *source.glob("*.bib")]:
        shutil.copy(path, out / "notebooks")
    leave = shutil.ignore_patterns("__pycache__")
    for folder in (*SHIPPED_DATA, "notebooks/checks", "notebooks/images"):
        if (book.root / folder).is_dir():
            shutil.copytree(book.root / folder, out / folder, ignore=leave)
    for chapter in book.ready:
        nb = notebooks.arranged(notebooks.read(chapter.path))
        nb.cells = [c for c in nb.cells if "solution" not in tags(c)]
        copy = notebooks.without_outputs(nb)
        copy.metadata |= {k: v for k, v in nb.metadata.items() if k == "widgets"}
        for before, cell in zip(notebooks.code_cells(nb), notebooks.code_cells(copy), strict=True):
            if not re.search(r"\bchecks\.ex_", cell.source):  # their verdicts are the student's
                cell.outputs, cell.execution_count = before.outputs, before.execution_count
        notebooks.write(copy, out / "notebooks" / chapter.path.name)


def reading_copies(book: Book, folder: Path) -> list[str]:
    """Bring the notebooks in `folder` up to date, except those whose cells the reader changed.

    Returns the names of the latter of which the book has a newer one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    memory = folder / ".copied.json"  # name -> fingerprint of the cells that were copied
    copied = json.loads(memory.read_text(encoding="utf-8")) if memory.is_file() else {}
    left = []
    for chapter in book.ready:
        target, last = folder / chapter.path.name, copied.get(chapter.name)
        new = notebooks.fingerprint(notebooks.read(chapter.path))
        mine = notebooks.fingerprint(notebooks.read(target)) if target.is_file() else None
        if mine is not None and mine != last:
            left += [target.name] if new != last else []
        elif mine != new:  # where only outputs differ, they may be the reader's own
            shutil.copy(chapter.path, target)
            copied[chapter.name] = new
    write_atomic(memory, json.dumps(copied, indent=1))
    if (book.root / "notebooks" / "images").is_dir():
        shutil.copytree(book.root / "notebooks" / "images", folder / "images", dirs_exist_ok=True)
    return left
