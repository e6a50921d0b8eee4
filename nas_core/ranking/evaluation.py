"""Evaluate the search itself: many seeds, a random policy, the same training for both.

The framework of Yu (2021), section 5.2: each search runs with every seed, what it finds is trained
from scratch (here: looked up in a table of such trainings), and is compared with single random
architectures that are trained in the same way.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
import torch

from nas_core.ranking.metrics import p_above_random, rank_of, spread, welch
from nas_core.ranking.spaces import Encoding
from nas_core.ranking.supernet import (
    Score,
    SuperNetConfig,
    shared_scores,
    single_path,
    train_supernet,
)
from nas_core.search.strategies import TokenPolicy
from nas_core.spaces.cells import Cell, CellSpace
from nas_core.supernet import SuperNetwork
from nas_core.training import MovingAverage, TensorData, descend

Search = Callable[[int], Encoding]  # seed -> what the search found


def run_searches(
    searches: Mapping[str, Search],
    truth: Callable[[Encoding], float],
    seeds: Iterable[int],
) -> pd.DataFrame:
    """Run every search with every seed; rows `search`, `seed`, `cell`, `accuracy`.

    Args:
        truth: accuracy of an architecture trained from scratch, in a way that no search has seen.
    """
    rows = [
        {"search": name, "seed": seed, "cell": (cell := search(seed)), "accuracy": truth(cell)}
        for seed in seeds
        for name, search in searches.items()
    ]
    return pd.DataFrame(rows)


def summarize(
    found: pd.DataFrame, everything: Sequence[float] | np.ndarray, *, reference: str = "random"
) -> pd.DataFrame:
    """One row per search, as in tables 5.1 to 5.4.

    Args:
        found: `run_searches`; every search needs at least two seeds.
        everything: accuracies of the whole space, for ranks.
        reference: the search to compare with.

    Returns:
        `seeds`, `mean`, `std`, `best`, `best rank`, `p(>random)` of the best rank with as many
        draws as seeds, and `Welch p`, two-sided, against the reference (NaN for itself).
    """
    groups = {name: g["accuracy"].to_numpy() for name, g in found.groupby("search", sort=False)}
    if reference not in groups:
        raise ValueError(f"no search is named {reference!r}; there are {', '.join(groups)}")
    rows = {}
    for name, values in groups.items():
        rank = rank_of(values.max(), everything)
        rows[name] = {
            "seeds": len(values),
            "mean": values.mean(),
            "std": spread(values),
            "best": values.max(),
            "best rank": rank,
            "p(>random)": p_above_random(rank, len(everything), len(values)),
            "Welch p": np.nan if name == reference else welch(values, groups[reference]),
        }
    return pd.DataFrame.from_dict(rows, orient="index").astype({"seeds": int, "best rank": int})


def scorer(space: CellSpace, net: SuperNetwork, held_out: TensorData, **options) -> Score:
    """Accuracies with shared weights as a `Score`; each architecture is evaluated once.

    Cells that connect nothing score 0. `options` go to `shared_scores`.
    """
    known: dict[Encoding, float] = {}

    def score(cells: Sequence[Encoding]) -> list[float]:
        new = [cell for cell in dict.fromkeys(cells) if cell not in known]
        masks = [space.mask(net, cell) for cell in new]
        live = [mask for mask in masks if mask.any()]
        values = iter(shared_scores(net, live, held_out, **options).tolist())
        known.update({c: next(values) if m.any() else 0.0 for c, m in zip(new, masks, strict=True)})
        return [known[cell] for cell in cells]

    return score


def enas(
    space: CellSpace,
    net: SuperNetwork,
    train: TensorData,
    held_out: TensorData,
    config: SuperNetConfig,
    *,
    policy_steps: int = 20,
    warmup: float = 0.25,
    batch: int = 8,
    lr: float = 0.03,
    final: int = 32,
) -> Cell:
    """ENAS (Pham et al. 2018): shared weights and a recurrent policy learn in turn.

    The policy draws the path of every step. After every epoch, the first `warmup` of them excepted,
    it takes `policy_steps` REINFORCE steps; rewards are accuracies with the shared weights on 64
    held-out examples. The best of `final` drawn cells is returned, by all of `held_out`.
    """
    generator = torch.Generator().manual_seed(config.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        policy = TokenPolicy(space)
    optimizer = torch.optim.Adam(policy.parameters(), lr=lr, fused=True)
    baseline = MovingAverage(0.9)
    rng = np.random.default_rng(config.seed)

    def sample(_: random.Random) -> Cell:
        with torch.no_grad():
            return tuple(policy.sample(1, generator)[0][0].tolist())

    def learn(epoch: int) -> None:
        for _ in range(policy_steps if epoch >= warmup * config.epochs else 0):
            part = held_out.subset(rng.permutation(len(held_out))[:64].tolist())
            tokens, log_prob = policy.sample(batch, generator)
            cells = [tuple(row) for row in tokens.tolist()]
            reward = torch.tensor(scorer(space, net, part)(cells))
            advantage = (reward - baseline.update(reward)) / (reward.std() + 1e-6)
            descend(-(advantage * log_prob).mean(), optimizer)

    train_supernet(net, single_path(space, net, sample), train, config, after_epoch=learn)
    with torch.no_grad():
        drawn = [tuple(row) for row in policy.sample(final, generator)[0].tolist()]
    return max(zip(scorer(space, net, held_out)(drawn), drawn, strict=True))[1]
