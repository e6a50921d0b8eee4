"""Lifelong learning: streams of tasks, metrics, learners, MNTDP (thesis chapter 5)."""

from nas_core.continual.backbones import Backbone, alexnet, mlp, resnet
from nas_core.continual.fit import FitConfig, FitReport, accuracy, sweep
from nas_core.continual.learners import LEARNERS, Learner, make_learner, rank_past
from nas_core.continual.library import Library
from nas_core.continual.metrics import (
    average_accuracy,
    forgetting,
    learning_curve_area,
    megabytes,
    transfer,
)
from nas_core.continual.run import (
    StreamRun,
    accuracy_alone,
    inference_bytes,
    run_stream,
    tune_stream,
)
from nas_core.continual.sources import Embedded, Real, catalogue
from nas_core.continual.streams import (
    CTRL,
    SYMBOLS,
    ctrl_stream,
    permuted_digits,
    split_classes,
    tabulated_stream,
)
from nas_core.continual.tasks import Stream, Task, TaskSpec

__all__ = [
    "CTRL",
    "LEARNERS",
    "SYMBOLS",
    "Backbone",
    "Embedded",
    "FitConfig",
    "FitReport",
    "Learner",
    "Library",
    "Real",
    "Stream",
    "StreamRun",
    "Task",
    "TaskSpec",
    "accuracy",
    "accuracy_alone",
    "alexnet",
    "average_accuracy",
    "catalogue",
    "ctrl_stream",
    "forgetting",
    "inference_bytes",
    "learning_curve_area",
    "make_learner",
    "megabytes",
    "mlp",
    "permuted_digits",
    "rank_past",
    "resnet",
    "run_stream",
    "split_classes",
    "sweep",
    "tabulated_stream",
    "transfer",
    "tune_stream",
]
