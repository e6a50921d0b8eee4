"""Open the book in JupyterLab, with progress bars shown in the notebooks.

Further arguments go to JupyterLab: `nas-workbook lab -- --no-browser`.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("jupyter_arguments", nargs="*", metavar="ARGUMENT", help="for JupyterLab")


def main(args: argparse.Namespace) -> int:
    from nas_core.workbook.book import Book

    folder = Book.load().root / "notebooks"
    start = folder / "00_start_here.ipynb"
    command = [sys.executable, "-m", "jupyter", "lab", *args.jupyter_arguments]
    command += [start.name] if start.is_file() else []
    environment = {**os.environ, "NAS_PROGRESS": os.environ.get("NAS_PROGRESS", "1")}
    return subprocess.run(command, cwd=folder, env=environment).returncode
