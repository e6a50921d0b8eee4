"""Chapter 09: for every band a control that must fall outside it."""

import numpy as np

from nas_core.continual import resnet
from tests.notebooks.book import assert_separated, claimed

# Full training of every path, a learner without a past, one that goes on training old weights.
CONTROLS = {
    "price of the search relative to one network": 7.0,
    "price of the search relative to seven networks": 1.0,
    "the last task of S⁻ reuses modules of the past": 0.0,  # of Independent
    "S⁻: transfer of MNTDP-D is above 0.02": 0.0,  # as Independent's, which is 0
    "forgetting of MNTDP-D": -0.4,  # of Finetune
    "the last task of S^out reuses modules of the past": 0.0,
    "forgetting of MNTDP-S": -0.4,
    "New-leg is more accurate than Independent on the last task of S^in": 0.0,
}


def test_every_band_has_a_control_and_tells_it_apart():
    assert_separated(claimed("09"), CONTROLS)


def test_seven_full_trainings_are_what_the_control_says():
    """Without a shared frozen trunk every candidate costs a whole network, forward and backward."""
    macs = np.array(resnet().macs)
    apart = sum(3 * macs.sum() for _ in range(7))
    assert apart / (3 * macs.sum()) == CONTROLS["price of the search relative to one network"]
