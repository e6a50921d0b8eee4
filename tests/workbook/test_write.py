"""`run --write`: what is committed, and that it is the same bytes every time."""

import pytest

from nas_core.workbook import notebooks
from nas_core.workbook.cli import main
from tests.workbook.books import code, make_book, text

GOOD, BAD = "01_good", "02_bad"


@pytest.fixture
def book(tmp_path, monkeypatch):
    chapters = {GOOD: [code("print(SEED + STEPS, PROFILE)")], BAD: [code("1 / 0")]}
    root = make_book(tmp_path / "book", chapters)
    monkeypatch.chdir(root)
    monkeypatch.delenv("NAS_BOOK", raising=False)
    return root


def test_write_is_deterministic_and_puts_solutions_below_their_checks(book):
    path = book / "notebooks" / f"{GOOD}.ipynb"
    nb = notebooks.read(path)
    nb.cells += [
        text("Write it.", "exercise"),
        code("def double(x):\n    raise NotImplementedError", "stub"),
        code("def double(x):\n    return 2 * x", "solution"),
        code(
            "from nas_core.workbook.checks import exercise, same\nCHECK(double)".replace(
                "CHECK", "exercise('1.1', 'd')(lambda f: same(f(2), 4))"
            )
        ),
        code("for i in range(3):\n    print(double(i), flush=True)"),
        code(
            "import ipywidgets\n"
            "a, b = ipywidgets.IntSlider(value=3), ipywidgets.IntSlider(value=3)\n"
            "link = ipywidgets.jslink((a, 'value'), (b, 'value'))\n"
            "ipywidgets.HBox([a, b])"
        ),
    ]
    notebooks.write(nb, path)
    assert main(["run", "1", "--write"]) == 0
    first = path.read_bytes()
    written = notebooks.read(path)
    assert [c.execution_count for c in notebooks.code_cells(written)] == [1, 2, 3, 4, 5, 6, 7]
    answer, check, solution = written.cells[-5:-2]
    assert answer.source.endswith("raise NotImplementedError") and "jupyter" not in answer.metadata
    assert check.outputs[0].text == "○ 1.1 d: not written yet\n" and len(check.outputs) == 1
    assert solution.source.startswith("# One solution.") and solution.source.endswith("2 * x")
    assert solution.metadata.jupyter.source_hidden is True and "stub" not in solution.metadata
    assert written.cells[-2].outputs == [
        {"name": "stdout", "output_type": "stream", "text": "0\n2\n4\n"}
    ]
    view = written.cells[-1].outputs[0].data["application/vnd.jupyter.widget-view+json"]
    state = written.metadata.widgets["application/vnd.jupyter.widget-state+json"].state
    assert [state[c[10:]].state.value for c in state[view.model_id].state.children] == [3, 3]
    assert main(["run", "1", "--write", "--fresh"]) == 0
    assert path.read_bytes() == first
    assert b"iopub" not in first and b"papermill" not in first
    assert main(["run", "1", "--write"]) == 0  # outputs are no part of the sources: kept
    assert path.read_bytes() == first


def test_write_refuses_stderr_and_failures(book, capsys):
    path = book / "notebooks" / f"{GOOD}.ipynb"
    nb = notebooks.read(path)
    nb.cells.append(code("import sys\nprint('careful', file=sys.stderr)"))
    notebooks.write(nb, path)
    before = path.read_bytes(), (book / "notebooks" / f"{BAD}.ipynb").read_bytes()
    assert main(["run", "1", "2", "--write"]) == 1
    assert "writes to stderr: careful" in (book / "build" / "summary.md").read_text()
    assert before == (path.read_bytes(), (book / "notebooks" / f"{BAD}.ipynb").read_bytes())
