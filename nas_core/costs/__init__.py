"""What an architecture costs: any callable on masks. This package has the costs of the book."""

from nas_core.costs.additive import (
    AdditiveCost,
    Cost,
    cloud_prices,
    computation,
    memory,
    per_edge,
    price,
    random_prices,
    sides,
)
from nas_core.costs.distributed import Distributed, longest_first
from nas_core.costs.latency import (
    Latency,
    LatencyTable,
    Timing,
    check_table,
    latency_table,
)
from nas_core.training import time_call

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
    "latency_table",
    "longest_first",
    "memory",
    "per_edge",
    "price",
    "random_prices",
    "sides",
    "time_call",
]
