"""One architecture of a space: its edges, its size, and its export as a plain network."""

from __future__ import annotations

import json
import keyword
import logging
import operator
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import networkx as nx
import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from nas_core.supernet.graph import Graph
from nas_core.supernet.modules import copy_module, evaluating, example_input
from nas_core.supernet.network import SuperNetwork


@dataclass(frozen=True, repr=False)
class Architecture:
    """An immutable choice of edges of a graph, without dead ends: see `Architecture.from_mask`."""

    graph: Graph
    kept: tuple[int, ...]

    @classmethod
    def from_mask(cls, graph: Graph, mask: Tensor) -> Architecture:
        """The architecture that a mask (bool `[E]`) selects, without edges on no live path."""
        if mask.dim() != 1:
            raise ValueError(f"one architecture is a mask [{len(graph)}], got {list(mask.shape)}")
        return cls(graph, tuple(graph.reachable(mask).nonzero().flatten().tolist()))

    @classmethod
    def full(cls, graph: Graph) -> Architecture:
        """The whole super-network."""
        return cls(graph, tuple(range(len(graph))))

    def __repr__(self) -> str:
        counted = all(edge.macs is not None for edge in self.graph.edges)
        macs = f", {self.macs / 1e6:.3g} M macs" if counted else ""
        return f"Architecture({self.graph.name}: {len(self.kept)} of {len(self.graph)} edges{macs})"

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
        return json.dumps({**space, "edges": self.edges}, ensure_ascii=False)

    @classmethod
    def from_json(cls, graph: Graph, text: str) -> Architecture:
        """Read back what `to_json` wrote for this space; ValueError for any other text."""
        try:
            record = json.loads(text)
            names = list(record["edges"])
            graph.require(record["fingerprint"], record["space"], "this architecture")
        except (json.JSONDecodeError, TypeError, KeyError) as error:
            raise ValueError(f"not an architecture written by `to_json`: {error!r}") from None
        found = cls(graph, tuple(sorted({graph.index(name) for name in names})))
        dead = found.mask & ~graph.reachable(found.mask)
        if dead.any() or len(found.kept) != len(names):
            wrong = [graph.edges[e].name for e in dead.nonzero().flatten().tolist()]
            fault = f"its edges {wrong[:3]} lie on no path" if wrong else "it names an edge twice"
            raise ValueError(f"{fault}; this text was not written by `to_json`")
        return found

    def to_networkx(self) -> nx.MultiDiGraph:
        """The kept part as a networkx multigraph; edge keys are edge names."""
        return self.graph.to_networkx(self.mask)

    def extract(
        self, supernet: SuperNetwork, recalibrate: Iterable[Tensor | tuple] | None = None
    ) -> fx.GraphModule:
        """A plain module with a copy of the kept modules only; `print(net.code)` shows its source.

        Batch-norm statistics gathered while many architectures shared a module do not fit a single
        one of them; they are re-estimated on the batches (`x` or `(x, y)`) of `recalibrate`.
        """
        supernet.graph.require(self.graph.fingerprint, self.graph.name, f"{self!r}")
        if self.is_empty:
            raise ValueError("an architecture without a path from source to sink has no network")
        net = _trace(supernet, self.kept)
        net.training = supernet.training  # the copied modules have their modes already
        if recalibrate is not None:
            recalibrate_batch_norm(net, recalibrate)
        return net

    def export_onnx(
        self, supernet: SuperNetwork | fx.GraphModule, path: str | Path, *, tolerance: float = 1e-4
    ) -> float:
        """Write the architecture as an ONNX file (any batch size) and check it with onnxruntime.

        `supernet` may also be a module from `extract`, after further training. Returns the largest
        absolute difference between PyTorch and onnxruntime on random input. Above `tolerance`
        (relative to the largest output, at least 1) the file is removed and a ValueError raised.
        """
        import onnxruntime

        shape, path = self.graph.shapes.get(self.graph.source), Path(path)
        if shape is None:
            raise ValueError(f"{self.graph.name} was built without input_shape, which ONNX needs")
        plain = self.extract(supernet) if isinstance(supernet, SuperNetwork) else supernet
        net = copy_module(plain).cpu().eval()

        def example(rows: int) -> Tensor:
            x = torch.randn(rows, *shape, generator=torch.Generator().manual_seed(rows))
            return x.to(example_input(net, shape).dtype)

        quiet = logging.getLogger("torch.onnx")
        level = quiet.level
        quiet.setLevel(logging.ERROR)
        try:
            torch.onnx.export(
                net, (example(2),), path, input_names=["x"], output_names=["y"],
                dynamic_shapes=({0: torch.export.Dim("batch")},), dynamo=True,
                external_data=False, verbose=False,
            )  # fmt: skip
        finally:
            quiet.setLevel(level)
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        worst = 0.0
        for batch in (2, 5):  # a second batch size shows that the batch dimension is free
            with torch.no_grad():
                expected = net(example(batch))
            (got,) = session.run(None, {"x": example(batch).numpy()})
            gap = (torch.from_numpy(got) - expected).abs().max().item()
            worst = max(worst, gap)
            if not gap <= tolerance * max(1.0, expected.abs().max().item()):
                path.unlink()
                raise ValueError(f"onnxruntime and PyTorch differ by {gap:.2g}; file removed")
        return worst


def recalibrate_batch_norm(net: nn.Module, batches: Iterable[Tensor | tuple]) -> None:
    """Re-estimate the running statistics of the batch norms that `net` calls, in place.

    The mean over the batches `x` or `(x, y)`, each weighted by its rows; dropout is off. A batch
    with a single value per channel (one row of 1×1 maps) has no variance: it passes with the
    statistics found so far. ValueError without batches, or when all of them are too small.
    """
    rows: dict[_BatchNorm, int] = {}  # that each batch norm has seen

    def before(norm: _BatchNorm, inputs: tuple[Tensor]) -> None:
        (x,) = inputs  # [n, C, …]
        norm.training = x.numel() > x.shape[1]
        if not rows.setdefault(norm, 0) and norm.training:
            norm.reset_running_stats()
        if norm.training:
            rows[norm] += len(x)
            norm.momentum = len(x) / rows[norm]  # so that the average weights rows alike

    norms = [m for m in net.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    momenta = [m.momentum for m in norms]
    hooks = [m.register_forward_pre_hook(before) for m in norms]
    count = 0
    try:
        with evaluating(net), torch.no_grad():
            for batch in batches:
                net(batch if isinstance(batch, Tensor) else batch[0])
                count += 1
    finally:
        for m, hook, momentum in zip(norms, hooks, momenta, strict=True):
            hook.remove()
            m.momentum = momentum
    if not count:
        why = "an iterator is used up after one pass, give a list or a loader"
        raise ValueError(f"no batch to re-estimate batch norm on; {why}")
    if not all(rows.values()):
        raise ValueError("batch norm cannot be re-estimated: every batch has one value per channel")


def _trace(supernet: SuperNetwork, kept: tuple[int, ...]) -> fx.GraphModule:
    """Straight-line code for the kept edges, one call per module and one `+` per sum."""
    graph, keep = supernet.graph, set(kept)
    modules = nn.ModuleDict()
    code = fx.Graph()

    def called(name: str, module: nn.Module, argument: fx.Node) -> fx.Node:
        """Add a copy of the module under a name that Python accepts, and a call of it."""
        key = re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_") or "module"
        taken = hasattr(modules, key) or hasattr(fx.GraphModule, key) or key == "self"
        if taken or key[0].isdigit() or keyword.iskeyword(key):
            key = f"m_{key}"
        while key in modules:
            key += "_"
        modules[key] = copy_module(module)
        return code.call_module(key, (argument,))

    value: dict[int, fx.Node] = {0: code.placeholder("x")}  # of every node, its sum so far
    for node, leaving in enumerate(graph.leaving):
        if node not in value:
            continue
        if (op := supernet.node_op(node)) is not None:
            value[node] = called(f"op_{graph.nodes[node]}", op, value[node])
        for e in leaving:
            if e in keep:
                out = called(graph.edges[e].name, supernet.edge_modules[e], value[node])
                target = graph.edge_targets[e]
                if target in value:
                    out = code.call_function(operator.add, (value[target], out))
                value[target] = out
    code.output(value[len(graph.nodes) - 1])
    return fx.GraphModule(modules, code, class_name="ExtractedNetwork")
