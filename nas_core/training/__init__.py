"""Training: devices, seeds, data as tensors, the step, the epoch loop, checkpoints."""

from nas_core.files import write_atomic
from nas_core.training.augment import Augment
from nas_core.training.checkpoint import (
    CorruptCheckpoint,
    fingerprint,
    load_checkpoint,
    rng_state,
    save_atomic,
    set_rng_state,
)
from nas_core.training.device import (
    Timing,
    describe_device,
    one_thread,
    pick_device,
    seed_everything,
    time_call,
    versions,
)
from nas_core.training.loop import (
    EarlyStopping,
    History,
    LoopResult,
    MovingAverage,
    NonFiniteLoss,
    Stateful,
    progress_bar,
    run_epochs,
)
from nas_core.training.supervised import (
    TrainConfig,
    accuracy,
    cosine_lr,
    descend,
    evaluate,
    make_optimizer,
    set_lr,
    step_lr,
    train_classifier,
    train_epoch,
)
from nas_core.training.tensors import (
    Splits,
    TensorData,
    derived_seeds,
)

__all__ = [
    "Augment",
    "CorruptCheckpoint",
    "EarlyStopping",
    "History",
    "LoopResult",
    "MovingAverage",
    "NonFiniteLoss",
    "Splits",
    "Stateful",
    "TensorData",
    "Timing",
    "TrainConfig",
    "accuracy",
    "cosine_lr",
    "derived_seeds",
    "descend",
    "describe_device",
    "evaluate",
    "fingerprint",
    "load_checkpoint",
    "make_optimizer",
    "one_thread",
    "pick_device",
    "progress_bar",
    "rng_state",
    "run_epochs",
    "save_atomic",
    "seed_everything",
    "set_lr",
    "set_rng_state",
    "step_lr",
    "time_call",
    "train_classifier",
    "train_epoch",
    "versions",
    "write_atomic",
]
