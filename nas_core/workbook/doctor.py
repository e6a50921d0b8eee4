"""What an environment needs to run the book, checked item by item."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from importlib import import_module, metadata
from pathlib import Path

import nbformat

from nas_core.workbook import notebooks
from nas_core.workbook.book import Book, BookError

# torchaudio compares versions when it is imported: 2.11 refuses torch 2.15 and later.
TORCHAUDIO, TORCH = (2, 11), ((2, 11), (2, 14))
PAIRS = (
    "torchaudio 2.11 works with torch 2.11, 2.12, 2.13 and 2.14: "
    'pip install "torch>=2.11,<2.15" "torchaudio>=2.11,<2.12"'
)


class Trouble(Exception):
    """An item that is not as it must be; the text says what to do."""


def examine(book: Book | None = None) -> list[tuple[str, bool, str]]:
    """(item, whether it works, what was found or what to do), in order."""
    items = {
        "Python": lambda: f"{platform.python_version()} in {Path(sys.prefix).name}",
        "torch": lambda: import_module("torch").__version__,
        "torchvision": _torchvision,
        "torchaudio": _torchaudio,
        "device": _device,
        "kernel": _kernel,
        "widgets": _widgets,
        "book": lambda: _book(book),
        "notebook trust": lambda: _trust(book or Book.load()),
        "data root": _data_root,
        "free disk": lambda: _disk(book),
    }
    rows = []
    for name, check in items.items():
        try:
            rows.append((name, True, check()))
        except (Trouble, BookError) as trouble:
            rows.append((name, False, str(trouble)))
        except Exception as error:  # a broken installation fails in many ways
            rows.append((name, False, f"{type(error).__name__}: {error}"))
    return rows


def report(rows: list[tuple[str, bool, str]]) -> str:
    """One line per item: `[OK]   torch       2.14.1`."""
    width = max(len(name) for name, _, _ in rows)
    marks = {True: "[OK]", False: "[FAIL]"}
    return "\n".join(f"{marks[good]:6} {name:{width}}  {text}" for name, good, text in rows)


def trust_chapters(book: Book) -> list[str]:
    """Sign the ready chapters that are as committed, for this user; lines that say what was done.

    Jupyter then renders their saved outputs, scripts included. A chapter that differs from the
    committed one is not signed: who has changed it, and how, is for its reader to judge.
    """
    from nbformat.sign import NotebookNotary

    notary, lines, signed = NotebookNotary(), [], 0
    for chapter in book.ready:
        nb, committed = notebooks.read(chapter.path), _committed(chapter.path)
        if committed is None:
            lines.append(f"warning: {chapter.path.name} cannot be compared: the book is not in git")
        elif committed != nb:
            pairs = zip(nb.cells, [*committed.cells, *[None] * len(nb.cells)], strict=False)
            cells = [str(i) for i, (a, b) in enumerate(pairs, 1) if a != b]
            where = f"cells {', '.join(cells)}" if cells else "its metadata"
            lines.append(
                f"NOT trusted: {chapter.path.name} differs from the committed one in {where}; if "
                f"the change is yours, `jupyter trust {chapter.path.name}` in notebooks/ signs it"
            )
            continue
        notary.sign(nb)
        signed += 1
    return [*lines, f"trusted {signed} of {len(book.ready)} chapters: their outputs may show"]


def _committed(path: Path) -> nbformat.NotebookNode | None:
    """The notebook in git's last commit, or None where there is none to compare with."""
    command = ["git", "-C", str(path.parent), "show", f"HEAD:./{path.name}"]
    try:
        text = subprocess.run(command, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):  # no git, or nothing committed
        return None
    return nbformat.reads(text.decode("utf-8"), as_version=4)


def _minor(version: str) -> tuple[int, int]:
    major, minor = version.split("+")[0].split(".")[:2]
    return int(major), int(minor)


def _torchvision() -> str:
    import torch
    import torchvision

    expected = (0, _minor(torch.__version__)[1] + 15)
    if _minor(torchvision.__version__) != expected:
        raise Trouble(
            f"{torchvision.__version__} does not belong to torch {torch.__version__}; "
            f'pip install "torchvision=={expected[0]}.{expected[1]}.*"'
        )
    boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 0.9]])
    if torchvision.ops.nms(boxes, torch.tensor([0.9, 0.8]), 0.5).tolist() != [0]:
        raise Trouble(f"{torchvision.__version__}: its compiled operators do not work")
    return f"{torchvision.__version__}, belongs to torch {torch.__version__}"


def _torchaudio() -> str:
    """Versions are compared before the import, which fails on its own comparison."""
    found, of_torch = metadata.version("torchaudio"), metadata.version("torch")
    if _minor(found) != TORCHAUDIO or not TORCH[0] <= _minor(of_torch) <= TORCH[1]:
        raise Trouble(f"{found} does not work with torch {of_torch}; {PAIRS}")
    import torch
    import torchaudio

    b, a = torch.tensor([1.0, 0.0]), torch.tensor([1.0, -0.5])
    filtered = torchaudio.functional.lfilter(torch.tensor([1.0, 0.0, 0.0]), a, b, clamp=False)
    if not torch.allclose(filtered, torch.tensor([1.0, 0.5, 0.25])):
        raise Trouble(f"{found}: its compiled operators do not work; {PAIRS}")
    return f"{found}, works with torch {of_torch}"


def _device() -> str:
    import torch

    from nas_core.training import describe_device, pick_device

    device = pick_device("auto")
    torch.ones(2, 2, device=device).sum().item()
    return describe_device(device)


def _kernel() -> str:
    """The kernel that notebooks name must be this Python, else imports fail there."""
    from jupyter_client.kernelspec import KernelSpecManager

    executable = KernelSpecManager().get_kernel_spec("python3").argv[0]
    # jupyter_client starts its own Python for these names
    if executable not in ("python", "python3") and not os.path.samefile(executable, sys.executable):
        raise Trouble(
            f"python3 is {executable}, not this Python: start JupyterLab with `nas-workbook lab`, "
            "or python -m ipykernel install --sys-prefix"
        )
    return f"python3 with ipykernel {metadata.version('ipykernel')}"


def _widgets() -> str:
    """Nothing is created: a view that is closed at once leaves an error in the browser."""
    import anywidget  # noqa: F401
    import ipywidgets  # noqa: F401

    folder = Path(sys.prefix, "share", "jupyter", "labextensions")
    paths = (folder / "@jupyter-widgets" / "jupyterlab-manager", folder / "anywidget")
    if missing := [path.name for path in paths if not path.is_dir()]:
        raise Trouble(
            f"JupyterLab lacks the extension {', '.join(missing)}: "
            "pip install --force-reinstall jupyterlab_widgets anywidget"
        )
    return ", ".join(f"{p} {metadata.version(p)}" for p in ("ipywidgets", "anywidget"))


def _book(book: Book | None) -> str:
    book = book or Book.load()
    if missing := [c.name for c in book.ready if not c.path.is_file()]:
        raise Trouble(f"there is no notebook for {', '.join(missing)}; fetch the book again")
    return f"{len(book.ready)} chapters ready, {len(book.chapters)} planned in all"


def _trust(book: Book) -> str:
    """Untrusted notebooks run, but do not show their saved interactive views."""
    from nbformat.sign import NotebookNotary

    notary = NotebookNotary()
    missing = [c for c in book.ready if not notary.check_signature(notebooks.read(c.path))]
    if missing:
        raise Trouble(
            f"{len(missing)} of {len(book.ready)} chapters are not trusted, their saved views "
            "stay still: nas-workbook doctor --trust"
        )
    return f"{len(book.ready)} chapters"


def _data_root() -> str:
    from nas_core.data import data_root

    root = data_root()
    if root.exists() and not os.access(root, os.W_OK):
        raise Trouble(f"{root} cannot be written to; set NAS_DATA to a folder of your own")
    origin = "NAS_DATA" if os.environ.get("NAS_DATA") else "the book's folder data/"
    return origin + ("" if root.exists() else ", not there yet (smoke profiles need nothing)")


def _disk(book: Book | None) -> str:
    free = shutil.disk_usage(book.root if book else Path.cwd()).free / 1e9
    if free < 2:
        raise Trouble(f"{free:.1f} GB; study runs need 2 GB")
    return f"{free:.0f} GB"
