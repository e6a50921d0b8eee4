"""Write the student edition into a new folder: stubs stand in for the exercises' solutions."""

from __future__ import annotations

import argparse


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", metavar="OUT", help="a folder that does not exist or is empty")


def main(args: argparse.Namespace) -> int:
    from nas_core.workbook.book import Book
    from nas_core.workbook.student import make_student_edition

    written = make_student_edition(Book.load(), args.out)
    print(f"{len(written)} chapters in {args.out}/notebooks")
    return 0
