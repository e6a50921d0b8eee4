"""Check chapters against the rules of the book and print their sizes."""

from __future__ import annotations

import argparse


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("chapters", nargs="*", metavar="CHAPTER", help="number or name")


def main(args: argparse.Namespace) -> int:
    from nas_core.workbook.book import Book
    from nas_core.workbook.lint import lint, measure

    book = Book.load()
    found = 0
    for chapter in [book.find(c) for c in args.chapters] or book.ready:
        problems = lint(chapter)
        found += len(problems)
        print(f"{chapter.name}: {len(problems)} problems")
        print("".join(f"  - {problem}\n" for problem in problems), end="")
        if chapter.path.is_file():
            size = measure(chapter)
            print(
                f"  {size.words} words, {size.code_cells} code cells, {size.code_lines} lines, "
                f"{size.kilobytes} kB, {size.exercises} exercises, {size.expectations} bands"
            )
    return 1 if found else 0
