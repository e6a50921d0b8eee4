"""Budgeted super-networks: learn weights and architecture together under any cost.

The objective is E_{H ~ Γ} [ Δ(f(x, H ⊙ E, θ), y) + λ max(0, C(H ⊙ E) − C_max) ] (thesis eq. 3.10).
Gradient descent minimises it in θ, and REINFORCE with the batch mean as baseline minimises it in
Γ (eq. 3.25). One architecture is drawn for every example of a batch.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from nas_core.costs import AdditiveCost, Cost, Latency, price
from nas_core.search.reinforce import overspend, policy_loss
from nas_core.search.run import Run, SearchWarning
from nas_core.search.space_profile import SpaceProfile, profile_space
from nas_core.supernet import Architecture, BernoulliSampler, ChoiceSampler, Graph, SuperNetwork
from nas_core.training import (
    History,
    Splits,
    check_optimizer,
    derived_seeds,
    descend,
    evaluate,
    fingerprint,
    make_optimizer,
    run_epochs,
    set_lr,
    step_lr,
    versions,
)


@dataclass(frozen=True)
class BudgetConfig:
    """Hyper-parameters of a budgeted search.

    Those of θ are the thesis' (section 3.5.2). Those of Γ are ours. The authors' released code
    takes plain SGD steps of rate 1e-3 on a loss *summed* over a batch of 64, which is a rate of
    .064 on our mean, and chooses λ and the budget on validation data.
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
            if not allowed:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be {needed}")
        check_optimizer("sgd", self.lr, self.momentum, self.weight_decay)
        check_optimizer("sgd", 1.0, self.gamma_momentum, 0.0)
        self.lr_at(0)

    def lr_at(self, epoch: int) -> float:
        """Learning rate of θ in an epoch: divided by 10 at every milestone passed."""
        return step_lr(self.lr, epoch, self.milestones)


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
        data: θ and Γ learn from `train`; `val` is only measured.
        checkpoint: file that is written after every epoch and, if it exists, continued from bit
            for bit. It belongs to one space, sampler, cost, budget, data set and configuration.
        progress: a bar, and its label; False shows none and gives no warnings either.

    Warns:
        SearchWarning: when the result should not be trusted, and why; see `Run.diagnosis`.

    Raises:
        ValueError: when even the cheapest architecture costs more than the budget, or when the
            checkpoint belongs to another search.
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
    on_gpu = device.type == "cuda" and config.amp
    layout = torch.channels_last if on_gpu else torch.preserve_format
    supernet.to(device)
    if on_gpu:
        supernet.to(memory_format=torch.channels_last)
    decay = config.weight_decay
    theta = make_optimizer(
        supernet.parameters(), lr=config.lr, momentum=config.momentum, weight_decay=decay
    )
    gamma = torch.optim.SGD(
        sampler.parameters(), lr=config.gamma_lr, momentum=config.gamma_momentum
    )
    trace = History()  # probabilities of the edges after every epoch
    everything = torch.ones(len(graph), dtype=torch.bool)

    def losses_of(x: Tensor, y: Tensor, mask: Tensor | None) -> Tensor:
        """Δ of every example `[B]`, each computed by its own architecture `mask` `[B, E]`."""
        x = x.to(memory_format=layout) if x.dim() == 4 else x
        with torch.autocast(device.type, torch.bfloat16, enabled=on_gpu):
            return per_example_loss(supernet(x, mask), y)

    def one_epoch(epoch: int) -> dict:
        warm = epoch < config.warmup_epochs
        if epoch == config.warmup_epochs:
            sampler.reset()
        set_lr(theta, config.lr_at(epoch))
        # Drawn from (seed, epoch), so that resuming needs no state of a generator.
        generator = torch.Generator().manual_seed(derived_seeds(config.seed, epoch, 1)[0])
        supernet.train()
        loss_sum: Tensor | float = 0.0  # stays on the device
        cost_sum = violation_sum = 0.0
        steps = 0
        for x, y in data.train.batches(config.batch_size, seed=config.seed, epoch=epoch):
            steps += 1
            if warm and not config.warmup_sampled:
                losses = losses_of(x, y, None)
                cost_sum += space.full
            else:
                sample = sampler.sample(len(x), generator)
                mask = graph.reachable(sample.mask)  # [B, E]: dead ends cost and do nothing
                costs = price(cost, mask)  # [B]
                losses = losses_of(x, y, mask)  # [B]
                cost_sum += costs.mean().item()
            if not warm:
                # D of eq. 3.14. The one point of a step at which the host waits for the device.
                objective = losses.detach().to("cpu", torch.float64)
                objective = objective + config.lam * overspend(costs, budget, space.scale)
                policy = policy_loss(sample.log_prob, objective, objective.mean())
                descend(policy - config.entropy_weight * sample.entropy.mean(), gamma)
                if config.max_logit is not None:  # an edge whose γ is 0 is never tried again
                    with torch.no_grad():
                        sampler.logits.clamp_(-config.max_logit, config.max_logit)
                violation_sum += (costs > budget).double().mean().item()
            descend(losses.mean(), theta)
            loss_sum = loss_sum + losses.detach().mean()
        # Validation runs what would be delivered now: the most probable architecture.
        mode = everything if warm else sampler.mode()
        probabilities = everything.float() if warm else sampler.probabilities().cpu()
        trace.append({"gamma": probabilities.tolist()})
        supernet.eval()
        validation = evaluate(lambda x: supernet(x, mask=mode), data.val)
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
        identity |= {
            "space": graph.fingerprint,
            "sampler": _describe_sampler(sampler),
            "cost": describe_cost(cost, graph),
            "train data": data.train.fingerprint(),
            "val data": data.val.fingerprint(),
        }
    loop = run_epochs(
        one_epoch,
        config.epochs,
        state=dict(supernet=supernet, sampler=sampler, theta=theta, gamma=gamma, trace=trace),
        checkpoint=checkpoint,
        progress=progress,
        config=identity,
    )
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
        versions=versions(),
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
        return f"{words}, prices {fingerprint(cost.per_edge)}"
    if isinstance(cost, Latency):
        return words
    masks = BernoulliSampler(graph, logit=0.0).sample(8, torch.Generator().manual_seed(0)).mask
    values = price(cost, graph.reachable(masks))
    stable = torch.equal(values, price(cost, graph.reachable(masks)))
    return f"{words}, values {fingerprint(values)}" if stable else f"{words}, stochastic"


def _describe_sampler(sampler: BernoulliSampler | ChoiceSampler) -> str:
    if isinstance(sampler, ChoiceSampler):
        return f"choices {[list(group) for group in sampler.groups]}"
    fixed = sampler.fixed.nonzero().flatten().tolist()
    return f"independent edges from logit {sampler.initial_logit:g}, fixed {fixed}"


def _checked_budget(supernet: SuperNetwork, cost: Cost, budget: float, seed: int) -> SpaceProfile:
    """Profile of the space; refuses a budget that provably no architecture can meet."""
    if not math.isfinite(budget):
        raise ValueError(f"budget is {budget}; it must be a finite number")
    profile = profile_space(supernet.graph, cost, seed=seed)
    unit = getattr(cost, "unit", "")
    if profile.satisfiable(budget) is False:
        raise ValueError(
            f"no architecture of {supernet.graph.name} costs at most {budget:.6g} {unit}: "
            f"the cheapest costs {profile.cheapest:.6g}; raise the budget to that or more"
        )
    if profile.satisfiable(budget) is None:
        warnings.warn(
            f"no architecture that was tried costs at most {budget:.6g} {unit} (the cheapest: "
            f"{profile.cheapest:.6g}); the search may not meet the budget",
            SearchWarning,
            stacklevel=3,
        )
    return profile
