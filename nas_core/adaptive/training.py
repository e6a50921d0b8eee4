"""Learning when to spend: the objective of thesis eq. 4.2 and its gradient, eq. 4.3."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from nas_core.adaptive.network import AdaptiveNetwork, Unrolled
from nas_core.audio.streams import StreamSet
from nas_core.search.reinforce import MovingAverage, policy_loss, reward_to_go
from nas_core.training import History, derived_seeds, run_epochs, versions


@dataclass(frozen=True)
class SanasConfig:
    """Hyper-parameters; the defaults are those of thesis section 4.4.2 where it gives any."""

    epochs: int = 60
    batch_size: int = 64  # sequences
    lr: float = 1e-3  # Adam, β = 0.9, 0.999; ends at lr / 100 on a cosine (1e-3 … 1e-5)
    weight_decay: float = 1e-5  # on trunk and classifier only
    lam: float = 0.1  # λ per *full network*, so it has no unit; the thesis' λ is lam / full_macs
    credit: Literal["step", "sequence"] = "step"  # "sequence": the whole return of eq. 4.3
    discount: float = 0.0  # of later rewards, for credit per step
    keep: float = 0.9  # share of the old value in the moving-average baseline
    warmup_epochs: int = 0  # first epochs with everything on and the controller at rest: while
    # the dear modules have learned nothing, the cheap ones look as good and λ ends the search
    seed: int = 0

    def __post_init__(self):
        if self.credit not in ("step", "sequence"):
            raise ValueError(f"credit is {self.credit!r}; use 'step' or 'sequence'")
        if not 0 <= self.discount <= 1:
            raise ValueError(f"discount is {self.discount}; it must be in 0…1")
        if self.lam < 0:
            raise ValueError(f"lam is {self.lam}; a negative λ would reward spending")
        if not 0 <= self.warmup_epochs < self.epochs:
            raise ValueError(f"warmup_epochs is {self.warmup_epochs}; use 0…{self.epochs - 1}")


@dataclass
class SanasRun:
    """Result of `train`; the model is trained in place."""

    history: pd.DataFrame  # one row per epoch: loss, cost, accuracy on validation, cost per word
    config: SanasConfig
    full_macs: int
    versions: dict[str, str]
    interrupted: bool = False


def train(
    model: AdaptiveNetwork,
    data: StreamSet,
    validation: StreamSet | None,
    config: SanasConfig,
    *,
    checkpoint: Path | None = None,
    progress: bool | str = True,
) -> SanasRun:
    """Minimise E[Σ_t Δ(ŷ_t, y_t) + λ C(A_t)] in weights and controller together.

    A fixed controller makes this the training of a static network: log P is constant then. The
    order of the sequences and all samples are functions of (seed, epoch) only.

    Args:
        validation: evaluated after every epoch with the most probable architectures; skipped
            when None.
    """
    learner = _Learner(model, data, config)

    def body(epoch: int) -> dict[str, Any]:
        row = learner.epoch(epoch)
        if validation is not None:
            windows = evaluate(model, validation)
            row |= summarise(windows)
            costs = windows.groupby("label", observed=False)["macs"].mean()
            row |= {f"macs {word}": value for word, value in costs.dropna().items()}
        return row

    result = run_epochs(
        body,
        config.epochs,
        state={"model": model, "optimiser": learner.optimiser, "baseline": learner.baseline},
        history=History(),
        checkpoint=checkpoint,
        progress=progress,
        config=asdict(config),
    )
    frame = result.history.frame()
    return SanasRun(frame, config, model.full_macs, versions(), result.interrupted)


class _Learner:
    def __init__(self, model: AdaptiveNetwork, data: StreamSet, config: SanasConfig):
        self.model, self.data, self.config = model, data, config
        self.weights = data.class_weights()
        self.baseline = MovingAverage(config.keep)
        controller = list(model.controller.parameters())
        others = [*model.trunk.parameters(), *model.classifier.parameters()]
        groups = [{"params": others, "weight_decay": config.weight_decay}]
        if controller:
            groups.append({"params": controller, "weight_decay": 0.0})
        self.optimiser = torch.optim.Adam(groups, lr=config.lr, fused=True)

    def epoch(self, epoch: int) -> dict[str, float]:
        c = self.config
        order_seed, sample_seed = derived_seeds(c.seed, epoch)
        torch.manual_seed(sample_seed)  # dropout of the baselines, noise of a blind controller
        order = torch.randperm(len(self.data), generator=torch.Generator().manual_seed(order_seed))
        generator = torch.Generator().manual_seed(sample_seed)
        for group in self.optimiser.param_groups:
            group["lr"] = c.lr * (0.01 + 0.99 * (1 + float(np.cos(np.pi * epoch / c.epochs))) / 2)
        self.model.train()
        sums = {"loss": 0.0, "cost": 0.0}
        count = 0
        batches = order.split(c.batch_size)
        for index in batches:
            index = index.to(self.data.length.device)
            x, length = self.data.windows(index), self.data.length[index]
            y = self.data.labels[index, : x.shape[1]]
            warm = epoch < c.warmup_epochs and self.model.controller.fixed is None
            unrolled = self._everything(x, length) if warm else None
            if unrolled is None:
                unrolled = self.model.unroll(x, length, generator=generator)
            loss, parts = objective(
                unrolled, y, length, self.model.macs(unrolled.mask) / self.model.full_macs,
                config=c, weights=self.weights, baseline=None if warm else self.baseline,
            )  # fmt: skip
            self.optimiser.zero_grad(set_to_none=True)
            loss.backward()
            self.optimiser.step()
            steps = int(length.sum())
            count += steps
            for name in sums:
                sums[name] += parts[name].item() * steps
        return {"loss": sums["loss"] / count, "train_cost": sums["cost"] / count}

    def _everything(self, x: Tensor, length: Tensor) -> Unrolled:
        """An unrolling with all edges on, in one go."""
        model = self.model
        valid = torch.arange(x.shape[1], device=x.device) < length.unsqueeze(1)
        features = model.trunk((x[valid] - model.mean) / model.std)
        logits = features.new_zeros(*valid.shape, model.classifier.out_features)
        logits[valid] = model.classifier(features)
        edges = valid.unsqueeze(2).expand(-1, -1, model.trunk.num_edges)
        return Unrolled(logits, edges, logits.new_zeros(valid.shape), edges.to(logits))


def objective(
    unrolled: Unrolled,
    labels: Tensor,
    length: Tensor,
    cost: Tensor,
    *,
    config: SanasConfig,
    weights: Tensor | None = None,
    baseline: MovingAverage | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """A scalar whose gradient estimates that of eq. 4.2, per step.

    Args:
        labels: int64 `[B, T]`.
        cost: `[B, T]`, C(A_t) in units of the full network.
        weights: of the classes `[C]`.
        baseline: updated by this call; without it only the weights of the network learn.

    Returns:
        the scalar, and the means `loss` (Δ) and `cost` over real steps.
    """
    valid = torch.arange(labels.shape[1], device=labels.device) < length.unsqueeze(1)
    steps = valid.sum()
    logits = unrolled.logits.flatten(0, 1)
    delta = cross_entropy(logits, labels.flatten(), weight=weights, reduction="none")
    delta = delta.view_as(valid) * valid
    cost = cost.to(delta) * valid
    loss = delta.sum() / steps
    total = loss
    if baseline is not None:
        gain = returns((delta + config.lam * cost).detach(), config)
        reference = baseline.update(gain[valid])
        total = loss + policy_loss(unrolled.log_prob[valid], gain[valid], reference)
    return total, {"loss": loss.detach(), "cost": cost.sum() / steps}


def returns(rewards: Tensor, config: SanasConfig) -> Tensor:
    """What each step is held responsible for `[B, T]`; rewards `[B, T]` are zero on padding.

    Per step: its own reward and discounted later ones. Whole sequence: the sum over all steps for
    every step, as eq. 4.3 is written (unbiased, but most of it is noise to a single step).
    """
    if config.credit == "sequence":
        return rewards.sum(1, keepdim=True).expand_as(rewards)
    return reward_to_go(rewards, config.discount)


@torch.no_grad()
def evaluate(
    model: AdaptiveNetwork,
    data: StreamSet,
    *,
    batch_size: int = 64,
    generator: torch.Generator | None = None,
) -> pd.DataFrame:
    """One row per window: stream, step, label, prediction, share of the word, macs, leaning.

    `leaning` is Σ γ_e · macs_e: it moves before any γ has crossed ½ and `macs` can show it.

    Args:
        generator: sample architectures; the most probable ones when None.
    """
    model.eval()
    frames = []
    for index in torch.arange(len(data), device=data.length.device).split(batch_size):
        x, length = data.windows(index), data.length[index]
        unrolled = model.unroll(x, length, generator=generator)
        valid = torch.arange(x.shape[1], device=x.device) < length.unsqueeze(1)
        row, step = valid.nonzero(as_tuple=True)
        frames.append(
            pd.DataFrame(
                {
                    "stream": index[row].cpu(),
                    "step": step.cpu(),
                    "label": data.labels[index[row], step].cpu(),
                    "prediction": unrolled.logits[valid].argmax(1).cpu(),
                    "share": data.share[index[row], step].cpu(),
                    "macs": model.macs(unrolled.mask[valid]).cpu(),
                    "leaning": (unrolled.gamma[valid] @ model.edge_macs.to(x)).cpu(),
                }
            )
        )
    table = pd.concat(frames, ignore_index=True)
    for column in ("label", "prediction"):
        table[column] = pd.Categorical.from_codes(table[column], list(data.classes))
    return table


def summarise(windows: pd.DataFrame) -> dict[str, float]:
    """Accuracy (over windows, balanced over classes) and where macs went, of `evaluate`'s table."""
    right = windows["label"] == windows["prediction"]
    background = windows["label"] == windows["label"].cat.categories[0]
    # The first step of a stream is chosen before anything was heard.
    later = windows["step"] > 0
    # Correlation with the share of the word (fig. 4.11); what never changes has none.
    follows = windows.loc[later, ["share", "macs", "leaning"]].corr()["share"].fillna(0.0)
    return {
        "accuracy": float(right.mean()),
        "balanced_accuracy": float(right.groupby(windows["label"], observed=True).mean().mean()),
        "macs": float(windows["macs"].mean()),
        "macs_background": float(windows.loc[background & later, "macs"].mean()),
        "macs_words": float(windows.loc[~background & later, "macs"].mean()),
        "share_correlation": float(follows["macs"]),
        "leaning_correlation": float(follows["leaning"]),
    }
