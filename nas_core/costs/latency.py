"""Measured latency, and a table of it that is cheap enough for a search (thesis section 3.5.1)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from nas_core.costs.additive import AdditiveCost
from nas_core.supernet import Graph, SuperNetwork
from nas_core.training import Timing, describe_device, time_call


class Latency:
    """Milliseconds that an architecture takes on a device, measured on first use.

    Args:
        supernet: stays where it is; call `.to(device)` on it first. It is measured in evaluation
            mode without gradients, and only the modules an architecture keeps are called.
        batch_size: examples per call.
        repeats, warmup: see `time_call`.
        fresh: False gives the median, remembered per architecture; True times every architecture
            once more at every call, which is a stochastic cost in the sense of section 3.4.3.
    """

    name, unit = "latency", "ms"

    def __init__(
        self,
        supernet: SuperNetwork,
        *,
        batch_size: int = 1,
        repeats: int = 20,
        warmup: int = 3,
        fresh: bool = False,
    ):
        if supernet.input_shape is None:
            raise ValueError(f"{supernet.graph.name} needs an input_shape to be measured")
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
        self.supernet, self.batch_size = supernet, batch_size
        self.repeats, self.warmup, self.fresh = repeats, warmup, fresh
        self._known: dict[bytes, Timing] = {}

    def __repr__(self) -> str:
        return f"Latency({self.supernet.graph.name}, batch of {self.batch_size})"

    def __call__(self, mask: Tensor) -> Tensor:
        """Milliseconds `[B]`, float64, of pruned masks `[B, E]`; 0 for empty ones."""
        rows = self.supernet.graph.check_mask(mask)
        timings = [self._measure(row, 1, 0) if self.fresh else self.timing(row) for row in rows]
        return torch.tensor([timing.median for timing in timings], dtype=torch.float64)

    def timing(self, mask: Tensor) -> Timing:
        """The measurement of one architecture, mask `[E]`."""
        key = np.packbits(mask.cpu().numpy()).tobytes()
        if key not in self._known:
            self._known[key] = self._measure(mask, self.repeats, self.warmup)
        return self._known[key]

    def _measure(self, mask: Tensor, repeats: int, warmup: int) -> Timing:
        if not mask.any():
            return Timing(0.0, 0.0, 0.0, 0)
        net = self.supernet
        device = next(net.parameters()).device
        x = torch.randn(self.batch_size, *net.graph.shapes[net.graph.source], device=device)
        with _evaluating(net):
            return time_call(lambda: net(x, mask), device, repeats=repeats, warmup=warmup)


@dataclass(frozen=True)
class LatencyTable:
    """Milliseconds per edge on one device, for one batch size, of one space."""

    space: str
    fingerprint: str
    device: str
    batch_size: int
    edges: dict[str, Timing]
    factor: float = 1.0  # whole networks over sums of edges; `check_table` measures it
    error: dict[str, float] | None = None  # what is left of the difference after that

    def cost(self, graph: Graph) -> AdditiveCost:
        """The table as an additive cost in milliseconds.

        Raises:
            ValueError: when the table was made for another space.
        """
        if graph.fingerprint != self.fingerprint:
            raise ValueError(
                f"this latency table is of {self.space!r} ({self.fingerprint}), "
                f"not of {graph.name!r} ({graph.fingerprint}); build one for it"
            )
        medians = [self.factor * self.edges[e.name].median for e in graph.edges]
        return AdditiveCost(medians, f"latency table ({self.device})", "ms")

    def save(self, path: str | Path) -> None:
        """Write JSON that people can read; the folder must exist."""
        Path(path).write_text(json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> LatencyTable:
        """Read what `save` wrote.

        Raises:
            ValueError: when the file is no latency table.
        """
        try:
            record = json.loads(Path(path).read_text())
            edges = {name: Timing(**timing) for name, timing in record.pop("edges").items()}
            return cls(edges=edges, **record)
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is not a latency table: {error!r}") from error


def latency_table(
    supernet: SuperNetwork, *, batch_size: int = 1, repeats: int = 20, warmup: int = 3
) -> LatencyTable:
    """Measure every edge on its own, with the operation of the node it leads to.

    Takes about E × (repeats + warmup) module calls, once per device; then a search prices an
    architecture by a matrix product. `check_table` scales the table to whole networks.
    """
    graph = supernet.graph
    if supernet.input_shape is None:
        raise ValueError(f"{graph.name} needs an input_shape to be measured")
    device = next(supernet.parameters()).device
    edges = {}
    for e, info in enumerate(graph.edges):
        x = torch.randn(batch_size, *graph.shapes[info.source], device=device)
        op = supernet.node_op(graph.edge_targets[e])
        step = _EdgeStep(supernet.edge_modules[e], op)
        with _evaluating(step):
            edges[info.name] = time_call(partial(step, x), device, repeats=repeats, warmup=warmup)
    return LatencyTable(graph.name, graph.fingerprint, describe_device(device), batch_size, edges)


def check_table(table: LatencyTable, measured: Latency, masks: Tensor) -> LatencyTable:
    """The table scaled to whole networks, with the error that is left.

    Edges measured alone miss what comes with a network (additions, colder caches, other work on
    the device). Half of the networks give one factor for all of it, the median of measurement /
    sum; the other half give the error.

    Args:
        measured: on the same device, with the batch size of the table.
        masks: pruned architectures `[B, E]`, at least four that differ.

    Returns:
        a copy with `factor` set and `error` filled in: `median_relative` and `worst_relative`
        error of the scaled sum, `rank_correlation` (Spearman) of sum and measurement over all,
        and the number of `networks`.
    """
    from scipy.stats import spearmanr

    if measured.batch_size != table.batch_size:
        raise ValueError(
            f"the table is of batches of {table.batch_size}, not of {measured.batch_size}"
        )
    masks = masks[masks.any(1)].unique(dim=0)
    if len(masks) < 4:
        raise ValueError(f"{len(masks)} different architectures are too few; give at least 4")
    sums = replace(table, factor=1.0).cost(measured.supernet.graph)(masks).numpy()
    truth = measured(masks).numpy()
    factor = float(np.median(truth[::2] / sums[::2]))
    relative = np.abs(factor * sums[1::2] - truth[1::2]) / truth[1::2]
    error = {
        "networks": float(len(masks)),
        "median_relative": float(np.median(relative)),
        "worst_relative": float(relative.max()),
        "rank_correlation": float(spearmanr(sums, truth).statistic),
    }
    return replace(table, factor=factor, error=error)


class _EdgeStep(nn.Module):
    def __init__(self, module: nn.Module, op: nn.Module | None):
        super().__init__()
        self.module, self.op = module, op

    def forward(self, x: Tensor) -> Tensor:
        out = self.module(x)
        return out if self.op is None else self.op(out)


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """No gradients, all of `module` in evaluation mode; the modes come back after."""
    modes = {m: m.training for m in module.modules()}
    module.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for m, mode in modes.items():
            m.training = mode
