"""Still pictures of architectures: matplotlib axes and SVG text, the same bytes every time."""

from __future__ import annotations

import io
from functools import cache
from html import escape
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyBboxPatch, PathPatch, Polygon
from matplotlib.path import Path as Curve
from PIL import Image
from torch import Tensor

from nas_core.supernet import Graph
from nas_core.viz.geometry import PALETTE, Scene, scene

_INK, _FAINT, _DEAD, _SOFT = "#333333", "#BDBDBD", "#999999", "#757575"


def graph_of(space: Any) -> Graph:
    """The graph of a super-network, of an architecture, or the graph itself."""
    graph = space if isinstance(space, Graph) else getattr(space, "graph", None)
    if not isinstance(graph, Graph):
        raise TypeError(
            f"expected a SuperNetwork, Architecture or Graph, got {type(space).__name__}"
        )
    return graph


def check_probabilities(graph: Graph, values: Any) -> Tensor:
    """`values` as float `[E]` between 0 and 1.

    Raises:
        ValueError: for another length or values outside [0, 1].
    """
    p = torch.as_tensor(values).detach().cpu().float()
    if p.shape != (len(graph),):
        raise ValueError(
            f"probabilities of shape {list(p.shape)} do not fit {graph.name}: "
            f"expected [{len(graph)}]"
        )
    if not bool(((p >= 0) & (p <= 1)).all()):
        raise ValueError(f"probabilities lie in [0, 1], got {p.min():.3g} … {p.max():.3g}")
    return p


def edge_states(graph: Graph, mask: Tensor | None) -> list[str]:
    """Per edge "live" (on a path from source to sink), "dead" (kept, but on none) or "off"."""
    if mask is None:
        return ["live"] * len(graph)
    live = graph.reachable(mask).tolist()
    kept = graph.check_mask(mask)[0].tolist()
    return ["live" if a else "dead" if k else "off" for a, k in zip(live, kept, strict=True)]


def lit_nodes(graph: Graph, states: list[str]) -> set[str]:
    """The nodes that a live edge touches."""
    live = [edge for edge, state in zip(graph.edges, states, strict=True) if state == "live"]
    return {edge.source for edge in live} | {edge.target for edge in live}


def _style(state: str, p: float | None, colour: str, s: Scene) -> tuple[str, float, float]:
    """Colour, width and opacity of an edge."""
    if state == "off":
        return _FAINT, 1.1 * s.thickness, 1.0
    if state == "dead":
        return _DEAD, 1.5 * s.thickness, 0.9
    if p is None:
        return colour, 2.6 * s.thickness, 1.0
    return colour, (1.0 + 4.5 * p) * s.thickness, 0.35 + 0.65 * p


def _legend(s: Scene) -> tuple[list[tuple[str, str]], int, float]:
    """Kinds with their colours, how many stand side by side, and the pixels that each takes."""
    kinds = [(kind or "other", PALETTE[c]) for kind, c in s.colours.items()]
    if len(kinds) < 2:
        return [], 1, 0.0
    pitch = 54 + 6.6 * max(len(kind) for kind, _ in kinds)
    rows = -(-len(kinds) // max(1, int(s.width // pitch)))
    return kinds, -(-len(kinds) // rows), pitch


def _labels(labels: bool | None, graph: Graph, probabilities: Tensor | None) -> bool:
    return probabilities is not None and (len(graph) <= 30 if labels is None else labels)


def draw_architecture(
    ax: Axes,
    graph: Any,
    mask: Tensor | None = None,
    probabilities: Any = None,
    *,
    title: str = "",
    labels: bool | None = None,
    legend: bool = True,
) -> Axes:
    """Draw an architecture into matplotlib axes.

    Args:
        graph: `Graph`, `SuperNetwork` or `Architecture` (whose mask is then the default).
        mask: bool `[E]`; edges that are off are thin and dashed, kept ones on no path grey.
        probabilities: `[E]`; width and opacity of the edges.
        labels: write the probabilities beside the edges; by default up to 30 edges.
        legend: of the kinds of edges, when there are several.
    """
    if mask is None and hasattr(graph, "kept"):
        mask = graph.mask
    graph = graph_of(graph)
    p = None if probabilities is None else check_probabilities(graph, probabilities)
    s = scene(graph)
    with_labels = _labels(labels, graph, p)
    states = edge_states(graph, mask)
    lit = lit_nodes(graph, states)
    for e, (shape, state) in enumerate(zip(s.edges, states, strict=True)):
        base = PALETTE[s.colours[graph.edges[e].kind]]
        colour, width, alpha = _style(state, None if p is None else float(p[e]), base, s)
        z = {"off": 1, "dead": 2, "live": 3}[state]
        path = Curve(shape.curve, [Curve.MOVETO, Curve.CURVE4, Curve.CURVE4, Curve.CURVE4])
        patch = PathPatch(path, fc="none", ec=colour, lw=width * 0.75, alpha=alpha, zorder=z)
        patch.set_capstyle("butt")
        if state != "live":
            patch.set_linestyle((0, (3, 3)) if state == "off" else (0, (1, 1.2)))
        ax.add_patch(patch)
        ax.add_patch(Polygon(shape.head, fc=colour, ec="none", alpha=alpha, zorder=z))
        if with_labels:
            assert p is not None
            ax.text(
                *shape.label, f"{p[e]:.2f}", ha="center", va="center", fontsize=6.5, zorder=5,
                color=_INK if state == "live" else _SOFT,
                bbox={"boxstyle": "round,pad=0.12", "fc": "white", "ec": "none", "alpha": 0.85},
            )  # fmt: skip
    for n in s.nodes:
        line, text = (_INK, _INK) if n.name in lit else (_FAINT, _SOFT)
        fill, h = line if n.role else "white", n.half_height
        corner = f"round,pad=0,rounding_size={min(h, n.half_width)}"
        box = FancyBboxPatch((n.x - n.half_width, n.y - h), 2 * n.half_width, 2 * h, corner)
        box.set(facecolor=fill, edgecolor=line, linewidth=0.9, zorder=6)
        ax.add_patch(box)
        if n.label:
            ink = "white" if n.role and not n.label_dy else text
            ax.text(
                n.x, n.y + n.label_dy, n.label, ha="center", va="center", fontsize=7.5, color=ink,
                zorder=7,
            )  # fmt: skip
    kinds, columns, _ = _legend(s)
    if legend and kinds:
        handles = [Line2D([], [], color=colour, lw=2.2, label=kind) for kind, colour in kinds]
        ax.legend(
            handles=handles, loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=columns,
            frameon=False, fontsize=8,
        )  # fmt: skip
    ax.set(xlim=(0, s.width), ylim=(s.height, 0), aspect="equal")
    ax.set_axis_off()
    if title:
        ax.set_title(title, fontsize=10, color=_INK)
    return ax


def architecture_figure(
    graph: Any, *args: Any, title: str = "", legend: bool = True, left: float = 0.0, **kwargs: Any
) -> Figure:
    """`draw_architecture` in a figure of fitting size (never shown by itself, no pyplot state).

    Args:
        title: one or several lines.
        left: inches that stay free beside the graph.
    """
    s = scene(graph_of(graph))
    lines = title.split("\n") if title else []
    kinds, columns, pitch = _legend(s) if legend else ([], 1, 0.0)
    above, below = 0.06 + 0.19 * len(lines), 0.04
    if kinds:
        below = 0.12 + 0.18 * -(-len(kinds) // columns)
    longest = max(map(len, lines), default=0)
    width = max(s.width / 100, pitch / 100, 0.085 * longest + 0.2)
    height = s.height / 100 + above + below
    figure = Figure(figsize=(width + left, height))
    ax = figure.add_axes((left / (width + left), below / height, width / (width + left),
                          s.height / 100 / height))  # fmt: skip
    draw_architecture(ax, graph, *args, title=title, legend=legend, **kwargs)
    ax.title.set_y(1.0)  # the place that was left for it, whatever else there is
    return figure


def short(value: float, unit: str = "") -> str:
    """40551168 → "40.6 M": three digits and a prefix, as on the page."""
    scale, prefix = next(
        (s for s in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")) if abs(value) >= s[0]),
        (1.0, ""),
    )
    return f"{value / scale:.3g} {prefix}{' ' if prefix and unit else ''}{unit}".strip()


@cache
def _still_colours() -> Image.Image:
    """What pictures of graphs consist of: greys, the palette, both thinned out by white."""
    shades = [[g, g, g] for g in range(0, 256, 17)]
    for colour in PALETTE[:-1]:  # the last one is a grey
        rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        shades += [[round(255 + a * (c - 255)) for c in rgb] for a in (1, 0.75, 0.5, 0.25)]
    image = Image.new("P", (1, 1))
    image.putpalette([value for shade in shades for value in shade])
    return image


def to_png(figure: Figure, dpi: int = 80, small: bool = False) -> bytes:
    """PNG bytes of a figure without dates and versions.

    `small` files know the greys and colours of graphs alone, so that kinds of edges keep theirs.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, facecolor="white", metadata={"Software": None})
    if not small:
        return buffer.getvalue()
    out = io.BytesIO()
    image = Image.open(buffer).convert("RGB")
    image.quantize(palette=_still_colours(), dither=Image.Dither.NONE).save(
        out, "PNG", optimize=True
    )
    return out.getvalue()


def path_data(curve: Any) -> str:
    """Control points as the `d` of an SVG path."""
    (a, *rest) = [f"{x:g},{y:g}" for x, y in curve]
    return f"M{a}C{' '.join(rest)}"


def head_data(head: Any) -> str:
    """An arrow head as the `d` of an SVG path."""
    return f"M{' '.join(f'{x:g},{y:g}' for x, y in head)}Z"


def to_svg(
    graph: Any,
    mask: Tensor | None = None,
    probabilities: Any = None,
    *,
    title: str = "",
    labels: bool | None = None,
) -> str:
    """SVG text of an architecture; same picture as `draw_architecture`, no ids, no dates."""
    if mask is None and hasattr(graph, "kept"):
        mask = graph.mask
    graph = graph_of(graph)
    p = None if probabilities is None else check_probabilities(graph, probabilities)
    s = scene(graph)
    kinds, columns, pitch = _legend(s)
    top = 24.0 if title else 0.0
    height = top + s.height + 18 * -(-len(kinds) // columns) + (4 if kinds else 0)
    width = max(s.width, pitch, 8 * len(title) + 16)
    states = edge_states(graph, mask)
    lit, kept = lit_nodes(graph, states), states.count("live")
    name = escape(title or f"{graph.name}: {kept} of {len(graph)} edges")
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" '
        f'width="{width:g}" height="{height:g}" role="img" aria-label="{name}" '
        f'font-family="sans-serif"><rect width="100%" height="100%" fill="white"/>'
    ]
    if title:
        out.append(
            f'<text x="{width / 2:g}" y="17" text-anchor="middle" font-size="14">{name}</text>'
        )
    out.append(f'<g transform="translate({(width - s.width) / 2:g} {top:g})">')
    drawn, texts = [], []
    for e, (shape, state) in enumerate(zip(s.edges, states, strict=True)):
        base = PALETTE[s.colours[graph.edges[e].kind]]
        colour, stroke, alpha = _style(state, None if p is None else float(p[e]), base, s)
        dash = {"off": ' stroke-dasharray="4 4"', "dead": ' stroke-dasharray="1.5 2"', "live": ""}
        info = graph.edges[e]
        what = escape(f"{info.name} · {info.module}" if info.module else info.name)
        drawn.append(
            (
                ("off", "dead", "live").index(state),
                f'<g opacity="{alpha:.2f}"><title>{what}</title><path d="{path_data(shape.curve)}" '
                f'fill="none" stroke="{colour}" stroke-width="{stroke:.2f}"{dash[state]}/>'
                f'<path d="{head_data(shape.head)}" fill="{colour}"/></g>',
            )
        )
        if _labels(labels, graph, p):
            assert p is not None
            (x, y), ink = shape.label, _INK if state == "live" else _SOFT
            texts.append(
                f'<text x="{x:g}" y="{y + 3:g}" text-anchor="middle" font-size="9" fill="{ink}" '
                f'stroke="white" stroke-width="3" paint-order="stroke">{p[e]:.2f}</text>'
            )
    out += [text for _, text in sorted(drawn, key=lambda d: d[0])] + texts
    for n in s.nodes:
        line, text = (_INK, _INK) if n.name in lit else (_FAINT, _SOFT)
        h, fill = n.half_height, line if n.role else "white"
        out.append(
            f'<rect x="{n.x - n.half_width:g}" y="{n.y - h:g}" width="{2 * n.half_width:g}" '
            f'height="{2 * h:g}" rx="{h:g}" fill="{fill}" stroke="{line}" stroke-width="1.2"/>'
        )
        if n.label:
            ink = "white" if n.role and not n.label_dy else text
            out.append(
                f'<text x="{n.x:g}" y="{n.y + n.label_dy + 3.5:g}" text-anchor="middle" '
                f'font-size="10.5" fill="{ink}">{escape(n.label)}</text>'
            )
    out.append("</g>")
    for i, (kind, colour) in enumerate(kinds):
        row, column = divmod(i, columns)
        x = width / 2 + (column - columns / 2) * pitch + 14
        y = top + s.height + 18 * row + 6
        out.append(
            f'<path d="M{x:g},{y:g}h20" stroke="{colour}" stroke-width="3"/>'
            f'<text x="{x + 26:g}" y="{y + 4:g}" font-size="11" fill="{_INK}">{escape(kind)}</text>'
        )
    return "".join(out) + "</svg>\n"
