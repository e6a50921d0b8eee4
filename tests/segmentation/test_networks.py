"""Parts and networks of the recurrent U-Net against their equations and printed sizes."""

from itertools import islice, pairwise

import pytest
import torch
from torch import nn

from nas_core.segmentation import (
    BASELINES,
    ConvGRU,
    GatedUnit,
    block,
    count_macs,
    segmenter,
)
from nas_core.supernet import count_params
from nas_core.training import one_thread

one_thread()

NAMES = (*BASELINES, "DRU(0)", "DRU(3)", "DRU(4)", "SRU(0)", "SRU(3)", "SRU(4)")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize(
    ("name", "single", "double"),
    [("DRU(4)", ".352", ".784"), ("SRU(4)", ".315", ".709"), ("U-Net-G", ".241", ".487")],
)
def test_parameters_in_millions_are_the_printed_ones(name, single, double):
    for convs, printed in ((1, single), (2, double)):
        count = count_params(segmenter(name, 3, 2, convs=convs))
        assert f"{count / 1e6:.3f}"[1:] == printed, count


def test_parameters_of_the_u_net_add_up_by_hand():
    widths = [3, 8, 16, 32, 64, 128]
    encoder = sum(9 * a * b + b + 2 * b for a, b in pairwise(widths))
    decoder = sum(4 * 2 * c * c + c + 9 * 2 * c * c + c + 2 * c for c in widths[1:-1])
    assert count_params(segmenter("U-Net-G", 3, 2)) == encoder + decoder + 8 * 2 + 2 == 240_818
    # the mask adds two input channels to the first convolution; f_r is 64 → 64 channels
    assert count_params(segmenter("Rec-Simple", 3, 2)) == 240_818 + 9 * 2 * 8
    dual, single = (count_params(segmenter(f"{kind}(4)", 3, 2)) for kind in ("DRU", "SRU"))
    assert dual - single == 9 * 64 * 64 + 3 * 64


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("convs", [1, 2])
def test_every_network_gives_the_logits_of_every_iteration(name, convs):
    net = segmenter(name, 1, 3, channels=4, convs=convs)
    steps = 1 if name.startswith("U-Net") else 3
    x = torch.rand(2, 1, 32, 48)
    assert net(x).shape == (steps, 2, 3, 32, 48)
    assert net(x, 1).shape == (1, 2, 3, 32, 48)
    net.eval()
    first, *_ = logits = net(x)
    assert torch.equal(first, next(net.refine(x)))
    assert steps == 1 or not torch.allclose(logits[1], logits[0])
    logits[-1].sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize("unit", ["DRU", "SRU"])
@pytest.mark.parametrize(("level", "hidden"), [(0, 4), (3, 32), (4, 64)])
def test_the_unit_stands_at_its_level(unit, level, hidden):
    net = segmenter(f"{unit}({level})", 1, 2, channels=4)
    seen = []
    net.body.centre.register_forward_hook(lambda module, given, out: seen.append((given, out)))
    net(torch.rand(1, 1, 32, 32), 2)
    (e, none), out = seen[0]
    side = 32 // 2**level
    assert none is None and out.shape == (1, hidden, side, side)
    assert e.shape == (1, (3 if level == 0 else hidden // 2), side, side)  # 3: image and mask
    assert torch.equal(seen[1][0][1], out)  # h_1 is what the second iteration starts from


def sigmoid(x):
    return 1 / (1 + (-x).exp())


@pytest.mark.parametrize("dual", [True, False])
def test_gates_against_the_equations(dual):
    unit = GatedUnit(3, (4,), block, dual=dual)
    e, h = torch.randn(2, 3, 5, 5), torch.randn(2, 4, 5, 5)

    def f(net, x):  # convolution and group norm, written by hand
        conv, norm = net.centre
        y = nn.functional.conv2d(x, conv.weight, conv.bias, padding=1)
        groups = y.view(2, norm.num_groups, -1)
        mean, var = groups.mean(2, keepdim=True), groups.var(2, unbiased=False, keepdim=True)
        return ((groups - mean) / (var + norm.eps).sqrt()).view_as(y)

    z = sigmoid(f(unit.f_z, e))
    r = sigmoid(f(unit.f_r, e)) if dual else 1
    candidate = torch.tanh(f(unit.f_h, r * e))
    assert torch.allclose(unit(e, h), z * h + (1 - z) * candidate, atol=1e-5)
    assert torch.allclose(unit(e), z + (1 - z) * candidate, atol=1e-5)  # h_0 is one everywhere


class Fixed(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, x):
        return torch.full((len(x), 4, 5, 5), self.value)


def test_z_keeps_or_replaces_the_state():
    unit = GatedUnit(4, (4,), block, dual=True)
    e, h = torch.randn(2, 4, 5, 5), torch.randn(2, 4, 5, 5)
    unit.f_z = Fixed(100.0)
    assert torch.equal(unit(e, h), h)
    unit.f_z = Fixed(-100.0)
    assert torch.allclose(unit(e, h), unit.f_h(unit.f_r(e).sigmoid() * e).tanh())
    unit.f_r = Fixed(-100.0)  # a closed reset gate hides e
    assert torch.allclose(unit(e, h), unit.f_h(torch.zeros_like(e)).tanh())


def test_gates_reach_both_ends():
    """With the block's ReLU before the sigmoid, no gate would be below ½."""
    unit = GatedUnit(8, (16, 32), block, dual=True)
    e = torch.randn(4, 8, 8, 8)
    for net in (unit.f_z, unit.f_r):
        gate = net(e).sigmoid()
        assert gate.min() < 0.2 and gate.max() > 0.8
    assert unit.f_h(e).tanh().min() < -0.5


def test_the_gru_against_its_equations():
    unit = ConvGRU(3, 4, block)
    e, h = torch.randn(2, 3, 5, 5), torch.randn(2, 4, 5, 5)
    both = torch.cat([e, h], 1)
    z, r = sigmoid(unit.f_z(both)), sigmoid(unit.f_r(both))
    candidate = torch.tanh(unit.f_h(torch.cat([e, r * h], 1)))
    assert torch.allclose(unit(e, h), z * h + (1 - z) * candidate, atol=1e-6)
    assert torch.equal(unit(e), unit(e, torch.zeros_like(h)))


def test_one_iteration_of_rec_simple_is_its_u_net():
    simple, plain = segmenter("Rec-Simple", 3, 2).eval(), segmenter("U-Net-G", 3, 2).eval()
    weights = simple.state_dict()
    name = "body.down.0.0.weight"
    assert weights[name].shape[1] == 5
    weights[name] = weights[name][:, :3]  # of the image alone
    plain.load_state_dict(weights)
    x = torch.rand(2, 3, 32, 32)
    assert torch.allclose(simple(x, 1), plain(x), atol=1e-5)


def test_the_mask_is_fed_back_as_raw_logits():
    net = segmenter("Rec-Simple", 1, 2, channels=4).eval()
    x = torch.rand(2, 1, 16, 16)
    first, second, third = net(x)
    for last, following in ((torch.zeros_like(first), first), (first, second), (second, third)):
        assert torch.allclose(net.head(net.body(torch.cat([x, last], 1))), following, atol=1e-5)


@pytest.mark.parametrize("name", ["Rec-Last", "Rec-Middle", "DRU(4)"])
def test_without_a_mask_the_encoder_runs_once(name):
    net = segmenter(name, 1, 2, channels=4, mask=False).eval()
    runs = []
    part = net.stem if name == "Rec-Last" else net.body.down[0]
    part.register_forward_hook(lambda *_: runs.append(1))
    logits = net(torch.rand(1, 1, 16, 16), 4)
    assert len(runs) == 1 and not torch.allclose(logits[0], logits[3])


def test_iterations_are_computed_on_demand():
    net = segmenter("DRU(4)", 1, 2, channels=4).eval()
    runs = []
    net.head.register_forward_hook(lambda *_: runs.append(1))
    x = torch.rand(1, 1, 16, 16)
    two = list(islice(net.refine(x), 2))
    assert len(runs) == 2 and torch.equal(torch.stack(two), net(x, 5)[:2])


def test_multiply_adds():
    net = segmenter("U-Net-G", 3, 2)
    encoder = [(3, 8, 48), (8, 16, 24), (16, 32, 12), (32, 64, 6), (64, 128, 3)]
    macs = sum(9 * a * b * side**2 for a, b, side in encoder)
    # transposed 2×2: each output pixel takes one of the four taps; then a 3×3 on both halves
    macs += sum((2 * c * c + 9 * 2 * c * c) * side**2 for c, _, side in ((8, 0, 48), (16, 0, 24)))
    macs += sum((2 * c * c + 9 * 2 * c * c) * side**2 for c, side in ((32, 12), (64, 6)))
    assert count_macs(net, 48, 48) == macs + 8 * 2 * 48**2
    simple = segmenter("Rec-Simple", 3, 2)
    assert count_macs(simple, 48, 48, 3) == 3 * count_macs(simple, 48, 48, 1)
    assert simple.training


def test_norms():
    kinds = {type(m) for m in segmenter("U-Net-B", 3, 2).modules()}
    assert nn.BatchNorm2d in kinds and nn.GroupNorm not in kinds
    groups = {
        m.num_groups for m in segmenter("U-Net-G", 3, 2).modules() if hasattr(m, "num_groups")
    }
    assert groups == {8}
    # 22 input channels of DRU(0) on 19 classes: no 8 groups; the largest number that divides
    assert segmenter("DRU(0)", 3, 19).body.centre.f_r.merge[0][1].num_groups == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"unit": "lstm"}, "unit is 'lstm'"),
        ({"level": 5}, "level is 5"),
        ({"convs": 3}, "convs is 3"),
        ({"norm": "layer"}, "norm is 'layer'"),
        ({"channels": 0}, "channels 0"),
    ],
)
def test_impossible_networks_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        segmenter("DRU(4)", 3, 2, **options)


def test_clear_errors():
    with pytest.raises(ValueError, match="classes 1"):
        segmenter("U-Net-G", 3, 1)
    with pytest.raises(ValueError, match="unknown network 'U-Net'; choose from U-Net-B"):
        segmenter("U-Net", 3, 2)
    net = segmenter("DRU(4)", 3, 2)
    with pytest.raises(ValueError, match=r"\[1, 3, 40, 48\]; .* divisible by 16"):
        net(torch.rand(1, 3, 40, 48))
    with pytest.raises(ValueError, match=r"\[1, 1, 48, 48\]; it must be \[B, 3"):
        net(torch.rand(1, 1, 48, 48))
    with pytest.raises(ValueError, match="iterations is 0"):
        net(torch.rand(1, 3, 16, 16), 0)
    with pytest.raises(ValueError, match="plain U-Net remembers nothing"):
        segmenter("U-Net-G", 3, 2)(torch.rand(1, 3, 16, 16), 2)
