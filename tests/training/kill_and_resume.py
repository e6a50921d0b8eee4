"""Helper of test_resume.py, run as a program of its own (one import of torch, many forks).

A run is forked, killed with SIGKILL a random time after its second save, and forked again, until it
has been killed often enough; then it may finish. Prints after how many epochs it was killed, for
each time.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from torch import nn

from nas_core import data
from nas_core.training import (
    Augment,
    TensorData,
    TrainConfig,
    load_checkpoint,
    one_thread,
    save_atomic,
    seed_everything,
    train_classifier,
)

EPOCHS = 14


def train(checkpoint: Path, result: Path, optimizer: str) -> None:
    """Everything that could go wrong on resuming: momentum, batch norm, dropout, augmentation."""
    seed_everything(0)
    digits = data.load("digits", train_limit=400)
    train_split = TensorData(
        digits.train.x,
        digits.train.y,
        augment=Augment(1, flip=True),
        normalise=digits.train.normalise,
    )
    data_set = data.Dataset("augmented", train_split, digits.val, digits.test, (), ())
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3),
        nn.Linear(512, 10),
    )  # fmt: skip
    config = TrainConfig(
        epochs=EPOCHS, batch_size=16, lr=0.01, milestones=(5, 9), optimizer=optimizer,
        patience=EPOCHS,
    )  # fmt: skip
    train_classifier(model, data_set, config, checkpoint=checkpoint, progress=False)
    record = load_checkpoint(checkpoint)
    save_atomic({"model": model.state_dict(), "last": record}, result)


def forked(*args) -> int:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            train(*args)
            code = 0
        finally:
            os._exit(code)
    return pid


def epochs_done(checkpoint: Path) -> int:
    return len(load_checkpoint(checkpoint)["history"]["rows"]) if checkpoint.exists() else 0


def wait_for_two_saves(checkpoint: Path, pid: int) -> float:
    """Seconds between two saves of the process; 0 if it has ended by itself."""
    seen, times = written(checkpoint), []
    while len(times) < 2:
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            return 0.0
        time.sleep(0.0005)
        now = written(checkpoint)
        if now != seen:
            times.append(time.monotonic())
        seen = now
    return times[1] - times[0]


def written(checkpoint: Path) -> int:
    return checkpoint.stat().st_ino if checkpoint.exists() else 0


def main(folder: Path, optimizer: str, kills: int, seed: int) -> None:
    one_thread()
    data.load("digits")  # imports scikit-learn here, and not in every fork
    TrainConfig().make_optimizer([])  # imports PyTorch's compiler
    pid = forked(folder / "whole.ckpt", folder / "whole.pt", optimizer)
    assert os.waitpid(pid, 0)[1] == 0
    random_time, killed_at = random.Random(seed), []
    for _ in range(kills):
        pid = forked(folder / "killed.ckpt", folder / "killed.pt", optimizer)
        epoch_seconds = wait_for_two_saves(folder / "killed.ckpt", pid)
        time.sleep(random_time.uniform(0, 1.2) * epoch_seconds)  # anywhere in an epoch or a save
        os.kill(pid, signal.SIGKILL)
        status = os.waitpid(pid, 0)[1]
        if not os.WIFSIGNALED(status):
            break  # it was faster
        killed_at.append(epochs_done(folder / "killed.ckpt"))
    pid = forked(folder / "killed.ckpt", folder / "killed.pt", optimizer)
    assert os.waitpid(pid, 0)[1] == 0
    print(json.dumps(killed_at))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
