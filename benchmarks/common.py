"""Writing benchmark results: one JSON file per benchmark, with what it ran on."""

from __future__ import annotations

import json
import platform
import sys
from datetime import date
from pathlib import Path

import torch

from nas_core.files import write_atomic

RESULTS = Path(__file__).parent / "results"


def processor() -> str:
    """Model name of the processor, where the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if "model name" in line), "unknown")


def write_results(name: str, rows: list[dict]) -> Path:
    """Print the rows and write them with command, versions and device to `results/<name>.json`."""
    for row in rows:
        print(f"{row['value']:>10} {row['unit']:<6} {row['what']}  ({row['versus']})", flush=True)
    record = {
        "command": " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "date": date.today().isoformat(),
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "rows": rows,
    }
    path = RESULTS / f"{name}.json"
    write_atomic(path, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    return path
