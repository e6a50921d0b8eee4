"""Chapter 09: for every band controls, measured on what lacks the property, that fall outside."""

import numpy as np
import torch

from nas_core.continual import accuracy, resnet, streams
from tests.notebooks.book import claimed, control_tests
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


def loss_on_mixed_colours():
    """No channel saturates, so the normalisation of each task undoes its background."""
    mixed = torch.tensor([[0.85, 0.1, 0.1], [0.1, 0.6, 0.15], [0.1, 0.2, 0.8]]).view(3, 1, 3, 1, 1)
    pure = streams.paint
    streams.paint = lambda x, n: (x + (255 - x) * mixed[n]).round().to(torch.uint8)
    try:
        run, stream = LIFE.run("Independent", "in", 0, 3), LIFE.stream("in")
        first, last = (
            accuracy(lambda x: run.learner.predict(x, 0), stream[t].test) for t in (0, 3)
        )
        return first - last
    finally:
        streams.paint = pure


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
    "S^in: loss of the first network on the last task": {
        "mixed background colours": loss_on_mixed_colours,
    },
    "S^in: New-leg is better than Independent": {
        "the first task never seen": lambda: transfers("New-leg freeze", "in", 1, 2, 3),
    },
}

test_every_band_has_a_control, test_the_band_rejects_the_mistake = control_tests(BANDS, CONTROLS)
