"""Loss, measures and training of recurrent segmentation."""

import numpy as np
import pytest
import torch
from sklearn.metrics import (
    confusion_matrix,
    f1_score,
    jaccard_score,
    precision_recall_curve,
    precision_score,
    recall_score,
)
from torch.nn.functional import cross_entropy

from nas_core import data
from nas_core.segmentation import (
    break_even,
    confusion,
    measure,
    recurrent_loss,
    scores,
    segmenter,
    train_recurrent,
)
from nas_core.training import TensorData, TrainConfig, one_thread

one_thread()


def test_weights_of_the_loss():
    torch.manual_seed(0)
    logits, y = torch.randn(3, 2, 4, 5, 5), torch.randint(4, (2, 5, 5))
    y[0, 0] = -100  # left out
    each = [cross_entropy(step, y) for step in logits]
    for alpha in (1.0, 0.4, 0.0):
        by_hand = alpha**2 * each[0] + alpha * each[1] + each[2]
        assert torch.allclose(recurrent_loss(logits, y, alpha), by_hand)
    assert torch.equal(recurrent_loss(logits[:1], y, 0.4), each[0])


@pytest.mark.parametrize("name", ["Rec-Simple", "DRU(1)", "SRU(0)", "Rec-Last"])
def test_gradients_against_finite_differences(name):
    torch.manual_seed(0)
    net = segmenter(name, 1, 2, channels=2, depth=1).double()
    x, y = torch.randn(2, 1, 4, 4, dtype=torch.float64), torch.randint(2, (2, 4, 4))

    def loss():
        return recurrent_loss(net(x, 3), y, 0.4)

    loss().backward()
    largest = 0.0
    for parameter in net.parameters():
        flat, index = parameter.data.view(-1), parameter.numel() // 2
        old, values = flat[index].item(), []
        for step in (1e-6, -1e-6):
            flat[index] = old + step
            values.append(loss().item())
        flat[index] = old
        slope, gradient = (values[0] - values[1]) / 2e-6, parameter.grad.view(-1)[index].item()
        assert gradient == pytest.approx(slope, rel=1e-3, abs=1e-7)
        largest = max(largest, abs(slope))
    assert largest > 1e-3


@pytest.mark.parametrize("classes", [2, 5])
def test_measures_against_scikit_learn(classes):
    rng = np.random.default_rng(classes)
    truth = rng.integers(classes, size=(3, 8, 8))
    called = np.where(rng.random(truth.shape) < 0.6, truth, rng.integers(classes, size=truth.shape))
    a, b = truth.ravel(), called.ravel()
    counts = confusion(torch.tensor(called), torch.tensor(truth), classes)
    assert np.array_equal(counts.numpy(), confusion_matrix(a, b))
    oracle = {
        "mIoU": jaccard_score(a, b, average="macro"),
        "mRec": recall_score(a, b, average="macro"),
        "mPrec": precision_score(a, b, average="macro"),
        "mF1": f1_score(a, b, average="macro"),
    }
    assert scores(counts) == pytest.approx(oracle)


def test_classes_that_are_missing():
    # class 2 is nowhere, class 1 is never predicted
    counts = confusion(torch.tensor([0, 0, 0, 0]), torch.tensor([0, 0, 1, -100]), 3)
    assert counts.tolist() == [[2, 0, 0], [1, 0, 0], [0, 0, 0]]
    found = scores(counts)
    a, b = [0, 0, 1], [0, 0, 0]
    assert found["mIoU"] == pytest.approx(jaccard_score(a, b, average="macro"))
    assert found["mPrec"] == pytest.approx(precision_score(a, b, average="macro", zero_division=0))
    with pytest.raises(ValueError, match="no pixels"):
        scores(torch.zeros(2, 2))
    with pytest.raises(ValueError, match="classes below 2; the largest are 1 and 2"):
        confusion(torch.tensor([0, 1]), torch.tensor([0, 2]), 2)


@pytest.mark.parametrize("seed", range(4))
def test_break_even_is_where_the_curves_of_scikit_learn_meet(seed):
    rng = np.random.default_rng(seed)
    truth = rng.random(500) < 0.2
    score = truth + rng.normal(0, 1, 500)
    precision, recall, _ = precision_recall_curve(truth, score)
    nearest = np.argmin(np.abs(precision - recall) + (recall == 0))
    assert precision[nearest] == recall[nearest]
    found = break_even(torch.tensor(score), torch.tensor(truth))
    assert found == pytest.approx(precision[nearest])


def test_break_even_with_ties():
    truth = torch.tensor([True, True, False, False])
    assert break_even(torch.zeros(4), truth) == 0.5  # no information: the share of positives
    assert break_even(torch.tensor([3.0, 1, 1, 0]), truth) == 0.75  # 1 sure, half of the tie
    with pytest.raises(ValueError, match="no pixel is positive"):
        break_even(torch.zeros(4), torch.zeros(4, dtype=torch.bool))


def test_measure_has_a_row_for_every_iteration():
    torch.manual_seed(0)
    net = segmenter("DRU(4)", 1, 2, channels=2)
    images = data.load("curves", size=16, train_limit=5).train
    rows = measure(net, images, batch_size=2)
    assert [row["iteration"] for row in rows] == [1, 2, 3] and net.training
    net.eval()
    with torch.no_grad():
        logits = net(images.inputs(images.x))
    by_hand = scores(confusion(logits[2].argmax(1), images.y, 2))
    margin = logits[2][:, 1] - logits[2][:, 0]
    by_hand["break_even"] = break_even(margin, images.y == 1)
    assert rows[2] == pytest.approx({"iteration": 3, **by_hand})
    # an ensemble is a function
    assert measure(lambda x: net(x, 1), images)[0] == pytest.approx(rows[0])


def config(**changes):
    return TrainConfig(**{"epochs": 2, "batch_size": 4, "lr": 2e-3, "optimizer": "adam", **changes})


def test_training_descends_on_the_loss_of_all_iterations(tmp_path):
    images = data.load("curves", size=16, train_limit=8)
    torch.manual_seed(0)
    net = segmenter("SRU(4)", 1, 2, channels=2)
    start = {k: v.clone() for k, v in net.state_dict().items()}
    one = config(epochs=1, batch_size=8)
    history = train_recurrent(net, images, one, 0.4, 2, checkpoint=tmp_path / "a.pt").history

    oracle = segmenter("SRU(4)", 1, 2, channels=2)
    oracle.load_state_dict(start)
    x, y = next(iter(images.train.batches(8, seed=0)))
    loss = recurrent_loss(oracle(x, 2), y, 0.4)
    assert history[0]["loss"] == pytest.approx(loss.item(), rel=1e-5)
    loss.backward()
    torch.optim.Adam(oracle.parameters(), lr=2e-3, weight_decay=1e-4, fused=True).step()
    for mine, other in zip(net.parameters(), oracle.parameters(), strict=True):
        assert torch.allclose(mine, other, atol=1e-4)
    net.eval()
    with torch.no_grad():
        last = net(images.val.inputs(images.val.x), 2)[-1]
    assert history[0]["val_loss"] == pytest.approx(
        cross_entropy(last, images.val.y).item(), rel=1e-4
    )
    assert history[0]["val_accuracy"] == pytest.approx(
        (last.argmax(1) == images.val.y).float().mean().item(), abs=1e-3
    )
    # a checkpoint of another α or N is refused, with both values
    with pytest.raises(ValueError, match=r"alpha = 0\.4, this run has 1\.0"):
        train_recurrent(net, images, one, 1.0, 2, checkpoint=tmp_path / "a.pt")
    with pytest.raises(ValueError, match="iterations = 2, this run has 3"):
        train_recurrent(net, images, one, 0.4, checkpoint=tmp_path / "a.pt")
    with pytest.raises(ValueError, match="alpha is 2"):
        train_recurrent(net, images, one, 2)


@pytest.mark.parametrize("name", ["U-Net-G", "Rec-Simple", "Rec-Last", "Rec-Middle", "DRU(2)"])
def test_a_short_training_beats_the_majority_class(name):
    rng = np.random.default_rng(0)
    # bright discs on a noisy ground: a task that a few steps suffice for
    y, x = np.mgrid[:16, :16]
    places = rng.uniform(3, 13, (48, 2, 1, 1))
    truth = (np.hypot(y - places[:, 0], x - places[:, 1]) < 3).astype(np.int64)
    images = (truth + rng.normal(0, 0.5, truth.shape)).astype(np.float32)[:, None]
    train, val = (TensorData(images[part], truth[part]) for part in (slice(32), slice(32, 48)))

    class Split:
        pass

    Split.train, Split.val = train, val
    torch.manual_seed(0)
    net = segmenter(name, 1, 2, channels=4, depth=2)
    majority = scores(confusion(torch.zeros_like(val.y), val.y, 2))["mIoU"]
    before = measure(net, val)[-1]["mIoU"]
    train_recurrent(net, Split, config(epochs=12, batch_size=8, lr=1e-2), progress=False)
    after = measure(net, val)[-1]
    assert majority < 0.47 and before < 0.6
    assert after["mIoU"] > majority + 0.2 and after["break_even"] > 0.7, after


def test_later_iterations_are_better():
    """Three iterations of DRU(4) on curves that have gaps."""
    images = data.load("curves", size=32)
    torch.manual_seed(0)
    net = segmenter("DRU(4)", 1, 2)
    train_recurrent(net, images, config(epochs=15, batch_size=10, lr=3e-3), progress=False)
    first, second, third = (row["mIoU"] for row in measure(net, images.test))
    assert first + 0.01 < second and first + 0.01 < third, (first, second, third)
