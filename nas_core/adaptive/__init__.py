"""SANAS: networks that choose their architecture anew at every step of a stream."""

# ruff: noqa: F401

from nas_core.adaptive.baselines import DSCNN, BCResNet, as_trunk
from nas_core.adaptive.engine import Decision, StreamingEngine, StreamTrace
from nas_core.adaptive.network import AdaptiveNetwork, Controller, FixedController, Unrolled
from nas_core.adaptive.training import (
    SanasConfig,
    SanasRun,
    cost_by_step,
    objective,
    returns,
    summarise,
    train,
    window_table,
)
