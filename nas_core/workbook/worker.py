"""The process that executes one notebook; started by the runner, which watches it.

Reads a job as JSON from stdin and writes one line of JSON per event to stdout.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import nbformat

from nas_core.workbook import notebooks


def main() -> None:
    job = json.load(sys.stdin)
    events = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    threading.Thread(target=_die_with_parent, args=(os.getppid(),), daemon=True).start()
    nb = nbformat.from_dict(job["notebook"])
    if job["parameters"]:
        from papermill.parameterize import parameterize_notebook

        nb.metadata["papermill"] = {}
        for cell in nb.cells:
            cell.metadata.setdefault("tags", [])  # papermill looks there without asking
        nb = parameterize_notebook(nb, job["parameters"], kernel_name="python3", language="python")
        del nb.metadata["papermill"]
    error = _execute(nb, job["folder"], Path(job["output"]), events)
    event = {"error": error, "peak_bytes": _largest_child()}
    events.write(json.dumps(event) + "\n")


def _execute(nb: Any, folder: str, output: Path, events: Any) -> str | None:
    """Execute in place, saving after every cell; returns what went wrong, or None."""
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError

    number = {i: n for n, (i, _) in enumerate(_code(nb), 1)}

    def started(cell: Any, cell_index: int) -> None:
        if cell_index in number:
            events.write(json.dumps({"cell": number[cell_index], "of": len(number)}) + "\n")

    def executed(cell: Any, cell_index: int, execute_reply: Any) -> None:
        notebooks.write(nb, output)

    client = NotebookClient(
        nb,
        timeout=None,
        kernel_name="python3",
        record_timing=False,
        resources={"metadata": {"path": folder}},
        on_cell_start=started,
        on_cell_executed=executed,
    )
    try:
        client.execute()
        return None
    except CellExecutionError as error:
        at = next((number[i] for i, c in _code(nb) if _failed(c)), "?")
        return f"cell {at}: {error.ename}: {error.evalue}"
    except Exception as error:  # a kernel that dies or does not start
        return f"{type(error).__name__}: {error}"
    finally:
        notebooks.write(nb, output)


def _code(nb: Any) -> list[tuple[int, Any]]:
    """Code cells that nbclient executes, with their index."""
    return [(i, c) for i, c in enumerate(nb.cells) if c.cell_type == "code" and c.source.strip()]


def _failed(cell: Any) -> bool:
    return any(o.output_type == "error" for o in cell.outputs)


def _largest_child() -> int:
    """Peak resident bytes of the largest child that has ended, the kernel, or 0 if unknown."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024)


def _die_with_parent(parent: int) -> None:
    """A runner that is killed must not leave kernels behind."""
    import psutil

    while os.getppid() == parent:
        time.sleep(0.5)
    for child in psutil.Process().children(recursive=True):
        child.kill()
    os._exit(1)


if __name__ == "__main__":
    main()
