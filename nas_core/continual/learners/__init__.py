"""All learners behind one interface; `LEARNERS` makes them by the names of the thesis' tables."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from nas_core.continual.backbones import Backbone
from nas_core.continual.fit import FitConfig
from nas_core.continual.learners.base import Learner
from nas_core.continual.learners.growing import DEN, RCL
from nas_core.continual.learners.mntdp import MNTDPD, MNTDPS
from nas_core.continual.learners.networks import HAT, PNN, LearnToGrow
from nas_core.continual.learners.shared_path import EWC, ExperienceReplay, Reservoir, SharedPath

LEARNERS: dict[str, Callable[..., Learner]] = {
    "Independent": partial(SharedPath, label="Independent", own="all"),
    "Finetune": partial(SharedPath, label="Finetune"),
    "New-head freeze": partial(SharedPath, label="New-head freeze", own=(-1,), freeze=True),
    "New-head finetune": partial(SharedPath, label="New-head finetune", own=(-1,)),
    "New-leg freeze": partial(SharedPath, label="New-leg freeze", own=(0,), freeze=True),
    "New-leg finetune": partial(SharedPath, label="New-leg finetune", own=(0,)),
    "EWC": EWC,
    "Online EWC": partial(EWC, online=True),
    "ER": ExperienceReplay,
    "ER (reservoir)": partial(ExperienceReplay, buffer=Reservoir(900)),
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
    """A learner by its name in the tables; further options are those of its class."""
    if name not in LEARNERS:
        raise ValueError(f"learner {name!r} is unknown; choose one of {', '.join(LEARNERS)}")
    return LEARNERS[name](backbone, config or FitConfig(), seed=seed, **options)
