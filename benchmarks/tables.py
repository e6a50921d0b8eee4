"""Bring the generated tables up to date: `python benchmarks/tables.py` (`--cover`: the picture).

README.md gets the chapters and ten headline results, data/results/README.md every record,
benchmarks/README.md every measurement of speed. The text around a table is written by hand.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from nas_core.workbook.book import Book
from nas_core.workbook.results import read_results

COVER = "notebooks/images/cover.png"
# Columns that tell the rows of a record apart; rows that differ in nothing else are seeds.
_GROUPS = ("strategy", "kind", "learner", "cost_name", "share", "budget", "lam")


class Headline(NamedTuple):
    """One row of the README: a method beside its control, both from one record."""

    chapter: str
    record: str
    measured: str
    method: tuple[str, dict[str, Any]]  # what it is called, and its rows (column: value)
    control: tuple[str, dict[str, Any]]
    column: str


HEADLINES = (
    Headline(
        "01", "regret_half_the_macs", "test accuracy of the cell found under a budget",
        ("Bayesian optimization", {"strategy": "Bayesian"}),
        ("random search", {"strategy": "random"}), "test_accuracy",
    ),
    Headline(
        "01", "regret", "the same without a budget: no search, train the largest",
        ("train the largest", {"strategy": "train the largest"}),
        ("random search", {"strategy": "random"}), "test_accuracy",
    ),
    Headline(
        "02", "sweep_study", "searches that end in the optimum, 32 samples a step",
        ("λ = 8 λ*", {"λ/λ*": 8.0, "samples": 32}),
        ("λ = 128 λ*", {"λ/λ*": 128.0, "samples": 32}), "optimal",
    ),
    Headline(
        "03", "front", "test accuracy on CIFAR-10, short training",
        ("budgeted search", {"kind": "budgeted", "share": 0.45}),
        ("plain ResNet within the same budget", {"kind": "ResNet"}), "test_accuracy",
    ),
    Headline(
        "04", "fashion_mnist_cycles", "test accuracy on Fashion-MNIST within 20 cycles",
        ("4 machines", {"cost_name": "distributed n=4"}),
        ("1 machine", {"cost_name": "distributed n=1"}), "test_accuracy",
    ),
    Headline(
        "07", "speech_commands", "accuracy on a stream of spoken words",
        ("SANAS, λ = 0.5", {"model": "sanas λ=0.5"}),
        ("a static network of similar cost", {"model": "shortcuts width=4"}), "accuracy",
    ),
    Headline(
        "07", "speech_commands", "accuracy on a stream of spoken words",
        ("SANAS, λ = 0", {"model": "sanas λ=0"}),
        ("DS-CNN", {"model": "ds_cnn"}), "accuracy",
    ),
    Headline(
        "08", "real_images", "mean accuracy after four CTrL streams",
        ("fine-tuning one network", {"learner": "Finetune"}),
        ("a new network per task", {"learner": "Independent"}), "A",
    ),
    Headline(
        "09", "real_images", "mean accuracy after four CTrL streams",
        ("MNTDP-D", {"learner": "MNTDP-D"}),
        ("a new network per task", {"learner": "Independent"}), "A",
    ),
    Headline(
        "09", "real_prior", "mean accuracy after two streams where the prior matters",
        ("MNTDP-D", {"learner": "MNTDP-D"}),
        ("MNTDP-D with a random prior", {"learner": "MNTDP-D random prior"}), "A",
    ),
)  # fmt: skip


# ---------------------------------------------------------------- README.md


def chapter_table(book: Book) -> str:
    """Ready chapters with their question and minutes, then the titles of the planned ones."""
    lines = _header("chapter", "question", "read", "smoke, 1 core", "study", "paper")
    for chapter in book.ready:
        minutes = [_minutes(chapter.minutes.get(k)) for k in ("read", "smoke", "study", "paper")]
        link = f"[{chapter.number:02d} {chapter.title}](notebooks/{chapter.path.name})"
        lines.append(_row(link, chapter.question, *minutes))
    planned = [f"{c.number:02d} {c.title}" for c in book.chapters.values() if c.status == "planned"]
    lines += ["", f"Planned: {' · '.join(planned)}."] if planned else []
    return "\n".join(lines) + "\n"


def headline_table(book: Book) -> str:
    """Method and control of every headline, in percent, with the command of the record."""
    lines = _header("chapter", "measured, %", "method", "control", "seeds", "command")
    records = {(r["chapter"][:2], r["name"]): r for r in read_results(root=book.root)}
    for h in HEADLINES:
        if (h.chapter, h.record) not in records:
            raise ValueError(f"headline of chapter {h.chapter}: there is no record {h.record!r}")
        record = records[h.chapter, h.record]
        rows = _over_streams(pd.DataFrame(record["rows"]))
        cells, seeds = [], set()
        for name, wanted in (h.method, h.control):
            chosen = rows[(rows[list(wanted)] == pd.Series(wanted)).all(axis=1)]
            if chosen.empty:
                raise ValueError(f"{h.record} of chapter {h.chapter} has no rows with {wanted}")
            cost = f", {chosen.macs.mean() / 1e6:.2g} M macs" if "macs" in chosen else ""
            cells.append(f"{name}{cost}: **{_spread(100 * chosen[h.column], 1)}**")
            seeds.add(chosen.seed.nunique())
        lines.append(
            _row(h.chapter, h.measured, *cells, "/".join(map(str, seeds)), f"`{record['command']}`")
        )
    return "\n".join(lines) + "\n"


# ---------------------------------------------------------------- data/results/README.md


def results_tables(book: Book) -> str:
    """Every record: where it comes from, and its means ± standard deviations over seeds."""
    parts = []
    for record in read_results(root=book.root):
        seeds = record["seeds"]
        named = "" if not seeds else f"seeds {_ranges(seeds)}"
        origin = [named, record["device"], record["recorded"], record["config"].get("profile", "")]
        parts += [
            f"### {record['chapter'][:2]} · {record['name']}\n",
            f"`{record['command']}`\n",
            " · ".join(filter(None, origin)) + "\n",
            record_table(record),
        ]
    return "\n".join(parts)


def record_table(record: dict[str, Any]) -> str:
    """A row per setting; a record without an accuracy per seed is described by its columns."""
    frame = pd.DataFrame(record["rows"])
    columns = ", ".join(f"`{c}`" for c in frame)
    streams = frame.stream.nunique() if "A" in frame and "stream" in frame else 1
    frame = _over_streams(frame)
    value = next((c for c in ("test_accuracy", "accuracy", "A") if c in frame), None)
    if value is None or "seed" not in frame or "epoch" in frame:
        return f"{len(record['rows'])} rows of {columns}.\n"
    groups = ("model",) if "model" in frame else _GROUPS  # a model's name says its settings
    by = [c for c in groups if c in frame and frame[c].nunique(dropna=False) > 1]
    cost = ["cost, M macs"] if "macs" in frame else []
    accuracy = "accuracy, %" if streams == 1 else f"accuracy, %, mean of {streams} streams"
    lines = _header(*by, *cost, accuracy, "seeds")
    for key, rows in frame.groupby(by, dropna=False) if by else [((), frame)]:
        named = [_short(k) if k == k else "–" for k in key]
        price = [_spread(rows["macs"] / 1e6, 2)] if cost else []
        lines.append(_row(*named, *price, _spread(100 * rows[value], 1), str(rows.seed.nunique())))
    return "\n".join(lines) + "\n"


def _over_streams(frame: pd.DataFrame) -> pd.DataFrame:
    """Mean accuracy over the streams of a seed, of learners that went through all of them."""
    if "A" not in frame or "stream" not in frame:
        return frame
    runs = frame.groupby(["learner", "seed"]).agg(A=("A", "mean"), streams=("stream", "nunique"))
    return runs[runs.streams == frame.stream.nunique()].reset_index()


# ---------------------------------------------------------------- benchmarks/README.md


def benchmark_tables(book: Book) -> str:
    """A table per file in benchmarks/results, with the machine that it was measured on."""
    parts = []
    for path in sorted((book.root / "benchmarks" / "results").glob("*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        origin = f"{record['processor']} · {record['threads']} thread · {record['date']}"
        lines = _header("measured", "value", "compared")
        for row in record["rows"]:
            value = f"{row['value']} {row['unit']}".removesuffix(" ratio")
            lines.append(_row(row["what"], value, row["versus"]))
        parts += [f"### `{record['command']}`\n", f"{origin}\n", "\n".join(lines) + "\n"]
    return "\n".join(parts)


# ---------------------------------------------------------------- the picture


def draw_cover(book: Book) -> Any:
    """A matplotlib figure: an architecture found in chapter 03, and where it came from."""
    import matplotlib.pyplot as plt
    import torch

    from nas_core.spaces import resnet_fabric
    from nas_core.viz import draw_architecture, plot_pareto

    record = next(r for r in read_results("03_budgeted_super_networks", book.root))
    rows = pd.DataFrame(record["rows"])
    config = record["config"]
    fabric = resnet_fabric(config["blocks"], channels=tuple(config["channels"]))
    searched = rows[rows.kind == "budgeted"]
    best = searched.loc[searched.val_accuracy.idxmax()]
    mask = torch.zeros(fabric.num_edges, dtype=torch.bool)
    mask[best.kept] = True
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(12, 4), width_ratios=(1.9, 1), layout="constrained"
    )
    title = f"{len(best.kept)} of {fabric.num_edges} edges: {best.macs / 1e6:.1f} M multiply-adds"
    draw_architecture(left, fabric.graph, mask, title=title, labels=False)
    plot_pareto(
        rows.assign(millions=rows.macs / 1e6),
        "millions",
        "test_accuracy",
        ax=right,
        group="kind",
        xlabel="million multiply-adds per image",
        ylabel="test accuracy",
        title="CIFAR-10, short study",
    )
    return figure


# ---------------------------------------------------------------- text

TABLES = {
    "README.md": {"chapters": chapter_table, "headlines": headline_table},
    "data/results/README.md": {"results": results_tables},
    "benchmarks/README.md": {"benchmarks": benchmark_tables},
}


def with_tables(name: str, text: str, book: Book) -> str:
    """The text of the file `name` with its generated tables brought up to date."""
    for block, table in TABLES[name].items():
        found = re.search(rf"(<!-- {block}: .*? -->\n).*?(<!-- /{block} -->)", text, re.S)
        if found is None:
            raise ValueError(f"{name} has no place for the table {block!r}")
        text = text[: found.end(1)] + table(book) + text[found.start(2) :]
    return text


def _header(*names: str) -> list[str]:
    return [_row(*names), _row(*["---"] * len(names))]


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _short(value: object) -> str:
    return f"{value:.2g}" if isinstance(value, float) else str(value)


def _spread(values: pd.Series, digits: int) -> str:
    mean = f"{values.mean():.{digits}f}"
    return f"{mean} ± {values.std():.{digits}f}" if len(values) > 1 else mean


def _ranges(seeds: list[int]) -> str:
    consecutive = len(seeds) > 3 and seeds == list(range(seeds[0], seeds[-1] + 1))
    return f"{seeds[0]}…{seeds[-1]}" if consecutive else ", ".join(map(str, seeds))


def _minutes(value: float | str | None) -> str:
    """A number is minutes; a text such as "8 (H200)" also names a device."""
    if value is None:
        return "–"
    return f"{value:g} min" if isinstance(value, int | float) else str(value)


if __name__ == "__main__":
    book = Book.load(Path(__file__).resolve().parents[1])
    for name in TABLES:
        path = book.root / name
        path.write_text(with_tables(name, path.read_text("utf-8"), book), encoding="utf-8")
    if "--cover" in sys.argv[1:]:
        draw_cover(book).savefig(book.root / COVER, dpi=80, metadata={"Software": None})
