"""Chapter 10: for every band a control that must fall outside it."""

import numpy as np
import pytest

from nas_core.continual import Embedded, resnet
from nas_core.continual.streams import long_specs
from nas_core.workbook import separates
from tests.notebooks.book import assert_separated, claimed

# What another law, another schedule or a learner without the property would give.
CONTROLS = {
    "MB of a hundred independent networks": 100 * sum(resnet().params) * 4 / 1e6,  # ten classes
    "exponent of a straight line": 0.5,  # of a square root
    "exponent of a square root": 1.0,  # of a straight line
    "large tasks per hundred, mean of 20 streams": 50.0,  # one half to the end
    "exponent of Independent's memory": 0.95,  # of MNTDP-D, at most
    "MNTDP-D adds less per task in the second half than in the first": 0.0,  # of Independent
    "late price of MNTDP-D is below 0.9": 0.0,
    "forgetting of Finetune on a long stream": 0.0,  # of Independent
    "forgetting of MNTDP-D on a long stream": -0.3,  # of Finetune
    "accuracy of MNTDP-D minus that of Finetune": 0.0,
    "accuracy of MNTDP-D minus that of Independent": -0.35,  # of Finetune
}


def test_every_band_has_a_control_and_tells_it_apart():
    assert_separated(claimed("10"), CONTROLS)


def test_the_schedule_is_what_makes_large_tasks_rare():
    """The same count on streams whose tasks are all drawn like the first third."""
    images = Embedded(16, (30, 20, 10))
    first = [sum(s.train > 25 for s in long_specs(images, seed=i)[:33]) for i in range(20)]
    assert separates((22, 27.5), np.mean(first) * 100 / 33)


def test_a_constant_share_has_no_lower_price_at_the_end():
    """The late price of a library that always reuses half is its slope; Independent's is 1."""
    new = np.array([1.0, *[0.5] * 23])
    mb = new.cumsum()
    assert (mb[-1] - mb[11]) / 12 / mb[0] == pytest.approx(0.5)
    independent = np.arange(1.0, 25)
    assert (independent[-1] - independent[11]) / 12 / independent[0] == pytest.approx(1.0)
