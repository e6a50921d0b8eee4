"""Every command and every code block of the README is run, and what is generated is up to date.

Three kinds of commands cannot run inside a test; what is checked instead is said beside each.
"""

import importlib
import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from benchmarks.lock import lock
from benchmarks.tables import TABLES, headline_table, record_table, with_tables
from nas_core import __version__
from nas_core.workbook import Book
from nas_core.workbook.cli import build_parser, main

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
AS_IS = re.compile(r"nas-workbook (doctor|data list|student)\b")


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
    promised = {"run": "nas-workbook run", "test": "nas-workbook test"}[target]
    assert promised in planned.strip().splitlines()[-1]
    if target == "run":  # what comes next, as it can be typed without activating anything
        assert "Next: .venv/bin/nas-workbook lab" in planned
    assert re.search(rf"^{command}$", GATE, flags=re.M), f"the gate does not run `{command}`"


def test_gate_ends_with_the_tests():
    """Its last lines are pytest's own summary."""
    assert GATE.rstrip().splitlines()[-1] == "make test"
    assert COMMANDS[:2] == ["make run", "make test"]


def test_environments():
    """The gate installs through `make`; here, that the README means the same environments."""
    makefile = (ROOT / "Makefile").read_text()
    assert '`pip install -e ".[test]"`' in README and '-e ".[test]"' in makefile
    assert "`conda env create -f environment.yml`" in README
    assert "source .venv/bin/activate" in COMMANDS and "VENV   ?= .venv\n" in makefile


def test_no_command_is_left_out():
    assert {kind(c) for c in COMMANDS} == {"dry run", "as it is", "parsed", "make", "source"}


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
    assert len(lines) == 4
    for line in [*lines, *re.findall(r"`(nas-workbook sweep .+?)`", README)]:
        words = shlex.split(line.replace("<head>", "head"))
        if words[0] == "nas-workbook":
            assert build_parser().parse_args(words[1:]).command == "sweep"
        elif words[0] == "torchrun":
            script, job = words[3:5]
            assert hasattr(importlib.import_module(script[:-3].replace("/", ".")), job)
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


@pytest.mark.parametrize("name", TABLES)
def test_tables_are_up_to_date(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    assert with_tables(name, text, Book.load(ROOT)) == text, "run `python benchmarks/tables.py`"


def test_ten_headlines_have_a_control_a_spread_and_a_command():
    rows = headline_table(Book.load(ROOT)).splitlines()[2:]
    assert len(rows) == 10
    for row in rows:
        *_, method, control, seeds, command = row.split(" | ")
        assert "±" in method and "±" in control and max(map(int, seeds.split("/"))) > 1
        assert re.match(r"`(nas-workbook|python) ", command)


def test_rows_of_a_record():
    """Seeds are averaged, settings never; streams only for learners that saw all of them."""
    rows = [
        {"strategy": name, "seed": seed, "accuracy": 0.1 * seed + add, "macs": 2e6}
        for name, add in (("random", 0.5), ("evolution", 0.7))
        for seed in (0, 2)
    ]
    assert record_table({"rows": rows}).splitlines() == [
        "| strategy | cost, M macs | accuracy, % | seeds |",
        "| --- | --- | --- | --- |",
        "| evolution | 2.00 ± 0.00 | 80.0 ± 14.1 | 2 |",
        "| random | 2.00 ± 0.00 | 60.0 ± 14.1 | 2 |",
    ]
    streams = [
        {"learner": learner, "stream": stream, "seed": 0, "A": a}
        for learner, stream, a in [("EWC", "x", 0.2), ("EWC", "y", 0.4), ("HAT", "x", 0.9)]
    ]
    assert record_table({"rows": streams}).splitlines()[::2] == [
        "| accuracy, %, mean of 2 streams | seeds |",
        "| 30.0 | 1 |",
    ]
    assert record_table({"rows": [{"a": 1}, {"a": 2}]}) == "2 rows of `a`.\n"


def test_a_headline_without_its_record_is_named(tmp_path):
    (tmp_path / "notebooks").mkdir()
    meta = (ROOT / "notebooks" / "meta.yaml").read_text()
    (tmp_path / "notebooks" / "meta.yaml").write_text(meta)
    with pytest.raises(ValueError, match="chapter 01: there is no record 'regret"):
        headline_table(Book.load(tmp_path))


def test_the_readme_stays_short():
    assert len(README.splitlines()) <= 250


@pytest.mark.parametrize(
    "name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "data/README.md", *list(TABLES)[1:]]
)
def test_links_lead_somewhere(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert target.startswith("https://") or (ROOT / name).parent.joinpath(target).exists(), (
            target
        )


# ---------------------------------------------------------------- files for tools


def test_the_lock_names_every_dependency_and_no_place():
    text = (ROOT / "requirements.lock").read_text()
    pins = [line for line in text.splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9-]+==[\w.]+", pin) for pin in pins)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    versions = dict(pin.split("==") for pin in pins)
    for line in project["dependencies"] + project["optional-dependencies"]["test"]:
        requirement = Requirement(line)
        assert requirement.specifier.contains(versions[canonicalize_name(requirement.name)]), line
    names = {line.split("==")[0] for line in lock().splitlines() if not line.startswith("#")}
    assert {"torch", "jinja2", "jupyter-server"} <= names  # direct and indirect ones


def test_the_image_is_made_of_what_exists():
    """There is no Docker here: what its lines name is looked up."""
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    copied = [
        source
        for line in re.findall(r"^COPY (.+)$", text, flags=re.M)
        for source in line.split()[:-1]
    ]
    assert [source for source in copied if not (ROOT / source).exists()] == []
    needed = {path.split("/")[0] for path in ("nas_core", "notebooks", "tests", "data", "Makefile")}
    assert needed <= set(copied)
    (command,) = re.findall(r"^CMD (.+)$", text, flags=re.M)
    assert " ".join(json.loads(command)) == COMMANDS[0] == "make run"
    python = re.search(r"^FROM python:([\d.]+)-slim$", text, flags=re.M)[1]
    assert f"on Python {python};" in (ROOT / "requirements.lock").read_text()
    for target in re.findall(r"make (\w+)", text.split("RUN", 1)[1]):
        assert target in ("for", "chromium") or re.search(
            rf"^{target}:", (ROOT / "Makefile").read_text(), flags=re.M
        )


def test_the_citation_is_complete():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors", "version", "license"} <= set(citation)
    assert citation["version"] == __version__
    assert f"## {__version__}\n" in (ROOT / "CHANGELOG.md").read_text()
