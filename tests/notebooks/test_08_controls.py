"""Chapter 08: for every band a control that must fall outside it."""

import numpy as np
import pytest

from nas_core.continual import mlp
from nas_core.continual.fit import FitConfig
from nas_core.continual.learners import make_learner
from tests.notebooks.book import assert_separated, claimed

M = np.array([[0.9, 0, 0], [0.6, 0.8, 0], [0.3, 0.7, 0.5]])
N = 607_050 * 4 / 1e6
# What a wrong formula, a learner without the property, or data left as they are would give.
CONTROLS = {
    "average accuracy by hand": np.diag(M).mean(),  # just after each task
    "forgetting by hand": (M[-1] - np.diag(M)).mean(),  # the last task counted in
    "transfer by hand": M[-1, 0] - 0.35,  # the first task instead of the last
    "learning curve area by hand": np.mean([0.2, 0.6, 0.3, 0.3]),  # without b = 0
    "MB of six independent networks": 6 * N / 2,  # half precision
    "MB of EWC after six tasks, N + 2TN": 3 * N,  # one Fisher for all
    "MB of replay with 15 images per class": N + 6 * 10 * 15 * 3072 / 1e6,  # kept as bytes
    "largest channel mean after normalisation": 0.35,  # raw pixels
    "smallest channel deviation after normalisation": 0.28,
    "forgetting of Finetune": 0.0,  # of Independent
    "forgetting of Independent": -0.5,  # of Finetune
    "forgetting of New-head freeze": -0.4,  # of New-head finetune
    "New-head freeze is at least 0.02 above Independent on the last task": 0.0,  # as Independent is
    "memory of Independent relative to Finetune": 1.0,
}  # fmt: skip


def test_every_band_has_a_control_and_tells_it_apart():
    assert_separated(claimed("08"), CONTROLS)


def test_the_controls_of_learners_are_what_they_do(digits_stream):
    """New-head finetune forgets where New-head freeze cannot; Independent's transfer is 0."""
    config = FitConfig(lr=(0.01,), weight_decay=(0.0,), batch_size=20, max_steps=100, patience=100)
    outcome = {}
    for name in ("New-head freeze", "New-head finetune"):
        learner = make_learner(name, mlp((3, 8, 8), 12), config)
        for task in digits_stream:
            learner.learn(task)
            if not task.id:
                x = task.test.inputs(task.test.x)
                before = learner.predict(x, 0)
        outcome[name] = float((learner.predict(x, 0) - before).abs().max())
    assert outcome["New-head freeze"] == 0 < outcome["New-head finetune"]


@pytest.fixture
def digits_stream():
    from nas_core.continual import Embedded, Stream, TaskSpec

    specs = [TaskSpec("digits", pair, 40, 20) for pair in (("0", "1"), ("2", "3"))]
    return Stream("pairs", specs, Embedded(8, (40, 20, 20)), augment=False)
