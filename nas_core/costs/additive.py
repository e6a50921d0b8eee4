"""Costs that add up over the edges (thesis sections 3.5.1 and 3.5.7): counts and prices."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from nas_core.supernet import Graph, SuperNetwork

Cost = Callable[[Tensor], Tensor]
"""Any callable from pruned masks, bool `[B, E]`, to one float per architecture, `[B]`."""

SIDES = ("device", "network", "server")


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


def per_edge(
    space: SuperNetwork | Graph,
    costs: Mapping[str, float] | Sequence[float] | Tensor,
    *,
    name: str = "edge prices",
    unit: str = "",
) -> AdditiveCost:
    """A cost with an arbitrary price per edge.

    Args:
        costs: `{edge name: price}` for every edge, or `[E]` numbers in the order of the edges.

    Raises:
        ValueError: when edges lack a price, or prices name edges that do not exist.
    """
    graph = space.graph if isinstance(space, SuperNetwork) else space
    if isinstance(costs, Mapping):
        names = [e.name for e in graph.edges]
        if missing := [n for n in names if n not in costs]:
            raise ValueError(
                f"{len(missing)} of {len(names)} edges of {graph.name} have no price, "
                f"the first is {missing[0]!r}; give every edge one (0 is a price)"
            )
        if unknown := sorted(set(costs) - set(names)):
            raise ValueError(f"prices for unknown edges {unknown[:3]}; see graph.edges")
        per_edge = torch.tensor([float(costs[n]) for n in names], dtype=torch.float64)
    else:
        per_edge = torch.as_tensor(costs, dtype=torch.float64)
    if per_edge.shape != (len(graph),):
        raise ValueError(
            f"prices of shape {list(per_edge.shape)} do not fit {graph.name}: "
            f"expected one per edge, [{len(graph)}]"
        )
    return AdditiveCost(per_edge, name, unit)


def random_prices(space: SuperNetwork | Graph, seed: int) -> dict[str, float]:
    """A price from U(0, 1) for every edge (thesis fig. 3.11); stem and head are free."""
    graph = space.graph if isinstance(space, SuperNetwork) else space
    generator = torch.Generator().manual_seed(seed)
    draws = torch.rand(len(graph), generator=generator, dtype=torch.float64)
    free = set(graph.of_kind("stem", "head"))
    return {e.name: 0.0 if i in free else float(draws[i]) for i, e in enumerate(graph.edges)}


def sides(space: SuperNetwork | Graph, border: float) -> list[str]:
    """For every edge whether it runs on the "device", the "server", or crosses the "network".

    Nodes drawn left of `border` (their x in `graph.positions`; in a convolutional fabric the
    column) are on the device, all others on the server.
    """
    graph = space.graph if isinstance(space, SuperNetwork) else space
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
    space: SuperNetwork | Graph,
    border: float,
    *,
    device: float = 1.0,
    network: float = 10.0,
    server: float = 0.1,
) -> dict[str, float]:
    """Prices of a small device that uses servers over an expensive network (fig. 3.12).

    Args:
        border: x coordinate between device and server, see `sides`.
        device, network, server: price of one edge on either side and of one that crosses. Stem
            and head are free.
    """
    graph = space.graph if isinstance(space, SuperNetwork) else space
    price = dict(zip(SIDES, (device, network, server), strict=True))
    free = set(graph.of_kind("stem", "head"))
    return {
        e.name: 0.0 if i in free else price[side]
        for i, (e, side) in enumerate(zip(graph.edges, sides(graph, border), strict=True))
    }


def price(cost: Cost, mask: Tensor) -> Tensor:
    """`cost(mask)` as float64 `[B]` on the CPU.

    Raises:
        ValueError: when the cost returns another shape, or a number that is not finite.
    """
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
