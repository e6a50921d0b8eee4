"""meta.yaml, chapter settings, and how wrong entries are named."""

import copy
import pickle

import pytest
import torch
import yaml

from nas_core.workbook import Book, BookError, chapter
from nas_core.workbook.book import find_book
from tests.workbook.books import make_book

NAME = "03_a_chapter"


@pytest.fixture
def book(tmp_path, monkeypatch):
    root = make_book(tmp_path / "book", {NAME: [], "04_another": []})
    monkeypatch.chdir(root / "notebooks")
    monkeypatch.delenv("NAS_BOOK", raising=False)
    return root


def test_the_book_is_found_from_below_and_by_name(book, tmp_path, monkeypatch):
    assert find_book() == book
    monkeypatch.chdir(tmp_path)
    assert (find_book() / "pyproject.toml").is_file()  # falls back to the one beside the package
    monkeypatch.setenv("NAS_BOOK", str(book))
    assert find_book() == book
    monkeypatch.setenv("NAS_BOOK", str(tmp_path))
    with pytest.raises(BookError, match="NAS_BOOK"):
        find_book()


@pytest.mark.parametrize("which", [3, "3", "03", NAME, f"{NAME}.ipynb", "03_a", "a_chap"])
def test_chapters_are_found_by_number_name_or_part_of_it(book, which):
    assert Book.load().find(which).name == NAME


def test_settings_of_a_profile(book):
    cfg = chapter(NAME, profile="study", seed=5, device="cpu", rate=0.25)
    assert (cfg.steps, cfg.rate, cfg.deep) == (9, 0.25, False)  # study, override, smoke
    assert (cfg.seed, cfg.profile, cfg.device) == (5, "study", torch.device("cpu"))
    assert dict(cfg) == {"steps": 9, "rate": 0.25, "deep": False}
    assert repr(cfg) == f"{NAME} at study, seed 5: steps=9, rate=0.25, deep=False"
    assert torch.initial_seed() == 5
    assert torch.get_num_threads() == 1
    with pytest.raises(AttributeError, match="no setting 'epochs'; meta.yaml lists steps, rate"):
        _ = cfg.epochs
    with pytest.raises(AttributeError, match="read only"):
        cfg.steps = 4
    with pytest.raises(AttributeError, match="read only"):
        cfg["steps"] = 4
    for again in (copy.deepcopy(cfg), pickle.loads(pickle.dumps(cfg))):
        assert again == cfg and repr(again) == repr(cfg) and again.device == cfg.device


def test_none_keeps_the_value_of_the_profile(book):
    assert chapter(NAME, steps=None).steps == 3


def test_checkpoints_only_beyond_smoke_and_apart_per_settings(book):
    assert chapter(NAME).checkpoint("run") is None
    one = chapter(NAME, profile="study").checkpoint("run")
    assert one.parent.is_dir() and one.is_relative_to(book / "build")
    assert chapter(NAME, profile="study").checkpoint("run") == one
    assert chapter(NAME, profile="study", seed=1).checkpoint("run") != one
    assert chapter(NAME, profile="study", steps=8).checkpoint("run") != one


def test_results_of_larger_runs_are_recorded_with_their_command(book):
    assert chapter(NAME).record("front", [{"cost": 1}]) is None
    cfg = chapter(NAME, profile="study", seed=5, device="cpu")
    assert cfg.results().empty
    cfg.record("front", [{"cost": 1}], lam=0.5)
    (row,) = cfg.results().to_dict("records")
    assert row["command"] == "nas-workbook run 03 --profile study"
    assert (row["cost"], row["seeds"]) == (1, "5") and "cpu" in row["device"]


@pytest.mark.parametrize(
    ("arguments", "error", "named"),
    [
        ({"profile": "large"}, ValueError, "smoke, study, paper"),
        ({"profile": "paper"}, ValueError, "only smoke, study"),
        ({"stepps": 3}, ValueError, "no setting stepps; it has steps, rate, deep"),
        ({"steps": 2.5}, TypeError, "steps=2.5 is a float"),
        ({"steps": True}, TypeError, "steps=True is a bool"),
        ({"deep": "False"}, TypeError, "deep='False' is a str"),
        ({"seed": -1}, ValueError, "seed is -1"),
        ({"seed": True}, ValueError, "seed is True"),
        ({"device": "abacus"}, ValueError, "abacus"),
    ],
)
def test_wrong_settings_are_named(book, arguments, error, named):
    with pytest.raises(error, match=named):
        chapter(NAME, **arguments)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"titel": "x"}, "'titel'"),
        ({"title": ...}, "'title'"),
    ],
)
def test_wrong_entries_are_named(tmp_path, change, named):
    root = make_book(tmp_path / "b", {NAME: []})
    file = root / "notebooks" / "meta.yaml"
    meta = yaml.safe_load(file.read_text())
    entry = {**meta["chapters"][NAME], **change}
    meta["chapters"][NAME] = {k: v for k, v in entry.items() if v is not ...}
    file.write_text(yaml.safe_dump(meta))
    with pytest.raises(BookError) as raised:
        Book.load(root)
    assert named in str(raised.value) and NAME in str(raised.value)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("title: [", "title, parts"),
        ("", "title, parts and chapters"),
        ("- 1", "title, parts and chapters"),
        ("title: x\nchapters: {}", "'parts'"),
        ("title: x\nparts: 3\nchapters: {}", "title, parts and chapters"),
        ("title: x\nparts: [a]\nchapters: {}", "title, parts and chapters"),
        ("title: x\nparts: []\nchapters: []", "title, parts and chapters"),
        ("title: x\nparts: []\nchapters: {intro: {}}", "damaged at intro"),
        ("title: x\nparts: []\nchapters: {01_a: 3}", "damaged at 01_a"),
    ],
)
def test_damaged_meta(tmp_path, text, named):
    root = make_book(tmp_path / "b", {NAME: []})
    (root / "notebooks" / "meta.yaml").write_text(text)
    with pytest.raises(BookError, match="meta.yaml") as raised:
        Book.load(root)
    assert named in str(raised.value)


def test_kernels_that_others_started_are_told(book, monkeypatch):
    cfg = chapter(NAME)
    assert "nas-workbook lab" not in cfg.environment()
    monkeypatch.delenv("MKL_CBWR", raising=False)
    assert "digits may differ from the book's: start with `nas-workbook lab`" in cfg.environment()
    assert "nas-workbook lab" not in chapter(NAME, profile="study").environment()
