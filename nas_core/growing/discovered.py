"""What pruning found: the graph of its connections, and the small network without dead parts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from nas_core.growing.network import POOLED, GrowingNetwork
from nas_core.supernet import EdgeInfo, Graph
from nas_core.supernet.modules import copy_module


def connections(net: GrowingNetwork) -> tuple[Graph, Tensor]:
    """The wiring as a graph, and the share of kept weights on every edge, `[E]`.

    An edge between cells is the slice of the target's first convolution and projection that reads
    the source; classifiers are the edges into `out`. An identity shortcut has no weights, so its
    edge always has a share above 0. `graph.reachable(shares > t)` is the architecture at a
    threshold t, as a mask for the views; `live_channels` says what the logits depend on.
    """
    plan, names = net.plan, ["stem", *(f"cell {i}" for i in range(len(net.cells)))]
    edges, shares = [], []

    def edge(name: str, ends: tuple[str, str], kind: str, slices: Any, pixels: int) -> None:
        left = sum(int(s.count_nonzero()) for s in slices)
        edges.append(EdgeInfo(name, *ends, kind, "", left * pixels, left))
        floor = 1 if kind == "shortcut" else 0
        shares.append(max(left, floor) / sum(s.numel() for s in slices))

    edge("stem", ("in", "stem"), "stem", [net.stem[0].weight], plan.size**2)
    for i, cell in enumerate(net.cells):
        layers = [part[0].weight for part in (cell.first, cell.shortcut) if part is not None]
        columns = [w.split(plan.width, 1) for w in layers]  # per layer, a slice per map
        for m, slices in zip(net.reads[i], zip(*columns, strict=True), strict=True):
            kind = "shortcut" if cell.shortcut is None and m == i else "conv"
            ends = names[m], names[i + 1]
            edge(" → ".join(ends), ends, kind, slices, plan.side**2)
    for c, (head, reads) in enumerate(zip(net.classifiers, net.head_reads, strict=True)):
        for m, part in zip(reads, head.linear.weight.split(plan.width * POOLED**2, 1), strict=True):
            name = f"classifier {c}" + (f" of {names[m]}" if len(reads) > 1 else "")
            kind = "head" if c == len(net.classifiers) - 1 else "classifier"
            edge(name, (names[m], "out"), kind, [part], 1)
    graph = Graph(edges, "in", "out", name="dense" if plan.dense else "chain")
    return graph, torch.tensor(shares)


def live_channels(net: GrowingNetwork) -> tuple[Tensor, Tensor]:
    """Channels that some logit depends on: of every map, and inside every cell.

    Dead are those that nothing live reads, and those that are always zero: they read nothing, and
    batch norm adds nothing positive. A cell without live channels can go, and no logit changes.

    Returns:
        bool `[1 + cells, width]` of the maps of stem and cells, and bool `[cells, width]` between
        the two convolutions of a cell.
    """
    zero, zero_hidden = _always_zero(net)
    live, hidden = torch.zeros_like(zero), torch.zeros_like(zero_hidden)

    def read(maps: list[int], columns: Tensor) -> None:
        """Mark what a layer reads, bool [maps · width]; no layer is left without an input."""
        columns &= ~zero[maps].flatten()
        columns[-1] |= not columns.any()
        live[maps] |= columns.view(len(maps), -1)

    # From the outputs to the input: whatever reads a cell comes before the cell.
    for head, reads in zip(net.classifiers, net.head_reads, strict=True):
        linear = head.linear.weight.detach().cpu()  # [K, maps · width · 16]
        read(reads, (linear != 0).any(0).view(-1, POOLED**2).any(1))
    for i in reversed(range(len(net.cells))):
        cell, out = net.cells[i], live[i + 1]
        if out.any():
            hidden[i] = _reads(cell.second, out) & ~zero_hidden[i]
            hidden[i, -1] |= not hidden[i].any()
            columns = _reads(cell.first, hidden[i])
            if cell.shortcut is None:
                live[net.reads[i][-1]] |= out  # the identity, even of zeros, needs its channels
            else:
                columns |= _reads(cell.shortcut, out)
            read(net.reads[i], columns)
    return live, hidden


def _always_zero(net: GrowingNetwork) -> tuple[Tensor, Tensor]:
    """Channels that are zero for every input; shapes as `live_channels` returns them."""

    def constant(conv_bn: Any, zeros: Tensor) -> Tensor:
        """What batch norm makes of filters that read zeros only; infinity for the others."""
        weight, norm = conv_bn[0].weight.detach().cpu(), conv_bn[1]
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        value = (norm.bias - scale * norm.running_mean).detach().cpu()
        return value.masked_fill((weight[:, ~zeros] != 0).flatten(1).any(1), torch.inf)

    zero = torch.zeros(1 + len(net.cells), net.plan.width, dtype=torch.bool)
    hidden = torch.zeros_like(zero[1:])
    zero[0] = constant(net.stem, torch.zeros(net.plan.in_channels, dtype=torch.bool)) <= 0
    for i, (cell, maps) in enumerate(zip(net.cells, net.reads, strict=True)):
        hidden[i] = constant(cell.first, zero[maps].flatten()) <= 0
        body = constant(cell.second, hidden[i])
        if cell.shortcut is None:
            zero[i + 1] = (body <= 0) & zero[maps[-1]]
        else:
            zero[i + 1] = body + constant(cell.shortcut, zero[maps].flatten()) <= 0
    return zero, hidden


def _reads(conv_bn: Any, out: Tensor) -> Tensor:
    """Input channels with a kept weight to one of the output channels `out`: bool `[inputs]`."""
    return (conv_bn[0].weight.detach().cpu()[out] != 0).any(0).flatten(1).any(1)


@torch.no_grad()
def extract(net: GrowingNetwork) -> GrowingNetwork:
    """A network without the dead cells and filters, with the same logits in evaluation mode.

    It has the same methods, early exit included, but cannot grow. What is left of a layer is a
    dense tensor, zeros included: only what is gone as a whole saves time.
    """
    live, hidden = live_channels(net)
    small: Any = copy_module(net)
    small.plan = replace(net.plan, cells=net.plan.cells[: net.blocks])
    _cut(small.stem, torch.ones(net.plan.in_channels, dtype=torch.bool), live[0])
    for i, cell in enumerate(small.cells):
        out, maps = live[i + 1], net.reads[i]
        if not out.any():
            small.cells[i], small.reads[i] = nn.Identity(), []
            continue
        needed = _reads(cell.first, hidden[i])
        if cell.shortcut is not None:
            needed |= _reads(cell.shortcut, out)
        used = (needed.view(len(maps), -1) & live[maps]).any(1)  # maps that this cell reads
        used[-1] |= cell.shortcut is None or not used.any()
        columns = live[maps] & used[:, None]  # [maps, width]: the others have no weights here
        small.reads[i] = [m for m, u in zip(maps, used.tolist(), strict=True) if u]
        _cut(cell.first, columns.flatten(), hidden[i])
        _cut(cell.second, hidden[i], out)
        if cell.shortcut is not None:
            _cut(cell.shortcut, columns.flatten(), out)
        else:  # positions of the channels that the identity adds
            newest = columns[-1].cumsum(0) - 1 + int(columns[:-1].sum())
            del cell.same
            cell.register_buffer("same", newest[out].to(cell.first[0].weight.device))
    for head, maps in zip(small.classifiers, small.head_reads, strict=True):
        keep = live[maps].flatten().repeat_interleave(POOLED**2)
        head.linear.weight = nn.Parameter(head.linear.weight[:, keep].clone())
        head.linear.in_features = int(keep.sum())
    return small


def _cut(conv_bn: Any, inputs: Tensor, outputs: Tensor) -> None:
    """Leave a convolution and its batch norm these input and output channels, in place."""
    conv, norm = conv_bn[0], conv_bn[1]
    conv.weight = nn.Parameter(conv.weight[outputs][:, inputs].clone())
    conv.out_channels, conv.in_channels = conv.weight.shape[:2]
    norm.num_features = conv.out_channels
    norm.weight, norm.bias = (nn.Parameter(p[outputs].clone()) for p in (norm.weight, norm.bias))
    norm.running_mean, norm.running_var = norm.running_mean[outputs], norm.running_var[outputs]
