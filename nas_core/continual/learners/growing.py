"""Perceptrons whose layers gain units: dynamically expandable networks and reinforced growth."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss, one_hot

from nas_core.continual.backbones import Head
from nas_core.continual.fit import FitReport, Trial
from nas_core.continual.learners.base import Learner
from nas_core.search.reinforce import policy_loss
from nas_core.training import descend, make_optimizer

Weights = list[tuple[Tensor, Tensor]]  # weight and bias of every layer


class GrowingMLP(nn.Module):
    """Linear layers with ReLU to which units are appended; old units never read new ones.

    A head reads the units that existed when its task was learnt: growing keeps old predictions.
    """

    def __init__(self, inputs: int, hidden: Sequence[int]):
        super().__init__()
        self.rebuild({"widths": [inputs, *hidden], "heads": []})

    def structure(self) -> dict[str, Any]:
        heads = [(h.linear.in_features, h.linear.out_features) for h in self.heads]
        return {"widths": self.widths, "heads": heads}

    def rebuild(self, structure: dict[str, Any]) -> None:
        layers = [nn.Linear(*sizes) for sizes in pairwise(structure["widths"])]
        self.layers: Any = nn.ModuleList(layers)
        self.heads: Any = nn.ModuleList([Head(*sizes, pool=False) for sizes in structure["heads"]])

    @property
    def widths(self) -> list[int]:
        """Inputs, and units of every layer."""
        return [self.layers[0].in_features, *(layer.out_features for layer in self.layers)]

    def weights(self) -> Weights:
        """A copy of the weights as they are now."""
        return [(m.weight.detach().clone(), m.bias.detach().clone()) for m in self.layers]

    @torch.no_grad()
    def grow(self, units: Sequence[int]) -> None:
        """Append so many units to every layer; their weights are random, all others stay."""
        inputs = self.widths[0]
        for n, (more, (weight, bias)) in enumerate(zip(units, self.weights(), strict=True)):
            old, known = weight.shape
            layer = nn.Linear(inputs, old + more).to(weight)
            layer.weight[:old] = 0  # what old units would read of new ones
            layer.weight[:old, :known], layer.bias[:old] = weight, bias
            self.layers[n], inputs = layer, old + more

    def add_head(self, classes: int) -> None:
        self.heads.append(Head(self.widths[-1], classes, pool=False).to(self.layers[0].weight))

    @torch.no_grad()
    def widen_head(self, task: int) -> None:
        """Let the head of a task read all units that there are now."""
        old = self.heads[task].linear
        head = Head(self.widths[-1], old.out_features, pool=False).to(old.weight)
        head.linear.weight[:, : old.in_features], head.linear.bias[:] = old.weight, old.bias
        self.heads[task] = head

    def reader(self, n: int) -> Any:
        """The linear layer that reads layer n: the next one, or that of the last head."""
        return self.layers[n + 1] if n + 1 < len(self.layers) else self.heads[-1].linear

    @torch.no_grad()
    def remove(self, n: int, units: Tensor) -> None:
        """Remove units (a mask) of layer n that do not depend on their input or that are not read.

        Outputs stay as they were: the constant relu(bias) that such a unit sends moves into the
        biases of its readers. No head but the last may read these units.
        """
        layer, reader, keep = self.layers[n], self.reader(n), ~units
        reader.bias += reader.weight @ (torch.relu(layer.bias) * units)
        reader.weight = nn.Parameter(reader.weight[:, keep])
        layer.weight, layer.bias = nn.Parameter(layer.weight[keep]), nn.Parameter(layer.bias[keep])
        reader.in_features = layer.out_features = int(keep.sum())

    def forward(self, x: Tensor, task: int) -> Tensor:
        x = x.flatten(1)
        for layer in self.layers:
            x = torch.relu(layer(x))
        head = self.heads[task]
        return head(x[:, : head.linear.in_features])  # the units that its task knew


@dataclass(eq=False, kw_only=True)
class Growing(Learner):
    """What DEN and RCL share; `backbone` must be `mlp(...)`."""

    width: int | None = None  # units of every layer at the start; default: as in the backbone

    def new_net(self) -> GrowingMLP:
        b = self.backbone
        if not b.name.startswith("mlp"):
            raise ValueError(f"{self.name} is defined for perceptrons (mlp), not {b.name}")
        torch.manual_seed(self.seed)
        hidden = [self.width or b.features] * (len(b) - 1)
        return GrowingMLP(math.prod(b.input_shape), hidden)

    def train_units(
        self, trial: Trial, masks: Sequence[Tensor] | None, *,
        extra: Callable[[], Tensor] | None = None, shrink: Callable[[], None] | None = None,
    ) -> FitReport:  # fmt: skip
        """Train the task's head and the weights where `masks` (per layer `[units, inputs]`) are 1.

        `extra` is added to the loss; `shrink` is a proximal step after every optimizer step.
        """
        net, t = self.net, trial.task.id

        def loss(x: Tensor, y: Tensor) -> Tensor:
            return cross_entropy(net(x, t), y) + (extra() if extra else 0)

        def before_step() -> None:
            for layer, mask in zip(net.layers, masks or (), strict=bool(masks)):
                layer.weight.grad *= mask
                layer.bias.grad *= mask.amax(1) if mask.numel() else 1

        trial = replace(trial, weight_decay=0.0)  # it would move weights that masks protect
        hooks = {"before_step": before_step, "after_step": shrink}
        # With proximal steps later weights are sparser: of equal accuracies the last one is kept.
        latest, trained = shrink is not None, [net.heads[t], *(net.layers if masks else [])]
        return self.fit_one(trial, trained, loss, latest=latest, **hooks)

    def new_rows(self, known: Sequence[int]) -> list[Tensor]:
        """Masks of the units beyond the first `known` of every layer."""
        masks = [torch.ones_like(layer.weight) for layer in self.net.layers]
        for mask, count in zip(masks, known, strict=True):
            mask[:count] = 0
        return masks


@torch.no_grad()
def soft_threshold(x: Tensor, threshold: float) -> Tensor:
    """The proximal step of threshold·|x|: towards 0 by `threshold`, and exactly 0 within it."""
    return x.sign() * (x.abs() - threshold).clamp(min=0)


@torch.no_grad()
def group_threshold(rows: Tensor, threshold: float) -> Tensor:
    """The proximal step of threshold·Σ_i ‖row_i‖ for `[R, C]`: whole rows become 0."""
    return rows * (1 - threshold / rows.norm(dim=1, keepdim=True).clamp(min=1e-12)).clamp(min=0)


@dataclass(eq=False, kw_only=True)
class DEN(Growing):
    """Dynamically expandable networks (Yoon et al. 2018, algorithm 1).

    The first task is learnt under ℓ1, by proximal steps, so that weights are exactly 0. Then per
    task: (1) a new head under ℓ1 finds the units that matter, and the weights between those are
    retrained near their old values; (2) if validation accuracy stays below `target`, every layer
    gains `expand` units, trained under group sparsity, and those that remain useless are removed;
    (3) old units that drifted by more than `drift` get their old weights back, a copy keeps the
    new ones, and the copies are retrained. What drifted less stays moved: DEN may forget a little.
    """

    l1: float = 1e-2  # weight of both sparsity terms
    keep: float = 0.1  # of the squared distance from the old weights in selective retraining
    target: float = 0.98  # validation accuracy that needs no new unit
    expand: int = 10  # units that every layer may gain
    drift: float = 0.3  # change of a unit's weights, relative to their norm, that splits it
    name = "DEN"

    def learn_once(self, trial: Trial) -> FitReport:
        net, t, threshold = self.net, trial.task.id, trial.lr * self.l1
        net.to(self.device)
        net.add_head(trial.task.way)
        known, old, head = net.widths[1:], net.weights(), net.heads[t].linear

        def sparse(*layers: Any) -> None:
            for layer in layers:
                layer.weight.data.copy_(soft_threshold(layer.weight, threshold))

        def sparse_groups() -> None:
            for layer, n in zip(net.layers, known, strict=True):
                layer.weight.data[n:] = group_threshold(layer.weight[n:], threshold)

        def distance() -> Tensor:
            moved = [m.weight - w for m, (w, _) in zip(net.layers, old, strict=True)]
            return self.keep * torch.stack([(step**2).sum() for step in moved]).sum()

        if t == 0:
            none = [0] * len(known)
            report = self.train_units(
                trial, self.new_rows(none), shrink=lambda: sparse(*net.layers)
            )
            report.choice = f"{self.prune(none)} units removed"
            return report
        reports = [self.train_units(trial, None, shrink=lambda: sparse(head))]
        trial, removed = replace(trial, beta=None), 0  # the curve is that of the first stage
        reports.append(self.train_units(trial, self.selected(head.weight), extra=distance))
        if reports[-1].val_accuracy < self.target:
            net.grow([self.expand] * len(known))
            net.widen_head(t)
            sparse_groups()  # so that the state before training obeys the penalty too
            reports.append(self.train_units(trial, self.new_rows(known), shrink=sparse_groups))
            removed = self.prune(known)
        added = sum(net.widths[1:]) - sum(known)
        split = self.split(t, old)
        if split:
            reports.append(self.train_units(trial, self.new_rows(known)))
        choice = f"{added} units added, {removed} removed, {split} split"
        macs = sum(r.macs for r in reports)
        return replace(reports[-1], curve=reports[0].curve, macs=macs, choice=choice)

    def selected(self, head: Tensor) -> list[Tensor]:
        """Masks of the weights on paths of weights ≠ 0 to the head `[classes, units]`."""
        masks, used = list[Tensor](), (head != 0).any(0)  # [units of the last layer]
        for layer in reversed(self.net.layers):
            chosen = (layer.weight != 0) & used.view(-1, 1)
            masks, used = [chosen.to(layer.weight), *masks], chosen.any(0)
        return masks

    def prune(self, known: Sequence[int]) -> int:
        """Remove units beyond the first `known` (or 1) that read nothing or are not read.

        Returns how many were removed.
        """
        net, before = self.net, sum(self.net.widths)
        for n in reversed(range(len(net.layers))):  # what is removed above frees units below
            useless = (net.layers[n].weight == 0).all(1) | (net.reader(n).weight == 0).all(0)
            useless[: max(known[n], 1)] = False
            net.remove(n, useless)
        return before - sum(net.widths)

    def drifted(self, old: Weights) -> list[Tensor]:
        """Per layer which of the old units moved too far, bool `[old units]`."""
        return [
            (m.weight.detach()[: len(w), : w.shape[1]] - w).norm(dim=1)
            > self.drift * (w.norm(dim=1) + 1e-8)
            for m, (w, _) in zip(self.net.layers, old, strict=True)
        ]

    @torch.no_grad()
    def split(self, task: int, old: Weights) -> int:
        """Give drifted units their old weights back and append copies with the new ones.

        What the task added reads the copy instead. Old units may not read copies: one that relied
        on a unit with a copy reads its old self, and retraining makes up for that.
        """
        net, moved, before = self.net, self.drifted(old), self.net.weights()
        if not any(bool(d.any()) for d in moved):
            return 0
        net.grow([int(d.sum()) for d in moved])
        net.widen_head(task)
        for n, (d, (w, b), (w_old, b_old)) in enumerate(zip(moved, before, old, strict=True)):
            m, units, inputs = net.layers[n], len(w_old), w.shape[1]
            m.weight[:units][d, : w_old.shape[1]] = w_old[d]
            m.bias[:units][d] = b_old[d]
            m.weight[len(w) :] = 0
            m.weight[len(w) :, :inputs], m.bias[len(w) :] = w[:units][d], b[:units][d]
        readers = [*(len(w) for w, _ in old[1:]), 0]  # first row that may read a copy
        for n, (d, row) in enumerate(zip(moved, readers, strict=True)):
            rows = net.reader(n).weight[row:]
            columns = d.nonzero().flatten()
            rows[:, len(before[n][0]) :] = rows[:, columns]  # a copy is read in its unit's place
            rows[:, columns] = 0
        return sum(int(d.sum()) for d in moved)


class Controller(nn.Module):
    """Proposes a number of units for every layer, and values what it has proposed so far."""

    def __init__(self, choices: int, hidden: int = 16):
        super().__init__()
        self.choices = choices
        self.cell = nn.LSTMCell(choices, hidden)
        self.policy = nn.Linear(hidden, choices)
        self.critic = nn.Linear(hidden, 1)

    def propose(self, depth: int) -> tuple[list[int], Tensor, Tensor]:
        """Choices, their log-probabilities and the values before each of them, all `[depth]`."""
        token, state = torch.zeros(1, self.choices), None
        picked, log_p, values = [], [], []
        for _ in range(depth):
            state = self.cell(token, state)
            choice = torch.distributions.Categorical(logits=self.policy(state[0]))
            drawn = choice.sample()  # [1]
            picked.append(int(drawn))
            log_p.append(choice.log_prob(drawn))
            values.append(self.critic(state[0].detach()).squeeze(1))
            token = one_hot(drawn, self.choices).float()
        return picked, torch.cat(log_p), torch.cat(values)


@dataclass(eq=False, kw_only=True)
class RCL(Growing):
    """Reinforced continual learning (Xu & Zhu 2018): a controller proposes units to add.

    An LSTM emits the number of new units of each layer; the reward of a proposal is validation
    accuracy after a short training of the *new* weights minus `price` per added unit. The policy
    follows the reward minus the value that a critic expects; both are kept from task to task. The
    best proposal is trained in full. Old weights never move, so nothing is forgotten. The same
    proposal always gets the same reward, so it is trained once.
    """

    proposals: tuple[int, ...] = (0, 5, 10, 20)  # numbers of units to choose from, per layer
    episodes: int = 100  # proposals per task
    trial_steps: int = 30  # of the training behind a reward
    price: float = 1e-3  # reward that an added unit costs
    controller_lr: float = 0.02  # of policy and critic
    name = "RCL"

    def __post_init__(self) -> None:
        super().__post_init__()
        fewest = min(self.episodes, self.trial_steps, len(self.proposals))
        if fewest < 1 or min(self.proposals) < 0:
            raise ValueError(
                f"episodes is {self.episodes}, trial_steps {self.trial_steps} and proposals are "
                f"{self.proposals}; give at least one of each, and no negative number of units"
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self.controller = Controller(len(self.proposals))

    def learn_once(self, trial: Trial) -> FitReport:
        start, first = self.net, not trial.task.id
        none: Sequence[int] = [0] * len(start.layers)
        best, macs, rewards = (none, 0, []) if first else self._choose(trial, start)
        report = self._with_units(trial, start, best)
        report.macs += macs
        report.choice = "" if first else "+".join(map(str, best)) + " units"
        report.details["rewards"] = rewards
        return report

    def _choose(self, trial: Trial, start: GrowingMLP) -> tuple[Sequence[int], int, list[float]]:
        """The best proposal, the multiply-adds of the search and the reward of every episode."""
        optimizer = make_optimizer(self.controller.parameters(), "adam", lr=self.controller_lr)
        short = replace(trial, beta=None, max_steps=self.trial_steps)
        tried: dict[tuple[int, ...], tuple[float, int]] = {}  # reward and multiply-adds
        rewards = []
        for _ in range(self.episodes):
            picked, log_p, values = self.controller.propose(len(start.layers))
            units = tuple(self.proposals[i] for i in picked)
            if units not in tried:
                with torch.random.fork_rng(devices=[]):
                    report = self._with_units(short, start, units)
                tried[units] = report.val_accuracy - self.price * sum(units), report.macs
            rewards.append(tried[units][0])
            reward = torch.full_like(values, rewards[-1])
            # Rewards are to be maximised and policy_loss minimises its objective.
            loss = policy_loss(log_p, -reward, -values.detach()) + mse_loss(values, reward)
            descend(loss, optimizer)
        best = max(tried, key=lambda units: tried[units][0])
        return best, sum(macs for _, macs in tried.values()), [round(r, 4) for r in rewards]

    def _with_units(self, trial: Trial, start: GrowingMLP, units: Sequence[int]) -> FitReport:
        """Train so many new units and the head, from the network as it was before the task."""
        self.net = copy.deepcopy(start)
        torch.manual_seed(trial.seed)
        self.net.grow(units)
        self.net.add_head(trial.task.way)
        known = start.widths[1:] if trial.task.id else [0] * len(units)
        return self.train_units(trial, self.new_rows(known))

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "controller": self.controller.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.controller.load_state_dict(state["controller"])
