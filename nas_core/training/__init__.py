"""Training: devices and seeds, data as tensors, the epoch loop, checkpoints."""

from nas_core.training.augment import Augmentation, Compose, RandomCrop, RandomFlip
from nas_core.training.checkpoint import (
    CorruptCheckpoint,
    load_checkpoint,
    rng_state,
    save_atomic,
    set_rng_state,
)
from nas_core.training.device import (
    describe_device,
    one_thread,
    pick_device,
    seed_everything,
    versions,
)
from nas_core.training.loop import History, LoopResult, NonFiniteLoss, Stateful, run_epochs
from nas_core.training.progress import progress_bar
from nas_core.training.supervised import TrainConfig, evaluate, train_classifier
from nas_core.training.tensors import Splits, TensorData, derived_seeds

__all__ = [
    "Augmentation",
    "Compose",
    "CorruptCheckpoint",
    "History",
    "LoopResult",
    "NonFiniteLoss",
    "RandomCrop",
    "RandomFlip",
    "Splits",
    "Stateful",
    "TensorData",
    "TrainConfig",
    "derived_seeds",
    "describe_device",
    "evaluate",
    "load_checkpoint",
    "one_thread",
    "pick_device",
    "progress_bar",
    "rng_state",
    "run_epochs",
    "save_atomic",
    "seed_everything",
    "set_rng_state",
    "train_classifier",
    "versions",
]
