"""What an environment needs to run the book, checked item by item."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from importlib import import_module, metadata
from pathlib import Path

from nas_core.workbook import notebooks
from nas_core.workbook.book import Book, BookError

Trouble = BookError  # an item that does not work; the text says what to do
# torchaudio compares versions when it is imported: 2.11 refuses torch 2.15 and later.
TORCHAUDIO, TORCH = (2, 11), ((2, 11), (2, 14))
PAIRS = (
    "torchaudio 2.11 works with torch 2.11, 2.12, 2.13 and 2.14: "
    'pip install "torch>=2.11,<2.15" "torchaudio>=2.11,<2.12"'
)


def examine(book: Book | None = None) -> list[tuple[str, bool, str]]:
    """(item, whether it works, what was found or what to do), in order."""
    items = {
        "Python": lambda: f"{platform.python_version()} in {Path(sys.prefix).name}",
        "torch": lambda: import_module("torch").__version__,
        "torchvision": _torchvision, "torchaudio": _torchaudio, "device": _device,
        "kernel": _kernel, "widgets": _widgets,
        "book": lambda: _book(book or Book.load()),
        "notebook trust": lambda: _trust(book or Book.load()),
        "data root": _data_root,
        "free disk": lambda: _disk(book.root if book else Path.cwd()),
    }  # fmt: skip
    rows = []
    for name, check in items.items():
        try:
            rows.append((name, True, check()))
        except Exception as error:  # a broken installation fails in many ways
            kind = "" if isinstance(error, BookError) else f"{type(error).__name__}: "
            rows.append((name, False, f"{kind}{error}"))
    return rows


def report(rows: list[tuple[str, bool, str]]) -> str:
    """One line per item: `[OK]   torch       2.14.1`."""
    width = max(len(name) for name, _, _ in rows)
    marks = {True: "[OK]", False: "[FAIL]"}
    return "\n".join(f"{marks[good]:6} {name:{width}}  {text}" for name, good, text in rows)


def trust_chapters(book: Book) -> list[str]:
    """Sign the ready chapters that are as committed, for this user; returns what was done.

    Jupyter then renders their saved outputs, scripts included: readers must judge what differs.
    """
    from nbformat.sign import NotebookNotary

    git = shutil.which("git") or sys.executable  # which fails at these words, too
    words = [git, "-C", str(book.root), "status", "--porcelain", "-uall", "notebooks"]
    status = subprocess.run(words, capture_output=True, text=True)
    lines = ["warning: nothing to compare with: the book is not in git"] * bool(status.returncode)
    signed = [c.path for c in book.ready if c.path.name not in status.stdout]
    for path in signed:
        NotebookNotary().sign(notebooks.read(path))
    for name in (c.path.name for c in book.ready if c.path not in signed):
        lines.append(
            f"NOT trusted: {name} differs from the committed one (see `git diff`); if the change "
            f"is yours, `jupyter trust {name}` in notebooks/ signs it"
        )
    return [*lines, f"trusted {len(signed)} of {len(book.ready)} chapters: their outputs may show"]


def _minor(version: str) -> tuple[int, int]:
    major, minor = version.split("+")[0].split(".")[:2]
    return int(major), int(minor)


def _torchvision() -> str:
    """It belongs to one version of torch; its compiled operators are tried."""
    import torch
    import torchvision

    found, minor = torchvision.__version__, _minor(torch.__version__)[1] + 15
    if _minor(found) != (0, minor):
        install = f'pip install "torchvision==0.{minor}.*"'
        raise Trouble(f"{found} does not belong to torch {torch.__version__}; {install}")
    boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 0.9]])
    if torchvision.ops.nms(boxes, torch.tensor([0.9, 0.8]), 0.5).tolist() != [0]:
        raise Trouble(f"{found}: its compiled operators do not work")
    return f"{found}, belongs to torch {torch.__version__}"


def _torchaudio() -> str:
    """Versions are compared before the import, which fails on its own comparison."""
    found, of_torch = metadata.version("torchaudio"), metadata.version("torch")
    if _minor(found) != TORCHAUDIO or not TORCH[0] <= _minor(of_torch) <= TORCH[1]:
        raise Trouble(f"{found} does not work with torch {of_torch}; {PAIRS}")
    import torch
    import torchaudio

    x, b, a = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [1.0, -0.5, 0.0]])
    filtered = torchaudio.functional.lfilter(x, a, b, clamp=False)
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
    """Creates no widget: one that is closed at once leaves an error in the browser."""
    names = [f"{n} {import_module(n).__version__}" for n in ("ipywidgets", "anywidget")]
    folder = Path(sys.prefix, "share", "jupyter", "labextensions")
    paths = (folder / "@jupyter-widgets" / "jupyterlab-manager", folder / "anywidget")
    if missing := ", ".join(path.name for path in paths if not path.is_dir()):
        install = "pip install --force-reinstall jupyterlab_widgets anywidget"
        raise Trouble(f"JupyterLab lacks the extension {missing}: {install}")
    return ", ".join(names)


def _book(book: Book) -> str:
    if missing := ", ".join(c.name for c in book.ready if not c.path.is_file()):
        raise Trouble(f"there is no notebook for {missing}; fetch the book again")
    return f"{len(book.ready)} chapters ready, {len(book.chapters)} planned in all"


def _trust(book: Book) -> str:
    """Notebooks that are not trusted run, but do not show their saved interactive views."""
    from nbformat.sign import NotebookNotary

    trusted = NotebookNotary().check_signature
    if missing := sum(not trusted(notebooks.read(c.path)) for c in book.ready):
        told = f"{missing} of {len(book.ready)} chapters are not trusted, their saved views stay"
        raise Trouble(f"{told} still: nas-workbook doctor --trust")
    return f"{len(book.ready)} chapters"


def _data_root() -> str:
    from nas_core.data import data_root

    root = data_root()
    if root.exists() and not os.access(root, os.W_OK):
        raise Trouble(f"{root} cannot be written to; set NAS_DATA to a folder of your own")
    origin = "NAS_DATA" if os.environ.get("NAS_DATA") else "the book's folder data/"
    return origin + ("" if root.exists() else ", not there yet (smoke profiles need nothing)")


def _disk(folder: Path) -> str:
    free = shutil.disk_usage(folder).free / 1e9
    if free < 2:
        raise Trouble(f"{free:.1f} GB; study runs need 2 GB")
    return f"{free:.0f} GB"
