"""Published measurements of whole spaces, from the compact files that a reader brings.

The files lie in the data root or in its folder `nas/`; `SOURCES` says where each comes from, as
`nas-workbook data` does. Accuracies become fractions of 1. NAS-Bench-201 is read by
`nas_core.search.load_nasbench201`; `nasbench201` below finds its file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from nas_core.data import DataNotFound, data_root
from nas_core.data.dataset import CorruptData
from nas_core.data.places import TABLES as SOURCES
from nas_core.ranking.spaces import (
    NB101_OPS,
    RNN_OPS,
    Encoding,
    NB101Space,
    nb101_hash,
    pruned,
    rnn,
)
from nas_core.search import CellTable, load_nasbench201


def find(name: str, root: str | Path | None = None) -> Path:
    """Path of one of `SOURCES`; raises DataNotFound that says where it comes from."""
    folder = data_root(root)
    for path in (folder / name, folder / "nas" / name):
        if path.is_file():
            return path
    if name not in SOURCES:
        raise ValueError(f"unknown table {name!r}; there are {', '.join(SOURCES)}")
    raise DataNotFound(
        f"{name} is not in {folder} and has to be put there by hand. It is {SOURCES[name]}"
    )


def _read(name: str, root: str | Path | None, columns: Sequence[str], **options) -> pd.DataFrame:
    path = find(name, root)
    frame = pd.read_csv(path, **options)
    if missing := [c for c in columns if c not in frame]:
        raise CorruptData(f"{path} lacks the columns {missing}; it is {SOURCES[name]}")
    return frame


def nasbench201(
    data: str = "c10", *, device: str | None = None, root: str | Path | None = None
) -> CellTable:
    """All 15,625 cells: validation and test after 12 epochs, test after 200, one value each.

    Args:
        data: "c10", "c100" or "in16".
        device: one of the 27 columns of measured latency, e.g. "pixel3"; None reads none.
    """
    latency = None if device is None else find("nasbench201_latency_ms.csv.xz", root)
    return load_nasbench201(
        find("nasbench201.csv.xz", root), data, latency=latency, device=device or ""
    )


@dataclass(frozen=True)
class Measured:
    """Architectures and what was measured of them, row by row."""

    name: str
    cells: list[Encoding]
    frame: pd.DataFrame  # N rows

    def __len__(self) -> int:
        return len(self.cells)


def nasbench_macro(root: str | Path | None = None) -> Measured:
    """All 6,561 networks of eight layers with three choices each, on CIFAR-10.

    Columns: `accuracy` (mean of three trainings, test), `seed_0` to `seed_2`, `params`, `macs`.
    """
    seeds = [f"test_acc_{n}" for n in (1, 2, 3)]
    columns = ["arch", *seeds, "params", "flops"]
    frame = _read("nasbench_macro_cifar10.csv.xz", root, columns, dtype={"arch": str})
    values = frame[seeds].to_numpy() / 100
    about = pd.DataFrame(values, columns=["seed_0", "seed_1", "seed_2"])
    about = about.assign(
        accuracy=values.mean(1), params=frame.params.to_numpy(), macs=frame.flops.to_numpy()
    )
    return Measured("nasbench-macro", [tuple(map(int, text)) for text in frame["arch"]], about)


def nasbench101_small(vertices: int = 5, *, root: str | Path | None = None) -> Measured:
    """The cells of NAS-Bench-101's space with up to 4 (91) or 5 (2,532) vertices.

    EC-NAS trained them anew for 4 epochs (three times each where there are 4 vertices): these are
    not NAS-Bench-101's figures. Every hash is computed again from the graph and compared.

    Columns, after 4 epochs: `train`, `val`, `test` (means over repeats), `params`, `seconds`, and
    `hash`. Cells are canonical encodings of `NB101Space(vertices)`.

    Raises:
        CorruptData: where a hash is not that of its graph.
    """
    if vertices not in (4, 5):
        raise ValueError(f"vertices is {vertices}; the file has 4 and 5")
    columns = ["space", "hash", "adjacency_upper", "ops", "params", "epochs", "val_acc"]
    name = "nasbench101_4v5v_4epochs_ecnas.csv.xz"
    frame = _read(name, root, columns, dtype={"adjacency_upper": str})
    frame = frame[(frame["space"] == f"{vertices}V9E") & (frame["epochs"] == 4)]
    by = frame.groupby("hash", sort=True)
    first, mean = by.first(), by[["train_acc", "val_acc", "test_acc", "train_time_s"]].mean()
    cells = []
    for digest, row in first.iterrows():
        adjacency, labels = _graph(row["adjacency_upper"], row["ops"])
        if nb101_hash(adjacency, labels) != digest:
            raise CorruptData(f"{find(name, root)}: {digest} is not the hash of its graph")
        cells.append(NB101Space(vertices).encode(*pruned(adjacency, labels)))
    about = mean.set_axis(["train", "val", "test", "seconds"], axis=1)
    about = about.assign(params=first["params"].astype("int64")).reset_index()
    return Measured(f"nasbench101-{vertices}v", cells, about)


def _graph(upper: str, ops: str) -> tuple[list[list[int]], list[int]]:
    """`110101` and `-1|2|2|-2` as adjacency matrix and labels."""
    labels = [int(op) for op in ops.split("|")]
    n, bits = len(labels), iter(upper)
    adjacency = [[int(next(bits)) if j > i else 0 for j in range(n)] for i in range(n)]
    if next(bits, None) is not None or not set(labels[1:-1]) <= set(range(len(NB101_OPS))):
        raise CorruptData(f"{upper!r} with {ops!r} is no cell of NAS-Bench-101")
    return adjacency, labels


def nasbench101_known(root: str | Path | None = None) -> pd.DataFrame:
    """NAS-Bench-101's own validation accuracy after 108 epochs of ten cells of four vertices.

    They are the ten worst of the 91. Columns `hash`, `rank` (of 91, 1 is the best), `accuracy`.
    """
    columns = ["hash", "rank_from_worst", "validation_accuracy_108"]
    frame = _read("nasbench101_4v_108epochs_known.csv", root, columns)[columns]
    frame.columns = ["hash", "rank", "accuracy"]
    return frame.assign(rank=92 - frame["rank"])


def rnn32_order(root: str | Path | None = None) -> list[Encoding]:
    """The 32 recurrent cells of two nodes as `rnn(2)` encodes them, the best first."""
    columns = ["rank", "op_1", "previous_1", "op_2", "previous_2"]
    frame = _read("rnn32_ptb_ranking.csv", root, columns).sort_values("rank")
    rows = frame[["previous_1", "op_1", "previous_2", "op_2"]].itertuples(index=False)
    cells: list[Encoding] = [(p, RNN_OPS.index(o), q, RNN_OPS.index(r)) for p, o, q, r in rows]
    if set(cells) != set(rnn(2)) or len(cells) != 32:
        raise CorruptData(f"{find('rnn32_ptb_ranking.csv', root)} does not hold 32 different cells")
    return cells


@dataclass(frozen=True)
class Curves:
    """What trainings showed epoch by epoch."""

    loss: np.ndarray  # [N, epochs], validation
    final: np.ndarray  # [N], test loss at the end
    params: np.ndarray  # [N]
    epoch_seconds: np.ndarray  # [N]

    def __len__(self) -> int:
        return len(self.loss)


def nasbench_nlp_curves(root: str | Path | None = None) -> Curves:
    """341 recurrent cells trained 50 epochs on WikiText-2 (NAS-Bench-NLP)."""
    losses = [f"val_loss_{n}" for n in range(1, 51)]
    columns = [*losses, "test_loss_50", "params", "epoch_seconds"]
    frame = _read("nasbench_nlp_wikitext2_curves.csv.xz", root, columns)
    loss = frame[losses].to_numpy()
    if not np.isfinite(loss).all():
        raise CorruptData(f"{find('nasbench_nlp_wikitext2_curves.csv.xz', root)} has gaps")
    rest = (frame[name].to_numpy() for name in columns[50:])
    return Curves(loss, *rest)


def rank_history(scores: np.ndarray, final: np.ndarray, top: float = 0.1) -> pd.DataFrame:
    """How well the order after every epoch tells the order at the end.

    Args:
        scores: `[N, epochs]`, the larger the better (negate a loss).
        final: `[N]`, the same for the end.
        top: share of the architectures that are called the best.

    Returns:
        A row per epoch: `epoch`, `tau` (Kendall), `found`, the share of the final best that is
        among the best of that epoch (chance is `top`), and `pairs`, the share of pairs whose order
        changes between this epoch and the end.
    """
    from nas_core.ranking.metrics import kendall

    count = max(1, round(top * len(final)))
    best = set(np.argsort(-final, kind="stable")[:count])
    rows = []
    for epoch in range(scores.shape[1]):
        now = scores[:, epoch]
        found = len(best & set(np.argsort(-now, kind="stable")[:count])) / count
        signs = np.sign(np.subtract.outer(now, now) * np.subtract.outer(final, final))
        changed = (signs < 0).sum() / max(1, (signs != 0).sum())
        rows.append(
            {"epoch": epoch + 1, "tau": kendall(final, now), "found": found, "pairs": changed}
        )
    return pd.DataFrame(rows)
