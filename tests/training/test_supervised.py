"""Plain training against a loop written by hand, and measures against scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, log_loss
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode

from nas_core import data
from nas_core.training import (
    Augment,
    NonFiniteLoss,
    TensorData,
    TrainConfig,
    evaluate,
    one_thread,
    train_classifier,
)

one_thread()


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Dropout(0.1),
        nn.Linear(512, 10),
    )  # fmt: skip


@pytest.fixture(scope="module")
def digits():
    return data.load("digits", train_limit=300)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_training_equals_a_loop_written_by_hand(digits, optimizer):
    config = TrainConfig(
        epochs=4, batch_size=64, lr=0.02, milestones=(2, 3), optimizer=optimizer, seed=5
    )
    model = network()
    result = train_classifier(model, digits, config)

    oracle = network()
    if optimizer == "sgd":
        steps = torch.optim.SGD(oracle.parameters(), lr=0.02, momentum=0.9, weight_decay=1e-4)
    else:
        steps = torch.optim.Adam(oracle.parameters(), lr=0.02, weight_decay=1e-4, fused=True)
    schedule = torch.optim.lr_scheduler.MultiStepLR(steps, [2, 3])
    for epoch in range(4):
        oracle.train()
        for x, y in digits.train.batches(64, seed=5, epoch=epoch):
            steps.zero_grad()
            cross_entropy(oracle(x), y).backward()
            steps.step()
        schedule.step()
    for mine, theirs in zip(model.parameters(), oracle.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)
    frame = result.history.frame()
    assert frame["lr"].tolist() == pytest.approx([0.02, 0.02, 0.002, 0.0002])
    assert list(frame) == ["epoch", "lr", "loss", "val_loss", "val_accuracy"]
    assert frame["val_accuracy"].iloc[-1] == evaluate(model, digits.val)["accuracy"]


def test_it_learns_the_digits_and_cannot_learn_shuffled_labels(digits):
    config = TrainConfig(epochs=8, batch_size=32, lr=0.02, seed=1)
    model = network()
    train_classifier(model, digits, config)
    assert evaluate(model, digits.test)["accuracy"] > 0.9
    order = torch.randperm(len(digits.train), generator=torch.Generator().manual_seed(0))
    shuffled = TensorData(digits.train.x, digits.train.y[order], normalise=digits.train.normalise)
    model = network()
    train_classifier(model, data.Dataset("shuffled", shuffled, digits.val, digits.test, (), ()),
                     config)  # fmt: skip
    assert evaluate(model, digits.test)["accuracy"] < 0.4


def test_evaluation_equals_scikit_learn(digits):
    model = network()
    with torch.no_grad():
        logits = model.eval()(digits.test.inputs(digits.test.x))
    got = evaluate(model, digits.test, batch_size=97)
    truth = digits.test.y.numpy()
    probabilities = logits.double().softmax(1).numpy()
    assert got["loss"] == pytest.approx(log_loss(truth, probabilities, labels=range(10)), rel=1e-5)
    assert got["accuracy"] == pytest.approx(accuracy_score(truth, logits.argmax(1).numpy()))
    assert evaluate(lambda x: model(x), digits.test) == pytest.approx(got)


def test_evaluation_sees_plain_images_and_puts_modes_back(digits):
    flipped = TensorData(
        digits.val.x, digits.val.y, augment=Augment(flip=True), normalise=digits.val.normalise
    )
    model = network().train()
    model[1].eval()  # a frozen batch norm
    assert evaluate(model, flipped) == evaluate(model, digits.val)
    assert model.training and model[0].training and not model[1].training


def test_pixels_are_counted_one_by_one_and_padding_not_at_all():
    logits = torch.randn(3, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    y = torch.randint(4, (3, 5, 6), generator=torch.Generator().manual_seed(1))
    y[:, 0] = -100
    got = evaluate(lambda x: x, TensorData(logits, y), batch_size=2)
    flat, truth = logits.permute(0, 2, 3, 1).reshape(-1, 4).numpy(), y.reshape(-1).numpy()
    kept = truth >= 0
    assert got["accuracy"] == pytest.approx(np.mean(flat.argmax(1)[kept] == truth[kept]))
    scores = torch.from_numpy(flat[kept]).double().softmax(1).numpy()
    assert got["loss"] == pytest.approx(log_loss(truth[kept], scores, labels=range(4)), rel=1e-5)


def test_a_last_batch_of_one_example_does_not_break_batch_norm(digits):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.BatchNorm1d(4), nn.Linear(4, 10))
    part = digits.train.subset(range(65))
    result = train_classifier(
        model, data.Dataset("part", part, digits.val, digits.test, (), ()),
        TrainConfig(epochs=1, batch_size=64, lr=0.1),
    )  # fmt: skip
    assert result.epochs == 1


def test_a_custom_forward_is_used(digits):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.good, self.bad = network(), network()

    model = Two()
    before = [p.clone() for p in model.bad.parameters()]
    train_classifier(
        model, digits, TrainConfig(epochs=1, lr=0.01, weight_decay=0.0),
        forward=lambda module, x: module.good(x),
    )  # fmt: skip
    assert all(torch.equal(a, b) for a, b in zip(before, model.bad.parameters(), strict=True))
    assert not torch.equal(model.good[0].weight, model.bad[0].weight)


def test_early_stopping_returns_the_best_network(digits):
    model = network()
    config = TrainConfig(epochs=60, batch_size=32, lr=0.05, patience=3)
    result = train_classifier(model, digits, config)
    scores = result.history.frame()["val_accuracy"]
    assert result.stopped_early and result.best_epoch == scores.idxmax()
    assert evaluate(model, digits.val)["accuracy"] == scores.max()


def test_a_learning_rate_that_explodes_is_reported(digits, tmp_path):
    config = TrainConfig(epochs=20, lr=1e18)
    with pytest.raises(NonFiniteLoss, match=r"run\.pt.*Lower the learning rate"):
        train_classifier(network(), digits, config, checkpoint=tmp_path / "run.pt")


def test_the_same_seed_gives_the_same_bytes(digits):
    runs = []
    for _ in range(2):
        model = network()
        torch.manual_seed(7)
        train_classifier(model, digits, TrainConfig(epochs=2, lr=0.05))
        runs.append(b"".join(p.detach().numpy().tobytes() for p in model.parameters()))
    assert runs[0] == runs[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": "rmsprop"}, "optimizer is 'rmsprop'"),
        ({"lr": 0.0}, r"lr is 0\.0"),
        ({"batch_size": 0}, "batch_size 0"),
        ({"milestones": (20, 10)}, "must be increasing"),
    ],
)
def test_wrong_hyper_parameters_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**options)


def test_nothing_to_evaluate_is_an_error():
    with pytest.raises(ValueError, match="no examples"):
        evaluate(lambda x: x, TensorData(torch.zeros(0, 3), torch.zeros(0)))


def test_no_step_waits_for_the_device(digits):
    """Reading a value off the device happens per epoch, not per step."""

    class Reads(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            waiting = ("_local_scalar_dense", "nonzero", "masked_select", "equal")
            self.count += function.overloadpacket.__name__ in waiting
            return function(*args, **(kwargs or {}))

    counts = []
    augmented = data.Dataset(
        "augmented",
        TensorData(digits.train.x, digits.train.y, Augment(1, flip=True)),
        digits.val.subset(range(16)), digits.test, (), (),
    )  # fmt: skip
    for batch_size in (150, 30):
        with Reads() as reads:
            train_classifier(
                network(), augmented, TrainConfig(epochs=1, batch_size=batch_size, lr=0.01)
            )
        counts.append(reads.count)
    assert counts[0] == counts[1] > 0
