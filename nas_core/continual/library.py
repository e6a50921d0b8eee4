"""A library of modules and the paths of tasks through it (thesis section 5.5.1)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from nas_core.continual.backbones import Backbone
from nas_core.supernet import EdgeInfo, Graph


class Library(nn.Module):
    """Modules by layer and by the task that brought them; a path names one owner per layer.

    `paths[t] = (0, 0, 3)` says that task t uses the modules of task 0 in the first two layers and
    that of task 3 in the head.
    """

    def __init__(self, backbone: Backbone):
        super().__init__()
        self.backbone = backbone
        self.store = nn.ModuleDict()
        self.paths: list[tuple[int, ...]] = []
        self.ways: list[int] = []
        self._made: dict[str, int] = {}  # number of classes each module was made for

    def __len__(self) -> int:
        """Number of tasks."""
        return len(self.paths)

    @staticmethod
    def key(layer: int, owner: int) -> str:
        return f"layer{layer}_task{owner}"

    def module(self, layer: int, owner: int) -> nn.Module:
        return self.store[self.key(layer, owner)]

    def put(self, layer: int, owner: int, module: nn.Module, way: int) -> nn.Module:
        """Add a module that `owner` brings."""
        key = self.key(layer, owner)
        if key in self.store:
            raise ValueError(f"the library already has {key}")
        self.store[key], self._made[key] = module, way
        return module

    def grow(self, path: Sequence[int], way: int) -> list[nn.Module]:
        """Register the path of the next task; makes and returns its modules that do not exist yet.

        Raises `ValueError` for a path of another length, through modules that the library lacks, or
        to a head for another number of classes.
        """
        if len(path) != len(self.backbone):
            raise ValueError(f"a path has {len(self.backbone)} modules, got {len(path)}")
        new = []
        for layer, owner in enumerate(path):
            if self.key(layer, owner) not in self.store:
                if owner != len(self):
                    raise ValueError(f"{self.key(layer, owner)} is not in the library")
                new.append(self.put(layer, owner, self.backbone.block(layer, way), way))
        made = self._made[self.key(len(path) - 1, path[-1])]
        if made != way:
            heads = f"a task with {way} classes cannot use a head for {made}"
            raise ValueError(f"{heads}; choose a learner with one head per task")
        self.paths.append(tuple(path))
        self.ways.append(way)
        return new

    def path(self, task: int) -> list[Any]:
        """The modules of a task, input first."""
        if not 0 <= task < len(self.paths):
            raise ValueError(f"task {task} was not learnt; so far there are {len(self.paths)}")
        return [self.module(layer, owner) for layer, owner in enumerate(self.paths[task])]

    def forward(self, x: Tensor, task: int) -> Tensor:
        for module in self.path(task):
            x = module(x)
        return x

    def structure(self) -> dict[str, Any]:
        """Everything but the weights, as plain values."""
        paths = [list(path) for path in self.paths]
        return {"paths": paths, "ways": list(self.ways), "made": dict(self._made)}

    def rebuild(self, structure: dict[str, Any]) -> None:
        """Make the modules that `structure` describes, with random weights."""
        self.store, self._made = nn.ModuleDict(), dict(structure["made"])
        for key, way in self._made.items():
            layer = int(key.removeprefix("layer").split("_")[0])
            self.store[key] = self.backbone.block(layer, way)
        self.paths = [tuple(path) for path in structure["paths"]]
        self.ways = list(structure["ways"])

    def graph(self) -> tuple[Graph, Tensor]:
        """The graph of all paths (figs. 5.18–5.19) and the mask `[T, E]` of every task's path.

        A module is an edge at each place of use; "select" edges lead from a head to its task's
        output. The kind is the task that brought it, or, with more than five, a group of tasks.
        """
        params, macs = self.backbone.params, self.backbone.macs
        edges: dict[tuple[str, str], EdgeInfo] = {}  # by source and target
        used: list[list[tuple[str, str]]] = []
        group = -(-len(self.paths) // 5)
        for task, path in enumerate(self.paths):
            owners = [str(owner + 1) for owner in path]
            nodes = ["·".join(owners[:n]) or "in" for n in range(len(path) + 1)]
            used.append(list(pairwise([*nodes, f"t{task + 1}", "out"])))
            for layer, (owner, ends) in enumerate(zip(path, used[-1], strict=False)):
                name = f"layer {layer + 1} of task {owner + 1}"
                if any(e.name == name and e.source != ends[0] for e in edges.values()):
                    name += f" ({task + 1})"
                first = owner // group * group + 1
                kind = f"task {first}" if group == 1 else f"tasks {first}–{first + group - 1}"
                kind = "head" if layer == len(path) - 1 else kind
                edges.setdefault(ends, EdgeInfo(name, *ends, kind, "", macs[layer], params[layer]))
            names = (f"select t{task + 1}", f"t{task + 1}→out")
            for name, ends in zip(names, used[-1][-2:], strict=True):
                edges[ends] = EdgeInfo(name, *ends, "select", "", 0, 0)
        mask = torch.tensor([[ends in mine for ends in edges] for mine in used])
        return Graph(list(edges.values()), "in", "out", name="library of modules"), mask


def tensor_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the tensors, each counted once."""
    return sum(t.numel() * t.element_size() for t in {id(t): t for t in tensors}.values())
