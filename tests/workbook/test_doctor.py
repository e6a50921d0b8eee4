"""doctor: an item per need, and what a broken environment is told."""

import sys
from collections import namedtuple
from pathlib import Path

import pytest
import torch
import torchaudio
import torchvision
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager

from nas_core.workbook import Book, doctor
from nas_core.workbook.cli import main
from tests.workbook.books import make_book

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


@pytest.mark.parametrize(
    ("module", "version", "item", "remedy"),
    [
        (torchvision, "0.20.0", "torchvision", 'pip install "torchvision==0.'),
        (torchaudio, "2.10.0", "torchaudio", 'pip install "torchaudio>=2.11'),
        (torchaudio, "2.99.0", "torchaudio", 'pip install "torchaudio>=2.11'),
    ],
)
def test_pairing(book, monkeypatch, module, version, item, remedy):
    monkeypatch.setattr(module, "__version__", version)
    good, text = found(book)[item]
    assert not good and remedy in text and version in text


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
