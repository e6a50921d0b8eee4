"""Learning when to compute: the objective of thesis eq. 4.2 and its gradient, eq. 4.3."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from nas_core.adaptive.network import AdaptiveNetwork, Unrolled
from nas_core.audio.streams import StreamSet
from nas_core.search.reinforce import policy_loss, reward_to_go
from nas_core.training import (
    MovingAverage,
    cosine_lr,
    derived_seeds,
    descend,
    fingerprint,
    make_optimizer,
    run_epochs,
    set_lr,
    versions,
)


@dataclass(frozen=True)
class SanasConfig:
    """Hyper-parameters; the defaults are those of thesis section 4.4.2 where it gives any."""

    epochs: int = 60
    batch_size: int = 64  # sequences
    lr: float = 1e-3  # Adam, β = 0.9, 0.999; ends at lr / 100 on a cosine (1e-3 … 1e-5)
    weight_decay: float = 1e-5  # on trunk and classifier only
    lam: float = 0.1  # λ per *full network*, so it has no unit; the thesis' λ is lam / full_macs
    spend: float | None = None  # mean cost of sampled architectures to reach, as a share of the
    # full network: λ then starts at `lam` and follows. For comparisons at equal cost (sample then
    # in evaluation, too: the most probable architectures of a blind controller cost less).
    credit: Literal["step", "sequence"] = "step"  # "sequence": the whole return of eq. 4.3
    discount: float = 0.0  # of later rewards, for credit per step
    keep: float = 0.9  # share of the old value in the moving-average baseline
    warmup_epochs: int = 0  # first epochs with everything on and the controller at rest: while the
    # expensive modules have learned nothing, the cheap ones look as good and λ ends the search
    seed: int = 0

    def __post_init__(self):
        for name, value in vars(self).items():
            if isinstance(value, np.generic):  # a checkpoint could not be read back with it
                object.__setattr__(self, name, value.item())
        if self.credit not in ("step", "sequence"):
            raise ValueError(f"credit is {self.credit!r}; use 'step' or 'sequence'")
        if not 0 <= self.warmup_epochs < self.epochs:
            raise ValueError(f"warmup_epochs is {self.warmup_epochs}; use 0…{self.epochs - 1}")
        limits = {
            "batch_size": (1, np.inf), "lr": (1e-12, np.inf), "weight_decay": (0, np.inf),
            "lam": (0, np.inf), "discount": (0, 1), "keep": (0, 1 - 1e-9), "spend": (1e-9, 1),
        }  # fmt: skip
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= min(high, 1e12):  # refuses NaN, too
                raise ValueError(f"{name} is {value}; it must be a number in {low:g}…{high:g}")


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
            windows = window_table(model, validation)
            row |= summarise(windows)
            later = windows[windows["step"] > 0]  # the price of step 0 is that of z_0
            costs = later.groupby("label", observed=False)["macs"].mean()
            row |= {f"macs {word}": value for word, value in costs.dropna().items()}
        return row

    identity = {
        "schedule": config.epochs,  # the learning rate of an epoch depends on how many there are
        "model": fingerprint(model, model.edge_macs, model.controller.blind),
        "data": data.fingerprint(),
        "validation": validation and validation.fingerprint(),
    }
    parts = ("model", "optimizer", "baseline", "price")
    result = run_epochs(
        body,
        config.epochs,
        state={name: getattr(learner, name) for name in parts},
        checkpoint=checkpoint,
        progress=progress,
        config=asdict(config) | identity,
    )
    frame = result.history.frame()
    return SanasRun(frame, config, model.full_macs, versions(), result.interrupted)


class _Price:
    """λ: constant, or a proportional-integral control that drives the mean cost to `spend`."""

    def __init__(self, config: SanasConfig):
        self.lam = self.base = config.lam
        self.spend = config.spend or 1.0

    def update(self, cost: float) -> None:
        """Raise λ after a batch that cost more than `spend`, lower it after one that cost less."""
        excess = cost / self.spend - 1
        self.base = max(0.0, self.base + 0.01 * excess)
        self.lam = max(0.0, self.base + 2 * excess)

    def state_dict(self) -> dict[str, float]:
        return {"lam": self.lam, "base": self.base}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.lam, self.base = state["lam"], state["base"]


class _Learner:
    def __init__(self, model: AdaptiveNetwork, data: StreamSet, config: SanasConfig):
        self.model, self.data, self.config = model, data, config
        self.weights = data.class_weights()
        self.baseline, self.price = MovingAverage(config.keep), _Price(config)
        controller = list(model.controller.parameters())
        others = [*model.trunk.parameters(), *model.classifier.parameters()]
        groups = [{"params": others, "weight_decay": config.weight_decay}]
        if controller:
            groups.append({"params": controller, "weight_decay": 0.0})
        self.optimizer = make_optimizer(groups, "adam", lr=config.lr)

    def epoch(self, epoch: int) -> dict[str, float]:
        c, model, data = self.config, self.model, self.data
        order_seed, sample_seed = derived_seeds(c.seed, epoch)
        torch.manual_seed(sample_seed)  # dropout of the baselines, noise of a blind controller
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(order_seed))
        generator = torch.Generator().manual_seed(sample_seed)  # of the architectures
        set_lr(self.optimizer, cosine_lr(c.lr, epoch, c.epochs, floor=0.01))
        warm = epoch < c.warmup_epochs and model.controller.fixed is None
        model.train()
        sums = torch.zeros(3, device=data.length.device)  # of Δ, cost, and steps
        for index in order.split(c.batch_size):
            index = index.to(data.length.device)
            x, length = data.windows(index), data.length[index]  # x [B, T, 1, F, n_mfcc]
            labels = data.labels[index, : x.shape[1]]  # [B, T]
            unrolled = model.unroll(x, length, generator=generator, everything=warm)
            cost = model.macs(unrolled.mask) / model.full_macs  # [B, T]
            loss, parts = objective(
                unrolled, labels, length, cost, config=replace(c, lam=self.price.lam),
                weights=self.weights, baseline=None if warm else self.baseline,
            )  # fmt: skip
            descend(loss, self.optimizer)
            steps = length.sum()
            sums += torch.stack([parts["loss"] * steps, parts["cost"] * steps, steps])
            if not warm and c.spend is not None:
                self.price.update(parts["cost"].item())
        delta, spent, count = sums.tolist()  # the device is read once per epoch
        row = {"loss": delta / count, "train_cost": spent / count}
        return row if c.spend is None else row | {"lam": self.price.lam}


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
        the scalar, and the means `loss` (Δ) over real steps and `cost` over those but step 0.
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
    spent = cost[:, 1:].sum() / valid[:, 1:].sum().clamp(min=1)
    return total, {"loss": loss.detach(), "cost": spent}


def returns(rewards: Tensor, config: SanasConfig) -> Tensor:
    """Return of each step `[B, T]`; rewards `[B, T]` are zero on padding.

    Per step: its own reward and discounted later ones. Whole sequence: the sum over all steps for
    every step, as eq. 4.3 is written (unbiased, but most of it is noise to a single step).
    """
    if config.credit == "sequence":
        return rewards.sum(1, keepdim=True).expand_as(rewards)
    return reward_to_go(rewards, config.discount)


@torch.no_grad()
def window_table(
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
    """Accuracy (over windows, balanced over classes) and where macs went, of a `window_table`.

    Step 0 is left out of all means of cost: its architecture was chosen by z_0 alone, before
    anything was heard, and in short sequences it would dominate the mean.
    """
    right = windows["label"] == windows["prediction"]
    later = windows[windows["step"] > 0]
    background = later["label"] == later["label"].cat.categories[0]
    # Correlation with the share of the word (fig. 4.11); what never changes has none.
    follows = later[["share", "macs", "leaning"]].corr()["share"].fillna(0.0)
    return {
        "accuracy": float(right.mean()),
        "balanced_accuracy": float(right.groupby(windows["label"], observed=True).mean().mean()),
        "macs": float(later["macs"].mean()),
        "macs_background": float(later.loc[background, "macs"].mean()),
        "macs_words": float(later.loc[~background, "macs"].mean()),
        "share_correlation": float(follows["macs"]),
        "leaning_correlation": float(follows["leaning"]),
    }


def cost_by_step(windows: pd.DataFrame, column: str = "macs") -> pd.DataFrame:
    """Mean cost of background and of words at each step of the streams, of a `window_table`.

    Counting steps shows as a slope; the columns differ only if the controller uses the sound.
    """
    heard = windows["label"] == windows["label"].cat.categories[0]
    table = windows.groupby(["step", heard])[column].mean().unstack()
    return table.rename(columns={True: "background", False: "words"}).rename_axis(columns=None)
