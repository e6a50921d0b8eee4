"""The structure of a super-network: a directed acyclic graph without any modules in it.

Samplers, costs, architectures and drawings need the graph only. A set of examples is a Python
integer (bit b is example b), so one pass with an `&` and an `|` per edge serves the whole batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

import networkx as nx
import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class EdgeInfo:
    """One edge (i, j) of E and what is known of its module f_ij."""

    name: str
    source: str
    target: str
    kind: str = ""  # what a drawing colours by: "conv", "shortcut", "down", "up", ...
    module: str = ""  # short description of the module, for readers
    macs: int | None = None  # multiply-adds for one example; None when no input shape was given
    params: int = 0


class Graph:
    """Immutable directed acyclic graph with one source and one sink (thesis section 3.3).

    Masks have the order of `edges`, each of which lies on a path from source (l_1) to sink (l_N).
    `{node: …}`: `positions` are coordinates of a drawing (layered when absent), `shapes` those of
    the outputs for one example, `node_ops` short descriptions of the modules at nodes.
    """

    def __init__(
        self, edges: Sequence[EdgeInfo], source: str, sink: str, *, name: str = "supernet",
        positions: Mapping[str, tuple[float, float]] | None = None,
        shapes: Mapping[str, tuple[int, ...]] | None = None,
        node_ops: Mapping[str, str] | None = None,
    ):  # fmt: skip
        self.name, self.source, self.sink = name, source, sink
        self.edges = tuple(edges)
        self.nodes = _validated_order(self.edges, source, sink)
        self.shapes, self.node_ops = dict(shapes or {}), dict(node_ops or {})
        if unknown := sorted((self.shapes.keys() | self.node_ops.keys()) - set(self.nodes)):
            raise ValueError(f"node_ops or shapes for unknown nodes {unknown}")
        if positions is not None and (missing := sorted(set(self.nodes) - set(positions))):
            raise ValueError(f"positions for every node or for none; they lack {missing[:3]}")
        self._index = {edge.name: e for e, edge in enumerate(self.edges)}
        if len(self._index) < len(self.edges):
            raise ValueError("edge names must be unique; give parallel edges a name each")
        node_id = {node: i for i, node in enumerate(self.nodes)}
        self.edge_sources = tuple(node_id[edge.source] for edge in self.edges)
        self.edge_targets = tuple(node_id[edge.target] for edge in self.edges)
        # Edges sorted so that everything that feeds an edge's source comes before the edge.
        self.order = tuple(sorted(range(len(self.edges)), key=self.edge_sources.__getitem__))
        out = groupby(self.order, key=self.edge_sources.__getitem__)
        self.leaving = *(tuple(edges) for _, edges in out), ()  # edges out of every node
        self._positions = dict(positions) if positions is not None else None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Graph) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __len__(self) -> int:
        return len(self.edges)

    def __repr__(self) -> str:
        return f"Graph({self.name}: {len(self.nodes)} nodes, {len(self.edges)} edges)"

    def index(self, edge: str) -> int:
        """Column of the edge called `edge` in a mask."""
        if edge not in self._index:
            raise ValueError(f"no edge called {edge!r} in {self.name}; see graph.edges")
        return self._index[edge]

    def of_kind(self, *kinds: str) -> list[int]:
        """Numbers of the edges of these kinds, e.g. `graph.of_kind("stem", "head")`."""
        return [e for e, edge in enumerate(self.edges) if edge.kind in kinds]

    @cached_property
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits that name the space: its nodes, its edges in their order,
        their modules with sizes, and the shapes at the nodes. Drawing coordinates do not count."""
        edges = [(e.name, e.source, e.target, e.module, e.macs, e.params) for e in self.edges]
        nodes = [(n, self.node_ops.get(n), self.shapes.get(n)) for n in self.nodes]
        text = repr((self.source, self.sink, edges, nodes))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def require(self, fingerprint: str, name: str, what: str) -> None:
        """Refuse `what` (a sampler, a table, …) unless made for the space of this fingerprint."""
        if fingerprint != self.fingerprint:
            made, here = f"{name!r} ({fingerprint})", f"{self.name!r} ({self.fingerprint})"
            raise ValueError(f"{what} belongs to the space {made}, not to {here}")

    @cached_property
    def macs(self) -> Tensor:
        """Multiply-adds of every edge for one example, int64 `[E]`."""
        if any(edge.macs is None for edge in self.edges):
            raise ValueError(f"multiply-adds of {self.name} are unknown: give it an input_shape")
        return torch.tensor([edge.macs for edge in self.edges], dtype=torch.int64)

    @cached_property
    def params(self) -> Tensor:
        """Number of parameters of every edge, int64 `[E]`."""
        return torch.tensor([edge.params for edge in self.edges], dtype=torch.int64)

    @cached_property
    def positions(self) -> dict[str, tuple[float, float]]:
        """Drawing coordinates; by default x = topological depth, nodes of one depth centred."""
        if self._positions is not None:
            return self._positions
        layers = nx.topological_generations(self.to_networkx())
        return {
            node: (float(x), i - (len(layer) - 1) / 2)
            for x, layer in enumerate(layers)
            for i, node in enumerate(sorted(layer, key=self.nodes.index))
        }

    def to_dict(self) -> dict:
        """Plain lists and numbers that `from_dict` reads back; holds no modules."""
        edges = [vars(edge) for edge in self.edges]
        shapes = {node: list(shape) for node, shape in self.shapes.items()}
        same = {key: getattr(self, key) for key in ("name", "source", "sink", "node_ops")}
        return same | {"edges": edges, "positions": self._positions, "shapes": shapes}

    @classmethod
    def from_dict(cls, record: Mapping) -> Graph:
        """The graph that `to_dict` described."""
        edges = [EdgeInfo(**edge) for edge in record["edges"]]
        shapes = {node: tuple(shape) for node, shape in record["shapes"].items()}
        return cls(**{**record, "edges": edges, "shapes": shapes})

    def to_networkx(self, mask: Tensor | None = None) -> nx.MultiDiGraph:
        """The graph, or the part of it that `mask` `[E]` keeps, as a networkx multigraph."""
        kept = [True] * len(self) if mask is None else self.check_mask(mask)[0].tolist()
        out = nx.MultiDiGraph(name=self.name)
        for edge, keep in zip(self.edges, kept, strict=True):
            if keep:
                attributes = {"kind": edge.kind, "macs": edge.macs, "params": edge.params}
                out.add_edge(edge.source, edge.target, key=edge.name, **attributes)
        return out

    def check_mask(self, mask: Tensor, batch: int | None = None) -> Tensor:
        """`mask` as a `[B, E]` bool tensor; `[E]` becomes `[1, E]`, others are refused."""
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            kind = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
            raise TypeError(f"a mask is a bool tensor, got {kind}; use mask.bool()")
        shape = tuple(mask.shape)
        rows_fit = batch is None or mask.dim() == 1 or shape[0] == batch
        if mask.dim() not in (1, 2) or shape[-1] != len(self) or not rows_fit:
            known = f"[{len(self)}] or [{'B' if batch is None else batch}, {len(self)}]"
            raise ValueError(f"mask {list(shape)} does not fit {self.name}: expected {known}")
        return mask if mask.dim() == 2 else mask.unsqueeze(0)

    def reachable(self, mask: Tensor) -> Tensor:
        """`mask` (bool `[E]` or `[B, E]`) without the edges on no live path from source to sink."""
        kept, alive = self._forward_pass(mask)
        wanted = [0] * len(self.nodes)
        wanted[-1] = alive[-1]
        for e in reversed(self.order):
            kept[e] &= wanted[self.edge_targets[e]]
            wanted[self.edge_sources[e]] |= kept[e]
        return _unpack(kept, mask)

    def connected(self, mask: Tensor) -> tuple[Tensor, Tensor]:
        """`(kept, drawn)`, both like `mask`: edges kept and connected to the input, and all whose
        source is connected, which a connectivity-aware sampler draws (thesis section 3.4.2)."""
        kept, alive = self._forward_pass(mask)
        drawn = [alive[source] for source in self.edge_sources]
        return _unpack(kept, mask), _unpack(drawn, mask)

    def _forward_pass(self, mask: Tensor) -> tuple[list[int], list[int]]:
        """For every edge and every node the set of rows that reach it from the source."""
        rows = self.check_mask(mask)
        kept = _pack(rows)
        alive = [0] * len(self.nodes)
        alive[0] = (1 << len(rows)) - 1  # the source is the first node of the topological order
        for e in self.order:
            kept[e] &= alive[self.edge_sources[e]]
            alive[self.edge_targets[e]] |= kept[e]
        return kept, alive


def _pack(rows: Tensor) -> list[int]:
    """`[B, E]` bool → one integer per edge, bit b = row b."""
    columns = np.packbits(rows.detach().cpu().numpy().T, axis=1, bitorder="little")
    width, raw = columns.shape[1], columns.tobytes()
    return [int.from_bytes(raw[i : i + width], "little") for i in range(0, len(raw), width)]


def _unpack(bits: list[int], like: Tensor) -> Tensor:
    """One integer per edge → bool of the shape and on the device of `like`."""
    batch = like.numel() // len(bits)
    width = (batch + 7) // 8
    raw = np.frombuffer(b"".join(b.to_bytes(width, "little") for b in bits), dtype=np.uint8)
    columns = np.unpackbits(raw.reshape(len(bits), width), axis=1, count=batch, bitorder="little")
    rows = torch.from_numpy(np.ascontiguousarray(columns.T).view(np.bool_))  # [B, E]
    return rows.to(like.device).view(like.shape)


def _validated_order(edges: Sequence[EdgeInfo], source: str, sink: str) -> tuple[str, ...]:
    """Topological order of the nodes; raises on everything that is not one source, one sink."""
    graph = nx.MultiDiGraph([(edge.source, edge.target) for edge in edges])
    for role, node in (("source", source), ("sink", sink)):
        if node not in graph:
            raise ValueError(f"{role} {node!r} is not the end of any edge")
    if not nx.is_directed_acyclic_graph(graph):
        cycle = [step[0] for step in nx.find_cycle(graph)]
        nodes = " → ".join([*cycle, cycle[0]])
        raise ValueError(f"a super-network has no cycles, but these nodes form one: {nodes}")
    # With one source, one sink and no cycle every edge lies on a path between them.
    if starts := [n for n in graph if n != source and not graph.in_degree(n)]:
        raise ValueError(f"only the source {source!r} may lack incoming edges, but so do {starts}")
    if ends := [n for n in graph if n != sink and not graph.out_degree(n)]:
        raise ValueError(f"dead edges: only the sink {sink!r} may lack outgoing edges, not {ends}")
    first_seen = {node: i for i, node in enumerate(graph)}
    return tuple(nx.lexicographical_topological_sort(graph, key=first_seen.__getitem__))
