"""The process that executes one notebook in place; started by the runner, which watches it.

`python -m nas_core.workbook.worker NOTEBOOK FOLDER PARENT` writes a line of JSON to stdout for
every cell that starts, and one at the end.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from typing import Any

from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from nas_core.workbook import notebooks


def main(path: str, folder: str, parent: str) -> None:
    events = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    threading.Thread(target=_die_with_parent, args=(int(parent),), daemon=True).start()
    nb = notebooks.read(path)
    code = [i for i, c in enumerate(nb.cells) if c.cell_type == "code" and c.source.strip()]

    def started(cell: Any, cell_index: int) -> None:
        if cell_index in code:
            number = code.index(cell_index) + 1
            events.write(json.dumps({"cell": number, "of": len(code)}) + "\n")

    client = NotebookClient(
        nb,
        timeout=None,
        kernel_name="python3",
        record_timing=False,
        resources={"metadata": {"path": folder}},
        on_cell_start=started,
        on_cell_executed=lambda **_: notebooks.write(nb, path),  # what is done survives a kill
    )
    error = None
    try:
        client.execute()
    except CellExecutionError as failure:
        failed = [any(o.output_type == "error" for o in nb.cells[i].outputs) for i in code]
        error = f"cell {failed.index(True) + 1}: {failure.ename}: {failure.evalue}"
    except Exception as failure:  # a kernel that dies or does not start
        error = f"{type(failure).__name__}: {failure}"
    notebooks.write(nb, path)
    peak = 0  # resident bytes of the kernel, which has ended; unknown on Windows
    if sys.platform != "win32":
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        peak = unit * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    events.write(json.dumps({"error": error, "peak_bytes": peak}) + "\n")


def _die_with_parent(parent: int) -> None:
    """A runner that is killed must not leave kernels behind."""
    import psutil

    while os.getppid() == parent:
        time.sleep(0.5)
    for child in psutil.Process().children(recursive=True):
        child.kill()
    os._exit(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
