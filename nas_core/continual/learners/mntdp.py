"""Modular networks with task-driven priors (thesis section 5.5), searched exhaustively."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from nas_core.continual.backbones import Backbone
from nas_core.continual.fit import (
    FitConfig,
    FitReport,
    accuracy,
    fit,
    training_batches,
    validation_set,
)  # fmt: skip
from nas_core.continual.learners.base import LibraryLearner
from nas_core.continual.learners.prior import Prefix, Trunk, rank_past
from nas_core.continual.tasks import Task
from nas_core.training import TensorData


class MNTDP(LibraryLearner):
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
        if k != 1:
            self.name += f" (k={k})"
        if prior == "random":
            self.name += " random prior"
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


class MNTDPD(MNTDP):
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
