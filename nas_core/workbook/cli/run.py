"""Execute chapters into build/notebooks and print a table of verdicts, time and memory.

Chapters are numbers or names; without any, all that are ready run. A chapter that an earlier run
finished with the same sources, parameters and library is kept; --fresh executes it again.
Exit code: 0 when all passed, 1 when one did not, 2 for wrong input, 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import ast
import os
import shutil
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nas_core.workbook.runner import Job, Outcome


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("chapters", nargs="*", metavar="CHAPTER", help="number or name")
    parser.add_argument("--profile", default="smoke", help="smoke (default), study or paper")
    parser.add_argument(
        "-p",
        dest="parameters",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "VALUE"),
        help="set a name of the parameters cell; may be repeated",
    )
    parser.add_argument("--jobs", type=int, help="chapters at a time (smoke: 2, else 1)")
    parser.add_argument("--limit", type=float, metavar="SECONDS", help="time limit per chapter")
    parser.add_argument("--fresh", action="store_true", help="keep nothing of earlier runs")
    parser.add_argument(
        "--write",
        action="store_true",
        help="write the outputs into the committed notebooks (smoke, no -p)",
    )
    parser.add_argument("--dry-run", action="store_true", help="check the input, execute nothing")


def main(args: argparse.Namespace) -> int:
    from nas_core.workbook import runner
    from nas_core.workbook.book import Book, BookError
    from nas_core.workbook.summary import save_summary, table

    book = Book.load()
    chapters = [book.find(c) for c in args.chapters] or book.ready
    if not chapters:
        raise BookError("no chapter of this book is ready")
    parameters = {name: literal(value) for name, value in args.parameters}
    if "PROFILE" in parameters:
        raise BookError("set the profile with --profile")
    if args.write and (args.profile != "smoke" or parameters):
        raise BookError("--write is for the smoke profile without -p: that is what is committed")
    once = {c.name: c for c in chapters}.values()
    jobs = [runner.Job(c, args.profile, parameters, args.limit) for c in once]
    if args.dry_run:
        for job in jobs:
            print(f"would run {job.label}: {job.injected() or 'as committed'}, {job.seconds:g} s")
        return 0
    if args.fresh:
        for job in jobs:
            shutil.rmtree(job.build / "checkpoints" / job.chapter.name, ignore_errors=True)
    parallel = args.jobs
    if parallel is None:
        parallel = min(2, os.cpu_count() or 1) if args.profile == "smoke" else 1
    progress = _Progress(len(jobs))
    outcomes = runner.run(
        jobs,
        parallel=parallel,
        fresh=args.fresh,
        cell_started=progress.cell,
        finished=progress.finished,
    )
    progress.close()
    if args.write:
        outcomes = [_written(job, outcome) for job, outcome in zip(jobs, outcomes, strict=True)]
    print(table(outcomes))
    save_summary(outcomes, book.root / "build")
    if any(o.verdict == "stopped" for o in outcomes):
        print("stopped: the same command goes on with what is missing")
        return 130
    return 0 if all(o.good for o in outcomes) else 1


def literal(text: str) -> Any:
    """The value that a command line means: a Python literal, true/false, else the text itself."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _written(job: Job, outcome: Outcome) -> Outcome:
    from nas_core.workbook import notebooks
    from nas_core.workbook.book import BookError

    if not outcome.good:
        return outcome
    try:
        nb = notebooks.finished(notebooks.read(job.output), job.chapter.name)
    except BookError as error:
        outcome.verdict, outcome.message = "FAILED", str(error)
        return outcome
    notebooks.write(nb, job.chapter.path)
    outcome.message = "written"
    return outcome


class _Progress:
    """A bar over the cells on a terminal; one line per finished chapter everywhere."""

    def __init__(self, chapters: int):
        from tqdm import tqdm

        self.chapters, self.done = chapters, 0
        self.cells: dict[str, tuple[int, int]] = {}
        quiet = not sys.stderr.isatty()
        self.bar = tqdm(total=0, unit="cell", disable=quiet, leave=False, dynamic_ncols=True)

    def cell(self, job: Job, cell: int, cells: int) -> None:
        self.cells[job.label] = (cell, cells)
        self.bar.total = sum(of for _, of in self.cells.values())
        self.bar.n = sum(n - 1 for n, _ in self.cells.values())
        self.bar.set_description(job.chapter.name)

    def finished(self, outcome: Outcome) -> None:
        self.done += 1
        line = f"[{self.done}/{self.chapters}] {outcome.chapter} {outcome.verdict}"
        line += f" ({outcome.minutes:.2f} min, {outcome.peak_mb:.0f} MB)"
        self.bar.write(line + (f": {outcome.message}" if outcome.message else ""), file=sys.stdout)
        sys.stdout.flush()

    def close(self) -> None:
        self.bar.close()
