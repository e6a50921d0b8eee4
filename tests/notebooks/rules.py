"""The rules of a chapter notebook, as a function that lists what breaks them."""

from __future__ import annotations

import ast
import io
import json
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from nas_core.workbook import notebooks
from nas_core.workbook.book import Book, BookError, Chapter
from nas_core.workbook.notebooks import tags
from tests.notebooks.book import bands

# The first cell of each section carries its tag; the sections come in this order.
ANATOMY = (
    "title",
    "parameters",
    "setup",
    "picture",
    "theory",
    "probe",
    "experiment",
    "replay",
    "claims",
    "break-it",
    "questions",
    "takeaways",
)
SHORT_ANATOMY = ("title", "parameters", "setup", "picture", "takeaways")  # chapter 00
PARAMETERS = ("PROFILE", "SEED", "DEVICE")
# MAX_LINES counts statements: 88 columns break a call over several lines, which are no more to
# understand than one. (Counted as they are printed, 01, 02 and 07 have 354, 486 and 360.)
MAX_BYTES, MAX_LINES, MAX_IGNORED, MAX_COLUMNS = 500_000, 350, 0.05, 88
IGNORING = ("nbval-ignore-output", "nbval-skip", "raises-exception")

_FORBIDDEN_CALLS = {
    "interact": "outputs of `interact` are not in the notebook; use a widget with jslink",
    "interactive": "outputs of `interactive` are not in the notebook; use a widget with jslink",
    "Output": "the Output widget hides what is printed from the comparison",
    "clear_output": "clear_output erases what would be compared",
    "update_display": "display updates are not compared",
    "FigureWidget": "FigureWidget has random ids",
    "urlopen": "chapters download nothing",
    "urlretrieve": "chapters download nothing",
    "fetch": "chapters download nothing",
    "to_string": "tables printed as text wrap: end the cell with the frame, or display(frame)",
    "to_markdown": "tables printed as text wrap: end the cell with the frame, or display(frame)",
    "perf_counter": "a timing in a compared cell; tag the cell nbval-ignore-output",
    "timeit": "a timing in a compared cell; tag the cell nbval-ignore-output",
}
_TIMINGS = ("perf_counter", "timeit")
_ABSOLUTE = re.compile(
    r"""(?<![\w./:<])(/(?:home|root|tmp|usr|var|opt|mnt|Users|work)/|[A-Z]:\\)"""
)


@dataclass(frozen=True)
class Measures:
    """Size of a chapter."""

    words: int  # of prose, without formulas and markup
    code_cells: int
    code_lines: int  # visible statements
    kilobytes: float
    exercises: int
    expectations: int


def measure(chapter: Chapter) -> Measures:
    nb = notebooks.read(chapter.path)
    prose = " ".join(c.source for c in nb.cells if c.cell_type == "markdown")
    prose = re.sub(r"\$\$.*?\$\$|\$[^$]*\$|<[^>]+>|`[^`]*`", " ", prose, flags=re.S)
    return Measures(
        words=len(re.findall(r"[^\W\d_]+(?:['’-][^\W\d_]+)*", prose)),
        code_cells=len(notebooks.code_cells(nb)),
        code_lines=_visible_lines(nb),
        kilobytes=round(chapter.path.stat().st_size / 1000, 1),
        exercises=sum("exercise" in tags(c) for c in nb.cells),
        expectations=len(bands(chapter.path)),
    )


def lint(chapter: Chapter) -> list[str]:
    """List every rule that a committed chapter breaks, in words; empty when there is none."""
    try:
        nb = notebooks.read(chapter.path)
    except BookError as error:
        return [str(error)]
    checks = (_anatomy, _parameters, _exercises, _questions, _source, _outputs, _ignored, _size)
    return [problem for check in checks for problem in check(chapter, nb)]


def _anatomy(chapter: Chapter, nb: NotebookNode) -> Iterator[str]:
    wanted = SHORT_ANATOMY if chapter.number == 0 else ANATOMY
    order = {tag: i for i, c in reversed(list(enumerate(nb.cells))) for tag in tags(c)}
    present = [tag for tag in wanted if tag in order]
    for tag in wanted:
        if tag not in order:
            yield f"no cell is tagged {tag!r}; the sections are {', '.join(wanted)}"
    if present != sorted(present, key=order.__getitem__):
        found = ", ".join(sorted(present, key=order.__getitem__))
        yield f"the sections come as {found}; they belong in the order {', '.join(present)}"
    first = nb.cells[0].source.splitlines()[0] if nb.cells else ""
    if first != (title := f"# {chapter.number} · {chapter.title}"):
        yield f"the first line is {first!r}; with the title of meta.yaml it is {title!r}"
    following = _next_ready(chapter)
    last = next((c.source for c in nb.cells if "takeaways" in tags(c)), "")
    if following and f"]({following}.ipynb)" not in last:
        yield f"the takeaways have no link to the next chapter, […]({following}.ipynb)"


def _next_ready(chapter: Chapter) -> str | None:
    names = [c.name for c in Book.load(chapter.root).ready]
    later = names[names.index(chapter.name) + 1 :] if chapter.name in names else []
    return later[0] if later else None


def _parameters(chapter: Chapter, nb: NotebookNode) -> Iterator[str]:
    try:
        values = notebooks.parameters(nb)
    except BookError as error:
        yield str(error)
        return
    for name in PARAMETERS:
        if name not in values:
            yield f"the parameters cell lacks {name}"
    if values.get("PROFILE", "smoke") != "smoke":
        yield "PROFILE must be committed as 'smoke'"


def _exercises(chapter: Chapter, nb: NotebookNode) -> Iterator[str]:
    if any("stub" in tags(c) or "stub" in c.metadata for c in nb.cells):
        yield "a stub is left; `nas-workbook run --write` puts it into an answer cell"
    for i, cell in enumerate(nb.cells):
        following = [*nb.cells[i + 1 : i + 4], *[nbformat.v4.new_raw_cell()] * 3]
        if "exercise" in tags(cell):
            heading = cell.source.strip().splitlines()[0]
            where = f"exercise {heading!r}"
            if not re.match(rf"### Exercise {chapter.number}\.\d+ · \S", heading):
                yield f"{where} is not headed '### Exercise {chapter.number}.1 · Name'"
            for word in ("★", "minutes", "<details>"):
                if word not in cell.source.lower():
                    yield f"{where} does not state {'difficulty, ★☆☆' if word == '★' else word}"
            if "answer" not in tags(following[0]):
                yield f"{where} must be followed by its answer cell, its check and its solution"
            elif not re.search(r"\bchecks\.ex_\d+_\d+\(", following[1].source):
                yield f"{where}: the cell after the answer must call checks.ex_…"
            elif "solution" not in tags(following[2]):
                yield f"{where}: the cell after the check must be the solution"
        if "solution" in tags(cell) and not cell.metadata.get("jupyter", {}).get("source_hidden"):
            yield f"the solution `{cell.source[:40]}…` is not folded"


def _questions(chapter: Chapter, nb: NotebookNode) -> Iterator[str]:
    if chapter.number == 0:
        return
    section, count = False, 0
    for cell in nb.cells:
        section = (section or "questions" in tags(cell)) and "takeaways" not in tags(cell)
        count += cell.source.count("<details>") if section else 0
    if not 5 <= count <= 8:
        yield f"{count} questions with folded answers; five to eight are asked for"


def _source(chapter: Chapter, nb: NotebookNode) -> Iterator[str]:
    for number, cell in enumerate(notebooks.code_cells(nb), 1):
        where = f"code cell {number}"
        if match := re.search(r"^\s*[!%].*", cell.source, flags=re.M):
            yield f"{where}: `{match[0].strip()}`: no magics and no shell commands"
            continue
        for line in cell.source.splitlines():
            if len(line) > MAX_COLUMNS:
                yield f"{where}: {len(line)} columns; {MAX_COLUMNS} is the limit: {line[:40]}…"
        if re.search(r";\s*(#.*)?$", cell.source, flags=re.M):
            yield f"{where}: a trailing `;` hides an output"
        if match := _ABSOLUTE.search(cell.source):
            yield f"{where}: absolute path {match[0]!r}"
        try:
            tree = ast.parse(cell.source)
        except SyntaxError as error:
            yield f"{where}: {error}"
            continue
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func).split(".")[-1]
            timed = name in _TIMINGS or ast.unparse(node.func) == "time.time"
            if name in _FORBIDDEN_CALLS and not timed:
                yield f"{where}: {name}(): {_FORBIDDEN_CALLS[name]}"
            if timed and "nbval-ignore-output" not in tags(cell):
                yield f"{where}: {name}(): {_FORBIDDEN_CALLS['timeit']}"
            for keyword in node.keywords:
                if keyword.arg == "download" and getattr(keyword.value, "value", None) is True:
                    yield f"{where}: download=True: chapters download nothing"
                if keyword.arg == "display_id":
                    yield f"{where}: display_id: display updates are not compared"
    try:
        bands(chapter.path)
    except (ValueError, SyntaxError) as error:
        yield str(error)


def _outputs(chapter: Chapter, nb: NotebookNode) -> Iterator[str]:
    cells = notebooks.code_cells(nb)
    counts = [c.execution_count for c in cells]
    if counts != list(range(1, len(cells) + 1)):
        yield (
            f"execution counts are {counts}; write the chapter with "
            f"`nas-workbook run {chapter.number} --write`"
        )
    for number, cell in enumerate(cells, 1):
        where = f"output of code cell {number}"
        for output in cell.outputs:
            text = json.dumps({k: v for k, v in output.items() if k != "metadata"})
            if output.output_type == "error":
                yield f"{where}: {output.ename}"
            if output.get("name") == "stderr":
                yield f"{where}: writes to stderr"
            if "nbval-ignore-output" in tags(cell):
                continue
            data = output.get("data", {})
            plain = str(output.get("text", "")) + str(data.get("text/plain", ""))
            if match := re.search(r"at 0x[0-9a-fA-F]+", plain):
                yield f"{where}: a default repr ({match[0]}) differs in every run"
            if match := _ABSOLUTE.search(plain):
                yield f"{where}: absolute path {match[0]!r}"
            if "<dc:date>" in text:
                yield f"{where}: the SVG carries a date"


def _ignored(chapter: Chapter, nb: NotebookNode) -> Iterator[str]:
    cells = notebooks.code_cells(nb)
    ignored = [c for c in cells if set(tags(c)) & set(IGNORING)]
    allowed = max(1, int(MAX_IGNORED * len(cells)))
    if len(ignored) > allowed:
        yield f"{len(ignored)} of {len(cells)} code cells are not compared; {allowed} may be"
    named = {entry["cell"] for entry in chapter.ignored_cells}
    used = set()
    for cell in ignored:
        names = {cell.get("id"), *tags(cell)} & named
        used |= names
        if not names:
            yield f"cell {cell.get('id')} is not compared, but meta.yaml gives no reason"
    if stale := named - used:
        yield f"meta.yaml lists ignored cells that do not exist: {', '.join(sorted(stale))}"


def _size(chapter: Chapter, nb: NotebookNode) -> Iterator[str]:
    size, lines = Path(chapter.path).stat().st_size, _visible_lines(nb)
    if size > MAX_BYTES:
        yield f"{size:,} bytes; {MAX_BYTES:,} is the limit"
    if lines > MAX_LINES:
        yield f"{lines} visible lines of code; {MAX_LINES} is the limit"


def _visible_lines(nb: NotebookNode) -> int:
    shown = [
        c
        for c in notebooks.code_cells(nb)
        if not c.metadata.get("jupyter", {}).get("source_hidden")
    ]
    return sum(_logical_lines(c.source) for c in shown)


def _logical_lines(source: str) -> int:
    """Statements and headers, however many lines of 88 columns each takes; no comments."""
    try:
        tokens = list(tokenize.generate_tokens(io.StringIO(source + "\n").readline))
    except (tokenize.TokenError, SyntaxError):
        return len(source.splitlines())
    return sum(token.type == tokenize.NEWLINE for token in tokens)
