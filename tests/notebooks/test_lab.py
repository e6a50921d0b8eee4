"""Run All in a kernel that `nas-workbook lab` starts gives the numbers of the book."""

import os
import re

import pytest
from nbclient import NotebookClient

from nas_core.workbook import Book, copies, notebooks
from nas_core.workbook.environment import COMPARABLE, lab_environment
from tests.notebooks.rules import IGNORING

BOOK = Book.load()
TWIN = re.compile(r'(?s)<div class="nas-twin">.*</div>')  # holds all numbers, to the last digit


def compared(cell) -> list[str]:
    """What nbval compares of a cell's outputs, pictures aside: text of every kind but stderr."""
    texts = ["".join(o.text for o in cell.outputs if o.get("name") == "stdout")]
    for output in cell.outputs:
        data = output.get("data", {})
        texts += [TWIN.sub("", data[kind]) for kind in sorted(data) if kind.startswith("text/")]
    return texts


@pytest.mark.slow
def test_run_all_of_chapter_03_gives_the_committed_outputs(tmp_path, monkeypatch):
    """It had 18 edges where the book has 15, and a verdict changed."""
    for name in COMPARABLE:  # as in the shell of a reader: only `lab` sets them
        monkeypatch.delenv(name, raising=False)
    environment = lab_environment(BOOK.root)
    monkeypatch.setenv("JUPYTER_PATH", environment["JUPYTER_PATH"])
    copies.reading_copies(BOOK, tmp_path)
    committed = notebooks.read(BOOK.find(3).path)
    run_all = notebooks.without_outputs(notebooks.read(tmp_path / BOOK.find(3).path.name))
    where = {"metadata": {"path": str(tmp_path)}}
    client = NotebookClient(run_all, timeout=None, kernel_name="python3", resources=where)
    client.execute(env=environment)
    cells = zip(notebooks.code_cells(committed), notebooks.code_cells(run_all), strict=True)
    for number, (book, lab) in enumerate(cells, 1):
        if not set(notebooks.tags(book)) & set(IGNORING):
            assert compared(lab) == compared(book), f"code cell {number}: {book.source[:80]}"
    assert set(COMPARABLE).isdisjoint(os.environ)
