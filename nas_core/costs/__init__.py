"""What an architecture costs: any callable on masks; here are those of the book."""

from nas_core.costs.additive import AdditiveCost, Cost, computation, evaluate, memory
from nas_core.costs.distributed import Distributed, distributed, longest_first
from nas_core.costs.edge import cloud_prices, edge, random_prices, sides
from nas_core.costs.latency import (
    Latency,
    LatencyTable,
    Timing,
    check_table,
    latency,
    latency_table,
    measure,
)

__all__ = [
    "AdditiveCost",
    "Cost",
    "Distributed",
    "Latency",
    "LatencyTable",
    "Timing",
    "check_table",
    "cloud_prices",
    "computation",
    "distributed",
    "edge",
    "evaluate",
    "latency",
    "latency_table",
    "longest_first",
    "measure",
    "memory",
    "random_prices",
    "sides",
]
