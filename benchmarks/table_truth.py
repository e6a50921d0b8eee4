"""The budgeted search where the truth is known: on the table of 3,472 trained digit cells.

Every variant changes one setting of the search. The cell that it ends with is looked up in the
table, which tells how many of the affordable cells, and of the cells of equal cost, are worse.

    python benchmarks/table_truth.py --seeds 5

All seeds and budgets of a variant run side by side, because a network this small spends its time
in the overhead of calls: each of R searches has its own weights, Γ and order of examples. The
arithmetic is that of `search.budgeted` (the tests compare the two).
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas_core.search import CellTable, sweep
from nas_core.search.cell_batch import DIGIT_CELLS, table_data
from nas_core.spaces.cells import Cell
from nas_core.training import derived_seeds, describe_device, one_thread, pick_device
from nas_core.workbook.results import record_result

SHARES = (0.4, 0.6)  # budgets, as shares of the multiply-adds of the largest cell
EQUAL = 0.025  # "equal cost": macs that differ by at most this share of the largest cell's
SPENT = 0.85  # "spending" cells use at least this share of the budget
SHORTLIST = 5  # cells that the last stage trains alone
DRAWS = 40  # draws from Γ that the last stage compares with shared weights
BATCH = 16
CHOICES = DIGIT_CELLS.ops  # of every node pair: copy, conv 1×1, conv 3×3, pool
EDGES, NODES = DIGIT_CELLS.edges, DIGIT_CELLS.nodes


@dataclass(frozen=True)
class Settings:
    """One search. The defaults are the centre of the grid."""

    gamma_lr: float = 0.1
    momentum: float = 0.0  # of Γ
    lam: float = 1.0  # per unit of the super-network's cost
    epochs: int = 60
    lr: float = 0.05  # of θ, with momentum 0.9; divided by 10 for the last quarter
    warmup: int = 10
    warmup_sampled: bool = True  # warm up on random cells, not on the whole network
    anneal: float = 0.0  # the budget falls from the full cost during this share of the search
    max_logit: float | None = None
    per_batch: int = BATCH  # architectures drawn for a batch of 16 examples
    held_out: bool = False  # Γ learns from validation batches, θ from training batches


VARIANTS: dict[str, Settings] = {
    "centre": Settings(),
    "Γ frozen at uniform": Settings(gamma_lr=0.0),
    "warm-up on the whole network": Settings(warmup_sampled=False),
    "as it was: Γ rate 1, momentum .9, λ 4, 40 epochs": Settings(
        1.0, 0.9, 4.0, 40, warmup_sampled=False
    ),
    "Γ rate 1, momentum .9": Settings(1.0, 0.9),
    "Γ from held-out data": Settings(held_out=True),
    "Γ rate .03": Settings(gamma_lr=0.03),
    "λ 4": Settings(lam=4.0),
    "Γ frozen, held-out data": Settings(gamma_lr=0.0, held_out=True),
    "budget annealed": Settings(anneal=0.5),
    "Γ rate .1, momentum .9": Settings(momentum=0.9),
    "4 cells a batch": Settings(per_batch=4),
    "30 epochs": Settings(epochs=30, warmup=5),
    "logits within ±2": Settings(max_logit=2.0),
}


MORE = ("centre", "Γ from held-out data", "Γ rate .03")  # run with further seeds


@cache
def table() -> CellTable:
    return CellTable.load()


# ---------------------------------------------------------------- R super-networks side by side


class Fabrics(nn.Module):
    """R copies of the cells' network, each with weights of its own; the cell is a choice per row.

    The convolutions of all edges that leave a node are one grouped convolution. Rows that do not
    select an operation are left out of its batch norm and add nothing to the sum.
    """

    running: Tensor
    pooling: Tensor

    def __init__(self, seeds: Sequence[int]):
        super().__init__()
        nets = []
        for seed in seeds:
            torch.manual_seed(seed)
            nets.append(DIGIT_CELLS.network())

        def stack(pick) -> nn.Parameter:
            return nn.Parameter(torch.stack([pick(net).detach() for net in nets]))

        def conv(net, i: int, j: int, op: str) -> Tensor:
            return net.edge_modules[net.graph.index(f"{i}→{j} {op}")][0].weight

        self.copies = len(nets)
        self.stem = stack(lambda net: net.edge_modules[0][0].weight)  # [R, C, 1, 3, 3]
        self.channels = self.stem.shape[1]
        self.head = stack(lambda net: net.edge_modules[-1][2].weight)  # [R, 10, C]
        self.bias = stack(lambda net: net.edge_modules[-1][2].bias)
        self.large = nn.ParameterDict()  # [R, C, C, 3, 3] of every edge
        self.small = nn.ParameterDict()  # [R, C, C, 1, 1]
        for i, j in EDGES:
            self.large[f"{i}{j}"] = stack(lambda net, i=i, j=j: conv(net, i, j, "nor_conv_3x3"))
            self.small[f"{i}{j}"] = stack(lambda net, i=i, j=j: conv(net, i, j, "nor_conv_1x1"))
        norms = 1 + 2 * len(EDGES)  # the stem's, then conv 1×1 and 3×3 of every edge
        self.scale = nn.Parameter(torch.ones(norms, self.copies, self.channels))
        self.shift = nn.Parameter(torch.zeros(norms, self.copies, self.channels))
        one = torch.ones(norms, self.copies, self.channels)
        self.register_buffer("running", torch.stack([torch.zeros_like(one), one]))
        delta = torch.eye(16).view(16, 1, 4, 4)
        self.register_buffer(
            "pooling", F.avg_pool2d(delta, 3, 1, 1, count_include_pad=False).flatten(1)
        )

    def forward(self, x: Tensor, chosen: Tensor, remember: bool = True) -> Tensor:
        """Logits `[B, R, 10]` of `x` `[B, R, 8, 8]`.

        Args:
            chosen: 0 or 1, float `[B, R, edges, choices]`; all ones compute the whole network.
            remember: update the running statistics, which serve operations that one row selects.
        """
        b, r, c = len(x), self.copies, self.channels
        value = F.conv2d(x, self.stem.flatten(0, 1), None, 2, 1, 1, r).view(b, r, c, 4, 4)
        everyone = torch.ones(b, r, 1)
        value = self._norm(value.unsqueeze(2), slice(0, 1), everyone, remember)[:, :, 0]
        arriving: list[list[Tensor]] = [[] for _ in range(NODES)]
        for i in range(NODES):
            value = F.relu(value if i == 0 else sum(arriving[i][1:], arriving[i][0]))
            leaving = [e for e, (source, _) in enumerate(EDGES) if source == i]
            if not leaving:
                break
            names = [f"{i}{EDGES[e][1]}" for e in leaving]
            kernels = [k for n in names for k in (F.pad(self.small[n], [1] * 4), self.large[n])]
            kernel = torch.stack(kernels, 1)  # [R, 2 × edges, C, C, 3, 3]
            flat = F.conv2d(value.flatten(1, 2), kernel.flatten(0, 2), None, 1, 1, 1, r)
            pick = chosen[:, :, leaving]  # [B, R, edges, choices]
            convolved = self._norm(
                flat.view(b, r, 2 * len(leaving), c, 4, 4),
                [1 + 2 * e + k for e in leaving for k in (0, 1)],
                pick[..., 1:3].flatten(2),
                remember,
            )
            pooled = (value.flatten(3) @ self.pooling).view_as(value)
            for n, e in enumerate(leaving):
                weight = pick[:, :, n, :, None, None, None]  # [B, R, choices, 1, 1, 1]
                free = weight[:, :, 0] * value + weight[:, :, 3] * pooled
                arriving[EDGES[e][1]].append(free + convolved[:, :, 2 * n : 2 * n + 2].sum(2))
        return torch.einsum("brc,rkc->brk", value.mean((3, 4)), self.head) + self.bias

    def _norm(self, x: Tensor, which, rows: Tensor, remember: bool) -> Tensor:
        """Batch norm of `[B, R, M, C, H, W]` over the selected rows `[B, R, M]`; others give 0."""
        weight = rows[..., None, None, None]  # [B, R, M, 1, 1, 1]
        count = rows.sum(0)[..., None]  # [R, M, 1]
        size = 16 * count.clamp(min=1)
        selected = x * weight
        mean = selected.sum((0, 4, 5)) / size  # [R, M, C]
        variance = (selected * x).sum((0, 4, 5)) / size - mean.square()
        several = count > 1
        old_mean, old_variance = (part[which].transpose(0, 1) for part in self.running)
        if remember:
            with torch.no_grad():
                unbiased = variance * size / (size - 1)
                for part, old, new in zip(
                    self.running, (old_mean, old_variance), (mean, unbiased), strict=True
                ):
                    part[which] = torch.where(several, 0.9 * old + 0.1 * new, old).transpose(0, 1)
        mean = torch.where(several, mean, old_mean)
        variance = torch.where(several, variance, old_variance)
        gain = self.scale[which].transpose(0, 1) * (variance + 1e-5).rsqrt()
        shift = self.shift[which].transpose(0, 1) - mean * gain  # [R, M, C]
        return torch.addcmul(shift[..., None, None] * weight, selected, gain[..., None, None])


def macs_of(ops: Tensor) -> Tensor:
    """Multiply-adds of cells given as choices `[..., 6]`."""
    price = torch.tensor([0.0, 1024.0, 9216.0, 0.0], dtype=torch.float64)
    return 1232.0 + price[ops].sum(-1)


FULL = float(1232 + len(EDGES) * (1024 + 9216))  # of the whole super-network


# ---------------------------------------------------------------- the search


def batches(data, seeds: Sequence[int], epoch: int):
    """Batches `x [B, R, 8, 8]`, `y [B, R]`: every search sees the order of its own seed."""
    streams = [data.batches(BATCH, seed=seed, epoch=epoch, drop_last=True) for seed in seeds]
    for parts in zip(*streams, strict=True):
        yield torch.cat([x for x, _ in parts], 1), torch.stack([y for _, y in parts], 1)


def losses_of(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy of every example, `[B, R]`."""
    return F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="none").view_as(y)


def run_searches(
    seeds: Sequence[int], budgets: Tensor, s: Settings
) -> tuple[Fabrics, Tensor, list[dict[str, Any]]]:
    """R searches with the same settings: networks, logits of Γ `[R, edges, choices]`, remarks."""
    train, held = table_data()
    net, copies = Fabrics(seeds), len(seeds)
    logits = torch.zeros(copies, len(EDGES), len(CHOICES))
    velocity = torch.zeros_like(logits)
    theta = torch.optim.SGD(net.parameters(), lr=s.lr, momentum=0.9, weight_decay=1e-4)
    generator = torch.Generator().manual_seed(derived_seeds(*seeds, 1)[0])
    cells = torch.arange(BATCH) % s.per_batch  # the architecture of every example
    ones = torch.ones(BATCH, copies, len(EDGES), len(CHOICES))
    gradients: list[Tensor] = []  # of the loss alone, while Γ stands still
    settled = torch.zeros(copies)  # epochs until no γ moves by more than .02 any more
    for epoch in range(s.epochs):
        for group in theta.param_groups:
            group["lr"] = s.lr * (0.1 if epoch >= 0.75 * s.epochs else 1.0)
        limit = budgets
        if s.anneal:
            done = (epoch - s.warmup) / (s.anneal * (s.epochs - s.warmup))
            limit = FULL + (budgets - FULL) * min(1.0, max(0.0, done))
        before = logits.softmax(-1)
        others = batches(held["val"], seeds, epoch)
        loss_sum, over, steps = torch.zeros(copies), torch.zeros(copies), 0
        for x, y in batches(train, seeds, epoch):
            steps += 1
            if epoch < s.warmup and not s.warmup_sampled:
                losses = losses_of(net(x, ones), y)
            else:
                p = logits.softmax(-1)  # [R, edges, choices]
                drawn = torch.multinomial(p.flatten(0, 1), s.per_batch, True, generator=generator)
                ops = drawn.view(copies, len(EDGES), -1).permute(2, 0, 1)  # [K, R, edges]
                chosen = F.one_hot(ops, len(CHOICES)).float()  # [K, R, edges, choices]
                losses = losses_of(net(x, chosen[cells]), y)  # [B, R]
                if epoch >= s.warmup:
                    seen = losses.detach()
                    if s.held_out:
                        x_held, y_held = next(others)
                        with torch.no_grad():
                            seen = losses_of(net(x_held, chosen[cells], remember=False), y_held)
                    # Δ of every architecture: the mean over its examples.
                    delta = seen.view(-1, s.per_batch, copies).mean(0)  # [K, R]
                    penalty = s.lam * ((macs_of(ops) - limit) / FULL).clamp(min=0).float()
                    objective = delta if s.gamma_lr == 0 else delta + penalty
                    advantage = objective - objective.mean(0)
                    # ∇ log P of a categorical choice is (one-hot − p).
                    gradient = torch.einsum("kr,kreo->reo", advantage, chosen - p) / s.per_batch
                    if s.gamma_lr == 0:
                        gradients.append(gradient)
                    velocity = s.momentum * velocity + gradient
                    logits = logits - s.gamma_lr * velocity
                    if s.max_logit is not None:
                        logits = logits.clamp(-s.max_logit, s.max_logit)
                    over += (penalty > 0).float().mean(0)
            loss_sum += losses.detach().mean(0)
            theta.zero_grad()
            losses.mean(0).sum().backward()  # no search's gradient depends on another's
            theta.step()
        moved = (logits.softmax(-1) - before).abs().flatten(1).amax(1)
        settled = torch.where(moved > 0.02, torch.tensor(float(epoch + 1)), settled)
    noise = signal_to_noise(gradients, copies)
    remarks = [
        {
            "entropy": -(logits[n].softmax(-1) * logits[n].log_softmax(-1)).sum().item(),
            "loss": (loss_sum[n] / steps).item(),
            "violation": (over[n] / steps).item(),
            "settled_epoch": int(settled[n]),
            **noise[n],
        }
        for n in range(copies)
    ]
    return net, logits, remarks


def signal_to_noise(gradients: list[Tensor], copies: int) -> list[dict[str, float]]:
    """Median over the gates of |mean| / deviation of one step's gradient while Γ is fixed.

    The mean over N steps has a variance of its own, variance / N, which is taken off.
    """
    if not gradients:
        return [{} for _ in range(copies)]
    found: list[dict[str, float]] = [{} for _ in range(copies)]
    third = len(gradients) // 3
    for name, part in (("snr_first", gradients[:third]), ("snr_last", gradients[-third:])):
        g = torch.stack(part).flatten(2)  # [steps, R, gates]
        signal = (g.mean(0).square() - g.var(0) / len(g)).clamp(min=0).sqrt()
        for row, ratio in zip(found, signal / g.std(0), strict=True):
            row[name] = ratio.median().item()
            row[f"{name}_mean"] = ratio.mean().item()
    return found


# ---------------------------------------------------------------- what came out of it


@torch.no_grad()
def shared_losses(net: Fabrics, ops: Tensor) -> Tensor:
    """Loss of cells `[K, R, edges]` on 400 validation examples, with statistics of the batch."""
    val = table_data()[1]["val"]
    x, y = next(iter(val.batches(400, seed=0, shuffle=False)))
    x, y = x.expand(-1, net.copies, -1, -1), y[:, None].expand(-1, net.copies)
    chosen = F.one_hot(ops, len(CHOICES)).float()
    rows = [losses_of(net(x, c.expand(len(x), -1, -1, -1), False), y).mean(0) for c in chosen]
    return torch.stack(rows)  # [K, R]


def as_cell(ops: Tensor) -> Cell:
    return tuple(ops.tolist())


def judge(cell: Cell, budget: float) -> dict[str, float]:
    """Where the table ranks a cell: percent of the cells that are worse, ties counted half."""
    truth = table().accuracies(split="test")
    macs = table().about.macs.to_numpy()
    accuracy, own = table().accuracy(cell, split="test"), table().cost(cell)

    def percentile(others: np.ndarray) -> float:
        return 100 * float((others < accuracy).mean() + (others == accuracy).mean() / 2)

    return {
        "budget_use": own / budget,
        "test_accuracy": accuracy,
        "percentile_affordable": percentile(truth[macs <= budget]),
        "percentile_equal_cost": percentile(truth[np.abs(macs - own) <= EQUAL * macs.max()]),
    }


def spending_draws(logits: Tensor, budget: float, seed: int) -> Tensor:
    """40 affordable draws from Γ that cost most, `[40, edges]`; repeated where there are fewer."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.multinomial(logits.softmax(-1), 1000, True, generator=generator).T
    drawn = torch.unique(drawn, dim=0)
    drawn = drawn[torch.randperm(len(drawn), generator=generator)]
    drawn = drawn[macs_of(drawn) <= budget]
    if not len(drawn):
        drawn = torch.zeros(1, len(EDGES), dtype=torch.long)  # all skip: costs nothing
    drawn = drawn[macs_of(drawn).argsort(descending=True, stable=True)]
    return drawn[torch.arange(DRAWS).clamp(max=len(drawn) - 1)]


def trial(variant: str, seeds: Sequence[int]) -> dict[str, Any]:
    """A variant under both budgets with every seed; the rows of the record."""
    one_thread()
    s = VARIANTS[variant]
    runs = [(share, seed) for share in SHARES for seed in seeds]
    macs = table().about.macs.to_numpy()
    budgets = torch.tensor([share * macs.max() for share, _ in runs], dtype=torch.float64)
    start = time.process_time()
    net, logits, remarks = run_searches([seed for _, seed in runs], budgets, s)
    seconds = (time.process_time() - start) / len(runs)
    # The last stage: among 40 draws that spend the budget, shared weights choose five, and one
    # epoch of training alone (looked up) chooses one of them.
    draws = torch.stack(
        [spending_draws(logits[n], budgets[n].item(), runs[n][1]) for n in range(len(runs))], 1
    )  # [40, R, edges]
    ranked = shared_losses(net, draws).argsort(0)
    # How well shared weights rank cells of about equal cost.
    probe, truths = [], []
    for n, (_, seed) in enumerate(runs):
        limit = budgets[n].item()
        window = np.flatnonzero((macs <= limit) & (macs >= SPENT * limit))
        picked = np.random.default_rng(seed).choice(window, 30, replace=False)
        probe.append(torch.tensor([table().cells[i] for i in picked]))
        truths.append(table().accuracies(split="test")[picked])
    shared = shared_losses(net, torch.stack(probe, 1))
    rows = []
    for n, (share, seed) in enumerate(runs):
        limit, final = budgets[n].item(), logits[n].argmax(-1)
        row = {"variant": variant, **asdict(s), "share": share, "seed": seed}
        row |= judge(as_cell(final), limit) | remarks[n]
        row["rank_correlation"] = -float(
            pd.Series(shared[:, n].numpy()).corr(pd.Series(truths[n]), method="spearman")
        )
        best = [as_cell(draws[i, n]) for i in ranked[:, n]]
        short = list(dict.fromkeys(best))[:SHORTLIST]
        part = seed % table().seeds
        alone = [table().accuracy(c, split="val", epochs=1, seed=part) for c in short]
        for name, cell in (("shared", best[0]), ("trained", short[int(np.argmax(alone))])):
            row |= {f"{name}_{key}": value for key, value in judge(cell, limit).items()}
        rows.append({**row, "cpu_seconds": round(seconds, 2)})
    return {"rows": rows}


def rivals(share: float, seed: int) -> list[dict[str, Any]]:
    """What the same budget buys without a search, by look-up; rows of the record.

    A search of 60 epochs shows the network 60 × 640 examples: as many as 15 trainings alone.
    """
    rng = np.random.default_rng(seed)
    macs = table().about.macs.to_numpy()
    budget = share * macs.max()
    affordable = np.flatnonzero(macs <= budget)
    spending = np.flatnonzero((macs <= budget) & (macs >= SPENT * budget))
    seen = table().accuracies(split="val", seed=seed % table().seeds)
    early = table().accuracies(split="val", epochs=1, seed=seed % table().seeds)
    trainings = Settings().epochs // table().provenance["training"]["epochs"]
    found = {
        "one random affordable cell": rng.choice(affordable),
        "largest affordable": rng.choice(np.flatnonzero(macs == macs[affordable].max())),
        "one random cell that spends": rng.choice(spending),
    }
    for k in (4, trainings):
        drawn, dear = rng.choice(affordable, k, False), rng.choice(spending, k, False)
        found[f"best of {k} random affordable"] = drawn[seen[drawn].argmax()]
        found[f"best of {k} random that spend"] = dear[seen[dear].argmax()]
    dear = rng.choice(spending, 4 * trainings, False)
    found[f"best of {4 * trainings} that spend, 1 epoch each"] = dear[early[dear].argmax()]
    return [
        {"variant": name, "share": share, "seed": seed, **judge(table().cells[i], budget)}
        for name, i in found.items()
    ]


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5, help="of every variant")
    parser.add_argument("--more", type=int, default=5, help=f"further seeds of {MORE}")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--store", type=Path, default=Path("build/table_truth.sqlite"))
    return parser


def configuration(argv: list[str]) -> dict[str, Any]:
    """What the record of `python benchmarks/table_truth.py *argv` says of its settings."""
    given = parser().parse_args(argv)
    return {
        "shares": SHARES,
        "seeds": given.seeds,
        "more": given.more,
        "centre": asdict(Settings()),
        "variants": given.variants,
    }


def main() -> None:
    argv = sys.argv[1:]
    given = parser().parse_args(argv)
    given.store.parent.mkdir(parents=True, exist_ok=True)
    configs = [{"variant": name, "seeds": list(range(given.seeds))} for name in given.variants]
    more = list(range(given.seeds, given.seeds + given.more))
    configs += [
        {"variant": name, "seeds": more} for name in MORE if more and name in given.variants
    ]
    found = sweep(trial, configs, store=given.store, workers=0)
    rows = [row for part in found[found.status == "done"].rows for row in part]
    rows += [row for seed in range(20) for share in SHARES for row in rivals(share, seed)]
    print(summary(pd.DataFrame(rows)).to_string())
    if (found.status == "done").all():
        record_result(
            "03_budgeted_super_networks",
            "table_truth",
            rows,
            command=shlex.join(["python", "benchmarks/table_truth.py", *argv]),
            seeds=sorted({row["seed"] for row in rows}),
            device=describe_device(pick_device("cpu")),
            config=configuration(argv),
        )


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Means over budgets and seeds, a line per variant."""
    means = [c for c in rows if rows[c].dtype.kind == "f" and c not in ("share", "gamma_lr", "lr")]
    return rows.groupby("variant", sort=False)[means].mean().round(2)


if __name__ == "__main__":
    main()
