"""Compression against closed forms."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nas_core.search.compress import distillation_loss, quantise_weights


def _net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 5))


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_quantised_weights_lie_on_the_grid(bits):
    net = _net()
    before = net[0].weight.detach().clone()
    size = quantise_weights(net, bits)
    levels = 2 ** (bits - 1) - 1
    scale = before.abs().flatten(1).amax(1).view(-1, 1, 1, 1) / levels
    steps = net[0].weight.detach() / scale
    torch.testing.assert_close(steps, steps.round(), atol=1e-4, rtol=0)
    assert steps.abs().max() <= levels + 1e-4
    assert ((net[0].weight - before).abs() <= scale / 2 + 1e-7).all()  # nearest step
    weights, other, channels = 72 + 80, 4 + 5 + 8, 4 + 5
    assert size == weights * bits / 8 + 4 * (other + channels)
    with pytest.raises(ValueError, match=r"2…16"):
        quantise_weights(net, 1)


def test_distillation_loss_between_its_two_ends():
    g = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(6, 4, generator=g), torch.randn(6, 4, generator=g)
    y = torch.tensor([0, 1, 2, 3, 0, 1])
    hard = distillation_loss(student, teacher, y, mix=0)
    torch.testing.assert_close(hard, F.cross_entropy(student, y))
    p, q = (teacher / 3).softmax(1), (student / 3).softmax(1)
    soft = 9 * (p * (p.log() - q.log())).sum(1).mean()
    torch.testing.assert_close(distillation_loss(student, teacher, y, mix=1), soft)
    assert distillation_loss(teacher, teacher, y, mix=1).abs() < 1e-6
