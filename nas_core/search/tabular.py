"""Tables of trained cells: the truth about a whole space, so that a search costs a look-up.

`CellTable.load()` is the book's own table (made by `make_table`): the 4,096 cells with an
operation on every edge, trained on the digits. `load_nasbench201` reads the compact form of
NAS-Bench-201 from a file of the reader's.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from nas_core.spaces.cells import EDGES, OPS, Cell, canonical, cell_string, check_cell, parse_cell

Split = Literal["val", "test"]
COSTS = ["macs", "params", "latency_ms", "epoch_seconds"]
_SHIPPED = Path(__file__).parents[2] / "data" / "tables" / "digit_cells.csv.xz"


class CellTable:
    """Accuracy, size and times of every cell of a space.

    Args:
        name: for messages and plots.
        cells: the N cells of the rows.
        accuracy: per (split, epochs) an array `[N, seeds]` of accuracies in [0, 1]; NaN: unknown.
        about: DataFrame with N rows and the columns of `COSTS`; NaN where one is missing.
        represent: maps a cell to the one that has its row (equal functions share one).
        provenance: how the table was made.
    """

    def __init__(
        self,
        name: str,
        cells: list[Cell],
        accuracy: Mapping[tuple[str, int], np.ndarray],
        about: pd.DataFrame,
        represent: Callable[[Cell], Cell] = check_cell,
        provenance: Mapping | None = None,
    ):
        self.name, self.cells = name, list(cells)
        self.about = about.reset_index(drop=True).reindex(columns=COSTS)
        self._accuracy = dict(accuracy)
        self._represent = represent
        self._row = {cell: n for n, cell in enumerate(self.cells)}
        self.provenance = dict(provenance or {})
        self.ops = tuple(sorted({op for cell in self.cells for op in cell}))
        self.epochs = {
            s: tuple(sorted(e for t, e in self._accuracy if t == s)) for s in ("val", "test")
        }
        self.seeds = max(values.shape[1] for values in self._accuracy.values())
        for key, values in self._accuracy.items():
            if values.shape[0] != len(self.cells) or np.nanmax(values) > 1:
                raise ValueError(
                    f"{name}: accuracies of {key} are {values.shape}, largest "
                    f"{np.nanmax(values):g}; one row per cell with fractions of 1 is needed"
                )

    def __len__(self) -> int:
        return len(self.cells)

    def __repr__(self) -> str:
        return f"CellTable({self.name}: {len(self)} cells, {self.seeds} seeds)"

    @classmethod
    def load(cls, path: str | Path | None = None) -> CellTable:
        """The table of `make_table`; by default the one in the book's `data/tables`."""
        path = Path(path or _SHIPPED)
        if not path.is_file():
            raise FileNotFoundError(
                f"no table at {path}; make one: python -m nas_core.search.make_table --out {path}"
            )
        frame = pd.read_csv(path, dtype={"cell": str})
        about = json.loads((path.parent / f"{path.name.split('.')[0]}.json").read_text())
        training, seeds = about["training"], about["seeds"]
        accuracy = {
            (split, epochs): np.stack(
                [frame[f"{split}_s{s}_e{epochs}"] / about["examples"][split] for s in seeds], 1
            )
            for split in ("val", "test")
            for epochs in training["report"]
        }
        cells = [tuple(map(int, text)) for text in frame["cell"]]
        steps = about["examples"]["train"] // training["batch_size"]
        costs = frame.assign(epoch_seconds=frame["step_ms"] * steps / 1000)
        return cls("digit-cells", cells, accuracy, costs, canonical, about)

    # ---------------------------------------------------------------- queries

    def row(self, cell: Cell) -> int:
        """Number of the row that holds this cell; raises KeyError for cells outside the space."""
        if cell not in self._row:
            found = self._row.get(self._represent(check_cell(cell)))
            if found is None:
                known = ", ".join(OPS[op] for op in self.ops)
                raise KeyError(
                    f"{cell_string(cell)} is not in {self.name}, whose operations are {known}"
                )
            self._row[cell] = found
        return self._row[cell]

    def accuracy(
        self,
        cell: Cell,
        *,
        split: Split = "val",
        epochs: int | None = None,
        seed: int | None = None,
    ) -> float:
        """Accuracy of a cell trained for `epochs` (default: the most there are).

        `seed=None` is the mean over seeds: the truth, as far as there is one; a number is what
        one training would have shown.
        """
        return float(self._values(split, epochs, seed)[self.row(cell)].mean())

    def accuracies(
        self, *, split: Split = "val", epochs: int | None = None, seed: int | None = None
    ) -> np.ndarray:
        """`accuracy` of every row, `[N]`."""
        return self._values(split, epochs, seed).mean(1)

    def _values(self, split: Split, epochs: int | None, seed: int | None) -> np.ndarray:
        """`[N, seeds]`, or `[N, 1]` of one seed."""
        if not self.epochs.get(split):
            raise ValueError(f"{self.name} has no split {split!r}; there are val and test")
        epochs = self.epochs[split][-1] if epochs is None else epochs
        if (split, epochs) not in self._accuracy:
            raise ValueError(
                f"{self.name} has no {split} accuracy after {epochs} epochs, only after "
                f"{', '.join(map(str, self.epochs[split]))}"
            )
        values = self._accuracy[split, epochs]
        if seed is None:
            return values
        if not 0 <= seed < values.shape[1]:
            raise ValueError(f"seed {seed}; {self.name} has 0…{values.shape[1] - 1}")
        return values[:, seed : seed + 1]

    def macs(self, cell: Cell) -> int:
        return int(self.about.macs[self.row(cell)])

    def params(self, cell: Cell) -> int:
        return int(self.about.params[self.row(cell)])

    def latency_ms(self, cell: Cell) -> float:
        """Measured time of a forward pass (see `provenance["times"]`); NaN: not known."""
        return float(self.about.latency_ms[self.row(cell)])

    def epoch_seconds(self, cell: Cell) -> float:
        """Measured time of an epoch of training on one thread; NaN: not known."""
        return float(self.about.epoch_seconds[self.row(cell)])

    def best(
        self, *, split: Split = "test", epochs: int | None = None, max_macs: float | None = None
    ) -> Cell:
        """The cell with the highest mean accuracy, within a budget of multiply-adds if given."""
        values = self.accuracies(split=split, epochs=epochs).copy()
        if max_macs is not None:
            values[self.about.macs.to_numpy() > max_macs] = np.nan
        if np.isnan(values).all():
            raise ValueError(
                f"no cell has at most {max_macs:g} macs; the cheapest has {self.about.macs.min()}"
            )
        return self.cells[int(np.nanargmax(values))]

    def random_cell(self, rng: random.Random) -> Cell:
        """Uniform over encodings: every edge draws one of the table's operations."""
        return tuple(rng.choice(self.ops) for _ in EDGES)

    def mutate(self, cell: Cell, rng: random.Random) -> Cell:
        """`cell` with another operation on one edge."""
        edge = rng.randrange(len(EDGES))
        other = rng.choice([op for op in self.ops if op != cell[edge]])
        return (*cell[:edge], other, *cell[edge + 1 :])


def load_nasbench201(
    path: str | Path,
    data: str = "c10",
    *,
    latency: str | Path | None = None,
    device: str = "gold_6226",
) -> CellTable:
    """NAS-Bench-201 from its compact CSV (any compression that pandas reads).

    The file has one row per cell: `arch` (NAS-Bench-201's string), accuracies in percent called
    `<data>_val_12ep`, `<data>_test_12ep` and `<data>_test_200ep`, `flops_c10_M` (multiply-adds,
    whatever their name says) and `params_c10_M`, in millions. There is one value per cell, not
    one per seed, and no validation accuracy after 200 epochs.

    Args:
        data: "c10", "c100" or "in16".
        latency: second file, a row per `index` and a column of milliseconds per device; without
            it latencies are not known.
        device: a column of that file, e.g. "pixel3" or "1080ti_32" (batches of 32).
    """
    frame = pd.read_csv(path)
    columns = {
        (split, epochs): f"{data}_{split}_{epochs}ep"
        for split, epochs in (("val", 12), ("test", 12), ("test", 200))
    }
    needed = ["arch", "flops_c10_M", "params_c10_M", *columns.values()]
    if missing := [c for c in needed if c not in frame]:
        raise ValueError(f"{path} lacks the columns {missing}; data is one of c10, c100, in16")
    cells = [parse_cell(text) for text in frame["arch"]]
    if len(set(cells)) < len(cells):
        raise ValueError(f"{path} holds a cell twice")
    accuracy = {key: frame[[name]].to_numpy() / 100 for key, name in columns.items()}
    about = pd.DataFrame(
        {
            "macs": (1e6 * frame["flops_c10_M"]).round().astype("int64"),
            "params": (1e6 * frame["params_c10_M"]).round().astype("int64"),
        }
    )
    if latency is not None:
        times = pd.read_csv(latency, index_col="index").reindex(frame["index"])
        if device not in times or times[device].isna().any():
            raise ValueError(
                f"{latency} has no {device!r} for every cell; there are {', '.join(times)}"
            )
        about["latency_ms"] = times[device].to_numpy()
    return CellTable(f"nasbench201-{data}", cells, accuracy, about, provenance={"file": str(path)})
