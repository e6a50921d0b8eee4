"""The student edition: stubs instead of solutions, and it runs from end to end."""

import pytest

from nas_core.workbook import Book, BookError, notebooks
from nas_core.workbook.cli import main
from nas_core.workbook.copies import make_student_edition
from tests.workbook.books import code, make_book, text

NAME = "03_a_chapter"
STUB = "def double(x):\n    raise NotImplementedError"


def cells(stub=STUB):
    solution = code("def double(x):\n    return 2 * x  # the secret", "solution", stub=stub)
    return [
        code("from nas_core.workbook import checks"),
        text("Write it.", "exercise"),
        solution,
        code("checks.ex_3_1(double)"),
        code("print('the rest of the chapter')"),
    ]


@pytest.fixture
def book(tmp_path, monkeypatch):
    root = make_book(tmp_path / "book", {NAME: cells()})
    (root / "data" / "results" / NAME).mkdir(parents=True)
    (root / "data" / "results" / NAME / "r.json").write_text("{}")
    (root / "notebooks" / "checks" / "ch03.py").write_text(
        "from nas_core.workbook.checks import exercise, same\n"
        "ex_3_1 = exercise('3.1', 'd')(lambda f: same(f(2), 4))\n"
    )
    (root / "notebooks" / "references.bib").write_text("@book{a}")
    monkeypatch.chdir(root)
    monkeypatch.delenv("NAS_BOOK", raising=False)
    assert main(["run", "--write"]) == 0
    return root


def test_student_edition_runs_end_to_end(book, tmp_path, monkeypatch, capsys):
    solved = notebooks.read(book / "notebooks" / f"{NAME}.ipynb")
    answer, check, solution = solved.cells[4], solved.cells[5], solved.cells[6]
    assert answer.source == STUB and "secret" in solution.source
    assert "○ 3.1" in check.outputs[0].text
    out = tmp_path / "students"
    assert main(["student", str(out)]) == 0
    copy = notebooks.read(out / "notebooks" / f"{NAME}.ipynb")
    answer = copy.cells[4]
    assert answer.source == STUB and notebooks.tags(answer) == ["answer"]
    assert "jupyter" not in answer.metadata  # it is not folded away
    assert copy.cells[5].outputs == [] and copy.cells[-1].outputs  # the verdict is the student's
    assert "secret" not in (out / "notebooks" / f"{NAME}.ipynb").read_text()
    assert (out / "data" / "results" / NAME / "r.json").exists()
    assert (out / "notebooks" / "references.bib").exists()
    assert (out / "notebooks" / "checks" / "ch03.py").exists()
    monkeypatch.chdir(out)
    assert main(["run"]) == 0
    executed = notebooks.read(out / "build" / "notebooks" / f"{NAME}.ipynb")
    assert "○ 3.1 d: not written yet" in executed.cells[-2].outputs[0].text
    assert executed.cells[-1].outputs[0].text == "the rest of the chapter\n"


def test_a_students_work_is_not_overwritten(book, tmp_path):
    make_student_edition(Book.load(), tmp_path / "s")
    with pytest.raises(BookError, match="not empty"):
        make_student_edition(Book.load(), tmp_path / "s")
