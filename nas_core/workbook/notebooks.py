"""Notebook files: their parameters, their exercises, what makes two executions equal."""

from __future__ import annotations

import ast
import base64
import hashlib
import json
import re
from itertools import chain, count
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode

from nas_core.files import write_atomic
from nas_core.workbook.book import BookError

_KEPT_CELL_METADATA = ("jupyter", "name", "stub", "tags")
_WIDGETS = "application/vnd.jupyter.widget-state+json"
_VIEW = "application/vnd.jupyter.widget-view+json"
_ID = re.compile(r"(?<![0-9a-f])[0-9a-f]{32}(?![0-9a-f])")  # of a widget model


def read(path: str | Path) -> NotebookNode:
    """A notebook of format 4; raises `BookError` when the file is missing or damaged."""
    try:
        return nbformat.reads(Path(path).read_text(encoding="utf-8"), as_version=4)
    except FileNotFoundError:
        raise BookError(f"there is no notebook {path}") from None
    except Exception as error:  # nbformat raises many kinds
        raise BookError(f"{path} is no readable notebook: {error}") from error


def write(nb: NotebookNode, path: str | Path) -> None:
    """Write atomically; the same notebook gives the same bytes."""
    write_atomic(path, nbformat.writes(nb).rstrip("\n") + "\n")


def tags(cell: NotebookNode) -> list[str]:
    return list(cell.metadata.get("tags", []))


def code_cells(nb: NotebookNode) -> list[NotebookNode]:
    return [c for c in nb.cells if c.cell_type == "code"]


def parameters(nb: NotebookNode) -> dict[str, Any]:
    """Names and values of the cell tagged `parameters`; raises `BookError` unless all literal."""
    found = [c for c in code_cells(nb) if "parameters" in tags(c)]
    if len(found) != 1:
        raise BookError(f"a chapter has one cell tagged 'parameters', this one has {len(found)}")
    values = {}
    for statement in ast.parse(found[0].source).body:
        try:
            assert isinstance(statement, ast.Assign) and len(statement.targets) == 1
            target = statement.targets[0]
            assert isinstance(target, ast.Name)
            values[target.id] = ast.literal_eval(statement.value)
        except (AssertionError, ValueError) as error:
            line = ast.unparse(statement)
            raise BookError(
                f"the parameters cell holds `{line}`; only NAME = literal is allowed"
            ) from error
    return values


def arranged(nb: NotebookNode) -> NotebookNode:
    """The same notebook with every exercise as answer cell, check, collapsed solution.

    Authors write the stub as a cell tagged `stub`, or as `stub` in the metadata of the solution;
    the solution comes before its check. Readers get the stub as a cell to fill in, then the
    check, and the solution below it, which defines the function for the rest of the chapter. A
    notebook that is arranged already stays as it is.
    """
    kept: list[NotebookNode] = []
    stub: str | None = None
    solution: NotebookNode | None = None  # waits for its check to pass
    for cell in nb.cells:
        if "stub" in tags(cell):
            stub = cell.source
            continue
        if "solution" in tags(cell) and (stub or cell.metadata.get("stub")):
            answer = nbformat.v4.new_code_cell(stub or cell.metadata.pop("stub"))
            answer.metadata["tags"] = ["answer"]
            kept.append(answer)
            stub, solution = None, cell
            if not cell.source.startswith("#"):  # the line that a collapsed cell shows
                cell.source = f"# One solution. Try first, then unfold.\n{cell.source}"
            cell.metadata["jupyter"] = {"source_hidden": True}
            continue
        kept.append(cell)
        if solution is not None:
            kept.append(solution)
            solution = None
    nb.cells = [*kept, solution] if solution is not None else kept
    return nb


def without_outputs(nb: NotebookNode) -> NotebookNode:
    """A copy as an author wrote it: no outputs, counts or traces of an execution."""
    copy = nbformat.from_dict(json.loads(json.dumps(nb)))
    kernel = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
    copy.metadata = nbformat.from_dict({"kernelspec": kernel, "language_info": {"name": "python"}})
    seen: set[str] = set()
    for cell in copy.cells:
        cell.metadata = nbformat.from_dict(
            {k: cell.metadata[k] for k in _KEPT_CELL_METADATA if k in cell.metadata}
        )
        cell["id"] = _stable_id(cell, seen)
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    copy.nbformat, copy.nbformat_minor = 4, 5
    return copy


def fingerprint(nb: NotebookNode) -> str:
    """Hash of what is executed: sources, kinds and tags of the cells."""
    cells = [(c.cell_type, c.source, tags(c)) for c in nb.cells]
    return hashlib.sha256(json.dumps(cells).encode()).hexdigest()


def finished(executed: NotebookNode, name: str) -> NotebookNode:
    """An executed notebook as it is committed: the same bytes for the same outputs.

    Raises `BookError` where a cell wrote to stderr or the counts are not 1..N.
    """
    nb = without_outputs(executed)
    widgets = executed.metadata.get("widgets")
    if widgets and widgets.get(_WIDGETS, {}).get("state"):
        nb.metadata["widgets"] = widgets
    for before, cell in zip(executed.cells, nb.cells, strict=True):
        if cell.cell_type == "code":
            cell.execution_count = before.execution_count
            cell.outputs = _tidy_outputs(before.outputs)
    counts = [c.execution_count for c in code_cells(nb)]
    if counts != list(range(1, len(counts) + 1)):
        raise BookError(f"{name}: execution counts are {counts}, not 1…{len(counts)}")
    for number, cell in enumerate(code_cells(nb), 1):
        for output in cell.outputs:
            if output.output_type == "stream" and output.name == "stderr":
                raise BookError(f"{name}: code cell {number} writes to stderr: {output.text[:300]}")
    return _stable_widget_ids(nb, name)


def _tidy_outputs(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """Pieces of one stream as one output: timing cuts them. Pictures are stored small."""
    from nas_core.viz.static import fewer_colours

    joined: list[NotebookNode] = []
    for output in outputs:
        if picture := output.get("data", {}).get("image/png"):
            small = fewer_colours(base64.b64decode(picture))
            output.data["image/png"] = base64.b64encode(small).decode()
        last = joined[-1] if joined else None
        if last and output.output_type == "stream" and last.get("name") == output.name:
            last.text += output.text
        else:
            joined.append(nbformat.from_dict(dict(output)))
    return joined


def _stable_id(cell: NotebookNode, seen: set[str]) -> str:
    """Random ids are replaced by a hash of the source; ids that a person chose stay."""
    given = cell.get("id", "")
    if given and not re.fullmatch(r"[0-9a-f]{8}(-\d+)?|[0-9a-f-]{36}", given):
        seen.add(given)
        return given
    base = hashlib.sha256(f"{cell.cell_type}:{cell.source}".encode()).hexdigest()[:8]
    numbered = (f"{base}-{n}" for n in count(2))
    unique = next(name for name in chain([base], numbered) if name not in seen)
    seen.add(unique)
    return unique


def _stable_widget_ids(nb: NotebookNode, name: str) -> NotebookNode:
    """Widget models have random ids; number them in the order in which the outputs show them."""
    if "widgets" not in nb.metadata:
        return nb
    state = nb.metadata["widgets"][_WIDGETS]["state"]
    texts = {model: json.dumps(value, sort_keys=True) for model, value in state.items()}
    order: dict[str, int] = {}

    def visit(model: str) -> None:
        if model in texts and model not in order:
            order[model] = len(order)
            for child in re.findall(r"IPY_MODEL_(\w+)", texts[model]):
                visit(child)

    for cell in code_cells(nb):
        for output in cell.outputs:
            view = output.get("data", {}).get(_VIEW)
            if view:
                visit(view["model_id"])
    while hidden := [m for m in texts if m not in order]:  # links between widgets, say
        visit(min(hidden, key=lambda m: re.sub(_ID, "", _renamed(texts[m], order, name))))
    return nbformat.from_dict(json.loads(_renamed(json.dumps(nb), order, name)))


def _renamed(text: str, order: dict[str, int], name: str) -> str:
    """`text` with every id of `order` replaced by a hash of its place."""

    new = {m: hashlib.sha256(f"{name}:{i}".encode()).hexdigest()[:32] for m, i in order.items()}
    return _ID.sub(lambda match: new.get(match[0], match[0]), text)
