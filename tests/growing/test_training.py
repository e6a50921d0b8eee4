"""Schedules of the report exactly, and the loop that grows and prunes along them."""

from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch

from nas_core import growing
from nas_core.data import reference
from nas_core.growing import GrowConfig, GrowingNetwork, Plan, Schedule, grow_and_prune, pruning
from nas_core.training import NonFiniteLoss, TensorData

PLAN = Plan(width=4, cells=(1, 1, 1, 1), classes=3, size=8)


def numbers(row, name, count):
    return tuple(getattr(row, f"{name}_{i}") for i in range(1, count + 1))


def problem(n=60, seed=0):
    """Three classes told apart by the brightest channel."""
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 3
    x = 0.5 * torch.randn(n, 3, 8, 8, generator=g)
    x[torch.arange(n), y] += 1.0
    data = TensorData(x, y)
    return SimpleNamespace(
        train=data.subset(torch.arange(40)), val=data.subset(torch.arange(40, n))
    )


def short(**changes):
    given = {
        "epochs": 9, "milestones": (6,), "gammas": (0.1,), "grow": (2, 4, 6), "lr": 0.05,
        **changes,
    }  # fmt: skip
    return Schedule(**given)


# ---------------------------------------------------------------- schedules


def test_the_schedules_are_those_of_tables_1_5_and_6():
    row = next(reference.load("report_table_5").itertuples())
    grown = growing.GROWN
    assert (grown.epochs, grown.lr) == (row.epochs, row.lr)
    assert grown.milestones == numbers(row, "milestone", 3)
    assert grown.gammas == numbers(row, "gamma", 3) and grown.grow == numbers(row, "grow", 3)
    row = next(reference.load("report_table_6").itertuples())
    assert growing.ONE_SHOT.prune == numbers(row, "prune", 4)
    assert Schedule(100, 0.1, (35, 60, 85), (0.1, 0.1, 0.1), ()) == growing.BASELINE
    assert growing.ITERATIVE.prune == (10, 35, 60, 85, 95, 105, 115)


def test_learning_rates_of_table_5_and_of_the_worked_example():
    lr = growing.GROWN.lr_at
    for first, last, expected in [
        (0, 119, 1e-2),
        (120, 159, 1e-3),
        (160, 179, 1e-5),
        (180, 249, 1e-7),
    ]:
        assert lr(first) == lr(last) == pytest.approx(expected, rel=1e-12)
    example = Schedule(60, 1.0, (20, 40), (0.1, 0.1), ())
    assert [example.lr_at(e) for e in (0, 19, 20, 39, 40)] == pytest.approx([1, 1, 0.1, 0.1, 0.01])


@pytest.mark.parametrize(("table", "runs"), [("3", 5), ("4", 4)])
def test_learning_rates_of_all_gammas_of_tables_3_and_4(table, runs):
    frame = reference.load(f"report_table_{table}")
    assert len(frame) == runs
    for row in frame.itertuples():
        milestones, gammas = numbers(row, "milestone", 3), numbers(row, "gamma", 3)
        schedule = Schedule(row.epochs, 0.01, milestones, gammas)
        rate = 0.01
        for epoch in range(row.epochs):
            if epoch in milestones:
                rate *= gammas[milestones.index(epoch)]
            assert schedule.lr_at(epoch) == pytest.approx(rate, rel=1e-12)


def test_one_shot_prunes_every_block_once_ten_epochs_after_its_birth():
    events = growing.ONE_SHOT.prunings()
    assert events == [(10, 0, 1), (35, 1, 1), (60, 2, 1), (85, 3, 1)]


def test_iterative_prunes_every_block_three_times():
    events = growing.ITERATIVE.prunings()
    epochs = {b: [e for e, block, _ in events if block == b] for b in range(4)}
    assert epochs == {0: [10, 35, 60], 1: [35, 60, 85], 2: [60, 85, 95], 3: [85, 95, 105]}
    for b in range(4):
        assert [step for _, block, step in events if block == b] == [1, 2, 3]


@pytest.mark.parametrize("epochs", [10, 12, 25, 40, 100, 250, 500])
@pytest.mark.parametrize("name", ["GROWN", "ONE_SHOT", "ITERATIVE"])
def test_scaled_schedules_keep_the_order_of_events(name, epochs):
    full = getattr(growing, name)
    scaled = full.scaled(epochs)
    assert scaled.epochs == epochs and len(scaled.grow) == 3
    births = (0, *scaled.grow)
    events = scaled.prunings()
    assert [(b, s) for _, b, s in sorted(events, key=lambda e: e[1:])] == [
        (b, s) for _, b, s in sorted(full.prunings(), key=lambda e: e[1:])
    ]
    assert all(births[block] < epoch < epochs for epoch, block, _ in events)
    if epochs % 50 == 0 and epochs >= 250:
        assert scaled.grow == tuple(g * epochs // 250 for g in full.grow)
    assert full.scaled(250) == full
    with pytest.raises(ValueError, match="too few"):
        growing.ITERATIVE.scaled(5)


@pytest.mark.parametrize(
    "wrong",
    [{"gammas": (0.1,)}, {"grow": (50, 25)}, {"lr": 0.0}, {"prune": (300,)}, {"steps": 0}],
)
def test_wrong_schedules_are_refused(wrong):
    with pytest.raises(ValueError, match="gamma per milestone|increasing"):
        Schedule(**wrong)


# ---------------------------------------------------------------- the loop


def run(schedule, seed=0, net=None, **options):
    torch.manual_seed(seed)
    net = net or GrowingNetwork(PLAN, blocks=1 if schedule.grow else None)
    config = GrowConfig(schedule, batch_size=20, score_examples=20, seed=seed, **options)
    return net, grow_and_prune(net, problem(), config, progress=False)


def test_classifiers_appear_when_the_schedule_says_so():
    net, grown = run(short())
    assert grown.history["blocks"].tolist() == [1, 1, 2, 2, 3, 3, 4, 4, 4]
    assert grown.births == (0, 2, 4, 6) and net.blocks == 4
    assert grown.history["lr"].tolist() == pytest.approx([0.05] * 6 + [0.005] * 3)
    seen = grown.history[[f"val_{i}" for i in range(4)]].notna().sum(axis=1)
    assert seen.tolist() == grown.history["blocks"].tolist()
    assert grown.best_epoch >= 6 and grown.history["val_accuracy"].iloc[-1] > 0.5


def test_same_seed_same_bits_and_new_weights_are_trained():
    (one, a), (two, b) = run(short()), run(short())
    assert a.history.equals(b.history)
    assert all(torch.equal(v, two.state_dict()[k]) for k, v in one.state_dict().items())


@pytest.mark.parametrize("score", ["snip", "magnitude", "random", "snip ratios"])
@pytest.mark.parametrize("steps", [1, 3])
def test_blocks_reach_exactly_their_kept_numbers(score, steps):
    keep = (0.4, 0.3, 0.2, 0.1)
    schedule = short(
        prune=(1, 3, 5, 7, 8) if steps == 1 else (1, 3, 5, 7, 8, 9, 10), steps=steps, epochs=11
    )
    net, grown = run(schedule, score=score, keep=keep)
    for b in range(4):
        parts = pruning.weights(net, net.block(b))
        total = sum(w.numel() for w in parts.values())
        assert pruning.count({k: grown.masks[k] for k in parts}) == int(keep[b] * total)
        for name, w in parts.items():  # momentum and decay have not revived any
            assert (w[~grown.masks[name]] == 0).all()
    events = schedule.prunings()
    kept = grown.history["kept"].tolist()
    expected = []
    sizes = [sum(w.numel() for w in pruning.weights(net, net.block(b)).values()) for b in range(4)]
    for epoch in range(11):
        total = 0
        for b in range(grown.history["blocks"][epoch]):
            steps_done = [s for e, block, s in events if block == b and e <= epoch]
            ratio = pruning.keep_ratio(keep[b], max(steps_done), steps) if steps_done else 1
            total += int(ratio * sizes[b])
        expected.append(total)
    assert kept == expected
    assert grown.best_epoch >= max(e for e, *_ in events)


def test_iterative_pruning_never_brings_a_weight_back():
    schedule = short(prune=(1, 3, 5, 7, 8, 9, 10), steps=3, epochs=11)
    torch.manual_seed(0)
    net, seen = GrowingNetwork(PLAN, blocks=1), []

    def watch(net, rows):  # as the schedule, but looks at the weights before every epoch
        seen.append({k: w.detach() != 0 for k, w in pruning.weights(net).items()})
        return len(rows) in schedule.grow

    config = GrowConfig(schedule, keep=0.2, batch_size=20, score_examples=20)
    grown = grow_and_prune(net, problem(), config, grow_when=watch, progress=False)
    for old, new in pairwise(seen):
        assert all((new[k] <= old[k]).all() for k in old)
    assert grown.births == (0, 2, 4, 6) and all(
        (grown.masks[k] <= seen[-1][k]).all() for k in grown.masks
    )
    assert pruning.count(seen[-1]) < pruning.count(seen[-3]) < pruning.count(seen[-5])


@pytest.mark.parametrize("reading", ["A", "B"])
def test_pruned_report_networks_have_the_printed_numbers_of_weights(reading):
    """Pruning every block of the real dense network by SNIP gives table 16's 38,571."""
    cells = (3, 3, 2, 2 if reading == "A" else 1)
    torch.manual_seed(0)
    net = GrowingNetwork(Plan(reading=reading, cells=cells))
    x, y = torch.randn(2, 3, 32, 32), torch.tensor([0, 1])
    parts, ratios = pruning.weights(net), (0.4, 0.3, 0.2, 0.1)

    def loss():
        return torch.nn.functional.cross_entropy(net.exits(x).sum(0), y)

    for b, ratio in enumerate(ratios):
        mine = pruning.weights(net, net.block(b))
        keep = pruning.keep_count(ratio, sum(w.numel() for w in mine.values()))
        pruning.apply(parts, pruning.keep_best(pruning.snip(mine, loss, module=net), keep))
    assert pruning.count(parts) == 38_571


def test_the_moved_head_stays_pruned_where_it_was():
    plan = Plan(width=4, cells=(1, 1), classes=3, size=8, internal=False)
    torch.manual_seed(0)
    net = GrowingNetwork(plan, blocks=1)
    seen = []
    schedule = Schedule(6, 0.05, (), (), (2,), (1, 3))
    config = GrowConfig(schedule, keep=0.5, batch_size=20)

    def watch(net, rows):
        seen.append(net.classifiers[0].linear.weight.detach() == 0)
        return len(rows) == 2

    _, grown = net, grow_and_prune(net, problem(), config, grow_when=watch, progress=False)
    gone = seen[-1]
    assert gone.any() and (net.classifiers[0].linear.weight[gone] == 0).all()
    assert grown.births == (0, 2) and "val_1" not in grown.history


def test_growth_by_a_criterion():
    """Grows as long as there are multiply-adds to spare, and never beyond the plan."""
    budget = growing.exit_macs(GrowingNetwork(Plan(**{**vars(PLAN), "cells": (1, 1)})))[-1]

    def room(net, rows):
        return len(rows) > 0 and growing.exit_macs(net)[-1] < budget

    torch.manual_seed(0)
    net = GrowingNetwork(PLAN, blocks=1)
    config = GrowConfig(short(), batch_size=20)
    grown = grow_and_prune(net, problem(), config, grow_when=room, progress=False)
    assert grown.history["blocks"].tolist() == [1] + [2] * 8 and grown.births == (0, 1)


def test_persistent_reinitialisation_changes_the_weights_and_score_only_the_mask():
    schedule = Schedule(3, 0.05, (), (), (), (2,))
    plan = Plan(width=4, cells=(2,), classes=3, size=8)
    kept = {}
    for mode in ("none", "score only", "persistent"):
        torch.manual_seed(0)
        _, grown = run(schedule, net=GrowingNetwork(plan), keep=0.3, reinit=mode)
        kept[mode] = grown
    masks = {m: torch.cat([v.flatten() for v in g.masks.values()]) for m, g in kept.items()}
    assert not torch.equal(masks["none"], masks["score only"])
    assert len({int(m.sum()) for m in masks.values()}) == 1
    losses = {m: g.history["loss"].tolist() for m, g in kept.items()}
    assert losses["none"][:2] == losses["score only"][:2] == losses["persistent"][:2]
    assert len({row[2] for row in losses.values()}) == 3


def test_baselines_are_the_same_loop_without_growth():
    _, grown = run(Schedule(3, 0.05, (), (), ()))
    assert (grown.history["blocks"] == 4).all() and grown.births == (0, 0, 0, 0)
    torch.manual_seed(0)
    base = GrowingNetwork(Plan(**{**vars(PLAN), "internal": False}))
    _, grown = run(Schedule(3, 0.05, (), (), ()), net=base)
    assert [c for c in grown.history if c.startswith("val_")] == ["val_0", "val_accuracy"]


def test_a_learning_rate_that_diverges_is_reported():
    with pytest.raises(NonFiniteLoss):
        run(Schedule(3, 1e30, (), (), ()))


# ---------------------------------------------------------------- resuming


@pytest.mark.parametrize("stop", [0, 3, 5, 8])
@pytest.mark.parametrize("internal", [True, False])
def test_a_stopped_run_goes_on_with_the_same_bits(stop, internal, tmp_path, monkeypatch):
    plan = Plan(width=4, cells=(1, 1, 1, 1), classes=3, size=8, internal=internal, dense=False)
    schedule = short(prune=(1, 3, 5, 7, 8), steps=2)
    options = {"keep": 0.4, "score": "random"}

    def whole(**more):
        torch.manual_seed(1)
        net = GrowingNetwork(plan, blocks=1)
        config = GrowConfig(schedule, batch_size=20, score_examples=20, seed=1, **options)
        return net, grow_and_prune(net, problem(), config, progress=False, **more)

    net, grown = whole()
    train, calls = growing.training.train_epoch, []

    def stops(*arguments, **options):
        calls.append(1)
        if len(calls) == stop + 1:
            raise KeyboardInterrupt  # in the middle of an epoch, after growing and pruning
        return train(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(growing.training, "train_epoch", stops)
        whole(checkpoint=tmp_path / "run.pt")
    again, resumed = whole(checkpoint=tmp_path / "run.pt")
    assert resumed.history.equals(grown.history) and resumed.births == grown.births
    assert resumed.best_epoch == grown.best_epoch
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in net.state_dict().items())
    assert all(torch.equal(m, resumed.masks[k]) for k, m in grown.masks.items())
    with pytest.raises(ValueError, match="keep"):
        options["keep"] = 0.5
        whole(checkpoint=tmp_path / "run.pt")
