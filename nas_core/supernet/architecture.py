"""One architecture of a space: what was kept, what it costs, and how to take it home."""

from __future__ import annotations

import copy
import json
import operator
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import networkx as nx
import torch
from torch import Tensor, fx, nn

from nas_core.supernet.graph import Graph
from nas_core.supernet.network import SuperNetwork
from nas_core.supernet.profile import count_params


@dataclass(frozen=True, eq=False)
class Architecture:
    """An immutable choice of edges of a graph, without dead ends.

    Build it with `Architecture.from_mask`. Two architectures are equal when their graphs have
    the same edges and the same ones are kept.
    """

    graph: Graph
    kept: tuple[int, ...]

    @classmethod
    def from_mask(cls, graph: Graph, mask: Tensor) -> Architecture:
        """The architecture that a mask (bool `[E]`) selects; edges on no live path are dropped."""
        if mask.dim() != 1:
            raise ValueError(f"one architecture is a mask [{len(graph)}], got {list(mask.shape)}")
        return cls(graph, tuple(graph.reachable(mask).nonzero().flatten().tolist()))

    @classmethod
    def full(cls, graph: Graph) -> Architecture:
        """The whole super-network."""
        return cls(graph, tuple(range(len(graph))))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Architecture) and self._identity == other._identity

    def __hash__(self) -> int:
        return hash(self._identity)

    def __repr__(self) -> str:
        macs = f", {self.macs / 1e6:.3g} M macs" if self._counted else ""
        return f"Architecture({self.graph.name}: {len(self.kept)} of {len(self.graph)} edges{macs})"

    @property
    def _identity(self) -> tuple[str, tuple[int, ...]]:
        return self.graph.fingerprint, self.kept

    @property
    def _counted(self) -> bool:
        return all(edge.macs is not None for edge in self.graph.edges)

    @cached_property
    def mask(self) -> Tensor:
        """bool `[E]`."""
        mask = torch.zeros(len(self.graph), dtype=torch.bool)
        mask[list(self.kept)] = True
        return mask

    @property
    def edges(self) -> tuple[str, ...]:
        """Names of the kept edges."""
        return tuple(self.graph.edges[e].name for e in self.kept)

    @property
    def is_empty(self) -> bool:
        """True when no path is left from source to sink."""
        return not self.kept

    @property
    def macs(self) -> int:
        """Multiply-adds for one example."""
        return int(self.graph.macs[self.mask].sum())

    @property
    def params(self) -> int:
        """Number of parameters on the kept edges."""
        return int(self.graph.params[self.mask].sum())

    def to_json(self) -> str:
        """JSON text with the name and fingerprint of the space and the names of the kept edges."""
        space = {"space": self.graph.name, "fingerprint": self.graph.fingerprint}
        return json.dumps({**space, "edges": list(self.edges)}, ensure_ascii=False)

    @classmethod
    def from_json(cls, graph: Graph, text: str) -> Architecture:
        """Read `to_json` text back.

        Raises:
            ValueError: when the text was written for another space.
        """
        record = json.loads(text)
        if record.get("fingerprint") != graph.fingerprint:
            raise ValueError(
                f"this architecture belongs to {record.get('space')!r} "
                f"({record.get('fingerprint')}), not to {graph.name!r} ({graph.fingerprint})"
            )
        return cls(graph, tuple(sorted(graph.index(name) for name in record["edges"])))

    def to_networkx(self) -> nx.MultiDiGraph:
        """The kept part as a networkx multigraph; edge keys are edge names."""
        return self.graph.to_networkx(self.mask)

    # ---------------------------------------------------------------- taking it home

    def extract(
        self, supernet: SuperNetwork, recalibrate: Iterable[Tensor | tuple] | None = None
    ) -> fx.GraphModule:
        """A plain module with a copy of the kept modules only; `print(net.code)` shows its source.

        Args:
            supernet: whose graph this architecture belongs to. It is left untouched.
            recalibrate: batches `x` or `(x, y)`. Batch-norm statistics gathered while many
                architectures shared a module mislead a single one of them; when given, they are
                re-estimated on these batches (cumulative average, weights untouched).

        Raises:
            ValueError: for an empty architecture or another super-network.
        """
        if supernet.graph.fingerprint != self.graph.fingerprint:
            raise ValueError(
                f"{supernet.graph!r} ({supernet.graph.fingerprint}) is not the space of {self!r}"
            )
        if self.is_empty:
            raise ValueError("an architecture without a path from source to sink has no network")
        net = _trace(supernet, self.kept)
        net.train(supernet.training)
        if recalibrate is not None:
            recalibrate_batch_norm(net, recalibrate)
        return net

    def export_onnx(
        self, supernet: SuperNetwork | fx.GraphModule, path: str | Path, *, tolerance: float = 1e-4
    ) -> float:
        """Write the architecture as an ONNX file (any batch size) and check it with onnxruntime.

        Args:
            supernet: the super-network, or a module that `extract` gave (perhaps trained since).
            path: of the file, its folder must exist.
            tolerance: largest accepted difference, relative to the largest output (floor 1).

        Returns:
            The largest absolute difference between PyTorch and onnxruntime on random input.

        Raises:
            ValueError: when the two differ by more; the file is removed then.
        """
        net = self.extract(supernet) if isinstance(supernet, SuperNetwork) else supernet
        shape = self.graph.shapes.get(self.graph.source)
        if shape is None:
            raise ValueError(f"{self.graph.name} was built without input_shape, which ONNX needs")
        return _export_onnx(copy.deepcopy(net).cpu().eval(), shape, Path(path), tolerance)


def recalibrate_batch_norm(net: nn.Module, batches: Iterable[Tensor | tuple]) -> None:
    """Re-estimate the running statistics of all batch norms in `net`, in place."""
    norms = [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    before = [(m, m.training, m.momentum) for m in norms]
    training = net.training
    net.train()
    for m in norms:
        m.reset_running_stats()
        m.momentum = None  # cumulative average over all batches
    with torch.no_grad():
        for batch in batches:
            net(batch if isinstance(batch, Tensor) else batch[0])
    net.train(training)
    for m, mode, momentum in before:
        m.training, m.momentum = mode, momentum


def _trace(supernet: SuperNetwork, kept: tuple[int, ...]) -> fx.GraphModule:
    """Straight-line code for the kept edges, one call per module and one `+` per sum."""
    graph, keep = supernet.graph, set(kept)
    modules = nn.ModuleDict()
    code = fx.Graph()
    value: dict[int, fx.Node] = {}

    def call(name: str, module: nn.Module, argument: fx.Node) -> fx.Node:
        key = re.sub(r"\W+", "_", name).strip("_") or "module"
        key = f"m_{key}" if key[0].isdigit() or hasattr(modules, key) else key
        while key in modules:
            key += "_"
        modules[key] = copy.deepcopy(module)
        return code.call_module(key, (argument,))

    def finish(node: int) -> fx.Node:
        op = supernet.node_op(node)
        return value[node] if op is None else call(f"op_{graph.nodes[node]}", op, value[node])

    value[0] = code.placeholder("x")
    finished: set[int] = set()
    for e in graph.order:
        if e not in keep:
            continue
        source, target = graph.edge_sources[e], graph.edge_targets[e]
        if source not in finished:
            value[source] = finish(source)
            finished.add(source)
        out = call(graph.edges[e].name, supernet.edge_modules[e], value[source])
        if target in value:
            out = code.call_function(operator.add, (value[target], out))
        value[target] = out
    code.output(finish(len(graph.nodes) - 1))
    net = fx.GraphModule(modules, code, class_name="ExtractedNetwork")
    assert count_params(net) <= count_params(supernet)
    return net


def _export_onnx(net: nn.Module, shape: tuple[int, ...], path: Path, tolerance: float) -> float:
    import logging

    import onnxruntime

    example = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    quiet = logging.getLogger("torch.onnx")
    level = quiet.level
    quiet.setLevel(logging.ERROR)
    try:
        torch.onnx.export(
            net,
            (example,),
            path,
            input_names=["x"],
            output_names=["y"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    finally:
        quiet.setLevel(level)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    worst = 0.0
    for batch in (2, 5):  # a second batch size shows that the batch dimension is free
        x = torch.randn(batch, *shape, generator=torch.Generator().manual_seed(batch))
        with torch.no_grad():
            expected = net(x)
        (got,) = session.run(None, {"x": x.numpy()})
        difference = (torch.from_numpy(got) - expected).abs().max().item()
        worst = max(worst, difference)
        if not difference <= tolerance * max(1.0, expected.abs().max().item()):
            path.unlink()
            raise ValueError(f"onnxruntime differs from PyTorch by {difference:.2g}; file removed")
    return worst
