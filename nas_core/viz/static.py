"""Still pictures of architectures in matplotlib axes, the same bytes every time."""

from __future__ import annotations

import io
from functools import cache, partial
from typing import Any

import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyBboxPatch, PathPatch, Polygon
from matplotlib.path import Path as Curve
from matplotlib.patheffects import Normal, Stroke
from PIL import Image
from torch import Tensor

from nas_core.viz.geometry import PALETTE, Scene, check_probabilities, graph_of, scene

# Names come from users: "$" in them is a character and starts no formula.
plain_text = partial(rc_context, {"text.parse_math": False})
_INK, _FAINT, _SOFT = "#333333", "#BDBDBD", "#757575"

# Per state of an edge: colour, width, opacity, dashes and height in the stack.
_STATES: dict[str, Any] = {
    "off": ("#BDBDBD", 1.1, 1.0, (0, (3, 3)), 1),
    "dead": ("#999999", 1.5, 0.9, (0, (1, 1.2)), 2),  # kept, but on no path
    "live": (None, 2.6, 1.0, "solid", 3),
}


def _legend(s: Scene) -> tuple[list[tuple[str, str]], int, float]:
    """Kinds with their colours, how many stand side by side, and the pixels that each takes."""
    kinds = [(kind or "other", PALETTE[c]) for kind, c in s.colours.items()]
    if len(kinds) < 2:
        return [], 1, 0.0
    pitch = 54 + 6.6 * max(len(kind) for kind, _ in kinds)
    rows = -(-len(kinds) // max(1, int(s.width // pitch)))
    return kinds, -(-len(kinds) // rows), pitch


@plain_text()
def draw_architecture(
    ax: Axes, graph: Any, mask: Tensor | None = None, probabilities: Any = None, *,
    title: str = "", labels: bool | None = None, legend: bool = True,
) -> Axes:  # fmt: skip
    """Draw a `Graph`, `SuperNetwork` or `Architecture` into matplotlib axes.

    Args:
        mask: bool `[E]`; edges that are off are thin and dashed, kept ones on no path grey.
        probabilities: `[E]`; width and opacity of the edges.
        labels: write the probabilities beside the edges; by default up to 30 edges.
    """
    if mask is None and hasattr(graph, "kept"):
        mask = graph.mask
    graph = graph_of(graph)
    p = None if probabilities is None else check_probabilities(graph, probabilities)
    s = scene(graph)
    kept = torch.ones(len(graph)).bool() if mask is None else graph.check_mask(mask)[0]
    live, lit = graph.reachable(kept), set()
    for e, (shape, info) in enumerate(zip(s.edges, graph.edges, strict=True)):
        state = "live" if live[e] else "dead" if kept[e] else "off"
        colour, width, alpha, dashes, z = _STATES[state]
        if state == "live":
            lit |= {info.source, info.target}
            colour = PALETTE[s.colours[info.kind]]
            if p is not None:
                width, alpha = 1.0 + 4.5 * float(p[e]), 0.35 + 0.65 * float(p[e])
        path = Curve(shape.curve, [Curve.MOVETO, *[Curve.CURVE4] * 3])
        look: dict[str, Any] = {"fc": "none", "ec": colour, "ls": dashes, "capstyle": "butt"}
        ax.add_patch(PathPatch(path, lw=0.75 * width * s.thickness, alpha=alpha, zorder=z, **look))
        ax.add_patch(Polygon(shape.head, fc=colour, ec="none", alpha=alpha, zorder=z))
        if p is not None and (len(graph) <= 30 if labels is None else labels):
            ax.text(
                *shape.label, f"{p[e]:.2f}", ha="center", va="center", fontsize=6.5, zorder=5,
                color=_INK if state == "live" else _SOFT,
                bbox={"boxstyle": "round,pad=0.12", "fc": "white", "ec": "none", "alpha": 0.85},
            )  # fmt: skip
    for n in s.nodes:
        line, text = (_INK, _INK) if n.name in lit else (_FAINT, _SOFT)
        fill, w, h = line if n.role else "white", n.half_width, n.half_height
        corner = f"round,pad=0,rounding_size={min(h, w)}"
        box = FancyBboxPatch((n.x - w, n.y - h), 2 * w, 2 * h, corner)
        box.set(facecolor=fill, edgecolor=line, linewidth=0.9, zorder=6)
        ax.add_patch(box)
        if n.label:
            above = n.label_dy != 0
            ax.text(
                n.x, n.y + n.label_dy, n.label, ha="center", va="center", fontsize=7.5, zorder=7,
                color="white" if n.role and not above else text,
                path_effects=[Stroke(linewidth=2, foreground="white"), Normal()] if above else None,
            )  # fmt: skip
    kinds, columns, _ = _legend(s)
    if legend and kinds:
        handles = [Line2D([], [], color=colour, lw=2.2, label=kind) for kind, colour in kinds]
        where: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, 0.0)}
        ax.legend(handles=handles, ncols=columns, frameon=False, fontsize=8, **where)
    ax.set(xlim=(0, s.width), ylim=(s.height, 0), aspect="equal")
    ax.set_axis_off()
    ax.title.set_parse_math(False)  # made together with the axes
    if title:
        ax.set_title(title, fontsize=10, color=_INK)
    return ax


def architecture_figure(
    graph: Any, *args: Any, title: str = "", legend: bool = True, left: float = 0.0,
    note: str = "", **kwargs: Any,
) -> Figure:  # fmt: skip
    """`draw_architecture` in a figure of its size, `left` inches free, a small `note` below."""
    s, lines = scene(graph_of(graph)), title.split("\n") if title else []
    kinds, columns, pitch = _legend(s) if legend else ([], 1, 0.0)
    rows = -(-len(kinds) // columns)
    below = (0.12 + 0.18 * rows if kinds else 0.04) + (0.16 if note else 0.0)
    wide = max(s.width / 100, pitch / 100, 0.085 * max(map(len, lines), default=0) + 0.2)
    width, height = wide + left, s.height / 100 + below + 0.06 + 0.19 * len(lines)
    figure = Figure(figsize=(width, height))
    ax = figure.add_axes((left / width, below / height, wide / width, s.height / 100 / height))
    draw_architecture(ax, graph, *args, title=title, legend=legend, **kwargs)
    ax.title.set_y(1.0)  # in the space reserved for it
    figure.text(0.99, 0.04 / height, note, fontsize=6.5, color=_SOFT, ha="right")
    return figure


@cache
def _still_colours() -> Image.Image:
    """The colours of a graph's picture: greys, and the palette in four opacities over white."""
    shades = [[g, g, g] for g in range(0, 256, 17)]
    for colour in PALETTE[:-1]:  # the last one is a grey
        rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        shades += [[round(255 + a * (c - 255)) for c in rgb] for a in (1, 0.75, 0.5, 0.25)]
    image = Image.new("P", (1, 1))
    image.putpalette([value for shade in shades for value in shade])
    return image


def to_png(figure: Figure, dpi: int = 80, small: bool = False) -> bytes:
    """PNG bytes of a figure without dates and versions; `small`: in the colours of a graph."""
    whole, few = io.BytesIO(), io.BytesIO()
    figure.savefig(whole, format="png", dpi=dpi, facecolor="white", metadata={"Software": None})
    if small:
        image = Image.open(whole).convert("RGB")
        image = image.quantize(palette=_still_colours(), dither=Image.Dither.NONE)
        image.save(few, "PNG", optimize=True)
    return (few if small else whole).getvalue()


def fewer_colours(png: bytes) -> bytes:
    """The same picture in at most 256 colours, if that is smaller; enough for a chart."""
    image, few = Image.open(io.BytesIO(png)), io.BytesIO()
    if image.mode == "P":
        return png
    image.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(few, "PNG", optimize=True)
    return min(png, few.getvalue(), key=len)
