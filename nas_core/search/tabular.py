"""Tables of trained cells: the results of a whole space, so that a search only looks them up.

`CellTable.load()` is the book's own table (made by `benchmarks/cell_table.py`): the 4,096 cells
with an operation on every edge, trained on the digits. `load_nasbench201` reads the compact form of
NAS-Bench-201 from a file that you provide.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from nas_core.spaces.cells import Cell, CellSpace

COSTS = ["macs", "params", "latency_ms", "epoch_seconds"]
_SHIPPED = Path(__file__).parents[2] / "data" / "tables" / "digit_cells.csv.xz"


class CellTable:
    """Accuracy, size and times of the cells of a space.

    Args:
        cells: the N cells of the rows; cells with the same function may share one.
        accuracy: per (split, epochs) an array `[N, seeds]` of accuracies in [0, 1]; NaN: unknown.
            Splits are "val" and "test".
        about: DataFrame with N rows and the columns of `COSTS`; NaN where one is missing.
        provenance: how the table was made.
    """

    def __init__(
        self,
        name: str,
        space: CellSpace,
        cells: Sequence[Cell],
        accuracy: Mapping[tuple[str, int], np.ndarray],
        about: pd.DataFrame,
        provenance: Mapping | None = None,
    ):
        self.name, self.space, self.cells = name, space, list(cells)
        self.about = about.reset_index(drop=True).reindex(columns=COSTS)
        self.provenance = dict(provenance or {})
        self._accuracy = dict(accuracy)
        self._row = {cell: n for n, cell in enumerate(self.cells)}
        epochs = {s: sorted(e for t, e in self._accuracy if t == s) for s in ("val", "test")}
        self.epochs = {split: tuple(numbers) for split, numbers in epochs.items()}
        self.seeds = max(values.shape[1] for values in self._accuracy.values())
        for key, values in self._accuracy.items():
            if len(values) != len(self.cells) or np.nanmax(values) > 1:
                found = f"{values.shape}, largest {np.nanmax(values):g}"
                needed = "one row per cell with fractions of 1 is needed"
                raise ValueError(f"{name}: accuracies of {key} are {found}; {needed}")

    def __len__(self) -> int:
        return len(self.cells)

    def __repr__(self) -> str:
        return f"CellTable({self.name}: {len(self)} cells, {self.seeds} seeds)"

    @classmethod
    def load(cls, path: str | Path | None = None) -> CellTable:
        """A table of `benchmarks/cell_table.py`; by default the one in the book's `data/tables`."""
        path = Path(path or _SHIPPED)
        if not path.is_file():
            make = f"python benchmarks/cell_table.py --out {path}"
            raise FileNotFoundError(f"no table at {path}; make one: {make}")
        frame = pd.read_csv(path, dtype={"cell": str})
        about = json.loads(path.with_name(f"{path.name.split('.')[0]}.json").read_text("utf-8"))
        training, seeds = about["training"], about["seeds"]
        accuracy = {
            (split, epochs): np.stack(
                [frame[f"{split}_s{s}_e{epochs}"] / about["examples"][split] for s in seeds], 1
            )
            for split in ("val", "test")
            for epochs in training["report"]
        }
        number = {digit: n for n, digit in enumerate(about["digits"])}  # of an operation
        cells = [tuple(number[digit] for digit in text) for text in frame["cell"]]
        steps = about["examples"]["train"] // training["batch_size"]
        costs = frame.assign(epoch_seconds=frame["step_ms"] * steps / 1000)
        space = CellSpace(ops=tuple(about["digits"].values()))
        return cls("digit-cells", space, cells, accuracy, costs, about)

    def row(self, cell: Cell) -> int:
        """Number of the row that holds this cell; raises KeyError for cells outside the table."""
        if cell not in self._row:
            found = self._by_function.get(self.space.function(self.space.check(cell)))
            if found is None:
                raise KeyError(f"{self.space.string(cell)} is not in {self.name}")
            self._row[cell] = found
        return self._row[cell]

    @cached_property
    def _by_function(self) -> dict[str | None, int]:
        return {self.space.function(cell): n for n, cell in enumerate(self.cells)}

    def accuracy(
        self, cell: Cell, split: str = "val", epochs: int | None = None, seed: int | None = None
    ) -> float:
        """Accuracy of a cell, as for `seedwise`; the mean over the seeds if none is given."""
        return float(self.seedwise(split, epochs, seed)[self.row(cell)].mean())

    def accuracies(
        self, split: str = "val", epochs: int | None = None, seed: int | None = None
    ) -> np.ndarray:
        """`accuracy` of every row, `[N]`."""
        return self.seedwise(split, epochs, seed).mean(1)

    def seedwise(
        self, split: str = "val", epochs: int | None = None, seed: int | None = None
    ) -> np.ndarray:
        """Accuracies `[N, seeds]` after `epochs` (default: the most); of one seed `[N, 1]`."""
        if not self.epochs.get(split):
            raise ValueError(f"{self.name} has no split {split!r}; there are val and test")
        epochs = self.epochs[split][-1] if epochs is None else epochs
        if (split, epochs) not in self._accuracy:
            known = ", ".join(map(str, self.epochs[split]))
            wanted = f"{split} accuracy after {epochs} epochs"
            raise ValueError(f"{self.name} has no {wanted}, only after {known}")
        values = self._accuracy[split, epochs]
        if seed is not None and not 0 <= seed < values.shape[1]:
            raise ValueError(f"seed {seed}; {self.name} has 0…{values.shape[1] - 1}")
        return values if seed is None else values[:, seed : seed + 1]

    def cost(self, cell: Cell, what: str = "macs") -> float:
        """One of `COSTS`: times are measured, see `provenance["times"]`; NaN: not known."""
        return float(self.about[what].to_numpy()[self.row(cell)])

    def affordable(self, max_macs: float | None = None) -> np.ndarray:
        """bool `[N]`: the rows within a budget of multiply-adds."""
        macs = self.about.macs.to_numpy()
        within = macs <= (np.inf if max_macs is None else max_macs)
        if not within.any():
            cheapest = f"the cheapest has {macs.min()}"
            raise ValueError(f"no cell has at most {max_macs:g} macs; {cheapest}")
        return within

    def best(
        self, *, split: str = "test", epochs: int | None = None, max_macs: float | None = None
    ) -> Cell:
        """The cell with the highest mean accuracy, within a budget of multiply-adds if given."""
        values = self.accuracies(split, epochs)
        return self.cells[int(np.nanargmax(np.where(self.affordable(max_macs), values, np.nan)))]


def load_nasbench201(
    path: str | Path, data: str = "c10", *,
    latency: str | Path | None = None, device: str = "gold_6226",
) -> CellTable:  # fmt: skip
    """NAS-Bench-201 from its compact CSV (any compression that pandas reads).

    The file has one row per cell: `arch` (NAS-Bench-201's string), accuracies in percent called
    `<data>_val_12ep`, `<data>_test_12ep` and `<data>_test_200ep`, `flops_c10_M` (multiply-adds,
    despite the name) and `params_c10_M`, in millions. There is one value per cell, not one per
    seed, and no validation accuracy after 200 epochs.

    Args:
        data: "c10", "c100" or "in16".
        latency: second file, a row per `index` and a column of milliseconds per device.
        device: a column of that file, e.g. "pixel3" or "1080ti_32" (batches of 32).
    """
    frame = pd.read_csv(path)
    parts = (("val", 12), ("test", 12), ("test", 200))
    columns = {(split, epochs): f"{data}_{split}_{epochs}ep" for split, epochs in parts}
    needed = ["arch", "flops_c10_M", "params_c10_M", *columns.values()]
    if missing := [c for c in needed if c not in frame]:
        raise ValueError(f"{path} lacks the columns {missing}; data is one of c10, c100, in16")
    space = CellSpace(rectified=False)
    cells = [space.parse(text) for text in frame["arch"]]
    if len(set(cells)) < len(cells):
        raise ValueError(f"{path} holds a cell twice")
    accuracy = {key: frame[[name]].to_numpy() / 100 for key, name in columns.items()}
    millions = frame[["flops_c10_M", "params_c10_M"]].set_axis(["macs", "params"], axis=1)
    about = (1e6 * millions).round().astype("int64")
    if latency is not None:
        times = pd.read_csv(latency, index_col="index").reindex(frame["index"])
        if device not in times or times[device].isna().any():
            there = f"there are {', '.join(times)}"
            raise ValueError(f"{latency} has no {device!r} for every cell; {there}")
        about["latency_ms"] = times[device].to_numpy()
    return CellTable(f"nasbench201-{data}", space, cells, accuracy, about, {"file": str(path)})
