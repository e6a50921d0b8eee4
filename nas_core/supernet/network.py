"""The super-network: every edge of a graph carries a module, a mask selects edges."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from nas_core.supernet.graph import EdgeInfo, Graph
from nas_core.supernet.modules import call, count_macs, count_params, describe
from nas_core.supernet.rows import gather_rows, sum_rows


class Edge(NamedTuple):
    """An edge as `SuperNetwork` takes it; `(source, target, module)` is enough."""

    source: Any
    target: Any
    module: nn.Module
    name: str = ""
    kind: str = ""


class SuperNetwork(nn.Module):
    """Directed acyclic graph of modules; a mask of edges selects one architecture per example.

    `l_1 = x`, `l_j = op_j( sum_i h_ij f_ij(l_i) )` (thesis eq. 3.7). Only what is selected is
    computed: with a mask `[E]` unselected modules are never called, with `[B, E]` each module (and
    each batch norm) sees just the rows that use it. A row without a live path from source to sink
    gets an all-zero output (for a classifier: the uniform prediction).

    Args:
        edges: `(source, target, module)` tuples or `Edge`s; the order is that of the mask columns.
            A module maps one tensor to one tensor, does not change its input in place and shares
            no parameters with another one.
        node_ops: module applied to the sum at a node, e.g. `{"a": nn.ReLU()}`. Costs count the
            edges only: layers with weights belong on edges.
        input_shape: shape of one example without the batch dimension; needed for multiply-adds.
    """

    def __init__(
        self, edges: Iterable[Edge | tuple], source: Any, sink: Any, *,
        node_ops: Mapping[Any, nn.Module] | None = None,
        input_shape: tuple[int, ...] | None = None, name: str = "supernet",
        positions: Mapping[Any, tuple[float, float]] | None = None,
    ):  # fmt: skip
        super().__init__()
        given = [Edge(*edge) for edge in edges]
        names = _names(given)
        ops = {str(node): op for node, op in (node_ops or {}).items()}
        owners = {f"edge {name}": edge.module for name, edge in zip(names, given, strict=True)}
        _refuse_shared_parameters(owners | {f"the op of node {n}": op for n, op in ops.items()})
        infos = [
            EdgeInfo(n, str(e.source), str(e.target), e.kind, describe(e.module))
            for n, e in zip(names, given, strict=True)
        ]
        places = None if positions is None else {str(k): v for k, v in positions.items()}
        described = {node: describe(op) for node, op in ops.items()}
        ends = str(source), str(sink)
        self.graph = Graph(infos, *ends, name=name, positions=places, node_ops=described)
        self.edge_modules = nn.ModuleList([edge.module for edge in given])
        # Keys of a ModuleDict may not hold dots; the position in the order of nodes always works.
        numbered = {str(i): ops[node] for i, node in enumerate(self.graph.nodes) if node in ops}
        self.node_ops = nn.ModuleDict(numbered)
        if input_shape is not None:
            self.graph = self._profiled(tuple(input_shape))

    @property
    def num_edges(self) -> int:
        return len(self.graph)

    @property
    def input_shape(self) -> tuple[int, ...] | None:
        return self.graph.shapes.get(self.graph.source)

    def node_op(self, node: int) -> nn.Module | None:
        """The module applied to the sum at the node of this number, or None."""
        key = str(node)
        return self.node_ops[key] if key in self.node_ops else None  # noqa: SIM401 (no `get`)

    def forward(
        self, x: Tensor, mask: Tensor | None = None, weights: Tensor | None = None
    ) -> Tensor:
        """Output of the selected architectures, `[B, …]`, for x `[B, *input_shape]`.

        Args:
            mask: bool `[E]` (one architecture), `[B, E]` (one per example) or None (everything).
                Edges on no live path are ignored.
            weights: float `[E]`, a factor for the output of every edge (the mixed operations of
                DARTS), differentiable; edges of weight 0 are not computed.
        """
        graph, batch = self.graph, len(x)
        rows = self._selected(mask, weights, batch)  # [1, E] or [B, E]
        plan = _Plan(graph, rows, batch, x.device)
        if not plan.sizes[-1]:
            return self._dead_output(x)
        # For every node the summands that have arrived, and to which of its rows they belong.
        arrived: dict[int, list[tuple[Tensor, Tensor | None]]] = defaultdict(list)
        arrived[0] = [(gather_rows(x, [plan.live_rows])[0], None)]
        for node, size in enumerate(plan.sizes):  # in topological order
            if not size:
                continue  # no row uses this node
            value = sum_rows(arrived.pop(node), size, graph.nodes[node])  # [size, …]
            if (op := self.node_op(node)) is not None:
                value = call(op, value, f"the op of node {graph.nodes[node]}")
            leaving = plan.leaving[node]
            inputs = gather_rows(value, [plan.taken[e] for e in leaving])
            for e, part in zip(leaving, inputs, strict=True):
                out = call(self.edge_modules[e], part, f"edge {graph.edges[e].name}")  # [n_e, …]
                if weights is not None:
                    out = weights[e] * out
                target = graph.edge_targets[e]
                arrived[target].append((out, plan.put[e]))
                if plan.shared:  # all edges feed the same rows: add at once, to free the summands
                    total = sum_rows(arrived[target], batch, graph.nodes[target])
                    arrived[target] = [(total, None)]
        # `value` is now that of the sink; rows without a live path become zeros.
        return sum_rows([(value, plan.live_rows)], batch)

    def _selected(self, mask: Tensor | None, weights: Tensor | None, batch: int) -> Tensor:
        """The pruned masks, bool `[1, E]` or `[B, E]`."""
        if mask is None:
            mask = torch.ones(self.num_edges, dtype=torch.bool, device="cpu")
            if weights is None:
                return mask.unsqueeze(0)
        if weights is not None:
            if weights.shape != (self.num_edges,):
                fault = f"weights of shape {list(weights.shape)} do not fit {self.graph.name}"
                raise ValueError(f"{fault}: expected [{self.num_edges}]")
            mask = mask & (weights.detach() != 0).to(mask.device)
        return self.graph.reachable(self.graph.check_mask(mask, batch))

    def _dead_output(self, x: Tensor) -> Tensor:
        """Zeros of the output's shape, for a batch in which nothing reaches the sink."""
        shape = self.graph.shapes.get(self.graph.sink)
        if shape is None or tuple(x.shape[1:]) != self.input_shape:
            shape = self._profiled(tuple(x.shape[1:])).shapes[self.graph.sink]
        return x.new_zeros(len(x), *shape)

    def _profiled(self, input_shape: tuple[int, ...]) -> Graph:
        """The graph with multiply-adds, parameters and shapes for this input shape."""
        old = self.graph
        arriving = {old.source: input_shape}
        shapes: dict[str, tuple[int, ...]] = {}
        macs = [0] * len(old)
        for number, node in enumerate(old.nodes):
            shapes[node] = arriving[node]
            if (op := self.node_op(number)) is not None:
                shapes[node] = count_macs(op, arriving[node], f"the op of node {node}")[1]
            if not number and shapes[node] != input_shape:
                raise ValueError(f"the op of the source {node} must keep the shape of its input")
            for e in old.leaving[number]:
                edge = old.edges[e]
                macs[e], out = count_macs(self.edge_modules[e], shapes[node], f"edge {edge.name}")
                known = arriving.setdefault(edge.target, out)
                if known != out:
                    other = f"another edge into {edge.target} gives {list(known)}"
                    fault = f"edge {edge.name} gives shape {list(out)}, but {other}"
                    raise ValueError(f"{fault}; summands must agree")
        params = [count_params(module) for module in self.edge_modules]
        infos = [replace(edge, macs=macs[e], params=params[e]) for e, edge in enumerate(old.edges)]
        return Graph.from_dict(old.to_dict() | {"edges": map(vars, infos), "shapes": shapes})


class _Plan:
    """Which rows go where: computed once per step on the CPU, sent to the device in one copy.

    A node holds the rows whose architecture uses it, in the order of the batch. None stands for
    "all rows of the node": no copy is made then.
    """

    def __init__(self, graph: Graph, rows: Tensor, batch: int, device: torch.device):
        # Per edge: the rows of its source that it takes, and the rows of its target that it feeds.
        self.taken: list[Tensor | None] = [None] * len(graph)
        self.put: list[Tensor | None] = [None] * len(graph)
        self.live_rows: Tensor | None = None  # examples that have a path from source to sink
        used = rows.cpu().numpy().T  # [E, 1] or [E, B]
        counts = used.sum(1).tolist()  # rows of every edge
        self.leaving = [[e for e in edges if counts[e]] for edges in graph.leaving]
        self.shared = len(rows) == 1
        if self.shared:  # one architecture: a node holds the whole batch or nothing
            self.sizes = [batch if edges else 0 for edges in self.leaving]
            self.sizes[-1] = self.sizes[0]
            return
        alive = np.array([used[list(edges)].any(0) for edges in graph.leaving])  # [N, B]
        alive[-1] = alive[0]  # masks are pruned, so what leaves the source reaches the sink
        self.sizes = alive.sum(1).tolist()  # rows of every node
        place = alive.cumsum(1) - 1  # row b of the batch is entry place[v, b] of node v
        edge, row = np.nonzero(used)
        sources, targets = np.asarray(graph.edge_sources), np.asarray(graph.edge_targets)
        live = np.nonzero(alive[0])[0]
        flat = np.concatenate([place[sources[edge], row], place[targets[edge], row], live])
        splits = [*counts, *counts, len(live)]
        parts = torch.from_numpy(flat).to(device, non_blocking=True).split(splits)
        for e in range(len(graph)):
            if counts[e] < self.sizes[sources[e]]:
                self.taken[e] = parts[e]
            if counts[e] < self.sizes[targets[e]]:
                self.put[e] = parts[len(graph) + e]
        if self.sizes[0] < batch:
            self.live_rows = parts[-1]


def _names(edges: list[Edge]) -> list[str]:
    """Given names, else `source→target`; further parallel edges are numbered from #2."""
    names: list[str] = []
    for edge in edges:
        name = plain = edge.name or f"{edge.source}→{edge.target}"
        if not isinstance(edge.module, nn.Module):
            fault = f"edge {edge.source}→{edge.target} carries a {type(edge.module).__name__}"
            raise TypeError(f"{fault}, expected an nn.Module")
        copies = itertools.count(2)
        while not edge.name and name in names:
            name = f"{plain} #{next(copies)}"
        names.append(name)
    return names


def _refuse_shared_parameters(modules: Mapping[str, nn.Module]) -> None:
    owner: dict[int, str] = {}
    for name, module in modules.items():
        for parameter in module.parameters():
            other = owner.setdefault(id(parameter), name)
            if other != name:
                why = "which every cost would count twice; give each module its own copy"
                raise ValueError(f"{other} and {name} share parameters, {why}")
