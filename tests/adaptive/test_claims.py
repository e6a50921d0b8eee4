"""What makes the claims of chapter 07 testable: the controls do what they are meant to."""

from dataclasses import replace
from functools import cache

import pandas as pd
import pytest
import torch

from nas_core.adaptive import (
    AdaptiveNetwork,
    Controller,
    FixedController,
    SanasConfig,
    cost_by_step,
    returns,
    summarise,
    train,
    window_table,
)  # fmt: skip
from nas_core.adaptive.experiment import Model, build, compare, keyword_problem
from nas_core.adaptive.probe import ProbeStreams, probe_network
from nas_core.audio import MFCC
from nas_core.spaces.keyword_cnn import keyword_cnn


def network(blind: str | None) -> AdaptiveNetwork:
    torch.manual_seed(0)
    trunk = keyword_cnn(
        head=False, width=2, bottleneck=4, features=8, conv1=(6, 6), conv2=(5, 3),
        input_shape=(1, 26, 20),
    )  # fmt: skip
    return AdaptiveNetwork(trunk, 3, Controller(8, 7, hidden=8, blind=blind)).eval()


def gates(model: AdaptiveNetwork, x: torch.Tensor) -> torch.Tensor:
    torch.manual_seed(1)  # the noise of a blind controller, or whose Φ it is fed
    return model.unroll(x, torch.full((4,), 5)).gamma


def test_a_blind_controller_hears_nothing_and_a_seeing_one_does():
    x, other = torch.randn(2, 4, 5, 1, 26, 20, generator=torch.Generator().manual_seed(0))
    assert torch.equal(gates(network("noise"), x), gates(network("noise"), other))
    heard, elsewhere = gates(network(None), x), gates(network(None), other)
    assert torch.equal(heard[:, 0], elsewhere[:, 0])  # z_0 is the same for all streams
    assert (heard[:, 1:] - elsewhere[:, 1:]).abs().max() > 1e-3


def test_a_static_network_costs_the_same_everywhere():
    trunk = network(None).trunk
    model = AdaptiveNetwork(trunk, 3, FixedController(torch.ones(7, dtype=torch.bool)))
    x = torch.randn(4, 5, 1, 26, 20)
    unrolled = model.unroll(x, torch.full((4,), 5))
    assert (model.macs(unrolled.mask) == model.full_macs).all()


def test_whole_sequence_credit_is_noisier_than_credit_per_step():
    rewards = torch.rand(4000, 10, generator=torch.Generator().manual_seed(1))
    spread = {c: returns(rewards, SanasConfig(credit=c))[:, 0].var() for c in ("step", "sequence")}
    assert 8 < spread["sequence"] / spread["step"] < 12


CHANGE = 0.15


@cache
def probe(lam: float, *, blind: str | None = None) -> dict[str, float]:
    """A search on streams with a known best policy; costs as shares of the full network."""
    model = probe_network(blind=blind)
    config = SanasConfig(epochs=8, batch_size=64, lr=0.02, lam=lam, warmup_epochs=1)
    train(model, ProbeStreams.draw(change=CHANGE), None, config, progress=False)
    found = summarise(window_table(model, ProbeStreams.draw(300, change=CHANGE, seed=1)))
    return {k: v / model.full_macs if k.startswith("macs") else v for k, v in found.items()}


def test_the_search_finds_the_policy_that_is_known_to_be_best():
    """Dear after a word, cheap after silence; the step that changes state is not foreseen."""
    model = probe_network()
    (cheap, dear), fixed = model.edge_macs / model.full_macs, model.overhead / model.full_macs
    found = probe(1.0)
    background, words = (fixed + cheap + p * dear for p in (CHANGE, 1 - CHANGE))
    assert found["macs_background"] == pytest.approx(float(background), abs=0.05)
    assert found["macs_words"] == pytest.approx(float(words), abs=0.05)
    assert found["accuracy"] == pytest.approx(1 - CHANGE / 4, abs=0.02)  # half of the missed onsets
    # of a telegraph whose share is 0 or 1, the correlation of one step with the next
    assert found["share_correlation"] == pytest.approx(1 - 2 * CHANGE, abs=0.06)


def test_an_interrupted_search_continues_as_if_nothing_had_happened(tmp_path, monkeypatch):
    streams, config = ProbeStreams.draw(128), SanasConfig(epochs=3, lr=0.02, lam=1.0)
    calls = iter(range(9))

    def interrupting(*args, **options):
        if next(calls) == 1:  # in the second epoch, after its training
            raise KeyboardInterrupt
        return window_table(*args, **options)

    whole, halved = probe_network(), probe_network()
    first = train(whole, streams, streams, config, progress=False)
    with monkeypatch.context() as patch:
        patch.setattr("nas_core.adaptive.training.window_table", interrupting)
        point = tmp_path / "point.pt"
        assert train(halved, streams, streams, config, checkpoint=point, progress=False).interrupted
    again = probe_network(seed=1)
    second = train(again, streams, streams, config, checkpoint=point, progress=False)
    assert second.history.drop(columns="seconds", errors="ignore").equals(
        first.history.drop(columns="seconds", errors="ignore")
    )
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


@pytest.mark.parametrize(
    ("settings", "share"),
    [({"lam": 0.0}, 1.0), ({"lam": 4.0}, 0.15), ({"lam": 1.0, "blind": "noise"}, 1.0)],
)
def test_without_price_or_ears_or_with_too_high_a_price_one_architecture_is_left(settings, share):
    found = probe(**settings)
    assert found["macs_background"] == pytest.approx(found["macs_words"], abs=0.02)
    assert found["macs"] == pytest.approx(share, abs=0.05)


def test_a_controller_fed_other_streams_features_knows_nothing_of_its_own():
    """Changing one stream changes the decisions of another one, and never its own."""
    model = network("shuffled")
    x = torch.randn(4, 5, 1, 26, 20, generator=torch.Generator().manual_seed(0))
    changed = x.clone()
    changed[2, 1:3] += 1
    before, after = gates(model, x), gates(model, changed)
    assert torch.equal(before[:, :2], after[:, :2])
    moved = (before[:, 2] != after[:, 2]).any(1)
    assert moved.sum() == 1 and not moved[2]
    alone = model.unroll(x[:1], torch.tensor([5])).gamma  # nobody to borrow from
    assert torch.equal(alone, model.unroll(changed[:1] + 1, torch.tensor([5])).gamma)
    with pytest.raises(ValueError, match="blind is True"):
        Controller(8, 7, blind=True)


def at_equal_cost(blind: str | None) -> tuple[float, float, float]:
    """A search driven to half of the full cost, sampled: its cost, its accuracy, and how much more
    words cost than silence *at the same step*, which counting steps cannot bring about."""
    model = probe_network(blind=blind)
    config = SanasConfig(epochs=10, lr=0.02, lam=1.0, spend=0.5, warmup_epochs=1)
    train(model, ProbeStreams.draw(change=CHANGE), None, config, progress=False)
    fresh = ProbeStreams.draw(300, change=CHANGE, seed=1)
    table = window_table(model, fresh, generator=torch.Generator().manual_seed(0))
    steps = cost_by_step(table).loc[1:] / model.full_macs
    found = summarise(table)
    gap = float((steps.words - steps.background).mean())
    return found["macs"] / model.full_macs, found["accuracy"], gap


def test_at_equal_cost_only_a_controller_that_hears_separates_words_from_silence():
    cost, accuracy, gap = at_equal_cost(None)
    assert cost == pytest.approx(0.5, abs=0.12) and gap > 0.15
    for blind in ("noise", "shuffled"):
        other_cost, other_accuracy, other_gap = at_equal_cost(blind)
        assert other_cost == pytest.approx(cost, abs=0.05), blind
        assert abs(other_gap) < 0.05 and accuracy > other_accuracy + 0.02, blind


def test_step_zero_is_in_no_mean_of_cost():
    """Its price is that of z_0. Two streams of two windows: 100 at step 0, then 10 and 20."""
    table = pd.DataFrame({"step": [0, 1, 0, 1], "share": [0.0, 0, 0, 1], "leaning": 1.0})
    table["macs"] = [100, 10, 100, 20]
    for column, codes in (("label", [0, 0, 0, 1]), ("prediction", [0, 0, 0, 1])):
        table[column] = pd.Categorical.from_codes(codes, ["bg-noise", "yes"])
    found = summarise(table)
    assert (found["macs"], found["macs_background"], found["macs_words"]) == (15, 10, 20)
    assert cost_by_step(table).loc[1].to_dict() == {"background": 10, "words": 20}
    streams = ProbeStreams.draw(64)
    run = train(probe_network(), streams, streams, SanasConfig(epochs=1, lr=0.02), progress=False)
    row = run.history.iloc[0]
    assert row["macs silence"] == row["macs_background"]


def test_weight_decay_moves_the_network_and_not_the_controller():
    streams, after = ProbeStreams.draw(64), []
    for decay in (0.0, 50.0):
        model = probe_network()
        train(
            model, streams, None, SanasConfig(epochs=1, lr=0.02, weight_decay=decay), progress=False
        )
        after.append(model.state_dict())
    for name, value in after[0].items():
        if name.startswith("controller"):
            assert torch.equal(value, after[1][name]), name
        elif name.endswith("weight"):
            assert not torch.equal(value, after[1][name]), name


def problem_and_poisoned():
    """A small problem, and the same one with noise and shuffled labels as its test streams."""
    problem = keyword_problem(
        keywords=("yes", "no"), speakers=10, sequences=(24, 12, 12),
        mfcc=MFCC(n_fft=960, hop=640, n_mfcc=20),
    )  # fmt: skip
    test, g = problem.testing, torch.Generator().manual_seed(0)
    labels = test.labels.flatten()[torch.randperm(test.labels.numel(), generator=g)]
    noise = torch.randn(test.inner.shape, generator=g)
    poison = replace(test, labels=labels.view_as(test.labels), inner=noise)
    return problem, replace(problem, testing=poison)


def test_nothing_is_chosen_on_the_test_streams():
    """With the test set poisoned, models, histories and validation columns stay the same."""
    config = SanasConfig(epochs=2, batch_size=8, lr=3e-3)
    shape = {"width": 4, "features": 8, "conv1": (6, 6), "conv2": (5, 3), "hidden": 8}
    results = [
        compare(p, [Model("sanas", 0.3)], config, progress=False, **shape)
        for p in problem_and_poisoned()
    ]
    (one, first, run), (two, second, again) = results
    name = one.model[0]
    assert run[name].history.equals(again[name].history)
    for key, value in first[name].state_dict().items():
        assert torch.equal(value, second[name].state_dict()[key]), key
    for column in ("validation_accuracy", "validation_macs"):
        assert one[column].equals(two[column]), column
    assert one.accuracy[0] != two.accuracy[0]


def test_features_of_the_classic_network_stay_alive():
    """A ReLU that is negative everywhere has no gradient: at a high rate units of Φ die."""
    problem, _ = problem_and_poisoned()
    shape = {"width": 8, "features": 8, "conv1": (6, 6), "conv2": (5, 3)}
    x = problem.validation.windows(torch.arange(12))[problem.validation.valid]

    def alive(leak: float | None, seed: int) -> int:
        model = build(Model("base"), problem, leak=leak, seed=seed, **shape)
        config = SanasConfig(epochs=8, batch_size=4, lr=0.02, seed=seed)
        train(model, problem.training, None, config, progress=False)
        inputs = ((x - model.mean) / model.std).requires_grad_()
        units = model.trunk(inputs).sum(0)  # [8]
        slopes = [torch.autograd.grad(u, inputs, retain_graph=True)[0] for u in units]
        return sum(bool(slope.any()) for slope in slopes)

    assert [alive(None, seed) for seed in range(3)] == [8, 8, 8]
    assert min(alive(0.0, seed) for seed in (0, 2)) < 8  # the control: they would die
