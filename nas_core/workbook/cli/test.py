"""Run the tests and compare every chapter's outputs with the committed ones (pytest + nbval).

Further arguments go to pytest: `nas-workbook test -- -k graph`.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--jobs", type=int, help="workers (default: 2, or 1 on one core)")
    parser.add_argument("pytest_arguments", nargs="*", metavar="ARGUMENT", help="for pytest")


def main(args: argparse.Namespace) -> int:
    from nas_core.workbook.book import Book
    from nas_core.workbook.environment import COMPARABLE

    command = pytest_command(args.jobs or min(2, os.cpu_count() or 1), args.pytest_arguments)
    print(" ".join(["python", *command[1:]]), flush=True)
    environment = {**os.environ, **COMPARABLE}
    return subprocess.run(command, cwd=Book.load().root, env=environment).returncode


def pytest_command(jobs: int, further: list[str]) -> list[str]:
    """Notebooks stay whole on one worker (loadscope): their cells share a kernel.

    Elsewhere than on x86-64 digits may differ: there cells must run and bands must hold.
    """
    same_bytes = platform.machine() in ("x86_64", "AMD64")  # see workbook.environment
    compare = "--nbval" if same_bytes else "--nbval-lax"
    command = [sys.executable, "-m", "pytest", compare, "--nbval-current-env"]
    command += ["-n", str(jobs), "--dist", "loadscope"]
    return command + (further or ["tests", "notebooks"])
