"""The comparison of outputs really compares: nbval fails when a number of a chapter changes."""

import json
import os
import shutil
import subprocess
from pathlib import Path

from nas_core.workbook import Book, notebooks
from nas_core.workbook.cli import main, pytest_command
from tests.workbook.books import code, make_book

NAME = "01_small"


CONFTEST = Path(__file__).parents[2] / "notebooks" / "conftest.py"


def compare(book, *drop: str, **environment: str) -> subprocess.CompletedProcess:
    command = pytest_command(1, ["notebooks", "-p", "no:cacheprovider"])
    command = [word for word in command if word not in drop]
    environment = {**os.environ, **environment}
    return subprocess.run(command, cwd=book, capture_output=True, text=True, env=environment)


def test_a_changed_number_fails(tmp_path, monkeypatch):
    cells = [
        code("print('this machine')", "setup", "nbval-ignore-output"),
        code("import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()"),
        code("import pandas as pd\npd.DataFrame({'accuracy': [0.93]})"),
        code("print('accuracy 0.93')"),
    ]
    root = make_book(tmp_path / "book", {NAME: cells})
    monkeypatch.chdir(root)
    monkeypatch.delenv("NAS_BOOK", raising=False)
    assert main(["run", "--write"]) == 0
    path = Book.load().find(1).path
    good = compare(root)
    assert good.returncode == 0 and "5 passed" in good.stdout, good.stdout
    path.write_text(path.read_text().replace("this machine", "another machine"))
    changed = json.loads(path.read_text())
    changed["cells"][-1]["outputs"][0]["text"] = ["accuracy 0.92\n"]
    table = changed["cells"][-2]["outputs"][0]["data"]
    for kind in ("text/html", "text/plain"):
        table[kind] = [line.replace("0.93", "0.92") for line in table[kind]]
    path.write_text(json.dumps(changed))
    bad = compare(root)
    assert bad.returncode == 1 and "2 failed, 3 passed" in bad.stdout, bad.stdout
    assert notebooks.read(path)  # nothing was rewritten


def test_a_suite_that_does_not_compare_fails(tmp_path, monkeypatch):
    """nbval absent, broken, or without a word for a chapter."""
    root = make_book(tmp_path / "book", {NAME: [code("print('accuracy 0.93')")]})
    shutil.copy(CONFTEST, root / "notebooks")
    monkeypatch.delenv("NAS_BOOK", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    silent = compare(root, "--nbval", "--nbval-current-env")
    assert silent.returncode != 0
    assert f"nbval found 0 of 2 cells of {NAME}.ipynb" in silent.stdout + silent.stderr
    absent = compare(root, PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")
    assert absent.returncode != 0 and "--nbval" in absent.stderr
    broken = tmp_path / "broken" / "nbval"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise ImportError('made for an older pytest')")
    failing = compare(root, PYTHONPATH=f"{broken.parent}{os.pathsep}{Path(__file__).parents[2]}")
    assert failing.returncode != 0 and "made for an older pytest" in failing.stderr


def test_the_state_of_views_is_not_compared_but_their_description(tmp_path, monkeypatch):
    imports = "from nas_core.viz import ArchView\nfrom tests.viz.spaces import fabric\n"
    root = make_book(tmp_path / "book", {NAME: [code(imports + "ArchView(fabric(2, 3))")]})
    shutil.copy(CONFTEST, root / "notebooks")
    monkeypatch.chdir(root)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    monkeypatch.delenv("NAS_BOOK", raising=False)
    assert main(["run", "--write"]) == 0
    path = Book.load().find(1).path
    changed = json.loads(path.read_text())
    widget, twin = changed["cells"][-1]["outputs"]
    text = "".join(twin["data"]["text/html"])
    twin["data"]["text/html"] = text.replace("<!--eN", "<!--eX")
    assert twin["data"]["text/html"] != text
    path.write_text(json.dumps(changed))
    good = compare(root)
    assert good.returncode == 0, good.stdout
    widget["data"]["text/plain"] = ["ArchView(another)"]
    path.write_text(json.dumps(changed))
    bad = compare(root)
    assert bad.returncode == 1 and "1 failed" in bad.stdout, bad.stdout
