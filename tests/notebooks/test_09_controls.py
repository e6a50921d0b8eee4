"""Chapter 09: for every band controls, measured on what lacks the property, that fall outside."""

import numpy as np

from nas_core.continual import resnet
from tests.notebooks.book import claimed, each_mistake, separates
from tests.notebooks.lifelong import Life

BANDS = claimed("09")
LIFE = Life("09_mntdp")


def forgets(learner):
    return LIFE.run(learner, "minus").summary()["F"]


def reuses(stream):
    """Whether the last task of Independent has a module of the past."""
    paths = LIFE.run("Independent", stream).learner.library.paths
    return any(owner != len(paths) - 1 for owner in paths[-1])


def transfers(learner, stream, *keep, least=0.0, **options):
    """Whether the last task is that much better than a network that learns it alone."""
    tasks = len(LIFE.cfg.keep)
    alone = LIFE.last("Independent", stream, tasks - 1)
    return LIFE.last(learner, stream, *keep, **options) - alone > least


def price(trunk, suffixes):
    """Multiply-adds of a step for so many forward passes of the trunk and whole new networks."""
    macs = np.array(resnet().macs)
    return (trunk * macs[:-1].sum() + 3 * suffixes * macs.sum()) / (3 * macs.sum())


CONTROLS = {
    "price of the search relative to one network": {"every path alone": lambda: price(0, 7)},
    "price of the search relative to seven networks": {
        "every path alone": lambda: price(0, 7) / 7,
    },
    "the last task of S⁻ reuses modules of the past": {"Independent": lambda: reuses("minus")},
    "S⁻: transfer of MNTDP-D is above 0.02": {
        "the first task never seen": lambda: transfers("MNTDP-D", "minus", 1, 2, 3, least=0.02),
    },
    "forgetting of MNTDP-D": {"Finetune": lambda: forgets("Finetune")},
    "the last task of S^out reuses modules of the past": {"Independent": lambda: reuses("out")},
    "forgetting of MNTDP-S": {"Finetune": lambda: forgets("Finetune")},
    "New-leg is more accurate than Independent on the last task of S^in": {
        "the first task never seen": lambda: transfers("New-leg freeze", "in", 1, 2, 3),
    },
}


@each_mistake(CONTROLS)
def test_controls_fall_outside(name, mistake):
    assert separates(BANDS[name], float(CONTROLS[name][mistake]()))


def test_every_band_has_a_control():
    assert set(CONTROLS) == set(BANDS)
