"""Modular networks with task-driven priors (thesis section 5.5): the prior and both searches."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from nas_core.continual.fit import FitReport, Trial, fit, training_batches, validation_set
from nas_core.continual.learners.base import LibraryLearner
from nas_core.continual.library import Library, tensor_bytes
from nas_core.continual.streams import Task
from nas_core.search.reinforce import policy_loss
from nas_core.supernet import ChoiceSampler, Edge, SuperNetwork
from nas_core.training import MovingAverage, TensorData, accuracy, descend, make_optimizer

Prefix = tuple[int, ...]  # owners of the first modules of a path
Sources = Sequence[tuple[int, float]]  # past tasks with the accuracy that the prior gave them
Found = tuple[Prefix, nn.ModuleList, FitReport]  # a path, its new modules (the last ones), report
# Net, Γ, the new modules, the prefixes that the P paths keep, and the paths' edges: bool [P, E].
Space = tuple[SuperNetwork, ChoiceSampler, nn.ModuleList, list[Prefix], Tensor]


class Trunk:
    """The frozen part of a search space: every prefix is evaluated once and shared."""

    def __init__(self, library: Library, prefixes: Sequence[Prefix], limit: int = 0):
        self.library, self.limit = library, limit  # bytes that `of_all` may keep
        needed = {p[:n] for p in prefixes for n in range(1, len(p) + 1)}
        self.order = sorted(needed, key=lambda p: (len(p), p))
        self.wanted = set(prefixes)
        self._kept: dict[TensorData, dict[Prefix, Tensor] | None] = {}

    @torch.no_grad()
    def __call__(self, x: Tensor) -> dict[Prefix, Tensor]:
        """Output of every wanted prefix; the empty prefix gives `x` itself."""
        out: dict[Prefix, Tensor] = {(): x}
        for prefix in self.order:
            module = self.library.module(len(prefix) - 1, prefix[-1])
            out[prefix] = module(out[prefix[:-1]])
        return {p: out[p] for p in self.wanted}

    def over(
        self, data: TensorData, of: Callable[[Tensor], Tensor] = lambda h: h
    ) -> dict[Prefix, Tensor]:
        """`of(h)` for the outputs h of all of `data`, `[N, …]` per wanted prefix."""
        batches = data.batches(256, seed=0, shuffle=False)
        parts = [{p: of(h) for p, h in self(x).items()} for x, _ in batches]
        return {p: torch.cat([part[p] for part in parts]) for p in self.wanted}

    def of_all(self, data: TensorData) -> dict[Prefix, Tensor] | None:
        """`over(data)`, kept; or None where that does not fit into what is left of `limit`."""
        if data not in self._kept:
            held = [h for kept in self._kept.values() for h in (kept or {}).values()]
            example = self(data.inputs(data.x[:1])).values()
            needed = tensor_bytes(example) * len(data) + tensor_bytes(held)
            self._kept[data] = self.over(data) if needed <= self.limit else None
        return self._kept[data]


def rank_past(library: Library, task: Task, *, neighbours: int = 5) -> list[tuple[int, float]]:
    """The data-driven prior: past tasks by k-NN accuracy on the new task's data in their features.

    Training examples are the neighbours of validation examples. Returns `(past task, accuracy)`,
    best first; of equals the latest first.
    """
    from sklearn.neighbors import KNeighborsClassifier

    trunk = Trunk(library, [path[:-1] for path in library.paths])
    embed = library.path(0)[-1].embed
    x, x_val = (trunk.over(d.plain(), lambda h: embed(h).cpu()) for d in (task.train, task.val))
    y, y_val = task.train.y.cpu().numpy(), task.val.y.cpu().numpy()
    scores = {}
    for p in trunk.wanted:
        near = KNeighborsClassifier(min(neighbours, len(y))).fit(x[p].numpy(), y)
        scores[p] = float(near.score(x_val[p].numpy(), y_val))
    ranking = [(t, scores[path[:-1]]) for t, path in enumerate(library.paths)]
    return sorted(ranking, key=lambda pair: (-pair[1], -pair[0]))


@dataclass(eq=False, kw_only=True)
class MNTDPD(LibraryLearner):
    """Deterministic MNTDP: all paths that branch from a past path are trained (algorithm 4)."""

    k: int | str = 1  # number of past paths to branch from, by the prior; "all" for every one
    prior: str = "knn"  # or "random", for the ablation of section 5.6.5
    whole_paths: bool = True  # also consider a past path as it is, head included
    cache_bytes: int = 512 * 2**20  # features of the frozen trunk are kept up to this size
    name = "MNTDP-D"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.k != "all" and (not isinstance(self.k, int) or self.k < 1):
            raise ValueError(f"k is {self.k!r}; it is a number from 1 on, or 'all'")
        if self.prior not in ("knn", "random"):
            raise ValueError(f"prior is {self.prior!r}; choose 'knn' or 'random'")
        self.name += "" if self.k == 1 else f" (k={self.k})"
        self.name += " random prior" if self.prior == "random" else ""

    def learn_once(self, trial: Trial) -> FitReport:
        task, depth = trial.task, len(self.backbone)
        self.library.to(self.device).eval().requires_grad_(False)
        sources = self.sources(trial)
        path, suffix, report = self.search(trial, sources)
        reused = depth - len(suffix)
        for layer, module in enumerate(suffix, reused):
            self.library.put(layer, task.id, module, task.way)
        self.library.grow(path, task.way)
        self.library.eval()
        origin = f"t{sources[0][0] + 1}" if reused and len(sources) == 1 else "the past"
        report.choice = f"{reused} of {depth} modules of {origin}" if sources else "all new"
        report.details |= {"sources": sources, "path": path, "reused": reused}
        return report

    def sources(self, trial: Trial) -> list[tuple[int, float]]:
        """The past tasks whose paths the search may branch from, with their k-NN accuracy."""
        past = len(self.library)
        count = past if self.k == "all" else min(int(self.k), past)
        if self.prior == "knn" and past > 1:
            return rank_past(self.library, trial.task)[:count]
        drawn = random.Random(trial.seed).sample(range(past), count)
        return [(t, float("nan")) for t in drawn]

    def prefixes(self, sources: Sources) -> list[Prefix]:
        """Branch to the right: the beginnings of the sources' paths, longest first."""
        depth = len(self.backbone)
        found = {self.library.paths[s][:p] for s, _ in sources for p in range(depth)} | {()}
        return sorted(found, key=lambda p: (-len(p), p))

    def search(self, trial: Trial, sources: Sources) -> Found:
        """Every path has its own new modules, all are trained, the best on validation stays.

        Of paths with the same validation accuracy the one that reuses most is chosen.
        """
        depth, task = len(self.backbone), trial.task
        space = []
        for prefix in self.prefixes(sources):
            new = [self.backbone.block(n, task.way) for n in range(len(prefix), depth)]
            space.append((prefix, nn.ModuleList(new).to(self.device)))
        reports, options = self.fit_suffixes(space, trial), self.whole(trial, sources)
        for (prefix, suffix), report in zip(space, reports, strict=True):
            options.append((prefix + (task.id,) * len(suffix), suffix, report))
        path, suffix, best = max(options, key=lambda option: option[2].val_accuracy)
        tried = [(depth - len(s), round(r.val_accuracy, 4)) for _, s, r in options]
        macs, steps = reports[0].macs, reports[0].steps  # of the search
        best = replace(best, macs=macs, steps=steps, details={"candidates": tried})
        return path, suffix, best

    def fit_suffixes(
        self, space: Sequence[tuple[Prefix, nn.ModuleList]], trial: Trial
    ) -> list[FitReport]:
        """Train new modules behind frozen prefixes, all candidates in one backward pass."""
        task = trial.task
        trunk = Trunk(self.library, [prefix for prefix, _ in space], self.cache_bytes)
        # Validation inputs never change, training inputs change only under augmentation. Where
        # they do not, a batch is a list of row numbers into the features of all examples.
        kept = trunk.of_all(task.train) if task.train.augment is None else None
        batches = None
        if kept is not None:
            rows = TensorData(torch.arange(len(task.train), device=self.device), task.train.y)
            batches = training_batches(rows, self.config.batch_size, trial.seed)

        def logits(c: int, seen: dict[Prefix, Tensor]) -> Tensor:
            prefix, suffix = space[c]
            h = seen[prefix]
            for module in suffix:
                h = module(h)
            return h

        def losses(x: Tensor, y: Tensor, active: Sequence[int]) -> list[Tensor]:
            seen = trunk(x) if kept is None else {p: h[x.long()] for p, h in kept.items()}
            return [cross_entropy(logits(c, seen), y) for c in active]

        @torch.no_grad()
        def scores(data: TensorData, which: Sequence[int]) -> list[float]:
            fixed, row = trunk.of_all(data), 0
            right = torch.zeros(len(space), device=self.device)
            for x, y in data.batches(256, seed=0, shuffle=False):
                now = slice(row, row + len(x))
                seen = trunk(x) if fixed is None else {p: h[now] for p, h in fixed.items()}
                for c in which:
                    right[c] += (logits(c, seen).argmax(1) == y).sum()
                row += len(x)
            return [count / len(data) for count in right[list(which)].tolist()]

        suffixes = [suffix for _, suffix in space]
        return fit(suffixes, losses, scores, trial, self.config, batches=batches)

    def whole(self, trial: Trial, sources: Sources) -> list[Found]:
        """Past paths as they are: they cost one measurement on the validation set."""
        task, found, library = trial.task, list[Found](), self.library
        val = validation_set(task, self.config.val_copies, trial.seed)
        for s, _ in sources if self.whole_paths else ():
            if library.ways[s] == task.way:
                predict, beta = partial(library, task=s), trial.beta
                curve = [] if beta is None else [accuracy(predict, task.test)] * (beta + 1)
                val_accuracy = accuracy(predict, val)
                report = FitReport(val_accuracy, 0, 0, trial.lr, trial.weight_decay, curve)
                found.append((library.paths[s], nn.ModuleList(), report))
        return found


@dataclass(eq=False, kw_only=True)
class MNTDPS(MNTDPD):
    """Stochastic MNTDP: paths share the new modules, Γ is learnt with REINFORCE (algorithm 3).

    `report.details` holds the probability of every path ("probabilities", with the number of
    modules that it reuses) and how they moved ("gamma": steps, and one list per path).
    """

    gamma_lr: tuple[float, ...] = (1e-2, 1e-3)  # grid of the learning rate of Γ
    entropy: float = 1.0  # weight of the entropy of Γ in the loss
    # Γ before the first step: "paths" is uniform over paths, "choices" is uniform at every module,
    # which gives the path of new modules ½ and a whole old path 2^−L.
    start: str = "paths"
    search_steps: int | None = None  # default is `max_steps` of the training
    name = "MNTDP-S"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.start not in ("paths", "choices"):
            raise ValueError(f"start is {self.start!r}; choose 'paths' or 'choices'")
        if not self.gamma_lr or min(self.gamma_lr) <= 0:
            raise ValueError(f"gamma_lr is {self.gamma_lr}; it is a list of rates above 0")

    def trials(self, task: Task, beta: int | None) -> list[Trial]:
        rates = self.gamma_lr if self.seen else self.gamma_lr[:1]  # the first task has no Γ
        points = itertools.product(super().trials(task, beta), rates)
        return [replace(trial, gamma_lr=rate) for trial, rate in points]

    def search(self, trial: Trial, sources: Sources) -> Found:
        if not sources:
            return super().search(trial, sources)
        _, gamma, new, prefixes, masks = space = self.space(trial.task, sources)
        macs, moved = self._learn_gamma(trial, space)
        prefix = prefixes[int(gamma.log_prob(masks).argmax())]
        suffix = nn.ModuleList(list(new)[len(prefix) :])
        if len(suffix):  # fine-tune what is new on all of the training set
            (report,) = self.fit_suffixes([(prefix, suffix)], trial)
        else:
            report = next(r for p, _, r in self.whole(trial, sources) if p == prefix)
        report.macs += macs
        ends = zip(prefixes, moved["paths"][-1], strict=True)
        report.details |= {"probabilities": [(len(p), q) for p, q in ends], "gamma": moved}
        return prefix + (trial.task.id,) * len(suffix), suffix, report

    def space(self, task: Task, sources: Sources) -> Space:
        """At every module of an old path one either stays on it or branches to the new column.

        That the new column never leads back is the structure of the graph.
        """
        depth, new = len(self.backbone), self.backbone.path(task.way)
        column = [*(f"new{n}" for n in range(depth)), "out"]
        steps = zip(column, column[1:], new, strict=False)
        edges = [Edge(a, b, m, f"new {n}", "new") for n, (a, b, m) in enumerate(steps, 1)]
        found = sorted(self.prefixes(sources), key=lambda p: (len(p), p))
        if self.whole_paths:
            past = {self.library.paths[s] for s, _ in sources if self.library.ways[s] == task.way}
            found += sorted(past)

        def node(p: Prefix) -> str:
            return "in" if not p else "out" if len(p) == depth else f"old{p}"

        for p in found:
            if p:
                old = self.library.module(len(p) - 1, p[-1])
                edges.append(Edge(node(p[:-1]), node(p), old, f"old {p}", "reused"))
            if len(p) < depth:
                edges.append(Edge(node(p), column[len(p)], nn.Identity(), f"branch {p}", "branch"))
        net = SuperNetwork(edges, "in", "out", name="MNTDP-S").to(self.device)
        gamma = ChoiceSampler.paths(net.graph).to(self.device)
        rows = []
        for p in found:
            used = {f"old {p[:n]}" for n in range(1, len(p) + 1)} | {f"branch {p}"}
            used |= {f"new {n + 1}" for n in range(len(p), depth)}
            rows.append([edge.name in used for edge in net.graph.edges])
        masks = torch.tensor(rows, device=self.device)
        if self.start == "paths":  # the odds of an edge are the numbers of paths that take it
            with torch.no_grad():
                gamma.logits.copy_(masks.sum(0).clamp(min=1).log())
        return net, gamma, new, found, masks

    def _learn_gamma(self, trial: Trial, space: Space) -> tuple[int, dict[str, list]]:
        """Alternate θ on one half of the training set and Γ on the other.

        Returns the multiply-adds, and the probabilities of the paths over the steps.
        """
        net, gamma, new, prefixes, masks = space
        config, task, seed = self.config, trial.task, trial.seed
        total = self.search_steps or config.max_steps
        order = torch.randperm(len(task.train), generator=torch.Generator().manual_seed(seed))
        halves = [task.train.subset(part) for part in order.split((len(order) + 1) // 2)]
        of_theta, of_gamma = (
            training_batches(half, min(config.batch_size, len(half)), seed + i)
            for i, half in enumerate(halves)
        )
        decay = trial.weight_decay
        theta = make_optimizer(new.parameters(), "adam", lr=trial.lr, weight_decay=decay)
        policy = make_optimizer(gamma.parameters(), "adam", lr=trial.gamma_lr or 1e-2)
        generator = torch.Generator(self.device).manual_seed(seed)
        baseline, smooth = MovingAverage(0.9), MovingAverage(0.95)
        # Per example: every path computes all layers; what is new needs the gradients of its
        # weights and of its inputs, but for the input of the first new module.
        layers = self.backbone.macs
        forward = torch.full((len(prefixes),), float(sum(layers)), device=self.device)
        backward = [2.0 * sum(layers[n:]) - sum(layers[n : n + 1]) for n in map(len, prefixes)]
        prices = (forward, forward + torch.tensor(backward, device=self.device))
        macs, best, best_step, decided = 0.0, float("inf"), 0, False
        steps, probabilities = [], []
        net.train()
        for old in net.edge_modules[len(new) :]:
            old.eval()  # frozen modules keep their batch-norm statistics
        for step in range(total + 1):
            if step % max(1, total // 50) == 0 or step == total:
                steps.append(step)
                paths = gamma.log_prob(masks).exp()  # [P]
                probabilities.append([round(p, 4) for p in paths.tolist()])
            if step == total or step - best_step >= config.patience:
                break
            learns_weights = decided or step % 2 == 0
            x, y = next(of_theta if learns_weights else of_gamma)
            sample = gamma.sample(len(x), generator)  # a path for every example
            rows = net.graph.reachable(sample.mask)  # [B, E]
            which = (rows.unsqueeze(1) == masks).all(2).float().argmax(1)  # [B], numbers of paths
            macs += float(prices[int(learns_weights)][which].sum())
            if learns_weights:
                loss = cross_entropy(net(x, rows), y)
                descend(loss, theta)  # no update when every example took a whole old path
                value = smooth.update(loss.detach())
                if value < best - 1e-3:
                    best, best_step = value, step
            else:
                with torch.no_grad():
                    losses = cross_entropy(net(x, rows), y, reduction="none")  # [B]
                level = baseline.value if baseline.value is not None else losses.mean().item()
                objective = policy_loss(sample.log_prob, losses, level)
                descend(objective - self.entropy * sample.entropy.mean(), policy)
                baseline.update(losses)
                decided = bool(gamma.log_prob(masks).max() > math.log(0.99))
        net.eval()
        return round(macs), {"steps": steps, "paths": probabilities}
