"""Costs that add up over the edges (thesis sections 3.5.1 and 3.5.7): counts and prices."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from nas_core.supernet import Graph, SuperNetwork

Cost = Callable[[Tensor], Tensor]
"""Any callable from pruned masks, bool `[B, E]`, to one float per architecture, `[B]`."""


class AdditiveCost:
    """Σ of a number per kept edge, `per_edge` `[E]` in `unit`: one matrix product for a batch."""

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
    """Multiply-adds as the thesis counts them: with one per element for every addition at a node,
    and up-sampling convolutions at the resolution *before* up-sampling (four times too low).
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
    """Multiply-adds for one example; convention "thesis" reproduces the printed tables."""
    if convention == "thesis":
        return ThesisComputation(supernet)
    if convention != "macs":
        raise ValueError(f"convention {convention!r} is unknown; use 'macs' or 'thesis'")
    return AdditiveCost(supernet.graph.macs, "computation", "macs")


def memory(supernet: SuperNetwork | Graph) -> AdditiveCost:
    """Number of parameters."""
    return AdditiveCost(_graph(supernet).params, "memory", "parameters")


def _graph(space: SuperNetwork | Graph) -> Graph:
    return space.graph if isinstance(space, SuperNetwork) else space


def per_edge(
    space: SuperNetwork | Graph, costs: Mapping[str, float] | Sequence[float] | Tensor, *,
    name: str = "edge prices", unit: str = "",
) -> AdditiveCost:  # fmt: skip
    """A cost with a price for every edge: `{edge name: price}`, or `[E]` numbers in edge order."""
    graph = _graph(space)
    if isinstance(costs, Mapping):
        names = [e.name for e in graph.edges]
        if missing := [n for n in names if n not in costs]:
            raise ValueError(
                f"{len(missing)} of {len(names)} edges of {graph.name} have no price, "
                f"the first is {missing[0]!r}; give every edge one (0 is a price)"
            )
        if unknown := sorted(set(costs) - set(names)):
            raise ValueError(f"prices for unknown edges {unknown[:3]}; see graph.edges")
        costs = [float(costs[n]) for n in names]
    prices = torch.as_tensor(costs, dtype=torch.float64)
    if prices.shape != (len(graph),):
        raise ValueError(
            f"prices of shape {list(prices.shape)} do not fit {graph.name}: "
            f"expected one per edge, [{len(graph)}]"
        )
    return AdditiveCost(prices, name, unit)


def random_prices(space: SuperNetwork | Graph, seed: int) -> dict[str, float]:
    """A price from U(0, 1) for every edge (thesis fig. 3.11); stem and head are free."""
    graph = _graph(space)
    generator = torch.Generator().manual_seed(seed)
    draws = torch.rand(len(graph), generator=generator, dtype=torch.float64)
    pairs = zip(graph.edges, draws.tolist(), strict=True)
    return {e.name: 0.0 if e.kind in ("stem", "head") else draw for e, draw in pairs}


def sides(space: SuperNetwork | Graph, border: float) -> list[str]:
    """For every edge whether it runs on the "device", the "server", or crosses the "network".

    Nodes whose x in `graph.positions` (the column of a fabric) is below `border` are on the device.
    """
    graph = _graph(space)
    left = {node: x < border for node, (x, _) in graph.positions.items()}
    found = [
        "network" if left[e.source] != left[e.target] else "device" if left[e.target] else "server"
        for e in graph.edges
    ]
    if "network" not in found or not left[graph.source] or left[graph.sink]:
        raise ValueError(
            f"border {border} does not separate the input of {graph.name} from its "
            "output; place it between two columns"
        )
    return found


def cloud_prices(
    space: SuperNetwork | Graph, border: float, *,
    device: float = 1.0, network: float = 10.0, server: float = 0.1,
) -> dict[str, float]:  # fmt: skip
    """Prices of a small device that uses servers over an expensive network (fig. 3.12).

    For `border` see `sides`; stem and head are free.
    """
    graph = _graph(space)
    price = {"device": device, "network": network, "server": server}
    where = zip(graph.edges, sides(graph, border), strict=True)
    return {e.name: 0.0 if e.kind in ("stem", "head") else price[side] for e, side in where}


def price(cost: Cost, mask: Tensor) -> Tensor:
    """`cost(mask)` as float64 `[B]` on the CPU; refused unless it is one finite number each."""
    name = getattr(cost, "name", getattr(cost, "__name__", type(cost).__name__))
    value = torch.as_tensor(cost(mask)).detach().to("cpu", torch.float64)
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
