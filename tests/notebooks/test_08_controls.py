"""Chapter 08: for every band controls, measured on what lacks the property, that fall outside."""

import numpy as np
import pytest

from tests.notebooks.book import claimed, control_tests
from tests.notebooks.lifelong import Life

BANDS = claimed("08")
LIFE = Life("08_ctrl_streams")
M = np.array([[0.9, 0, 0], [0.6, 0.8, 0], [0.3, 0.7, 0.5]])
N = 607_050 * 4 / 1e6


def forgets(learner):
    return LIFE.run(learner, "out").summary()["F"]


def grown(learner):
    """Memory at the end, in units of one network."""
    memory = LIFE.run(learner, "out").table.memory_mb
    return memory.iloc[-1] / memory.iloc[0]


def pixels():
    """The first task of S^out as it was before normalisation, in [0, 1]."""
    return LIFE.stream("out")[0].train.x.float() / 255


def wins_with_the_trunk_of_another_task():
    """New-head freeze whose first task was the first distractor of the stream."""
    alone = LIFE.last("Independent", "out")
    return LIFE.last("New-head freeze", "out", 1, 2, 3) - alone >= 0.02


CONTROLS = {
    "average accuracy by hand": {"just after each task": lambda: np.diag(M).mean()},
    "forgetting by hand": {"with the last task": lambda: (M[-1] - np.diag(M)).mean()},
    "transfer by hand": {"of the first task": lambda: M[-1, 0] - 0.35},
    "learning curve area by hand": {"without b = 0": lambda: np.mean([0.2, 0.6, 0.3, 0.3])},
    "MB of six independent networks": {"half precision": lambda: 6 * N / 2},
    "MB of EWC after six tasks, N + 2TN": {"one Fisher for all": lambda: 3 * N},
    "MB of replay with 15 images per class": {
        "kept as bytes": lambda: N + 6 * 10 * 15 * 3072 / 1e6
    },
    "largest channel mean after normalisation": {
        "pixels as they are": lambda: pixels().mean((0, 2, 3)).abs().max(),
    },
    "smallest channel deviation after normalisation": {
        "pixels as they are": lambda: pixels().std((0, 2, 3)).min(),
    },
    "forgetting of Finetune": {"Independent": lambda: forgets("Independent")},
    "forgetting of Independent": {"Finetune": lambda: forgets("Finetune")},
    "forgetting of New-head freeze": {"trunk not frozen": lambda: forgets("New-head finetune")},
    "New-head freeze is at least 0.02 above Independent on the last task": {
        "trunk of another task": wins_with_the_trunk_of_another_task,
    },
    "memory of Independent relative to Finetune": {
        "only the head is new": lambda: grown("New-head freeze"),
    },
}  # fmt: skip

test_every_band_has_a_control, test_the_band_rejects_the_mistake = control_tests(BANDS, CONTROLS)


def test_the_memory_band_is_what_independent_networks_do():
    lo, hi = BANDS["memory of Independent relative to Finetune"]
    assert lo < grown("Independent") < hi and grown("Finetune") == pytest.approx(1)
