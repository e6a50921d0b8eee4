"""All learners behind one interface; `LEARNERS` makes them by the names of the thesis' tables."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from nas_core.continual.backbones import Backbone
from nas_core.continual.fit import FitConfig
from nas_core.continual.learners.base import (
    Finetune,
    Independent,
    Learner,
    LibraryLearner,
    NewHead,
    NewLeg,
    SharedPath,
)
from nas_core.continual.learners.ewc import EWC, fisher_diagonal, quadratic_penalty
from nas_core.continual.learners.growing import DEN, RCL
from nas_core.continual.learners.hat import HAT
from nas_core.continual.learners.learn_to_grow import LearnToGrow
from nas_core.continual.learners.mntdp import MNTDPD
from nas_core.continual.learners.mntdp_stochastic import MNTDPS
from nas_core.continual.learners.pnn import PNN
from nas_core.continual.learners.prior import rank_past
from nas_core.continual.learners.replay import ExperienceReplay, Reservoir, Ring

LEARNERS: dict[str, Callable[..., Learner]] = {
    "Independent": Independent,
    "Finetune": Finetune,
    "New-head freeze": partial(NewHead, freeze=True),
    "New-head finetune": partial(NewHead, freeze=False),
    "New-leg freeze": partial(NewLeg, freeze=True),
    "New-leg finetune": partial(NewLeg, freeze=False),
    "EWC": EWC,
    "Online EWC": partial(EWC, online=True),
    "ER": ExperienceReplay,
    "ER (reservoir)": lambda *args, size=900, **kwargs: ExperienceReplay(
        *args, buffer=Reservoir(size), **kwargs
    ),
    "PNN": PNN,
    "HAT": HAT,
    "DEN": DEN,
    "RCL": RCL,
    "Learn-to-grow": LearnToGrow,
    "MNTDP-S": MNTDPS,
    "MNTDP-S (k=all)": partial(MNTDPS, k="all"),
    "MNTDP-D": MNTDPD,
    "MNTDP-D (k=all)": partial(MNTDPD, k="all"),
}


def make_learner(
    name: str, backbone: Backbone, config: FitConfig | None = None, *, seed: int = 0, **options
) -> Learner:
    """A learner by its name in the tables; further options are those of its class.

    Raises:
        ValueError: for an unknown name.
    """
    if name not in LEARNERS:
        raise ValueError(f"learner {name!r} is unknown; choose one of {', '.join(LEARNERS)}")
    return LEARNERS[name](backbone, config, seed=seed, **options)


__all__ = [
    "DEN",
    "EWC",
    "HAT",
    "LEARNERS",
    "MNTDPD",
    "MNTDPS",
    "PNN",
    "RCL",
    "ExperienceReplay",
    "Finetune",
    "Independent",
    "LearnToGrow",
    "Learner",
    "LibraryLearner",
    "NewHead",
    "NewLeg",
    "Reservoir",
    "Ring",
    "SharedPath",
    "fisher_diagonal",
    "make_learner",
    "quadratic_penalty",
    "rank_past",
]
