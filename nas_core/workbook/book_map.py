"""The map of the book: parts as rows, chapters as boxes, and what to read before each."""

from __future__ import annotations

import textwrap

from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch

from nas_core.workbook.book import Book, Chapter

# Okabe-Ito colours, lightened: distinguishable in every kind of colour vision.
_PART_COLOURS = ("#E6E6E6", "#BFDDF0", "#F7D9A8", "#BFE3D6", "#EBC9DD", "#F3F0B4")
_WIDTH, _HEIGHT, _STEP, _ROW = 1.72, 0.72, 2.0, 1.3


def draw_book(ax: Axes, book: Book) -> None:
    """Draw parts and chapters of `book`; chapters that are not ready yet have a dashed border.

    An arrow leads from a chapter to its neighbour that needs it; needs further away are written
    below the box.
    """
    rows = {part: [c for c in book.chapters.values() if c.part == part] for part in book.parts}
    rows = {part: chapters for part, chapters in rows.items() if chapters}
    place: dict[str, tuple[float, float]] = {}
    colour: dict[str, str] = {}
    for row, (part, chapters) in enumerate(rows.items()):
        y = -row * _ROW
        numeral = "" if part == "start" else f"Part {part}\n"
        title = "\n".join(textwrap.wrap(book.parts[part], 12))
        ax.text(-1.35, y, numeral + title, ha="right", va="center", fontsize=9, weight="bold")
        for column, chapter in enumerate(chapters):
            place[chapter.name] = (column * _STEP, y)
            colour[chapter.name] = _PART_COLOURS[row % len(_PART_COLOURS)]
    for chapter in book.chapters.values():
        x, y = place[chapter.name]
        far = []
        for before in chapter.needs:
            if place[before] == (x - _STEP, y):
                ax.annotate(
                    "",
                    (x - _WIDTH / 2, y),
                    (x - _STEP + _WIDTH / 2, y),
                    arrowprops={
                        "arrowstyle": "-|>",
                        "color": "#666666",
                        "shrinkA": 0,
                        "shrinkB": 0,
                    },
                )
            else:
                far.append(f"{book.chapters[before].number:02d}")
        _box(ax, chapter, x, y, colour[chapter.name], far)
    right = max(x for x, _ in place.values()) + _WIDTH / 2 + 0.15
    ax.set(xlim=(-2.7, right), ylim=(-(len(rows) - 1) * _ROW - 0.7, 0.7))
    ax.set_axis_off()


def _box(ax: Axes, chapter: Chapter, x: float, y: float, colour: str, far: list[str]) -> None:
    ready = chapter.status == "ready"
    ax.add_patch(
        FancyBboxPatch(
            (x - _WIDTH / 2, y - _HEIGHT / 2),
            _WIDTH,
            _HEIGHT,
            boxstyle="round,pad=0,rounding_size=0.1",
            facecolor=colour if ready else "white",
            edgecolor="#333333" if ready else "#777777",
            linestyle="-" if ready else "--",
            zorder=2,
        )
    )
    words = "\n".join(textwrap.wrap(f"{chapter.number:02d} {chapter.title}", 17))
    ink = "black" if ready else "#555555"
    ax.text(x, y, words, ha="center", va="center", fontsize=7, color=ink, zorder=3)
    if far:
        below = y - _HEIGHT / 2 - 0.16
        ax.text(x, below, f"after {', '.join(far)}", ha="center", fontsize=6.5, color="#555555")
