"""Exact multiply-adds of thesis section 4.4 and of the published static models."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from nas_core.adaptive import DSCNN, BCResNet, as_trunk
from nas_core.adaptive.baselines import _Broadcast
from nas_core.spaces.keyword_cnn import keyword_cnn
from nas_core.supernet import count_params

PER_LAYER = {
    "conv1": 27_709_440, "conv2": 95_682_560, "lin1": 1_196_032, "lin2": 4_096,
    "shortcut input": 517_120, "shortcut conv1": 7_389_184, "shortcut conv2": 4_784_128,
    "classifier": 1_536,
}  # fmt: skip


def test_figures_of_the_thesis():
    full, base = keyword_cnn(), keyword_cnn(shortcuts=False)
    assert {e.name: e.macs for e in full.graph.edges} == PER_LAYER
    assert int(base.graph.macs.sum()) == 124_593_664
    assert int(full.graph.macs.sum()) == 137_284_096
    cheapest = full.graph.macs[[full.graph.index(n) for n in ("shortcut input", "classifier")]]
    assert int(cheapest.sum()) == 518_656
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        full(torch.zeros(1, 1, 101, 40))
    assert counter.get_total_flops() == 2 * 137_284_096


def test_base_network_written_by_hand():
    torch.manual_seed(0)
    net = keyword_cnn(shortcuts=False, width=4)
    modules = {e.name: m for e, m in zip(net.graph.edges, net.edge_modules, strict=True)}
    x = torch.randn(2, 1, 101, 40)
    h = torch.relu(modules["conv1"][0](x))
    h = torch.relu(modules["conv2"][0](nn.functional.max_pool2d(h, (1, 3))))
    h = torch.relu(modules["lin2"][0](modules["lin1"][1](h.flatten(1))))
    torch.testing.assert_close(net(x), modules["classifier"](h))


def test_shortcuts_add_to_the_features():
    net = keyword_cnn(width=4, head=False)
    x = torch.randn(3, 1, 101, 40)
    parts = []
    for name in ("shortcut input", "shortcut conv1", "shortcut conv2", "lin2"):
        mask = torch.ones(net.num_edges, dtype=torch.bool)
        for other in ("shortcut input", "shortcut conv1", "shortcut conv2", "lin2"):
            mask[net.graph.index(other)] = other == name
        parts.append(net(x, mask))
    torch.testing.assert_close(sum(parts), net(x))


def test_impossible_sizes_say_what_does_not_fit():
    with pytest.raises(ValueError, match="20 frames"):
        keyword_cnn(input_shape=(1, 20, 40))


def test_ds_cnn_has_the_published_size():
    trunk = as_trunk(DSCNN())
    classifier = nn.Linear(64, 12)
    norms = sum(m.num_features for m in trunk.modules() if isinstance(m, nn.BatchNorm2d))
    folded = count_params(trunk) - 2 * norms + norms + count_params(classifier)
    activations = 2 * 64 * 25 * 5  # input and output of a block, 8 bits each
    assert folded == 22_604 and folded + activations == 38_604  # 38.6 KB
    macs = int(trunk.graph.macs.sum()) + 64 * 12
    assert macs == 2_656_768
    operations = 2 * macs + 9 * 64 * 125  # with one addition per output of a folded norm
    assert round(operations / 1e6, 1) == 5.4


def test_bc_resnet_has_the_published_size():
    trunk = as_trunk(BCResNet())
    classifier = nn.Linear(32, 12)
    assert count_params(trunk) + count_params(classifier) == 9_232  # 9.2 k
    undo = 101 * 40 * 40  # the DCT that the published network does not have to undo
    convolutions = int(trunk.graph.macs.sum()) - undo + 32 * 12
    assert convolutions == 2_482_156
    # The published 3.6 M follow when a norm counts 4 per element and a mean one per number that
    # goes in or comes out, as the counter `thop` has it.
    extra = []

    def count(module, inputs, output):
        if isinstance(module, nn.BatchNorm2d):
            extra.append(4 * output.numel())
        elif isinstance(module, nn.AdaptiveAvgPool2d):
            extra.append(inputs[0].numel() + output.numel())
        else:  # a block averages over its bands
            extra.append(output.numel() + output[:, :, 0].numel())

    trunk.eval()
    with torch.no_grad():
        x = torch.randn(1, 1, 101, 40)
        assert trunk(x).shape == (1, 32)
        for module in list(trunk.modules()):
            if isinstance(module, (nn.BatchNorm2d, nn.AdaptiveAvgPool2d, _Broadcast)):
                module.register_forward_hook(count)
        trunk(x)
    assert round((convolutions + sum(extra)) / 1e6, 1) == 3.6


def test_bc_resnet_hears_log_mel_energies():
    from nas_core.audio import MFCC

    m = MFCC()
    stages = m.stages(0.1 * torch.randn(16_000))
    torch.testing.assert_close(stages.mfcc @ BCResNet(m).undo, stages.log_mel, rtol=0, atol=1e-3)
    few = MFCC(n_mfcc=13)
    smooth = few.stages(0.1 * torch.randn(16_000)).mfcc @ BCResNet(few).undo
    assert smooth.shape[-1] == 40
