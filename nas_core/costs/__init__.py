"""What an architecture costs: any callable on masks. This package has the costs of the book."""

# ruff: noqa: F401 — these names are the public door of the package

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
from nas_core.costs.latency import Latency, LatencyTable, Timing, check_table, latency_table
from nas_core.training import time_call
