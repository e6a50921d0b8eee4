"""Copies of the book: the student edition, and the notebooks that readers open in JupyterLab."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

from nbformat import NotebookNode

from nas_core.files import write_atomic
from nas_core.workbook import notebooks
from nas_core.workbook.book import Book, BookError
from nas_core.workbook.notebooks import tags

# What chapters read, below the book's folder.
SHIPPED_DATA = ("data/results", "data/reference", "data/embedded", "data/tables")


def student_copy(nb: NotebookNode) -> NotebookNode:
    """A notebook without solutions; the outputs of checks are gone too."""
    nb.cells = [c for c in notebooks.arranged(nb).cells if "solution" not in tags(c)]
    copy = notebooks.without_outputs(nb)
    for before, cell in zip(nb.cells, copy.cells, strict=True):
        if cell.cell_type == "code" and not re.search(r"\bchecks\.ex_", cell.source):
            cell.outputs, cell.execution_count = before.outputs, before.execution_count
    if "widgets" in nb.metadata:
        copy.metadata["widgets"] = nb.metadata["widgets"]
    return copy


def make_student_edition(book: Book, out: str | Path) -> None:
    """Write the ready chapters without solutions and what they read into `out`.

    Raises `BookError` when `out` is a file, or a folder that is not empty: a student's work
    lies there.
    """
    out = Path(out)
    if out.is_file():
        raise BookError(f"{out} is a file; name a new folder")
    if out.exists() and any(out.iterdir()):
        raise BookError(f"{out} is not empty; name a new folder")
    source = book.root / "notebooks"
    (out / "notebooks").mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        if path.is_file() and path.suffix in (".yaml", ".bib"):
            shutil.copy(path, out / "notebooks")
    for folder in (*SHIPPED_DATA, "notebooks/checks", "notebooks/images"):
        if (book.root / folder).is_dir():
            leave = shutil.ignore_patterns("__pycache__")
            shutil.copytree(book.root / folder, out / folder, ignore=leave)
    for chapter in book.ready:
        copy = student_copy(notebooks.read(chapter.path))
        notebooks.write(copy, out / "notebooks" / chapter.path.name)


def reading_copies(book: Book, folder: Path) -> list[str]:
    """Bring the notebooks in `folder` up to date with the book; returns what was left alone.

    A reader's work is never overwritten: a notebook whose cells the reader changed is kept, and
    named in the answer where the book has a newer one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    memory = folder / ".copied.json"  # name -> fingerprint of the cells that were copied
    copied = json.loads(memory.read_text(encoding="utf-8")) if memory.is_file() else {}
    left = []
    for chapter in book.ready:
        target = folder / chapter.path.name
        new = notebooks.fingerprint(notebooks.read(chapter.path))
        if target.is_file():
            mine = notebooks.fingerprint(notebooks.read(target))
            if mine != copied.get(chapter.name):
                left += [chapter.path.name] if new != copied.get(chapter.name) else []
                continue
            if new == mine:
                continue  # outputs may be the reader's own
        shutil.copy(chapter.path, target)
        copied[chapter.name] = new
    write_atomic(memory, json.dumps(copied, indent=1))
    if (book.root / "notebooks" / "images").is_dir():
        shutil.copytree(book.root / "notebooks" / "images", folder / "images", dirs_exist_ok=True)
    return left
