"""Distributed computation cost: cycles on n parallel units (thesis section 3.5.6).

Every architecture is a graph of unit operations. An *allocation* decides which operations run in
which cycle; the cost is the number of cycles. It is not a sum over edges: removing an edge may
change nothing, and a wider network may be cheaper than a narrow one.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from heapq import heappop, heappush

import networkx as nx
import numpy as np
import torch
from torch import Tensor, nn

from nas_core.supernet import SuperNetwork

Schedule = Sequence[Sequence[str]]
"""For every cycle the operations that run in it."""

Allocation = Callable[[nx.DiGraph, float], Schedule]
"""Gets the unit operations of one architecture and n; returns a schedule."""

REMEMBERED = 200_000  # architectures, about 30 MB; a search samples millions before it converges
COUNTED = (nn.modules.conv._ConvNd, nn.Linear, nn.RNNBase)


def unit_ops(module: nn.Module | None, node: bool = False) -> int:
    """Cycles that a module needs: its attribute `unit_ops`, else the number of its convolutional,
    linear and recurrent layers on an edge (so a shortcut is free), and 0 at a node."""
    if module is None:
        return 0
    layers = 0 if node else sum(isinstance(m, COUNTED) for m in module.modules())
    return int(getattr(module, "unit_ops", layers))


class Distributed:
    """Number of cycles that n parallel units need for an architecture.

    One cycle runs up to n unit operations (see `unit_ops`) whose dependencies were finished before
    it began. Operations without duration (shortcuts, free sums) finish with their dependencies.
    Schedules of an `allocation` are checked; without one it is the greedy one of the thesis.
    """

    unit = "cycles"

    def __init__(self, supernet: SuperNetwork, n: float, allocation: Allocation | None = None):
        try:
            whole = math.inf if n == math.inf else operator.index(n)  # type: ignore[arg-type]
        except TypeError:
            whole = 0
        if whole < 1 or isinstance(n, bool):
            raise ValueError(f"n is {n!r}; it is the number of parallel units: 1, 2, … or math.inf")
        self.n, self.allocation = whole, allocation
        self.name = f"distributed (n={whole})"
        self.graph = supernet.graph
        self._ops = _Operations(supernet)
        self._known: dict[bytes, float] = {}

    def __repr__(self) -> str:
        return f"Distributed({self.graph.name}, n={self.n})"

    def __call__(self, mask: Tensor) -> Tensor:
        """Cycles `[B]`, float64, of pruned masks `[B, E]`; remembered per architecture."""
        rows = self.graph.check_mask(mask).cpu().numpy()
        keys = [key.tobytes() for key in np.packbits(rows, axis=1)]
        new = {key: b for b, key in enumerate(keys) if key not in self._known}
        if new:
            if len(self._known) > REMEMBERED:
                self._known = {key: self._known[key] for key in keys if key not in new}
            self._known |= zip(new, self._cycles(rows[list(new.values())]), strict=True)
        return torch.tensor([self._known[key] for key in keys], dtype=torch.float64)

    def operations(self, mask: Tensor) -> nx.DiGraph:
        """What an allocation gets for one mask `[E]`; free operations are bridged."""
        return self._ops.to_networkx(self.graph.check_mask(mask)[0].numpy())

    def schedule(self, mask: Tensor) -> list[list[str]]:
        """Which operations of one architecture (mask `[E]`) run in each cycle."""
        rows = self.graph.check_mask(mask)[:1].cpu().numpy()
        if self.allocation is not None:
            operations = self._ops.to_networkx(rows[0])
            return _checked(operations, self.n, self.allocation(operations, self.n))
        cycles = list_schedule(self._ops, self._ops.present(rows)[0].tolist(), self.n)
        return [[self._ops.names[op] for op in sorted(cycle)] for cycle in cycles]

    def _cycles(self, rows: np.ndarray) -> list[float]:
        if self.allocation is not None:
            return [float(len(self.schedule(torch.from_numpy(row)))) for row in rows]
        present = self._ops.present(rows)
        if self.n == 1:  # a single unit is always busy
            return present[:, self._ops.takes_cycle].sum(1).astype(float).tolist()
        return [float(len(list_schedule(self._ops, row, self.n))) for row in present.tolist()]


def list_schedule(ops: _Operations, present: Sequence[bool], n: float) -> list[list[int]]:
    """The greedy schedule of the thesis: for every cycle the numbers of its operations.

    Each cycle takes the first n ready operations in the reverse post-order of a depth-first search
    (starts in insertion order, successors in reverse insertion order).
    """
    successors, unseen = ops.successors, list(present)
    order: list[int] = []
    stack = list(range(len(unseen) - 1, -1, -1))
    while stack:
        op = stack.pop()
        if op < 0:  # ~op is found again when everything that op leads to has been visited
            order.append(~op)
        elif unseen[op]:
            unseen[op] = False
            stack.append(~op)
            stack += successors[op]  # the last one is visited first
    order.reverse()

    rank = {op: place for place, op in enumerate(order)}
    missing = [1] * len(unseen)  # unfinished dependencies; the start of the schedule counts as one
    for op in order:
        for successor in successors[op]:
            missing[successor] += 1
    ready: list[int] = []  # heap of ranks
    cycles: list[list[int]] = []
    finished = order.copy()  # an entry for every dependency that has just been finished
    while True:
        for op in finished:
            missing[op] -= 1
            if not missing[op]:
                if ops.takes_cycle[op]:
                    heappush(ready, rank[op])
                else:  # what follows a free operation becomes ready with it
                    finished += successors[op]
        if not ready:
            return cycles
        cycles.append([order[heappop(ready)] for _ in range(int(min(n, len(ready))))])
        finished = [successor for op in cycles[-1] for successor in successors[op]]


def longest_first(operations: nx.DiGraph, n: float) -> list[list[str]]:
    """An allocation: of the ready operations, those with the longest path to the output first."""
    level: dict[str, int] = {}
    for op in reversed(list(nx.topological_sort(operations))):
        level[op] = 1 + max((level[s] for s in operations.successors(op)), default=0)
    waiting = {op: operations.in_degree(op) for op in operations}
    ready = [op for op in operations if not waiting[op]]
    cycles = []
    while ready:
        ready.sort(key=lambda op: -level[op])
        count = int(min(n, len(ready)))
        cycles.append(ready[:count])
        ready = ready[count:]
        for _, successor in operations.out_edges(cycles[-1]):
            waiting[successor] -= 1
            if not waiting[successor]:
                ready.append(successor)
    return cycles


def _checked(operations: nx.DiGraph, n: float, schedule: Schedule) -> list[list[str]]:
    """The schedule; ValueError unless it runs everything once, in order, n at a time."""
    cycle_of: dict[str, int] = {}
    for c, cycle in enumerate(schedule):
        if len(cycle) > n:
            raise ValueError(f"allocation runs {len(cycle)} operations in cycle {c}, but n is {n}")
        for op in cycle:
            if op not in operations or op in cycle_of:
                fault = "twice" if op in cycle_of else "but no such operation exists"
                raise ValueError(f"allocation runs {op!r} {fault}")
            cycle_of[op] = c
    if missing := [op for op in operations if op not in cycle_of]:
        raise ValueError(f"allocation never runs {missing[0]!r} ({len(missing)} are missing)")
    for before, after in operations.edges:
        if cycle_of[before] >= cycle_of[after]:
            fault = f"{after!r} in cycle {cycle_of[after]}, but it needs {before!r}"
            raise ValueError(
                f"allocation runs {fault}, which is finished only after cycle {cycle_of[before]}"
            )
    return [list(cycle) for cycle in schedule]


class _Operations:
    """All operations of a super-network: a chain per edge, then one per node: insertion order."""

    def __init__(self, supernet: SuperNetwork):
        graph = supernet.graph
        self.names: list[str] = []
        self.takes_cycle: list[bool] = []
        self.successors: list[list[int]] = []  # of every operation, in insertion order
        owner: list[int] = []  # number of the edge, or E + number of the node

        def chain(name: str, count: int) -> tuple[int, int]:
            first, steps = len(owner), max(count, 1)
            self.names += [name if steps == 1 else f"{name} [{k}]" for k in range(steps)]
            self.takes_cycle += [count > 0] * steps
            self.successors += [[first + k + 1] for k in range(steps - 1)] + [[]]
            owner.extend([owner[-1] + 1 if owner else 0] * steps)
            return first, first + steps - 1

        on_edge = [unit_ops(module) for module in supernet.edge_modules]
        at_node = [unit_ops(supernet.node_op(v), node=True) for v in range(len(graph.nodes))]
        edge_ops = [chain(edge.name, on_edge[e]) for e, edge in enumerate(graph.edges)]
        node_ops = [chain(f"sum {node}", at_node[v]) for v, node in enumerate(graph.nodes)]
        self.ends = np.zeros((len(graph), len(graph.nodes)), dtype=np.float32)
        for e, (a, b) in enumerate(zip(graph.edge_sources, graph.edge_targets, strict=True)):
            first, last = edge_ops[e]
            self.successors[last].append(node_ops[b][0])
            self.successors[node_ops[a][1]].append(first)
            self.ends[e, [a, b]] = 1
        self.owner = np.array(owner)

    def present(self, rows: np.ndarray) -> np.ndarray:
        """Operations that masks `[B, E]` need, `[B, O]`: kept edges and the nodes they touch."""
        nodes = rows.astype(np.float32) @ self.ends > 0  # [B, N]
        return np.concatenate([rows, nodes], axis=1)[:, self.owner]

    def to_networkx(self, row: np.ndarray) -> nx.DiGraph:
        """The operations of one mask `[E]`, free ones bridged."""
        present = self.present(row[None])[0]
        full = nx.DiGraph()
        full.add_nodes_from(np.flatnonzero(present).tolist())
        full.add_edges_from((a, b) for a in full for b in self.successors[a] if present[b])
        for op in list(full):
            if not self.takes_cycle[op]:
                bridges = [(a, b) for a in full.predecessors(op) for b in full.successors(op)]
                full.add_edges_from(bridges)
                full.remove_node(op)
        return nx.relabel_nodes(full, dict(enumerate(self.names)))
