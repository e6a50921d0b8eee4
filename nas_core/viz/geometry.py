"""Where everything goes: one drawing geometry for matplotlib, SVG and the interactive view.

Coordinates are pixels from the top left corner; `Graph.positions` has y growing upwards.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from nas_core.supernet import Graph

# After Okabe and Ito, and lighter twins for dark pages; apart also for colour-blind eyes (tested).
PALETTE = ("#0072B2", "#D07C00", "#009E73", "#C03A00", "#B8578F", "#3E9BD6", "#474747")
DARK_PALETTE = ("#4FA3E3", "#F5B93A", "#2FC79A", "#FF7F45", "#EFA0CD", "#B3E3FF", "#8A8A8A")
_PREFERRED = {
    "conv": 0, "same": 0, "block": 0, "new": 0, "shortcut": 1, "identity": 1, "skip": 1,
    "reused": 1, "projection": 2, "up": 2, "down": 3, "linear": 4, "pool": 5,
    "classifier": 6, "head": 6, "stem": 6,
}  # fmt: skip


@dataclass(frozen=True)
class NodeShape:
    """A rounded box around (x, y); labelled inside when there is room, else next to it."""

    name: str
    x: float
    y: float
    half_width: float
    half_height: float
    role: str  # "source", "sink" or ""
    label: str  # "" where no label is drawn
    label_dy: float  # 0 = inside


@dataclass(frozen=True)
class EdgeShape:
    """A cubic Bézier curve from node border to node border, its arrow head and label position."""

    curve: tuple[tuple[float, float], ...]  # four control points
    head: tuple[tuple[float, float], ...]  # triangle, tip first
    label: tuple[float, float]


@dataclass(frozen=True)
class Scene:
    """Everything that a renderer needs besides probabilities and masks."""

    width: float
    height: float
    nodes: tuple[NodeShape, ...]
    edges: tuple[EdgeShape, ...]
    colours: dict[str, int]  # kind → number in the palettes
    thickness: float  # scale of line widths: dense graphs get thinner lines


def kind_colours(graph: Graph) -> dict[str, int]:
    """A palette number per kind of edge; familiar kinds look the same in every chapter.

    Only the fixed ends (stem, head, classifier) share a colour, a neutral grey.
    """
    kinds = list(dict.fromkeys(edge.kind for edge in graph.edges))
    colours: dict[str, int] = {}
    for kind in kinds:  # wishes first, so that an unfamiliar kind takes no familiar colour
        wish = _PREFERRED.get(kind)
        if wish is not None and (wish == 6 or wish not in colours.values()):
            colours[kind] = wish
    for kind in kinds:
        free = [i for i in range(len(PALETTE)) if i not in colours.values()]
        colours.setdefault(kind, free[0] if free else len(colours) % len(PALETTE))
    return {kind: colours[kind] for kind in kinds}


@lru_cache(maxsize=32)
def scene(graph: Graph) -> Scene:
    """Lay the graph out: deterministic, no edge runs through a node or on top of another edge."""
    at, pitch = _pixels(graph)
    nodes = _node_shapes(graph, at, pitch)
    centres = np.array([at[n] for n in graph.nodes])
    halves = np.array([(n.half_width, n.half_height) for n in nodes])
    curves = _route(graph, centres, halves)
    edges = tuple(
        _finish(c, halves[a], halves[b])
        for c, a, b in zip(curves, graph.edge_sources, graph.edge_targets, strict=True)
    )
    hull = np.concatenate([_points(c, 17) for c in curves] + [centres - halves, centres + halves])
    margin = np.array([14.0, 20.0])
    shift = margin - hull.min(0)
    size = hull.max(0) + shift + margin
    if any(n.label_dy for n in nodes):  # room for a label that is wider than its node
        size[0], shift[0] = size[0] + 30, shift[0] + 15
    return Scene(
        round(float(size[0]), 1),
        round(float(size[1]), 1),
        tuple(_moved_node(n, shift) for n in nodes),
        tuple(
            EdgeShape(_moved(e.curve, shift), _moved(e.head, shift), _moved([e.label], shift)[0])
            for e in edges
        ),
        kind_colours(graph),
        1.0 if len(graph) <= 40 else 0.8 if len(graph) <= 160 else 0.6,
    )


def _pixels(graph: Graph) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Pixel positions, and the smallest distance of neighbours along x and y."""
    raw = np.array([graph.positions[n] for n in graph.nodes], dtype=float) * (1, -1)
    scale, pitch = np.ones(2), np.ones(2)
    limits = ((900.0, 46.0, 118.0), (430.0, 54.0, 88.0))
    for axis, (whole, smallest, largest) in enumerate(limits):
        lines = defaultdict(list)
        for p in raw.round(6):
            lines[p[1 - axis]].append(p[axis])
        gaps = [g for line in lines.values() for g in np.diff(sorted(line)) if g > 0]
        gaps = gaps or [g for g in np.diff(np.unique(raw[:, axis].round(6))) if g > 0]
        gap = min(gaps, default=1.0)
        span = np.ptp(raw[:, axis])
        pitch[axis] = min(max(whole * gap / span if span else largest, smallest), largest)
        scale[axis] = pitch[axis] / gap
    return dict(zip(graph.nodes, raw * scale, strict=True)), pitch


def _node_shapes(graph: Graph, at: dict[str, np.ndarray], pitch: np.ndarray) -> list[NodeShape]:
    widest = max(map(len, graph.nodes)) * 3.4 + 8
    inside = widest <= 0.33 * pitch[0]
    shapes = []
    for node in graph.nodes:
        role = {graph.source: "source", graph.sink: "sink"}.get(node, "")
        half = (max(len(node) * 3.4 + 8, 12), 12.0) if inside else (7.0, 7.0)
        label = node if inside or role else ""
        dy = 0.0 if inside else -16.0
        x, y = map(float, at[node])
        shapes.append(NodeShape(node, x, y, *half, role, label, dy))
    return shapes


@lru_cache
def _weights(n: int) -> np.ndarray:
    """What the control points of a cubic Bézier curve weigh in `n` points of it, `[n, 4]`."""
    t = np.linspace(0, 1, n)
    return np.stack([(1 - t) ** 3, 3 * (1 - t) ** 2 * t, 3 * (1 - t) * t**2, t**3], -1)


def _points(curve: np.ndarray, n: int) -> np.ndarray:
    return _weights(n) @ curve


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

    Short edges choose first. Where a curve runs is marked on a raster, so that the next one sees
    at once on how much of its way it would lie on top of another.
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

    for n, (centre, half) in enumerate(zip(centres, halves, strict=True)):
        low, high = (
            np.ceil((centre + s * (half + 7) - corner) / _CELL).astype(int) for s in (-1, 1)
        )
        owner[low[0] : high[0], low[1] : high[1]] = n + 1
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
        near = _points(best, int(np.clip(lengths[a, b] / 7, 5, 33)))
        taken[cells(near[..., None, :] + _AROUND)] = True
    return [curves[e] for e in range(len(graph))]


def _finish(curve: np.ndarray, leave: np.ndarray, arrive: np.ndarray, n: int = 401) -> EdgeShape:
    """Cut the curve at the borders of its two nodes and put the arrow head on."""
    p = _points(curve, n)

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
    part = _split(curve, first / (n - 1), last / (n - 1))
    middle = p[first + (last - first) * 2 // 5]
    return EdgeShape(_rounded(part), _rounded(head), _rounded([middle])[0])


def _split(curve: np.ndarray, t0: float, t1: float) -> np.ndarray:
    """The part of a cubic between two parameters (de Casteljau, as blossoms)."""

    def blossom(r: float, s: float, t: float) -> np.ndarray:
        q = curve
        for u in (r, s, t):
            q = (1 - u) * q[:-1] + u * q[1:]
        return q[0]

    return np.array(
        [blossom(t0, t0, t0), blossom(t0, t0, t1), blossom(t0, t1, t1), blossom(t1, t1, t1)]
    )


def _rounded(points) -> tuple[tuple[float, float], ...]:
    return tuple((round(float(x), 1), round(float(y), 1)) for x, y in points)


def _moved(points, shift: np.ndarray) -> tuple[tuple[float, float], ...]:
    return _rounded([(x + shift[0], y + shift[1]) for x, y in points])


def _moved_node(n: NodeShape, shift: np.ndarray) -> NodeShape:
    x, y = _moved([(n.x, n.y)], shift)[0]
    return NodeShape(n.name, x, y, n.half_width, n.half_height, n.role, n.label, n.label_dy)
