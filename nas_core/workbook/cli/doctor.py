"""Check the environment, one [OK] or [FAIL] per item; fails when an item does."""

from __future__ import annotations

import argparse


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--trust",
        action="store_true",
        help="first mark this book's chapters as trusted, so that Jupyter shows their saved views",
    )


def main(args: argparse.Namespace) -> int:
    from nas_core.workbook import doctor
    from nas_core.workbook.book import Book, BookError

    try:
        book = Book.load()
    except BookError:
        book = None  # reported as an item
    if args.trust and book:
        print(f"trusted {doctor.trust_chapters(book)} chapters")
    rows = doctor.examine(book)
    print(doctor.report(rows))
    return 0 if all(good for _, good, _ in rows) else 1
