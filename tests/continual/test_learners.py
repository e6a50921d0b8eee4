import copy
import multiprocessing
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from nas_core.continual import (
    LEARNERS,
    Embedded,
    FitConfig,
    Stream,
    TaskSpec,
    accuracy,
    make_learner,
    mlp,
    run_stream,
    tune_stream,
)  # fmt: skip
from nas_core.continual.fit import Trial, fit
from nas_core.continual.learners.growing import GrowingMLP
from nas_core.continual.learners.shared_path import (
    Reservoir,
    Ring,
    fisher_diagonal,
    quadratic_penalty,
)
from nas_core.training import load_checkpoint, one_thread, save_atomic

SMALL = mlp((3, 8, 8), 12)
QUICKER = {"RCL": {"episodes": 6}, "Learn-to-grow": {"search_steps": 12}}


def make(name, config, **options):
    return make_learner(name, SMALL, config, **{**QUICKER.get(name, {}), **options})


@pytest.mark.parametrize("name", LEARNERS)
def test_every_learner_runs_is_saved_and_comes_back(name, digits, quick):
    learner = make(name, quick)
    run = run_stream(learner, digits, beta=1)
    x = digits[0].test.inputs(digits[0].test.x)
    assert len(run.table) == 3 and np.isfinite(run.accuracy[-1]).all()
    assert run.summary()["memory_mb"] > 0 and all(r["macs"] > 0 for r in run.rows[:1])
    again = make(name, quick)
    again.load_state_dict(copy.deepcopy(learner.state_dict()))
    assert again.seen == 3
    for t in range(3):
        assert torch.equal(learner.predict(x, t), again.predict(x, t))
    assert again.total_memory() == learner.total_memory()


@pytest.mark.parametrize(
    "name",
    ["Independent", "New-head freeze", "New-leg freeze", "PNN", "RCL", "Learn-to-grow",
     "MNTDP-D", "MNTDP-S"],
)  # fmt: skip
def test_learners_that_cannot_forget_do_not(name, digits, quick):
    learner, before = make(name, quick), []
    for task in digits:
        learner.learn(task)
        x = digits[0].test.inputs(digits[0].test.x)
        before.append(learner.predict(x, 0))
    if name == "RCL":  # its matrices grow, so the same sums are added in another order
        assert torch.allclose(before[0], before[-1], atol=1e-5)
    else:
        assert torch.equal(before[0], before[-1])


def test_fine_tuning_forgets(digits):
    config = FitConfig(lr=(0.01,), weight_decay=(0.0,), batch_size=20, max_steps=150,
                       patience=150, eval_every=10)  # fmt: skip
    specs = [digits.specs[0], digits.specs[1], digits.specs[1]]
    stream = type(digits)("x", specs, digits.source, augment=False)
    # the labels of task 1 are turned round in task 3: a shared head cannot serve both
    turned = type(specs[0])("digits", specs[0].classes[::-1], 40, 20)
    stream.specs = (specs[0], specs[1], turned)
    forgot = run_stream(make("Finetune", config), stream, beta=None).summary()
    kept = run_stream(make("Independent", config), stream, beta=None).summary()
    assert forgot["F"] < -0.3
    assert kept["F"] == 0.0


# ---------------------------------------------------------------- the training loop


def test_candidates_trained_together_end_where_they_would_end_alone(digits):
    task = digits[0]
    config = FitConfig(batch_size=20, max_steps=30, patience=15, eval_every=5)
    torch.manual_seed(0)
    start = [nn.Sequential(nn.Flatten(), nn.Linear(192, 2)) for _ in range(3)]

    def train(nets):
        return fit(
            nets,
            lambda x, y, active: [nn.functional.cross_entropy(nets[c](x), y) for c in active],
            lambda data, which: [accuracy(nets[c], data) for c in which],
            Trial(task, 4, 0.003, 1e-4), config,
        )  # fmt: skip

    together, alone = copy.deepcopy(start), copy.deepcopy(start)
    joint = train(together)
    single = [train([net])[0] for net in alone]
    for a, b in zip(together, alone, strict=True):
        assert torch.equal(a[1].weight, b[1].weight)
    assert [r.val_accuracy for r in joint] == [r.val_accuracy for r in single]
    assert joint[0].macs == sum(r.macs for r in single)


def test_macs_are_those_of_forward_and_backward(digits, quick):
    (steps, batch), inner = (12, 20), 192 * 12 + 12 * 12 + 12 * 2
    report = make("Independent", quick).learn(digits[0])
    # forward, gradient of weights, gradient of inputs but for the first layer
    assert report.macs == steps * batch * (2 * inner + inner - 192 * 12)


def test_the_grid_keeps_the_best_and_counts_all_trials(digits):
    config = FitConfig(lr=(1e-7, 0.01), weight_decay=(0.0,), batch_size=20, max_steps=40,
                       patience=50, eval_every=5)  # fmt: skip
    report = make("Independent", config).learn(digits[0])
    assert report.lr == 0.01
    single = FitConfig(**{**vars(config), "lr": (0.01,)})
    assert report.macs == 2 * make("Independent", single).learn(digits[0]).macs


def test_nan_losses_stop_with_words(digits):
    config = FitConfig(lr=(1e30,), weight_decay=(0.0,), batch_size=20, max_steps=40, eval_every=5)
    with pytest.raises(FloatingPointError, match="smaller learning rates"):
        make("Independent", config).learn(digits[0])


def test_tasks_out_of_order_are_refused(digits, quick):
    with pytest.raises(ValueError, match="task 0 is next"):
        make("Finetune", quick).learn(digits[1])
    with pytest.raises(ValueError, match="wants"):
        make_learner("Finetune", mlp((3, 9, 9), 4), quick).learn(digits[0])
    with pytest.raises(ValueError, match="unknown"):
        make("GEM", quick)


def test_a_stream_resumes_between_tasks(digits, quick, tmp_path):
    whole = run_stream(make("MNTDP-D", quick), digits, beta=1)
    part = make("MNTDP-D", quick)
    halved = type(digits)("pairs", digits.specs, digits.source, augment=False)
    file = tmp_path / "run.pt"

    class Stop(Exception):
        pass

    original = part.learn

    def learn(task, **kwargs):
        if task.id == 2:
            raise Stop
        return original(task, **kwargs)

    part.learn = learn
    with pytest.raises(Stop):
        run_stream(part, halved, beta=1, checkpoint=file)
    resumed = run_stream(make("MNTDP-D", quick), digits, beta=1, checkpoint=file)
    assert resumed.rows == whole.rows and resumed.curves == whole.curves
    assert np.array_equal(resumed.accuracy[-1], whole.accuracy[-1])
    other = type(digits)("other", digits.specs, digits.source, augment=False)
    longer = FitConfig(**{**vars(quick), "max_steps": 13})
    for learner, stream in (
        (make("MNTDP-D", quick), other),
        (make("MNTDP-D", quick, seed=1), digits),
        (make("MNTDP-D", longer), digits),
    ):
        with pytest.raises(ValueError, match="is .*, not "):
            run_stream(learner, stream, beta=1, checkpoint=file)
    for name in ("MNTDP-D (k=all)", "MNTDP-S", "PNN", "HAT", "DEN"):
        with pytest.raises(ValueError, match="learner is MNTDP-D, not "):
            run_stream(make(name, quick), digits, beta=1, checkpoint=file)
    with pytest.raises(ValueError, match="already learnt 3 tasks"):
        run_stream(resumed.learner, digits, beta=1, checkpoint=file)


def _live(file, name: str, stop_before: int | None = None) -> None:
    """A life in a process of its own, which ends at once before a certain task."""
    one_thread()
    specs = [TaskSpec("digits", pair, 40, 20) for pair in (("0", "1"), ("2", "3"), ("1", "0"))]
    stream = Stream("pairs", specs, Embedded(8, (40, 20, 20)), augment=False)
    config = FitConfig(lr=(0.01,), weight_decay=(0.0,), batch_size=20, max_steps=30, eval_every=6)
    learner = make(name, config)
    original = learner.learn

    def learn(task, **options):
        if task.id == stop_before:
            os._exit(7)
        return original(task, **options)

    if stop_before is not None:
        learner.learn = learn
    run_stream(learner, stream, beta=1, checkpoint=file)


@pytest.mark.parametrize("name", ["MNTDP-D"])
def test_a_library_goes_on_in_another_process_as_if_nothing_had_happened(name, tmp_path):
    processes = multiprocessing.get_context("spawn")
    for stop, code in ((2, 7), (None, 0)):
        process = processes.Process(target=_live, args=(tmp_path / "half.pt", name, stop))
        process.start()
        process.join(120)
        assert process.exitcode == code
        if stop:
            assert load_checkpoint(tmp_path / "half.pt")["learner"]["seen"] == stop
    _live(tmp_path / "whole.pt", name)
    half, whole = (load_checkpoint(tmp_path / f"{n}.pt") for n in ("half", "whole"))
    assert half["rows"] == whole["rows"] and half["curves"] == whole["curves"]
    assert half["learner"]["structure"] == whole["learner"]["structure"]
    for key, weight in whole["learner"]["weights"].items():
        assert torch.equal(half["learner"]["weights"][key], weight), key


@pytest.mark.parametrize("name", LEARNERS)
def test_a_stream_of_one_task_and_tasks_that_were_never_learnt(name, digits, quick):
    learner = make(name, quick)
    x = torch.zeros(2, 3, 8, 8)
    with pytest.raises(ValueError, match="not learnt"):
        learner.predict(x, 0)
    run = run_stream(learner, digits.only(2), beta=1)
    assert run.summary()["F"] == 0 and run.accuracy.shape == (1, 1) and len(run.table) == 1
    for task in (1, -1, 99):
        with pytest.raises(ValueError, match="not learnt"):
            learner.predict(x, task)


def test_transfer_needs_the_same_learner_alone(digits, quick):
    last = run_stream(make("Independent", quick), digits.only(2), beta=None)
    alone = float(last.accuracy[-1, -1])
    run = run_stream(make("Independent", quick), digits, alone=alone, beta=None)
    assert run.summary()["T"] == pytest.approx(run.accuracy[-1, -1] - alone)


def test_strengths_are_chosen_for_the_whole_stream(digits, quick):
    best, table = tune_stream(
        lambda value: make("EWC", quick, strength=value, task_heads=False), digits, [0.0, 100.0]
    )
    assert best == table.loc[table["val_accuracy"].idxmax(), "value"] and len(table) == 2


# ---------------------------------------------------------------- closed forms


def test_fisher_of_a_linear_softmax_model_is_analytic():
    """For logits Wx the Fisher of w_cj is E_x[p_c (1 − p_c) x_j²]."""
    torch.manual_seed(0)
    net, x = nn.Linear(5, 3).double(), torch.randn(50, 5, dtype=torch.float64)
    p = net(x).softmax(1).detach()
    spread = p * (1 - p)
    found = fisher_diagonal(net, x)
    assert torch.allclose(found["weight"], torch.einsum("bc,bj->cj", spread, x**2) / 50)
    assert torch.allclose(found["bias"], spread.mean(0))


def test_the_quadratic_penalty_is_half_f_times_distance_squared():
    one = {"w": torch.tensor([1.0, 2.0])}
    pull = quadratic_penalty(one, {"w": torch.tensor([0.0, 4.0])}, {"w": torch.tensor([3.0, 0.5])})
    assert pull.item() == pytest.approx(0.5 * (3 * 1 + 0.5 * 4))


def test_strong_consolidation_holds_the_shared_weights(digits, quick):
    moved = []
    for strength in (0.0, 1e6):
        learner = make("EWC", quick, strength=strength)
        learner.learn(digits[0])
        start = {n: p.detach().clone() for n, p in learner.protected(0).items()}
        important = {n: f > f.mean() for n, f in learner.fishers[0].items()}
        learner.learn(digits[1])
        now = learner.protected(0)
        moved.append(
            sum(float((now[n].detach() - start[n])[important[n]].abs().sum()) for n in start)
        )
    assert moved[1] < 0.3 * moved[0]


def test_reservoir_keeps_everybody_with_the_same_probability():
    size, offered, rounds = 10, 60, 1000
    seen = torch.zeros(offered)
    generator = torch.Generator().manual_seed(0)
    for _ in range(rounds):
        buffer = Reservoir(size)
        x = torch.arange(offered, dtype=torch.float32).view(-1, 1)
        for part in x.split(17):  # tasks of different sizes
            buffer.offer(part, torch.zeros(len(part), dtype=torch.int64), 0, generator)
        assert len(buffer) == size and buffer.offered == offered
        seen[buffer.x.flatten().long()] += 1
    share = seen / rounds
    error = (size / offered * (1 - size / offered) / rounds) ** 0.5
    assert (share - size / offered).abs().max() < 4.5 * error


@pytest.mark.parametrize("buffer", [Ring, Reservoir])
def test_stores_without_a_place_are_refused(buffer):
    with pytest.raises(ValueError, match="at least 1"):
        buffer(0)


def test_ring_keeps_the_last_of_each_class():
    ring = Ring(2)
    x = torch.arange(8.0).view(-1, 1)
    ring.offer(x, torch.tensor([0, 1, 0, 1, 0, 1, 0, 0]), 0, torch.Generator())
    assert sorted(ring.x.flatten().tolist()) == [3, 5, 6, 7]
    ring.offer(x, torch.tensor([0, 1, 0, 1, 0, 1, 0, 0]), 1, torch.Generator())
    assert len(ring) == 8 and ring.task.tolist() == [0] * 4 + [1] * 4


def test_attention_protects_reserved_weights_exactly(digits, quick):
    learner = make("HAT", quick)
    learner.learn(digits[0])
    learner.reserved = [torch.ones_like(r) for r in learner.reserved]  # everything is taken
    before = [(m.weight.clone(), m.bias.clone()) for m in learner.net.layers]
    learner.learn(digits[1])
    for layer, (w, b) in zip(learner.net.layers, before, strict=True):
        # the first layer reads pixels, which nobody reserves: its rows count alone
        assert torch.equal(layer.weight, w) and torch.equal(layer.bias, b)
    free = make("HAT", quick)
    free.learn(digits[0])
    free.reserved = [torch.zeros_like(r) for r in free.reserved]
    start = free.net.layers[1].weight.clone()
    free.learn(digits[1])
    assert not torch.equal(free.net.layers[1].weight, start)


def test_attention_needs_one_layer_per_block():
    from nas_core.continual import resnet

    with pytest.raises(ValueError, match="exactly one"):
        make_learner("HAT", resnet(4, 16))
    with pytest.raises(ValueError, match="perceptrons"):
        make_learner("RCL", resnet(4, 16))


def test_growing_a_perceptron_keeps_old_predictions():
    torch.manual_seed(0)
    net = GrowingMLP(6, [4, 3])
    net.add_head(2)
    x = torch.randn(7, 6)
    before = net(x, 0)
    net.grow([2, 5])
    net.add_head(2)
    assert torch.allclose(net(x, 0), before, atol=1e-6)
    assert net.widths == [6, 6, 8] and net.heads[1].linear.in_features == 8
    assert [tuple(m.weight.shape) for m in net.layers] == [(6, 6), (8, 6)]
    assert (net.layers[1].weight[:3, 4:] == 0).all()  # old units do not read new ones


def test_splitting_drifted_units_restores_the_old_task(digits, quick):
    learner = make("DEN", quick, drift=0.0, target=0.0)
    learner.learn(digits[0])
    x = digits[0].test.inputs(digits[0].test.x)
    before = learner.predict(x, 0)
    report = learner.learn(digits[1])
    assert "split" in report.choice
    assert torch.allclose(learner.predict(x, 0), before, atol=1e-5)


# ---------------------------------------------------------------- what a saved run is made of


@pytest.mark.parametrize(
    ("name", "options", "other", "words"),
    [
        ("EWC", {"strength": 0.0}, {"strength": 1e9}, "strength is 0.0, not 1000000000.0"),
        ("Online EWC", {"decay": 1.0}, {"decay": 0.5}, "decay is 1.0, not 0.5"),
        ("ER", {"buffer": Ring(2)}, {"buffer": Ring(3)}, r"buffer is Ring\(2\), not Ring\(3\)"),
        ("HAT", {"sparsity": 0.1}, {"sparsity": 0.2}, "sparsity is 0.1, not 0.2"),
        ("MNTDP-S", {"start": "paths"}, {"start": "choices"}, "start is paths, not choices"),
        ("MNTDP-D", {"prior": "knn"}, {"whole_paths": False}, "whole_paths is True, not False"),
    ],
)
def test_a_run_of_other_options_is_refused_with_both_values(
    name, options, other, words, digits, quick, tmp_path
):
    file = tmp_path / "run.pt"
    stream = digits.keep(0, 1)
    run_stream(make(name, quick, **options), stream, beta=None, checkpoint=file)
    with pytest.raises(ValueError, match=words):
        run_stream(make(name, quick, **other), stream, beta=None, checkpoint=file)
    with pytest.raises(ValueError, match=words):
        make(name, quick, **other).load_state_dict(load_checkpoint(file)["learner"])
    again = run_stream(make(name, quick, **options), stream, beta=None, checkpoint=file)
    assert [row["task"] for row in again.rows] == [1, 2]


@pytest.mark.parametrize("name", LEARNERS)
def test_every_option_of_a_learner_is_part_of_its_identity(name):
    """So that nobody has to remember to add one."""
    import inspect

    learner = make(name, FitConfig())
    options = set(inspect.signature(type(learner)).parameters) - {"backbone", "config", "seed"}
    assert options <= set(learner.identity())
    plain = (str, int, float, list, type(None))
    assert all(isinstance(v, plain) for v in learner.identity().values())


def test_other_backbones_of_the_same_name_are_refused(digits, quick):
    state = make("Independent", quick).state_dict()
    deeper = make_learner("Independent", mlp((3, 8, 8), 12, depth=3), quick)
    with pytest.raises(ValueError, match="modules is .*2316, 156, 130.*, not .*156, 156, 130"):
        deeper.load_state_dict(state)


@pytest.mark.parametrize("damage", ["accuracy", "rows", "run"])
def test_a_checkpoint_that_does_not_fit_is_refused_and_not_stretched(
    damage, digits, quick, tmp_path
):
    file = tmp_path / "run.pt"
    whole = run_stream(make("Finetune", quick), digits, beta=None, checkpoint=file)
    state = load_checkpoint(file)
    if damage == "accuracy":  # two numbers would fill all rows of a matrix
        state["accuracy"] = torch.tensor([0.5, 0.5, 0.5])
    elif damage == "rows":
        state["rows"] = state["rows"][:2]
    else:
        del state["run"]
    save_atomic(state, file)
    words = {"accuracy": r"accuracies \[3\]", "rows": r"\[2, 3, 3\]", "run": "stream is missing"}
    with pytest.raises(ValueError, match=words[damage]):
        run_stream(make("Finetune", quick), digits, beta=None, checkpoint=file)
    assert len(whole.rows) == 3


def test_the_grid_gives_the_same_in_several_processes(digits, quick):
    grid = replace(quick, lr=(0.01, 0.003))
    runs = [
        run_stream(make("MNTDP-D", c), digits.keep(0, 1), beta=None).rows
        for c in (grid, replace(grid, processes=2))
    ]
    assert runs[0] == runs[1]
