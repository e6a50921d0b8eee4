"""The stochastic search of MNTDP (algorithm 3): shared new modules, a distribution over paths."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from nas_core.continual.backbones import Backbone
from nas_core.continual.fit import FitConfig, FitReport, Meter, training_batches
from nas_core.continual.learners.mntdp import MNTDP
from nas_core.continual.learners.prior import Prefix
from nas_core.continual.tasks import Task
from nas_core.search.reinforce import MovingAverage, policy_loss
from nas_core.supernet import ChoiceSampler, Edge, SuperNetwork


class MNTDPS(MNTDP):
    """Stochastic MNTDP (algorithm 3): paths share the new modules, Γ is learnt with REINFORCE.

    Args:
        gamma_lr: learning rate of Γ.
        entropy: weight of the entropy of Γ in the loss.
    """

    name = "MNTDP-S"

    def __init__(
        self, backbone: Backbone, config: FitConfig | None = None, *, gamma_lr: float = 1e-2,
        entropy: float = 1.0, **options: Any,
    ):  # fmt: skip
        super().__init__(backbone, config, **options)
        self.gamma_lr, self.entropy = gamma_lr, entropy

    def space(
        self, task: Task, sources: Sequence[tuple[int, float]]
    ) -> tuple[SuperNetwork, ChoiceSampler, nn.ModuleList, list[Prefix]]:
        """The search space as a super-network, Γ, the new modules, and the prefixes of its paths.

        At every module of an old path one either stays on it or branches to the new column; that
        the new column never leads back is the structure of the graph.
        """
        depth = len(self.backbone)
        new = self.backbone.path(task.way)
        edges = [
            Edge(f"new{n}", f"new{n + 1}", m, f"new {n + 1}", "new") for n, m in enumerate(new)
        ]
        edges[-1] = edges[-1]._replace(target="out")
        found = sorted(self.prefixes(sources), key=lambda p: (len(p), p))
        if self.whole_paths:
            whole = {self.library.paths[s] for s, _ in sources if self.library.ways[s] == task.way}
            found += sorted(whole)

        def node(p: Prefix) -> str:
            return "in" if not p else "out" if len(p) == depth else f"old{p}"

        for p in found:
            if p:
                old = self.library.module(len(p) - 1, p[-1])
                edges.append(Edge(node(p[:-1]), node(p), old, f"old {p}", "reused"))
            if len(p) < depth:
                edges.append(Edge(node(p), f"new{len(p)}", nn.Identity(), f"branch {p}", "branch"))
        net = SuperNetwork(edges, "in", "out", name="MNTDP-S").to(self.device)
        return net, ChoiceSampler.paths(net.graph).to(self.device), new, found

    def path_masks(self, net: SuperNetwork, prefixes: Sequence[Prefix]) -> Tensor:
        """bool `[P, E]`: the edges of the path that keeps each prefix."""
        depth, graph = len(self.backbone), net.graph
        masks = torch.zeros(len(prefixes), len(graph), dtype=torch.bool)
        for row, p in enumerate(prefixes):
            names = [f"old {p[:n]}" for n in range(1, len(p) + 1)]
            names += [f"branch {p}"] if len(p) < depth else []
            names += [f"new {n + 1}" for n in range(len(p), depth)]
            masks[row, [graph.index(name) for name in names]] = True
        return masks

    def search(
        self, task: Task, sources: list[tuple[int, float]], lr: float, weight_decay: float,
        beta: int | None, seed: int,
    ) -> tuple[Prefix, nn.ModuleList, FitReport]:  # fmt: skip
        net, gamma, new, prefixes = self.space(task, sources)
        masks = self.path_masks(net, prefixes).to(self.device)
        macs = self._search_gamma(task, net, gamma, new, masks, lr, weight_decay, seed)
        probabilities = gamma.log_prob(masks).exp().tolist()
        best = max(range(len(prefixes)), key=probabilities.__getitem__)
        prefix = prefixes[best]
        suffix = nn.ModuleList(list(new)[len(prefix) :])
        path = prefix + (task.id,) * len(suffix)
        if len(suffix):  # fine-tune what is new on all of the training set
            (report,) = self._fit_suffixes([(prefix, suffix)], task, lr, weight_decay, beta, seed)
        else:
            whole = self._whole(task, sources, seed, beta)
            report = next(r for p, r in whole if p == prefix)
            report.lr, report.weight_decay = lr, weight_decay
        report.macs += macs
        report.details["probabilities"] = [
            (len(p), round(q, 4)) for p, q in zip(prefixes, probabilities, strict=True)
        ]
        return path, suffix, report

    def _search_gamma(
        self, task: Task, net: SuperNetwork, gamma: ChoiceSampler, new: nn.ModuleList,
        masks: Tensor, lr: float, weight_decay: float, seed: int,
    ) -> int:  # fmt: skip
        """Alternate θ on one half of the training set and Γ on the other; returns macs."""
        config = self.config
        order = torch.randperm(len(task.train), generator=torch.Generator().manual_seed(seed))
        half = (len(order) + 1) // 2
        data = [task.train.subset(part) for part in (order[:half], order[half:])]
        batches = [
            training_batches(d, min(config.batch_size, len(d)), seed + i)
            for i, d in enumerate(data)
        ]
        theta = torch.optim.Adam(new.parameters(), lr=lr, weight_decay=weight_decay, fused=True)
        policy = torch.optim.Adam(gamma.parameters(), lr=self.gamma_lr, fused=True)
        generator = torch.Generator(self.device).manual_seed(seed)
        baseline, smooth = MovingAverage(0.9), MovingAverage(0.95)
        price = self._prices(task, net, new, masks)
        macs, best, best_step, decided = 0.0, float("inf"), 0, False
        net.train()
        for p in net.edge_modules[len(new) :]:
            p.eval()  # frozen modules keep their batch-norm statistics
        for step in range(1, config.max_steps + 1):
            odd = step % 2 == 1
            x, y = next(batches[0 if odd or decided else 1])
            sample = gamma.sample(len(x), generator)
            rows = net.graph.reachable(sample.mask)
            which = (rows.unsqueeze(1) == masks).all(2).float().argmax(1)
            if odd or decided:
                loss = cross_entropy(net(x, rows), y)
                theta.zero_grad(set_to_none=True)
                if loss.requires_grad:  # not when every example took a whole old path
                    loss.backward()
                    theta.step()
                value = smooth.update(loss.detach())
                if value < best - 1e-3:
                    best, best_step = value, step
            else:
                with torch.no_grad():
                    losses = cross_entropy(net(x, rows), y, reduction="none")
                level = baseline.value if baseline.value is not None else losses.mean().item()
                objective = policy_loss(sample.log_prob, losses, level)
                policy.zero_grad(set_to_none=True)
                (objective - self.entropy * sample.entropy.mean()).backward()
                policy.step()
                baseline.update(losses)
                decided = bool(gamma.log_prob(masks).max() > torch.log(torch.tensor(0.99)))
            macs += float(price[int(odd or decided)][which].sum())
            if step - best_step >= config.patience:
                break
        net.eval()
        return round(macs)

    def _prices(
        self, task: Task, net: SuperNetwork, new: nn.ModuleList, masks: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Multiply-adds per example of each path: forward pass alone, and with backward pass."""
        x, y = next(task.train.plain().batches(2, seed=0))
        forward, both = Meter(), Meter()
        prices: tuple[list[float], list[float]] = ([], [])

        def step(mask: Tensor) -> None:
            loss = cross_entropy(net(x, mask), y)
            if loss.requires_grad:
                torch.autograd.grad(loss, list(new.parameters()), allow_unused=True)

        net.eval()
        for i, mask in enumerate(masks):
            before = forward.macs, both.macs
            with torch.no_grad():
                forward.run(i, 1, partial(net, x, mask))
            both.run(i, 1, partial(step, mask))
            prices[0].append((forward.macs - before[0]) / len(x))
            prices[1].append((both.macs - before[1]) / len(x))
        return torch.tensor(prices[0]), torch.tensor(prices[1])
