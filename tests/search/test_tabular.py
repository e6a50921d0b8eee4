"""Training side by side equals training alone; the shipped table holds what training gives."""

from __future__ import annotations

import json
import os
import random
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr

from benchmarks.cell_table import (
    CellTraining,
    count_right,
    initial_network,
    train_alone,
    train_cells,
)
from nas_core.search.cell_batch import DIGIT_CELLS, CellBatch, table_data
from nas_core.search.tabular import CellTable, load_nasbench201
from nas_core.spaces.cells import CellSpace

SHIPPED = Path(__file__).parents[2] / "data/tables/digit_cells.csv.xz"
ROOT = Path(__file__).parents[2]
CONV1, CONV3 = (DIGIT_CELLS.ops.index(f"nor_conv_{n}x{n}") for n in (1, 3))
NASBENCH = CellSpace(rectified=False)


@pytest.fixture(scope="module")
def some_cells():
    return random.Random(0).sample(DIGIT_CELLS.distinct(), 6)


def test_side_by_side_is_step_by_step_the_same_as_alone(some_cells):
    """Seven optimizer steps in float64: outputs, also in eval mode, agree to rounding."""
    torch.manual_seed(0)
    supernet = DIGIT_CELLS.network(channels=4).double()
    batch = CellBatch(DIGIT_CELLS, supernet, some_cells)
    alone = [DIGIT_CELLS.architecture(supernet, cell).extract(supernet) for cell in some_cells]
    config = CellTraining(lr=0.05)
    by_batch = config.optimizer(batch.parameters())
    by_alone = [config.optimizer(net.parameters()) for net in alone]
    first = batch.eval()(torch.zeros(2, 1, 8, 8, dtype=torch.float64)).detach()
    for step in range(7):
        g = torch.Generator().manual_seed(step)
        x = torch.randn(16, 1, 8, 8, generator=g, dtype=torch.float64)
        y = torch.randint(10, (16,), generator=g)
        together = batch.train()(x)
        losses = F.cross_entropy(
            together.flatten(0, 1), y.repeat_interleave(len(alone)), reduction="sum"
        )
        by_batch.zero_grad()
        (losses / 16).backward()
        by_batch.step()
        for n, (net, optimizer) in enumerate(zip(alone, by_alone, strict=True)):
            out = net.train()(x)
            torch.testing.assert_close(together[:, n], out, rtol=1e-8, atol=1e-8)
            optimizer.zero_grad()
            F.cross_entropy(out, y).backward()
            optimizer.step()
    batch.eval()
    for n, net in enumerate(alone):
        torch.testing.assert_close(batch(x)[:, n], net.eval()(x), rtol=1e-8, atol=1e-8)
    assert not torch.allclose(first, batch(torch.zeros_like(x[:2])))  # it did learn


def test_result_of_a_cell_does_not_depend_on_its_neighbours(some_cells):
    train, held_out = table_data()
    config = CellTraining(epochs=1, report=(1,))
    net, data = initial_network(0), train.subset(range(160))
    run = [
        train_cells(CellBatch(DIGIT_CELLS, net, c), data, held_out, config, seed=0)["val"]
        for c in (some_cells, some_cells[::-1], some_cells[2:3])
    ]
    # float32 sums may be taken in another order: a few of 797 answers may flip.
    assert (run[0] - run[1].flip(0)).abs().max() <= 8
    assert (run[0][2] - run[2][0]).abs().max() <= 8
    assert run[0].float().std() > 8  # while the cells differ by far more


def test_none_is_refused_side_by_side():
    with pytest.raises(ValueError, match="operation on every edge"):
        CellBatch(CellSpace(), CellSpace().network(channels=2), [(1, 0, 1, 1, 1, 1)])


def test_count_right_of_a_plain_network():
    train, _ = table_data()

    class Oracle(torch.nn.Module):
        def forward(self, x):
            return F.one_hot(train.y[: len(x)], 10).float()

    assert count_right(Oracle(), train.subset(range(100))).tolist() == [100]


def test_table_data_is_disjoint_and_leaves_the_test_set_alone():
    from nas_core import data

    train, held_out = table_data()
    digits = data.load("digits", size=8)
    assert [len(train), len(held_out["val"]), len(held_out["test"])] == [640, 797, 360]
    assert torch.equal(held_out["test"].x, digits.test.x)
    together = torch.cat([train.x, held_out["val"].x])
    assert torch.equal(together, torch.cat([digits.train.x, digits.val.x]))


# -------------------------------------------------------------------- the shipped table


@pytest.fixture(scope="module")
def table():
    return CellTable.load()


def test_shipped_table_is_complete(table):
    """A row for every function of the 4⁶ cells, three seeds, three epoch budgets, all costs."""
    assert len(table) == 3_472 and table.seeds == 3
    assert table.space == DIGIT_CELLS and table.cells == DIGIT_CELLS.distinct()
    rows = {cell: table.row(cell) for cell in DIGIT_CELLS}
    assert all(table.cells[n] == DIGIT_CELLS.canonical(cell) for cell, n in rows.items())
    assert table.epochs == {"val": (1, 2, 4), "test": (1, 2, 4)}
    for split in ("val", "test"):
        for epochs in table.epochs[split]:
            for seed in range(3):
                values = table.accuracies(split=split, epochs=epochs, seed=seed)
                assert np.isfinite(values).all() and values.min() > 0.05 and values.max() < 1
                answers = values * table.provenance["examples"][split]
                np.testing.assert_allclose(answers, answers.round(), atol=1e-6)
    assert np.isfinite(table.about.to_numpy()).all() and (table.about > 0).all().all()


def test_provenance_is_that_of_the_code_that_trains(table):
    about = table.provenance
    train, held_out = table_data()
    assert about["examples"] == {"train": len(train)} | {n: len(d) for n, d in held_out.items()}
    recipe = vars(CellTraining())
    assert about["training"] == recipe | {"report": list(recipe["report"])}
    assert about["seeds"] == list(range(table.seeds))
    assert {"command", "data", "network", "times", "versions", "processor", "made"} <= set(about)
    assert sum(p.stat().st_size for p in SHIPPED.parent.iterdir()) < 2_000_000


def test_shipped_costs_are_those_of_the_networks(table):
    net = initial_network(0)
    for cell in random.Random(1).sample(table.cells, 40):
        arch = DIGIT_CELLS.architecture(net, cell)
        row = table.about.loc[table.row(cell)]
        assert (row.macs, row.params) == (arch.macs, arch.params)


def test_random_rows_are_what_training_alone_gives(table):
    """The plain code path, one network at a time, from the same weights on the same batches.

    On the processor that made the table most rows come out to the last answer; float32 on another
    drifts apart over 160 steps. The mean difference must stay below half the spread between
    seeds, at every budget of epochs: rows of another seed do not pass.
    """
    rng = random.Random(2)
    off, other = [], []
    for cell in rng.sample(table.cells, 4):
        seed = rng.randrange(table.seeds)
        right = train_alone(cell, seed)["val"][0].numpy()
        accuracy = right / table.provenance["examples"]["val"]
        rows = [
            [table.accuracy(cell, epochs=e, seed=s) for e in (1, 2, 4)]
            for s in (seed, (seed + 1) % table.seeds)
        ]
        off.append(np.abs(accuracy - rows[0]))
        other.append(np.abs(accuracy - rows[1]))
    spread = [seed_spread(table, epochs) for epochs in (1, 2, 4)]
    assert (np.mean(off, 0) < np.multiply(0.5, spread)).all()
    assert (np.mean(other, 0) > np.multiply(0.5, spread)).any()


def seed_spread(table: CellTable, epochs: int) -> float:
    """Standard deviation between the seeds of a cell, mean over cells."""
    seen = [table.accuracies(epochs=epochs, seed=seed) for seed in range(table.seeds)]
    return float(np.std(seen, axis=0, ddof=1).mean())


def test_measured_times_grow_with_the_work(table):
    """Means over many cells; single measurements of a busy processor may be off."""
    ops = np.array(table.cells)
    for times in (table.about.latency_ms, table.about.epoch_seconds):
        assert spearmanr((ops == CONV3).sum(1) + (ops == CONV1).sum(1), times).statistic > 0.5
    assert spearmanr(table.about.latency_ms, table.about.epoch_seconds).statistic > 0.8


def test_table_tells_cells_apart(table):
    """Longer training is better, seeds agree more than chance, and a shorter one is a proxy."""
    assert table.accuracies(epochs=4).mean() > table.accuracies(epochs=1).mean() + 0.1
    assert spearmanr(table.accuracies(seed=0), table.accuracies(seed=1)).statistic > 0.5
    assert spearmanr(table.accuracies(), table.accuracies(split="test")).statistic > 0.8


def test_the_command_of_the_table_makes_one(tmp_path, table):
    """The command that the provenance names, with the smallest arguments: one group, one seed."""
    command = shlex.split(table.provenance["command"])
    assert command == ["python", "benchmarks/cell_table.py"]
    out = tmp_path / "part.csv.xz"
    few = [
        "--first",
        "111",
        "--seeds",
        "0",
        "--store",
        str(tmp_path / "s.sqlite"),
        "--out",
        str(out),
    ]
    done = subprocess.run(
        [sys.executable, ROOT / command[1], *few, "--workers", "1"],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    part = CellTable.load(out)
    about = json.loads((tmp_path / "part.json").read_text())
    assert (
        about["digits"] == table.provenance["digits"]
        and about["command"] == "python benchmarks/cell_table.py"
    )
    assert all(cell[:3] == (0, 0, 0) for cell in part.cells) and len(part) > 20
    whole = [table.accuracy(cell, seed=0) for cell in part.cells]
    assert np.abs(part.accuracies() - whole).mean() < 0.5 * seed_spread(table, 4)
    costs = [table.cost(cell) for cell in part.cells]
    assert part.about.macs.tolist() == costs


# -------------------------------------------------------------------- queries


@pytest.fixture(scope="module")
def small():
    cells = [(1, 1, 1, 1, 1, 1), (3, 1, 1, 1, 1, 1), (3, 3, 3, 3, 3, 3)]
    about = pd.DataFrame({"macs": [10, 20, 60], "params": [1, 2, 6]})
    accuracy = {
        ("val", 1): np.array([[0.3, 0.5], [0.5, 0.5], [0.4, 0.2]]),
        ("val", 2): np.array([[0.5, 0.7], [0.8, 0.8], [0.9, 0.7]]),
        ("test", 2): np.array([[0.5, 0.5], [0.7, 0.7], [0.8, 0.9]]),
    }
    return CellTable("small", CellSpace(), cells, accuracy, about)


def test_queries(small):
    cell = (1, 1, 1, 1, 1, 1)
    assert small.accuracy(cell) == pytest.approx(0.6)
    assert small.accuracy(cell, epochs=1, seed=1) == 0.5
    assert small.accuracy((3, 3, 3, 3, 3, 3), split="test") == pytest.approx(0.85)
    assert small.best() == (3, 3, 3, 3, 3, 3)
    assert small.best(max_macs=30) == (3, 1, 1, 1, 1, 1)
    assert small.best(split="val", epochs=1) == (3, 1, 1, 1, 1, 1)
    assert (small.cost(cell), small.cost(cell, "params")) == (10, 1)
    assert np.isnan(small.cost(cell, "latency_ms")) and np.isnan(small.cost(cell, "epoch_seconds"))


def test_wrong_queries_say_what_there_is(small):
    with pytest.raises(KeyError, match=r"\|nor_conv_1x1~0\|.* is not in small"):
        small.accuracy((2,) * 6)
    with pytest.raises(ValueError, match="only after 1, 2"):
        small.accuracy((1,) * 6, epochs=3)
    with pytest.raises(ValueError, match="no split 'train'"):
        small.accuracies(split="train")
    with pytest.raises(ValueError, match=r"seed 2; small has 0…1"):
        small.accuracy((1,) * 6, seed=2)
    with pytest.raises(ValueError, match="cheapest has 10"):
        small.best(max_macs=5)
    with pytest.raises(ValueError, match="fractions of 1"):
        CellTable(
            "percent", small.space, small.cells, {("val", 1): np.full((3, 1), 93.0)}, small.about
        )


def test_missing_table_names_the_command(tmp_path):
    with pytest.raises(FileNotFoundError, match="python benchmarks/cell_table.py --out"):
        CellTable.load(tmp_path / "none.csv.xz")


def test_nasbench201_in_its_compact_form(tmp_path):
    cells = [(0,) * 6, (3,) * 6, (1, 4, 0, 2, 3, 1)]
    frame = pd.DataFrame(
        {
            "index": range(3),
            "arch": [NASBENCH.string(cell) for cell in cells],
            "flops_c10_M": [7.78305, 220.11969, 40.5],
            "params_c10_M": [0.073306, 1.531546, 0.3],
            **{f"c10_{k}": [10.0, 90.5, 80.25] for k in ("val_12ep", "test_12ep", "test_200ep")},
        }
    )
    path = tmp_path / "nasbench201.csv.xz"
    frame.to_csv(path, index=False)
    table = load_nasbench201(path)
    assert table.accuracy((3,) * 6, split="test", epochs=12) == pytest.approx(0.905)
    assert table.epochs == {"val": (12,), "test": (12, 200)}
    assert table.cost((3,) * 6) == 220_119_690 and table.about.params[1] == 1_531_546
    with pytest.raises(ValueError, match="lacks the columns .*c100_val_12ep"):
        load_nasbench201(path, "c100")
    times = pd.DataFrame({"index": [2, 0, 1], "pixel3": [7.5, 3.5, 21.0], "fpga": [1, 2, None]})
    times.to_csv(tmp_path / "latency.csv", index=False)
    assert np.isnan(table.cost((3,) * 6, "latency_ms"))
    timed = load_nasbench201(path, latency=tmp_path / "latency.csv", device="pixel3")
    assert [timed.cost(cell, "latency_ms") for cell in cells] == [3.5, 21.0, 7.5]
    for device in ("watch", "fpga"):
        with pytest.raises(ValueError, match=f"no '{device}' for every cell; there are pixel3, fp"):
            load_nasbench201(path, latency=tmp_path / "latency.csv", device=device)
    frame.loc[2, "arch"] = frame.loc[0, "arch"]
    frame.to_csv(path, index=False)
    with pytest.raises(ValueError, match="twice"):
        load_nasbench201(path)


def test_real_nasbench201_when_it_is_there():
    path = Path(os.environ.get("NAS_DATA", "data")) / "nasbench201.csv.xz"
    if not path.is_file():
        pytest.skip(
            f"no {path.name} in NAS_DATA: the compact NAS-Bench-201 is the reader's to bring"
        )
    times = path.with_name("nasbench201_latency_ms.csv.xz")
    # The published optima of 200 epochs, and the smallest and largest figures of the benchmark.
    for data, optimum in (("c10", 0.9437), ("c100", 0.7351), ("in16", 0.4731)):
        table = load_nasbench201(path, data, latency=times, device="raspi4")
        assert len(table) == 15_625
        best = table.accuracy(table.best(epochs=200), split="test", epochs=200)
        assert best == pytest.approx(optimum, abs=1e-4)
    first, convolutions = table.cells[0], (NASBENCH.ops.index("nor_conv_3x3"),) * 6
    assert (table.cost(first), table.cost(first, "params")) == (15_647_370, 129_306)
    assert table.cost(convolutions) == 220_119_690
    assert table.cost(convolutions, "params") == 1_531_546
    assert table.cost(first, "latency_ms") == 10.482
    assert spearmanr(table.about.latency_ms, table.about.macs).statistic > 0.5
