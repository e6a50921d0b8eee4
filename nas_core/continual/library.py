"""A library of modules and the paths of tasks through it (thesis section 5.5.1)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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
        self.store[key] = module
        self._made[key] = way
        return module

    def grow(self, path: Sequence[int], way: int) -> list[nn.Module]:
        """Register the path of the next task, with its own modules where they do not exist yet.

        Returns the new modules. Raises `ValueError` for a path of another length, through modules
        that nobody brought, or to a head for another number of classes.
        """
        if len(path) != len(self.backbone):
            raise ValueError(f"a path has {len(self.backbone)} modules, got {len(path)}")
        new = []
        for layer, owner in enumerate(path):
            if self.key(layer, owner) not in self.store:
                if owner != len(self):
                    raise ValueError(f"{self.key(layer, owner)} is not in the library")
                new.append(self.put(layer, owner, self.backbone.block(layer, way), way))
        head = self.key(len(path) - 1, path[-1])
        if self._made[head] != way:
            raise ValueError(
                f"a task with {way} classes cannot use a head for {self._made[head]}; "
                "choose a learner with one head per task"
            )
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

    # ---------------------------------------------------------------- saving

    def structure(self) -> dict[str, Any]:
        """Everything but the weights, as plain values."""
        return {"paths": [list(p) for p in self.paths], "ways": list(self.ways),
                "made": dict(self._made)}  # fmt: skip

    def rebuild(self, structure: dict[str, Any]) -> None:
        """Make the modules that `structure` describes, with random weights."""
        self.store = nn.ModuleDict()
        for key, way in structure["made"].items():
            layer = int(key.removeprefix("layer").split("_")[0])
            self.store[key] = self.backbone.block(layer, way)
        self._made = dict(structure["made"])
        self.paths = [tuple(p) for p in structure["paths"]]
        self.ways = list(structure["ways"])

    # ---------------------------------------------------------------- looking at it

    def graph(self) -> tuple[Graph, Tensor]:
        """The graph of all paths (figs. 5.18–5.19) and the mask `[T, E]` of every task's path.

        A module is an edge; dashed "select" edges lead from each head to the output of its task.
        Modules that different tasks put behind different modules appear once per place. The kind
        of an edge is the task that brought it, or with more than five of them a group of tasks.
        """
        params, macs = self.backbone.params, self.backbone.macs
        edges: dict[tuple, EdgeInfo] = {}
        used: list[list[tuple]] = []
        group = -(-len(self.paths) // 5)
        for task, path in enumerate(self.paths):
            at, mine = "in", []
            for layer, owner in enumerate(path):
                to = "·".join(str(o + 1) for o in path[: layer + 1])
                name = f"layer {layer + 1} of task {owner + 1}"
                if any(e.name == name and e.source != at for e in edges.values()):
                    name += f" ({task + 1})"
                first = owner // group * group + 1
                kind = f"task {first}" if group == 1 else f"tasks {first}–{first + group - 1}"
                kind = "head" if layer == len(path) - 1 else kind
                edges.setdefault(
                    (at, to), EdgeInfo(name, at, to, kind, "", macs[layer], params[layer])
                )
                mine.append((at, to))
                at = to
            end = (at, f"t{task + 1}")
            edges[end] = EdgeInfo(f"select t{task + 1}", *end, "select", "", 0, 0)
            out = (end[1], "out")
            edges[out] = EdgeInfo(f"t{task + 1}→out", *out, "select", "", 0, 0)
            used.append([*mine, end, out])
        graph = Graph(list(edges.values()), "in", "out", name="library of modules")
        order = list(edges)
        mask = torch.zeros(len(used), len(order), dtype=torch.bool)
        for task, mine in enumerate(used):
            mask[task, [order.index(key) for key in mine]] = True
        return graph, mask


def tensor_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the tensors, each counted once."""
    return sum(t.numel() * t.element_size() for t in {id(t): t for t in tensors}.values())
