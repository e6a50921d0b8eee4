"""Lifelong learning: streams of tasks, metrics, learners, MNTDP (thesis chapter 5)."""

from nas_core.continual.backbones import Backbone, alexnet, mlp, resnet
from nas_core.continual.fit import FitConfig, FitReport, Trial
from nas_core.continual.learners import LEARNERS, Learner, make_learner
from nas_core.continual.learners.mntdp import rank_past
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
    check_input_shift,
    run_stream,
    tune_stream,
)
from nas_core.continual.sources import Embedded, Real, task_source
from nas_core.continual.streams import (
    CTRL,
    SYMBOLS,
    ctrl_stream,
    permuted_digits,
    split_classes,
    tabulated_stream,
)
from nas_core.continual.tasks import Stream, Task, TaskSpec
from nas_core.training import accuracy

__all__ = [
    "CTRL", "LEARNERS", "SYMBOLS", "Backbone", "Embedded", "FitConfig", "FitReport", "Learner",
    "Library", "Real", "Stream", "StreamRun", "Task", "TaskSpec", "Trial", "accuracy",
    "accuracy_alone", "alexnet", "average_accuracy", "check_input_shift", "ctrl_stream",
    "forgetting", "learning_curve_area", "make_learner", "megabytes", "mlp",
    "permuted_digits", "rank_past", "resnet", "run_stream", "split_classes", "tabulated_stream",
    "task_source", "transfer", "tune_stream",
]  # fmt: skip
