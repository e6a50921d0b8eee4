"""The epoch loop: what is recorded, when it stops, what is restored, and what it refuses."""

import copy
import math
import signal

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from nas_core.training import EarlyStopping, History, NonFiniteLoss, load_checkpoint, run_epochs


class Walk:
    """A body whose weights say how many epochs they have seen, and which random numbers."""

    def __init__(self, values=None, fail_at=None, failure=None):
        self.model = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(self.model.weight)
        self.values, self.fail_at, self.failure = values, fail_at, failure

    def __call__(self, epoch):
        with torch.no_grad():
            for _ in range(4):
                self.model.weight += torch.rand(())
            if epoch == self.fail_at:
                self.failure()
        score = float(epoch) if self.values is None else self.values[epoch]
        return {"loss": self.weight, "score": score}

    @property
    def weight(self):
        return self.model.weight.item()

    def run(self, epochs, **kwargs):
        return run_epochs(self, epochs, state={"model": self.model}, **kwargs)


def test_history_is_a_tidy_table_of_plain_values():
    history = History()
    history.append({"epoch": 0, "loss": torch.tensor(0.5), "n": np.int64(3), "phase": "warm-up"})
    history.append({"epoch": 1, "loss": np.float32(0.25), "n": 4, "phase": "search"})
    assert all(type(v) in (int, float, str) for row in history for v in row.values())
    expected = pd.DataFrame(
        {"epoch": [0, 1], "loss": [0.5, 0.25], "n": [3, 4], "phase": ["warm-up", "search"]}
    )
    pd.testing.assert_frame_equal(history.frame(), expected)
    other = History()
    other.load_state_dict(copy.deepcopy(history.state_dict()))
    assert other == history


def test_epochs_are_counted_and_recorded():
    result = Walk().run(3)
    assert result.epochs == len(result.history) == 3
    assert result.history.frame()["epoch"].tolist() == [0, 1, 2]
    assert not (result.interrupted or result.stopped_early)


def uninterrupted(epochs, **kwargs):
    torch.manual_seed(0)
    walk = Walk(**kwargs)
    walk.run(epochs)
    return walk


def test_a_finished_run_can_be_extended_with_the_same_bits(tmp_path):
    expected = uninterrupted(7)
    torch.manual_seed(0)
    Walk().run(4, checkpoint=tmp_path / "run.pt")
    torch.manual_seed(123)  # replaced by the saved state of the generator
    walk = Walk()
    result = walk.run(7, checkpoint=tmp_path / "run.pt")
    assert result.resumed_from == 4 and result.epochs == 7
    assert walk.weight == expected.weight
    again = Walk()
    assert again.run(7, checkpoint=tmp_path / "run.pt").resumed_from == 7
    assert again.weight == expected.weight


@pytest.mark.parametrize("epoch", [0, 2])
def test_ctrl_c_keeps_finished_epochs_and_the_run_goes_on(tmp_path, epoch):
    """A real SIGINT in the middle of an epoch; then the same bits as if nothing had happened."""
    expected = uninterrupted(5)
    old = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        torch.manual_seed(0)
        walk = Walk(fail_at=epoch, failure=lambda: signal.raise_signal(signal.SIGINT))
        result = walk.run(5, checkpoint=tmp_path / "run.pt")
    finally:
        signal.signal(signal.SIGINT, old)
    assert result.interrupted and result.epochs == len(result.history) == epoch
    # Weights are those of the last finished epoch, not of the broken one.
    assert walk.weight == (result.history[-1]["loss"] if epoch else 0.0)
    walk.fail_at = None
    result = walk.run(5, checkpoint=tmp_path / "run.pt")
    assert not result.interrupted and walk.weight == expected.weight


def test_ctrl_c_without_a_checkpoint_keeps_the_history():
    old = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        walk = Walk(fail_at=2, failure=lambda: signal.raise_signal(signal.SIGINT))
        result = walk.run(5)
    finally:
        signal.signal(signal.SIGINT, old)
    assert result.interrupted and [row["epoch"] for row in result.history] == [0, 1]


@pytest.mark.parametrize("mode", ["max", "min"])
def test_patience_restores_the_best_epoch(tmp_path, mode):
    values = [0.1, 0.5, 0.4, 0.5, 0.3, 0.9]  # a tie is no improvement
    values = values if mode == "max" else [-v for v in values]
    torch.manual_seed(0)
    walk = Walk(values)
    options = {"monitor": "score", "patience": 3, "mode": mode, "checkpoint": tmp_path / "run.pt"}
    result = walk.run(6, **options)
    assert result.stopped_early and result.epochs == 5
    assert (result.best_epoch, result.best_value) == (1, values[1])
    assert walk.weight == result.history[1]["loss"]
    # Asking again changes nothing: patience is still over, the best is still the best.
    again = Walk(values)
    result = again.run(6, **options)
    assert result.resumed_from == 5 and result.stopped_early and again.weight == walk.weight


def test_patience_restores_the_best_also_at_the_last_epoch():
    walk = Walk([0.1, 0.9, 0.2])
    result = walk.run(3, monitor="score", patience=10)
    assert not result.stopped_early and result.best_epoch == 1
    assert walk.weight == result.history[1]["loss"]


def test_monitoring_without_patience_only_reports():
    walk = Walk([0.1, 0.9, 0.2])
    result = walk.run(3, monitor="score")
    assert (result.best_epoch, result.best_value) == (1, 0.9)
    assert walk.weight == result.history[2]["loss"]


def test_a_nan_score_is_never_the_best():
    result = Walk([math.nan, 0.2, math.nan]).run(3, monitor="score", patience=2)
    assert (result.best_epoch, result.best_value) == (1, 0.2)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_non_finite_loss_stops_and_keeps_the_last_good_state(tmp_path, bad):
    path = tmp_path / "run.pt"
    model = nn.Linear(1, 1)

    def body(epoch):
        model.weight.data.fill_(epoch)
        return {"loss": 1.0, "val_loss": torch.tensor(bad if epoch == 3 else 0.5)}

    with pytest.raises(NonFiniteLoss, match=r"val_loss is (nan|inf) in epoch 3.*run\.pt") as caught:
        run_epochs(body, 9, state={"model": model}, checkpoint=path)
    assert "Lower the learning rate" in str(caught.value)
    assert (caught.value.epoch, caught.value.checkpoint) == (3, path)
    record = load_checkpoint(path)
    assert float(record["state"]["model"]["weight"]) == 2.0
    assert len(record["history"]["rows"]) == 3


def test_a_weight_that_overflows_in_the_last_step_is_not_saved_as_good(tmp_path):
    model = nn.Linear(1, 1)

    def body(epoch):
        if epoch == 1:
            model.weight.data.fill_(math.nan)
        return {"loss": 0.1}

    with pytest.raises(NonFiniteLoss, match="a weight of 'model' is not finite in epoch 1"):
        run_epochs(body, 3, state={"model": model}, checkpoint=tmp_path / "run.pt")
    assert load_checkpoint(tmp_path / "run.pt")["state"]["model"]["weight"].isfinite().all()


def test_nan_without_a_checkpoint_says_that_nothing_is_kept():
    with pytest.raises(NonFiniteLoss, match="no checkpoint was asked for"):
        run_epochs(lambda epoch: {"loss": math.nan}, 1, state={})


def test_checkpoints_of_other_runs_are_refused(tmp_path):
    path = tmp_path / "run.pt"
    Walk().run(1, checkpoint=path, config={"lr": 0.1, "epochs": 1})
    with pytest.raises(ValueError, match=r"made with lr = 0\.1, this run has 0\.2"):
        Walk().run(2, checkpoint=path, config={"lr": 0.2, "epochs": 2})
    with pytest.raises(ValueError, match=r"holds \['model'\], this run has \['net'\]"):
        run_epochs(Walk(), 2, state={"net": nn.Linear(1, 1)}, checkpoint=path)
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match="not a checkpoint of a training loop"):
        Walk().run(2, checkpoint=path)


@pytest.mark.parametrize(
    ("made", "now", "message"),
    [
        ({}, {"lam": 0.5}, r"made without lam, this run has 0\.5"),
        ({"lam": 0.5}, {}, r"made with lam = 0\.5, this run has none"),
        ({"lam": None}, {"lam": 0.5}, r"made with lam = None, this run has 0\.5"),
        ({"m": (1, 2)}, {"m": (1, 3)}, r"made with m = \(1, 2\), this run has \(1, 3\)"),
    ],
)
def test_a_key_that_only_one_of_both_runs_has_is_a_difference(tmp_path, made, now, message):
    path = tmp_path / "run.pt"
    Walk().run(1, checkpoint=path, config=made)
    with pytest.raises(ValueError, match=message) as caught:
        Walk().run(2, checkpoint=path, config=now)
    assert "delete" not in str(caught.value)
    assert Walk().run(2, checkpoint=path, config=made).resumed_from == 1


def test_numbers_of_numpy_in_configuration_state_and_rows_stay_readable(tmp_path):
    """Ctrl-C reads the checkpoint back, so it needs a readable one."""

    class Counter:
        value = np.float64(0.0)

        def state_dict(self):
            return {"value": self.value}

        def load_state_dict(self, state):
            self.value = np.float64(state["value"])

    counter, path = Counter(), tmp_path / "run.pt"

    def body(epoch):
        counter.value += 1
        if epoch == 2 and interrupt:
            raise KeyboardInterrupt
        return {"loss": np.float32(0.5), "score": torch.tensor(1.0)}

    interrupt, config = True, {"lr": np.float64(0.1), "milestones": (np.int64(3),)}
    options = {"state": {"counter": counter}, "checkpoint": path, "progress": False}
    result = run_epochs(body, 4, config=config, **options)
    assert result.interrupted and counter.value == 2
    interrupt = False
    result = run_epochs(body, 4, config={"lr": 0.1, "milestones": (3,)}, **options)
    assert result.resumed_from == 2 and counter.value == 4


def test_early_stopping_counts_improvements_only():
    stopping = EarlyStopping(3)
    assert not stopping.is_over(100)  # nothing seen yet
    assert [stopping.update(v, i) for i, v in enumerate([0.2, 0.5, 0.5, math.nan])] == [
        True, True, False, False,
    ]  # fmt: skip
    assert (stopping.best, stopping.best_at) == (0.5, 1)
    assert not stopping.is_over(3) and stopping.is_over(4)
    falling = EarlyStopping(2, "min")
    assert [falling.update(v, i) for i, v in enumerate([1.0, 1.0, 0.8])] == [True, False, True]
    assert not EarlyStopping(None).is_over(10**9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": -1}, "epochs is -1"),
        ({"epochs": 1, "patience": 2}, "give it a monitor to watch"),
        ({"epochs": 1, "patience": 0, "monitor": "score"}, "patience is 0"),
        ({"epochs": 1, "mode": "best"}, "mode is 'best'"),
        ({"epochs": 1, "monitor": "accuracy"}, "monitor is 'accuracy'; an epoch returns"),
    ],
)
def test_wrong_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Walk().run(**options)
