"""Costs that add up over the edges: computation and memory (thesis section 3.5.1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from nas_core.supernet import Graph, SuperNetwork

Cost = Callable[[Tensor], Tensor]
"""Any callable from pruned masks, bool `[B, E]`, to one float per architecture, `[B]`."""


class AdditiveCost:
    """Σ of a number per kept edge: one matrix product for a whole batch.

    Args:
        per_edge: `[E]` cost of every edge, in `unit`.
    """

    def __init__(self, per_edge: Tensor | Sequence[float], name: str = "cost", unit: str = ""):
        self.per_edge = torch.as_tensor(per_edge, dtype=torch.float64)
        if self.per_edge.dim() != 1 or not self.per_edge.isfinite().all():
            raise ValueError(f"{name}: per_edge must be finite numbers, one per edge")
        self.name, self.unit = name, unit

    def __call__(self, mask: Tensor) -> Tensor:
        return mask.to("cpu", torch.float64) @ self.per_edge

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name} in {self.unit or 'units'})"


class ThesisComputation(AdditiveCost):
    """Multiply-adds as the thesis counts them, only to reproduce its tables.

    Adds one operation per element for every addition at a sum node, and counts an up-sampling
    convolution at the resolution *before* up-sampling, which is four times too low.
    """

    def __init__(self, supernet: SuperNetwork):
        graph = supernet.graph
        divisor = [getattr(m, "thesis_macs_divisor", 1) for m in supernet.edge_modules]
        super().__init__(graph.macs // torch.tensor(divisor), "computation (thesis)", "macs")
        self.into = torch.zeros(len(graph), len(graph.nodes), dtype=torch.float64)
        self.into[torch.arange(len(graph)), torch.tensor(graph.edge_targets)] = 1
        elements = [torch.Size(graph.shapes[node]).numel() for node in graph.nodes]
        self.elements = torch.tensor(elements, dtype=torch.float64)

    def __call__(self, mask: Tensor) -> Tensor:
        additions = (mask.to("cpu", torch.float64) @ self.into - 1).clamp(min=0)
        return super().__call__(mask) + additions @ self.elements


def computation(supernet: SuperNetwork, convention: str = "macs") -> AdditiveCost:
    """Multiply-adds for one example.

    Args:
        supernet: built with an `input_shape`.
        convention: "macs" counts exactly; "thesis" reproduces the printed tables.
    """
    if convention == "thesis":
        return ThesisComputation(supernet)
    if convention != "macs":
        raise ValueError(f"convention {convention!r} is unknown; use 'macs' or 'thesis'")
    return AdditiveCost(supernet.graph.macs, "computation", "macs")


def memory(supernet: SuperNetwork | Graph) -> AdditiveCost:
    """Number of parameters."""
    graph = supernet.graph if isinstance(supernet, SuperNetwork) else supernet
    return AdditiveCost(graph.params, "memory", "parameters")


def evaluate(cost: Cost, mask: Tensor) -> Tensor:
    """`cost(mask)` as float64 `[B]` on the CPU, refused unless it is one finite number per row.

    Raises:
        ValueError: when the cost returns another shape, or a number that is not finite.
    """
    name = getattr(cost, "name", getattr(cost, "__name__", type(cost).__name__))
    value = cost(mask)
    if not isinstance(value, Tensor):
        value = torch.as_tensor(value)
    value = value.detach().to("cpu", torch.float64)
    if value.shape != mask.shape[:1]:
        raise ValueError(
            f"cost {name} returned shape {list(value.shape)} for {len(mask)} architectures; "
            f"it must return one number each, shape [{len(mask)}]"
        )
    if not value.isfinite().all():
        row = int((~value.isfinite()).nonzero()[0])
        raise ValueError(
            f"cost {name} returned {value[row].item()} for architecture {row} "
            f"({int(mask[row].sum())} edges kept); a cost must be finite"
        )
    return value
