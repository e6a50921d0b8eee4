"""What a space offers before anything is trained: is the budget within reach at all?"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from nas_core.costs import AdditiveCost, Cost, price
from nas_core.supernet import BernoulliSampler, ChoiceSampler, Graph

_ENUMERABLE_EDGES = 14


class SpaceProfile(NamedTuple):
    """Costs and size of a search space."""

    cheapest: float  # cost of the cheapest architecture that was tried
    cheapest_is_exact: bool  # True when no architecture can be cheaper
    full: float  # cost of the whole super-network
    median: float  # median cost of architectures drawn from the sampler
    scale: float  # unit of overspending: the full cost, or the largest magnitude seen; above 0
    paths: int  # number of source→sink paths
    masks: int  # 2^(edges), what a search has to choose from
    architectures: int | None  # distinct live architectures, where few enough to count

    def satisfiable(self, budget: float) -> bool | None:
        """Whether some architecture costs at most `budget`; None when that is not known."""
        if budget >= self.cheapest:
            return True
        return False if self.cheapest_is_exact else None


def profile_space(
    graph: Graph, cost: Cost, sampler: BernoulliSampler | ChoiceSampler | None = None, *,
    samples: int = 256, seed: int = 0,
) -> SpaceProfile:  # fmt: skip
    """Measure a space under a cost.

    The cheapest architecture is exact for sums over edges without negative prices (a shortest
    path), and for any other deterministic cost on graphs of at most 14 edges, where all are tried.
    Otherwise it is the cheapest of some paths, some random architectures and the whole network.

    Args:
        sampler: distribution whose median cost is reported; every edge with probability ½ if None.
    """
    generator = torch.Generator().manual_seed(seed)
    sampler = sampler or BernoulliSampler(graph, logit=0.0, fixed=graph.of_kind("stem", "head"))
    drawn = graph.reachable(sampler.sample(samples, generator).mask.cpu())
    everything = torch.ones(1, len(graph), dtype=torch.bool)
    full = price(cost, everything).item()
    drawn_costs = price(cost, drawn)
    small = len(graph) <= _ENUMERABLE_EDGES
    if isinstance(cost, AdditiveCost) and bool((cost.per_edge >= 0).all()):
        tried = _shortest_path(graph, cost.per_edge).unsqueeze(0)
        costs, exact = price(cost, tried), True
    else:
        hops = _shortest_path(graph, torch.ones(len(graph))).unsqueeze(0)
        paths = ChoiceSampler.paths(graph).sample(512, generator).mask
        tried = _live(graph) if small else torch.cat([hops, paths, drawn[drawn.any(1)], everything])
        costs = price(cost, tried)
        exact = small and torch.equal(costs, price(cost, tried))  # not of a stochastic cost
    seen = torch.cat([costs, drawn_costs, torch.tensor([full]).double()])
    ordinary = full > 0 and bool((seen >= 0).all())
    scale = full if ordinary else seen.abs().max().item() or 1.0
    size = (count_paths(graph), 2 ** len(graph), len(_live(graph)) if small else None)
    median = drawn_costs.median().item()
    return SpaceProfile(costs.min().item(), exact, full, median, scale, *size)


def count_paths(graph: Graph) -> int:
    """Number of source→sink paths; parallel edges count as different ones."""
    ways = [1] + [0] * (len(graph.nodes) - 1)
    for e in graph.order:
        ways[graph.edge_targets[e]] += ways[graph.edge_sources[e]]
    return ways[-1]


def all_masks(graph: Graph) -> Tensor:
    """Every mask, bool `[2^E, E]`; only for tiny graphs."""
    edges = len(graph)
    if edges > 20:
        raise ValueError(f"2^{edges} masks cannot be listed; 20 edges are the limit")
    return (torch.arange(2**edges).unsqueeze(1) >> torch.arange(edges)) % 2 == 1


def _live(graph: Graph) -> Tensor:
    """The distinct architectures with a path from source to sink, bool `[N, E]`."""
    masks = torch.unique(graph.reachable(all_masks(graph)), dim=0)
    return masks[masks.any(1)]


def _shortest_path(graph: Graph, weights: Tensor) -> Tensor:
    """Mask `[E]` of the path of least total weight (Bellman's recursion in topological order)."""
    best = [0.0] + [float("inf")] * (len(graph.nodes) - 1)
    via: dict[int, int] = {}
    for e in graph.order:
        target, length = graph.edge_targets[e], best[graph.edge_sources[e]] + float(weights[e])
        if length < best[target]:
            best[target], via[target] = length, e
    mask = torch.zeros(len(graph), dtype=torch.bool)
    node = len(graph.nodes) - 1
    while node:
        mask[via[node]] = True
        node = graph.edge_sources[via[node]]
    return mask
