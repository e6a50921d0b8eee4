"""What an environment needs to run the book, checked item by item."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from nas_core.workbook.book import Book, BookError

Item = tuple[str, Callable[[], str]]  # name; returns what was found or raises Trouble
_FREE_GIGABYTES = 2.0


class Trouble(Exception):
    """An item that is not as it must be; the text says what to do."""


def examine(book: Book | None = None) -> list[tuple[str, bool, str]]:
    """(item, is it well, what was found or what to do), in order."""
    rows = []
    for name, check in _items(book):
        try:
            rows.append((name, True, check()))
        except Trouble as trouble:
            rows.append((name, False, str(trouble)))
        except Exception as error:  # a broken installation fails in many ways
            rows.append((name, False, f"{type(error).__name__}: {error}"))
    return rows


def report(rows: list[tuple[str, bool, str]]) -> str:
    """One line per item: `[OK]   torch       2.14.1`."""
    width = max(len(name) for name, _, _ in rows)
    return "\n".join(
        f"{'[OK]' if good else '[FAIL]':6} {name:{width}}  {text}" for name, good, text in rows
    )


def trust_chapters(book: Book) -> int:
    """Mark the ready chapters as trusted for this user, as `jupyter trust` does; how many."""
    import nbformat
    from nbformat.sign import NotebookNotary

    notary = NotebookNotary()
    for chapter in book.ready:
        notary.sign(nbformat.read(str(chapter.path), as_version=4))
    return len(book.ready)


def _items(book: Book | None) -> list[Item]:
    return [
        ("Python", _python),
        ("torch", _torch),
        ("torchvision", _torchvision),
        ("torchaudio", _torchaudio),
        ("device", _device),
        ("kernel", _kernel),
        ("widgets", _widgets),
        ("book", lambda: _book(book)),
        ("notebook trust", lambda: _trust(book or Book.load())),
        ("data root", _data_root),
        ("free disk", lambda: _disk(book)),
    ]


def _minor(version: str) -> tuple[int, int]:
    major, minor = version.split("+")[0].split(".")[:2]
    return int(major), int(minor)


def _python() -> str:
    found = sys.version_info[:2]
    if found < (3, 11):
        raise Trouble(f"{platform.python_version()}; the book needs 3.11 or newer")
    return f"{platform.python_version()} in {Path(sys.prefix).name}"


def _torch() -> str:
    import torch

    a = torch.arange(6.0).reshape(2, 3)
    if not torch.equal(a @ a.T, torch.tensor([[5.0, 14.0], [14.0, 50.0]])):
        raise Trouble(f"{torch.__version__} multiplies matrices wrongly; install it afresh")
    return torch.__version__


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
    import torch
    import torchaudio

    found, of_torch = _minor(torchaudio.__version__), _minor(torch.__version__)
    if found > of_torch or found < (2, 11):
        raise Trouble(
            f"{torchaudio.__version__} does not belong to torch {torch.__version__}; "
            'pip install "torchaudio>=2.11,<2.12"'
        )
    # Since 2.11 its compiled part works with every later torch: try it instead of comparing.
    b, a = torch.tensor([1.0, 0.0]), torch.tensor([1.0, -0.5])
    impulse = torch.tensor([1.0, 0.0, 0.0])
    filtered = torchaudio.functional.lfilter(impulse, a, b, clamp=False)
    if not torch.allclose(filtered, torch.tensor([1.0, 0.5, 0.25])):
        raise Trouble(f"{torchaudio.__version__}: its compiled operators do not work")
    return f"{torchaudio.__version__}, works with torch {torch.__version__}"


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
            f"python3 is {executable}, not this Python: python -m ipykernel install --sys-prefix"
        )
    return f"python3 with ipykernel {metadata.version('ipykernel')}"


def _widgets() -> str:
    import anywidget
    import ipywidgets

    slider, view = ipywidgets.IntSlider(value=2), anywidget.AnyWidget(_esm="export default {}")
    slider.close()
    view.close()
    labs = [
        Path(sys.prefix, "share", "jupyter", "labextensions", name)
        for name in ("@jupyter-widgets/jupyterlab-manager", "anywidget")
    ]
    if missing := [lab.name for lab in labs if not lab.is_dir()]:
        raise Trouble(
            f"JupyterLab lacks the extension {', '.join(missing)}: "
            "pip install --force-reinstall jupyterlab_widgets anywidget"
        )
    return f"ipywidgets {ipywidgets.__version__}, anywidget {metadata.version('anywidget')}"


def _book(book: Book | None) -> str:
    try:
        book = book or Book.load()
    except BookError as error:
        raise Trouble(str(error)) from error
    if missing := [c.name for c in book.ready if not c.path.is_file()]:
        raise Trouble(f"there is no notebook for {', '.join(missing)}; fetch the book again")
    return f"{len(book.ready)} chapters ready, {len(book.chapters)} planned in all"


def _trust(book: Book) -> str:
    """Untrusted notebooks run, but do not show their saved interactive views."""
    import nbformat
    from nbformat.sign import NotebookNotary

    notary = NotebookNotary()
    missing = [
        c.name
        for c in book.ready
        if not notary.check_signature(nbformat.read(str(c.path), as_version=4))
    ]
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
    state = "" if root.exists() else ", not there yet (nothing is needed at the smoke profile)"
    return f"{origin}{state}"


def _disk(book: Book | None) -> str:
    free = shutil.disk_usage(book.root if book else Path.cwd()).free / 1e9
    if free < _FREE_GIGABYTES:
        raise Trouble(f"{free:.1f} GB; study runs need {_FREE_GIGABYTES:g} GB")
    return f"{free:.0f} GB"
