"""Black-box strategies on a table: each requests trainings until its budget is spent.

A strategy is `strategy(problem, seed)`; it calls `problem.train(cell, epochs)` and is stopped by
`BudgetSpent`. What the book teaches is written out; TPE and Hyperband come from Optuna.
"""

from __future__ import annotations

import contextlib
import math
import random
import time
from collections import deque
from collections.abc import Callable
from itertools import accumulate
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from nas_core.search.tabular import CellTable
from nas_core.spaces.cells import Cell, CellSpace
from nas_core.training import descend


class BudgetSpent(Exception):
    """The search has used all of its epochs."""


class Problem:
    """A table as a search sees it: validation accuracy of *one* training of a cell.

    What a search finds is judged by trainings that it has not seen: the mean over the other seeds
    of the cell. (A table with one seed judges by that one.)

    Args:
        trainings: budget, in full trainings.
        seed: draws for every cell which of the table's seeds is seen.
        max_macs: cells of more multiply-adds are refused, for free: costs are known beforehand.
    """

    def __init__(
        self, table: CellTable, trainings: int, seed: int = 0, max_macs: float | None = None
    ):
        self.table, self.space = table, table.space
        self.seen = np.random.default_rng(seed).integers(table.seeds, size=len(table))  # [N]
        self.truth = {split: self._judged(split) for split in ("val", "test")}  # [N] each
        self._within = table.affordable(max_macs)
        self.best = float(np.nanmax(np.where(self._within, self.truth["val"], np.nan)))
        self.fidelities = table.epochs["val"]
        self.full = self.fidelities[-1]
        self.budget = trainings * self.full
        self.spent, self.seconds, self.thinking = 0, 0.0, 0.0
        self._trained: dict[Cell, int] = {}  # epochs that a cell has had: training is resumed
        self.rows: list[dict[str, Any]] = []
        self._refused, self._since = 0, time.thread_time()

    def _judged(self, split: str) -> np.ndarray:
        values = self.table.seedwise(split)  # [N, seeds]
        seen = self.seen[:, None] == np.arange(self.table.seeds)
        others = np.where(seen & (self.table.seeds > 1), 0, values)
        return others.sum(1) / max(1, values.shape[1] - 1)

    def score(self, cell: Cell, split: str = "val") -> float:
        """Mean accuracy over the seeds that the search does not see."""
        return float(self.truth[split][self.table.row(cell)])

    def affordable(self, cell: Cell) -> bool:
        return bool(self._within[self.table.row(cell)])

    def random_cell(self, rng: random.Random) -> Cell:
        """A uniformly drawn affordable cell."""
        while not self.affordable(cell := self.space.sample(rng)):
            pass
        return cell

    def mutate(self, cell: Cell, rng: random.Random) -> Cell:
        """`cell` with one operation changed; a random cell where no such change is affordable."""
        for _ in range(1000):
            if self.affordable(mutant := self.space.mutate(cell, rng)):
                return mutant
        return self.random_cell(rng)

    def train(self, cell: Cell, epochs: int | None = None) -> float:
        """Validation accuracy after `epochs` (default: a full training); 0 if not affordable.

        Training a cell further costs the missing epochs only; a repeated request costs one epoch,
        so that every search ends.
        """
        self.thinking += time.thread_time() - self._since
        epochs = self.full if epochs is None else epochs
        before, value, affordable = self._trained.get(cell, 0), 0.0, self.affordable(cell)
        price = max(1, epochs - before) if affordable else 0
        self._refused += not affordable
        if self.spent + price > self.budget or self._refused > 100 * self.budget:
            raise BudgetSpent
        if affordable:
            self.spent += price
            self.seconds += price * self.table.cost(cell, "epoch_seconds")
            self._trained[cell] = max(epochs, before)
            seen = int(self.seen[self.table.row(cell)])
            value = self.table.accuracy(cell, epochs=epochs, seed=seen)
            paid = {"epochs": self.spent, "seconds": self.seconds, "thinking": self.thinking}
            self.rows.append({**paid, "cell": cell, "for": epochs, "val": value})
        self._since = time.thread_time()
        return value


Strategy = Callable[[Problem, int], None]


def run_search(strategy: Strategy, problem: Problem, seed: int) -> pd.DataFrame:
    """Let a strategy spend the budget.

    Returns:
        A row per request: `epochs` spent so far, the `seconds` that training them takes and
        those of the strategy itself (`thinking`, processor time), `cell`, `for` (its epochs),
        `val`, and the incumbent (best validation accuracy of those trained longest): `incumbent`,
        its `regret` (below the best affordable cell) and its `test` accuracy, both means over the
        seeds that were not seen.
    """
    with contextlib.suppress(BudgetSpent):
        strategy(problem, seed)
    frame = pd.DataFrame(problem.rows)

    def better(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
        return max(a, b, key=lambda row: (row["for"], row["val"]))  # the first of equals

    frame["incumbent"] = [row["cell"] for row in accumulate(problem.rows, better)]
    frame["regret"] = [problem.best - problem.score(c) for c in frame.incumbent]
    frame["test"] = [problem.score(c, "test") for c in frame.incumbent]
    return frame


def regret_at(run: pd.DataFrame, at: np.ndarray, clock: str = "epochs") -> np.ndarray:
    """Regret of the incumbent when `clock` shows `at`; NaN before the first training.

    Args:
        clock: "epochs", or "seconds" of training plus thinking, one after the other.
    """
    times = run["epochs"] if clock == "epochs" else run["seconds"] + run["thinking"]
    row = np.searchsorted(times.to_numpy(), at, side="right") - 1
    return np.where(row >= 0, run["regret"].to_numpy()[np.maximum(row, 0)], np.nan)


def grid_search(problem: Problem, seed: int = 0) -> None:
    """All combinations in the order of counting: the last edges vary first."""
    for cell in problem.space:
        problem.train(cell)


def largest_first(problem: Problem, seed: int = 0) -> None:
    """The control without a search: affordable cells, the one with most multiply-adds first."""
    for row in np.argsort(-problem.table.about.macs.to_numpy(), kind="stable"):
        if problem.affordable(cell := problem.table.cells[row]):
            problem.train(cell)


def random_search(problem: Problem, seed: int = 0) -> None:
    """Every training a cell drawn uniformly."""
    rng = random.Random(seed)
    while True:
        problem.train(problem.random_cell(rng))


def successive_halving(problem: Problem, seed: int = 0, start: int = 16) -> None:
    """Train many cells briefly, train the better half further, …; then start the next bracket."""
    rng = random.Random(seed)
    while True:
        cells = [problem.random_cell(rng) for _ in range(start)]
        for epochs in problem.fidelities:
            ranked = sorted(cells, key=lambda c: problem.train(c, epochs), reverse=True)
            cells = ranked[: math.ceil(len(ranked) / 2)]


def evolution(problem: Problem, seed: int = 0, population: int = 16, sample: int = 5) -> None:
    """Regularised evolution: mutate the best of a random sample, remove the oldest."""
    rng = random.Random(seed)
    alive: deque[tuple[float, Cell]] = deque()
    while True:
        if len(alive) < population:
            child = problem.random_cell(rng)
        else:
            parents = rng.sample(list(alive), sample)  # the tournament
            child = problem.mutate(max(parents)[1], rng)
        alive.append((problem.train(child), child))
        if len(alive) > population:
            alive.popleft()  # the oldest is removed, not the worst


def expected_improvement(mean: np.ndarray, std: np.ndarray, best: float) -> np.ndarray:
    """E[max(f − best, 0)] for f ~ N(mean, std²)."""
    from scipy.stats import norm

    z = (mean - best) / std
    return std * (z * norm.cdf(z) + norm.pdf(z))


def gaussian_process(seen: np.ndarray, values: np.ndarray, ask: np.ndarray) -> np.ndarray:
    """Posterior mean and deviation `[2, n]` at `ask` given `values` at `seen`; cells are `[n, 6]`.

    The kernel is exp(−d/2) of the number d of edges that differ; values are standardised and have
    noise of variance 0.1.
    """

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.exp(-(a[:, None] != b[None]).sum(2) / 2)

    centre, scale = values.mean(), values.std() + 1e-9
    across = kernel(seen, ask)
    wanted = np.column_stack([(values - centre) / scale, across])
    solved = np.linalg.solve(kernel(seen, seen) + 0.1 * np.eye(len(seen)), wanted)
    mean = across.T @ solved[:, 0]
    variance = 1 - (across * solved[:, 1:]).sum(0)
    return np.stack([centre + scale * mean, scale * np.sqrt(np.maximum(variance, 1e-9))])


def bayesian_optimisation(problem: Problem, seed: int = 0) -> None:
    """Fit a Gaussian process to the results, train where the expected improvement is largest."""
    rng = random.Random(seed)
    seen: dict[Cell, float] = {}
    while True:
        if len(seen) < 8:  # warm-up
            cell = problem.random_cell(rng)
        else:
            best = max(seen, key=lambda c: seen[c])
            pool = {problem.random_cell(rng) for _ in range(256)}
            pool |= {problem.mutate(best, rng) for _ in range(32)}  # near the best, too
            ask = sorted(pool - set(seen))
            known, values = np.array(list(seen)), np.array(list(seen.values()))
            mean, std = gaussian_process(known, values, np.array(ask))
            cell = ask[int(expected_improvement(mean, std, seen[best]).argmax())]
        seen[cell] = problem.train(cell)


class TokenPolicy(nn.Module):
    """Recurrent policy that writes a cell token by token, P(cell) = Π_t P(op_t | op_<t)."""

    def __init__(self, space: CellSpace, hidden: int = 24):
        super().__init__()
        self.tokens, ops = len(space.edges), len(space.ops)
        self.start = nn.Parameter(torch.zeros(hidden))
        self.embed = nn.Embedding(ops, hidden)
        self.cell = nn.GRUCell(hidden, hidden)
        self.head = nn.Linear(hidden, ops)
        nn.init.zeros_(self.head.weight)  # the first cells are drawn uniformly
        nn.init.zeros_(self.head.bias)

    def sample(self, batch: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens `[batch, edges]` and their log-probability `[batch]`."""
        x, h = self.start.expand(batch, -1), torch.zeros(batch, self.start.numel())
        tokens, log_prob = [], torch.zeros(batch)
        for _ in range(self.tokens):
            h = self.cell(x, h)  # [batch, hidden]
            log_p = self.head(h).log_softmax(1)  # [batch, ops]
            token = torch.multinomial(log_p.detach().exp(), 1, generator=generator)
            log_prob = log_prob + log_p.gather(1, token).squeeze(1)
            tokens.append(token.squeeze(1))
            x = self.embed(token.squeeze(1))
        return torch.stack(tokens, 1), log_prob


def policy_search(problem: Problem, seed: int = 0, batch: int = 8, lr: float = 0.03) -> None:
    """REINFORCE on a token policy; the reward is validation accuracy less its moving average."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        policy = TokenPolicy(problem.space)
    optimizer = torch.optim.Adam(policy.parameters(), lr=lr, fused=True)
    baseline = None
    while True:
        tokens, log_prob = policy.sample(batch, generator)
        reward = torch.tensor([problem.train(tuple(row)) for row in tokens.tolist()])
        baseline = reward.mean() if baseline is None else 0.8 * baseline + 0.2 * reward.mean()
        descend(-((reward - baseline) / (reward.std() + 1e-6) * log_prob).mean(), optimizer)


def q_learning(problem: Problem, seed: int = 0, lr: float = 0.1, replays: int = 16) -> None:
    """Tabular Q-learning: the state is the last operation chosen, the reward comes at the end.

    ε falls from 1 to 0.1 over the first half of the budget; after each training `replays` stored
    cells are learned from again, each from its last action back to its first.
    """
    rng = random.Random(seed)
    edges, ops = len(problem.space.edges), len(problem.space.ops)
    q = np.full((edges, ops + 1, ops), 0.5)  # edge, last operation, operation
    memory: list[tuple[list[int], float]] = []
    while True:
        epsilon = max(0.1, 1 - 1.8 * problem.spent / problem.budget)
        actions: list[int] = []
        for edge in range(edges):
            values = q[edge, actions[-1] if actions else ops]
            greedy = rng.random() >= epsilon
            actions.append(int(values.argmax()) if greedy else rng.randrange(ops))
        memory.append((actions, problem.train(tuple(actions))))
        for past, reward in [memory[-1], *rng.choices(memory, k=replays)]:
            target = reward
            for edge in reversed(range(edges)):
                state = past[edge - 1] if edge else ops
                q[edge, state, past[edge]] += lr * (target - q[edge, state, past[edge]])
                target = q[edge, state].max()


def optuna_search(
    sampler: Callable[[int], Any], pruner: Callable[[], Any] | None = None,
    storage: str | None = None,
) -> Strategy:  # fmt: skip
    """A strategy made of one of Optuna's samplers, e.g. `lambda seed: TPESampler(seed=seed)`.

    With a pruner (Hyperband) a trial reports after each of the table's epochs and may be stopped.
    A study in `storage`, e.g. `sqlite:///study.db`, is named after the seed, only once; it can be
    looked at with `optuna-dashboard`.
    """
    import optuna

    def strategy(problem: Problem, seed: int) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        study = optuna.create_study(
            direction="maximize", sampler=sampler(seed), storage=storage,
            pruner=pruner() if pruner else optuna.pruners.NopPruner(),
            study_name=f"search {seed}",  # Hyperband hashes it: same name, same brackets
        )  # fmt: skip

        def objective(trial: Any) -> float:
            cell, value = suggest_cell(trial, problem.space), 0.0
            for epochs in problem.fidelities if pruner else (problem.full,):
                value = problem.train(cell, epochs)  # BudgetSpent fails the trial, ends the study
                trial.report(value, epochs)
                if pruner and trial.should_prune():
                    raise optuna.TrialPruned
            return value

        study.optimize(objective)

    return strategy


def suggest_cell(trial: Any, space: CellSpace) -> Cell:
    """A cell from an Optuna trial: one categorical parameter per edge."""
    ops = range(len(space.ops))
    return tuple(trial.suggest_categorical(f"{i}→{j}", ops) for i, j in space.edges)


def tpe(seed: int) -> Any:
    """Optuna's TPE with every argument: the defaults of versions 4 and 5 differ."""
    import optuna

    return optuna.samplers.TPESampler(
        seed=seed, n_startup_trials=10, n_ei_candidates=24,
        multivariate=False, group=False, constant_liar=False,
    )  # fmt: skip


def named() -> dict[str, Strategy]:
    """The strategies of chapter 01 by name, and the control that does not search."""
    import optuna

    def hyperband() -> Any:
        return optuna.pruners.HyperbandPruner(1, "auto", reduction_factor=2, bootstrap_count=0)

    by_hyperband = optuna_search(lambda seed: optuna.samplers.RandomSampler(seed=seed), hyperband)
    return {
        "grid": grid_search, "random": random_search, "Bayesian": bayesian_optimisation,
        "TPE": optuna_search(tpe), "halving": successive_halving, "Hyperband": by_hyperband,
        "evolution": evolution, "controller": policy_search, "Q-learning": q_learning,
        "largest first": largest_first,
    }  # fmt: skip
