"""The ResNet fabric against an independently written ResNet and the printed figures."""

import pytest
import torch
from torch import nn
from torch.nn.functional import relu
from torch.utils.flop_counter import FlopCounterMode

from nas_core import costs
from nas_core.spaces import plain_resnet, resnet_fabric
from nas_core.supernet import count_params

FIGURES = {  # n: (depth, parameters, operations in the thesis' convention)
    3: (20, 272_474, 40_899_200),
    5: (32, 466_906, 69_268_096),
    7: (44, 661_338, 97_636_992),
    9: (56, 855_770, 126_005_888),
    18: (110, 1_730_714, 253_665_920),
}


class BasicBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x):
        out = self.bn2(self.conv2(relu(self.bn1(self.conv1(x)))))
        return relu(out + self.shortcut(x))


class ResNet(nn.Module):
    """He et al. 2016, section 4.2, with projection shortcuts."""

    def __init__(self, n: int, num_classes: int = 10):
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(16)
        blocks, inputs = [], 16
        for outputs in (16, 32, 64):
            for i in range(n):
                stride = 2 if i == 0 and outputs != 16 else 1
                blocks.append(BasicBlock(inputs, outputs, stride))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.linear = nn.Linear(64, num_classes)

    def forward(self, x):
        return self.linear(self.blocks(relu(self.bn(self.conv(x)))).mean((2, 3)))


def copy_weights(resnet: ResNet, fabric) -> None:
    """The k-th block of the plain ResNet becomes the k-th sequential pair of edges."""
    modules = {e.name: m for e, m in zip(fabric.graph.edges, fabric.edge_modules, strict=True)}
    modules["stem"][0].load_state_dict(resnet.conv.state_dict())
    modules["stem"][1].load_state_dict(resnet.bn.state_dict())
    modules["head"][2].load_state_dict(resnet.linear.state_dict())
    n = len(resnet.blocks) // 3
    before = "0.in"
    for k, block in enumerate(resnet.blocks):
        here = f"{k // n}.{k % n}"
        conv = modules[f"{before}→{here} conv"]
        for i, part in ((0, block.conv1), (1, block.bn1), (3, block.conv2), (4, block.bn2)):
            conv[i].load_state_dict(part.state_dict())
        if len(block.shortcut):
            modules[f"{before}→{here} projection"].load_state_dict(block.shortcut.state_dict())
        before = here


@pytest.mark.parametrize("n", FIGURES)
def test_plain_resnets_are_architectures_of_the_fabric(n):
    depth, params, operations = FIGURES[n]
    fabric = resnet_fabric(n)
    arch = plain_resnet(fabric.graph)
    mask = arch.mask.unsqueeze(0)
    assert sum(fabric.graph.edges[e].kind == "conv" for e in arch.kept) * 2 + 2 == depth
    assert arch.params == params == int(costs.memory(fabric)(mask))
    assert int(costs.computation(fabric, "thesis")(mask)) == operations
    resnet = ResNet(n)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        resnet(torch.zeros(1, 3, 32, 32))
    assert arch.macs == counter.get_total_flops() // 2 == int(costs.computation(fabric)(mask))


def test_outputs_equal_those_of_an_independent_resnet():
    torch.manual_seed(0)
    resnet, fabric = ResNet(3), resnet_fabric(3)
    for m in resnet.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.normal_()
            m.running_var.uniform_(0.5, 2)
    copy_weights(resnet, fabric)
    arch, x = plain_resnet(fabric.graph), torch.randn(4, 3, 32, 32)
    resnet.eval(), fabric.eval()
    expected = resnet(x)
    torch.testing.assert_close(fabric(x, arch.mask), expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(arch.extract(fabric)(x), expected, atol=1e-5, rtol=1e-4)
    assert count_params(arch.extract(fabric)) == count_params(resnet)


@pytest.mark.parametrize("n", [3, 5])
def test_blocks_receive_what_the_supplement_says(n):
    """Two jumps into the first and last block of a group, three into every other."""
    graph = resnet_fabric(n).graph
    for group in (1, 2):
        for d in range(n):
            before = f"{group}.{d - 1}" if d else f"{group - 1}.{n - 1}"
            into = {e.source for e in graph.edges if e.target == f"{group}.{d}"}
            assert before in into
            assert len(into - {before}) == (2 if d in (0, n - 1) else 3)


def test_convolutions_and_shortcut_of_a_block_are_separate_edges():
    fabric = resnet_fabric(3).eval()
    arch = plain_resnet(fabric.graph)
    mask = arch.mask.clone()
    mask[fabric.graph.index("0.in→0.0 conv")] = False
    x = torch.randn(2, 3, 32, 32)
    assert not torch.allclose(fabric(x, mask), fabric(x, arch.mask))
    assert costs.computation(fabric)(mask[None]).item() == arch.macs - 2 * 16 * 16 * 9 * 32 * 32


def test_whole_network_count_equals_the_sum_over_edges():
    fabric = resnet_fabric(3)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        fabric.eval()(torch.zeros(1, 3, 32, 32))
    assert counter.get_total_flops() // 2 == int(fabric.graph.macs.sum())


def test_bad_sizes_are_refused():
    with pytest.raises(ValueError, match="blocks_per_group is 1"):
        resnet_fabric(1)
    with pytest.raises(ValueError, match="divisible by 4"):
        resnet_fabric(3, input_shape=(3, 30, 30))
