"""Modular networks with task-driven priors (thesis section 5.5): the two search procedures."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from nas_core.continual.backbones import Backbone
from nas_core.continual.fit import (
    FitConfig,
    FitReport,
    Meter,
    accuracy,
    fit,
    training_batches,
    validation_set,
)  # fmt: skip
from nas_core.continual.learners.base import LibraryLearner
from nas_core.continual.library import Library
from nas_core.continual.streams import Task
from nas_core.search.reinforce import MovingAverage, policy_loss
from nas_core.supernet import ChoiceSampler, Edge, SuperNetwork
from nas_core.training import TensorData

Prefix = tuple[int, ...]  # owners of the first modules of a path


class Trunk:
    """The frozen part of a search space: every prefix is evaluated once and shared."""

    def __init__(self, library: Library, prefixes: Sequence[Prefix]):
        self.library = library
        needed = {p[:n] for p in prefixes for n in range(1, len(p) + 1)}
        self.order = sorted(needed, key=lambda p: (len(p), p))
        self.wanted = set(prefixes)

    def __call__(self, x: Tensor) -> dict[Prefix, Tensor]:
        """Output of every wanted prefix; the empty prefix gives `x` itself."""
        out: dict[Prefix, Tensor] = {(): x}
        with torch.no_grad():
            for prefix in self.order:
                module = self.library.module(len(prefix) - 1, prefix[-1])
                out[prefix] = module(out[prefix[:-1]])
        return {p: out[p] for p in self.wanted}

    def of_all(self, data: TensorData, limit: int) -> dict[Prefix, Tensor] | None:
        """The outputs for all of `data`, or None when they take more than `limit` bytes."""
        parts: list[dict[Prefix, Tensor]] = []
        for x, _ in data.batches(256, seed=0, shuffle=False):
            parts.append(self(x))
            size = sum(t.numel() * 4 for t in parts[0].values()) / len(x) * len(data)
            if size > limit:
                return None
        return {p: torch.cat([part[p] for part in parts]) for p in self.wanted}


def rank_past(
    library: Library, task: Task, *, neighbours: int = 5, leave_one_out: bool = False
) -> list[tuple[int, float]]:
    """The data-driven prior: past tasks by k-NN accuracy on the new task's data in their features.

    Args:
        leave_one_out: over training and validation examples together; default is training
            examples as neighbours of validation examples.

    Returns:
        `(past task, accuracy)`, best first; of equals the latest first.
    """
    trunks: dict[Prefix, float] = {}
    trunk = Trunk(library, [p[:-1] for p in library.paths])
    train, val = task.train.plain(), task.val.plain()
    features = []
    head = library.path(0)[-1]
    for data in (train, val):
        parts = []
        for x, _ in data.batches(256, seed=0, shuffle=False):
            parts.append({p: head.embed(h).cpu() for p, h in trunk(x).items()})
        features.append({p: torch.cat([part[p] for part in parts]) for p in parts[0]})
    y_train, y_val = train.y.cpu().numpy(), val.y.cpu().numpy()
    for p in features[0]:
        a, b = features[0][p].numpy(), features[1][p].numpy()
        if leave_one_out:
            x, y = torch.cat([features[0][p], features[1][p]]), torch.cat([train.y, val.y]).cpu()
            near = KNeighborsClassifier(min(neighbours, len(x) - 1)).fit(x.numpy(), y.numpy())
            votes = y[torch.as_tensor(near.kneighbors(return_distance=False))]
            trunks[p] = float((votes.mode(1).values == y).float().mean())
        else:
            near = KNeighborsClassifier(min(neighbours, len(a))).fit(a, y_train)
            trunks[p] = float(near.score(b, y_val))
    scored = [(t, trunks[path[:-1]]) for t, path in enumerate(library.paths)]
    return sorted(scored, key=lambda pair: (-pair[1], -pair[0]))


class _MNTDP(LibraryLearner):
    """What the two searches have in common.

    Args:
        k: number of past paths to branch from, by the prior; "all" for every one.
        prior: "knn", or "random" for the ablation of section 5.6.5.
        leave_one_out: how the prior measures, see `rank_past`.
        whole_paths: also consider using a past path as it is, head included, with nothing new.
    """

    def __init__(
        self, backbone: Backbone, config: FitConfig | None = None, *, seed: int = 0,
        k: int | str = 1, prior: str = "knn", leave_one_out: bool = False,
        whole_paths: bool = True,
    ):  # fmt: skip
        super().__init__(backbone, config, seed=seed)
        if k != "all" and (not isinstance(k, int) or k < 1):
            raise ValueError(f"k is {k!r}; it is a number from 1 on, or 'all'")
        if prior not in ("knn", "random"):
            raise ValueError(f"prior is {prior!r}; choose 'knn' or 'random'")
        self.k, self.prior, self.leave_one_out = k, prior, leave_one_out
        self.whole_paths = whole_paths

    def sources(self, task: Task, seed: int) -> list[tuple[int, float]]:
        """The past tasks whose paths the search may branch from, with their k-NN accuracy."""
        past = len(self.library)
        count = past if self.k == "all" else min(int(self.k), past)
        if self.prior == "random":
            return [(t, float("nan")) for t in random.Random(seed).sample(range(past), count)]
        if count == past == 1:
            return [(0, float("nan"))]
        return rank_past(self.library, task, leave_one_out=self.leave_one_out)[:count]

    def prefixes(self, sources: Sequence[tuple[int, float]]) -> list[Prefix]:
        """Branch to the right: the beginnings of the sources' paths, longest first."""
        depth = len(self.backbone)
        found = {self.library.paths[s][:p] for s, _ in sources for p in range(depth)}
        return sorted(found, key=lambda p: (-len(p), p))

    def learn_once(self, task: Task, lr: float, weight_decay: float, beta: int | None) -> FitReport:
        seed = self.seed_for(task)
        self.library.eval()
        for p in self.library.parameters():
            p.requires_grad_(False)
        if not len(self.library):
            return self._learn_first(task, lr, weight_decay, beta, seed)
        sources = self.sources(task, seed)
        path, suffix, report = self.search(task, sources, lr, weight_decay, beta, seed)
        for layer in range(len(path) - len(suffix), len(path)):
            self.library.put(layer, task.id, suffix[layer - len(path) + len(suffix)], task.way)
        self.library.grow(path, task.way)
        self.library.eval()
        reused = len(path) - len(suffix)
        report.choice = f"{reused} of {len(path)} modules" + (
            f" of t{sources[0][0] + 1}" if reused and len(sources) == 1 else " of the past"
        )
        report.details |= {"sources": sources, "path": path, "reused": reused}
        return report

    def _learn_first(
        self, task: Task, lr: float, weight_decay: float, beta: int | None, seed: int
    ) -> FitReport:
        suffix = self.backbone.path(task.way).to(self.device)
        space = [((), suffix)]
        (report,) = self._fit_suffixes(space, task, lr, weight_decay, beta, seed)
        for layer, module in enumerate(suffix):
            self.library.put(layer, task.id, module, task.way)
        self.library.grow((task.id,) * len(suffix), task.way)
        report.choice = "all new"
        report.details |= {"sources": [], "path": self.library.paths[-1], "reused": 0}
        return report

    def search(
        self, task: Task, sources: list[tuple[int, float]], lr: float, weight_decay: float,
        beta: int | None, seed: int,
    ) -> tuple[Prefix, nn.ModuleList, FitReport]:  # fmt: skip
        """The chosen path, its new modules (a suffix of the path) and the report."""
        raise NotImplementedError

    cache_bytes = 512 * 2**20  # features of the frozen trunk are kept up to this size

    def _fit_suffixes(
        self, space: Sequence[tuple[Prefix, nn.ModuleList]], task: Task, lr: float,
        weight_decay: float, beta: int | None, seed: int,
    ) -> list[FitReport]:  # fmt: skip
        """Train new modules behind frozen prefixes, all candidates in one backward pass."""
        trunk = Trunk(self.library, [prefix for prefix, _ in space])
        val = validation_set(task, self.config.val_copies, seed)
        # Validation inputs never change, training inputs change only under augmentation.
        fixed_val = trunk.of_all(val, self.cache_bytes)
        batches: Iterator[tuple[Tensor, Tensor]] | None = None
        fixed_train = None
        if task.train.augment is None:
            fixed_train = trunk.of_all(task.train, self.cache_bytes)
        if fixed_train is not None:
            rows = torch.arange(len(task.train), device=task.train.device)
            batches = training_batches(TensorData(rows, task.train.y), self.config.batch_size, seed)

        def after(c: int, h: Tensor) -> Tensor:
            for module in space[c][1]:
                h = module(h)
            return h

        def losses(x: Tensor, y: Tensor, active: list[int]) -> list[Tensor]:
            if fixed_train is None:
                seen = trunk(x)
            else:
                seen = {p: h[x.long()] for p, h in fixed_train.items()}
            return [cross_entropy(after(c, seen[space[c][0]]), y) for c in active]

        def scores(data: TensorData, fixed: dict | None, which: Sequence[int]) -> list[float]:
            right = torch.zeros(len(space))
            with torch.no_grad():
                for start in range(0, len(data), 256):
                    part = slice(start, start + 256)
                    x, y = data.inputs(data.x[part]), data.y[part]
                    seen = trunk(x) if fixed is None else {p: h[part] for p, h in fixed.items()}
                    for c in which:
                        right[c] += (after(c, seen[space[c][0]]).argmax(1) == y).sum().cpu()
            return [float(right[c]) / len(data) for c in which]

        everything = range(len(space))
        return fit(
            [suffix for _, suffix in space], losses,
            lambda active: scores(val, fixed_val, active),
            task, self.config, lr, weight_decay, seed=seed, beta=beta or 0, batches=batches,
            curves=None if beta is None else lambda: scores(task.test, None, everything),
        )  # fmt: skip

    def _whole(
        self, task: Task, sources: Sequence[tuple[int, float]], seed: int, beta: int | None
    ) -> list[tuple[Prefix, FitReport]]:
        """Past paths as they are: they cost a look at the validation set and nothing else."""
        if not self.whole_paths:
            return []
        val = validation_set(task, self.config.val_copies, seed)
        found = []
        for s, _ in sources:
            if self.library.ways[s] == task.way:
                report = FitReport(accuracy(partial(self.library, task=s), val), 0, 0)
                if beta is not None:
                    test = accuracy(partial(self.library, task=s), task.test)
                    report.curve = [test] * (beta + 1)
                found.append((self.library.paths[s], report))
        return found


class MNTDPD(_MNTDP):
    """Deterministic MNTDP (algorithm 4): every path has its own new modules, all are trained.

    The path with the best validation accuracy stays; of equals the one that reuses most.
    """

    name = "MNTDP-D"

    def search(
        self, task: Task, sources: list[tuple[int, float]], lr: float, weight_decay: float,
        beta: int | None, seed: int,
    ) -> tuple[Prefix, nn.ModuleList, FitReport]:  # fmt: skip
        depth = len(self.backbone)
        space = []
        for prefix in self.prefixes(sources):
            new = [self.backbone.block(n, task.way) for n in range(len(prefix), depth)]
            space.append((prefix, nn.ModuleList(new).to(self.device)))
        reports = self._fit_suffixes(space, task, lr, weight_decay, beta, seed)
        whole = self._whole(task, sources, seed, beta)
        options = [(path, nn.ModuleList(), report) for path, report in whole]
        options += [
            (prefix + (task.id,) * (depth - len(prefix)), suffix, report)
            for (prefix, suffix), report in zip(space, reports, strict=True)
        ]
        path, suffix, chosen = max(options, key=lambda option: option[2].val_accuracy)
        chosen.macs, chosen.steps = reports[0].macs, reports[0].steps  # of the whole search
        chosen.lr, chosen.weight_decay = lr, weight_decay
        chosen.details["candidates"] = [
            (depth - len(suffix), round(r.val_accuracy, 4)) for _, suffix, r in options
        ]
        return path, suffix, chosen


class MNTDPS(_MNTDP):
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
