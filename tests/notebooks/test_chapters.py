"""Every ready chapter: its rules, and that its committed execution is one of its own cells."""

import ast
import re

import pytest

from nas_core.workbook import Book, notebooks
from nas_core.workbook.book import PROFILES
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
def test_solutions_pass_their_checks_and_stubs_are_told(chapter, capsys):
    """In a namespace that has nothing but the chapter's imports."""
    cells = notebooks.arranged(notebooks.read(chapter.path)).cells
    names: dict = {}
    for cell in cells:
        for node in ast.parse(cell.source).body if cell.cell_type == "code" else ():
            if isinstance(node, ast.Import | ast.ImportFrom):
                exec(ast.unparse(node), names)
    answers = [i for i, cell in enumerate(cells) if "answer" in notebooks.tags(cell)]
    assert answers
    for stub, check, solution in (cells[i : i + 3] for i in answers):
        assert re.search(r"\bchecks\.ex_\d", check.source)
        exec(stub.source, names)
        exec(check.source, names)
        assert capsys.readouterr().out.startswith("○"), check.source
        exec(solution.source, names)
        exec(check.source, names)
        assert capsys.readouterr().out.startswith("✓"), check.source


def test_notebooks_and_entries_belong_together():
    files = {p.stem for p in (BOOK.root / "notebooks").glob("*.ipynb")}
    ready = {c.name for c in BOOK.ready}
    assert ready <= files, "status is ready, but there is no notebook"
    assert files <= set(BOOK.chapters), "a notebook without a block in meta.yaml"


@pytest.mark.parametrize("chapter", BOOK.chapters.values(), ids=lambda c: c.name)
def test_entries_of_meta_yaml(chapter):
    """What the code takes for granted."""
    assert chapter.status in ("ready", "planned") and chapter.part in BOOK.parts
    assert re.fullmatch(r"\d\d_\w+", chapter.name)
    assert set(chapter.needs) <= set(BOOK.chapters)
    for settings in (chapter.profiles, chapter.limits):
        assert set(settings) <= set(PROFILES)
    assert set(chapter.minutes) <= {"read", *PROFILES}
    smoke = chapter.profiles["smoke"]
    assert all(set(chapter.profile(name)) == set(smoke) for name in chapter.profiles)
    assert all(set(cell) == {"cell", "reason"} for cell in chapter.ignored_cells)
    if chapter.status == "ready":
        assert {"read", "smoke"} <= set(chapter.minutes)


def test_the_map_in_chapter_00_is_that_of_meta_yaml():
    prose = "\n".join(c.source for c in notebooks.read(BOOK.find(0).path).cells)
    for chapter in BOOK.chapters.values():
        after = ", ".join(str(BOOK.chapters[n].number) for n in chapter.needs) or "–"
        name = f"{chapter.number} · {chapter.title}"
        ready = chapter.status == "ready"
        name = f"[{name}]({chapter.path.name})" if ready else f"*{name}* (planned)"
        assert f"| {name} | {after} | {chapter.question} |" in prose


def test_references_are_cited_by_key():
    keys = set(re.findall(r"@\w+\{([^,]+),", (BOOK.root / "notebooks/references.bib").read_text()))
    for chapter in BOOK.ready:
        nb = notebooks.read(chapter.path)
        prose = "\n".join(c.source for c in nb.cells if c.cell_type == "markdown")
        cited = set(re.findall(r"\[@([\w-]+)\]", prose))
        assert cited <= keys, f"{chapter.name} cites {sorted(cited - keys)}"
