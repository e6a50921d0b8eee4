"""After a search: shortlist and derive; the trials of chapter 03 choose on validation data."""

from dataclasses import replace

import pytest
import torch

from nas_core import costs
from nas_core.search import BudgetConfig, derive, shortlist
from nas_core.search import trial as trials
from nas_core.search.trial import Setup, plain_trial, search_trial
from nas_core.spaces import resnet_fabric
from nas_core.supernet import BernoulliSampler
from nas_core.training import TensorData, TrainConfig, accuracy
from tests.search.problems import Xor, xor_net, xor_sampler

SETUP = Setup(space_args=(("blocks_per_group", 3), ("channels", (2, 4, 8))), size=8, train_limit=60)
CONFIG = BudgetConfig(epochs=2, warmup_epochs=1, batch_size=30, milestones=(), gamma_lr=4.0)


@pytest.fixture
def poisoned(monkeypatch):
    """The registry gives test images whose labels are shuffled."""
    load = trials.data.load

    def loaded(*args, **kwargs):
        images = load(*args, **kwargs)
        y = images.test.y[torch.randperm(len(images.test), generator=torch.Generator())]
        test = TensorData(images.test.x, (y + 1) % 10, None, images.test.normalise)
        return replace(images, test=test)

    return lambda: monkeypatch.setattr(trials.data, "load", loaded)


@pytest.mark.parametrize("searched", [True, False])
def test_shuffled_test_labels_change_no_choice(poisoned, searched):
    """Validation accuracy measured on test data was noticed by no test."""

    def one():
        if searched:
            return search_trial(SETUP, 0.5, CONFIG)
        return plain_trial(SETUP, TrainConfig(epochs=2, batch_size=30, lr=0.05))

    clean = one()
    poisoned()
    dirty = one()
    assert clean.row["test_accuracy"] != dirty.row["test_accuracy"]
    same = set(clean.row) - {"test_accuracy", "seconds"}
    assert {k: clean.row[k] for k in same} == {k: dirty.row[k] for k in same}
    assert clean.architecture == dirty.architecture
    images = SETUP.load(0)
    assert dirty.row["val_accuracy"] == accuracy(dirty.network, images.val)


def trained_xor():
    """Only `useful` solves the problem; gates of one half, so that everything is drawn."""
    net, data = xor_net(), Xor()
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    masks = torch.tensor([[True, False, False, False, True], [False, True, False, False, True]])
    for epoch in range(20):
        for x, y in data.train.batches(64, seed=0, epoch=epoch):
            loss = torch.nn.functional.cross_entropy(net(x, masks[epoch % 2]), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return net, data


def test_the_shortlist_is_affordable_and_ranked_on_validation_data():
    net, data = trained_xor()
    sampler = BernoulliSampler(net.graph, logit=0.0, fixed=net.graph.of_kind("head"))
    cost = costs.computation(net)
    found = shortlist(net, sampler, cost, 340, data)  # `useful` alone, or `linear` alone
    assert [a.edges for a in found][:2] == [("useful", "head"), ("linear", "head")]
    assert all(a.macs <= 340 for a in found)
    inverted = Xor()
    inverted.val = TensorData(data.val.x, 1 - data.val.y)
    assert shortlist(net, sampler, cost, 340, inverted)[0].edges != ("useful", "head")
    assert shortlist(net, sampler, cost, 5, data) == []


def test_the_shortlist_leaves_the_network_as_it_was():
    torch.manual_seed(0)
    net = resnet_fabric(3, 10, channels=(2, 4, 8), input_shape=(1, 8, 8))
    net.edge_modules[3].eval()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    modes = [m.training for m in net.modules()]
    sampler = BernoulliSampler(net.graph, logit=1.0, fixed=net.graph.of_kind("stem", "head"))
    images = SETUP.load(0)
    found = shortlist(net, sampler, costs.computation(net), 1e9, images, compared=3, draws=20)
    assert 1 <= len(found) <= 3
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())
    assert [m.training for m in net.modules()] == modes
    norms = [m for m in net.modules() if hasattr(m, "track_running_stats")]
    assert norms and all(m.track_running_stats for m in norms)


def test_of_more_draws_than_are_compared_those_that_spend_most_are_kept():
    net, data = trained_xor()
    sampler = xor_sampler(net)
    with torch.no_grad():
        sampler.logits.zero_()
    cost = costs.computation(net)
    (only,) = shortlist(net, sampler, cost, 1e9, data, compared=1)
    assert only.macs == int(net.graph.macs.sum())


def test_derive_trains_on_when_asked_to():
    net, data = trained_xor()
    arch = shortlist(net, xor_sampler(net), costs.computation(net), 1e9, data)[0]
    left = derive(arch, net, data)
    more = derive(arch, net, data, TrainConfig(epochs=1, lr=0.1))
    x = data.test.x[:8]
    assert torch.allclose(left(x), net.eval()(x, arch.mask), atol=1e-5)
    assert not torch.allclose(left(x), more(x), atol=1e-4)
