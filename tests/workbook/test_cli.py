"""The command line: subcommands, their help, wrong input."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from nas_core import data
from nas_core.workbook.cli import build_parser, literal, main, pytest_command
from nas_core.workbook.environment import COMPARABLE
from tests.workbook.books import code, make_book

COMMANDS = ("data", "doctor", "lab", "results", "run", "student", "sweep", "test")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_subcommand_says_what_it_takes(name, capsys):
    with pytest.raises(SystemExit) as raised:
        build_parser().parse_args([name, "--help"])
    assert raised.value.code == 0
    assert len(capsys.readouterr().out) > 200


def imported(*arguments: str) -> list[str]:
    """What a command loads of the packages that take seconds."""
    script = (
        "import sys\nfrom nas_core.workbook.cli import main\n"
        f"try:\n    main({list(arguments)})\nexcept SystemExit:\n    pass\n"
        "print([m for m in ('torch', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()[-1]


@pytest.mark.parametrize(
    "command",
    [
        ["--help"],
        ["data", "list"],
        ["results"],
        ["run", "--dry-run"],
        ["sweep", "99"],
        ["sweep", "00"],
        ["sweep", "03", "--grid", "lam"],
        ["sweep", "03", "--seeds", "0"],
        ["lab", "--no-browser"],
    ],
)
def test_commands_that_only_print_do_not_wait_for_pytorch(command):
    assert imported(*command) == "[]"


def test_help_names_every_command():
    printed = build_parser().format_help()
    assert all(f"    {name}" in printed for name in COMMANDS)


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
    assert re.search("digits +embedded", printed)
    fetched = []
    monkeypatch.setattr(data, "fetch", lambda name, root: fetched.append((name, root)) or root)
    assert main(["data", "--root", "elsewhere", "fetch", "mnist"]) == 0
    assert fetched == [("mnist", Path.cwd() / "elsewhere")]
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


@pytest.fixture
def started(tmp_path, monkeypatch):
    """A book, and the commands that would have been started for it."""
    root = make_book(tmp_path / "b", {"00_start_here": [code("print(1)")]})
    monkeypatch.delenv("NAS_BOOK", raising=False)
    monkeypatch.chdir(root)
    calls = []

    def run(command, cwd, env):
        calls.append((command[1:], cwd, env))
        return subprocess.CompletedProcess(command, 5)

    monkeypatch.setattr(subprocess, "run", run)
    return root, calls


def test_test_runs_pytest_in_the_books_folder(started):
    root, calls = started
    assert main(["test", "--jobs", "1", "--", "-k", "graph"]) == 5
    ((command, folder, environment),) = calls
    assert command[:4] == ["-m", "pytest", "--nbval", "--nbval-current-env"]
    assert command[-2:] == ["-k", "graph"]
    assert folder == root and environment.items() >= COMPARABLE.items()


def test_lab_opens_a_copy_and_computes_as_the_book_does(started):
    root, calls = started
    assert main(["lab", "--", "--no-browser"]) == 5
    assert main(["lab", "--in-place"]) == 5
    (command, folder, environment), (_, in_place, _) = calls
    assert command == ["-m", "jupyter", "lab", "--no-browser", "00_start_here.ipynb"]
    assert folder == root / "build" / "lab" and in_place == root / "notebooks"
    committed = (root / "notebooks" / "00_start_here.ipynb").read_bytes()
    assert (folder / "00_start_here.ipynb").read_bytes() == committed
    assert environment["NAS_BOOK"] == str(root) and environment["NAS_PROGRESS"] == "1"
    wanted = {name: value for name, value in COMPARABLE.items() if name != "NAS_PROGRESS"}
    assert environment.items() >= wanted.items()
    kernels = environment["JUPYTER_PATH"].split(os.pathsep)[0]
    spec = json.loads(Path(kernels, "kernels", "python3", "kernel.json").read_text())
    assert spec["argv"][0] in ("python", sys.executable)  # jupyter_client means itself by "python"


def test_a_readers_notebook_is_never_overwritten(started, capsys):
    root, _ = started
    path, copy = (root / n / "00_start_here.ipynb" for n in ("notebooks", "build/lab"))

    def change(file, word):
        file.write_text(file.read_text().replace("print(1)", f"print({word})"))

    main(["lab"])
    change(path, 2)
    main(["lab"])
    assert "print(2)" in copy.read_text(), "the reader changed nothing: the newer one is copied"
    copy.write_text(copy.read_text().replace("print(2)", "print('mine')"))
    main(["lab"])
    assert "mine" in copy.read_text() and "yours is kept" not in capsys.readouterr().out
    path.write_text(path.read_text().replace("print(2)", "print(3)"))
    main(["lab"])
    assert "mine" in copy.read_text()
    assert "00_start_here.ipynb: yours is kept; the book has a newer one" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["lab", "test"])
def test_options_for_others_belong_behind_two_dashes(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--no-browser"])
    assert f"nas-workbook {command} -- --no-browser" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["results", "--no-browser"])
    assert " -- " not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (PermissionError(13, "Permission denied", "/book/build"), "/book/build cannot be written"),
        (OSError(30, "Read-only file system", "/book/build"), "copy the book to a folder"),
        (OSError(28, "No space left on device", "/x"), "the disk is full"),
        (NotADirectoryError(20, "Not a directory", "/dev/null/x"), "/dev/null/x"),
    ],
)
def test_what_cannot_be_written_is_told_in_a_sentence(started, monkeypatch, capsys, error, told):
    def fails(*_):
        raise error

    monkeypatch.setattr("nas_core.workbook.copies.reading_copies", fails)
    assert main(["lab"]) == 2
    printed = capsys.readouterr().err
    assert told in printed and printed.count("\n") == 1


def test_a_file_as_data_root_or_as_students_folder_is_refused(tmp_path, capsys):
    file = tmp_path / "file"
    file.write_text("")
    assert main(["student", str(file)]) == 2
    assert "is a file; name a new folder" in capsys.readouterr().err
    assert main(["data", "--root", str(file), "fetch", "mnist"]) == 2
    assert "is a file" in capsys.readouterr().err
    assert main(["data", "fetch"]) == 2
    assert "name the data set" in capsys.readouterr().err


def test_other_processors_run_the_cells_without_comparing_digits(monkeypatch):
    for machine, option in (("x86_64", "--nbval"), ("arm64", "--nbval-lax")):
        monkeypatch.setattr("platform.machine", lambda machine=machine: machine)
        assert pytest_command(1, [])[3] == option
