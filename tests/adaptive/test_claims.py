"""What makes the claims of chapter 07 testable: the controls do what they are meant to."""

import torch

from nas_core.adaptive import AdaptiveNetwork, Controller, FixedController, SanasConfig, returns
from nas_core.spaces.keyword_cnn import keyword_cnn


def network(blind: bool) -> AdaptiveNetwork:
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
    assert torch.equal(gates(network(True), x), gates(network(True), other))
    heard, elsewhere = gates(network(False), x), gates(network(False), other)
    assert torch.equal(heard[:, 0], elsewhere[:, 0])  # z_0 is the same for all streams
    assert (heard[:, 1:] - elsewhere[:, 1:]).abs().max() > 1e-3


def test_a_static_network_costs_the_same_everywhere():
    trunk = network(False).trunk
    model = AdaptiveNetwork(trunk, 3, FixedController(torch.ones(7, dtype=torch.bool)))
    x = torch.randn(4, 5, 1, 26, 20)
    unrolled = model.unroll(x, torch.full((4,), 5))
    assert (model.macs(unrolled.mask) == model.full_macs).all()


def test_whole_sequence_credit_is_noisier_than_credit_per_step():
    rewards = torch.rand(4000, 10, generator=torch.Generator().manual_seed(1))
    spread = {c: returns(rewards, SanasConfig(credit=c))[:, 0].var() for c in ("step", "sequence")}
    assert 8 < spread["sequence"] / spread["step"] < 12
