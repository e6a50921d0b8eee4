"""Curves of a checkpoint or a saved run for TensorBoard (`pip install "nas-workbook[dashboard]"`).

    python benchmarks/to_tensorboard.py run.pt build/tb/run-1
    tensorboard --logdir build/tb

Checkpoints are written after every epoch: with `--follow` a run that goes on can be watched.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from numbers import Real
from pathlib import Path
from typing import Any

from nas_core.training import load_checkpoint


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The history of a loop's checkpoint, or that of a saved `Run`."""
    history = load_checkpoint(path)["history"]
    if "rows" in history:
        return history["rows"]
    return [dict(zip(history, row, strict=True)) for row in zip(*history.values(), strict=True)]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("file", type=Path, help="checkpoint of a training, or a saved run")
    parser.add_argument("folder", type=Path, help="where TensorBoard looks")
    parser.add_argument("--follow", type=float, metavar="SECONDS", help="read again so often")
    args = parser.parse_args(argv)
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        parser.error("TensorBoard is not installed: pip install 'nas-workbook[dashboard]'")
    writer, written = SummaryWriter(str(args.folder)), 0
    while True:
        rows = rows_of(args.file)
        for epoch, row in enumerate(rows[written:], written):
            for name, value in row.items():
                if isinstance(value, Real) and not isinstance(value, bool):
                    writer.add_scalar(name, float(value), row.get("epoch", epoch))
        writer.flush()
        written = len(rows)
        if args.follow is None:
            return writer.close()
        time.sleep(args.follow)


if __name__ == "__main__":
    main()
