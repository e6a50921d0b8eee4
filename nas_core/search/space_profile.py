"""What a space offers before anything is trained: is the budget within reach at all?"""

from __future__ import annotations

from dataclasses import dataclass

import networkx as nx
import torch
from torch import Tensor

from nas_core.costs import AdditiveCost, Cost, price
from nas_core.supernet import BernoulliSampler, ChoiceSampler, Graph

_ENUMERABLE_PATHS = 5_000
_ENUMERABLE_EDGES = 14


@dataclass(frozen=True)
class SpaceProfile:
    """Costs and size of a search space."""

    cheapest: float  # cost of the cheapest architecture
    cheapest_is_exact: bool  # False when the cost is no sum over edges and paths were sampled
    full: float  # cost of the whole super-network
    median: float  # median cost of architectures drawn from the sampler
    paths: int  # number of source→sink paths
    masks: int  # 2^(edges), what a search has to choose from
    architectures: int | None  # distinct live architectures, where few enough to count

    def satisfiable(self, budget: float) -> bool | None:
        """Whether some architecture costs at most `budget`; None when that is not known."""
        if budget >= self.cheapest:
            return True
        return False if self.cheapest_is_exact else None


def profile_space(
    graph: Graph,
    cost: Cost,
    sampler: BernoulliSampler | ChoiceSampler | None = None,
    *,
    samples: int = 256,
    seed: int = 0,
) -> SpaceProfile:
    """Measure a space under a cost.

    Args:
        cost: any cost; for sums over edges the cheapest architecture is exact (a shortest path),
            for other costs that only grow with edges it is exact up to 5,000 paths.
        sampler: distribution whose median cost is reported; every edge with probability ½ if None.
    """
    generator = torch.Generator().manual_seed(seed)
    sampler = sampler or BernoulliSampler(graph, logit=0.0, fixed=graph.of_kind("stem", "head"))
    drawn = graph.reachable(sampler.sample(samples, generator).mask.cpu())
    paths = count_paths(graph)
    candidate_paths, exact = _cheap_paths(graph, cost, paths, generator)
    full = torch.ones(1, len(graph), dtype=torch.bool)
    return SpaceProfile(
        cheapest=price(cost, candidate_paths).min().item(),
        cheapest_is_exact=exact,
        full=price(cost, full).item(),
        median=price(cost, drawn).median().item(),
        paths=paths,
        masks=2 ** len(graph),
        architectures=count_architectures(graph) if len(graph) <= _ENUMERABLE_EDGES else None,
    )


def count_paths(graph: Graph) -> int:
    """Number of source→sink paths, parallel edges told apart."""
    ways = [0] * len(graph.nodes)
    ways[0] = 1
    for e in graph.order:
        ways[graph.edge_targets[e]] += ways[graph.edge_sources[e]]
    return ways[-1]


def all_masks(graph: Graph) -> Tensor:
    """Every mask, bool `[2^E, E]`; only for tiny graphs."""
    edges = len(graph)
    if edges > 20:
        raise ValueError(f"2^{edges} masks cannot be listed; 20 edges are the limit")
    numbers = torch.arange(2**edges).unsqueeze(1)
    return (numbers >> torch.arange(edges)) % 2 == 1


def count_architectures(graph: Graph) -> int:
    """Distinct architectures with a live path, by listing every mask."""
    live = torch.unique(graph.reachable(all_masks(graph)), dim=0)
    return int(live.any(1).sum())


def _cheap_paths(
    graph: Graph, cost: Cost, paths: int, generator: torch.Generator
) -> tuple[Tensor, bool]:
    """Masks of paths among which the cheapest is looked for, and whether that is exact."""
    if isinstance(cost, AdditiveCost) and bool((cost.per_edge >= 0).all()):
        return _shortest_path(graph, cost.per_edge).unsqueeze(0), True
    if paths <= _ENUMERABLE_PATHS:
        edges = nx.all_simple_edge_paths(graph.to_networkx(), graph.source, graph.sink)
        names = [[key for _, _, key in path] for path in edges]
        masks = torch.zeros(len(names), len(graph), dtype=torch.bool)
        for row, path in enumerate(names):
            masks[row, [graph.index(name) for name in path]] = True
        return masks, True
    hops = _shortest_path(graph, torch.ones(len(graph)))
    return torch.cat(
        [hops.unsqueeze(0), ChoiceSampler.paths(graph).sample(512, generator).mask]
    ), False


def _shortest_path(graph: Graph, weights: Tensor) -> Tensor:
    """Mask `[E]` of the path of least total weight (Bellman's recursion in topological order)."""
    best = [float("inf")] * len(graph.nodes)
    best[0] = 0.0
    via: dict[int, int] = {}
    for e in graph.order:
        source, target = graph.edge_sources[e], graph.edge_targets[e]
        if best[source] + float(weights[e]) < best[target]:
            best[target] = best[source] + float(weights[e])
            via[target] = e
    mask = torch.zeros(len(graph), dtype=torch.bool)
    node = len(graph.nodes) - 1
    while node:
        mask[via[node]] = True
        node = graph.edge_sources[via[node]]
    return mask
