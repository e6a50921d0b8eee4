"""The rules of a chapter: a chapter that keeps them has no problems, each breach is named."""

import nbformat
import pytest

from nas_core.workbook import Book, notebooks
from tests.notebooks.rules import ANATOMY, lint, measure
from tests.workbook.books import code, make_book, text

NAME = "03_a_chapter"
EXERCISE = "### Exercise 3.1 · f\n\nDifficulty ★☆☆ · 5 minutes\n\n<details>a hint</details>"


def cells():
    """A chapter without its title and parameters, which make_book writes."""
    return [
        code("import math\nprint('torch 2')", "setup", "nbval-ignore-output"),
        *[text(f"## {tag}", tag) for tag in ("picture", "theory")],
        code("expect('a', 1.0, 0, 2)", "probe"),
        text(EXERCISE, "exercise"),
        code("def f(): ...", "answer"),
        code("checks.ex_3_1(f)"),
        code("def f():\n    return 1", "solution", jupyter={"source_hidden": True}),
        *[text(f"## {tag}", tag) for tag in ("experiment", "replay", "claims", "break-it")],
        text("## Questions\n" + "<details>answer</details>\n" * 5, "questions"),
        text("## Takeaways", "takeaways"),
    ]


@pytest.fixture
def chapter(tmp_path):
    ignored = {"ignored_cells": [{"cell": "setup", "reason": "versions"}]}
    root = make_book(tmp_path / "book", {NAME: cells()}, **{NAME: ignored})
    found = Book.load(root).find(3)
    edit(found, lambda nb: nb.cells[0]["metadata"].update(tags=["title"]))
    edit(found, set_source("title", f"# 3 · {NAME}"))
    return found


def edit(chapter, change):
    """Change a notebook and number its cells as an execution would."""
    nb = notebooks.read(chapter.path)
    change(nb)
    for count, cell in enumerate(notebooks.code_cells(nb), 1):
        if cell.execution_count != 99:
            cell.execution_count = count
    nbformat.write(nb, str(chapter.path))


def test_a_good_chapter_has_no_problems(chapter):
    assert lint(chapter) == []
    size = measure(chapter)
    assert (size.code_cells, size.code_lines, size.exercises, size.expectations) == (6, 9, 1, 1)


def find(nb, tag):
    return next(c for c in nb.cells if tag in notebooks.tags(c))


def untag(tag):
    return lambda nb: find(nb, tag).metadata.update(tags=[])


@pytest.mark.parametrize("tag", ANATOMY)
def test_every_section_must_be_there(chapter, tag):
    edit(chapter, untag(tag))
    assert any(f"'{tag}'" in problem for problem in lint(chapter))


def append(source, *tags, output=None):
    def change(nb):
        cell = code(source, *tags)
        cell.outputs = [nbformat.v4.new_output(**output)] if output else []
        nb.cells.append(cell)

    return change


def stream(text, name="stdout"):
    return {"output_type": "stream", "text": text, "name": name}


def swap(nb):
    nb.cells.append(nb.cells.pop(nb.cells.index(find(nb, "theory"))))


def set_source(tag, source):
    return lambda nb: find(nb, tag).update(source=source)


def stub_left(nb):
    find(nb, "solution").metadata["stub"] = "def f(): ..."


def unfolded(nb):
    del find(nb, "solution").metadata["jupyter"]


def uncounted(nb):
    find(nb, "probe").execution_count = 99


BREACHES = [
    (swap, "belong in the order"),
    (set_source("title", "# Something else"), "with the title of meta.yaml it is '# 3 · 03_a"),
    (set_source("title", f"# 03 · {NAME}"), "with the title of meta.yaml it is '# 3 · 03_a"),
    (set_source("parameters", "PROFILE = 'smoke'\nSEED = 0"), "lacks DEVICE"),
    (set_source("parameters", "PROFILE = 'study'\nSEED = 0\nDEVICE = ''"), "committed as 'smoke'"),
    (set_source("parameters", "SEED = 1 + len(x)"), "only NAME = literal"),
    (set_source("exercise", "### Exercise 3.1 · f\n minutes <details>"), "not state difficulty"),
    (set_source("exercise", "### Exercise 3.1 · f\n ★, minutes"), "does not state <details>"),
    (set_source("exercise", "### Exercise 3.1 — f\n ★ minutes <details>"), "is not headed"),
    (set_source("questions", "<details>" * 4), "4 questions"),
    (stub_left, "a stub is left"),
    (unfolded, "is not folded"),
    (untag("answer"), "must be followed by its answer cell"),
    (untag("solution"), "must be the solution"),
    (append("x = 1", "stub"), "a stub is left"),
    (append(f"x = {'1' * 90}"), "94 columns; 88 is the limit"),
    (append("print(table.to_string())"), "tables printed as text wrap"),
    (append("!pip install x"), "no magics"),
    (append("%matplotlib inline"), "no magics"),
    (append("x = 1;"), "trailing `;`"),
    (append("open('/home/me/x')"), "absolute path '/home/'"),
    (append("widgets.interact(f)"), "interact():"),
    (append("out = Output()"), "Output():"),
    (append("clear_output(wait=True)"), "clear_output():"),
    (append("display(x, display_id='a')"), "display_id"),
    (append("CIFAR10('.', download=True)"), "download=True"),
    (append("data.fetch('cifar10')"), "chapters download nothing"),
    (append("t = time.perf_counter()"), "a timing"),
    (append("t = time.time()"), "a timing"),
    (append("expect('b', x, lo, 1)"), "literal bounds"),
    (append("def f(:"), "invalid syntax"),
    (append("x", output=stream("careful", "stderr")), "writes to stderr"),
    (append("x", output=stream("<Thing at 0x7f12>")), "a default repr (at 0x7f12)"),
    (append("x", output=stream("saved in /tmp/y")), "absolute path '/tmp/'"),
    (append("x", "nbval-skip"), "2 of 7 code cells are not compared; 1 may be"),
    (append("x", "nbval-skip"), "meta.yaml gives no reason"),
    (untag("setup"), "ignored cells that do not exist: setup"),
    (append("x = 1\n" * 351), "360 visible lines"),
    (append("x", output=stream("y" * 500_001)), "500,000 is the limit"),
    (uncounted, "execution counts are"),
]


@pytest.mark.parametrize(("change", "named"), BREACHES)
def test_breaches_are_named(chapter, change, named):
    edit(chapter, change)
    assert any(named in problem for problem in lint(chapter)), lint(chapter)


def test_what_looks_like_a_breach_and_is_none(chapter):
    edit(chapter, append("s = 'a;b'  # c; d\nratio = a/home/b\nurl = 'x.org/tmp/'"))
    edit(chapter, lambda nb: find(nb, "setup").update(source="t = time.perf_counter()"))
    assert lint(chapter) == []


def test_the_next_chapter_is_linked(tmp_path):
    root = make_book(tmp_path / "book", {NAME: cells(), "04_next": []})
    found = Book.load(root).find(3)
    missing = "no link to the next chapter, […](04_next.ipynb)"
    assert any(missing in problem for problem in lint(found))
    edit(found, set_source("takeaways", "**Next:** [chapter 4](04_next.ipynb)"))
    assert not any(missing in problem for problem in lint(found))


def test_missing_and_damaged_notebooks(chapter):
    chapter.path.write_text("{}")
    assert "no readable notebook" in lint(chapter)[0]
    chapter.path.unlink()
    assert "there is no notebook" in lint(chapter)[0]
