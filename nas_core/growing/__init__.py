"""Growing, pruning, and the networks that pruning discovers in dense super-networks."""

# ruff: noqa: F401 — these names are the public door of the package

from nas_core.growing import pruning
from nas_core.growing.discovered import connections, extract, live_channels
from nas_core.growing.network import (
    Exited,
    GrowingNetwork,
    Plan,
    all_exits,
    early_exit,
    exit_curve,
    exit_depth,
    exit_macs,
    exits_loss,
    overthinking,
    tau,
)
from nas_core.growing.training import (
    BASELINE,
    GROWN,
    ITERATIVE,
    ONE_SHOT,
    GrowConfig,
    Grown,
    Schedule,
    grow_and_prune,
)
