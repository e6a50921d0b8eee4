"""SANAS: networks that choose their architecture anew at every step of a stream."""

from nas_core.adaptive.baselines import DSCNN, BCResNet, as_trunk
from nas_core.adaptive.controller import Controller, FixedController
from nas_core.adaptive.engine import Decision, StreamingEngine, StreamTrace
from nas_core.adaptive.network import AdaptiveNetwork, Step, Unrolled
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

__all__ = [
    "DSCNN",
    "AdaptiveNetwork",
    "BCResNet",
    "Controller",
    "Decision",
    "FixedController",
    "SanasConfig",
    "SanasRun",
    "Step",
    "StreamTrace",
    "StreamingEngine",
    "Unrolled",
    "as_trunk",
    "cost_by_step",
    "objective",
    "returns",
    "summarise",
    "train",
    "window_table",
]
