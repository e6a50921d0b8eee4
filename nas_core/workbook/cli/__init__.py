"""The `nas-workbook` command: one module of this package per subcommand.

A module `latency_table.py` is the subcommand `latency-table`. Its docstring is the help text; it
has `arguments(parser)` and `main(args) -> exit code`. What is slow to import is imported in
`main`. Errors of the kinds in `_FOR_PEOPLE` are printed without a traceback (exit code 2).
"""

from __future__ import annotations

import argparse
import importlib
import os
import pkgutil
import sys
from collections.abc import Sequence
from types import ModuleType

from nas_core import __version__
from nas_core.workbook.book import BookError

_FOR_PEOPLE = (BookError, ValueError, FileNotFoundError, ConnectionError)


def commands() -> dict[str, ModuleType]:
    """Subcommand -> its module."""
    names = [m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_")]
    return {n.replace("_", "-"): importlib.import_module(f"{__name__}.{n}") for n in names}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nas-workbook",
        description="Neural architecture search on a budget: run, test and read the book.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    parser.add_argument("--debug", action="store_true", help="show tracebacks of wrong input too")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, module in commands().items():
        text = (module.__doc__ or "").strip()
        sub = subparsers.add_parser(
            name,
            help=text.splitlines()[0],
            description=text,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.arguments(sub)
        sub.set_defaults(main=module.main)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns its exit code."""
    args = build_parser().parse_args(argv)
    try:
        return int(args.main(args))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of a pipe, `| head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the last flush
        return 0
    except _FOR_PEOPLE as error:
        if args.debug:
            raise
        print(f"nas-workbook {args.command}: {error}", file=sys.stderr)
        return 2
