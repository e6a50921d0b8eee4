"""Lifelong learning: streams of tasks, metrics, learners, MNTDP (thesis chapter 5)."""

# ruff: noqa: F401 — what is imported here is what other rooms may use

from nas_core.continual.backbones import Backbone, alexnet, mlp, resnet
from nas_core.continual.fit import FitConfig, FitReport, Trial
from nas_core.continual.learners import LEARNERS, Learner, make_learner
from nas_core.continual.learners.mntdp import rank_past
from nas_core.continual.library import Library
from nas_core.continual.run import (
    StreamRun,
    average_accuracy,
    check_input_shift,
    forgetting,
    learning_curve_area,
    megabytes,
    run_stream,
    transfer,
    tune_stream,
)
from nas_core.continual.sources import Embedded, Real, task_source
from nas_core.continual.streams import (
    CTRL,
    SYMBOLS,
    Stream,
    Task,
    TaskSpec,
    ctrl_stream,
    permuted_digits,
    split_classes,
    tabulated_stream,
)
from nas_core.training import accuracy
