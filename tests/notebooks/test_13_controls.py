"""Chapter 13: what each of its bands must reject, and its exercises both ways."""

from functools import cache

import numpy as np
import pytest
import torch

from nas_core import ranking
from nas_core.data import reference
from nas_core.ranking import SuperNetConfig, metrics, spaces
from nas_core.search import CellTable
from nas_core.search.cell_batch import table_data
from nas_core.workbook import checks
from tests.notebooks.book import claimed, control_tests, exercises

BANDS = claimed("13")
STEP = 0.01


@cache
def table():
    return CellTable.load()


def truth():
    return table().seedwise("test")[:, 1:].mean(1)


def macs():
    return table().about.macs.to_numpy()


@cache
def ruler():
    """A score that knows nothing but size, with a little noise to break ties."""
    noise = 1e-3 * np.random.default_rng(0).normal(size=len(table()))
    return ranking.beside_size(truth(), {"x": macs() / macs().max() + noise}, macs(), step=STEP)


def one_epoch(column):
    values = {"1 epoch": table().accuracies(epochs=1, seed=0)}
    known = ranking.beside_size(truth(), values, macs(), step=STEP)
    return known.loc["1 epoch", column] - (known.loc["size", column] if "KdT" in column else 0)


@cache
def scores(lr, epochs):
    """s-KdT of a super-network with statistics of the batch and with running ones."""
    train, held = table_data()
    space = table().space
    torch.manual_seed(0)
    net = space.network()
    config = SuperNetConfig(epochs, lr=lr)
    ranking.train_supernet(net, ranking.single_path(space, net), train, config)
    picked = np.random.default_rng(0).choice(len(table()), 100, replace=False)
    masks = [space.mask(net, table().cells[i]) for i in picked]
    return {
        how: metrics.sparse_kendall(
            truth()[picked],
            ranking.shared_scores(net, masks, held["val"], statistics=how),
            STEP,
        )
        for how in ("batch", "running")
    }


def eq_5_1_as_printed():
    frames = [reference.load(f"yu_table_5_{k}").dropna(subset="best_rank") for k in (3, 4)]
    return max(
        abs(metrics.p_above_random(row.best_rank, 423_624, 10, printed=True) - row.p)
        for frame in frames
        for row in frame.itertuples()
    )


def deviation_taken_for_standard_error():
    """What a reader gets who takes ± for the error of the mean."""
    moments = [(61.99, 1.95 * 10**0.5, 10), (60.13, 0.65 * 10**0.5, 10)]
    return metrics.welch_from_moments(*moments)


CONTROLS = {
    "largest difference to tables 5.3 and 5.4": {"eq. 5.1 as printed": eq_5_1_as_printed},
    "p-value of NAO against random on PTB": {
        "deviations read as standard errors": deviation_taken_for_standard_error
    },
    "cells of NAS-Bench-101 with four vertices": {
        "encodings, not cells": lambda: sum(1 for _ in spaces.NB101Space(4))
    },
    "s-KdT of a full training, minus that of size": {"1 epoch": lambda: one_epoch("s-KdT")},
    "τ of a full training at equal size": {
        "size alone": lambda: ruler().loc["x", "at equal size"],
        "1 epoch": lambda: one_epoch("at equal size"),
    },
    "s-KdT of SPOS": {"weights that are not trained": lambda: scores(0.025, 0)["batch"]},
    "τ of SPOS at equal size": {"size alone": lambda: ruler().loc["x", "at equal size"]},
    "share of the top decile known after one of four epochs": {
        "after all four": lambda: ranking.tables.rank_history(
            table().accuracies(seed=0)[:, None], truth()
        ).found[0]
    },
    "s-KdT lost by running statistics at a rate of .1": {
        "a rate of .025": lambda: scores(0.025, 40)["batch"] - scores(0.025, 40)["running"]
    },
}


test_every_band_has_a_control, test_the_band_rejects_the_mistake = control_tests(BANDS, CONTROLS)


def test_a_ruler_has_the_same_order_as_size():
    """The reason for the control: a score that only knows size looks as good as a search."""
    assert ruler().loc["x", "s-KdT"] == pytest.approx(ruler().loc["size", "s-KdT"], abs=0.04)


# ------------------------------------------------------------------------------------ exercises

CHECKS = {"sparse_tau": checks.ex_13_1, "framework": checks.ex_13_2}
SOLVED = exercises("13", "solution", np=np)


@pytest.mark.parametrize("name", CHECKS)
def test_solutions_pass_and_stubs_do_not(name, capsys):
    assert CHECKS[name](SOLVED[name])
    assert not CHECKS[name](exercises("13", "stub")[name])
    assert "not written yet" in capsys.readouterr().out


def wrong_tau(mistake):
    def sparse_tau(truth, scores, step):
        bins = {"plain": truth, "floor": np.floor(truth / step)}.get(mistake)
        bins = np.round(truth / step) if bins is None else bins
        scores = np.round(scores / step) if mistake == "both" else scores
        x, y = (np.sign(np.subtract.outer(v, v)) for v in (bins, scores))
        y = -y if mistake == "sign" else y
        n = len(truth)
        untied = ((x * x).sum() * (y * y).sum()) ** 0.5
        return float((x * y).sum() / (n * (n - 1) if mistake == "a" else untied))

    return sparse_tau


def wrong_framework(mistake):
    def framework(searches, judge, seeds, everything):
        result = {}
        for name, search in searches.items():
            values = [judge(search(seeds[0] if mistake == "seed" else s)) for s in seeds]
            best = sum(values) / len(values) if mistake == "mean" else max(values)
            rank = sum(other > best for other in everything) + (mistake != "zero")
            p = (1 - rank / len(everything)) ** (1 if mistake == "draws" else len(values))
            p = 1 - p if mistake == "printed" else p
            result[name] = (sum(values) / len(values), rank, p)
        return result

    return framework


@pytest.mark.parametrize(
    ("name", "answer", "words"),
    [
        ("sparse_tau", wrong_tau("plain"), "round the truth to multiples"),
        ("sparse_tau", wrong_tau("both"), "round the truth only"),
        ("sparse_tau", wrong_tau("floor"), "round instead"),
        ("sparse_tau", wrong_tau("a"), "tied pairs do not count"),
        ("sparse_tau", wrong_tau("sign"), "the sign is wrong"),
        ("framework", wrong_framework("seed"), "its own seed"),
        ("framework", wrong_framework("mean"), "not of the mean"),
        ("framework", wrong_framework("zero"), "has rank 1"),
        ("framework", wrong_framework("draws"), "as many draws"),
        ("framework", wrong_framework("printed"), "as printed"),
    ],
)
def test_usual_mistakes_are_recognized(name, answer, words, capsys):
    assert not CHECKS[name](answer)
    assert words in capsys.readouterr().out
