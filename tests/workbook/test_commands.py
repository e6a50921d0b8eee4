"""Every command that the book names runs as written: parsed here, executed where that is quick."""

import argparse
import importlib
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from nas_core.workbook import Book, notebooks
from nas_core.workbook.cli import build_parser, literal
from nas_core.workbook.runner import Job

ROOT = Path(__file__).resolve().parents[2]
BOOK = Book.load(ROOT)
BENCHMARKS = ROOT / "benchmarks"
START = ("nas-workbook ", "python benchmarks/")
PLACEHOLDER = re.compile(r"\b(NN?|NAME|OUT|CHAPTER|SECONDS)\b|<\w+>| …")


def named() -> dict[str, str]:
    """Command -> a place where it stands."""
    found = {}
    texts = {p: p.read_text(encoding="utf-8") for p in ROOT.glob("*.md")}
    for folder in ("data", "data/results", "benchmarks"):
        texts |= {p: p.read_text(encoding="utf-8") for p in (ROOT / folder).glob("*.md")}
    for chapter in BOOK.ready:
        cells = notebooks.read(chapter.path).cells
        texts[chapter.path] = "\n".join(c.source for c in cells if c.cell_type == "markdown")
    for path, text in texts.items():
        if path.name == "CHANGELOG.md":
            continue  # speaks of commands that are gone
        fenced = "\n".join(re.findall(r"```(?:bash|sh)\n(.*?)```", text, flags=re.S))
        lines = fenced.replace("\\\n", " ").splitlines()
        for command in [*re.findall(r"`([^`\n]+)`", text), *lines]:
            command = command.split("  #")[0].strip()
            if command.startswith(START) and not PLACEHOLDER.search(command):
                found[command] = str(path.relative_to(ROOT))
    for path in [*BENCHMARKS.glob("results/*.json"), *ROOT.glob("data/results/*/*.json")]:
        found[json.loads(path.read_text())["command"]] = str(path.relative_to(ROOT))
    return found


class Parsed(Exception):
    """Ends a script where it has read its arguments."""


def test_there_are_commands():
    assert len(named()) > 30


@pytest.mark.parametrize(("command", "place"), named().items())
def test_command_is_understood(command, place, monkeypatch):
    words = shlex.split(command)
    monkeypatch.chdir(ROOT)
    if words[0] == "nas-workbook":
        args = build_parser().parse_args(words[1:])
        if args.command == "run":
            parameters = {name: literal(value) for name, value in args.parameters}
            for name in args.chapters:
                Job(BOOK.find(name), args.profile, parameters)
        return
    assert words[0] == "python", f"{place}: neither nas-workbook nor a script"
    script = ROOT / words[1]
    monkeypatch.syspath_prepend(str(BENCHMARKS))  # as Python does for a script
    if "parse_args" not in script.read_text():
        assert importlib.import_module(script.stem)
        return
    parse = argparse.ArgumentParser.parse_args

    def parse_and_stop(self, *args, **kwargs):
        parse(self, *args, **kwargs)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
    monkeypatch.setattr(sys, "argv", [str(script), *words[2:]])
    with pytest.raises(Parsed):
        runpy.run_path(str(script), run_name="__main__")


@pytest.mark.parametrize("script", sorted(BENCHMARKS.glob("*.py")), ids=lambda p: p.name)
def test_scripts_import_their_neighbours_by_name(script):
    """`from benchmarks.common import …` works in the tests and fails when the script is run."""
    assert not re.search(r"^\s*(from|import) benchmarks\b", script.read_text(), flags=re.M)


SPACE = ["columns", "2", "scales", "2", "channels", "2", "num_classes", "10"]
SMALL = {
    "latency_table.py": [
        "table.json", *("--repeats", "1"), *("--networks", "24"), *("-a", "input_shape", "(1,4,4)"),
        *(w for pair in zip(SPACE[::2], SPACE[1::2], strict=True) for w in ("-a", *pair)),
    ],
    "supernet.py": ["--help"],
    "ctrl_study.py": ["--help"],
}  # fmt: skip


@pytest.mark.parametrize("script", SMALL)
def test_scripts_start_from_any_folder(script, tmp_path):
    """As scripts, with the smallest arguments that take seconds."""
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    (tmp_path / "nas_core").symlink_to(ROOT / "nas_core")  # this copy, and nothing beside it
    command = [sys.executable, str(BENCHMARKS / script), *SMALL[script]]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout
