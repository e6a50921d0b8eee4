"""Measured latency, and a table of it that is fast enough for a search (thesis section 3.5.1)."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nas_core.costs.additive import AdditiveCost
from nas_core.files import write_atomic
from nas_core.supernet import Graph, SuperNetwork
from nas_core.supernet.modules import evaluating, example_input
from nas_core.training import Timing, describe_device, time_call


class Latency:
    """Milliseconds that an architecture takes, measured on first use (a median, see `time_call`).

    The network is measured where it is (call `.to(device)` first), in evaluation mode without
    gradients. With `fresh` every call times each architecture once more: a stochastic cost in the
    sense of section 3.4.3.
    """

    name, unit = "latency", "ms"

    def __init__(
        self, supernet: SuperNetwork, *,
        batch_size: int = 1, repeats: int = 20, warmup: int = 3, fresh: bool = False,
    ):  # fmt: skip
        if supernet.input_shape is None:
            raise ValueError(f"{supernet.graph.name} needs an input_shape to be measured")
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
        self.supernet, self.batch_size = supernet, batch_size
        self.repeats, self.warmup, self.fresh = repeats, warmup, fresh
        self._known: dict[tuple[str, bytes], Timing] = {}

    def __repr__(self) -> str:
        return f"Latency({self.supernet.graph.name}, batch of {self.batch_size})"

    def __call__(self, mask: Tensor) -> Tensor:
        """Milliseconds `[B]`, float64, of pruned masks `[B, E]`; 0 for empty ones."""
        rows = self.supernet.graph.check_mask(mask)
        timings = [self._measure(row, 1, 0) if self.fresh else self.timing(row) for row in rows]
        return torch.tensor([timing.median for timing in timings], dtype=torch.float64)

    def timing(self, mask: Tensor) -> Timing:
        """The measurement of one architecture, mask `[E]`, on the current device of the network."""
        x = example_input(self.supernet, ())
        key = f"{x.device} {x.dtype}", np.packbits(mask.cpu().numpy()).tobytes()
        if key not in self._known:
            self._known[key] = self._measure(mask, self.repeats, self.warmup)
        return self._known[key]

    def _measure(self, mask: Tensor, repeats: int, warmup: int) -> Timing:
        if not mask.any():
            return Timing(0.0, 0.0, 0.0, 0)
        net = self.supernet
        x = _input(net, net.graph.source, self.batch_size)
        with evaluating(net), torch.inference_mode():
            return time_call(lambda: net(x, mask), x.device, repeats=repeats, warmup=warmup)


@dataclass(frozen=True)
class LatencyTable:
    """Milliseconds per edge of one space, under the conditions named here."""

    space: str
    fingerprint: str
    device: str  # as `describe_device` calls it, with the number of threads
    batch_size: int
    edges: dict[str, Timing]
    factor: float = 1.0  # whole networks over sums of edges; `check_table` measures it
    error: dict[str, float] | None = None  # remaining difference after that scaling
    dtype: str = "float32"
    torch_version: str = torch.__version__

    def __post_init__(self) -> None:
        for name, t in self.edges.items():
            if not 0 <= t.low <= t.median <= t.high < math.inf:
                raise ValueError(f"edge {name} of the latency table has impossible times: {t}")
        if not 0 < self.factor < math.inf or self.batch_size < 1:
            raise ValueError(
                f"a latency table has a factor above 0 and a batch_size of at least 1, not "
                f"{self.factor} and {self.batch_size}"
            )

    def cost(self, graph: Graph, device: torch.device | str | None = None) -> AdditiveCost:
        """The table as an additive cost in milliseconds of the space that it was made for.

        Unless `device` is None, it must have been measured on that device with as many threads.
        """
        graph.require(self.fingerprint, self.space, "this latency table")
        if device is not None:
            _require_equal("device", self.device, describe_device(device))
        if missing := [e.name for e in graph.edges if e.name not in self.edges]:
            raise ValueError(f"the latency table has no time for edges {missing[:3]}")
        medians = [self.factor * self.edges[e.name].median for e in graph.edges]
        return AdditiveCost(medians, f"latency table ({self.device})", "ms")

    def save(self, path: str | Path) -> None:
        """Write the table as readable JSON."""
        write_atomic(path, json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> LatencyTable:
        """Read what `save` wrote."""
        try:
            record = json.loads(Path(path).read_text(encoding="utf-8"))
            edges = {name: Timing(**timing) for name, timing in record.pop("edges").items()}
            return cls(edges=edges, **record)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is not a latency table: {error}") from error


def latency_table(
    supernet: SuperNetwork, *, batch_size: int = 1, repeats: int = 20, warmup: int = 3
) -> LatencyTable:
    """Measure every edge on its own, with the operation of the node it leads to.

    Takes about E × (repeats + warmup) module calls; `check_table` scales it to whole networks.
    """
    graph = supernet.graph
    if supernet.input_shape is None:
        raise ValueError(f"{graph.name} needs an input_shape to be measured")
    edges = {}
    for e, info in enumerate(graph.edges):
        x = _input(supernet, info.source, batch_size)
        op = supernet.node_op(graph.edge_targets[e])
        step = nn.Sequential(supernet.edge_modules[e], *([] if op is None else [op]))
        with evaluating(step), torch.inference_mode():
            edges[info.name] = time_call(partial(step, x), x.device, repeats=repeats, warmup=warmup)
    conditions = _conditions(supernet, batch_size)
    return LatencyTable(graph.name, graph.fingerprint, edges=edges, **conditions)


def check_table(table: LatencyTable, measured: Latency, masks: Tensor) -> LatencyTable:
    """The table scaled to whole networks, with the remaining error.

    Edges measured alone miss the overhead of a network (additions, cold caches, other work on the
    device). Half of the networks give one factor for it, the median of measurement / sum; the other
    half give the relative errors of the scaled sum. The rank correlation (Spearman) is over all.

    Args:
        measured: under the conditions of the table (device, threads, batch size, dtype, torch).
        masks: pruned architectures `[B, E]`, at least four that differ.
    """
    from scipy.stats import spearmanr

    for what, here in _conditions(measured.supernet, measured.batch_size).items():
        _require_equal(what, getattr(table, what), here)
    masks = masks[masks.any(1)].unique(dim=0)
    if len(masks) < 4:
        raise ValueError(f"{len(masks)} different architectures are too few; give at least 4")
    sums = replace(table, factor=1.0).cost(measured.supernet.graph)(masks).numpy()
    truth = measured(masks).numpy()
    if not (sums > 0).all() or not (truth > 0).all():
        raise ValueError("some networks take 0 ms: the clock is too coarse; raise batch_size")
    factor = float(np.median(truth[::2] / sums[::2]))
    relative = np.abs(factor * sums[1::2] - truth[1::2]) / truth[1::2]
    error = {
        "networks": float(len(masks)),
        "median_relative": float(np.median(relative)),
        "worst_relative": float(relative.max()),
        "rank_correlation": float(spearmanr(sums, truth).statistic),
    }
    return replace(table, factor=factor, error=error)


def _input(supernet: SuperNetwork, node: str, rows: int) -> Tensor:
    """Normal noise of the shape at a node, `[rows, …]`; the global generator is not used."""
    like = example_input(supernet, supernet.graph.shapes[node], rows)
    noise = torch.randn(like.shape, generator=torch.Generator().manual_seed(0), device="cpu")
    return noise.to(like)


def _conditions(supernet: SuperNetwork, batch_size: int) -> dict[str, Any]:
    """What a measurement depends on beside the space; fields of a `LatencyTable`."""
    x = example_input(supernet, ())
    return {
        "device": describe_device(x.device),
        "batch_size": batch_size,
        "dtype": str(x.dtype).removeprefix("torch."),
        "torch_version": torch.__version__,
    }


def _require_equal(what: str, of_table: object, here: object) -> None:
    if of_table != here:
        raise ValueError(
            f"the latency table was measured with {what} {of_table!r}, not {here!r}; measure one "
            "under these conditions"
        )
