"""Perceptrons whose layers gain units: dynamically expandable networks and reinforced growth."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear, mse_loss, one_hot

from nas_core.continual.backbones import Head
from nas_core.continual.fit import FitReport, Hook, Trial
from nas_core.continual.learners.base import Learner
from nas_core.search.reinforce import policy_loss
from nas_core.training import descend, make_optimizer


class Units(nn.Module):
    """A linear layer with ReLU that starts with no unit."""

    def __init__(self, inputs: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(0, inputs))
        self.bias = nn.Parameter(torch.empty(0))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(linear(x, self.weight, self.bias))


class GrowingMLP(nn.Module):
    """Linear layers with ReLU to which units are appended; old units never read new ones.

    A head reads the units that existed when its task was learnt, so growing changes no old
    prediction.
    """

    def __init__(self, inputs: int, hidden: Sequence[int]):
        super().__init__()
        self.layers: Any = nn.ModuleList([Units(inputs), *(Units(0) for _ in hidden[1:])])
        self.heads: Any = nn.ModuleList()
        self.grow(hidden)

    @property
    def widths(self) -> list[int]:
        """Inputs, and units of every layer."""
        return [self.layers[0].weight.shape[1], *(len(layer.weight) for layer in self.layers)]

    def grow(self, units: Sequence[int]) -> None:
        """Append so many units to every layer; their weights are random, all others stay."""
        inputs = self.widths[0]
        for layer, more in zip(self.layers, units, strict=True):
            old_out, old_in = layer.weight.shape
            outputs = old_out + more
            fresh = nn.Linear(max(1, inputs), max(1, outputs)).to(layer.weight.device)
            with torch.no_grad():
                weight = fresh.weight[:outputs, :inputs].clone()
                bias = fresh.bias[:outputs].clone()
                weight[:old_out] = 0  # what old units would read of new ones
                weight[:old_out, :old_in] = layer.weight
                bias[:old_out] = layer.bias
            layer.weight, layer.bias = nn.Parameter(weight), nn.Parameter(bias)
            inputs = outputs

    def add_head(self, classes: int) -> None:
        self.heads.append(Head(self.widths[-1], classes, pool=False).to(self.layers[0].weight))

    def widen_head(self, task: int) -> None:
        """Let the head of a task read all units that there are now."""
        old = self.heads[task].linear
        head = Head(self.widths[-1], old.out_features, pool=False).to(old.weight)
        with torch.no_grad():
            head.linear.weight[:, : old.in_features] = old.weight
            head.linear.bias.copy_(old.bias)
        self.heads[task] = head

    def remove(self, n: int, units: Tensor) -> None:
        """Remove units from layer n that do not depend on their input or that nothing reads.

        Outputs stay what they were: the constant relu(bias) that such a unit sends moves into the
        biases of its readers.

        Args:
            units: bool `[units of the layer]`; only the last head may read them.
        """
        layer, keep = self.layers[n], ~units
        readers = [self.layers[n + 1]] if n + 1 < len(self.layers) else [self.heads[-1].linear]
        with torch.no_grad():
            constant = torch.relu(layer.bias) * units
            for reader in readers:
                reader.bias += reader.weight @ constant
                reader.weight = nn.Parameter(reader.weight[:, keep])
            layer.weight = nn.Parameter(layer.weight[keep])
            layer.bias = nn.Parameter(layer.bias[keep])
        if n + 1 == len(self.layers):
            self.heads[-1].linear.in_features = int(keep.sum())

    def forward(self, x: Tensor, task: int) -> Tensor:
        x = x.flatten(1)
        for layer in self.layers:
            x = layer(x)
        head = self.heads[task]
        return head(x[:, : head.linear.in_features])  # the units that its task knew


def soft_threshold(x: Tensor, threshold: float) -> Tensor:
    """The proximal step of threshold·|x|: towards 0 by `threshold`, and exactly 0 within it."""
    return x.sign() * (x.abs() - threshold).clamp(min=0)


def group_threshold(rows: Tensor, threshold: float) -> Tensor:
    """The proximal step of threshold·Σ_i ‖row_i‖ for `[R, C]`: whole rows become 0."""
    return rows * (1 - threshold / rows.norm(dim=1, keepdim=True).clamp(min=1e-12)).clamp(min=0)


@dataclass(eq=False, kw_only=True)
class Growing(Learner):
    """Shared parts; `backbone` must be `mlp(...)`.

    Args:
        width: units of every layer at the start; default is that of the backbone.
    """

    width: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.backbone.name.startswith("mlp"):
            raise ValueError(
                f"{self.name} is defined for perceptrons (mlp), not {self.backbone.name}"
            )
        torch.manual_seed(self.seed)
        hidden = [self.width or self.backbone.features] * (len(self.backbone) - 1)
        self.net = GrowingMLP(int(torch.Size(self.backbone.input_shape).numel()), hidden)

    def train_units(
        self, trial: Trial, masks: Sequence[Tensor] | None, *,
        extra: Callable[[], Tensor] | None = None, shrink: Hook | None = None,
        steps: int | None = None,
    ) -> FitReport:  # fmt: skip
        """Train the task's head and the weights that `masks` marks.

        Args:
            masks: per layer `[units, inputs]`, 1 for weights that learn; None for no layer.
            extra: added to the loss.
            shrink: a proximal step, after every step of the optimizer; it may change weights.
            steps: in the place of the configuration's `max_steps`.
        """
        net, t = self.net, trial.task.id
        learning = [net.heads[t], *(net.layers if masks is not None else [])]

        def loss(x: Tensor, y: Tensor) -> Tensor:
            loss = cross_entropy(net(x, t), y)
            return loss if extra is None else loss + extra()

        def before_step() -> None:
            for layer, mask in zip(net.layers, masks or (), strict=bool(masks)):
                layer.weight.grad *= mask
                layer.bias.grad *= mask.amax(1) if mask.numel() else 1

        # Weight decay would move the weights that the masks protect, so there is none.
        config = self.config if steps is None else replace(self.config, max_steps=steps)
        # Where accuracy is the same, later weights are sparser.
        return self.fit_one(
            replace(trial, weight_decay=0.0), nn.ModuleList(learning), loss=loss, config=config,
            before_step=before_step, after_step=shrink, latest=shrink is not None,
        )  # fmt: skip

    def new_rows(self, known: Sequence[int]) -> list[Tensor]:
        """Masks of the units beyond the first `known` of every layer."""
        masks = [torch.zeros_like(layer.weight) for layer in self.net.layers]
        for mask, count in zip(masks, known, strict=True):
            mask[count:] = 1
        return masks

    def structure(self) -> dict[str, Any]:
        heads = [(h.linear.in_features, h.linear.out_features) for h in self.net.heads]
        return {"widths": self.net.widths, "heads": heads}

    def rebuild(self, structure: dict[str, Any]) -> None:
        inputs, *hidden = structure["widths"]
        self.net = GrowingMLP(inputs, hidden)
        for features, classes in structure["heads"]:
            self.net.heads.append(Head(features, classes, pool=False))


@dataclass(eq=False, kw_only=True)
class DEN(Growing):
    """Dynamically expandable networks (Yoon et al. 2018, algorithm 1).

    The first task is learnt under ℓ1, by proximal steps, so that weights are exactly 0. Then per
    task: (1) a new head under ℓ1 finds the units that matter, and the weights between those are
    retrained near their old values; (2) if validation accuracy stays below `target`, every layer
    gains `expand` units, trained under group sparsity, and those that remain useless are removed;
    (3) old units that drifted by more than `drift` get their old weights back, a copy keeps the
    new ones, and the copies are retrained. What drifted less stays moved: DEN may forget a little.

    Args:
        l1: weight of both sparsity terms.
        keep: weight of the squared distance from the old weights in selective retraining.
        target: validation accuracy that needs no new unit.
        expand: units that every layer may gain.
        drift: change of a unit's weights, relative to their norm, above which it is split.
    """

    l1: float = 1e-2
    keep: float = 0.1
    target: float = 0.98
    expand: int = 10
    drift: float = 0.3
    name = "DEN"

    def learn_once(self, trial: Trial) -> FitReport:
        net, t = self.net, trial.task.id
        net.to(self.device)
        net.add_head(trial.task.way)
        threshold = trial.lr * self.l1
        head = net.heads[t].linear
        if t == 0:

            @torch.no_grad()
            def sparse() -> None:
                for layer in net.layers:
                    layer.weight.copy_(soft_threshold(layer.weight, threshold))

            report = self.train_units(trial, self.new_rows([0] * len(net.layers)), shrink=sparse)
            report.choice = f"{self.prune([0] * len(net.layers))} units removed"
            return report
        known = net.widths[1:]
        old = [(m.weight.detach().clone(), m.bias.detach().clone()) for m in net.layers]

        @torch.no_grad()
        def sparse_head() -> None:
            head.weight.copy_(soft_threshold(head.weight, threshold))

        def distance() -> Tensor:
            moved = [m.weight - w for m, (w, _) in zip(net.layers, old, strict=True)]
            return self.keep * torch.stack([(step**2).sum() for step in moved]).sum()

        reports = [self.train_units(trial, None, shrink=sparse_head)]
        trial, removed = replace(trial, beta=None), 0  # the curve is that of the first stage
        reports.append(self.train_units(trial, self.selected(head.weight), extra=distance))
        if reports[-1].val_accuracy < self.target:
            net.grow([self.expand] * len(known))
            net.widen_head(t)

            @torch.no_grad()
            def sparse_groups() -> None:
                for layer, n in zip(net.layers, known, strict=True):
                    layer.weight[n:] = group_threshold(layer.weight[n:], threshold)

            sparse_groups()  # so that the state before training obeys the penalty too
            reports.append(self.train_units(trial, self.new_rows(known), shrink=sparse_groups))
            removed = self.prune(known)
        added = sum(net.widths[1:]) - sum(known)
        split = self.split(t, old)
        if split:
            reports.append(self.train_units(trial, self.new_rows(known)))
        curve, macs = reports[0].curve, sum(r.macs for r in reports)
        choice = f"{added} units added, {removed} removed, {split} split"
        return replace(reports[-1], curve=curve, macs=macs, choice=choice)

    def selected(self, head: Tensor) -> list[Tensor]:
        """Masks of the weights on paths of weights ≠ 0 to the head `[classes, units]`."""
        used = (head.detach() != 0).any(0)  # [units of the last layer]
        masks: list[Tensor] = []
        for layer in reversed(self.net.layers):
            chosen = (layer.weight.detach() != 0) & used.view(-1, 1)
            masks.insert(0, chosen.to(layer.weight.dtype))
            used = chosen.any(0)
        return masks

    def prune(self, known: Sequence[int]) -> int:
        """Remove units beyond the first `known` that read nothing or that nothing reads.

        Every layer keeps one unit. Returns how many were removed.
        """
        net, gone = self.net, 0
        for n in reversed(range(len(net.layers))):  # what is removed above frees units below
            above = net.layers[n + 1] if n + 1 < len(net.layers) else net.heads[-1].linear
            weight = net.layers[n].weight.detach()
            useless = (weight == 0).all(1) | (above.weight.detach() == 0).all(0)
            useless[: max(known[n], 1)] = False
            net.remove(n, useless)
            gone += int(useless.sum())
        return gone

    def drifted(self, old: Sequence[tuple[Tensor, Tensor]]) -> list[Tensor]:
        """Per layer which of the old units moved too far, bool `[old units]`."""
        return [
            (m.weight.detach()[: len(w), : w.shape[1]] - w).norm(dim=1)
            > self.drift * (w.norm(dim=1) + 1e-8)
            for m, (w, _) in zip(self.net.layers, old, strict=True)
        ]

    def split(self, task: int, old: Sequence[tuple[Tensor, Tensor]]) -> int:
        """Give drifted units their old weights back and append copies with the new ones.

        What the task added reads the copy instead. Old units may not read copies: one that relied
        on a unit with a copy reads its old self, and retraining makes up for that.
        """
        net, moved = self.net, self.drifted(old)
        before = [(m.weight.detach().clone(), m.bias.detach().clone()) for m in net.layers]
        if not any(bool(d.any()) for d in moved):
            return 0
        net.grow([int(d.sum()) for d in moved])
        net.widen_head(task)
        below, first = torch.zeros(0, dtype=torch.bool), 0  # copied units of the layer below
        with torch.no_grad():
            for m, d, (w, b), (w_old, b_old) in zip(net.layers, moved, before, old, strict=True):
                units, inputs = len(w_old), w.shape[1]
                m.weight[:units][d, : w_old.shape[1]] = w_old[d]
                m.bias[:units][d] = b_old[d]
                m.weight[len(w) :] = 0
                m.weight[len(w) :, :inputs], m.bias[len(w) :] = w[:units][d], b[:units][d]
                self._read_copies(m.weight[units:], below, first)
                below, first = d, len(w)
            self._read_copies(net.heads[task].linear.weight, below, first)
        return sum(int(d.sum()) for d in moved)

    @staticmethod
    def _read_copies(rows: Tensor, copied: Tensor, first: int) -> None:
        """Move what `rows` read of the copied units to the copies, which begin at `first`."""
        if copied.any():
            columns = copied.nonzero().flatten()
            rows[:, first:] = rows[:, columns]
            rows[:, columns] = 0


class Controller(nn.Module):
    """Proposes a number of units for every layer, and values what it has seen so far."""

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

    Args:
        proposals: numbers of units to choose from at every layer.
        episodes: proposals per task, with trainings of `trial_steps` steps.
        price: reward that an added unit costs.
        controller_lr: learning rate of policy and critic.
    """

    proposals: tuple[int, ...] = (0, 5, 10, 20)
    episodes: int = 100
    trial_steps: int = 30
    price: float = 1e-3
    controller_lr: float = 0.02
    name = "RCL"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.episodes < 1 or not self.proposals or min(self.proposals) < 0:
            raise ValueError(
                f"episodes is {self.episodes} and proposals are {self.proposals}; give at least "
                "one of each, and no negative number of units"
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self.controller = Controller(len(self.proposals))

    def learn_once(self, trial: Trial) -> FitReport:
        start, depth = self.net, len(self.net.layers)
        first = trial.task.id == 0
        best, macs, rewards = ([0] * depth, 0, []) if first else self._choose(trial, start)
        report = self._with_units(trial, start, best)
        report.macs += macs
        report.choice = "+".join(map(str, best)) + " units" if trial.task.id else ""
        report.details["rewards"] = rewards
        return report

    def _choose(self, trial: Trial, start: GrowingMLP) -> tuple[list[int], int, list[float]]:
        """The best proposal, the multiply-adds of the search and the reward of every episode."""
        optimizer = make_optimizer(self.controller.parameters(), "adam", lr=self.controller_lr)
        known: dict[tuple[int, ...], float] = {}
        rewards: list[float] = []
        macs = 0
        for _ in range(self.episodes):
            picked, log_p, values = self.controller.propose(len(start.layers))
            units = tuple(self.proposals[i] for i in picked)
            if units not in known:
                with torch.random.fork_rng(devices=[]):
                    short = replace(trial, beta=None)
                    report = self._with_units(short, start, units, self.trial_steps)
                macs += report.macs
                known[units] = report.val_accuracy - self.price * sum(units)
            rewards.append(known[units])
            reward = torch.full_like(values, known[units])
            # Rewards are to be maximised and policy_loss minimises its objective.
            loss = policy_loss(log_p, -reward, -values.detach()) + mse_loss(values, reward)
            descend(loss, optimizer)
        best = max(known, key=known.__getitem__)
        return list(best), macs, [round(r, 4) for r in rewards]

    def _with_units(
        self, trial: Trial, start: GrowingMLP, units: Sequence[int], steps: int | None = None
    ) -> FitReport:
        """Train so many new units and the head, from the network as it was before the task."""
        self.net = copy.deepcopy(start)
        torch.manual_seed(trial.seed)
        self.net.grow(units)
        self.net.add_head(trial.task.way)
        first = trial.task.id == 0
        known = [0] * len(units) if first else start.widths[1:]
        return self.train_units(trial, self.new_rows(known), steps=steps)

    def structure(self) -> dict[str, Any]:
        return {**super().structure(), "controller": self.controller.state_dict()}

    def rebuild(self, structure: dict[str, Any]) -> None:
        super().rebuild(structure)
        self.controller.load_state_dict(structure["controller"])
