"""Recorded results: what is written is what is replayed."""

import json
import math
import shlex
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from benchmarks.records import means, outdated
from nas_core.workbook import record_result, replay
from nas_core.workbook.cli import main
from nas_core.workbook.results import read_results
from tests.workbook.books import make_book

NAME = "03_a_chapter"
ROOT = Path(__file__).resolve().parents[2]
COMMAND = "nas-workbook run 3 --profile study"


@pytest.fixture
def book(tmp_path, monkeypatch):
    root = make_book(tmp_path / "book", {NAME: []})
    monkeypatch.chdir(root)
    monkeypatch.delenv("NAS_BOOK", raising=False)
    return root


def test_round_trip(book):
    rows = [
        {"cost": np.float32(0.5), "accuracy": torch.tensor(0.75), "seed": 0, "edges": [1, 2]},
        {"cost": np.int64(2), "accuracy": float("nan"), "seed": 1, "edges": []},
    ]
    path = record_result("3", "front", rows, command=COMMAND, seeds=[0, 1], device="cpu: small")
    assert path == book / "data" / "results" / NAME / "front.json"
    record_result(NAME, "other", pd.DataFrame({"cost": [7.0]}), command="x", config={"lam": 1.0})
    table = replay(NAME)
    assert table.columns[0] == "result"
    assert list(table)[-5:] == ["command", "seeds", "device", "versions", "recorded"]
    assert list(table.result) == ["front", "front", "other"]
    assert list(table.cost) == [0.5, 2.0, 7.0]
    assert table.accuracy[0] == 0.75 and math.isnan(table.accuracy[1])
    assert table.command[0] == COMMAND and table.seeds[0] == "0, 1"
    assert f"torch {torch.__version__}".split("+")[0] in table.versions[0]
    assert json.loads(path.read_text())["rows"][1]["accuracy"] is None
    assert {p.name for p in path.parent.iterdir()} == {"front.json", "other.json"}  # no leftovers


def test_nothing_recorded(book, capsys):
    table = replay(NAME)
    assert table.empty and "command" in table
    assert main(["results"]) == 0
    assert "no results" in capsys.readouterr().out


def test_listing(book, capsys):
    rows = [
        {"strategy": name, "seed": seed, "accuracy": 0.1 * seed + add, "curve": [1, 2]}
        for name, add in (("random", 0.5), ("evolution", 0.7))
        for seed in (0, 2)
    ]
    command = COMMAND + " -p LAMS '[1, 2, 3]'" * 4
    record_result(NAME, "front", rows, command=command, seeds=range(100), device="a GPU")
    assert main(["results", "3"]) == 0
    printed = capsys.readouterr().out
    assert f"{NAME} / front: 4 rows" in printed
    assert "random 0.6 ± 0.14" in printed and "evolution 0.8 ± 0.14" in printed
    assert "seeds 0, 1, 2, 3, 4, 5, 6, 7 … (100) · a GPU" in printed
    told = printed[printed.index("nas-work") : printed.index("  seeds")]
    assert shlex.split(told.replace("\\\n", "")) == shlex.split(command)


def test_every_record_of_the_book_is_printed_in_narrow_lines(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert main(["results"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    for record in read_results(root=ROOT):
        assert f"{record['chapter']} / {record['name']}: {len(record['rows'])} rows" in lines
        assert len(means(record)) >= 1


def test_every_record_is_as_its_command_would_make_it_now(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert main(["results", "--check"]) == 0, capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "config", "told"),
    [
        (COMMAND, {"steps": 9, "rate": 0.5, "deep": False, "further": 1}, None),
        (COMMAND + " -p STEPS 4", {"steps": 4, "rate": 0.5, "deep": False}, None),
        (COMMAND, {"steps": 3, "rate": 0.5, "deep": False}, "steps was 3, the command would use 9"),
        (COMMAND, {"steps": 9, "rate": 0.5}, 'deep was "not recorded"'),
        ("nas-workbook run 3 -p SEED 0…4", {}, "does not run"),
        ("nas-workbook run 7", {}, "does not run"),
        ("nas-workbook dance", {}, "does not run"),
        ("python benchmarks/nothing.py", {}, "there is no benchmarks/nothing.py"),
        ("make it", {}, "neither"),
    ],
)
def test_outdated_records_are_named(book, command, config, told):
    record_result(NAME, "front", [{"a": 1}], command=command, config=config)
    (record,) = read_results()
    problems = " ".join(outdated(record))
    assert problems == "" if told is None else told in problems
    assert main(["results", "--check"]) == int(told is not None)


def test_scripts_tell_their_configuration(book):
    (book / "benchmarks").mkdir()
    (book / "benchmarks" / "a_study_of_tests.py").write_text(
        "def configuration(argv):\n    return {'lam': float(argv[1])}\n"
    )
    command = "python benchmarks/a_study_of_tests.py --lam 2"
    record_result(NAME, "front", [{"a": 1}], command=command, config={"lam": 1.0})
    (record,) = read_results()
    assert list(outdated(record)) == [f"{NAME} / front: lam was 1.0, the command would use 2.0"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"chapter": "9"}, "unknown"),
        ({"name": "../x"}, "letters, digits"),
        ({"rows": []}, "no rows"),
        ({"command": " "}, "command is empty"),
        ({"rows": [{"x": "y" * 1_000_001}]}, "is the limit"),
    ],
)
def test_wrong_records_are_refused(book, change, named):
    arguments = {"chapter": NAME, "name": "r", "rows": [{"a": 1}], "command": COMMAND, **change}
    with pytest.raises(ValueError, match=named):
        record_result(**arguments)
    assert not (book / "data" / "results" / NAME / "r.json").exists()


def test_objects_are_refused(book):
    with pytest.raises(TypeError, match="object"):
        record_result(NAME, "r", [{"a": object()}], command=COMMAND)


@pytest.mark.parametrize(
    "change",
    [
        {"command": ...}, {"command": 3}, {"rows": "text"}, {"rows": [3]}, {"seeds": 5},
        {"versions": []}, {"config": None},
    ],
)  # fmt: skip
def test_damaged_files_are_named(book, change):
    path = record_result(NAME, "front", [{"a": 1}], command=COMMAND)
    record = {**json.loads(path.read_text()), **change}
    path.write_text(json.dumps({k: v for k, v in record.items() if v is not ...}))
    with pytest.raises(ValueError, match=r"front.json lacks a proper"):
        read_results()
    for text in ("{", "[1]", "3"):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"front.json"):
            replay(NAME)
