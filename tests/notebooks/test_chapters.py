"""Every ready chapter: its rules, and that its committed execution is one of its own cells."""

import re

import pytest

from nas_core.workbook import Book, notebooks
from tests.notebooks.rules import lint

BOOK = Book.load()
READY = [pytest.param(c, id=c.name) for c in BOOK.ready]


@pytest.mark.parametrize("chapter", READY)
def test_rules(chapter):
    assert lint(chapter) == []


@pytest.mark.parametrize("chapter", READY)
def test_committed_as_the_runner_writes_it(chapter):
    """Written by hand or by JupyterLab, a notebook has other metadata, ids or stream pieces."""
    nb = notebooks.read(chapter.path)
    again = notebooks.finished(nb, chapter.name)
    assert again.metadata.kernelspec == nb.metadata.kernelspec
    assert [c.metadata for c in again.cells] == [c.metadata for c in nb.cells]
    assert [c.id for c in again.cells] == [c.id for c in nb.cells]
    assert [c.get("outputs") for c in again.cells] == [c.get("outputs") for c in nb.cells]


@pytest.mark.parametrize("chapter", READY)
def test_solutions_pass_their_checks(chapter):
    """nbval executes the solutions; here: what the committed checks say."""
    for cell in notebooks.code_cells(notebooks.read(chapter.path)):
        if re.search(r"\bchecks\.ex_\d", cell.source):
            text = "".join(o.get("text", "") for o in cell.outputs)
            assert "✓" in text and "✗" not in text, cell.source


def test_notebooks_and_entries_belong_together():
    files = {p.stem for p in (BOOK.root / "notebooks").glob("*.ipynb")}
    ready = {c.name for c in BOOK.ready}
    assert ready <= files, "status is ready, but there is no notebook"
    assert files <= set(BOOK.chapters), "a notebook without a block in meta.yaml"
    for chapter in BOOK.ready:
        assert set(chapter.needs) <= set(BOOK.chapters)
        assert {"read", "smoke"} <= set(chapter.minutes), f"{chapter.name}: minutes are missing"


def test_references_are_cited_by_key():
    keys = set(re.findall(r"@\w+\{([^,]+),", (BOOK.root / "notebooks/references.bib").read_text()))
    for chapter in BOOK.ready:
        nb = notebooks.read(chapter.path)
        prose = "\n".join(c.source for c in nb.cells if c.cell_type == "markdown")
        cited = set(re.findall(r"\[@([\w-]+)\]", prose))
        assert cited <= keys, f"{chapter.name} cites {sorted(cited - keys)}"
