"""Checks of chapter 05."""

from __future__ import annotations

import networkx as nx
import torch
from torch import Tensor

from nas_core.workbook.checks import Problem, compare, exercise


def _longest_chain(operations: nx.DiGraph) -> int:
    return nx.dag_longest_path_length(operations, default_weight=1) + 1 if operations else 0


def _edges_on_it(got: object, want: int, operations: nx.DiGraph) -> bool:
    return got == want - 1 and want > 0


def _all_operations(got: object, want: int, operations: nx.DiGraph) -> bool:
    return got == len(operations) != want


@exercise("5.1", "the longest chain")
def ex_5_1(fn: object) -> Problem:
    """`fn(operations: DiGraph) -> int`."""
    hints = [
        (_edges_on_it, "you counted the dependencies on the chain; count the operations"),
        (_all_operations, "that is the number of operations: only one chain has to be waited for"),
    ]
    shuffled = nx.DiGraph()
    shuffled.add_nodes_from("dcba")  # nodes in an order that is not topological
    shuffled.add_edges_from([("a", "b"), ("b", "c"), ("a", "d"), ("c", "d")])
    cases = {
        "a chain of four": [nx.path_graph(4, create_using=nx.DiGraph)],
        "two branches": [nx.DiGraph([("a", "b"), ("a", "c"), ("c", "d"), ("b", "e"), ("d", "e")])],
        "nodes in any order": [shuffled],
        "a single operation": [nx.empty_graph(1, create_using=nx.DiGraph)],
        "no operation": [nx.DiGraph()],
    }
    called: list[str] = []

    def watched(operations: nx.DiGraph) -> object:
        """Calls the answer where networkx's own answers tell that they were asked."""
        own = {name: getattr(nx, name) for name in dir(nx) if "longest" in name}

        def telling(name: str):
            return lambda *args, **kwargs: called.append(name) or own[name](*args, **kwargs)

        for name in own:
            setattr(nx, name, telling(name))
        try:
            return fn(operations)  # type: ignore[operator]
        finally:
            for name, function in own.items():
                setattr(nx, name, function)

    if not callable(fn):
        return compare(fn, _longest_chain, cases)
    problem = compare(watched, _longest_chain, cases, hints=hints)
    if called:
        return f"it calls networkx's own {called[0]}: go through nx.topological_sort instead"
    return problem


def _slower(mask: Tensor, macs: Tensor, machine: Tensor) -> Tensor:
    work = mask.double() * macs
    return torch.stack([(work * (machine == m)).sum(1) for m in (0, 1)], dim=1).amax(1)


def _sum_of_both(got: object, want: Tensor, mask: Tensor, macs: Tensor, machine: Tensor) -> bool:
    return torch.allclose(torch.as_tensor(got).double(), mask.double() @ macs.double())


def _faster(got: object, want: Tensor, mask: Tensor, macs: Tensor, machine: Tensor) -> bool:
    total = mask.double() @ macs.double()
    return torch.allclose(torch.as_tensor(got).double(), total - want)


def _both_columns(got: object, want: Tensor, mask: Tensor, macs: Tensor, machine: Tensor) -> bool:
    return list(torch.as_tensor(got).shape) == [len(mask), 2]


@exercise("5.2", "the busier of two machines")
def ex_5_2(fn: object) -> Problem:
    """`fn(mask [B, E] bool, macs [E], machine [E]) -> [B]`."""
    hints = [
        (_both_columns, "these are the sums of both machines; keep the larger of the two"),
        (_sum_of_both, "you added the machines; they run at the same time"),
        (_faster, "that is the machine that finishes first; the other one decides"),
    ]
    macs, machine = torch.tensor([10, 20, 5, 40]), torch.tensor([0, 1, 0, 1])
    masks = torch.tensor([[True, True, True, False], [True, False, True, False], [True] * 4])
    cases = {
        "three architectures": [masks, macs, machine],
        "nothing kept": [torch.zeros(1, 4, dtype=torch.bool), macs, machine],
        "all on one machine": [masks, macs, torch.zeros(4, dtype=torch.long)],
    }
    return compare(fn, _slower, cases, hints=hints)
