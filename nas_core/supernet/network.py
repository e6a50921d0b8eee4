"""The super-network: every edge of a graph carries a module, a mask selects edges."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from nas_core.supernet.graph import EdgeInfo, Graph
from nas_core.supernet.profile import count_macs, count_params
from nas_core.supernet.rows import gather_rows, sum_rows


class Edge(NamedTuple):
    """An edge on its way into a `SuperNetwork`; `(source, target, module)` is enough."""

    source: Any
    target: Any
    module: nn.Module
    name: str = ""
    kind: str = ""


class SuperNetwork(nn.Module):
    """Directed acyclic graph of modules; a mask of edges selects one architecture per example.

    `l_1 = x`, `l_j = op_j( sum_i h_ij f_ij(l_i) )` (thesis eq. 3.7). Only what is selected is
    computed: with a mask `[E]` unselected modules are never called, with `[B, E]` each module
    sees just the rows that use it, so batch norm sees those rows only. A row whose architecture
    has no live path from source to sink gets an all-zero output (for a classifier: the uniform
    prediction).

    Args:
        edges: `(source, target, module)` tuples or `Edge`s; the order is that of the mask columns.
        source, sink: the input and the output node.
        node_ops: module applied to the sum at a node, e.g. `{"a": nn.ReLU()}`. It must not work
            in place, because a node may hold the very tensor that another edge reads.
        input_shape: shape of one example without the batch dimension; needed for multiply-adds.
        name, positions: for drawings and files, see `Graph`.

    Raises:
        ValueError: for a graph that is not acyclic with one source and one sink.
    """

    def __init__(
        self,
        edges: Iterable[Edge | tuple],
        source: Any,
        sink: Any,
        *,
        node_ops: Mapping[Any, nn.Module] | None = None,
        input_shape: tuple[int, ...] | None = None,
        name: str = "supernet",
        positions: Mapping[Any, tuple[float, float]] | None = None,
    ):
        super().__init__()
        given = [Edge(*edge) for edge in edges]
        _refuse_shared_modules(given)
        names = _names(given)
        infos = [
            EdgeInfo(n, str(e.source), str(e.target), e.kind, describe(e.module))
            for n, e in zip(names, given, strict=True)
        ]
        at = None if positions is None else {str(k): v for k, v in positions.items()}
        self.graph = Graph(infos, str(source), str(sink), name=name, positions=at)
        self.edge_modules = nn.ModuleList([edge.module for edge in given])
        ops = {str(node): op for node, op in (node_ops or {}).items()}
        if unknown := set(ops) - set(self.graph.nodes):
            raise ValueError(f"node_ops for unknown nodes {sorted(unknown)}")
        # Keys of a ModuleDict may not hold dots; the position in the order of nodes always works.
        self.node_ops = nn.ModuleDict(
            {str(i): ops[n] for i, n in enumerate(self.graph.nodes) if n in ops}
        )
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

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Output of the selected architectures.

        Args:
            x: `[B, *input_shape]`.
            mask: bool `[E]` (one architecture), `[B, E]` (one per example) or None (everything).
                Edges on no live path are ignored.
        """
        if mask is None:
            return self._forward_shared(x, [True] * self.num_edges)
        rows = self.graph.reachable(self.graph.check_mask(mask, len(x)))
        if len(rows) == 1:
            return self._forward_shared(x, rows[0].tolist())
        return self._forward_per_example(x, rows)

    # ---------------------------------------------------------------- one architecture

    def _forward_shared(self, x: Tensor, kept: list[bool]) -> Tensor:
        graph = self.graph
        waiting: list[Tensor | None] = [None] * len(graph.nodes)
        waiting[0] = x
        done = -1
        for e in graph.order:
            if not kept[e]:
                continue
            source, target = graph.edge_sources[e], graph.edge_targets[e]
            if source != done:  # first edge out of this node: its sum is complete
                waiting[source] = self._finish(source, waiting[source])
                done = source
            out = self._call(e, waiting[source])
            before = waiting[target]
            waiting[target] = out if before is None else before + out
        result = waiting[-1]
        return self._dead_output(x) if result is None else self._finish(-1, result)

    def _finish(self, node: int, total: Tensor | None) -> Any:
        op = self.node_op(node % len(self.graph.nodes))
        return total if op is None else op(total)

    def _call(self, e: int, x: Any) -> Tensor:
        module = self.edge_modules[e]
        if len(x) == 1 and module.training:
            return _with_running_statistics(module, x)
        return module(x)

    # ---------------------------------------------------------------- one architecture per row

    def _forward_per_example(self, x: Tensor, rows: Tensor) -> Tensor:
        """Nodes hold the rows that reach them and no others, in the order of the batch."""
        plan = _Plan(self.graph, rows, x.device)
        graph, batch = self.graph, len(x)
        if not plan.sizes[-1]:
            return self._dead_output(x)
        arriving: list[list[tuple[Tensor, Tensor | None]]] = [[] for _ in graph.nodes]
        if plan.sizes[0] < batch:
            x = gather_rows(x, [plan.source_rows])[0]
        for node in range(len(graph.nodes)):
            if not plan.sizes[node]:
                continue
            if node:
                x = sum_rows(arriving[node], plan.sizes[node])
                arriving[node] = []  # let go of the summands
            value = self._finish(node, x)
            leaving = plan.leaving[node]
            inputs = gather_rows(value, [plan.taken[e] for e in leaving])
            for e, part in zip(leaving, inputs, strict=True):
                arriving[graph.edge_targets[e]].append((self._call(e, part), plan.put[e]))
        if plan.sizes[-1] < batch:
            value = sum_rows([(value, plan.source_rows)], batch)
        return value

    def _dead_output(self, x: Tensor) -> Tensor:
        """Zeros of the output's shape, for a batch in which nothing reaches the sink."""
        shape = self.graph.shapes.get(self.graph.sink)
        if shape is None or tuple(x.shape[1:]) != self.input_shape:
            shape = self._profiled(tuple(x.shape[1:])).shapes[self.graph.sink]
        return x.new_zeros(len(x), *shape)

    # ---------------------------------------------------------------- counting

    def _profiled(self, input_shape: tuple[int, ...]) -> Graph:
        """The graph with multiply-adds, parameters and shapes for this input shape."""
        old = self.graph
        shapes = {old.source: input_shape}
        macs = [0] * len(old)
        for e in old.order:
            edge = old.edges[e]
            try:
                macs[e], out = count_macs(self.edge_modules[e], shapes[edge.source])
            except (RuntimeError, ValueError) as error:
                raise ValueError(
                    f"edge {edge.name} cannot process its input of shape "
                    f"{list(shapes[edge.source])}: {error}"
                ) from error
            known = shapes.setdefault(edge.target, out)
            if known != out:
                raise ValueError(
                    f"edge {edge.name} gives shape {list(out)}, but another edge into "
                    f"{edge.target} gives {list(known)}; summands must agree"
                )
        infos = [
            EdgeInfo(
                i.name, i.source, i.target, i.kind, i.module, macs[e],
                count_params(self.edge_modules[e]),
            )
            for e, i in enumerate(old.edges)
        ]  # fmt: skip
        return Graph(
            infos, old.source, old.sink, name=old.name, positions=old._positions, shapes=shapes
        )


class _Plan:
    """Which rows go where: computed once per step on the CPU, sent to the device in one copy."""

    def __init__(self, graph: Graph, rows: Tensor, device: torch.device):
        used = rows.cpu().numpy().T  # [E, B]
        alive = np.zeros((len(graph.nodes), used.shape[1]), dtype=bool)
        for e in range(len(graph)):
            alive[graph.edge_sources[e]] |= used[e]
            alive[graph.edge_targets[e]] |= used[e]
        self.sizes = alive.sum(1).tolist()
        place = alive.cumsum(1) - 1  # row b of the batch is entry place[v, b] of node v
        edge, row = np.nonzero(used)
        sources, targets = (np.asarray(graph.edge_sources), np.asarray(graph.edge_targets))
        counts = np.bincount(edge, minlength=len(graph))
        flat = np.concatenate(
            [place[sources[edge], row], place[targets[edge], row], np.nonzero(alive[0])[0]]
        )
        on_device = torch.from_numpy(flat).to(device, non_blocking=True)
        splits = [*counts.tolist(), *counts.tolist(), self.sizes[0]]
        parts = on_device.split(splits)
        n = len(graph)
        # None stands for "all rows of the node": no copy is made then.
        self.taken = [None if counts[e] == self.sizes[sources[e]] else parts[e] for e in range(n)]
        self.put = [None if counts[e] == self.sizes[targets[e]] else parts[n + e] for e in range(n)]
        self.source_rows = parts[-1]
        self.leaving: list[list[int]] = [[] for _ in graph.nodes]
        for e in graph.order:
            if counts[e]:
                self.leaving[graph.edge_sources[e]].append(e)


def describe(module: nn.Module) -> str:
    """One line for people, e.g. `Conv2d(3, 16, 3×3, stride 2) · BatchNorm2d`."""
    parts = []
    for m in module.modules():
        if isinstance(m, nn.modules.conv._ConvNd):
            kernel = "×".join(map(str, m.kernel_size))
            stride = "" if set(m.stride) == {1} else f", stride {m.stride[0]}"
            parts.append(f"{type(m).__name__}({m.in_channels}, {m.out_channels}, {kernel}{stride})")
        elif isinstance(m, nn.Linear):
            parts.append(f"Linear({m.in_features}, {m.out_features})")
        elif not any(True for _ in m.children()):
            parts.append(type(m).__name__)
    return " · ".join(parts)


def _names(edges: list[Edge]) -> list[str]:
    """Given names, else `source→target`; further parallel edges are numbered from #2."""
    names: list[str] = []
    for edge in edges:
        name = plain = edge.name or f"{edge.source}→{edge.target}"
        copies = 1
        while not edge.name and name in names:
            copies += 1
            name = f"{plain} #{copies}"
        names.append(name)
    return names


def _refuse_shared_modules(edges: list[Edge]) -> None:
    seen: dict[int, Edge] = {}
    for edge in edges:
        if not isinstance(edge.module, nn.Module):
            raise TypeError(
                f"edge {edge.source}→{edge.target} carries a {type(edge.module).__name__}, "
                "expected an nn.Module"
            )
        if id(edge.module) in seen and any(True for _ in edge.module.parameters()):
            other = seen[id(edge.module)]
            raise ValueError(
                f"edges {other.source}→{other.target} and {edge.source}→{edge.target} share one "
                "module, whose parameters every cost would count twice; give each its own copy"
            )
        seen[id(edge.module)] = edge


def _with_running_statistics(module: nn.Module, x: Tensor) -> Tensor:
    """Run a training module on a single row: one row has no batch statistics worth the name.

    With 1×1 maps batch norm would even refuse it, and one unlucky sample would end a training.
    """
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    training = [m.training for m in norms]
    for m in norms:
        m.eval()
    try:
        return module(x)
    finally:
        for m, mode in zip(norms, training, strict=True):
            m.training = mode
