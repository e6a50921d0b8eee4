"""Graphs of every form that the book draws, with edges in the natural order of their space."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from nas_core.supernet import EdgeInfo, Graph


def build(pairs, source, sink, name, positions=None) -> Graph:
    infos = [
        EdgeInfo(f"{a}→{b} {kind}", a, b, kind, f"{kind} module", 1000 * (e % 7 + 1), 10 * e)
        for e, (a, b, kind) in enumerate(pairs)
    ]
    return Graph(infos, source, sink, name=name, positions=positions)


def fabric(columns: int = 8, scales: int = 6) -> Graph:
    """A convolutional neural fabric: columns × scales, edges same / up / down."""
    pairs = [("in", "0,0", "stem")]
    pairs += [(f"0,{h}", f"0,{h + 1}", "down") for h in range(scales - 1)]
    for w in range(columns - 1):
        for h in range(scales):
            for step, kind in ((-1, "up"), (0, "same"), (1, "down")):
                if 0 <= h + step < scales:
                    pairs.append((f"{w},{h}", f"{w + 1},{h + step}", kind))
    pairs += [(f"{columns - 1},{h}", f"{columns - 1},{h + 1}", "down") for h in range(scales - 1)]
    pairs.append((f"{columns - 1},{scales - 1}", "out", "classifier"))
    at = {f"{w},{h}": (float(w), float(-h)) for w in range(columns) for h in range(scales)}
    at |= {"in": (-1.0, 0.0), "out": (float(columns), 1.0 - scales)}
    return build(pairs, "in", "out", f"fabric {columns}×{scales}", at)


def keyword_chain() -> Graph:
    """A chain with long shortcuts into its sum node."""
    names = ["in", "conv1", "conv2", "lin1", "lin2", "sum", "out"]
    pairs = [(a, b, "conv") for a, b in itertools.pairwise(names[:6])]
    pairs += [(a, "sum", "shortcut") for a in ("in", "conv1", "conv2")]
    pairs.append(("sum", "out", "classifier"))
    return build(
        pairs, "in", "out", "keyword net", {n: (float(i), 0.0) for i, n in enumerate(names)}
    )


def residual_chain(blocks: int = 3) -> Graph:
    """Two parallel edges per block: convolution and shortcut."""
    pairs = [(str(b), str(b + 1), kind) for b in range(blocks) for kind in ("conv", "shortcut")]
    return build(pairs, "0", str(blocks), "residual chain")


def dense(nodes: int = 18) -> Graph:
    """Every node feeds all later ones; shortcuts beside the steps to the next."""
    names = [str(n) for n in range(nodes)]
    pairs = [(a, b, "conv") for a, b in itertools.combinations(names, 2)]
    pairs += [(a, b, "shortcut") for a, b in itertools.pairwise(names)]
    return build(pairs, "0", str(nodes - 1), f"dense {nodes}")


def module_grid(tasks: int = 3, layers: int = 4) -> Graph:
    """Columns of modules, one per task, of which a path may leave to the right only."""
    pairs = [("in", f"m0,{t}", "new") for t in range(tasks)]
    for layer in range(layers - 1):
        for t in range(tasks):
            for u in range(t, tasks):
                pairs.append((f"m{layer},{t}", f"m{layer + 1},{u}", "reused" if u == t else "new"))
    pairs += [(f"m{layers - 1},{t}", "out", "head") for t in range(tasks)]
    at = {f"m{k},{t}": (float(t), float(-k)) for t in range(tasks) for k in range(layers)}
    return build(
        pairs, "in", "out", "modules", at | {"in": (0.0, 1.0), "out": (0.0, -layers - 0.0)}
    )


def task_paths(graph: Graph, tasks: int, layers: int) -> Tensor:
    """Bool `[tasks, E]`: task t branches off its predecessor's column after t layers."""
    rows = torch.zeros(tasks, len(graph), dtype=torch.bool)
    for t in range(tasks):
        column = [max(t - 1, 0) if k < t else t for k in range(layers)]
        path = ["in", *[f"m{k},{c}" for k, c in enumerate(column)], "out"]
        for a, b in itertools.pairwise(path):
            for e, edge in enumerate(graph.edges):
                rows[t, e] |= edge.source == a and edge.target == b
    return rows


def annealed(graph: Graph, epochs: int, seed: int = 0) -> Tensor:
    """Probabilities `[T, E]` that move from 0.95 to an architecture that has a path."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        end = torch.rand(len(graph), generator=generator) < 0.55
        if graph.reachable(end).any():
            break
    share = torch.linspace(0, 1, epochs)[:, None]
    return 0.95 * (1 - share) + share * (0.02 + 0.96 * graph.reachable(end).float())
