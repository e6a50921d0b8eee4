"""The student edition: a copy of the book in which stubs stand for the solutions."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from nbformat import NotebookNode

from nas_core.workbook import notebooks
from nas_core.workbook.book import Book, BookError
from nas_core.workbook.notebooks import tags


def student_copy(nb: NotebookNode) -> NotebookNode:
    """A notebook whose solutions are stubs; outputs of solutions and checks are gone."""
    copy = notebooks.without_outputs(nb)
    for before, cell in zip(nb.cells, copy.cells, strict=True):
        if cell.cell_type != "code":
            continue
        if "solution" in tags(cell):
            stub = cell.metadata.pop("stub", "")
            if not stub.strip():
                raise BookError(f"the solution `{cell.source[:40]}…` has no stub")
            cell.source = stub
            cell.metadata["tags"] = ["answer" if t == "solution" else t for t in tags(cell)]
            cell.metadata.pop("jupyter", None)
        elif not re.search(r"\bchecks\.ex_", cell.source):
            cell.outputs, cell.execution_count = before.outputs, before.execution_count
    if "widgets" in nb.metadata:
        copy.metadata["widgets"] = nb.metadata["widgets"]
    return copy


def make_student_edition(book: Book, out: str | Path) -> list[Path]:
    """Write the ready chapters' student copies and what they read into `out`; returns them.

    Raises `BookError` when `out` exists and is not empty: a student's work lies there.
    """
    out = Path(out)
    if out.exists() and any(out.iterdir()):
        raise BookError(f"{out} is not empty; name a new folder")
    source = book.root / "notebooks"
    (out / "notebooks").mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        if path.is_file() and path.suffix in (".yaml", ".bib"):
            shutil.copy(path, out / "notebooks")
    for folder in ("data/results", "data/reference", "data/embedded", "data/tables"):
        if (book.root / folder).is_dir():
            shutil.copytree(book.root / folder, out / folder)
    written = []
    for chapter in book.ready:
        target = out / "notebooks" / chapter.path.name
        notebooks.write(student_copy(notebooks.read(chapter.path)), target)
        written.append(target)
    return written
