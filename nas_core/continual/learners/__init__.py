"""All learners behind one interface; `LEARNERS` makes them by the names of the thesis' tables."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from nas_core.continual.backbones import Backbone
from nas_core.continual.fit import FitConfig
from nas_core.continual.learners.base import Finetune, Independent, Learner, NewHead, NewLeg
from nas_core.continual.learners.ewc import EWC
from nas_core.continual.learners.growing import DEN, RCL
from nas_core.continual.learners.hat import HAT
from nas_core.continual.learners.learn_to_grow import LearnToGrow
from nas_core.continual.learners.mntdp import MNTDPD, MNTDPS
from nas_core.continual.learners.pnn import PNN
from nas_core.continual.learners.replay import ExperienceReplay, Reservoir


def _reservoir(*args: Any, size: int = 900, **options: Any) -> ExperienceReplay:
    return ExperienceReplay(*args, buffer=Reservoir(size), **options)


LEARNERS: dict[str, Callable[..., Learner]] = {
    "Independent": Independent,
    "Finetune": Finetune,
    "New-head freeze": NewHead,
    "New-head finetune": partial(NewHead, freeze=False),
    "New-leg freeze": NewLeg,
    "New-leg finetune": partial(NewLeg, freeze=False),
    "EWC": EWC,
    "Online EWC": partial(EWC, online=True),
    "ER": ExperienceReplay,
    "ER (reservoir)": _reservoir,
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
    name: str, backbone: Backbone, config: FitConfig | None = None, *, seed: int = 0, **options: Any
) -> Learner:
    """A learner by its name in the tables; further options are those of its class.

    Raises:
        ValueError: for an unknown name.
    """
    if name not in LEARNERS:
        raise ValueError(f"learner {name!r} is unknown; choose one of {', '.join(LEARNERS)}")
    return LEARNERS[name](backbone, config or FitConfig(), seed=seed, **options)
