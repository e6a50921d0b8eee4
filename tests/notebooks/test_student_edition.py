"""The student edition of the whole book runs, and every check speaks of the missing answer."""

import re

import pytest

from nas_core.workbook import Book, notebooks, runner
from nas_core.workbook.copies import make_student_edition

BOOK = Book.load()


@pytest.fixture(scope="module")
def students(tmp_path_factory):
    out = tmp_path_factory.mktemp("students")
    make_student_edition(BOOK, out)
    return Book.load(out)


@pytest.mark.slow
@pytest.mark.parametrize("name", [c.name for c in BOOK.ready])
def test_runs_end_to_end_with_empty_answers(students, name):
    job = runner.Job(students.chapters[name])
    (outcome,) = runner.run([job])
    assert outcome.good, outcome.message
    checked = 0
    for cell in notebooks.code_cells(notebooks.read(job.output)):
        if re.search(r"\bchecks\.ex_\d", cell.source):
            checked += 1
            text = "".join(o.get("text", "") for o in cell.outputs)
            assert "○" in text and "✓" not in text, f"{cell.source} says {text!r}"
    solutions = [
        c for c in notebooks.read(BOOK.chapters[name].path).cells if "solution" in notebooks.tags(c)
    ]
    assert checked >= len(solutions)
