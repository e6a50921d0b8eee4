import numpy as np
import pytest
import torch

from nas_core.continual import Embedded, FitConfig, Stream, TaskSpec
from nas_core.continual.families import DIGITS


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def quick() -> FitConfig:
    """A dozen steps: for structure, not for accuracy."""
    return FitConfig(
        lr=(0.01,), weight_decay=(0.0,), batch_size=20, max_steps=12, patience=50, eval_every=6
    )


@pytest.fixture
def digits() -> Stream:
    """Three two-way tasks of 8×8 digits, no augmentation."""
    pairs = (("0", "1"), ("2", "3"), ("0", "1"))
    specs = [TaskSpec("digits", pair, 40, 20) for pair in pairs]
    return Stream("pairs", specs, Embedded(8, (40, 20, 20)), augment=False)


def ten_way(tasks: int, size: int = 8) -> Stream:
    specs = [TaskSpec("digits", DIGITS, 40, 20, pixels=t) for t in range(tasks)]
    return Stream("ten-way", specs, Embedded(size, (8, 4, 4)), augment=False)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)
