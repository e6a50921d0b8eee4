"""Layout: one geometry for the matplotlib drawing and the interactive view.

Coordinates are pixels from the top left corner; `Graph.positions` has y growing upwards.
"""

from __future__ import annotations

from collections import defaultdict
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from nas_core.supernet import Graph

# After Okabe and Ito, and lighter ones for dark pages; color-blind readers can tell them apart.
PALETTE = ("#0072B2", "#D07C00", "#009E73", "#C03A00", "#B8578F", "#3E9BD6", "#474747")
DARK_PALETTE = ("#4FA3E3", "#F5B93A", "#2FC79A", "#FF7F45", "#EFA0CD", "#B3E3FF", "#8A8A8A")
_PREFERRED = {
    "conv": 0, "same": 0, "block": 0, "new": 0, "shortcut": 1, "identity": 1, "skip": 1,
    "reused": 1, "projection": 2, "up": 2, "down": 3, "linear": 4, "pool": 5, "stem": 5,
    "classifier": 6, "head": 6,
}  # fmt: skip
_LAST = ("classifier", "head", "select")  # at the end of a legend, as at the end of a network


class NodeShape(NamedTuple):
    """A rounded box around (x, y)."""

    name: str
    x: float
    y: float
    half_width: float
    half_height: float
    role: str  # "source", "sink" or ""
    label: str  # "" where no label is drawn
    label_dy: float  # 0: inside the box


class EdgeShape(NamedTuple):
    """A cubic Bézier curve from border to border, its arrow head and label position."""

    curve: tuple[tuple[float, float], ...]  # four control points
    head: tuple[tuple[float, float], ...]  # triangle, tip first
    label: tuple[float, float]


class Scene(NamedTuple):
    """What a renderer needs besides probabilities and masks."""

    width: float
    height: float
    nodes: tuple[NodeShape, ...]
    edges: tuple[EdgeShape, ...]
    colours: dict[str, int]  # kind → number in the palettes
    thickness: float  # scale of line widths: dense graphs get thinner lines


def kind_colours(graph: Graph) -> dict[str, int]:
    """Palette number per kind of edge, in the order of the legend; the same in every chapter."""
    kinds = list(dict.fromkeys(edge.kind for edge in graph.edges))
    colours: dict[str, int] = {}
    for kind in kinds:  # preferences first, so that an unfamiliar kind takes no familiar colour
        if (preferred := _PREFERRED.get(kind, -1)) not in (-1, *colours.values()):
            colours[kind] = preferred
    for kind in kinds:
        free = [i for i in range(len(PALETTE)) if i not in colours.values()]
        colours.setdefault(kind, free[0] if free else len(colours) % len(PALETTE))
    return {kind: colours[kind] for kind in sorted(kinds, key=_LAST.__contains__)}


@lru_cache(maxsize=32)
def scene(graph: Graph) -> Scene:
    """Lay the graph out: deterministic, no edge runs through a node or on top of another edge."""
    centres, pitch = _pixels(graph)
    labels, halves = _boxes(graph, pitch)
    curves = _route(graph, centres, halves)
    hull = np.concatenate([_weights(17) @ c for c in curves] + [centres - halves, centres + halves])
    dots = halves[0, 0] == _DOT  # names stand above them
    margin = np.array([29.0 if dots else 14.0, 20.0])
    shift = margin - hull.min(0)
    width, height = _rounded([hull.max(0) + shift + margin])[0]
    roles = {graph.source: "source", graph.sink: "sink"}
    boxes = zip(graph.nodes, _rounded(centres + shift), halves.tolist(), labels, strict=True)
    nodes = [
        NodeShape(name, x, y, wide, high, roles.get(name, ""), label, -16.0 if dots else 0.0)
        for name, (x, y), (wide, high), label in boxes
    ]
    ends = zip(curves, graph.edge_sources, graph.edge_targets, strict=True)
    edges = [_finish(c, halves[a], halves[b], shift) for c, a, b in ends]
    thickness = 1.0 if len(graph) <= 40 else 0.8 if len(graph) <= 160 else 0.6
    return Scene(width, height, tuple(nodes), tuple(edges), kind_colours(graph), thickness)


def _pixels(graph: Graph) -> tuple[np.ndarray, np.ndarray]:
    """Pixel positions `[N, 2]`, and the smallest distance of neighbours along x and y."""
    raw = np.array([graph.positions[node] for node in graph.nodes], dtype=float) * (1, -1)
    if not np.isfinite(raw).all():
        raise ValueError(f"{graph.name}: positions must be finite numbers")
    pitch = np.ones(2)
    # size of the picture, smallest and largest distance of neighbours
    for axis, whole, smallest, largest in ((0, 900.0, 46.0, 118.0), (1, 430.0, 38.0, 88.0)):
        lines = defaultdict(list)
        for p in raw.round(6):
            lines[p[1 - axis]].append(p[axis])
        gaps = [g for line in lines.values() for g in np.diff(sorted(line)) if g > 0]
        gaps = gaps or [g for g in np.diff(np.unique(raw[:, axis].round(6))) if g > 0]
        gap, span = min(gaps, default=1.0), np.ptp(raw[:, axis])
        pitch[axis] = min(max(whole * gap / span if span else largest, smallest), largest)
        raw[:, axis] *= pitch[axis] / gap
    return raw, pitch


def _boxes(graph: Graph, pitch: np.ndarray) -> tuple[list[str], np.ndarray]:
    """Label and half size `[N, 2]` of every node: names, else their last parts (4 for "1·1·4").

    Where those do not fit either, nodes are dots, and only source and sink have a label.
    """
    for names in (graph.nodes, [node.rpartition("·")[2] for node in graph.nodes]):
        if max(map(len, names)) * 3.4 + 8 <= 0.33 * pitch[0]:
            height = 12.0 if pitch[1] >= 50 else 9.0
            return list(names), np.array([(max(len(n) * 3.4 + 8, 12), height) for n in names])
    ends = (graph.source, graph.sink)
    return [n if n in ends else "" for n in graph.nodes], np.full((len(graph.nodes), 2), _DOT)


def _basis(t: np.ndarray) -> np.ndarray:
    """Weights `[n, 4]` of the control points of a cubic Bézier curve at `t` `[n]`."""
    return np.stack([(1 - t) ** 3, 3 * (1 - t) ** 2 * t, 3 * (1 - t) * t**2, t**3], -1)


@lru_cache
def _weights(n: int) -> np.ndarray:
    return _basis(np.linspace(0, 1, n))


_DOT = 7.0  # radius of a node whose name does not fit inside
_BENDS = 16.0 * np.array([0, *[s * k for k in range(1, 19) for s in (1, -1)]])
_INNER = _weights(41)[5:-5]
_CELL, _REACH = 3.0, 420.0  # pixels: raster, and how far a curve may leave the nodes' hull
_AROUND = _CELL * np.stack(np.meshgrid([-1, 0, 1], [-1, 0, 1]), -1).reshape(-1, 2)


def _bow(a: np.ndarray, b: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """Curves `[..., 4, 2]` whose middles are `offset` pixels to the side (up for rightwards)."""
    along = b - a
    normal = np.array([along[1], -along[0]]) / max(float(np.hypot(*along)), 1e-9)
    lift = normal * offset[..., None] * 4 / 3
    inner = [a + along * 0.22 + lift, a + along * 0.78 + lift]
    return np.stack([np.broadcast_to(a, lift.shape), *inner, np.broadcast_to(b, lift.shape)], -2)


def _route(graph: Graph, centres: np.ndarray, halves: np.ndarray) -> list[np.ndarray]:
    """Curves between centres: as straight as possible, clear of other nodes and earlier edges.

    Short edges come first. Curves are marked on a raster, on which later curves see them.
    """
    twins = defaultdict(list)
    for e, pair in enumerate(zip(graph.edge_sources, graph.edge_targets, strict=True)):
        twins[pair].append(e)
    lengths = {p: float(np.hypot(*(centres[p[1]] - centres[p[0]]))) for p in twins}
    corner = centres.min(0) - _REACH
    size = np.ceil((centres.max(0) + _REACH - corner) / _CELL).astype(int)
    taken, owner = np.zeros(size, dtype=bool), np.zeros(size, dtype=int)

    def cells(points: np.ndarray) -> tuple[np.ndarray, ...]:
        at = np.clip(((points - corner) / _CELL).astype(int), 0, size - 1)
        return at[..., 0], at[..., 1]

    for n, (at, half) in enumerate(zip(centres - corner, halves + 7, strict=True)):
        left, top, right, bottom = np.ceil(np.r_[at - half, at + half] / _CELL).astype(int)
        owner[left:right, top:bottom] = n + 1
    curves: dict[int, np.ndarray] = {}
    for a, b in sorted(twins, key=lambda p: (round(lengths[p], 3), p)):
        ends = centres[[a, b]]
        lanes = 22.0 * (np.arange(len(twins[a, b])) - (len(twins[a, b]) - 1) / 2)
        for bends in (_BENDS[:1], _BENDS):
            p = _INNER @ _bow(ends[0], ends[1], bends[:, None] + lanes)  # [bend, lane, point, xy]
            at = cells(p)
            hit = (owner[at] > 0) & (owner[at] != a + 1) & (owner[at] != b + 1)
            free = (((p[..., None, :] - ends) ** 2).sum(-1) > 34**2).all(-1)
            beside = (free & taken[at]).sum(2)
            beside[beside <= 5] = 0  # crossings are fine
            detour = np.abs(bends) / 20 * (1 + 2 * np.abs(bends) / lengths[a, b])
            price = detour + (100 * hit.sum(2) + 1.6 * beside).sum(1)
            if price[0] == 0:
                break  # straight
        best = _bow(ends[0], ends[1], bends[price.argmin()] + lanes)
        curves.update(zip(twins[a, b], best, strict=True))
        near = _weights(int(np.clip(lengths[a, b] / 7, 5, 33))) @ best
        taken[cells(near[..., None, :] + _AROUND)] = True
    return [curves[e] for e in range(len(graph))]


def _finish(curve: np.ndarray, leave: np.ndarray, arrive: np.ndarray, shift: np.ndarray):
    """Cut the curve at the borders of its two nodes, add the arrow head, move all by `shift`."""
    curve, n = curve + shift, 401
    p = _weights(n) @ curve

    def cut(points: np.ndarray, half: np.ndarray, *gaps: float) -> list[int]:
        """Number of points that lie within the first one's rounded box or `gap` of it."""
        core = half - half.min()  # a pill: all points within `radius` of a line
        far = np.hypot(*np.maximum(np.abs(points - points[0]) - core, 0).T) - half.min()
        return [int((far > gap).argmax()) for gap in gaps]  # 0 where the curve never leaves

    (first,) = cut(p[: n // 2], leave, 1.5)
    tip, last = (n - 1 - i for i in cut(p[: n // 2 : -1], arrive, 1.5, 8.5))
    direction = p[tip] - p[last]
    direction = direction / max(float(np.hypot(*direction)), 1e-9)
    side = np.array([-direction[1], direction[0]])
    base = p[tip] - 7.5 * direction
    head = (p[tip], base + 3.8 * side, base - 3.8 * side)
    # the control points of a part are those whose curve passes through the part's points
    ends = np.linspace(first, last, 4) / (n - 1)
    part = np.linalg.solve(_weights(4), _basis(ends) @ curve)
    middle = p[first + (last - first) * 2 // 5]
    return EdgeShape(_rounded(part), _rounded(head), *_rounded([middle]))


def _rounded(points) -> tuple[tuple[float, float], ...]:
    return tuple((round(float(x), 1), round(float(y), 1)) for x, y in points)


def graph_of(space: Any) -> Graph:
    """The graph of a super-network, of an architecture, or the graph itself."""
    graph = space if isinstance(space, Graph) else getattr(space, "graph", None)
    if not isinstance(graph, Graph):
        found = type(space).__name__
        raise TypeError(f"expected a SuperNetwork, Architecture or Graph, got {found}")
    return graph


def check_probabilities(graph: Graph, values: Any) -> Tensor:
    """`values` as float `[E]`; ValueError for another length or values outside [0, 1]."""
    p = torch.as_tensor(values).detach().cpu().float()
    if p.shape != (len(graph),):
        told = f"probabilities of shape {list(p.shape)} do not fit {graph.name}"
        raise ValueError(f"{told}: expected [{len(graph)}]")
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"probabilities lie in [0, 1], got {p.min():.3g} … {p.max():.3g}")
    return p


def short(value: float, unit: str = "") -> str:
    """40551168 → "40.6 M": three digits and a prefix, as on the page."""
    prefixes = (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")
    scale, prefix = next((s for s in prefixes if abs(value) >= s[0]), (1.0, ""))
    return f"{value / scale:.3g} {prefix}{' ' if prefix and unit else ''}{unit}".strip()
