"""What pruning found: live channels by brute force, and a smaller network with equal logits."""

import networkx as nx
import pytest
import torch
from torch import nn

from nas_core.growing import (
    GrowingNetwork,
    Plan,
    connections,
    early_exit,
    exit_macs,
    extract,
    live_channels,
    pruning,
)  # fmt: skip
from nas_core.supernet import count_macs

REPORT = {"A": Plan(), "B": Plan(reading="B", cells=(3, 3, 2, 1))}


def pruned(seed, keep, *, structured=False, **options):
    """A pruned network with lived-in batch norm and biases."""
    torch.manual_seed(seed)
    net = GrowingNetwork(
        Plan(**{"width": 4, "cells": (2, 2, 1), "classes": 3, "size": 8, **options})
    )
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.uniform_(m.weight, 0.5, 1.5)
            nn.init.normal_(m.bias)
            nn.init.normal_(m.running_mean)
            nn.init.uniform_(m.running_var, 0.5, 2)
    parts = pruning.weights(net)
    scores = pruning.random(parts, torch.Generator().manual_seed(seed))
    if structured:
        masks = pruning.keep_filters(scores, keep, dict(net.named_parameters()))
    else:
        masks = pruning.keep_best(scores, int(keep * sum(w.numel() for w in parts.values())))
    pruning.apply(dict(net.named_parameters()), masks)
    return net.eval()


def kill(net, cell):
    """Prune everything that reads a cell of a dense network."""
    width = net.plan.width
    with torch.no_grad():
        for i, other in enumerate(net.cells):
            if cell + 1 in net.reads[i]:
                at = net.reads[i].index(cell + 1) * width
                for layer in (other.first, other.shortcut):
                    if layer is not None:
                        layer[0].weight[:, at : at + width] = 0
        for head, reads in zip(net.classifiers, net.head_reads, strict=True):
            if cell + 1 in reads:
                size = head.linear.in_features // len(reads)
                at = reads.index(cell + 1)
                head.linear.weight[:, at * size : (at + 1) * size] = 0


CASES = [
    {"keep": 0.05}, {"keep": 0.1}, {"keep": 0.3}, {"keep": 1.0},
    {"keep": 0.08, "reading": "B"}, {"keep": 0.1, "dense": False}, {"keep": 0.02, "dense": False},
    {"keep": 0.1, "internal": False}, {"keep": 0.3, "structured": True}, {"keep": 0.01},
    {"keep": 0.1, "size": 16, "stem_pool": 2}, {"keep": 0.0},
]  # fmt: skip


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("case", CASES, ids=str)
def test_extracted_network_has_the_same_logits(case, seed):
    net = pruned(seed, **case)
    if net.plan.dense and net.plan.reading == "A" and seed == 2:
        kill(net, 2)
        kill(net, 0)
    small = extract(net)
    x = torch.randn(5, 3, net.plan.size, net.plan.size)
    torch.testing.assert_close(small.exits(x), net.exits(x), atol=1e-5, rtol=1e-5)
    assert torch.equal(small(x), small.exits(x)[-1]) and not small.training
    # what is counted is what PyTorch counts once the zeros are dense
    shape = (3, net.plan.size, net.plan.size)
    left, full = count_macs(small, shape)[0], count_macs(net, shape)[0]
    assert exit_macs(net)[-1] >= exit_macs(small)[-1] and left <= full
    assert left >= exit_macs(small)[-1]
    if case["keep"] == 1.0 and seed != 2:
        assert left == full == exit_macs(net)[-1]
    if case["keep"] <= 0.05 or case.get("structured"):
        assert left < full
    with pytest.raises(ValueError, match="have been grown"):
        small.grow()
    exits, again = early_exit(net, x, 0.6), early_exit(small, x, 0.6)
    assert torch.equal(exits.depth, again.depth)


@pytest.mark.parametrize("keep", [0.05, 0.15])
@pytest.mark.parametrize("dense", [True, False])
def test_dead_channels_are_those_whose_noise_no_logit_sees(keep, dense):
    """By brute force: disturb one channel of a map and look at all logits."""
    net = pruned(1, keep, dense=dense)
    live, _ = live_channels(net)
    x = torch.randn(8, 3, 8, 8)
    before = net.exits(x)
    for number, module in enumerate([net.stem, *net.cells]):
        for channel in range(4):
            noise = torch.zeros(1, 4, 1, 1)
            noise[:, channel] = 1.0

            def disturb(module, args, out, noise=noise):
                return out + noise * torch.rand_like(out)

            hook = module.register_forward_hook(disturb)
            moved = not torch.equal(net.exits(x), before)
            hook.remove()
            if moved:
                assert live[number, channel]
            elif live[number, channel]:  # alive by its weights, but hidden behind a ReLU
                assert keep < 0.5


def test_a_dead_cell_goes_and_its_weights_never_mattered():
    net = pruned(0, 1.0)
    kill(net, 1 + 1)  # not the end of a block
    live, hidden = live_channels(net)
    assert not live[3].any() and not hidden[2].any() and live[[0, 1, 2, 4, 5]].all()
    x = torch.randn(4, 3, 8, 8)
    before = net.exits(x)
    small = extract(net)
    assert not list(small.cells[2].parameters()) and list(small.cells[1].parameters())
    assert all(3 not in reads for reads in small.reads)
    torch.testing.assert_close(small.exits(x), before, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        for p in net.cells[2].parameters():
            p.normal_()
    assert torch.equal(net.exits(x), before)


def test_unstructured_zeros_save_nothing_and_whole_filters_do():
    spread, whole = pruned(0, 0.5, width=8), pruned(0, 0.5, width=8, structured=True)
    dense = count_macs(spread, (3, 8, 8))[0]
    assert exit_macs(spread)[-1] < 0.6 * dense  # half of the weights are zero …
    assert count_macs(extract(spread), (3, 8, 8))[0] == dense  # … in a network of the old size
    assert count_macs(extract(whole), (3, 8, 8))[0] < 0.6 * dense


# ---------------------------------------------------------------- the graph


@pytest.mark.parametrize("reading", ["A", "B"])
def test_graph_of_the_report_network(reading):
    net = GrowingNetwork(REPORT[reading])
    graph, shares = connections(net)
    nets = graph.to_networkx()
    assert nx.is_directed_acyclic_graph(nets) and (shares == 1).all()
    cells = len(net.cells)
    assert set(nets) == {"in", "stem", "out", *(f"cell {i}" for i in range(cells))}
    into = 4 if reading == "A" else 3 + cells + 1
    assert len(graph) == 1 + cells * (cells + 1) // 2 + into
    # every weight is on an edge, except those of the second convolutions
    inside = sum(c.second[0].weight.numel() for c in net.cells)
    assert sum(e.params for e in graph.edges) == 169_392 - inside


def test_shares_are_the_kept_parts_of_the_slices():
    net = pruned(0, 1.0)
    with torch.no_grad():
        net.cells[2].first[0].weight[:, 4:8] = 0  # reads cell 0
        net.cells[2].shortcut[0].weight[:2, 4:8] = 0
        net.cells[4].first[0].weight[:, 16:] = 0  # reads cell 3, whose maps the identity adds
    graph, shares = connections(net)
    share = dict(zip([e.name for e in graph.edges], shares.tolist(), strict=True))
    assert share["cell 0 → cell 2"] == pytest.approx(8 / (4 * 4 * 9 + 16))
    assert share["cell 1 → cell 2"] == share["stem"] == share["classifier 2"] == 1
    assert 0 < share["cell 3 → cell 4"] == pytest.approx(1 / (4 * 4 * 9))
    assert graph.edges[graph.index("cell 3 → cell 4")].kind == "shortcut"
    kept = graph.reachable(shares > 0.05)
    assert not kept[graph.index("cell 3 → cell 4")] and kept[graph.index("cell 0 → cell 1")]


def test_the_graph_loses_a_cell_exactly_when_it_is_dead():
    net = pruned(0, 1.0)
    kill(net, 2)
    graph, shares = connections(net)
    alive = set(graph.to_networkx(graph.reachable(shares > 0)))
    live, _ = live_channels(net)
    assert alive == {"in", "out", "stem"} | {f"cell {i}" for i in range(5) if live[i + 1].any()}
    assert "cell 2" not in alive
