"""What a learner may look at and what it may change: choices, frozen parts, other tasks' data."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from nas_core.continual import (
    LEARNERS,
    Embedded,
    FitConfig,
    Stream,
    TaskSpec,
    Trial,
    accuracy,
    make_learner,
    mlp,
    rank_past,
    resnet,
    run_stream,
    tune_stream,
)  # fmt: skip
from nas_core.continual.fit import fit, validation_set
from nas_core.continual.learners.mntdp import Trunk
from nas_core.training import TensorData

SMALL, NARROW = mlp((3, 8, 8), 12), resnet(4, 8)  # without and with batch norm
FAST = {"RCL": {"episodes": 6}, "Learn-to-grow": {"search_steps": 12}}
ON_RESNET = [name for name in LEARNERS if name not in ("HAT", "DEN", "RCL")]


def make(name, config, backbone=SMALL, **options):
    return make_learner(name, backbone, config, **FAST.get(name, {}), **options)


@pytest.fixture
def learns() -> FitConfig:
    """Enough steps for choices to differ: two learning rates, of which one is useless."""
    return FitConfig(
        lr=(1e-6, 0.01), weight_decay=(0.0,), batch_size=20, max_steps=24, patience=12, eval_every=4
    )


class Poisoned(Stream):
    """The same tasks with wrong labels and noise in the test split."""

    def __getitem__(self, index):
        task = super().__getitem__(index)
        g = torch.Generator().manual_seed(index)
        x = torch.randint(0, 256, task.test.x.shape, generator=g, dtype=torch.uint8)
        return replace(
            task, test=TensorData(x, (task.test.y + 1) % task.way, normalise=task.test.normalise)
        )


def poisoned(stream: Stream) -> Stream:
    return Poisoned(stream.name, stream.specs, stream.source, augment=stream.augment)


def state_of(learner) -> list[torch.Tensor]:
    """All tensors that a learner keeps."""
    found: list[torch.Tensor] = []

    def walk(value):
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif isinstance(value, dict):
            [walk(v) for v in value.values()]
        elif isinstance(value, list | tuple):
            [walk(v) for v in value]

    walk(learner.state_dict())
    return found


# ---------------------------------------------------------------- the test split chooses nothing


@pytest.mark.parametrize("name", LEARNERS)
def test_no_choice_looks_at_the_test_split(name, digits, learns):
    """Grid, best step, path, prior, α, Γ, proposals: the same under a poisoned test split."""
    honest, blind = make(name, learns), make(name, learns)
    for task, bad in zip(digits, poisoned(digits), strict=True):
        a, b = honest.learn(task, beta=1), blind.learn(bad, beta=1)
        assert (a.lr, a.steps, a.val_accuracy, a.choice) == (
            b.lr,
            b.steps,
            b.val_accuracy,
            b.choice,
        )
    tensors = zip(state_of(honest), state_of(blind), strict=True)
    assert all(torch.equal(x, y) for x, y in tensors)


def test_the_prior_and_the_strength_do_not_look_at_the_test_split(digits, learns):
    learner = make("Independent", learns)
    for task in list(digits)[:2]:
        learner.learn(task)
    rankings = [rank_past(learner.library, stream[2]) for stream in (digits, poisoned(digits))]
    assert rankings[0] == rankings[1]
    tables = [
        tune_stream(lambda v: make("EWC", learns, strength=v), stream, [0.0, 100.0])[1]
        for stream in (digits, poisoned(digits))
    ]
    assert tables[0].equals(tables[1])


def test_whole_paths_are_judged_on_the_validation_split(digits, learns):
    learner = make("MNTDP-D", learns)
    learner.learn(digits[0])
    found = []
    for stream in (digits, poisoned(digits)):
        task = stream[2]
        ((path, _, report),) = learner.whole(Trial(task, 0, 0.01, 0.0, beta=None), [(0, 1.0)])
        val = accuracy(lambda x: learner.predict(x, 0), task.val)
        assert path == (0, 0, 0) and report.val_accuracy == val
        found.append(report)
    assert found[0] == found[1]


def test_the_validation_split_does_choose(digits, learns):
    """The control: with poisoned validation labels the same learner ends elsewhere."""
    task = digits[0]
    wrong = replace(task, val=TensorData(task.val.x, 1 - task.val.y, normalise=task.val.normalise))
    a, b = make("Independent", learns), make("Independent", learns)
    assert a.learn(task).val_accuracy > 0.7 > 0.6 > b.learn(wrong).val_accuracy


# ---------------------------------------------------------------- frozen parts stay


@pytest.mark.parametrize("name", ["New-head freeze", "New-leg freeze", "PNN", "Learn-to-grow"])
def test_frozen_modules_keep_weights_and_batch_norm_statistics(name, digits, quick):
    learner = make(name, quick, NARROW)
    learner.learn(digits[0])
    for task in list(digits)[1:]:
        before = {k: v.clone() for k, v in learner.net.state_dict().items()}
        x = digits[0].test.inputs(digits[0].test.x)
        old = learner.predict(x, 0)
        learner.learn(task)
        after = learner.net.state_dict()
        assert any("running_mean" in k for k in before)
        assert all(torch.equal(v, after[k]) for k, v in before.items())
        assert torch.equal(learner.predict(x, 0), old)


@pytest.mark.parametrize("name", ["Finetune", "New-head finetune", "ER", "EWC"])
def test_what_is_trained_does_gather_statistics(name, digits, quick):
    learner = make(name, quick, NARROW)
    learner.learn(digits[0])
    before = {k: v.clone() for k, v in learner.net.state_dict().items() if "running" in k}
    learner.learn(digits[1])
    assert any(not torch.equal(v, learner.net.state_dict()[k]) for k, v in before.items())


@pytest.mark.parametrize("name", ["New-head finetune", "New-leg finetune", "ER", "EWC"])
def test_heads_and_legs_of_other_tasks_stay(name, digits, quick):
    """They are no part of the path that is trained; replay goes through old heads as they are."""
    learner = make(name, quick, NARROW)
    learner.learn(digits[0])
    layer = next(iter(learner.own)) % len(NARROW)
    own = learner.library.module(layer, 0)
    before = copy.deepcopy(own.state_dict())
    learner.learn(digits[1])
    own = learner.library.module(layer, 0)  # of the copy that has learnt
    assert all(torch.equal(v, own.state_dict()[k]) for k, v in before.items())


# ---------------------------------------------------------------- other tasks' data


class Guarded(Stream):
    """Hands out every task once and wipes it as soon as the next one is asked for."""

    def __init__(self, stream: Stream):
        super().__init__(stream.name, stream.specs, stream.source, augment=stream.augment)
        self.out: list = []

    def __getitem__(self, index):
        for task in self.out:
            for part in (task.train, task.val, task.test):
                part.x.zero_()
                part.y.zero_()
        task = super().__getitem__(index)
        task = replace(task, **{
            s: TensorData(d.x.clone(), d.y.clone(), d.augment, d.normalise)
            for s in ("train", "val", "test") for d in [getattr(task, s)]
        })  # fmt: skip
        self.out.append(task)
        return task


@pytest.mark.parametrize("name", LEARNERS)
def test_a_task_is_gone_when_the_next_one_comes(name, digits, quick):
    """Old examples survive only where a learner keeps and counts them; later ones are unknown."""
    plain, guarded = make(name, quick), make(name, quick)
    for task in digits:
        plain.learn(task)
    stream = Guarded(digits)
    for t in range(3):
        guarded.learn(stream[t])
    tensors = zip(state_of(plain), state_of(guarded), strict=True)
    assert all(torch.equal(x, y) for x, y in tensors)


def test_replay_rehearses_past_examples_through_their_own_heads(digits, quick, monkeypatch):
    learner = make("ER", quick)
    for task in list(digits)[:2]:
        learner.learn(task)
    assert sorted(learner.buffer.task.unique().tolist()) == [0, 1]
    for t in (0, 1):  # what is kept are training examples of that task
        rows = learner.buffer.x[learner.buffer.task == t].flatten(1).double()
        known = digits[t].train.inputs(digits[t].train.x).flatten(1).double()
        assert (torch.cdist(rows, known).min(1).values < 1e-4).all()
    x, y = next(digits[2].train.batches(20, seed=0))
    learner.library.grow([0, 0, 2], 2)
    learner._generator.manual_seed(5)
    found = learner.loss(x, y, 2)
    drawn = learner.buffer.draw(20, torch.Generator().manual_seed(5))
    net, one = learner.library, nn.functional.cross_entropy
    past = [one(net(a.unsqueeze(0), int(t)), b.view(1)) for a, b, t in zip(*drawn, strict=True)]
    expected = one(net(x, 2), y) + torch.stack(past).mean()
    assert found.item() == pytest.approx(expected.item(), 1e-5)


# ---------------------------------------------------------------- one closed form per learner


def test_a_learner_without_fisher_does_not_pull(digits, quick):
    learner = make("EWC", quick, strength=10.0)
    learner.learn(digits[0])
    assert learner.penalty(0).item() == pytest.approx(0, abs=1e-9)  # at the anchor
    (fisher,) = learner.fishers
    assert all(f.min() >= 0 for f in fisher.values()) and sum(f.sum() for f in fisher.values()) > 0
    with torch.no_grad():
        for p in learner.protected(0).values():
            p += 0.1
    expected = 10.0 * 0.5 * 0.1**2 * sum(float(f.sum()) for f in fisher.values())
    assert learner.penalty(0).item() == pytest.approx(expected, rel=1e-4)


def test_the_online_fisher_decays(digits, quick):
    found = {}
    for decay in (0.0, 0.25, 1.0):
        learner = make("Online EWC", quick, decay=decay, strength=0.0)
        learner.learn(digits[0])
        first = {n: f.clone() for n, f in learner.fishers[0].items()}
        learner.learn(digits[1])
        assert len(learner.fishers) == len(learner.anchors) == 1
        found[decay] = {n: f for n, f in learner.fishers[0].items()}
    for n, f in first.items():  # new + decay · old, with the same networks throughout
        assert torch.allclose(found[0.25][n], found[0.0][n] + 0.25 * f, atol=1e-7)
        assert torch.allclose(found[1.0][n], found[0.0][n] + f, atol=1e-7)
    now = learner.protected(1)
    assert all(torch.equal(a, now[n].detach()) for n, a in learner.anchors[0].items())


def test_columns_listen_to_all_earlier_columns(digits, quick):
    learner = make("PNN", quick)
    for task in digits:
        learner.learn(task)
    x = torch.randn(4, 3, 8, 8)
    c = learner.net.columns
    with torch.no_grad():
        h = [column["own"][0](x) for column in c]
        second = [c[0]["own"][1](h[0])]
        second.append(c[1]["own"][1](h[1]) + c[1]["from 0"][0](h[0]))
        second.append(c[2]["own"][1](h[2]) + c[2]["from 0"][0](h[0]) + c[2]["from 1"][0](h[1]))
        out = c[2]["own"][2](second[2])
        out = out + c[2]["from 0"][1](second[0]) + c[2]["from 1"][1](second[1])
    assert torch.allclose(learner.predict(x, 2), out, atol=1e-6)


def test_gates_multiply_units_and_reservations_are_their_maximum(digits, quick):
    learner = make("HAT", quick)
    learner.learn(digits[0])
    x, first = torch.randn(4, 3, 8, 8), learner.net.gates(0)
    assert all(torch.equal(r, g) for r, g in zip(learner.reserved, first, strict=True))
    learner.learn(digits[1])
    net = learner.net
    for r, a, b in zip(learner.reserved, first, net.gates(1), strict=True):
        assert torch.equal(r, torch.maximum(a, b)) and ((b > a).any() or (a > b).any())
    with torch.no_grad():
        h = x
        for block, e in zip(net.trunk, net.embeddings[1], strict=True):
            h = block(h) * torch.sigmoid(400.0 * e)
        assert torch.allclose(learner.predict(x, 1), net.heads[1](h), atol=1e-6)
        net.embeddings[1][0].fill_(-1.0)  # closed gates let nothing through
        shut = learner.predict(x, 1)
    assert torch.allclose(shut, shut[:1].expand_as(shut), atol=1e-6)


def test_reserved_weights_move_as_far_as_they_are_free(digits, quick):
    """With half-reserved units every update is halved; the first layer's inputs are all free."""
    learner = make("HAT", quick)
    learner.reserved = [torch.full_like(r, 0.25) for r in learner.reserved]
    learner.reserved[1].fill_(0.75)
    (w1, b1), (w2, b2) = learner.free()
    assert (w1 == 0.75).all() and (b1 == 0.75).all()
    assert (w2 == 0.75).all() and (b2 == 0.25).all()  # 1 − min(.75, .25)


# ---------------------------------------------------------------- the loop


def test_the_best_weights_are_kept_and_not_the_last(digits):
    """After the best look the labels of the batches turn round, so that training does harm."""
    task = digits[0]
    config = FitConfig(batch_size=20, max_steps=60, patience=60, eval_every=10)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
    seen = []

    def losses(x, y, active):
        seen.append(net[1].weight.detach().clone())
        return [nn.functional.cross_entropy(net(x), y if len(seen) <= 20 else 1 - y)]

    (report,) = fit(
        [net], losses, lambda data, which: [accuracy(net, data)], Trial(task, 0, 0.01, 0.0), config
    )
    assert report.val_accuracy == accuracy(net, task.val) > 0.8
    assert any(torch.equal(net[1].weight, seen[step]) for step in (10, 20))


def test_one_diverging_point_is_recorded_and_the_others_go_on(digits):
    config = FitConfig(
        lr=(1e30, 0.01), weight_decay=(0.0,), batch_size=20, max_steps=20, eval_every=5
    )
    learner = make("Independent", config)
    run = run_stream(learner, digits, beta=None)
    assert run.table.diverged.tolist() == [1, 1, 1] and set(run.table.lr) == {0.01}
    assert run.details[0]["diverged"] == [(1e30, 0.0)]
    alone = run_stream(make("Independent", replace(config, lr=(0.01,))), digits, beta=None)
    assert run.table.after.tolist() == alone.table.after.tolist()
    assert all(a > b for a, b in zip(run.table.macs, alone.table.macs, strict=True))


def test_a_diverging_candidate_does_not_stop_the_others(digits):
    task = digits[0]
    config = FitConfig(batch_size=20, max_steps=30, eval_every=5)
    torch.manual_seed(0)
    nets = [nn.Sequential(nn.Flatten(), nn.Linear(192, 2)) for _ in range(2)]
    scale, cross_entropy = [1.0, float("inf")], nn.functional.cross_entropy
    reports = fit(
        nets,
        lambda x, y, active: [scale[c] * cross_entropy(nets[c](x), y) for c in active],
        lambda data, which: [accuracy(nets[c], data) for c in which],
        Trial(task, 0, 0.01, 0.0), config,
    )  # fmt: skip
    assert reports[0].val_accuracy > 0.8 and reports[1].val_accuracy == -1
    assert all(p.isfinite().all() for net in nets for p in net.parameters())


def test_a_frozen_trunk_costs_its_forward_pass_only(digits, quick):
    learner = make("New-head freeze", quick)
    learner.learn(digits[0])
    trunk, head, examples = 192 * 12 + 12 * 12, 12 * 2, 12 * 20
    assert learner.learn(digits[1]).macs == examples * (trunk + 2 * head)


def test_the_grid_is_paid_for(digits, quick):
    """Multiply-adds of all points count, whatever the processes."""
    single = make("Independent", quick).learn(digits[0]).macs
    grid = replace(quick, lr=(0.01, 0.003), weight_decay=(0.0, 1e-4))
    assert make("Independent", grid).learn(digits[0]).macs == 4 * single


# ---------------------------------------------------------------- validation copies and caches


@pytest.mark.parametrize("augment", [False, True])
def test_validation_copies_work_with_and_without_augmented_training(augment):
    specs = [TaskSpec("digits", ("0", "1"), 20, 10)]
    task = Stream("x", specs, Embedded(16, (20, 10, 10)), augment=augment)[0]
    plain, copies = (validation_set(task, n, seed=3) for n in (0, 4))
    assert len(plain) == 10 and len(copies) == 50
    assert torch.equal(copies.x[:10], task.val.x) and torch.equal(copies.y, task.val.y.repeat(5))
    moved = copies.x[10:].view(4, 10, 3, 16, 16)
    assert (moved != task.val.x).flatten(2).any(2).float().mean() > 0.9
    assert torch.equal(copies.x, validation_set(task, 4, seed=3).x)
    assert torch.allclose(copies.inputs(copies.x)[:10], plain.inputs(plain.x))


def test_copies_of_permuted_pixels_are_refused():
    specs = [TaskSpec("digits", ("0", "1"), 20, 10, pixels=0)]
    task = Stream("x", specs, Embedded(16, (20, 10, 10)))[0]
    with pytest.raises(ValueError, match="set val_copies=0"):
        validation_set(task, 4, seed=0)
    assert len(validation_set(task, 0, seed=0)) == 10


@pytest.mark.parametrize("count", [3, 256, 257, 600])
def test_the_cache_measures_what_it_holds(count):
    """257 examples are a batch of 256 and one of 1: the last batch says nothing about the whole."""
    learner = make_learner("MNTDP-D", SMALL)
    learner.library.grow((0, 0, 0), 2)
    learner.library.eval()
    data = TensorData(torch.randn(count, 3, 8, 8), torch.zeros(count, dtype=torch.int64))
    prefixes = [(), (0,), (0, 0)]
    needed = count * 4 * (192 + 12 + 12)
    kept = Trunk(learner.library, prefixes, needed).of_all(data)
    assert sum(t.numel() * t.element_size() for t in kept.values()) == needed
    assert all(torch.equal(kept[p], h) for p, h in Trunk(learner.library, prefixes)(data.x).items())
    assert Trunk(learner.library, prefixes, needed - 1).of_all(data) is None
    trunk = Trunk(learner.library, prefixes, needed)
    assert trunk.of_all(data) is trunk.of_all(data)
    other = TensorData(data.x, data.y)
    assert trunk.of_all(other) is None  # the first one filled it
