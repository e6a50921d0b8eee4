"""Unrolling, its log-probabilities and costs, credit, and the engine: oracles on small nets."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from nas_core.adaptive import (
    DSCNN,
    AdaptiveNetwork,
    BCResNet,
    Controller,
    FixedController,
    SanasConfig,
    StreamingEngine,
    as_trunk,
    objective,
    returns,
    train,
)
from nas_core.adaptive.probe import ProbeStreams, probe_network
from nas_core.audio import MFCC
from nas_core.spaces.keyword_cnn import keyword_cnn
from nas_core.supernet import SuperNetwork
from nas_core.training import MovingAverage

SMALL = MFCC(n_fft=960, hop=640, n_mfcc=20)
CLASSES = ("bg-noise", "unknown", "yes", "no")


def network(controller=None, seed=0, **settings) -> AdaptiveNetwork:
    torch.manual_seed(seed)
    trunk = keyword_cnn(
        head=False, width=4, bottleneck=8, features=16, conv1=(6, 6), conv2=(5, 3),
        input_shape=(1, *SMALL.shape), **settings,
    )  # fmt: skip
    return AdaptiveNetwork(
        trunk, len(CLASSES), controller or Controller(16, trunk.num_edges, hidden=8, bias=0.0)
    )


def batch(sequences=5, steps=4, seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(sequences, steps, 1, *SMALL.shape, generator=g)
    return x, torch.tensor([4, 1, 3, 2, 4][:sequences])


def test_macs_of_controller_and_step_against_the_counter():
    model = network()
    x, _ = batch(1)
    for bits in ([1] * 7, [0, 0, 0, 0, 1, 0, 0], [1, 1, 0, 0, 1, 0, 1]):
        mask = torch.tensor(bits, dtype=torch.bool)
        state = model.controller.start(1)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model.classifier(model.trunk(x[:, 0], mask))
            model.controller.logits(state)
            # nn.GRUCell is not known to the counter; its two matrix products are these.
            torch.zeros(1, 16) @ model.controller.recurrent.weight_ih.T
            state @ model.controller.recurrent.weight_hh.T
        assert counter.get_total_flops() == 2 * int(model.macs(mask))
    assert Controller(128, 7).macs == 3 * 100 * 228 + 700
    assert FixedController(torch.ones(7, dtype=torch.bool)).macs == 0


def test_unrolling_equals_a_loop_over_single_examples():
    model = network().eval()
    x, length = batch()
    generator = torch.Generator().manual_seed(3)
    unrolled = model.unroll(x, length, generator=generator)
    draws = torch.Generator().manual_seed(3)
    draw = [torch.rand(5, 7, generator=draws) for _ in range(4)]
    edges = {e.name: i for i, e in enumerate(model.trunk.graph.edges)}
    seen = set()
    for b in range(5):
        z = model.controller.initial.unsqueeze(0)
        for t in range(int(length[b])):
            gamma = torch.sigmoid(model.controller.gates(z))[0]
            wanted = draw[t][b] < gamma
            on = {name: bool(wanted[i]) for name, i in edges.items()}
            live = {"input": True, "conv1": on["conv1"]}
            live["conv2"] = live["conv1"] and on["conv2"]
            live["lin1"] = live["conv2"] and on["lin1"]
            log_p = 0.0
            for e in model.trunk.graph.edges:  # drawn where the source is connected
                if live[e.source]:
                    p = gamma[edges[e.name]]
                    log_p = log_p + torch.log(p if on[e.name] else 1 - p)
            mask = wanted & torch.tensor([live[e.source] for e in model.trunk.graph.edges])
            phi = model.trunk(x[b : b + 1, t], mask)
            torch.testing.assert_close(unrolled.logits[b, t], model.classifier(phi)[0])
            torch.testing.assert_close(unrolled.log_prob[b, t], log_p)
            torch.testing.assert_close(unrolled.gamma[b, t], gamma.detach())
            assert torch.equal(unrolled.mask[b, t], model.trunk.graph.reachable(mask))
            seen.add(tuple(unrolled.mask[b, t].tolist()))
            z = model.controller.recurrent(phi, z)
    assert len(seen) > 5


def test_padding_is_never_computed_and_changes_nothing():
    model = network().eval()
    x, length = batch()
    noisy = x.clone()
    for b, n in enumerate(length):
        noisy[b, n:] = float("nan")
    a, b = (model.unroll(v, length, generator=torch.Generator().manual_seed(1)) for v in (x, noisy))
    for first, second in zip(a, b, strict=True):
        assert torch.equal(first, second)
    alone = [model.unroll(x[1:2, :n], length[1:2]) for n in (1, 4)]  # a batch of one, one step
    assert torch.equal(alone[0].logits[:, 0], alone[1].logits[:, 0])
    assert alone[1].logits.shape == (1, 4, 4) and not alone[1].logits[:, 1:].any()
    padding = torch.arange(4) >= length.unsqueeze(1)
    assert not a.mask[padding].any() and not a.log_prob[padding].any()
    loss, _ = objective(
        a, torch.zeros(5, 4, dtype=torch.long), length, model.macs(a.mask) / model.full_macs,
        config=SanasConfig(), baseline=MovingAverage(0.9),
    )  # fmt: skip
    loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_modules_see_only_the_rows_that_chose_them():
    model = network().eval()
    x, length = batch()
    rows = {}
    for e, module in zip(model.trunk.graph.edges, model.trunk.edge_modules, strict=True):
        rows[e.name] = 0

        def count(_, inputs, name=e.name):
            rows[name] += len(inputs[0])

        module.register_forward_pre_hook(count)
    unrolled = model.unroll(x, length, generator=torch.Generator().manual_seed(2))
    for e, edge in enumerate(model.trunk.graph.edges):
        assert rows[edge.name] == int(unrolled.mask[:, :, e].sum())


def test_fixed_architecture_is_the_same_code():
    mask = torch.tensor([1, 1, 0, 0, 1, 0, 1], dtype=torch.bool)
    model = network(FixedController(mask)).eval()
    x, length = batch()
    unrolled = model.unroll(x, length)
    valid = torch.arange(4) < length.unsqueeze(1)
    expected = model.classifier(model.trunk(x[valid], mask))
    torch.testing.assert_close(unrolled.logits[valid], expected)
    assert (unrolled.mask[valid] == mask).all() and not unrolled.logits[~valid].any()
    step, _ = model(x[:, 0], model.controller.start(5))
    torch.testing.assert_close(step.logits, unrolled.logits[:, 0])


def test_the_architecture_is_chosen_before_the_window_is_heard():
    model = network().eval()
    x, length = batch()
    length = torch.full((5,), 4)
    other = x.clone()
    other[:, 2] = torch.randn_like(other[:, 2]) * 3
    a, b = model.unroll(x, length), model.unroll(other, length)
    assert torch.equal(a.gamma[:, :3], b.gamma[:, :3])
    assert not torch.equal(a.gamma[:, 3], b.gamma[:, 3])


def test_returns_by_hand():
    rewards = torch.tensor([[1.0, 2.0, 4.0], [3.0, 5.0, 0.0]])
    step = returns(rewards, SanasConfig(credit="step"))
    assert torch.equal(step, rewards)
    half = returns(rewards, SanasConfig(discount=0.5))
    assert half.tolist() == [[3.0, 4.0, 4.0], [5.5, 5.0, 0.0]]
    whole = returns(rewards, SanasConfig(credit="sequence"))
    assert whole.tolist() == [[7.0] * 3, [8.0] * 3]


def test_gradient_of_the_controller_against_enumeration():
    """E over all architectures of two steps, differentiated exactly, against the estimator."""
    torch.manual_seed(0)
    trunk = SuperNetwork(
        [("i", "f", nn.Linear(3, 2)), ("i", "f", nn.Linear(3, 2))], "i", "f", input_shape=(3,)
    )
    model = AdaptiveNetwork(trunk, 2, Controller(2, 2, hidden=2, bias=0.3)).double()
    nn.init.normal_(model.controller.gates.weight)
    x, y = torch.randn(1, 2, 3, dtype=torch.float64), torch.tensor([[0, 1]])
    lam = 0.7
    parameters = [model.controller.gates.bias, model.controller.gates.weight]
    masks = torch.tensor(list(itertools.product([0, 1], repeat=2)), dtype=torch.float64)

    def run(first, second):
        state, log_p, reward = model.controller.start(1), [], []
        for t, mask in enumerate((first, second)):
            logits = model.controller.logits(state)
            p = torch.distributions.Bernoulli(logits=logits).log_prob(mask).sum()
            phi = trunk(x[:, t], mask.bool())
            state = model.controller.step(phi.detach(), state)
            delta = nn.functional.cross_entropy(model.classifier(phi), y[:, t])
            cost = model.macs(mask.bool()) / model.full_macs
            log_p.append(p)
            reward.append((delta + lam * cost).detach())
        return log_p, reward

    exact = torch.tensor(0.0, dtype=torch.float64)
    estimate = torch.tensor(0.0, dtype=torch.float64)
    for first, second in itertools.product(masks, masks):
        log_p, reward = run(first, second)
        probability = (log_p[0] + log_p[1]).exp()
        exact = exact + probability * (reward[0] + reward[1])
        gain = returns(torch.stack(reward).view(1, 2), SanasConfig(credit="sequence"))[0]
        estimate = estimate + probability.detach() * (log_p[0] * gain[0] + log_p[1] * gain[1])
    for a, b in zip(
        torch.autograd.grad(exact, parameters, retain_graph=True),
        torch.autograd.grad(estimate, parameters),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_objective_adds_loss_and_score_function_terms():
    model = network()
    x, length = batch()
    unrolled = model.unroll(x, length, generator=torch.Generator().manual_seed(0))
    y = torch.randint(0, 4, (5, 4))
    weights = torch.tensor([0.5, 1.0, 2.0, 1.0])
    cost = model.macs(unrolled.mask) / model.full_macs
    baseline, config = MovingAverage(0.9), SanasConfig(lam=0.3)
    baseline.value = 1.0
    total, parts = objective(
        unrolled, y, length, cost, config=config, weights=weights, baseline=baseline
    )
    delta, score, gains = 0.0, 0.0, []
    steps = [(b, t) for b in range(5) for t in range(int(length[b]))]
    for b, t in steps:
        d = weights[y[b, t]] * nn.functional.cross_entropy(unrolled.logits[b, t], y[b, t])
        delta += d
        gains.append((d + 0.3 * cost[b, t]).item())
    reference = 0.9 * 1.0 + 0.1 * np.mean(gains)  # keeps 0.9 of the old value
    assert baseline.value == pytest.approx(reference, rel=1e-5)
    for (b, t), gain in zip(steps, gains, strict=True):
        score += (gain - reference) * unrolled.log_prob[b, t]
    torch.testing.assert_close(total, (delta + score) / len(steps))
    later = [float(cost[b, t]) for b, t in steps if t > 0]  # step 0 is priced by z_0
    assert parts["cost"].item() == pytest.approx(np.mean(later), rel=1e-5)


def test_engine_equals_unrolling_for_any_packets():
    model = network(seed=4).eval()
    audio = 0.1 * torch.randn(16_000 * 3, generator=torch.Generator().manual_seed(1))
    engine = StreamingEngine(model, SMALL, CLASSES)
    traces = [engine.run(audio, packet) for packet in (320, 1999, 48_000)]
    maps = SMALL.windows(audio)[None, :, None]
    with torch.no_grad():
        unrolled = model.unroll(maps, torch.tensor([maps.shape[1]]))
    expected = torch.softmax(unrolled.logits[0], 1).numpy()
    for trace in traces:
        np.testing.assert_allclose(trace.posteriors, expected, atol=1e-5)
        assert torch.equal(trace.masks, unrolled.mask[0])
        assert (trace.macs == model.macs(unrolled.mask[0]).numpy()).all()
        assert trace.times_ms.tolist() == [200.0 * t for t in range(11)]
        assert trace.real_time_factor > 0 and (trace.ms > 0).all()
        counted = trace.architectures([e.name for e in model.trunk.graph.edges])
        assert sum(counted.values()) == pytest.approx(1)
        for kept, share in counted.items():
            mask = torch.tensor([e.name in kept.split(" + ") for e in model.trunk.graph.edges])
            assert share * 11 == pytest.approx(int((trace.masks == mask).all(1).sum()))
    assert engine.ms_per_decision > 0


@pytest.mark.parametrize("body", [DSCNN, BCResNet])
def test_a_static_network_of_one_edge_streams(body):
    """A mask `[1]` was once reduced to a scalar, because one edge looked like a batch of one."""
    torch.manual_seed(0)
    on = FixedController(torch.ones(1, dtype=torch.bool))
    model = AdaptiveNetwork(as_trunk(body()), len(CLASSES), on)
    audio = 0.1 * torch.randn(16_000 * 2, generator=torch.Generator().manual_seed(1))
    trace = StreamingEngine(model, MFCC(), CLASSES).run(audio)
    with torch.no_grad():
        features = model.trunk(MFCC().windows(audio).unsqueeze(1))
        expected = torch.softmax(model.classifier(features), 1).numpy()
    np.testing.assert_allclose(trace.posteriors, expected, atol=1e-5)
    assert trace.masks.all() and trace.masks.shape == (6, 1)
    assert (trace.macs == model.full_macs).all()
    assert trace.architectures([e.name for e in model.trunk.graph.edges]) == {body.__name__: 1.0}


def test_wrong_input_is_named():
    with pytest.raises(ValueError, match="head=False"):
        AdaptiveNetwork(SuperNetwork([("a", "b", nn.Linear(3, 2))], "a", "b"), 2)
    with pytest.raises(ValueError, match="number of gates is 5; it must be 7"):
        network(Controller(16, 5))
    with pytest.raises(ValueError, match="number of classes is 3; it must be 4"):
        StreamingEngine(network(), SMALL, ("a", "b", "c"))
    with pytest.raises(ValueError, match="blind is 'shuffled'.* one stream"):
        StreamingEngine(network(Controller(16, 7, blind="shuffled")), SMALL, CLASSES)
    with pytest.raises(ValueError, match="recording is 100; it must be 16000 samples"):
        StreamingEngine(network(), SMALL, CLASSES).run(torch.zeros(100))


@pytest.mark.parametrize(
    "wrong",
    [
        {"credit": "none"}, {"discount": 2.0}, {"discount": float("nan")}, {"lam": -1.0},
        {"lam": float("nan")}, {"lam": float("inf")}, {"lr": -1}, {"lr": 0.0}, {"batch_size": 0},
        {"warmup_epochs": 60}, {"epochs": 0}, {"weight_decay": -1e-5}, {"keep": 1.0}, {"spend": 0},
    ],
    ids=str,
)  # fmt: skip
def test_settings_without_sense_are_refused(wrong):
    name = next(iter(wrong))
    named = "warmup_epochs" if name == "epochs" else name
    with pytest.raises(ValueError, match=rf"^{named} is "):
        SanasConfig(**wrong)


def test_numpy_numbers_in_a_configuration_can_be_saved_and_resumed(tmp_path):
    streams = ProbeStreams.draw(64)
    settings = {"epochs": np.int64(2), "lr": np.float64(0.02), "lam": np.float32(0.5)}
    config = SanasConfig(**settings)
    assert {type(v) for v in vars(config).values()} <= {int, float, str, type(None)}
    histories = []
    for _ in range(2):
        model = probe_network()
        run = train(model, streams, streams, config, checkpoint=tmp_path / "p.pt", progress=False)
        histories.append(run.history)
    assert histories[0].equals(histories[1]) and len(histories[0]) == 2
    other = ProbeStreams.draw(64, seed=1)
    with pytest.raises(ValueError, match="data"):
        train(probe_network(), other, streams, config, checkpoint=tmp_path / "p.pt", progress=False)


def test_a_bad_packet_does_not_close_the_gates_for_ever():
    audio = 0.1 * torch.randn(16_000 * 2, generator=torch.Generator().manual_seed(1))
    engine = StreamingEngine(network(seed=4), SMALL, CLASSES)
    expected, made = engine.run(audio), []
    engine.reset()
    for k, packet in enumerate(audio.split(320)):
        if k == 60:
            with pytest.raises(ValueError, match="is nan"):
                engine.push(packet * float("nan"))
        made += engine.push(packet)
    assert torch.equal(torch.stack([d.mask for d in made]), expected.masks)
    assert all(np.isfinite(d.posterior).all() for d in made)
