"""Recorded results: what is written is what is replayed."""

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch

from nas_core.workbook import record_result, replay
from nas_core.workbook.cli import main
from nas_core.workbook.results import read_results
from tests.workbook.books import make_book

NAME = "03_a_chapter"
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
    record_result(NAME, "front", [{"a": 1}], command=COMMAND, seeds=[3], device="a GPU")
    assert main(["results", "3"]) == 0
    printed = capsys.readouterr().out
    assert f"{NAME} / front: 1 rows" in printed and COMMAND in printed
    assert "seeds 3 · a GPU" in printed


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


def test_damaged_files_are_named(book):
    path = record_result(NAME, "front", [{"a": 1}], command=COMMAND)
    record = json.loads(path.read_text())
    del record["command"]
    path.write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"front.json lacks command"):
        read_results()
    path.write_text("{")
    with pytest.raises(ValueError, match=r"front.json is no result file"):
        replay(NAME)
