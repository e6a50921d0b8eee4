"""Chapter 10: for every band controls, measured on what lacks the property, that fall outside."""

from functools import cache

import numpy as np

from nas_core.continual import resnet
from nas_core.continual.streams import long_specs
from tests.notebooks.book import claimed, control_tests
from tests.notebooks.lifelong import Life

BANDS = claimed("10")
LIFE = Life("10_long_streams")


def forgets(learner):
    return LIFE.run(learner, "long").summary()["F"]


def accuracy(learner, **options):
    return LIFE.run(learner, "long", **options).summary()["A"]


def memory(learner):
    return LIFE.run(learner, "long").table.memory_mb.to_numpy()


def exponent(mb):
    """Slope of log memory over log tasks."""
    return np.polyfit(np.log(np.arange(1, len(mb) + 1)), np.log(mb), 1)[0]


def price(learner):
    """Networks added per task, in the first half and in the second half of the stream."""
    mb = memory(learner)
    half = len(mb) // 2
    return mb[half - 1] / half / mb[0], (mb[-1] - mb[half - 1]) / (len(mb) - half) / mb[0]


def becomes_cheaper(learner):
    early, late = price(learner)
    return late < early - 1e-9  # sums of floats


@cache
def large_if_the_first_third_went_on():
    first = [sum(s.train > 25 for s in long_specs(LIFE.images, seed=i)[:33]) for i in range(20)]
    return np.mean(first) * 100 / 33


TASKS = np.arange(1, 101)
CONTROLS = {
    "MB of a hundred independent networks": {
        "ten classes each": lambda: 100 * sum(resnet().params) * 4 / 1e6,
    },
    "exponent of a straight line": {"of a square root": lambda: exponent(TASKS**0.5)},
    "exponent of a square root": {"of a straight line": lambda: exponent(3.0 * TASKS)},
    "large tasks per hundred, mean of 20 streams": {
        "one half to the end": large_if_the_first_third_went_on,
    },
    "exponent of Independent's memory": {"MNTDP-D": lambda: exponent(memory("MNTDP-D"))},
    "MNTDP-D adds less per task in the second half than in the first": {
        "Independent": lambda: becomes_cheaper("Independent"),
    },
    "late price of MNTDP-D is below 0.9": {"Independent": lambda: price("Independent")[1] < 0.9},
    "forgetting of Finetune on a long stream": {"Independent": lambda: forgets("Independent")},
    "forgetting of MNTDP-D on a long stream": {"Finetune": lambda: forgets("Finetune")},
    "accuracy of MNTDP-D minus that of Finetune": {
        "Finetune with another seed": lambda: accuracy("Finetune", seed=1) - accuracy("Finetune"),
    },
    "accuracy of MNTDP-D minus that of Independent": {
        "Finetune": lambda: accuracy("Finetune") - accuracy("Independent"),
    },
}

test_every_band_has_a_control, test_the_band_rejects_the_mistake = control_tests(BANDS, CONTROLS)


def test_a_constant_share_has_no_lower_price_at_the_end():
    """A library that always reuses half is a straight line: its price is its slope."""
    mb = np.array([1.0, *[0.5] * 23]).cumsum()
    assert (mb[-1] - mb[11]) / 12 / mb[0] == 0.5
