"""Tables and picture of the README from recorded files: `python -m nas_core.workbook.readme`."""

from __future__ import annotations

import json
import re
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import torch
from matplotlib.figure import Figure

from nas_core.spaces import resnet_fabric
from nas_core.viz import draw_architecture, plot_pareto
from nas_core.workbook.book import Book
from nas_core.workbook.results import read_results

COVER = "notebooks/images/cover.png"
# Columns that tell the rows of a result apart, seeds apart.
_GROUPS = ("strategy", "kind", "learner", "cost_name", "share", "budget", "lam")


def chapter_table(book: Book) -> str:
    """Ready chapters with their question and measured minutes, then the planned ones' titles."""
    lines = [
        "| chapter | question | read | smoke, 1 core | study | paper |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for chapter in book.ready:
        minutes = [_minutes(chapter.minutes.get(k)) for k in ("read", "smoke", "study", "paper")]
        link = f"[{chapter.number:02d} {chapter.title}](notebooks/{chapter.path.name})"
        lines.append(f"| {link} | {chapter.question} | {' | '.join(minutes)} |")
    planned = [f"{c.number:02d} {c.title}" for c in book.chapters.values() if c.status == "planned"]
    lines += ["", f"Planned: {' · '.join(planned)}."] if planned else []
    return "\n".join(lines) + "\n"


def results_table(book: Book) -> str:
    """Recorded results: mean ± standard deviation over seeds, with the command of each row."""
    lines = [
        "| chapter | result | cost, M macs | accuracy, % | seeds | command |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for record in read_results(root=book.root):
        frame, name = pd.DataFrame(record["rows"]), record["name"]
        if "A" in frame and "stream" in frame:
            streams = frame.stream.nunique()
            name += f", mean of {streams} streams" if streams > 1 else ""
            frame = _over_streams(frame)
        value = next((c for c in ("test_accuracy", "accuracy", "A") if c in frame), None)
        groups = ("model",) if "model" in frame else _GROUPS  # a model's name says its settings
        by = [c for c in groups if c in frame and frame[c].nunique(dropna=False) > 1]
        smoke = record["config"].get("profile") == "smoke"  # the chapter itself shows those
        if value is None or "seed" not in frame or "epoch" in frame or smoke:
            continue
        parts = frame.groupby(by, dropna=False) if by else [((), frame)]
        for key, rows in parts:
            told = [f"{c} {_short(k)}" for c, k in zip(by, key, strict=True) if k == k]
            number = record["chapter"].split("_")[0]
            cells = [
                number,
                f"{name}: {', '.join(told)}" if told else name,
                _spread(rows["macs"] / 1e6, 2) if "macs" in rows else "–",
                _spread(100 * rows[value], 1),
                str(rows.seed.nunique()),
                f"`{record['command']}`",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _over_streams(frame: pd.DataFrame) -> pd.DataFrame:
    """Mean accuracy over the streams of a seed, of learners that went through all of them."""
    runs = frame.groupby(["learner", "seed"]).agg(A=("A", "mean"), streams=("stream", "nunique"))
    return runs[runs.streams == frame.stream.nunique()].reset_index()


def benchmark_table(book: Book) -> str:
    """What the files in benchmarks/results say, a line per measurement."""
    lines = ["| measured | value | compared | command |", "| --- | --- | --- | --- |"]
    for path in sorted((book.root / "benchmarks" / "results").glob("*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        for row in record["rows"]:
            value = f"{row['value']} {row['unit']}".removesuffix(" ratio")
            cells = (row["what"], value, row["versus"], f"`{record['command']}`")
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def draw_cover(book: Book) -> Figure:
    """The picture of the README: an architecture found in chapter 03, and where it came from."""
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


def with_tables(readme: str, book: Book) -> str:
    """The text of the README with its generated tables brought up to date."""
    tables = {"chapters": chapter_table, "results": results_table, "benchmarks": benchmark_table}
    for name, table in tables.items():
        block = re.compile(rf"(<!-- {name}: .*? -->\n).*?(<!-- /{name} -->)", re.S)
        if match := block.search(readme):
            readme = readme[: match.end(1)] + table(book) + readme[match.start(2) :]
    return readme


def _short(value: object) -> str:
    return f"{value:.2g}" if isinstance(value, float) else str(value)


def _spread(values: pd.Series, digits: int) -> str:
    mean = f"{values.mean():.{digits}f}"
    return f"{mean} ± {values.std():.{digits}f}" if len(values) > 1 else mean


def _minutes(value: float | str | None) -> str:
    """Minutes as they are said; text such as "8 (H200)" names a device."""
    if value is None:
        return "–"
    return f"{value:g} min" if isinstance(value, int | float) else str(value)


if __name__ == "__main__":
    book = Book.load()
    path: Path = book.root / "README.md"
    path.write_text(with_tables(path.read_text(encoding="utf-8"), book), encoding="utf-8")
    (book.root / COVER).parent.mkdir(exist_ok=True)
    draw_cover(book).savefig(book.root / COVER, dpi=80, metadata={"Software": None})
