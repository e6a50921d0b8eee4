"""Perceptrons whose layers gain units: dynamically expandable networks and reinforced growth."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from nas_core.continual.backbones import Backbone, Head
from nas_core.continual.fit import FitConfig, FitReport, accuracy, fit, validation_set
from nas_core.continual.learners.base import Learner
from nas_core.continual.library import tensor_bytes
from nas_core.continual.tasks import Task
from nas_core.search.reinforce import MovingAverage, policy_loss


class _Units(nn.Module):
    """A linear layer with ReLU that starts with no unit."""

    def __init__(self, inputs: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(0, inputs))
        self.bias = nn.Parameter(torch.empty(0))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(nn.functional.linear(x, self.weight, self.bias))


class GrowingMLP(nn.Module):
    """Linear layers with ReLU to which units are appended; old units never read new ones.

    A head reads the units that existed when its task was learnt, so growing changes no old
    prediction.
    """

    def __init__(self, inputs: int, hidden: list[int]):
        super().__init__()
        self.widths = [inputs, *([0] * len(hidden))]
        self.layers: Any = nn.ModuleList([_Units(inputs) for _ in hidden])
        self.heads: Any = nn.ModuleList()
        self.grow(hidden)

    def grow(self, units: list[int]) -> None:
        """Append so many units to every layer; their weights are random, all others stay."""
        for n, (layer, more) in enumerate(zip(self.layers, units, strict=True)):
            old_out, old_in = self.widths[n + 1], min(layer.weight.shape[1], self.widths[n])
            inputs, outputs = self.widths[n], old_out + more
            fresh = nn.Linear(max(1, inputs), max(1, outputs)).to(layer.weight.device)
            with torch.no_grad():
                weight = fresh.weight[:outputs, :inputs].clone()
                bias = fresh.bias[:outputs].clone()
                weight[:old_out] = 0  # what old units would read of new ones
                weight[:old_out, :old_in] = layer.weight[:, :old_in]
                bias[:old_out] = layer.bias
            layer.weight, layer.bias = nn.Parameter(weight), nn.Parameter(bias)
            self.widths[n + 1] = outputs

    def add_head(self, classes: int) -> None:
        self.heads.append(Head(self.widths[-1], classes, pool=False).to(self.layers[0].weight))

    def hidden(self, x: Tensor) -> list[Tensor]:
        """Activations of every layer."""
        out = [x.flatten(1)]
        for layer in self.layers:
            out.append(layer(out[-1]))
        return out[1:]

    def forward(self, x: Tensor, task: int) -> Tensor:
        head = self.heads[task]
        return head(self.hidden(x)[-1][:, : head.linear.in_features])


class _Growing(Learner):
    """Shared parts; `backbone` must be `mlp(...)`, whose width is the starting width."""

    def __init__(
        self, backbone: Backbone, config: FitConfig | None = None, *, seed: int = 0,
        width: int | None = None,
    ):  # fmt: skip
        super().__init__(backbone, config, seed=seed)
        if not backbone.name.startswith("mlp"):
            raise ValueError(f"{self.name} is defined for perceptrons (mlp), not {backbone.name}")
        inputs = int(torch.Size(backbone.input_shape).numel())
        hidden = [width or backbone.features] * (len(backbone) - 1)
        torch.manual_seed(seed)
        self.net = GrowingMLP(inputs, hidden)

    def _train(
        self, task: Task, lr: float, beta: int | None, seed: int, masks: list[Tensor],
        extra=None, head_only: bool = False, max_steps: int | None = None,
    ) -> FitReport:  # fmt: skip
        """Train the head of the task and the rows of each layer that `masks` marks."""
        net, t = self.net, task.id
        val = validation_set(task, self.config.val_copies, seed)
        for head in self.net.heads:
            head.requires_grad_(False)
        net.heads[t].requires_grad_(True)

        def losses(x: Tensor, y: Tensor, active: list[int]) -> list[Tensor]:
            loss = cross_entropy(net(x, t), y)
            return [loss if extra is None else loss + extra()]

        def before_step() -> None:
            for layer, mask in zip(net.layers, masks, strict=True):
                layer.weight.grad *= mask if not head_only else 0
                layer.bias.grad *= mask.amax(1) if not head_only else 0

        def score(active: list[int]) -> list[float]:
            return [accuracy(lambda x: net(x, t), val)]

        config = self.config
        if max_steps is not None:
            config = FitConfig(**{**vars(config), "max_steps": max_steps})
        # Weight decay would move the weights that the masks protect, so there is none.
        (report,) = fit(
            [net], losses, score, task, config, lr, 0.0, seed=seed, beta=beta or 0,
            curves=None if beta is None else lambda: [accuracy(lambda x: net(x, t), task.test)],
            before_step=before_step,
        )  # fmt: skip
        return report

    def predict(self, x: Tensor, task_id: int) -> Tensor:
        if not 0 <= task_id < len(self.net.heads):
            raise ValueError(f"task {task_id} was not learnt; there are {len(self.net.heads)}")
        with torch.no_grad():
            return self.net(x, task_id)

    def memory(self) -> dict[str, int]:
        return {"parameters": tensor_bytes(self.net.parameters())}

    def state_dict(self) -> dict[str, Any]:
        sizes = [(h.linear.in_features, h.linear.out_features) for h in self.net.heads]
        return {**super().state_dict(), "widths": self.net.widths, "heads": sizes,
                "weights": self.net.state_dict()}  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        inputs, *hidden = state["widths"]
        self.net = GrowingMLP(inputs, list(hidden))
        for features, classes in state["heads"]:
            self.net.heads.append(Head(features, classes, pool=False))
        self.net.load_state_dict(state["weights"])


class DEN(_Growing):
    """Dynamically expandable networks (Yoon et al. 2018).

    Per task: a sparse new head finds the units that matter; these alone are retrained, near their
    old weights; if validation accuracy stays below `target`, every layer gains `expand` units
    under group sparsity and useless ones are dropped; units that drifted by more than `drift` are
    split into their old self and a new copy.

    Args:
        l1: weight of the sparsity terms.
        keep: weight of the pull towards old weights in selective retraining.
    """

    name = "DEN"

    def __init__(
        self, backbone: Backbone, config: FitConfig | None = None, *, seed: int = 0,
        width: int | None = None, l1: float = 1e-5, keep: float = 1e-3, target: float = 0.98,
        expand: int = 10, drift: float = 0.05,
    ):  # fmt: skip
        super().__init__(backbone, config, seed=seed, width=width)
        self.l1, self.keep, self.target, self.expand, self.drift = l1, keep, target, expand, drift

    def learn_once(self, task: Task, lr: float, weight_decay: float, beta: int | None) -> FitReport:
        seed, net, t = self.seed_for(task), self.net, task.id
        net.to(self.device)
        net.add_head(task.way)
        if t == 0:
            everything = [torch.ones_like(layer.weight) for layer in net.layers]
            return self._train(task, lr, beta, seed, everything, self._sparsity)
        old = [(m.weight.detach().clone(), m.bias.detach().clone()) for m in net.layers]
        none = [torch.zeros_like(w) for w, _ in old]
        head = net.heads[t].linear
        first = self._train(
            task, lr, beta, seed, none, lambda: self.l1 * head.weight.abs().sum(), head_only=True
        )
        masks = self._selected(head.weight)

        def pull() -> Tensor:
            moved = [((m.weight - w) ** 2).sum() for m, (w, _) in zip(net.layers, old, strict=True)]
            return self.keep * torch.stack(moved).sum()

        report = self._train(task, lr, None, seed, masks, pull)
        macs = first.macs + report.macs
        split = self._split(t, old)
        grown = 0
        if report.val_accuracy < self.target:
            grown = self._expand_head(t, [self.expand] * len(net.layers))
            new = [torch.zeros_like(m.weight) for m in net.layers]
            for mask in new:
                mask[-self.expand :] = 1
            report = self._train(task, lr, None, seed, new, lambda: self._groups())
            macs += report.macs
        report.macs, report.curve = macs, first.curve
        report.choice = f"{split} split, {grown} new units per layer"
        return report

    def _sparsity(self) -> Tensor:
        return self.l1 * torch.stack([m.weight.abs().sum() for m in self.net.layers]).sum()

    def _groups(self) -> Tensor:
        rows = [m.weight[-self.expand :].norm(dim=1).sum() for m in self.net.layers]
        return self.l1 * torch.stack(rows).sum()

    def _selected(self, head: Tensor, least: float = 1e-3) -> list[Tensor]:
        """Masks of the weights between units that the new head reaches through strong weights."""
        alive = head.detach().abs().amax(0) > least * head.detach().abs().max()
        masks: list[Tensor] = []
        for layer in reversed(self.net.layers):
            weight = layer.weight.detach()
            alive = nn.functional.pad(alive, (0, len(weight) - len(alive)))
            strong = weight.abs() > least * weight.abs().max()
            masks.insert(0, (strong & alive.view(-1, 1)).to(weight))
            alive = (strong & alive.view(-1, 1)).any(0)
        return masks

    def _expand_head(self, task: int, units: list[int]) -> int:
        """Grow the layers, and let the head of the task read the new units."""
        self.net.grow(units)
        old, classes = self.net.heads[task].linear, self.net.heads[task].linear.out_features
        head = Head(self.net.widths[-1], classes, pool=False).to(old.weight.device)
        with torch.no_grad():
            head.linear.weight[:, : old.in_features] = old.weight
            head.linear.bias.copy_(old.bias)
        self.net.heads[task] = head
        return units[0]

    def _split(self, task: int, old: list[tuple[Tensor, Tensor]]) -> int:
        """Give drifted units their old weights back and append copies with the new ones.

        Layers above read the copy instead; since only appended units may read appended ones, a
        unit of an upper layer that relied on a copy drifts itself and is copied too.
        """
        net = self.net
        moved = [
            (m.weight.detach() - w).norm(dim=1) > self.drift * (w.norm(dim=1) + 1e-8)
            for m, (w, _) in zip(net.layers, old, strict=True)
        ]
        count = [int(d.sum()) for d in moved]
        if not any(count):
            return 0
        trained = [(m.weight.detach().clone(), m.bias.detach().clone()) for m in net.layers]
        self._expand_head(task, count)
        head = net.heads[task].linear
        below: Tensor | None = None  # drifted units of the layer below
        with torch.no_grad():
            for m, d, (w_new, b_new), (w_old, b_old) in zip(
                net.layers, moved, trained, old, strict=True
            ):
                n, inputs = w_new.shape
                m.weight[:n][d, :inputs], m.bias[:n][d] = w_old[d], b_old[d]
                copies = torch.zeros_like(m.weight[n:])
                copies[:, :inputs] = w_new[d]
                if below is not None and below.any():
                    copies[:, inputs:] = copies[:, :inputs][:, below]
                    copies[:, :inputs][:, below] = 0
                m.weight[n:], m.bias[n:] = copies, b_new[d]
                below = d
            assert below is not None
            n = len(below)
            head.weight[:, n:] = head.weight[:, :n][:, below]
            head.weight[:, :n][:, below] = 0
        return sum(count)


class RCL(_Growing):
    """Reinforced continual learning (Xu & Zhu 2018): a controller proposes units to add.

    An LSTM emits the number of new units of each layer; the reward of a proposal is validation
    accuracy after a short training of the *new* weights minus `price` per added unit. The best
    proposal is trained in full. Old weights never move, so nothing is forgotten.

    Args:
        proposals: numbers of units to choose from at every layer.
        episodes: proposals that are tried per task, `trial_steps` steps each.
    """

    name = "RCL"

    def __init__(
        self, backbone: Backbone, config: FitConfig | None = None, *, seed: int = 0,
        width: int | None = None, proposals: tuple[int, ...] = (0, 5, 10, 20), episodes: int = 6,
        trial_steps: int = 60, price: float = 1e-3,
    ):  # fmt: skip
        super().__init__(backbone, config, seed=seed, width=width)
        self.proposals, self.episodes = proposals, episodes
        self.trial_steps, self.price = trial_steps, price

    def learn_once(self, task: Task, lr: float, weight_decay: float, beta: int | None) -> FitReport:
        seed, t = self.seed_for(task), task.id
        self.net.to(self.device)
        if t == 0:
            self.net.add_head(task.way)
            everything = [torch.ones_like(layer.weight) for layer in self.net.layers]
            return self._train(task, lr, beta, seed, everything)
        start = self.net
        depth, choices = len(start.layers), len(self.proposals)
        controller = nn.LSTMCell(choices, 16)
        policy = nn.Linear(16, choices)
        optimiser = torch.optim.Adam(
            [*controller.parameters(), *policy.parameters()], lr=0.02, fused=True
        )
        baseline = MovingAverage(0.8)
        best, best_reward, macs = [0] * depth, -float("inf"), 0
        for _ in range(self.episodes):
            token, state, log_p, units = torch.zeros(1, choices), None, torch.zeros(1), []
            for _ in range(depth):
                state = controller(token, state)
                choice = torch.distributions.Categorical(logits=policy(state[0]))
                picked = choice.sample()
                log_p = log_p + choice.log_prob(picked)
                units.append(self.proposals[int(picked)])
                token = nn.functional.one_hot(picked, choices).float()
            report = self._try(start, task, units, lr, None, seed, self.trial_steps)
            macs += report.macs
            reward = report.val_accuracy - self.price * sum(units)
            if reward > best_reward:
                best, best_reward = units, reward
            level = baseline.value if baseline.value is not None else -reward
            loss = policy_loss(log_p, torch.tensor([-reward]), level)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            baseline.update(torch.tensor([-reward]))
        report = self._try(start, task, best, lr, beta, seed, None)
        report.macs += macs
        report.choice = "+".join(map(str, best)) + " units"
        return report

    def _try(self, start, task, units, lr, beta, seed, steps) -> FitReport:
        self.net = copy.deepcopy(start)
        torch.manual_seed(seed)
        self.net.grow(units)
        self.net.add_head(task.way)
        masks = []
        for layer, more in zip(self.net.layers, units, strict=True):
            mask = torch.zeros_like(layer.weight)
            mask[len(mask) - more :] = 1
            masks.append(mask)
        return self._train(task, lr, beta, seed, masks, max_steps=steps)
