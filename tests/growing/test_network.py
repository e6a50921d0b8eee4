"""Cells, internal classifiers, growth events and early exit, against the report's numbers."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nas_core import growing
from nas_core.growing import GrowingNetwork, Plan, pruning
from nas_core.supernet import count_macs
from nas_core.training import TensorData, make_optimizer

REPORT = {"A": Plan(), "B": Plan(reading="B", cells=(3, 3, 2, 1))}
PRINTED = [25_008, 47_872, 45_568, 50_944]  # report section 5.1, weights per block
SMALL = Plan(width=4, cells=(2, 1, 1), classes=3, size=8)


def counts(net):
    parts = [pruning.weights(net, net.block(b)) for b in range(net.blocks)]
    return [sum(w.numel() for w in p.values()) for p in parts]


def small(seed=0, **options):
    torch.manual_seed(seed)
    return GrowingNetwork(Plan(**{**vars(SMALL), **options})).eval()


# ---------------------------------------------------------------- counts


@pytest.mark.parametrize("reading", ["A", "B"])
def test_dense_blocks_have_the_printed_numbers_of_weights_in_both_readings(reading):
    net = GrowingNetwork(REPORT[reading])
    assert counts(net) == PRINTED and sum(PRINTED) == 169_392
    assert len(pruning.weights(net)) == sum(
        len(pruning.weights(net, net.block(b))) for b in range(4)
    )


def test_plain_networks_and_places_of_the_classifiers():
    assert counts(GrowingNetwork(Plan(dense=False))) == [16_816, 16_384, 11_776, 11_776]
    assert sum(counts(GrowingNetwork(replace(REPORT["B"], dense=False)))) == 52_144
    assert Plan().depths == (0.3, 0.6, 0.8, 1.0)
    assert REPORT["B"].depths == pytest.approx((3 / 9, 6 / 9, 8 / 9, 1))
    convolutions = [m for m in GrowingNetwork().modules() if isinstance(m, nn.Conv2d)]
    assert sum(m.kernel_size == (3, 3) for m in convolutions) == 21  # "21-layer" network


def test_a_cell_is_two_convolutions_plus_projection_or_the_newest_maps():
    torch.manual_seed(0)
    x = torch.randn(2, 12, 8, 8)
    for project in (True, False):
        cell = growing.network.Cell(12, 4, project=project).eval()
        hidden = F.relu(cell.first[1](F.conv2d(x, cell.first[0].weight, padding=1)))
        body = cell.second[1](F.conv2d(hidden, cell.second[0].weight, padding=1))
        same = x[:, 8:]
        if project:
            same = cell.shortcut[1](F.conv2d(x, cell.shortcut[0].weight))
        torch.testing.assert_close(cell(x), F.relu(body + same))


def test_classifier_mixes_the_two_poolings():
    torch.manual_seed(0)
    head, x = growing.network.Classifier(2, 5), torch.randn(3, 2, 8, 8)
    a = head.mix.item()
    assert 0 <= a <= 1
    windows = x.unfold(2, 2, 2).unfold(3, 2, 2).flatten(4)  # [3, 2, 4, 4, 4]
    mixed = a * windows.amax(-1) + (1 - a) * windows.mean(-1)
    torch.testing.assert_close(head(x), mixed.flatten(1) @ head.linear.weight.T + head.linear.bias)


def test_every_cell_of_a_dense_network_reads_all_maps_before():
    """The gradient of a late cell's output reaches all earlier maps; in a chain only through."""
    net = small()
    assert net.reads == [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3]]
    assert small(dense=False).reads == [[0], [1], [2], [3]]
    assert small(reading="B").head_reads == [[2], [3], [0, 1, 2, 3, 4]]
    assert net.exits(torch.zeros(5, 3, 8, 8)).shape == (3, 5, 3)
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(net(x), net.exits(x)[-1])


@pytest.mark.parametrize(
    "wrong",
    [{"size": 30}, {"cells": (2, 0)}, {"reading": "C"}, {"reading": "B", "internal": False}],
)
def test_impossible_plans_are_refused(wrong):
    with pytest.raises(ValueError, match="must be|last head"):
        Plan(**wrong)


# ---------------------------------------------------------------- growth


@pytest.mark.parametrize("reading", ["A", "B"])
@pytest.mark.parametrize("dense", [True, False])
def test_growing_leaves_old_weights_and_old_logits_bit_identical(dense, reading):
    torch.manual_seed(0)
    plan = Plan(width=4, cells=(2, 1, 1), classes=3, size=8, dense=dense, reading=reading)
    net, x = GrowingNetwork(plan, blocks=1).eval(), torch.randn(4, 3, 8, 8)
    for blocks in (1, 2, 3):
        assert net.exits(x).shape[0] == blocks
        state = {k: v.clone() for k, v in net.state_dict().items()}
        logits = net.exits(x)
        if blocks == 3:
            with pytest.raises(ValueError, match="all 3 blocks"):
                net.grow()
            break
        new = {id(p) for p in net.grow()}
        assert all(torch.equal(net.state_dict()[k], v) for k, v in state.items())
        assert torch.equal(net.eval().exits(x)[:-1], logits)
        old = {id(p) for k, p in net.named_parameters() if k in state}
        assert new and new.isdisjoint(old)
        assert new | old == {id(p) for p in net.parameters()}
    assert counts(net) == counts(GrowingNetwork(plan))


def test_the_same_head_moves_on_and_loses_its_answer():
    """Section 1.4: the moved head keeps its weights but now sees another function."""
    torch.manual_seed(0)
    plan = Plan(width=4, cells=(2, 1), classes=3, size=8, internal=False)
    net, x = GrowingNetwork(plan, blocks=1).eval(), torch.randn(4, 3, 8, 8)
    head, before = net.classifiers[0].linear.weight.clone(), net(x)
    new = net.grow()
    net.eval()
    assert len(net.classifiers) == 1 and torch.equal(net.classifiers[0].linear.weight, head)
    assert not any(p is net.classifiers[0].linear.weight for p in new)
    assert net.exits(x).shape[0] == 1 and not torch.allclose(net(x), before)
    assert net.block(0) == ["stem", "cells.0", "cells.1"]
    assert "classifiers.0" in net.block(1)


def test_new_blocks_join_the_optimizer_with_the_current_rate_and_old_momentum_stays():
    torch.manual_seed(0)
    net = GrowingNetwork(SMALL, blocks=1)
    optimizer = make_optimizer(net.parameters(), lr=0.1)
    net(torch.randn(4, 3, 8, 8)).square().sum().backward()
    optimizer.step()
    momentum = optimizer.state[net.stem[0].weight]["momentum_buffer"].clone()
    optimizer.add_param_group({"params": net.grow()})
    assert torch.equal(optimizer.state[net.stem[0].weight]["momentum_buffer"], momentum)
    known = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert known == {id(p) for p in net.parameters()}


# ---------------------------------------------------------------- the loss


def test_tau_rises_to_the_depth_as_in_shallow_deep_networks():
    depths = (0.3, 0.6, 0.8)
    for epoch in range(100):
        e = epoch + 1
        expected = [min(d, 0.01 + e * d / 100) for d in depths]
        assert growing.tau(epoch, 100, depths) == pytest.approx(expected)
    assert growing.tau(99, 100, depths) == list(depths)
    ramp = [growing.tau(e, 100, [0.3])[0] for e in range(100)]
    assert ramp == sorted(ramp) and ramp[0] == pytest.approx(0.013)


def test_loss_of_all_exits_by_hand():
    torch.manual_seed(0)
    logits, y = torch.randn(3, 6, 4), torch.tensor([0, 1, 2, 3, 0, 1])
    each = [-one.log_softmax(1)[torch.arange(6), y].mean() for one in logits]
    expected = each[2] + 0.2 * each[0] + 0.7 * each[1]
    torch.testing.assert_close(growing.exits_loss(logits, y, [0.2, 0.7]), expected)
    with pytest.raises(ValueError, match="zip"):
        growing.exits_loss(logits, y, [1, 1, 1])


# ---------------------------------------------------------------- early exit


@torch.no_grad()
def trained_like(seed=0):
    """A network whose classifiers are sure of some examples only, inputs, and a middle q."""
    net = small(seed)
    x = torch.randn(40, 3, 8, 8)
    for head, logits in zip(net.classifiers, net.exits(x), strict=True):
        spread = logits.std(0)  # equally sure at every depth
        head.linear.weight /= spread[:, None]
        head.linear.bias.copy_((head.linear.bias - logits.mean(0)) / spread)
    return net, x, float(net.exits(x).softmax(-1).amax(-1).median())


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("q", [0, 0.5, 0.7, 0.9, 1])
def test_early_exit_answers_like_the_whole_network_read_at_the_exit(q, dense):
    torch.manual_seed(3)
    net = small(3, dense=dense)
    for head in net.classifiers:
        nn.init.normal_(head.linear.weight, std=0.3)
    x = torch.randn(40, 3, 8, 8)
    logits = net.exits(x).detach()
    expected = []  # one example at a time
    for i in range(40):
        at = next((e for e in range(2) if logits[e, i].softmax(0).max() > q), 2)
        expected.append((at, int(logits[at, i].argmax())))
    out = growing.early_exit(net, x, q)
    assert list(zip(out.depth.tolist(), out.predictions.tolist(), strict=True)) == expected
    assert growing.exit_depth(logits, q).tolist() == [depth for depth, _ in expected]
    price = growing.exit_macs(net)
    assert out.macs.tolist() == [price[depth] for depth, _ in expected]


def test_depth_does_not_fall_with_the_threshold():
    net, x, q = trained_like()
    depths = torch.stack([growing.early_exit(net, x, i / 20).depth for i in range(21)])
    assert (depths.diff(dim=0) >= 0).all()
    assert (depths[0] == 0).all() and (depths[-1] == 2).all()
    assert len(set(growing.early_exit(net, x, q).depth.tolist())) == 3  # examples differ
    with pytest.raises(ValueError, match="threshold is 1.5"):
        growing.early_exit(net, x, 1.5)
    with pytest.raises(ValueError, match=r"net\.eval"):
        growing.early_exit(net.train(), x, 0.5)


def test_blocks_run_only_for_examples_that_are_still_inside():
    net, x, q = trained_like()
    seen = []
    for cell in net.cells:
        cell.register_forward_hook(lambda m, args, out: seen.append(len(out)))
    out = growing.early_exit(net, x, q)
    inside = [int((out.depth >= b).sum()) for b in (0, 0, 1, 2)]
    assert seen == inside and inside[0] == 40 > inside[2] > inside[3] > 0
    seen.clear()
    growing.early_exit(net, x, 0)
    assert seen == [40, 40]


def test_overthinking_is_counted_by_hand():
    net, x, _ = trained_like()
    torch.manual_seed(5)
    y = torch.randint(3, (40,))
    data, logits = TensorData(x, y), net.exits(x).detach()
    answers = logits.argmax(-1).tolist()
    over = [any(a[i] == y[i] for a in answers) and answers[-1][i] != y[i] for i in range(40)]
    assert growing.overthinking(logits, y).tolist() == over and sum(over) > 0
    oracle = sum(any(a[i] == y[i] for a in answers) for i in range(40))
    assert oracle == sum(over) + sum(answers[-1][i] == y[i] for i in range(40))
    again, targets = growing.all_exits(net.train(), data, batch_size=16)
    assert net.training and torch.equal(targets, y)
    torch.testing.assert_close(again, logits)


def test_the_curve_is_what_early_exit_does_and_its_control_draws_the_exits():
    net, x, _ = trained_like()
    y = torch.randint(3, (40,), generator=torch.Generator().manual_seed(5))
    logits, macs = net.exits(x).detach(), growing.exit_macs(net)
    right = (logits.argmax(-1) == y).double()
    for row in growing.exit_curve(logits, y, macs, (0.0, 0.4, 0.5, 1.0)):
        gone = growing.early_exit(net, x, row["threshold"])
        assert row["accuracy"] == pytest.approx((gone.predictions == y).double().mean().item())
        assert row["macs"] == pytest.approx(gone.macs.double().mean().item())
        assert row["depth"] == pytest.approx(gone.depth.double().mean().item())
        drawn = [right[:, torch.roll(torch.arange(40), k)].gather(0, gone.depth[None]).mean()
                 for k in range(40)]  # fmt: skip
        assert row["random"] == pytest.approx(torch.stack(drawn).mean().item())  # all shifts


# ---------------------------------------------------------------- multiply-adds


@pytest.mark.parametrize(
    "plan",
    [Plan(), REPORT["B"], Plan(dense=False), Plan(internal=False), Plan(stem_pool=2)],
    ids=["A", "B", "plain", "one head", "pooled"],
)
def test_multiply_adds_are_those_that_pytorch_counts(plan):
    net = GrowingNetwork(plan)
    macs = growing.exit_macs(net)
    assert macs[-1] == count_macs(net, (3, 32, 32))[0]
    assert macs == sorted(macs) and len(macs) == len(net.classifiers)


def test_multiply_adds_of_the_report_networks():
    """Spec section 2.0: about 163 and 47.6 million per image."""
    convolutions = (169_392 - 4 * 2560) * 1024 + 4 * 2560
    assert growing.exit_macs(GrowingNetwork())[-1] == convolutions == 162_981_888
    assert growing.exit_macs(GrowingNetwork(Plan(dense=False)))[-1] == 47_638_528


def test_multiply_adds_of_kept_weights_and_their_fall():
    net = small()
    before, previous = growing.exit_macs(net), math.inf
    parts = pruning.weights(net)
    for ratio in (0.8, 0.5, 0.2, 0.1):
        keep = pruning.keep_count(ratio, sum(w.numel() for w in parts.values()))
        pruning.apply(parts, pruning.keep_best(pruning.magnitude(parts), keep))
        expected = 0
        for name, w in parts.items():
            expected += int((w != 0).sum()) * (1 if "classifiers" in name else 64)
        assert growing.exit_macs(net)[-1] == expected < previous
        previous = expected
    assert previous < before[-1] / 5
