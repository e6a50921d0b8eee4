"""Every command and every code block of the README is run.

Three kinds of commands cannot run inside a test; what is checked instead is said beside each.
"""

import importlib.util
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from nas_core.workbook import Book
from nas_core.workbook.cli import build_parser, main
from nas_core.workbook.readme import with_tables

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    line.strip()
    for block in re.findall(r"```bash\n(.*?)```", README, flags=re.S)
    for line in block.splitlines()
    if line.strip()
]
GATE = (ROOT / ".ci" / "run").read_text()

# Take minutes to hours or need the network: `--dry-run` checks everything but the execution, the
# runner's own tests execute.
DRY = re.compile(r"nas-workbook run\b")
# Run as they are, in a copy of the book (they write) or in place (they read).
AS_IS = re.compile(r"nas-workbook (doctor|data list|results|lint|student)\b")


def kind(command: str) -> str:
    if DRY.match(command):
        return "dry run"
    if AS_IS.match(command):
        return "as it is"
    return command.split()[0] if not command.startswith("nas-workbook") else "parsed"


@pytest.mark.parametrize("command", [c for c in COMMANDS if kind(c) == "as it is"])
def test_as_it_is(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "jupyter"))  # signatures of trust
    arguments = shlex.split(command)[1:]
    if arguments[0] == "student":
        arguments[1] = str(tmp_path / arguments[1])
    if command == "nas-workbook doctor":
        assert main([*arguments, "--trust"]) == 0  # else the chapters are not trusted here
    assert main(arguments) == 0
    assert capsys.readouterr().out


@pytest.mark.parametrize("command", [c for c in COMMANDS if kind(c) == "dry run"])
def test_dry_run(command, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert main([*shlex.split(command)[1:], "--dry-run"]) == 0
    assert "would run" in capsys.readouterr().out


@pytest.mark.parametrize("command", [c for c in COMMANDS if kind(c) == "parsed"])
def test_parsed(command):
    """Opens a browser, runs these very tests, or downloads: only its arguments are checked."""
    args = build_parser().parse_args(shlex.split(command)[1:])
    assert args.command in ("lab", "test", "data", "sweep")
    if args.command == "data":
        from nas_core import data

        assert args.name in data.available()


@pytest.mark.parametrize("command", [c for c in COMMANDS if kind(c) == "make"])
def test_make(command):
    """The gate runs these very lines; here, that each target ends in the command it promises."""
    target = command.split()[1]
    planned = subprocess.run(
        ["make", "--no-print-directory", "-n", target],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    promised = {"run": "nas-workbook run", "test": "nas-workbook test", "lint": "mypy"}[target]
    assert planned.strip().splitlines()[-1].endswith(promised)
    assert re.search(rf"^{command}$", GATE, flags=re.M), f"the gate does not run `{command}`"


def test_gate_ends_with_the_tests():
    """Its last lines are pytest's own summary."""
    assert GATE.rstrip().splitlines()[-1] == "make test"
    assert COMMANDS[:2] == ["make run", "make test"]


@pytest.mark.parametrize("command", [c for c in COMMANDS if kind(c) in ("pip", "conda")])
def test_environments(command):
    """The gate installs through `make`; here, that the same extra and name are meant."""
    if command.startswith("pip"):
        assert shlex.split(command) == ["pip", "install", "-e", ".[test]"]
        assert '-e ".[test]"' in (ROOT / "Makefile").read_text()
    else:
        environment = yaml.safe_load((ROOT / "environment.yml").read_text())
        assert "environment.yml" in command or command.split()[-1] == environment["name"]


def test_no_command_is_left_out():
    kinds = {kind(c) for c in COMMANDS}
    assert kinds == {"dry run", "as it is", "parsed", "make", "pip", "conda"}


def test_the_sweep_runs_as_a_script(tmp_path):
    (block,) = re.findall(r"```py\n(.*?)```", README, flags=re.S)
    (tmp_path / "my_sweep.py").write_text(block)
    done = subprocess.run(
        [sys.executable, "my_sweep.py"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "score" in done.stdout and (tmp_path / "my.sqlite").exists()


def test_cluster_commands_name_what_exists():
    """They need several machines or GPUs: arguments are parsed and modules looked up."""
    text = "".join(re.findall(r"```sh\n(.*?)```", README, flags=re.S)).replace("\\\n", " ")
    lines = [line.split("  #")[0].strip() for line in text.splitlines() if line.strip()]
    assert len(lines) == 5
    for line in lines:
        words = shlex.split(line.replace("<head>", "head"))
        if words[0] == "nas-workbook":
            assert build_parser().parse_args(words[1:]).command == "sweep"
        elif "-m" in words:
            assert importlib.util.find_spec(words[words.index("-m") + 1])
            for module, _, name in (w.partition(":") for w in words if w.startswith("nas_core.")):
                assert not name or hasattr(importlib.import_module(module), name)
        else:
            assert words[:2] == ["ray", "start"]


def test_python_blocks_run_in_order(tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.S)
    assert len(blocks) >= 4
    script = tmp_path / "blocks.py"
    script.write_text(
        "\n".join(blocks)
        + "\nimport json\nprint(json.dumps([run.meets_budget, run.cost, len(run.history),"
        "\n    run.history.val_accuracy.iloc[-1], network(x[:3]).shape[-1]]))\n"
    )
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    meets, cost, epochs, accuracy, classes = json.loads(done.stdout.splitlines()[-1])
    assert meets and cost <= 5 and epochs == 12 and classes == 10
    assert accuracy > 0.6, "the README's example must find something that works"
    assert (tmp_path / "network.onnx").stat().st_size > 0


def test_chapter_table_is_up_to_date():
    assert with_tables(README, Book.load(ROOT)) == README, (
        "run `python -m nas_core.workbook.readme`"
    )


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("https://") or (ROOT / target).exists(), target
