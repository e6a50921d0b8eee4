"""What makes the claims of chapter 07 testable: the controls do what they are meant to."""

from functools import cache

import pytest
import torch

from nas_core.adaptive import (
    AdaptiveNetwork,
    Controller,
    FixedController,
    SanasConfig,
    returns,
    summarise,
    train,
    window_table,
)  # fmt: skip
from nas_core.adaptive.probe import ProbeStreams, probe_network
from nas_core.spaces.keyword_cnn import keyword_cnn


def network(blind: str | None) -> AdaptiveNetwork:
    torch.manual_seed(0)
    trunk = keyword_cnn(
        head=False, width=2, bottleneck=4, features=8, conv1=(6, 6), conv2=(5, 3),
        input_shape=(1, 26, 20),
    )  # fmt: skip
    return AdaptiveNetwork(trunk, 3, Controller(8, 7, hidden=8, blind=blind)).eval()


def gates(model: AdaptiveNetwork, x: torch.Tensor) -> torch.Tensor:
    torch.manual_seed(1)  # the noise that a blind controller is fed with
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
