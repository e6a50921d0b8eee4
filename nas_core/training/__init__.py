"""Training: devices, seeds, data as tensors, the step, the epoch loop, checkpoints."""

# ruff: noqa: F401, I001 — what is imported here is what other rooms may use
# fmt: off
from nas_core.files import write_atomic
from nas_core.training.checkpoint import (
    CorruptCheckpoint, fingerprint, load_checkpoint, rng_state, save_atomic, set_rng_state,
)
from nas_core.training.device import (
    Timing, describe_device, one_thread, pick_device, require, seed_everything, time_call, versions,
)
from nas_core.training.loop import (
    EarlyStopping, History, LoopResult, MovingAverage, NonFiniteLoss, progress_bar, run_epochs,
)
from nas_core.training.supervised import (
    TrainConfig, accuracy, check_optimizer, cosine_lr, descend, eval_mode, evaluate, make_optimizer,
    on_device, set_lr, step_lr, train_classifier, train_epoch,
)
from nas_core.training.tensors import IGNORED, Augment, Splits, TensorData, derived_seeds
