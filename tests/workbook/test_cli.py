"""The command line: subcommands, their help, wrong input."""

import subprocess
import sys

import pytest

from nas_core import data
from nas_core.workbook.cli import build_parser, commands, main
from nas_core.workbook.cli.run import literal
from nas_core.workbook.environment import COMPARABLE
from tests.workbook.books import make_book


def test_subcommands():
    assert {"data", "doctor", "lab", "results", "run", "student", "test"} <= set(commands())
    for name, module in commands().items():
        first = module.__doc__.strip().splitlines()[0]
        assert first.endswith((".", ";")) or len(first) > 20, f"{name} needs a line of help"


def test_help_is_quick_and_names_everything():
    script = (
        "import sys\nfrom nas_core.workbook.cli import build_parser\n"
        "print(build_parser().format_help())\n"
        "print([m for m in ('torch', 'pandas', 'matplotlib') if m in sys.modules])"
    )
    printed = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stdout
    assert all(f"    {name}" in printed for name in commands())
    assert printed.rstrip().endswith("[]"), "what is slow to import must wait"


def test_wrong_command(capsys):
    with pytest.raises(SystemExit) as raised:
        main(["dance"])
    assert raised.value.code == 2
    assert "invalid choice: 'dance'" in capsys.readouterr().err


def test_wrong_input_has_no_traceback_unless_wanted(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("NAS_BOOK", str(tmp_path))
    assert main(["run"]) == 2
    assert capsys.readouterr().err.startswith("nas-workbook run: NAS_BOOK is")
    with pytest.raises(ValueError, match="NAS_BOOK"):
        main(["--debug", "run"])


def test_data_list_and_fetch(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("NAS_DATA", str(tmp_path))
    assert main(["data", "list"]) == 0
    printed = capsys.readouterr().out
    assert f"data root: {tmp_path}" in printed
    assert "cifar10" in printed and "nas-workbook data fetch cifar10" in printed
    assert "digits" in printed and "here: 1,200 / 237 / 360 examples" in printed
    fetched = []
    monkeypatch.setattr(data, "fetch", lambda name, root: fetched.append((name, root)) or root)
    assert main(["data", "--root", "elsewhere", "fetch", "mnist"]) == 0
    assert fetched == [("mnist", "elsewhere")]
    monkeypatch.undo()
    assert main(["data", "fetch", "imagenet"]) == 2
    assert "imagenet" in capsys.readouterr().err


def test_a_book_without_ready_chapters(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("NAS_BOOK", raising=False)
    monkeypatch.chdir(make_book(tmp_path / "b", {"01_a": []}, **{"01_a": {"status": "planned"}}))
    assert main(["run"]) == 2
    assert "no chapter of this book is ready" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *[("3", 3), ("1e-3", 1e-3), ("-1", -1), ("true", True), ("False", False)],
        *[("None", None), ("cpu", "cpu"), ("[1, 2]", [1, 2]), ("'3'", "3")],
    ],
)
def test_values_of_parameters(text, value):
    assert literal(text) == value and type(literal(text)) is type(value)


def test_lab_and_test_run_in_the_books_folder(tmp_path, monkeypatch):
    root = make_book(tmp_path / "b", {"00_start_here": []})
    monkeypatch.delenv("NAS_BOOK", raising=False)
    monkeypatch.delenv("NAS_PROGRESS", raising=False)
    monkeypatch.chdir(root)
    calls = []

    def run(command, cwd, env):
        calls.append((command[1:], cwd, env))
        return subprocess.CompletedProcess(command, 5)

    monkeypatch.setattr(subprocess, "run", run)
    assert main(["lab", "--", "--no-browser"]) == 5
    assert main(["test", "--jobs", "1", "--", "-k", "graph"]) == 5
    (lab, folder, environment), (test, cwd, quiet) = calls
    assert lab == ["-m", "jupyter", "lab", "--no-browser", "00_start_here.ipynb"]
    assert folder == root / "notebooks" and environment["NAS_PROGRESS"] == "1"
    assert test[:4] == ["-m", "pytest", "--nbval", "--nbval-current-env"] and test[-2:] == [
        "-k",
        "graph",
    ]
    assert cwd == root and quiet.items() >= COMPARABLE.items()


def test_other_processors_run_the_cells_without_comparing_digits(monkeypatch):
    from nas_core.workbook.cli.test import pytest_command

    for machine, option in (("x86_64", "--nbval"), ("arm64", "--nbval-lax")):
        monkeypatch.setattr("platform.machine", lambda machine=machine: machine)
        assert pytest_command(1, [])[3] == option


def test_every_subcommand_says_what_it_takes():
    for name in commands():
        with pytest.raises(SystemExit) as raised:
            build_parser().parse_args([name, "--help"])
        assert raised.value.code == 0
