"""Chapter 11: what each of its bands must reject, and its exercises both ways."""

import math
from functools import cache

import numpy as np
import pytest
import torch
from scipy import stats

from nas_core.data.textures import feature_maps
from nas_core.pooling import GAP, SMSO, classifier, matrix_sqrt, newton_schulz_sqrt
from nas_core.training import TrainConfig, evaluate, train_classifier
from nas_core.workbook import checks
from tests.notebooks.book import claimed, control_tests, exercises

BANDS = claimed("11")


@cache
def chi(n, degrees):
    """Samples of χ², standardized as the chapter does with n − 1 degrees of freedom."""
    return stats.chi2(degrees).rvs(4000, random_state=0)


def uncentered(n):
    """Quadratic forms whose mean was not subtracted: n degrees of freedom."""
    return chi(n, n)


@cache
def accuracy(head, shuffled=False):
    """Percent on the chapter's task A; with shuffled labels nothing can be learned."""
    images = feature_maps(2, strength=1.0, train=500, seed=0)
    if shuffled:
        images.train.y = images.train.y[torch.randperm(500)]
    torch.manual_seed(0)
    model = classifier({"GAP": GAP(16), "SMSO": SMSO(16, 64)}[head], 8, batch_norm=True)
    config = TrainConfig(epochs=6, batch_size=64, lr=3e-3, optimizer="adam")
    train_classifier(model, images, config, progress=False)
    return 100 * evaluate(model, images.test)["accuracy"]


def paths_without_centering():
    torch.manual_seed(0)
    x = torch.randn(4, 16, 7, 7) + 3
    layer = SMSO(16, 24)
    with torch.no_grad():
        right = layer(x)
        wrong = (2 * layer._project(x).square().sum(2) / layer.weight.square().sum(0)).sqrt()
        return float((right - (wrong - math.sqrt(95))).abs().max())


def three_iterations():
    y = torch.diag_embed(torch.rand(2, 8, dtype=torch.double) + 0.1)
    return float((newton_schulz_sqrt(y, 3) - matrix_sqrt(y)).abs().max())


CONTROLS = {
    "p-value against n − 1 degrees of freedom": {
        "the mean left in": lambda: stats.kstest(uncentered(196), stats.chi2(195).cdf).pvalue
    },
    "mean of SMSO's z' at n = 196": {
        "eq. 1.6 as printed": lambda: np.sqrt(2 * chi(196, 195) / 195).mean() - math.sqrt(391)
    },
    "std of SMSO's z' at n = 196": {
        "eq. 1.6 as printed": lambda: np.sqrt(2 * chi(196, 195) / 195).std()
    },
    "mean of eq. 1.6 as printed": {
        "the right scale": lambda: np.sqrt(2 * chi(196, 195)).mean() - math.sqrt(389)
    },
    "skewness left at n = 9, share": {"no root": lambda: 1.0},
    "largest difference of the two paths": {"not centered": paths_without_centering},
    "error after ten iterations": {"three iterations": three_iterations},
    "parameters of CBP": {"no signs and buckets": lambda: 23 * 8192},
    "accuracy of GAP (chance is 12.5)": {"a head that sees covariance": lambda: accuracy("SMSO")},
    "accuracy of SMSO with p = 64": {"shuffled labels": lambda: accuracy("SMSO", True)},
    "worst of the heads with c² numbers": {"means only": lambda: accuracy("GAP")},
    "share of searches with the right pooling": {"a coin toss": lambda: 0.5},
}

test_every_band_has_a_control, test_the_band_rejects_the_mistake = control_tests(BANDS, CONTROLS)


# ------------------------------------------------------------------------------------ exercises

CHECKS = {"smso": checks.ex_11_1, "random_maclaurin": checks.ex_11_2}
SOLVED = exercises("11", "solution", torch=torch)


@pytest.mark.parametrize("name", CHECKS)
def test_solutions_pass_and_stubs_do_not(name, capsys):
    assert CHECKS[name](SOLVED[name])
    assert not CHECKS[name](exercises("11", "stub")[name])
    assert "not written yet" in capsys.readouterr().out


def wrong_smso(mistake):
    def smso(x, weight, gamma, beta):
        s = x.flatten(2).transpose(1, 2) @ weight
        n = s.shape[1]
        s = s if mistake == "mean" else s - s.mean(1, keepdim=True)
        q = s.square().mean(1) * n / (n - 1) if mistake == "sum" else s.square().sum(1)
        q = q if mistake == "norm" else q / weight.square().sum(0)
        dof = n if mistake == "degrees" else n - 1
        return beta + gamma * ((2 * q).sqrt() - (2 * dof - 1) ** 0.5)

    return smso


@pytest.mark.parametrize(
    ("name", "answer", "words"),
    [
        ("smso", wrong_smso("mean"), "subtract the mean"),
        ("smso", wrong_smso("sum"), "do not divide by n − 1"),
        ("smso", wrong_smso("degrees"), "n − 1 degrees"),
        ("smso", wrong_smso("norm"), "squared length"),
        ("random_maclaurin", lambda x, a, b: (x @ a) * (x @ b), "divide the sketch by √d"),
        ("random_maclaurin", lambda x, a, b: (x @ a) * (x @ b) / a.shape[1], "divide by √d once"),
        ("random_maclaurin", lambda x, a, b: x @ a / a.shape[1] ** 0.5, "second one"),
    ],
)
def test_usual_mistakes_are_recognized(name, answer, words, capsys):
    assert not CHECKS[name](answer)
    assert words in capsys.readouterr().out
