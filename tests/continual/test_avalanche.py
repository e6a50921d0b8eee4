"""Avalanche as an independent oracle: forgetting, the Fisher and pull of EWC, the reservoir's law.

Avalanche pins versions that conflict with the workbook's, so it lives in an environment of its
own that sees the workbook's packages, and these tests are skipped where it is missing:

    python -m venv oracle
    echo SITE_PACKAGES_OF_THE_WORKBOOK > oracle/lib/python3.11/site-packages/workbook.pth
    oracle/bin/pip install --no-deps avalanche-lib dill gputil gdown qpsolvers pytorchcv \
        torchmetrics lightning-utilities wandb tensorboard absl-py werkzeug
    oracle/bin/python -m pytest tests/continual/test_avalanche.py -p no:cacheprovider

Its progressive networks (linear adapters) and its HAT differ from the thesis' variants; closed
forms test those.
"""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from nas_core.continual import forgetting
from nas_core.continual.learners.shared_path import (
    Reservoir,
    fisher_diagonal,
    quadratic_penalty,
)

pytest.importorskip("avalanche", reason="Avalanche is not installed beside the workbook")
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def _importances(plugin, net, x, y):
    """Avalanche's estimate, one example per batch: the mean of squared gradients."""
    data = torch.utils.data.TensorDataset(x, y, torch.zeros_like(y))
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1)
    return plugin.compute_importances(net, cross_entropy, optimiser, data, "cpu", 1)


def test_the_expected_fisher_is_avalanches_over_all_labels(net):
    from avalanche.training.plugins.ewc import EWCPlugin

    x = torch.randn(8, 6, dtype=torch.float64)
    probabilities = net(x).softmax(1).detach()
    total = {n: torch.zeros_like(p) for n, p in net.named_parameters()}
    for row, p in zip(x, probabilities, strict=True):
        for label in range(3):
            found = _importances(EWCPlugin(1.0), net, row[None], torch.tensor([label]))
            for n in total:
                total[n] += p[label] * found[n].data / len(x)
    ours = fisher_diagonal(net.eval(), x)
    assert all(torch.allclose(ours[n], total[n]) for n in total)


@pytest.mark.parametrize("mode", ["separate", "online"])
def test_the_pull_is_half_of_avalanches(net, mode):
    """Avalanche leaves out the ½ of the quadratic form, so its λ is twice this one's."""
    from avalanche.training.plugins.ewc import EWCPlugin

    plugin = EWCPlugin(7.0, mode=mode, decay_factor=0.5 if mode == "online" else None)
    running: dict = {}
    ours = []
    for task in range(2):
        x, y = torch.randn(9, 6, dtype=torch.float64), torch.randint(3, (9,))
        fisher = {n: i.data.clone() for n, i in _importances(plugin, net, x, y).items()}
        strategy = SimpleNamespace(
            model=net, _criterion=cross_entropy, optimizer=torch.optim.SGD(net.parameters(), 0.1),
            experience=SimpleNamespace(
                dataset=torch.utils.data.TensorDataset(x, y, torch.zeros_like(y))
            ),
            device="cpu", train_mb_size=1, clock=SimpleNamespace(train_exp_counter=task),
        )  # fmt: skip
        plugin.after_training_exp(strategy)
        running = {n: 0.5 * running.get(n, 0) + f for n, f in fisher.items()}
        anchor = {n: p.detach().clone() for n, p in net.named_parameters()}
        ours = [*ours, (anchor, fisher)] if mode == "separate" else [(anchor, running)]
        with torch.no_grad():
            for p in net.parameters():
                p += 0.1 * torch.randn_like(p)
    strategy.loss = torch.zeros((), dtype=torch.float64)
    strategy.clock.train_exp_counter = 2
    plugin.before_backward(strategy)
    params = dict(net.named_parameters())
    pull = 7.0 * sum(quadratic_penalty(params, a, f) for a, f in ours)
    assert strategy.loss.item() == pytest.approx(2 * pull.item(), rel=1e-5)


def test_forgetting_is_minus_the_mean_of_avalanches():
    from avalanche.evaluation.metrics.forgetting_bwt import Forgetting

    torch.manual_seed(1)
    matrix = torch.rand(5, 5, dtype=torch.float64).tril()
    metric = Forgetting()
    for t in range(4):
        metric.update(t, float(matrix[t, t]), initial=True)
        metric.update(t, float(matrix[-1, t]))
    theirs = list(metric.result().values())
    assert forgetting(matrix.numpy()) == pytest.approx(-sum(theirs) / 4)


def test_both_reservoirs_keep_old_and_new_alike():
    from avalanche.benchmarks.utils import AvalancheDataset
    from avalanche.training.storage_policy import ReservoirSamplingBuffer

    size, rounds, parts = 12, 300, (30, 5, 25)
    kept = torch.zeros(2, 3)
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    for _ in range(rounds):
        ours, theirs = Reservoir(size), ReservoirSamplingBuffer(size)
        for t, n in enumerate(parts):
            x, y = torch.zeros(n, 1), torch.full((n,), t)
            ours.offer(x, y, t, generator)
            theirs.update_from_dataset(AvalancheDataset([torch.utils.data.TensorDataset(x, y)]))
        kept[0] += ours.y.bincount(minlength=3)
        kept[1] += torch.tensor([int(y) for _, y in theirs.buffer]).bincount(minlength=3)
    share = kept / rounds / torch.tensor(parts)
    assert (share - size / sum(parts)).abs().max() < 0.035  # 4.5 standard errors of the smallest
