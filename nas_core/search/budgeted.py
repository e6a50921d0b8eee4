"""Budgeted super-networks: learn weights and architecture together under any cost.

The objective is E_{H ~ Γ} [ Δ(f(x, H ⊙ E, θ), y) + λ max(0, C(H ⊙ E) − C_max) ] (thesis eq. 3.10).
Gradient descent minimises it in θ, and REINFORCE with the batch mean as baseline minimises it in
Γ (eq. 3.25). One architecture is drawn for every example of a batch.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from nas_core import training
from nas_core.costs import AdditiveCost, Cost, Latency, price
from nas_core.search.reinforce import overspend, policy_loss
from nas_core.search.run import Run, SearchWarning
from nas_core.search.space_profile import SpaceProfile, profile_space
from nas_core.supernet import Architecture, BernoulliSampler, ChoiceSampler, Graph, SuperNetwork
from nas_core.supernet.samplers import Sample


@dataclass(frozen=True)
class BudgetConfig:
    """Hyper-parameters of a budgeted search.

    Those of θ are the thesis' (section 3.5.2), those of Γ are ours. The authors' code takes SGD
    steps of rate 1e-3 on a loss *summed* over a batch of 64, a rate of .064 on our mean.
    """

    epochs: int = 300  # in all, warm-up included
    warmup_epochs: int = 50  # during which Γ does not learn
    warmup_sampled: bool = False  # warm up on drawn architectures instead of the whole network
    batch_size: int = 128
    lr: float = 0.1  # of θ
    milestones: tuple[int, ...] = (150, 225)  # epochs before which lr is divided by 10
    momentum: float = 0.9  # of θ
    weight_decay: float = 1e-4  # on θ only
    gamma_lr: float = 0.1  # of Γ̂, on the mean over the batch; fast rates decide by chance
    gamma_momentum: float = 0.0  # of Γ̂; 0.9 multiplies the rate by ten
    lam: float = 1.0  # λ, per unit of the full network's cost, so that it has no unit
    entropy_weight: float = 0.0  # bonus for the entropy of Γ; the thesis uses none
    max_logit: float | None = None  # |γ̂| at most; with a fast Γ it stops early, final decisions
    amp: bool = True  # bfloat16 autocast and channels_last on a GPU; ignored on CPU
    seed: int = 0

    def __post_init__(self):
        for name, allowed, needed in (
            ("warmup_epochs", 0 <= self.warmup_epochs < self.epochs, f"in 0…{self.epochs - 1}"),
            ("batch_size", self.batch_size >= 1, "at least 1"),
            ("max_logit", self.max_logit is None or self.max_logit > 0, "positive, or None"),
            ("lam", 0 <= self.lam < math.inf, "at least 0: a negative λ rewards overspending"),
            ("gamma_lr", 0 <= self.gamma_lr < math.inf, "at least 0"),
            ("entropy_weight", math.isfinite(self.entropy_weight), "finite"),
        ):
            training.require(allowed, name, getattr(self, name), needed)
        training.check_optimizer("sgd", self.lr, self.momentum, self.weight_decay)
        training.check_optimizer("sgd", 1.0, self.gamma_momentum, 0.0)
        self.lr_at(0)

    def lr_at(self, epoch: int) -> float:
        """Learning rate of θ in an epoch: divided by 10 at every milestone passed."""
        return training.step_lr(self.lr, epoch, self.milestones)


def per_example_loss(output: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of every example `[B]`; the mean over pixels for `[B, K, H, W]` maps."""
    losses = cross_entropy(output.float(), target, reduction="none")
    return losses.flatten(1).mean(1) if losses.dim() > 1 else losses


def budgeted(
    supernet: SuperNetwork, sampler: BernoulliSampler | ChoiceSampler, cost: Cost, budget: float,
    data: training.Splits, config: BudgetConfig, *,
    checkpoint: str | Path | None = None, progress: bool | str = True,
) -> Run:  # fmt: skip
    """Search an architecture whose cost stays within the budget.

    Args:
        supernet: trained in place, on the device of `data`.
        sampler: Γ over the edges; stays on the CPU. It is reset after warm-up.
        cost: any callable from pruned masks `[B, E]` to `[B]`; it may be stochastic.
        budget: C_max, in the unit of the cost.
        data: θ and Γ learn from `train`; `val` is only measured.
        checkpoint: file that is written after every epoch and, if it exists, continued from bit
            for bit. It belongs to one space, sampler, cost, budget, data set and configuration.
        progress: a bar, and its label; False shows none and gives no warnings either.

    Warns:
        SearchWarning: when the result should not be trusted, and why; see `Run.diagnosis`.

    Raises:
        ValueError: when even the cheapest architecture costs more than the budget.
        NonFiniteLoss: when the loss is no longer finite; the last good checkpoint is kept.
    """
    graph = supernet.graph
    graph.require(sampler.graph.fingerprint, sampler.graph.name, "the sampler")
    if not sampler.logits.isfinite().all():
        raise ValueError("a logit of the sampler is not finite; edges always kept are `fixed`")
    if not len(data.train):
        raise ValueError("there are no training examples")
    space = _checked_budget(supernet, cost, budget, config.seed)
    device = data.train.device
    fast = device.type == "cuda" and config.amp
    outputs = training.on_device(supernet, device, amp=fast, channels_last=fast)
    theta = training.make_optimizer(
        supernet.parameters(), lr=config.lr, momentum=config.momentum,
        weight_decay=config.weight_decay,
    )  # fmt: skip
    gamma_lr, momentum = config.gamma_lr, config.gamma_momentum
    gamma = torch.optim.SGD(sampler.parameters(), lr=gamma_lr, momentum=momentum)
    trace = training.History()  # probabilities of the edges after every epoch
    everything = torch.ones(len(graph), dtype=torch.bool)

    def update_gamma(sample: Sample, losses: Tensor, costs: Tensor) -> None:
        """One step of eq. 3.25: the batch mean is the baseline of D, the objective of eq. 3.14."""
        # The one point of a step at which the host waits for the device.
        objective = losses.detach().to("cpu", torch.float64)  # Δ, [B]
        objective = objective + config.lam * overspend(costs, budget, space.scale)  # D, [B]
        policy = policy_loss(sample.log_prob, objective, objective.mean())
        training.descend(policy - config.entropy_weight * sample.entropy.mean(), gamma)
        if config.max_logit is not None:  # an edge whose γ is 0 is never tried again
            with torch.no_grad():
                sampler.logits.clamp_(-config.max_logit, config.max_logit)

    def one_epoch(epoch: int) -> dict:
        warm = epoch < config.warmup_epochs
        if epoch == config.warmup_epochs:
            sampler.reset()
        training.set_lr(theta, config.lr_at(epoch))
        # Drawn from (seed, epoch), so that resuming needs no state of a generator.
        generator = torch.Generator().manual_seed(training.derived_seeds(config.seed, epoch, 1)[0])
        supernet.train()
        loss_sum: Tensor | float = 0.0  # stays on the device
        cost_sum, violation_sum, steps = 0.0, 0.0, 0
        for x, y in data.train.batches(config.batch_size, seed=config.seed, epoch=epoch):
            steps += 1
            if warm and not config.warmup_sampled:
                losses = per_example_loss(outputs(x), y)  # [B], of the whole network
                cost_sum += space.full
            else:
                sample = sampler.sample(len(x), generator)
                mask = graph.reachable(sample.mask)  # [B, E]: dead ends cost and do nothing
                costs = price(cost, mask)  # [B]
                losses = per_example_loss(outputs(x, mask), y)  # [B], each of its architecture
                cost_sum += costs.mean().item()
            if not warm:
                update_gamma(sample, losses, costs)
                violation_sum += (costs > budget).double().mean().item()
            training.descend(losses.mean(), theta)
            loss_sum = loss_sum + losses.detach().mean()
        # Validation runs what would be delivered now: the most probable architecture.
        mode = everything if warm else sampler.mode()
        probabilities = everything.float() if warm else sampler.probabilities().cpu()
        trace.append({"gamma": probabilities.tolist()})
        supernet.eval()
        validation = training.evaluate(partial(supernet, mask=mode), data.val)
        return {
            "phase": "warm-up" if warm else "search",
            "loss": float(loss_sum) / steps,
            "cost_mean": cost_sum / steps,
            "violation": violation_sum / steps,
            "entropy": 0.0 if warm else sampler.entropy().item(),
            "mode_cost": price(cost, mode.unsqueeze(0)).item(),
            "val_loss": validation["loss"],
            "val_accuracy": validation["accuracy"],
        }

    identity = asdict(config) | {"budget": float(budget)}
    if checkpoint is not None:
        about = {"sampler": _describe_sampler(sampler), "cost": describe_cost(cost, graph)}
        sets = {"train data": data.train.fingerprint(), "val data": data.val.fingerprint()}
        identity |= {"space": graph.fingerprint, **about, **sets}
    parts = dict(supernet=supernet, sampler=sampler, theta=theta, gamma=gamma, trace=trace)
    loop = training.run_epochs(
        one_epoch, config.epochs, state=parts, checkpoint=checkpoint, progress=progress,
        config=identity,
    )  # fmt: skip
    architecture = Architecture.from_mask(graph, sampler.mode())
    run = Run(
        graph=graph,
        history=loop.history.frame(),
        probabilities=torch.tensor([row["gamma"] for row in trace]),
        architecture=architecture,
        cost=price(cost, architecture.mask.unsqueeze(0)).item(),
        budget=float(budget),
        full_cost=space.full,
        cost_name=getattr(cost, "name", "cost"),
        cost_unit=getattr(cost, "unit", ""),
        config=asdict(config),
        seed=config.seed,
        versions=training.versions(),
        interrupted=loop.interrupted,
    )
    if progress and not run.interrupted:
        for remark in run.diagnosis():
            warnings.warn(remark, SearchWarning, stacklevel=2)
    return run


def describe_cost(cost: Cost, graph: Graph) -> str:
    """Identity of a cost: its name, unit and kind, and what eight fixed architectures cost.

    The values are left out where the same architecture has another cost each time, and of a
    latency, which is measured anew by every process.
    """
    name = getattr(cost, "name", getattr(cost, "__qualname__", type(cost).__name__))
    words = f"{name} ({type(cost).__name__}) in {getattr(cost, 'unit', '') or 'units'}"
    if isinstance(cost, AdditiveCost):
        return f"{words}, prices {training.fingerprint(cost.per_edge)}"
    if isinstance(cost, Latency):
        return words
    masks = BernoulliSampler(graph, logit=0.0).sample(8, torch.Generator().manual_seed(0)).mask
    values = price(cost, graph.reachable(masks))
    stable = torch.equal(values, price(cost, graph.reachable(masks)))
    return f"{words}, values {training.fingerprint(values)}" if stable else f"{words}, stochastic"


def _describe_sampler(sampler: BernoulliSampler | ChoiceSampler) -> str:
    if isinstance(sampler, ChoiceSampler):
        return f"choices {[list(group) for group in sampler.groups]}"
    fixed = sampler.fixed.nonzero().flatten().tolist()
    return f"independent edges from logit {sampler.initial_logit:g}, fixed {fixed}"


def _checked_budget(supernet: SuperNetwork, cost: Cost, budget: float, seed: int) -> SpaceProfile:
    """Profile of the space; refuses a budget that provably no architecture can meet."""
    training.require(math.isfinite(budget), "budget", budget, "a finite number")
    profile = profile_space(supernet.graph, cost, seed=seed)
    most = f"costs at most {budget:.6g} {getattr(cost, 'unit', '')}".rstrip()
    least = f"the cheapest costs {profile.cheapest:.6g}"
    if profile.satisfiable(budget) is False:
        advice = "raise the budget to that or more"
        raise ValueError(f"no architecture of {supernet.graph.name} {most}: {least}; {advice}")
    if profile.satisfiable(budget) is None:
        remark = f"no architecture that was tried {most} ({least}); the search may not meet it"
        warnings.warn(remark, SearchWarning, stacklevel=3)
    return profile
