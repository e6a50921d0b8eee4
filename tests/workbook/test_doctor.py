"""doctor: an item per need, and what a broken environment is told."""

import re
import subprocess
import sys
import tomllib
from collections import namedtuple
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
import torch
import torchvision
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager

from nas_core.workbook import Book, doctor, notebooks
from nas_core.workbook.cli import main
from tests.workbook.books import make_book

ROOT = Path(__file__).resolve().parents[2]
ITEMS = ["Python", "torch", "torchvision", "torchaudio", "device", "kernel", "widgets", "book"]
ITEMS += ["notebook trust", "data root", "free disk"]


@pytest.fixture
def book(tmp_path, monkeypatch):
    """A book, and a place of its own for signatures of trusted notebooks."""
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "jupyter"))
    monkeypatch.delenv("NAS_BOOK", raising=False)
    monkeypatch.delenv("NAS_DATA", raising=False)
    monkeypatch.chdir(make_book(tmp_path / "book", {"01_a": [], "02_b": []}))
    return Book.load()


def found(book) -> dict[str, tuple[bool, str]]:
    return {name: (good, text) for name, good, text in doctor.examine(book)}


def test_trust_and_exit_code(book, capsys):
    assert main(["doctor"]) == 1
    printed = capsys.readouterr().out.splitlines()
    assert [line[6:21].strip() for line in printed] == ITEMS
    assert [line[:6].strip() for line in printed].count("[FAIL]") == 1
    assert "2 of 2 chapters are not trusted" in printed[8]
    assert main(["doctor", "--trust"]) == 0
    assert "[FAIL]" not in capsys.readouterr().out
    book.chapters["01_a"].path.write_text(book.chapters["02_b"].path.read_text() + "\n ")
    assert main(["doctor"]) == 0  # same content, other bytes
    text = book.chapters["02_b"].path.read_text().replace("STEPS = 3", "STEPS = 4")
    book.chapters["01_a"].path.write_text(text)
    assert main(["doctor"]) == 1  # what was not trusted as it is now


def test_pairing_of_torchvision(book, monkeypatch):
    monkeypatch.setattr(torchvision, "__version__", "0.20.0")
    good, text = found(book)["torchvision"]
    assert not good and 'pip install "torchvision==0.' in text and "0.20.0" in text


@pytest.mark.parametrize(
    ("torch_version", "audio", "works"),
    [
        *[(f"2.{minor}.1+cpu", "2.11.0", True) for minor in (11, 12, 13, 14)],
        ("2.15.0", "2.11.0", False),  # torchaudio itself fails at its import
        ("2.14.1", "2.10.0", False),
        ("2.14.1", "2.99.0", False),
    ],
)
def test_pairs_of_torch_and_torchaudio_are_named(book, monkeypatch, torch_version, audio, works):
    versions = {"torch": torch_version, "torchaudio": audio}
    told = SimpleNamespace(version=lambda name: versions.get(name) or metadata.version(name))
    monkeypatch.setattr(doctor, "metadata", told)
    good, text = found(book)["torchaudio"]
    assert good is works and torch_version in text and audio in text
    assert works or doctor.PAIRS in text


def test_the_pairs_are_those_that_are_installed_with_the_book():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    ranges = [d for d in project["dependencies"] if re.match("torch(audio)?>", d)]
    assert len(ranges) == 2 and all(f'"{text}"' in doctor.PAIRS for text in ranges)


def git(book, *words):
    who = ("-c", "user.name=a", "-c", "user.email=a@b")
    subprocess.run(["git", "-C", book.root, *who, *words], check=True, capture_output=True)


def test_trust_signs_what_is_as_committed_and_tells_what_is_not(book, capsys):
    assert main(["doctor", "--trust"]) == 0
    assert "warning: nothing to compare with: the book is not in git" in capsys.readouterr().out
    git(book, "init")
    git(book, "add", ".")
    git(book, "commit", "-m", "the book")
    path = book.chapters["01_a"].path
    nb = notebooks.read(path)
    nb.cells[1].outputs = [nbformat.v4.new_output("display_data", {"text/html": "<script>"})]
    notebooks.write(nb, path)
    assert main(["doctor", "--trust"]) == 1
    printed = capsys.readouterr().out
    assert "NOT trusted: 01_a.ipynb differs from the committed one (see `git diff`);" in printed
    assert "trusted 1 of 2 chapters" in printed and "02_b" not in printed
    nb.metadata["widgets"] = {"application/vnd.jupyter.widget-state+json": {"state": {}}}
    nb.cells[1].outputs = []
    notebooks.write(nb, path)
    assert main(["doctor", "--trust"]) == 1
    assert "01_a.ipynb differs from the committed one" in capsys.readouterr().out


def test_compiled_operators_are_tried(book, monkeypatch):
    def broken(*_):
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(torchvision.ops, "nms", broken)
    assert found(book)["torchvision"] == (
        False,
        "RuntimeError: operator torchvision::nms does not exist",
    )


def test_pairing_follows_torch(book, monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.12.0+cpu")
    monkeypatch.setattr(torchvision, "__version__", "0.27.1")
    assert found(book)["torchvision"][0]


def test_foreign_kernel(book, monkeypatch, tmp_path):
    other = tmp_path / "python3"
    other.write_text("")
    monkeypatch.setattr(
        KernelSpecManager, "get_kernel_spec", lambda *_: KernelSpec(argv=[str(other), "-m"])
    )
    good, text = found(book)["kernel"]
    assert not good and "not this Python" in text


def test_missing_extension(book, monkeypatch):
    monkeypatch.setattr(sys, "prefix", str(Path.cwd()))
    good, text = found(book)["widgets"]
    assert not good and "jupyterlab-manager, anywidget" in text


def test_missing_chapter_and_full_disk(book, monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: usage(free=10**9))
    book.chapters["01_a"].path.unlink()
    items = found(book)
    assert items["book"] == (False, "there is no notebook for 01_a; fetch the book again")
    assert not items["free disk"][0] and "1.0 GB" in items["free disk"][1]


def test_no_book_is_an_item(monkeypatch, tmp_path):
    monkeypatch.setenv("NAS_BOOK", str(tmp_path))
    good, text = found(None)["book"]
    assert not good and "NAS_BOOK" in text
    assert main(["doctor"]) == 1


def test_no_view_is_created_that_a_browser_could_miss(book, monkeypatch):
    """A view that is closed at once leaves "[anywidget] Failed to initialize model" in Lab."""
    import ipywidgets

    before = len(ipywidgets.Widget.get_manager_state()["state"])
    opened = []
    monkeypatch.setattr(ipywidgets.Widget, "open", lambda self: opened.append(self))
    assert found(book)["widgets"][0]
    assert not opened and len(ipywidgets.Widget.get_manager_state()["state"]) == before
