"""Plain training against a loop written by hand, and measures against scikit-learn."""

from dataclasses import replace

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
    accuracy,
    cosine_lr,
    descend,
    evaluate,
    make_optimizer,
    one_thread,
    step_lr,
    train_classifier,
    train_epoch,
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
    assert accuracy(model, digits.test, batch_size=97) == got["accuracy"]


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
    history = result.history.frame()
    scores = history["val_accuracy"]
    assert result.stopped_early and result.best_epoch == scores.idxmax() < len(scores) - 1
    best = evaluate(model, digits.val, config.batch_size)  # weights *and* running statistics
    assert best["accuracy"] == scores.max()
    assert best["loss"] == history["val_loss"][result.best_epoch] != history["val_loss"].iloc[-1]


def test_the_test_split_has_no_influence(digits):
    """Poisoned test labels: the same history, the same stop, the same weights."""
    poisoned = TensorData(digits.test.x, (digits.test.y + 1) % 10, normalise=digits.test.normalise)
    ends = []
    for test in (digits.test, poisoned):
        model = network()
        torch.manual_seed(7)
        splits = data.Dataset("poisoned", digits.train, digits.val, test, (), ())
        config = TrainConfig(epochs=6, batch_size=64, lr=0.05, patience=2)
        result = train_classifier(model, splits, config)
        ends.append((result.history, [p.tolist() for p in model.state_dict().values()]))
    assert ends[0] == ends[1]


def test_training_measures_the_validation_split(digits):
    """Shuffled validation labels are seen in val_accuracy, and nowhere in the training loss."""
    order = torch.randperm(len(digits.val), generator=torch.Generator().manual_seed(0))
    shuffled = TensorData(digits.val.x, digits.val.y[order], normalise=digits.val.normalise)
    ends = []
    for val in (digits.val, shuffled):
        model = network()
        torch.manual_seed(7)
        splits = data.Dataset("shuffled", digits.train, val, digits.test, (), ())
        ends.append(train_classifier(model, splits, TrainConfig(epochs=4, lr=0.05)).history.frame())
    assert ends[0]["loss"].tolist() == ends[1]["loss"].tolist()
    assert ends[0]["val_accuracy"].iloc[-1] > 0.7 and ends[1]["val_accuracy"].iloc[-1] < 0.3


def test_a_checkpoint_belongs_to_its_network_data_and_configuration(digits, tmp_path):
    path = tmp_path / "run.pt"
    config = TrainConfig(epochs=1, batch_size=100, lr=0.01, schedule="cosine", nesterov=True)

    def run(model=None, train=digits.train, val=digits.val, **changes):
        splits = data.Dataset("some", train, val, digits.test, (), ())
        changed = replace(config, **changes)
        return train_classifier(model or network(), splits, changed, checkpoint=path)

    run()
    assert run().resumed_from == 1
    other = network()
    other[4].p = 0.5  # of the dropout: the same shapes
    moved = TensorData(digits.train.x, digits.train.y, Augment(1), digits.train.normalise)
    for options, key in (
        ({"model": other}, "network"),
        ({"train": digits.train.subset(range(299))}, "train data"),
        ({"train": moved}, "train data"),
        ({"val": digits.val.subset(range(99))}, "val data"),
        ({"nesterov": False}, "nesterov = True"),
        ({"epochs": 2}, "epochs of the cosine = 1"),  # a longer cosine has other rates
    ):
        with pytest.raises(ValueError, match=f"made with {key}"):
            run(**options)


def test_frozen_networks_and_networks_without_parameters_are_measured(digits):
    frozen = network().requires_grad_(False)
    before = [p.clone() for p in frozen.parameters()]
    pooled = nn.Sequential(nn.AdaptiveAvgPool2d((1, 10)), nn.Flatten())
    for model in (frozen, pooled):
        for optimizer in ("sgd", "adam"):
            config = TrainConfig(epochs=1, lr=0.1, optimizer=optimizer)
            assert train_classifier(model, digits, config).history[0]["loss"] > 0
    assert all(torch.equal(a, b) for a, b in zip(before, frozen.parameters(), strict=True))


def test_a_step_that_reaches_no_parameter_moves_none():
    x = nn.Parameter(torch.ones(2))
    optimizer = make_optimizer([x], lr=0.1)
    assert descend((x**2).sum(), optimizer) and x.tolist() == pytest.approx([0.8, 0.8])
    assert not descend(torch.tensor(3.0), optimizer)  # momentum alone must not move it either
    assert x.tolist() == pytest.approx([0.8, 0.8])


def test_one_of_two_optimizers_moves_and_no_gradient_is_left_over():
    a, b = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    first, second = make_optimizer([a], lr=0.5, momentum=0.0), make_optimizer([b], lr=0.5)
    descend(a + b, first, clear=[second])
    descend(a + b, first, clear=[second])  # b's gradients of both steps are not added up
    assert a.item() == 0.0 and b.item() == 1.0 and b.grad.item() == 1.0
    descend(a + b, first, before_step=lambda: a.grad.mul_(2))
    assert a.item() == -1.0


def test_an_epoch_is_the_mean_over_rows_and_moves_the_schedule():
    w = nn.Parameter(torch.zeros(1))
    optimizer = make_optimizer([w], lr=1e-9)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    batches = [(torch.full((3, 1), 2.0), None), (torch.full((1, 1), 6.0), None)]
    loss = train_epoch(batches, lambda x, y: (x + w).mean(), optimizer, schedule=schedule)
    assert loss == pytest.approx(3.0) and optimizer.param_groups[0]["lr"] == 0.25e-9


def test_no_training_examples_are_refused(digits):
    nothing = TensorData(torch.zeros(0, 1, 8, 8), torch.zeros(0, dtype=torch.long))
    splits = data.Dataset("empty", nothing, digits.val, digits.test, (), ())
    with pytest.raises(ValueError, match="no training examples"):
        train_classifier(network(), splits, TrainConfig(epochs=1))


@pytest.mark.parametrize(
    "labels",
    [
        lambda y: y.int(), lambda y: y.to(torch.uint8), lambda y: y.view(-1, 1),
        lambda y: nn.functional.one_hot(y, 10), lambda y: nn.functional.one_hot(y, 10).float(),
        lambda y: y.numpy(), lambda y: y.numpy().astype(np.int32), lambda y: y.numpy()[:, None],
    ],
)  # fmt: skip
def test_labels_of_every_usual_form_train_alike(digits, labels):
    train, val = (TensorData(d.x, labels(d.y)) for d in (digits.train, digits.val))
    assert torch.equal(train.y, digits.train.y) and train.y.dtype == torch.int64
    splits = data.Dataset("labels", train, val, val, (), ())
    result = train_classifier(network(), splits, TrainConfig(epochs=3, batch_size=64, lr=0.02))
    assert result.history[-1]["val_accuracy"] > 0.5


def test_targets_that_are_no_classes_are_refused(digits):
    regression = TensorData(digits.train.x, digits.train.y.float())
    splits = data.Dataset("float", regression, digits.val, digits.test, (), ())
    with pytest.raises(ValueError, match=r"targets are torch\.float32.*y\.long\(\)"):
        train_classifier(network(), splits, TrainConfig(epochs=1))
    with pytest.raises(ValueError, match=r"targets are torch\.float32"):
        evaluate(network(), regression)
    with pytest.raises(ValueError, match="every target is below 0"):
        evaluate(network(), TensorData(digits.val.x, torch.full_like(digits.val.y, -100)))


def test_schedules_are_pytorchs():
    """Milestones exactly where MultiStepLR has them; the cosine of CosineAnnealingLR."""

    def theirs(make):
        steps = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.3)
        schedule, rates = make(steps), []
        for _ in range(8):
            rates.append(steps.param_groups[0]["lr"])
            steps.step()
            schedule.step()
        return rates

    lr = torch.optim.lr_scheduler
    mine = [step_lr(0.3, epoch, (2, 5), 0.1) for epoch in range(8)]
    assert mine == pytest.approx(theirs(lambda s: lr.MultiStepLR(s, [2, 5])), rel=1e-12)
    mine = [cosine_lr(0.3, epoch, 8, floor=0.01) for epoch in range(8)]
    cosine = theirs(lambda s: lr.CosineAnnealingLR(s, 8, eta_min=0.003))
    assert mine == pytest.approx(cosine, rel=1e-9)


def test_nesterov_reaches_the_optimizer():
    parameters = [nn.Parameter(torch.zeros(1))]
    group = TrainConfig(nesterov=True, momentum=0.8).make_optimizer(parameters).param_groups[0]
    assert group["nesterov"] and group["momentum"] == 0.8


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
        ({"milestones": (10, 10)}, "must be increasing"),
        ({"momentum": 2.0}, r"momentum is 2\.0"),
        ({"momentum": -0.1}, r"momentum is -0\.1"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"weight_decay": -1.0}, r"weight_decay is -1\.0"),
        ({"schedule": "linear"}, "schedule is 'linear'"),
        ({"schedule": "cosine", "milestones": (3,)}, "no place on a cosine"),
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
