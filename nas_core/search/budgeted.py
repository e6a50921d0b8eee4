"""Budgeted super-networks: learn weights and architecture together under any cost.

The objective is E_{H ~ Γ} [ Δ(f(x, H ⊙ E, θ), y) + λ max(0, C(H ⊙ E) − C_max) ] (thesis eq. 3.10),
minimised by gradient descent on θ and by REINFORCE with the batch mean as baseline on Γ
(eq. 3.25). One architecture is drawn for every example of a batch.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from nas_core.costs import Cost, price
from nas_core.search.reinforce import overspend, policy_loss
from nas_core.search.run import Run
from nas_core.search.space_profile import profile_space
from nas_core.supernet import Architecture, BernoulliSampler, ChoiceSampler, SuperNetwork
from nas_core.training import Splits, derived_seeds, run_epochs, versions
from nas_core.training import evaluate as measure


@dataclass(frozen=True)
class BudgetConfig:
    """Hyper-parameters of a budgeted search; the defaults are those of thesis section 3.5.2."""

    epochs: int = 300  # in all, warm-up included
    warmup_epochs: int = 50  # with the whole super-network and no sampling
    batch_size: int = 128
    lr: float = 0.1  # of θ
    milestones: tuple[int, ...] = (150, 225)  # epochs before which lr is divided by 10
    momentum: float = 0.9
    weight_decay: float = 1e-4  # on θ only
    gamma_lr: float = 3.0  # of Γ̂; our loss is a mean over the batch where the authors sum
    lam: float = 1.0  # λ, per unit of the full network's cost, so that it has no unit
    entropy_weight: float = 0.0  # bonus for the entropy of Γ; the thesis uses none
    max_logit: float | None = None  # |γ̂| at most; with a fast Γ it stops early, final decisions
    amp: bool = True  # bfloat16 autocast and channels_last on a GPU; ignored on CPU
    seed: int = 0

    def __post_init__(self):
        if not 0 <= self.warmup_epochs < self.epochs:
            raise ValueError(
                f"warmup_epochs is {self.warmup_epochs}; it must be in 0…{self.epochs - 1}, "
                "so that sampling starts before the last epoch"
            )
        if self.max_logit is not None and self.max_logit <= 0:
            raise ValueError(f"max_logit is {self.max_logit}; it must be positive, or None")
        if self.lam < 0:
            raise ValueError(f"lam is {self.lam}; a negative λ would reward overspending")

    def lr_at(self, epoch: int) -> float:
        """Learning rate of θ in an epoch: divided by 10 at every milestone passed."""
        return self.lr * 0.1 ** sum(epoch >= m for m in self.milestones)


def per_example_loss(output: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of every example `[B]`; the mean over pixels for `[B, K, H, W]` maps."""
    losses = cross_entropy(output.float(), target, reduction="none")
    return losses.flatten(1).mean(1) if losses.dim() > 1 else losses


def budgeted(
    supernet: SuperNetwork,
    sampler: BernoulliSampler | ChoiceSampler,
    cost: Cost,
    budget: float,
    data: Splits,
    config: BudgetConfig,
    *,
    checkpoint: str | Path | None = None,
    progress: bool | str = True,
) -> Run:
    """Search an architecture whose cost stays within the budget.

    Args:
        supernet: trained in place, on the device of `data`.
        sampler: Γ over the edges; stays on the CPU. It is reset after warm-up.
        cost: any callable from pruned masks `[B, E]` to `[B]`; it may be stochastic.
        budget: C_max, in the unit of the cost.
        data: `train` is learned from; `val` is only measured.
        checkpoint: file that is written after every epoch and, if it exists, continued from bit
            for bit.

    Raises:
        ValueError: when even the cheapest architecture costs more than the budget.
        NonFiniteLoss: when the loss is no longer finite; the last good checkpoint is kept.
    """
    full_cost = _checked_budget(supernet, cost, budget, config.seed)
    search = _Search(supernet, sampler, cost, budget, full_cost, data, config)
    loop = run_epochs(
        search.epoch,
        config.epochs,
        state=search.state(),
        checkpoint=checkpoint,
        progress=progress,
        config={**asdict(config), "budget": float(budget), "space": supernet.graph.fingerprint},
    )
    architecture = Architecture.from_mask(supernet.graph, sampler.mode())
    return Run(
        graph=supernet.graph,
        history=loop.history.frame(),
        probabilities=torch.tensor(search.trace.rows),
        architecture=architecture,
        cost=price(cost, architecture.mask.unsqueeze(0)).item(),
        budget=float(budget),
        full_cost=full_cost,
        cost_name=getattr(cost, "name", "cost"),
        cost_unit=getattr(cost, "unit", ""),
        config=asdict(config),
        seed=config.seed,
        versions=versions(),
        interrupted=loop.interrupted,
    )


class _Search:
    """What an epoch needs; everything that changes is in `state()`."""

    def __init__(self, supernet, sampler, cost, budget, full_cost, data, config):
        self.supernet, self.sampler, self.cost = supernet, sampler, cost
        self.budget, self.full_cost = budget, full_cost
        self.data, self.config = data, config
        self.device = data.train.device
        self.on_gpu = self.device.type == "cuda" and config.amp
        supernet.to(self.device)
        if self.on_gpu:
            supernet.to(memory_format=torch.channels_last)
        self.theta = torch.optim.SGD(
            supernet.parameters(),
            lr=config.lr,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
        )
        self.gamma = torch.optim.SGD(
            sampler.parameters(), lr=config.gamma_lr, momentum=config.momentum
        )
        self.trace = _Trace()

    def state(self) -> dict:
        return {
            "supernet": self.supernet,
            "sampler": self.sampler,
            "theta": self.theta,
            "gamma": self.gamma,
            "trace": self.trace,
        }

    def epoch(self, epoch: int) -> dict:
        warm = epoch < self.config.warmup_epochs
        if epoch == self.config.warmup_epochs:
            self.sampler.reset()
        for group in self.theta.param_groups:
            group["lr"] = self.config.lr_at(epoch)
        # Drawn from (seed, epoch), so that resuming needs no state of a generator.
        generator = torch.Generator().manual_seed(derived_seeds(self.config.seed, epoch, 1)[0])
        self.supernet.train()
        totals = _Means()
        for x, y in self._batches(epoch):
            step = self._warm_step(x, y) if warm else self._search_step(x, y, generator)
            totals.add(**step)
        full = torch.ones(len(self.supernet.graph), dtype=torch.bool)
        probabilities = full.float() if warm else self.sampler.probabilities().cpu()
        self.trace.rows.append(probabilities.tolist())
        mode = full if warm else self.sampler.mode()
        mode_cost = price(self.cost, mode.unsqueeze(0)).item()
        self.supernet.eval()
        validation = measure(lambda x: self.supernet(x, mask=mode), self.data.val)
        return {
            "phase": "warm-up" if warm else "search",
            **totals.values(),
            "entropy": 0.0 if warm else self.sampler.entropy().item(),
            "mode_cost": mode_cost,
            "val_loss": validation["loss"],
            "val_accuracy": validation["accuracy"],
        }

    def _batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        batches = self.data.train.batches(
            self.config.batch_size, seed=self.config.seed, epoch=epoch, shuffle=True
        )
        for x, y in batches:
            yield (x.to(memory_format=torch.channels_last) if self.on_gpu else x), y

    def _loss(self, x: Tensor, y: Tensor, mask: Tensor | None) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.on_gpu):
            output = self.supernet(x, mask)
        return per_example_loss(output, y)

    def _warm_step(self, x: Tensor, y: Tensor) -> dict:
        loss = self._loss(x, y, None).mean()
        self._descend(loss)
        return {"loss": loss.detach(), "cost_mean": self.full_cost, "violation": 0.0}

    def _search_step(self, x: Tensor, y: Tensor, generator: torch.Generator) -> dict:
        sample = self.sampler.sample(len(x), generator)
        mask = self.supernet.graph.reachable(sample.mask)
        cost = price(self.cost, mask)
        losses = self._loss(x, y, mask)
        penalty = overspend(cost, self.budget, self.full_cost)
        # The one point of a step at which the host waits for the device.
        objective = losses.detach().to("cpu", torch.float64) + self.config.lam * penalty
        policy = policy_loss(sample.log_prob, objective, objective.mean())
        self.gamma.zero_grad(set_to_none=True)
        (policy - self.config.entropy_weight * sample.entropy.mean()).backward()
        self.gamma.step()
        if self.config.max_logit is not None:
            self._bound(self.config.max_logit)
        if losses.requires_grad:  # not so when no architecture of the batch has a live path
            self._descend(losses.mean())
        return {
            "loss": losses.detach().mean(),
            "cost_mean": cost.mean().item(),
            "violation": (cost > self.budget).double().mean().item(),
        }

    def _bound(self, limit: float) -> None:
        """Keep every choice open: an edge whose γ is 0 or 1 is never tried otherwise again."""
        with torch.no_grad():
            for logits in self.sampler.parameters():
                logits.clamp_(-limit, limit)

    def _descend(self, loss: Tensor) -> None:
        self.theta.zero_grad(set_to_none=True)
        loss.backward()
        self.theta.step()


def _checked_budget(supernet: SuperNetwork, cost: Cost, budget: float, seed: int) -> float:
    """Cost of the full network; refuses a budget that no architecture can meet."""
    profile = profile_space(supernet.graph, cost, seed=seed)
    unit = getattr(cost, "unit", "")
    if profile.satisfiable(budget) is False:
        raise ValueError(
            f"no architecture of {supernet.graph.name} costs at most {budget:.6g} {unit}: "
            f"the cheapest costs {profile.cheapest:.6g}; raise the budget to that or more"
        )
    if profile.satisfiable(budget) is None:
        warnings.warn(
            f"no sampled architecture costs at most {budget:.6g} {unit} (the cheapest seen: "
            f"{profile.cheapest:.6g}); the search may not meet the budget",
            stacklevel=3,
        )
    return profile.full


class _Trace:
    """Probabilities after every epoch, as part of the resumable state."""

    def __init__(self):
        self.rows: list[list[float]] = []

    def state_dict(self) -> dict:
        return {"rows": self.rows}

    def load_state_dict(self, state: dict) -> None:
        self.rows = list(state["rows"])


class _Means:
    """Means over the batches of an epoch; tensors stay on their device until `values`."""

    def __init__(self):
        self.sums: dict[str, Tensor | float] = {}
        self.count = 0

    def add(self, **values: Tensor | float) -> None:
        self.count += 1
        for key, value in values.items():
            self.sums[key] = self.sums.get(key, 0.0) + value

    def values(self) -> dict[str, float]:
        return {key: float(total) / self.count for key, total in self.sums.items()}
