"""Do searches beat chance, and do shared weights rank? Rows go to data/results/13_….

    python benchmarks/ranking_study.py curves
    python benchmarks/ranking_study.py proxies
    python benchmarks/ranking_study.py tabular
    python benchmarks/ranking_study.py sharing

The first three read published tables (`nas-workbook data list` says where they are to be had);
`sharing` trains super-networks on the digits and looks the truth up in the book's own table. A
command that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nas_core.ranking import metrics, tables
from nas_core.ranking.evaluation import enas, scorer
from nas_core.ranking.spaces import ChoiceSpace, Encoding, NB101Space, Space, linear, nasbench201
from nas_core.ranking.supernet import (
    SuperNetConfig,
    best_of_random,
    evolve,
    fair,
    shared_scores,
    single_path,
    train_supernet,
)
from nas_core.search import CellTable, grid, sweep
from nas_core.search.cell_batch import table_data
from nas_core.search.one_shot import differentiable_search
from nas_core.spaces.cells import Cell, CellSpace
from nas_core.training import descend, describe_device, one_thread, pick_device
from nas_core.workbook.results import record_result

CHAPTER = "13_evaluating_the_search"
BUILD = Path("build/ranking_study")
SEEDS = tuple(range(10))
ARCHITECTURES = 200  # whose order is judged, as in the source

# ---------------------------------------------------- (a) ranks during training, NAS-Bench-NLP


def curves_trial(seed: int, top: float, share: float) -> dict[str, Any]:
    """A random half of the 341 curves per seed: what differs between halves is the error."""
    curves = tables.nasbench_nlp_curves()
    rng = np.random.default_rng(seed)
    part = rng.choice(len(curves), round(share * len(curves)), replace=False)
    final = -curves.final[part]
    history = tables.rank_history(-curves.loss[part], final, top)
    control = tables.rank_history(curves.params[part, None].astype(float), final, top)
    rows = [{**row, "seen": "epochs"} for row in history.to_dict("records")]
    return {"rows": [*rows, {**control.iloc[0].to_dict(), "epoch": 0, "seen": "size"}]}


# ---------------------------------------------------- (b) what ranks without a search


@cache
def truths(name: str) -> dict[str, np.ndarray]:
    """Truth, size, and whatever is known more cheaply, `[N]` each."""
    if name.startswith("nasbench201"):
        data = name.removeprefix("nasbench201-")
        table = tables.nasbench201(data, device="pixel3")
        return {
            "truth": table.accuracies(split="test", epochs=200),
            "size": table.about.macs.to_numpy(dtype=float),
            "12 epochs": table.accuracies(split="val", epochs=12),
            "parameters": table.about.params.to_numpy(dtype=float),
            "latency on a phone": table.about.latency_ms.to_numpy(dtype=float),
        }
    if name == "nasbench-macro":
        frame = tables.nasbench_macro().frame
        return {
            "truth": frame[["seed_1", "seed_2"]].mean(axis=1).to_numpy(),
            "size": frame.macs.to_numpy(dtype=float),
            "one full training": frame.seed_0.to_numpy(),
            "parameters": frame.params.to_numpy(dtype=float),
        }
    if name == "nasbench101-5v":
        frame = tables.nasbench101_small(5).frame
        return {
            "truth": frame.test.to_numpy(),
            "size": frame.params.to_numpy(dtype=float),
            "validation after the same 4 epochs": frame.val.to_numpy(),
        }
    table = CellTable.load()
    return {
        "truth": table.seedwise("test")[:, 1:].mean(1),
        "size": table.about.macs.to_numpy(dtype=float),
        "one full training": table.accuracies(seed=0),
        "1 of 4 epochs": table.accuracies(epochs=1, seed=0),
        "parameters": table.about.params.to_numpy(dtype=float),
    }


STEPS = {"digit-cells": 0.01, "nasbench101-5v": 0.005}  # seed noise; elsewhere .001


def proxies_trial(table: str, seed: int, architectures: int) -> dict[str, Any]:
    known = truths(table)
    rows = np.random.default_rng(seed).choice(len(known["truth"]), architectures, replace=False)
    scores = {k: v[rows] for k, v in known.items() if k not in ("truth", "size")}
    compared = metrics.beside_size(
        known["truth"][rows], scores, known["size"][rows], step=STEPS.get(table, 0.001)
    )
    return {"rows": named(compared)}


def named(compared) -> list[dict[str, Any]]:
    """Rows of `beside_size` with the name of the score; NaN is left out."""
    return [
        {"score": name, **{k: v for k, v in row.items() if v == v}}
        for name, row in compared.to_dict("index").items()
    ]


# ---------------------------------------------------- (c) searches without shared weights


@cache
def tabular(name: str) -> tuple[Space, dict[Encoding, tuple[float, float, float]]]:
    """A space and, for each architecture, reward, truth and size."""
    known = truths(name)
    space: Space
    if name.startswith("nasbench201"):
        space, cells = nasbench201, tables.nasbench201().cells
        reward = known["12 epochs"]
    elif name == "nasbench-macro":
        space, cells = linear(8, 3), tables.nasbench_macro().cells
        reward = known["one full training"]
    elif name == "nasbench101-5v":
        space, cells = NB101Space(5), tables.nasbench101_small(5).cells
        reward = known["validation after the same 4 epochs"]
    else:
        table = CellTable.load()
        space, cells, reward = table.space, table.cells, known["one full training"]
    triples = zip(reward, known["truth"], known["size"], strict=True)
    return space, dict(zip(cells, triples, strict=True))


def tabular_trial(table: str, seed: int, trainings: int) -> dict[str, Any]:
    one_thread()
    space, known = tabular(table)
    truth = np.array([v[1] for v in known.values()])

    def look(cell: Encoding) -> tuple[float, float, float]:
        cell = cell if cell in known else space.canonical(cell)
        return known[cell] if cell in known else by_function(table)[space.function(cell)]

    def score(cells: Sequence[Encoding]) -> list[float]:
        return [look(cell)[0] for cell in cells]

    rng = random.Random(seed)
    largest = max(v[2] for v in known.values())
    found = {
        "random": space.sample(rng),
        "largest": rng.choice([c for c, v in known.items() if v[2] == largest]),
        f"best of {trainings} random": best_of_random(space, score, rng, trainings),
        "evolution": evolve(space, score, rng, trainings, size=20, sample=5),
        "policy": policy(space, score, seed, trainings),
    }
    rows = [{"search": name, "accuracy": look(cell)[1]} for name, cell in found.items()]
    for row in rows:
        row["better, %"] = 100 * float((truth > row["accuracy"]).mean())
    return {"rows": rows, "best": float(truth.max())}


@cache
def by_function(table: str) -> dict[str, tuple[float, float, float]]:
    space, known = tabular(table)
    return {space.function(cell): values for cell, values in known.items()}


def policy(space: Space, score: Callable, seed: int, trainings: int, batch: int = 5) -> Encoding:
    """ENAS's sampler with rewards of single trainings: independent choices, REINFORCE, Adam."""
    choices = choices_of(space)
    logits = [torch.zeros(n, requires_grad=True) for n in choices.choices]
    optimizer = torch.optim.Adam(logits, lr=0.1)
    generator, best, mean = torch.Generator().manual_seed(seed), (-1.0, ()), None
    for _ in range(trainings // batch):
        drawn: list[Encoding] = []
        while len(drawn) < batch:
            cell = tuple(
                int(torch.multinomial(z.detach().softmax(0), 1, generator=generator))
                for z in logits
            )
            if not isinstance(space, NB101Space) or space.valid(cell):
                drawn.append(cell)
        reward = torch.tensor(score(drawn))
        best = max(best, max(zip(reward.tolist(), drawn, strict=True)))
        mean = reward.mean() if mean is None else 0.8 * mean + 0.2 * reward.mean()
        advantage = (reward - mean) / (reward.std() + 1e-6)
        log_prob = torch.stack(
            [sum(z.log_softmax(0)[o] for z, o in zip(logits, c, strict=True)) for c in drawn]
        )
        descend(-(advantage * log_prob).mean(), optimizer)
    return best[1]


def choices_of(space: Space) -> ChoiceSpace:
    """The positions of an encoding and how many values each takes."""
    if isinstance(space, CellSpace):
        return ChoiceSpace((len(space.ops),) * len(space.edges))
    return space if isinstance(space, ChoiceSpace) else space._choices  # type: ignore[attr-defined]


# ---------------------------------------------------- (d) searches with shared weights, digits


def sharing_trial(seed: int, epochs: int, lr: float, architectures: int) -> dict[str, Any]:
    """Super-networks of one seed: how they rank, and what each search finds with them."""
    one_thread()
    table = CellTable.load()
    space, (train, held) = table.space, table_data()
    part = seed % table.seeds  # of the trainings that may be looked up; the others are the truth
    truth = np.delete(table.seedwise("test"), part, axis=1).mean(1)
    rng = np.random.default_rng(seed)
    rows = rng.choice(len(table), architectures, replace=False)
    cells = [table.cells[i] for i in rows]
    scores: dict[str, Any] = {}
    found: dict[str, Cell] = {}
    seconds: dict[str, float] = {}

    def network():
        torch.manual_seed(seed)
        return space.network()

    def searched(name: str, draw: Callable, config: SuperNetConfig) -> None:
        start, net = time.thread_time(), network()
        train_supernet(net, draw(space, net), train, config)
        seconds[name] = time.thread_time() - start
        masks = [space.mask(net, cell) for cell in cells]
        scores[name] = shared_scores(net, masks, held["val"]).numpy()
        if config.epochs == epochs or name.startswith("FairNAS"):
            score = scorer(space, net, held["val"])
            found[f"{name}, best of 200"] = best_of_random(space, score, random.Random(seed), 200)
            if name == "SPOS":
                found["SPOS, evolution"] = evolve(space, score, random.Random(seed), 200)
                name = "SPOS, running statistics"
                scores[name] = shared_scores(net, masks, held["val"], statistics="running").numpy()

    for share in (0.25, 1, 4):
        name = "SPOS" if share == 1 else f"SPOS, {int(epochs * share)} epochs"
        searched(name, single_path, SuperNetConfig(round(epochs * share), lr=lr, seed=seed))
    high = SuperNetConfig(epochs, lr=8 * lr, seed=seed)
    searched(f"SPOS, lr {high.lr:g}", single_path, high)
    searched("FairNAS, equal passes", fair, SuperNetConfig(epochs // 4, lr=lr, seed=seed))
    searched("FairNAS, equal epochs", fair, SuperNetConfig(epochs, lr=lr, seed=seed))
    config = SuperNetConfig(epochs, lr=lr, seed=seed)
    # α at .02 closes edges before the weights have learned: then DARTS is at chance.
    for kind, name, alpha in (("darts", "DARTS, first order", 0.005), ("gumbel", "GDAS", 0.02)):
        start = time.thread_time()
        one = differentiable_search(
            space, network(), train, epochs=epochs, kind=kind, lr=lr, alpha_lr=alpha, seed=seed,
            batch_size=32,
        )  # fmt: skip
        found[name], seconds[name] = one.cell, time.thread_time() - start
    start = time.thread_time()
    found["ENAS"] = enas(space, network(), train, held["val"], config)
    seconds["ENAS"] = time.thread_time() - start

    # Trained alone: what the same passes over the data buy, looked up.
    pick = random.Random(seed)
    trainings = epochs // table.epochs["val"][-1]
    alone = {n: table.accuracies(epochs=n, seed=part) for n in (1, 4)}
    drawn = pick.sample(range(len(table)), trainings)
    macs = table.about.macs.to_numpy()
    found["random"] = space.sample(pick)
    found["largest"] = table.cells[pick.choice(np.flatnonzero(macs == macs.max()).tolist())]
    found[f"best of {trainings} trained alone"] = table.cells[max(drawn, key=lambda i: alone[4][i])]

    def score(asked: Sequence[Encoding]) -> list[float]:
        return [float(alone[4][table.row(cell)]) for cell in asked]

    found[f"evolution, {trainings} trained alone"] = evolve(
        space, score, pick, trainings, size=8, sample=3
    )
    found["ENAS's sampler, 100 trained alone"] = policy(space, score, seed, 100)
    scores["alone, 1 epoch"], scores["alone, 4 epochs"] = alone[1][rows], alone[4][rows]
    ranks = named(metrics.beside_size(truth[rows], scores, macs[rows], step=STEPS["digit-cells"]))
    for row in ranks:
        values = scores.get(row["score"])
        row |= {} if values is None else {"mean score": float(np.mean(values))}
    searches = [
        {
            "search": name,
            "accuracy": (accuracy := float(truth[table.row(cell)])),
            "better, %": 100 * float((truth > accuracy).mean()),
            "macs": table.cost(cell),
        }
        for name, cell in found.items()
    ]
    for row in (*ranks, *searches):
        key = row.get("score", row.get("search"))
        row["seconds"] = round(seconds.get(key, 0.0), 2)
    return {"rows": [*ranks, *searches]}


TABLES = ("nasbench201-c10", "nasbench201-c100", "nasbench201-in16", "nasbench-macro",
          "nasbench101-5v", "digit-cells")  # fmt: skip
STUDIES: dict[str, tuple[Any, list[dict[str, Any]]]] = {
    "curves": (curves_trial, grid(seed=SEEDS, top=[0.1], share=[0.5])),
    "proxies": (proxies_trial, grid(table=TABLES, seed=SEEDS, architectures=[ARCHITECTURES])),
    "tabular": (tabular_trial, grid(table=TABLES, seed=SEEDS, trainings=[100])),
    "sharing": (
        sharing_trial,
        grid(seed=SEEDS, epochs=[60], lr=[0.025], architectures=[ARCHITECTURES]),
    ),
}  # fmt: skip


def configuration(argv: list[str]) -> dict[str, Any]:
    """What the record of this command would name as its configuration now."""
    first = STUDIES[argv[0]][1][0]
    return {k: v for k, v in first.items() if k not in ("seed", "table")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--workers", type=int, default=0)
    given = parser.parse_args()
    trial, configs = STUDIES[given.study]
    BUILD.mkdir(parents=True, exist_ok=True)
    store = BUILD / f"{given.study}.sqlite"
    found = sweep(trial, configs, store=store, workers=given.workers)
    if found.attrs["interrupted"] or (found.status != "done").any():
        raise SystemExit(f"not finished: {found.error.dropna().unique()}; the same command goes on")
    fixed = configuration([given.study])
    rows = [
        {k: v for k, v in config.items() if k not in fixed} | row
        for config, result in zip(configs, found.rows, strict=True)
        for row in result
    ]
    path = record_result(
        CHAPTER, given.study, rows,
        command=f"python benchmarks/ranking_study.py {given.study}",
        seeds=list(SEEDS), device=describe_device(pick_device("cpu")), config=fixed,
    )  # fmt: skip
    print(path)


if __name__ == "__main__":
    main()
