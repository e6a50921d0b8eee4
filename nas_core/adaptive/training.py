"""Learning when to compute: the objective of thesis eq. 4.2 and its gradient, eq. 4.3."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from nas_core import training
from nas_core.adaptive.network import AdaptiveNetwork, Unrolled
from nas_core.audio.streams import StreamSet
from nas_core.search.reinforce import policy_loss, reward_to_go
from nas_core.training import MovingAverage, derived_seeds, require


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
        require(self.credit in ("step", "sequence"), "credit", self.credit, "'step' or 'sequence'")
        warmup, last = self.warmup_epochs, self.epochs - 1
        require(0 <= warmup <= last, "warmup_epochs", warmup, f"in 0…{last}")
        limits = {"batch_size": (1, 1e12), "lr": (1e-12, 1e12), "weight_decay": (0, 1e12)}
        limits |= {"lam": (0, 1e12), "discount": (0, 1), "keep": (0, 1 - 1e-9), "spend": (1e-9, 1)}
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            within = value is None or low <= value <= high  # refuses NaN, too
            require(within, name, value, f"a number in {low:g}…{high:g}")


@dataclass
class SanasRun:
    """Result of `train`; the model is trained in place."""

    history: pd.DataFrame  # one row per epoch: loss, cost, accuracy on validation, cost per word
    interrupted: bool = False


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
    order of the sequences and all samples are functions of (seed, epoch) only. Where there is a
    `validation` set it is evaluated after every epoch with the most probable architectures.
    """
    baseline, price = MovingAverage(config.keep), _Price(config)
    weights = data.class_weights()
    others = [*model.trunk.parameters(), *model.classifier.parameters()]
    groups = [{"params": others, "weight_decay": config.weight_decay}]
    if controller := list(model.controller.parameters()):
        groups.append({"params": controller, "weight_decay": 0.0})
    optimizer, device = training.make_optimizer(groups, "adam", lr=config.lr), data.length.device

    def body(epoch: int) -> dict[str, Any]:
        order_seed, sample_seed = derived_seeds(config.seed, epoch)
        torch.manual_seed(sample_seed)  # dropout of the baselines, noise of a blind controller
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(order_seed))
        generator = torch.Generator().manual_seed(sample_seed)  # of the architectures
        training.set_lr(optimizer, training.cosine_lr(config.lr, epoch, config.epochs, floor=0.01))
        warm = epoch < config.warmup_epochs and model.controller.fixed is None
        model.train()
        sums = torch.zeros(3, device=device)  # of Δ, cost, and steps
        for index in order.split(config.batch_size):
            index = index.to(device)
            x, length = data.windows(index), data.length[index]  # x [B, T, 1, F, n_mfcc]
            labels = data.labels[index, : x.shape[1]]  # [B, T]
            unrolled = model.unroll(x, length, generator=generator, everything=warm)
            cost = model.macs(unrolled.mask) / model.full_macs  # [B, T]
            now = replace(config, lam=price.lam)
            reference = None if warm else baseline
            loss, parts = objective(
                unrolled, labels, length, cost, config=now, weights=weights, baseline=reference
            )
            training.descend(loss, optimizer)
            steps = length.sum()
            sums += torch.stack([parts["loss"] * steps, parts["cost"] * steps, steps])
            if not warm and config.spend is not None:
                price.update(parts["cost"].item())
        delta, spent, count = sums.tolist()  # the device is read once per epoch
        row = {"loss": delta / count, "train_cost": spent / count}
        if config.spend is not None:
            row["lam"] = price.lam
        if validation is not None:
            windows = window_table(model, validation)
            later = windows[windows["step"] > 0]  # the price of step 0 is that of z_0
            costs = later.groupby("label", observed=False)["macs"].mean().dropna()
            row |= summarise(windows) | {f"macs {word}": cost for word, cost in costs.items()}
        return row

    identity = asdict(config) | {
        "schedule": config.epochs,  # the learning rate of an epoch depends on how many there are
        "model": training.fingerprint(model, model.edge_macs, model.controller.blind),
        "data": data.fingerprint(),
        "validation": validation and validation.fingerprint(),
    }
    state = {"model": model, "optimizer": optimizer, "baseline": baseline, "price": price}
    result = training.run_epochs(
        body, config.epochs, state=state, checkpoint=checkpoint, progress=progress, config=identity
    )
    return SanasRun(result.history.frame(), result.interrupted)


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
    """A scalar whose gradient estimates that of eq. 4.2, per step, with the means it came from.

    Labels are int64 `[B, T]`, `cost` `[B, T]` is C(A_t) in units of the full network, `weights`
    `[C]` belong to the classes. This call updates the `baseline`; without one only the weights of
    the network learn. The means are `loss` (Δ) over real steps and `cost` over those but step 0.
    """
    valid = torch.arange(labels.shape[1], device=labels.device) < length.unsqueeze(1)
    logits = unrolled.logits.flatten(0, 1)
    delta = cross_entropy(logits, labels.flatten(), weight=weights, reduction="none")
    delta = delta.view_as(valid) * valid
    cost = cost.to(delta) * valid
    loss = total = delta.sum() / valid.sum()
    if baseline is not None:
        gain = returns((delta + config.lam * cost).detach(), config)
        reference = baseline.update(gain[valid])
        total = loss + policy_loss(unrolled.log_prob[valid], gain[valid], reference)
    spent = cost[:, 1:].sum() / valid[:, 1:].sum().clamp(min=1)
    return total, {"loss": loss.detach(), "cost": spent}


def returns(rewards: Tensor, config: SanasConfig) -> Tensor:
    """Return of each step `[B, T]`; rewards `[B, T]` are zero on padding.

    "step": its own reward and discounted later ones. "sequence": the sum over all steps for every
    step, as eq. 4.3 is written (unbiased, but most of it is noise to a single step).
    """
    if config.credit == "sequence":
        return rewards.sum(1, keepdim=True).expand_as(rewards)
    return reward_to_go(rewards, config.discount)


@torch.no_grad()
def window_table(
    model: AdaptiveNetwork, data: StreamSet, *, generator: torch.Generator | None = None
) -> pd.DataFrame:
    """One row per window: stream, step, label, prediction, share of the word, macs, leaning.

    `leaning` is Σ γ_e · macs_e: it moves before any γ has crossed ½ and `macs` can show it.
    Architectures are sampled with `generator`; without one the most probable are taken.
    """
    model.eval()
    parts = []
    for index in torch.arange(len(data), device=data.length.device).split(64):
        x, length = data.windows(index), data.length[index]
        unrolled = model.unroll(x, length, generator=generator)
        valid = torch.arange(x.shape[1], device=x.device) < length.unsqueeze(1)
        row, step = valid.nonzero(as_tuple=True)
        stream = index[row]
        columns = {"stream": stream, "step": step, "label": data.labels[stream, step]}
        columns["prediction"] = unrolled.logits[valid].argmax(1)
        columns["share"] = data.share[stream, step]
        columns["macs"] = model.macs(unrolled.mask[valid])
        columns["leaning"] = unrolled.gamma[valid] @ model.edge_macs.to(x)
        parts.append(pd.DataFrame({name: values.cpu() for name, values in columns.items()}))
    table = pd.concat(parts, ignore_index=True)
    for column in ("label", "prediction"):
        table[column] = pd.Categorical.from_codes(table[column], list(data.classes))
    return table


def summarise(windows: pd.DataFrame) -> dict[str, float]:
    """Accuracy (over windows, balanced over classes) and where macs went, of a `window_table`.

    Step 0 is in no mean of cost: z_0 alone chose its architecture, before anything was heard.
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
