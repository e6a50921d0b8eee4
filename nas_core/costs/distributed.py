"""Distributed computation cost: cycles on n parallel units (thesis section 3.5.6).

Every architecture is a graph of unit operations. An *allocation* decides which operations run in
which cycle; the cost is the number of cycles. It is no sum over edges: removing an edge may
change nothing, and a wider network may be cheaper than a narrow one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import networkx as nx
import numpy as np
import torch
from torch import Tensor, nn

from nas_core.supernet import SuperNetwork

Schedule = Sequence[Sequence[str]]
"""For every cycle the operations that run in it."""

Allocation = Callable[[nx.DiGraph, float], Schedule]
"""Gets the unit operations of one architecture and n; returns a schedule."""

REMEMBERED = 200_000  # architectures, about 30 MB; a search meets millions before it settles
COUNTED = (nn.modules.conv._ConvNd, nn.Linear, nn.RNNBase)


def unit_ops(module: nn.Module | None, node: bool = False) -> int:
    """Cycles that a module needs one after another.

    Its attribute `unit_ops` if it has one; else the number of its convolutional, linear and
    recurrent layers on an edge (so a shortcut is free), and 0 at a node.
    """
    if module is None:
        return 0
    layers = 0 if node else sum(isinstance(m, COUNTED) for m in module.modules())
    return int(getattr(module, "unit_ops", layers))


class Distributed:
    """Number of cycles that n parallel units need for an architecture.

    One cycle runs up to n unit operations: the layers of an edge one after another, and sums
    where the space says so (see `unit_ops`).

    Args:
        n: number of units, 1, 2, … or `math.inf`.
        allocation: the greedy list schedule of the thesis when absent; else any callable from
            `(operations, n)` to the operations of every cycle. Its schedules are checked.

    Operations are inserted in the order of the edges, then of the nodes. The greedy order is the
    reverse of the post-order of a depth-first search that starts from operations in insertion
    order and visits successors in reverse insertion order; each cycle takes the first n
    operations of that order whose dependencies were finished before the cycle began. Operations
    without duration (shortcuts, free sums) finish as soon as their dependencies have.
    """

    unit = "cycles"

    def __init__(self, supernet: SuperNetwork, n: float, allocation: Allocation | None = None):
        if not (n == math.inf or (isinstance(n, int) and n >= 1)) or isinstance(n, bool):
            raise ValueError(f"n is {n!r}; it is the number of parallel units: 1, 2, … or math.inf")
        self.n, self.allocation = n, allocation
        self.name = f"distributed (n={n})"
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
            picked = rows[list(new.values())]
            self._known.update(zip(new, self._cycles(picked), strict=True))
        return torch.tensor([self._known[key] for key in keys], dtype=torch.float64)

    def operations(self, mask: Tensor) -> nx.DiGraph:
        """Unit operations of one architecture (mask `[E]`) and their dependencies, as allocations
        get them: insertion order, free operations bridged."""
        return self._ops.to_networkx(self.graph.check_mask(mask)[0].numpy())

    def schedule(self, mask: Tensor) -> list[list[str]]:
        """Which operations of one architecture (mask `[E]`) run in each cycle."""
        rows = self.graph.check_mask(mask)[:1].cpu().numpy()
        if self.allocation is not None:
            operations = self._ops.to_networkx(rows[0])
            return _checked(operations, self.n, self.allocation(operations, self.n))
        finished = _greedy(self._ops, rows, self.n)[0]
        cycles: list[list[str]] = [[] for _ in range(int(finished.max(initial=0)))]
        for op in np.flatnonzero(finished > 0):
            if self._ops.duration[op]:
                cycles[int(finished[op]) - 1].append(self._ops.names[op])
        return cycles

    def _cycles(self, rows: np.ndarray) -> list[float]:
        if self.allocation is not None:
            return [float(len(self.schedule(torch.from_numpy(row)))) for row in rows]
        if self.n == 1:  # a single unit is never idle
            return self._ops.present(rows)[:, self._ops.duration].sum(1).astype(float).tolist()
        return _greedy(self._ops, rows, self.n).max(1).astype(float).tolist()


def longest_first(operations: nx.DiGraph, n: float) -> list[list[str]]:
    """An allocation: of the ready operations, those with the longest way to the output first."""
    level: dict[str, int] = {}
    for op in reversed(list(nx.topological_sort(operations))):
        level[op] = 1 + max((level[s] for s in operations.successors(op)), default=0)
    waiting = {op: operations.in_degree(op) for op in operations}
    ready = [op for op in operations if not waiting[op]]
    cycles = []
    while ready:
        ready.sort(key=lambda op: -level[op])
        count = len(ready) if n == math.inf else int(n)
        now, ready = ready[:count], ready[count:]
        for op in now:
            for successor in operations.successors(op):
                waiting[successor] -= 1
                if not waiting[successor]:
                    ready.append(successor)
        cycles.append(now)
    return cycles


def _checked(operations: nx.DiGraph, n: float, schedule: Schedule) -> list[list[str]]:
    """The schedule, refused unless it runs everything once, in order, n at a time."""
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
            raise ValueError(
                f"allocation runs {after!r} in cycle {cycle_of[after]}, but it needs {before!r}, "
                f"which is finished only after cycle {cycle_of[before]}"
            )
    return [list(cycle) for cycle in schedule]


class _Operations:
    """All operations of a super-network: one chain per edge, one per node, in insertion order.

    `successors` `[O + 1, D]` lists the successors of every operation in *reverse* insertion
    order, filled up with the number O, which stands for nothing.
    """

    successors: np.ndarray

    def __init__(self, supernet: SuperNetwork):
        graph = supernet.graph
        self.names: list[str] = []
        durations: list[bool] = []
        owner: list[int] = []  # number of the edge, or E + number of the node

        def chain(name: str, count: int, of: int) -> tuple[int, int]:
            first = len(self.names)
            steps = max(count, 1)
            self.names += [name if steps == 1 else f"{name} [{k}]" for k in range(steps)]
            durations.extend([count > 0] * steps)
            owner.extend([of] * steps)
            return first, len(self.names) - 1

        edge_ops = [
            chain(edge.name, unit_ops(supernet.edge_modules[e]), e)
            for e, edge in enumerate(graph.edges)
        ]
        node_ops = [
            chain(f"sum {node}", unit_ops(supernet.node_op(v), node=True), len(graph) + v)
            for v, node in enumerate(graph.nodes)
        ]
        self.duration, self.owner = np.array(durations), np.array(owner)
        pairs = [(op, op + 1) for a, b in edge_ops + node_ops for op in range(a, b)]
        for e in range(len(graph)):
            pairs.append((node_ops[graph.edge_sources[e]][1], edge_ops[e][0]))
            pairs.append((edge_ops[e][1], node_ops[graph.edge_targets[e]][0]))
        self.pairs = np.array(pairs)
        self.ends = np.zeros((len(graph), len(graph.nodes)), dtype=bool)
        self.ends[np.arange(len(graph)), list(graph.edge_sources)] = True
        self.ends[np.arange(len(graph)), list(graph.edge_targets)] = True
        lists: list[list[int]] = [[] for _ in range(len(self.names) + 1)]
        for before, after in sorted(pairs, key=lambda pair: -pair[1]):
            lists[before].append(after)
        width = max(map(len, lists))
        none = len(self.names)
        self.successors = np.array([s + [none] * (width - len(s)) for s in lists])

    def present(self, rows: np.ndarray) -> np.ndarray:
        """Operations that masks `[B, E]` need, `[B, O]`: kept edges and the nodes they touch."""
        nodes = rows.astype(np.float32) @ self.ends.astype(np.float32) > 0
        return np.concatenate([rows, nodes], axis=1)[:, self.owner]

    def to_networkx(self, row: np.ndarray) -> nx.DiGraph:
        present = self.present(row[None])[0]
        full = nx.DiGraph()
        full.add_nodes_from(np.flatnonzero(present).tolist())
        full.add_edges_from((a, b) for a, b in self.pairs.tolist() if present[a] and present[b])
        for op in list(full):
            if not self.duration[op]:
                full.add_edges_from(
                    [(a, b) for a in full.predecessors(op) for b in full.successors(op)]
                )
                full.remove_node(op)
        return nx.relabel_nodes(full, dict(enumerate(self.names)))


def _greedy(ops: _Operations, rows: np.ndarray, n: float) -> np.ndarray:
    """Cycle (from 1) in which every operation finishes, `[B, O]`; 0 for absent ones.

    All architectures are scheduled together: every step moves each of them by one operation.
    """
    present = ops.present(rows)
    return _list_schedule(ops, present, _greedy_order(ops, present), n)


def _greedy_order(ops: _Operations, present: np.ndarray) -> np.ndarray:
    """Place of every operation in the reverse post-order, `[B, O]`; a search tree per row."""
    batch, count = present.shape
    # Flat views: row b, operation o is entry b (O + 1) + o, and operation O means "nothing".
    base = np.arange(batch) * (count + 1)
    nothing = base + count
    unseen = np.concatenate([present, np.zeros((batch, 1), bool)], axis=1).ravel()
    place = np.zeros(batch * (count + 1), dtype=np.int32)
    stack = np.tile(nothing, (count + 2, 1)).ravel()  # level k of row b is entry k B + b
    level = np.arange(batch)
    width = np.arange(batch) * ops.successors.shape[1]
    left = present.sum(1)
    while True:
        start = base + unseen.reshape(batch, -1).argmax(1)  # the first unseen operation
        found = unseen[start]
        if not found.any():
            return place.reshape(batch, -1)[:, :count]
        level += batch * found
        stack[level] = np.where(found, start, nothing)
        unseen[start] = False
        for _ in range(2 * int(left.max())):  # every step opens or closes one operation per row
            top = stack[level]
            options = ops.successors.take(top - base, 0) + base[:, None]
            choice = width + unseen.take(options).argmax(1)
            child = options.take(choice)
            deeper = unseen.take(child)
            # Who cannot go deeper closes its top: what closes last comes first in the order.
            closing = (top != nothing) & ~deeper
            left -= closing
            place[np.where(closing, top, nothing)] = left
            level += batch * (deeper.astype(np.int64) - closing)
            stack[np.where(deeper, level, 0)] = child  # level 0 of row 0 is mended below
            stack[0] = nothing[0]
            unseen[np.where(deeper, child, nothing)] = False


def _list_schedule(
    ops: _Operations, present: np.ndarray, place: np.ndarray, n: float
) -> np.ndarray:
    """Cycle (from 1) in which every operation finishes, `[B, O]`, for the given order of each."""
    batch, count = present.shape
    base = np.arange(batch) * (count + 1)
    nothing = base + count
    never = 2 * count  # rank of an operation that is not ready
    before, after = ops.pairs.T
    waiting = np.full((batch, count + 1), never, dtype=np.int32)
    waiting[:, :count][present] = 0
    np.add.at(waiting.T, after, (present[:, before] & present[:, after]).T)
    # Operations without duration come before all others.
    rank = np.concatenate([place - count * ~ops.duration, np.full((batch, 1), never)], axis=1)
    rank = rank.astype(np.int16 if never < 2**15 else np.int32)
    key = np.where(waiting == 0, rank, never).astype(rank.dtype)
    finished = np.zeros(batch * (count + 1), dtype=np.int32)
    keys, rank, waiting = key.ravel(), rank.ravel(), waiting.ravel()  # flat, as above

    def pick() -> tuple[np.ndarray, np.ndarray]:
        """The first ready operation of every row and its rank."""
        first = base + key.argmin(1)
        return first, keys.take(first)

    def run(op: np.ndarray, cycle: int) -> None:
        finished[op] = cycle
        keys[op] = never

    def release(op: np.ndarray) -> None:
        """Tell the successors of one operation per row that it is finished."""
        after = ops.successors.take(op - base, 0) + base[:, None]
        count_left = waiting.take(after) - 1
        waiting[after] = count_left
        ready = after[count_left == 0]
        keys[ready] = rank.take(ready)

    cycle = 0
    while True:
        op, value = pick()
        while (value < 0).any():  # free operations may set others free within the same cycle
            op = np.where(value < 0, op, nothing)
            run(op, cycle)
            release(op)
            op, value = pick()
        if not (value < never).any():
            return finished.reshape(batch, -1)[:, :count]
        cycle += 1
        running: list[np.ndarray] = []
        while len(running) < n and (value < never).any():
            op = np.where(value < never, op, nothing)
            run(op, cycle)
            running.append(op)
            op, value = pick()
        for op in running:
            release(op)
