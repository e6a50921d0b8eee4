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
            name, literal = ast.unparse(statement).split(" = ", 1)
            assert isinstance(statement, ast.Assign) and name.isidentifier()
            values[name] = ast.literal_eval(literal)
        except (AssertionError, ValueError, SyntaxError) as error:
            told = f"the parameters cell holds `{ast.unparse(statement)}`"
            raise BookError(f"{told}; only NAME = literal is allowed") from error
    return values


def arranged(nb: NotebookNode) -> NotebookNode:
    """The same notebook with every exercise as answer cell, check, folded solution.

    Authors write the stub as a cell tagged `stub` (or as the solution's metadata `stub`), the
    solution, and the check. An arranged notebook is not changed. The solution comes last because
    it defines the function for the rest of the chapter.
    """
    kept: list[NotebookNode] = []
    stub, below = None, []  # `below`: a solution that must come after the next cell, its check
    for cell in nb.cells:
        if "stub" in tags(cell):
            stub = cell.source
        elif "solution" in tags(cell) and (stub or cell.metadata.get("stub")):
            source = stub or cell.metadata.pop("stub")
            kept.append(nbformat.v4.new_code_cell(source, metadata={"tags": ["answer"]}))
            if not cell.source.startswith("#"):  # the line that a folded cell shows
                cell.source = f"# One solution. Try first, then unfold.\n{cell.source}"
            cell.metadata["jupyter"] = {"source_hidden": True}
            stub, below = None, [cell]
        else:
            kept += [cell, *below]
            below = []
    nb.cells = kept + below
    return nb


def without_outputs(nb: NotebookNode) -> NotebookNode:
    """A copy as an author wrote it: no outputs, counts or traces of an execution."""
    copy = nbformat.from_dict(json.loads(json.dumps(nb)))
    kernel = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
    copy.metadata = nbformat.from_dict({"kernelspec": kernel, "language_info": {"name": "python"}})
    seen: set[str] = set()
    for cell in copy.cells:
        kept = {k: cell.metadata[k] for k in _KEPT_CELL_METADATA if k in cell.metadata}
        cell.metadata = nbformat.from_dict(kept)
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
    for before, cell in zip(code_cells(executed), code_cells(nb), strict=True):
        cell.execution_count = before.execution_count
        cell.outputs = _tidy_outputs(before.outputs)
    counts = [c.execution_count for c in code_cells(nb)]
    if counts != list(range(1, len(counts) + 1)):
        raise BookError(f"{name}: execution counts are {counts}, not 1…{len(counts)}")
    for number, cell in enumerate(code_cells(nb), 1):
        if told := "".join(o.text for o in cell.outputs if o.get("name") == "stderr"):
            raise BookError(f"{name}: code cell {number} writes to stderr: {told[:300]}")
    return _stable_widget_ids(nb, name) if "widgets" in nb.metadata else nb


def _tidy_outputs(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """Join the pieces of a stream, which depend on timing, and store pictures small."""
    from nas_core.viz.static import fewer_colours

    joined: list[NotebookNode] = []
    for output in outputs:
        if picture := output.get("data", {}).get("image/png"):
            small = fewer_colours(base64.b64decode(picture))
            output.data["image/png"] = base64.b64encode(small).decode()
        last = joined[-1] if joined else {}
        if output.output_type == "stream" and last.get("name") == output.name:
            last["text"] += output.text
        else:
            joined.append(nbformat.from_dict(dict(output)))
    return joined


def _stable_id(cell: NotebookNode, seen: set[str]) -> str:
    """Its id if a person chose it; random ids are replaced by a hash of the source."""
    given = cell.get("id", "")
    base = hashlib.sha256(f"{cell.cell_type}:{cell.source}".encode()).hexdigest()[:8]
    numbered = chain([base], (f"{base}-{n}" for n in count(2)))
    random = re.fullmatch(r"|[0-9a-f]{8}(-\d+)?|[0-9a-f-]{36}", given)
    chosen = next(name for name in numbered if name not in seen) if random else given
    seen.add(chosen)
    return chosen


def _stable_widget_ids(nb: NotebookNode, name: str) -> NotebookNode:
    """Replace the random ids of widget models by hashes of the order in which they are shown."""
    state = nb.metadata["widgets"][_WIDGETS]["state"]
    texts = {model: json.dumps(value, sort_keys=True) for model, value in state.items()}
    order: dict[str, str] = {}  # id -> new id

    def visit(model: str) -> None:
        if model in texts and model not in order:
            order[model] = hashlib.sha256(f"{name}:{len(order)}".encode()).hexdigest()[:32]
            for child in re.findall(r"IPY_MODEL_(\w+)", texts[model]):
                visit(child)

    def renamed(text: str) -> str:
        return _ID.sub(lambda match: order.get(match[0], match[0]), text)

    for output in chain.from_iterable(c.outputs for c in code_cells(nb)):
        if view := output.get("data", {}).get(_VIEW):
            visit(view["model_id"])
    while hidden := [m for m in texts if m not in order]:  # links between widgets, say
        visit(min(hidden, key=lambda m: _ID.sub("", texts[m])))
    return nbformat.from_dict(json.loads(renamed(json.dumps(nb))))
