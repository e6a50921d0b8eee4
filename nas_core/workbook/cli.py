"""The `nas-workbook` command. What is slow to import is imported by the command that needs it."""

from __future__ import annotations

import argparse
import ast
import errno
import os
import platform
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from nas_core import __version__
from nas_core.workbook.book import Book, BookError


def build_parser() -> argparse.ArgumentParser:
    about = "Neural architecture search on a budget: run, test and read the book."
    parser = argparse.ArgumentParser(prog="nas-workbook", description=about)
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    parser.add_argument("--debug", action="store_true", help="show tracebacks of wrong input too")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(main: Any) -> Any:
        """A subcommand named after its function, whose docstring is the help text."""
        text = textwrap.dedent(f"    {main.__doc__}")
        first, kind = text.strip().splitlines()[0], argparse.RawDescriptionHelpFormatter
        sub = commands.add_parser(main.__name__, help=first, description=text, formatter_class=kind)
        sub.set_defaults(main=main)
        return sub.add_argument

    add = command(run)
    add("chapters", nargs="*", metavar="CHAPTER", help="number or name; default: all ready ones")
    add("--profile", default="smoke", help="smoke (default), study or paper")
    add(
        *("-p", "--parameter"), dest="parameters", nargs=2, action="append", default=[],
        metavar=("NAME", "VALUE"), help="set a name of the parameters cell; may be repeated",
    )  # fmt: skip
    add("--jobs", type=int, help="chapters at a time (smoke: 2, else 1)")
    add("--limit", type=float, metavar="SECONDS", help="of processor time per chapter")
    add("--fresh", action="store_true", help="keep nothing of earlier runs")
    add("--write", action="store_true", help="write outputs into the book (smoke, no -p)")
    add("--dry-run", action="store_true", help="check the input, execute nothing")
    add = command(test)
    add("--jobs", type=int, help="workers (default: 2, or 1 on one core)")
    add("further", nargs="*", metavar="ARGUMENT", help="for pytest, after --")
    add = command(lab)
    add("--in-place", action="store_true", help="open the book's own notebooks, for authors")
    add("further", nargs="*", metavar="ARGUMENT", help="for JupyterLab, after --")
    add = command(doctor)
    add("--trust", action="store_true", help="first mark chapters as trusted that are as committed")
    add = command(data)
    add("--root", help="data root (default: $NAS_DATA, else the book's data/)")
    add("action", choices=("list", "fetch"), help="names and states, or download one")
    add("name", nargs="?", help="data set to fetch")
    add = command(results)
    add("chapter", nargs="?", metavar="CHAPTER", help="number or name")
    add("--check", action="store_true", help="compare settings with what commands use now")
    add = command(student)
    add("out", metavar="OUT", help="a folder that does not exist or is empty")
    add = command(html)
    add("out", nargs="?", metavar="OUT", help="folder of the pages: build/html")
    add = command(sweep)
    add("chapter", help="number or name")
    add("--grid", nargs="*", default=[], metavar="NAME=V1,V2", help="what varies")
    add("--seeds", type=int, default=1, help="seeds 0…N-1 of every combination")
    add("--profile", default="smoke", help="smoke (default), study or paper")
    add("--engine", default="local", help="local (default) or ray")
    add("--address", help="of the Ray cluster; else RAY_ADDRESS")
    add("--workers", type=int, default=1, help="processes, for the local engine")
    add("--gpus", type=float, default=0.0, help="of a trial on Ray, e.g. 0.25")
    add("--retries", type=int, default=1, help="of a trial that fails")
    add("--store", type=Path, help="SQLite file with the finished trials")
    add("--out", type=Path, help="folder for table and picture: build/sweeps")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns its exit code."""
    args, unknown = build_parser().parse_known_args(argv)
    if words := " ".join(unknown):
        hint = f": put them after --, as in `nas-workbook {args.command} -- {words}`"
        others = args.command in ("lab", "test")
        build_parser().error(f"unknown arguments {words}" + hint * others)
    try:
        return int(args.main(args))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of a pipe, `| head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the last flush
        return 0
    except (ValueError, OSError) as error:
        if args.debug:
            raise
        number, told = getattr(error, "errno", None), str(error)
        if number in (errno.EACCES, errno.EPERM, errno.EROFS):
            name = getattr(error, "filename", None)
            told = f"{name} cannot be written: copy the book to a folder of your own"
        elif number == errno.ENOSPC:
            told = "the disk is full"
        print(f"nas-workbook {args.command}: {told}", file=sys.stderr)
        return 2


def run(args: argparse.Namespace) -> int:
    """Execute chapters into build/notebooks and print a table of verdicts, time and memory.

    A chapter that an earlier run finished with the same sources, parameters, library and data is
    kept; --fresh executes it again. Exit code: 0 when all passed, 1 when one did not, 2 for wrong
    input, 130 after Ctrl-C.
    """
    from tqdm import tqdm

    from nas_core.workbook import runner

    book, smoke = Book.load(), args.profile == "smoke"
    chapters = [book.find(c) for c in args.chapters] or book.ready
    if not chapters:
        raise BookError("no chapter of this book is ready")
    parameters = {name: literal(value) for name, value in args.parameters}
    if "PROFILE" in parameters:
        raise BookError("set the profile with --profile")
    if args.write and (parameters or not smoke):
        raise BookError("--write is for the smoke profile without -p: that is what is committed")
    once = {c.name: runner.Job(c, args.profile, parameters, args.limit) for c in chapters}
    jobs = list(once.values())
    if args.dry_run:
        for job in jobs:
            print(f"would run {job.label}: {job.injected() or 'as committed'}, {job.seconds:g} s")
        return 0
    for name in once if args.fresh else ():
        shutil.rmtree(book.root / "build" / "checkpoints" / name, ignore_errors=True)
    parallel = min(2, os.cpu_count() or 1) if smoke else 1
    # A bar on a terminal; one line per finished chapter everywhere.
    bar = tqdm(total=len(jobs), unit="chapter", disable=None, leave=False, dynamic_ncols=True)

    def cell_started(job: runner.Job, cell: int, cells: int) -> None:
        bar.set_description(f"{job.label}, cell {cell} of {cells}")

    def finished(o: runner.Outcome) -> None:
        bar.update()
        line = f"{o.chapter} {o.verdict} ({o.minutes:.2f} min, {o.peak_mb:.0f} MB)"
        bar.write(f"{line}: {o.message}" if o.message else line, file=sys.stdout)
        sys.stdout.flush()

    how: dict[str, Any] = {"cell_started": cell_started, "finished": finished}
    how["parallel"] = parallel if args.jobs is None else args.jobs
    with bar:
        outcomes = runner.run(jobs, fresh=args.fresh, **how)
    for job, outcome in zip(jobs, outcomes, strict=True) if args.write else ():
        runner.write_into_book(job, outcome)
    print(runner.summary(outcomes, book.root / "build"))
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


def test(args: argparse.Namespace) -> int:
    """Run the tests and compare every chapter's outputs with the committed ones (pytest + nbval).

    Further arguments go to pytest: `nas-workbook test -- -k graph`.
    """
    from nas_core.workbook.environment import COMPARABLE

    command = pytest_command(args.jobs or min(2, os.cpu_count() or 1), args.further)
    print(" ".join(["python", *command[1:]]), flush=True)
    environment = {**os.environ, **COMPARABLE}
    return subprocess.run(command, cwd=Book.load().root, env=environment).returncode


def pytest_command(jobs: int, further: list[str]) -> list[str]:
    """The cells of a notebook stay on one worker (loadscope), because they share a kernel.

    Digits are compared on x86-64 only. Elsewhere cells must run and bands must hold.
    """
    same_bytes = platform.machine() in ("x86_64", "AMD64")  # see workbook.environment
    options = ["--nbval" if same_bytes else "--nbval-lax", "--nbval-current-env"]
    options += ["-n", str(jobs), "--dist", "loadscope", *(further or ["tests", "notebooks"])]
    return [sys.executable, "-m", "pytest", *options]


def lab(args: argparse.Namespace) -> int:
    """Open the book in JupyterLab: a copy in build/lab, which is yours to change.

    Kernels compute with the settings under which the chapters are compared, so that Run All gives
    the numbers of the book. Further arguments go to JupyterLab: `nas-workbook lab -- --no-browser`.
    """
    from nas_core.workbook import copies
    from nas_core.workbook.environment import lab_environment

    book = Book.load()
    folder = book.root / "notebooks" if args.in_place else book.root / "build" / "lab"
    for name in () if args.in_place else copies.reading_copies(book, folder):
        print(f"{name}: yours is kept; the book has a newer one (move yours away to get it)")
    command = [sys.executable, "-m", "jupyter", "lab", *args.further]
    command += [path.name for path in folder.glob("00_start_here.ipynb")]
    return subprocess.run(command, cwd=folder, env=lab_environment(book.root)).returncode


def doctor(args: argparse.Namespace) -> int:
    """Check the environment, one [OK] or [FAIL] per item; fails when an item does."""
    from nas_core.workbook import doctor as items

    try:
        book = Book.load()
    except BookError:
        book = None  # reported as an item
    for line in items.trust_chapters(book) if args.trust and book else ():
        print(line)
    rows = items.examine(book)
    print(items.report(rows))
    return 0 if all(good for _, good, _ in rows) else 1


def data(args: argparse.Namespace) -> int:
    """List the data sets and whether they are here, or fetch one into the data root."""
    from nas_core import data as sets

    root = sets.data_root(args.root)
    if root.is_file():
        raise ValueError(f"data root {root} is a file; name a folder")
    if args.action == "list":
        states = {**sets.states(root), **sets.table_states(root)}
        lines = [f"{name:{max(map(len, states))}}  {state}" for name, state in states.items()]
        print(f"data root: {root}", *lines, sep="\n")
    elif args.name:
        print(f"{args.name} is in {sets.fetch(args.name, root=root)}")
    else:
        raise ValueError("name the data set to fetch; `nas-workbook data list` lists them")
    return 0


def results(args: argparse.Namespace) -> int:
    """Print the recorded results of larger runs: means over seeds, and the command of each."""
    from nas_core.workbook.results import read_results

    found = read_results(args.chapter)
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
    records: Any = import_module("records")
    if args.check:
        problems = [problem for record in found for problem in records.outdated(record)]
        print("\n".join(problems) or f"{len(found)} records: as their commands would run now")
        return 1 if problems else 0
    print("\n\n".join(map(records.in_words, found)) or "no results are recorded")
    return 0


def student(args: argparse.Namespace) -> int:
    """Write the student edition, the book without its solutions, into a new folder."""
    from nas_core.workbook.copies import make_student_edition

    make_student_edition(book := Book.load(), args.out)
    print(f"{len(book.ready)} chapters in {args.out}/notebooks")
    return 0


def html(args: argparse.Namespace) -> int:
    """Write the chapters as static pages with search and living views; they work offline."""
    from nas_core.workbook.web import make_pages

    book = Book.load()
    pages = make_pages(book, args.out or book.root / "build" / "html")
    print(f"{len(pages)} pages: open {pages[0]}")
    return 0


def sweep(args: argparse.Namespace) -> int:
    """Run many trials of a chapter, here or on a Ray cluster, and draw their Pareto front.

        nas-workbook sweep 03 --grid lam=4,8 budget=0.25,0.4 --seeds 5
        nas-workbook sweep 01 --grid strategy=random,evolution budget=0.25,0.5,1 --seeds 20
        nas-workbook sweep 03 --grid budget=0.2,0.3 --profile study --engine ray \\
            --address head:6379 --gpus 0.25

    Finished trials are kept in a file under build/sweeps: the same command goes on where it was
    stopped. Exit code: 0 when all are done, 1 when some failed, 130 after Ctrl-C.
    """
    from nas_core.workbook.sweep import run_sweep

    return run_sweep(Book.load(), args)
