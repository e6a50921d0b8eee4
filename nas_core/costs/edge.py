"""A price per edge: random prices and a device that talks to a cloud (thesis section 3.5.7)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from nas_core.costs.additive import AdditiveCost
from nas_core.supernet import Graph, SuperNetwork

SIDES = ("device", "network", "server")


def edge(
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


def random_prices(
    space: SuperNetwork | Graph, seed: int, *, low: float = 0.0, high: float = 1.0
) -> dict[str, float]:
    """A price from U(low, high) for every edge (thesis fig. 3.11); stem and head are free."""
    graph = space.graph if isinstance(space, SuperNetwork) else space
    generator = torch.Generator().manual_seed(seed)
    draws = low + (high - low) * torch.rand(len(graph), generator=generator, dtype=torch.float64)
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
    """Prices of a small device that calls powerful servers over a dear network (fig. 3.12).

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
