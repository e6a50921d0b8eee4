"""ArchView: the live graph of sampled architectures, in notebooks with and without a kernel.

Python sends the picture once (`_spec`: geometry, modules, all frames as bytes); from then on the
page works alone. The edges that a reader switches come back as `mask`, and Python prices them.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
import traitlets as t
from torch import Tensor

from nas_core.costs import AdditiveCost
from nas_core.costs.additive import price
from nas_core.supernet import Architecture, BernoulliSampler, ChoiceSampler, Graph
from nas_core.viz.geometry import PALETTE, check_probabilities, graph_of, scene, short
from nas_core.viz.page import View, live


def _as_mask(graph: Graph, value: Any) -> Tensor:
    mask = value if isinstance(value, Tensor) else torch.as_tensor(np.asarray(value))
    if mask.dim() != 1:
        raise ValueError(f"a view shows one mask [{len(graph)}], got {list(mask.shape)}")
    return graph.check_mask(mask.detach().cpu())[0].clone()


class _Mask(t.TraitType):
    """bool `[E]` in Python, "0101…" on its way to the page."""

    def validate(self, view: Any, value: Any) -> Tensor:
        return _as_mask(view.graph, value)

    def set(self, view: Any, value: Any) -> None:
        old = view._trait_values.get(self.name)
        if old is None or not torch.equal(old, self.validate(view, value)):
            super().set(view, value)


def _to_text(mask: Tensor, _: Any = None) -> str:
    return "".join(map(str, mask.int().tolist()))


def _base64(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()


@live("arch_view", "mask", "_priced")
class ArchView(View):
    """The live graph of an architecture: switch edges, move through recorded frames.

    Args:
        space: `SuperNetwork`, `Graph` or `Architecture`.
        mask: bool `[E]`, the edges switched on at first; by default those of the frame.
        probabilities: `[E]`, when there is one state only.
        frames: `[T, E]` probabilities (epochs of a search) or bool masks (steps, tasks).
        modes: bool `[T, E]`, what is on in each frame; by default its most probable architecture.
            For frames that are shares or weights rather than probabilities.
        frame: number of the frame shown first; by default the last.
        frame_label, frame_names: what a frame is ("epoch"), or a text for each.
        cost: any cost (pruned bool `[B, E]` → `[B]`); the budget is in its unit.
        sampler: for "sample another"; supplies the probabilities when none are given.

    Traits to observe: `mask` (bool `[E]`), `frame`, `cost_value` (without dead ends). Wrong shapes,
    frames and costs raise ValueError or TypeError.
    """

    mask: Any = _Mask().tag(
        sync=True, to_json=_to_text, from_json=lambda s, _: torch.tensor([c == "1" for c in s])
    )
    cost_value = t.Float(None, allow_none=True)
    _priced: Any = t.List(["", None]).tag(sync=True)

    def __init__(
        self, space: Any, *, mask: Any = None, probabilities: Any = None, frames: Any = None,
        modes: Any = None, frame: int | None = None, frame_label: str = "epoch",
        frame_names: Sequence[str] | None = None, cost: Callable[[Tensor], Tensor] | None = None,
        budget: float | None = None, sampler: Any = None, title: str = "",
        points: dict[str, Any] | None = None,
    ):  # fmt: skip
        self.graph: Graph = graph_of(space)
        self.cost, self.budget, self.sampler, self.title = cost, budget, sampler, title
        self.frame_label, self.frame_names, self.points = frame_label, frame_names, points
        if mask is None and isinstance(space, Architecture):
            mask = space.mask
        if frames is None and probabilities is None and sampler is not None:
            probabilities = sampler.probabilities()
        self.frames, self.probable = self._read_frames(frames, probabilities, mask)  # [T, E]
        if frame_names is not None and len(frame_names) != len(self.frames):
            raise ValueError(f"{len(frame_names)} frame_names for {len(self.frames)} frames")
        if modes is None:
            modes = self._frame_masks()
        elif tuple(modes.shape) != tuple(self.frames.shape):
            raise ValueError(f"modes are {list(modes.shape)}, frames {list(self.frames.shape)}")
        self._modes, self._generator = modes.bool(), torch.Generator().manual_seed(0)
        self._spec = self._make_spec()
        # set before the widget opens, so that its first state is complete
        self.frame = len(self.frames) - 1 if frame is None else frame
        self.mask = self._modes[self.frame] if mask is None else mask
        super().__init__(**self._identity())

    @classmethod
    def from_run(cls, run: Any, cost: Any = None, **options: Any) -> Any:
        """The epochs of a `search.Run` and what it found; `cost` is the one it searched with."""
        options.setdefault("budget", None if cost is None else run.budget)
        found = run.architecture.mask
        return cls(run.graph, frames=run.probabilities, mask=found, cost=cost, **options)

    @property
    def architecture(self) -> Architecture:
        """What is shown, without dead ends."""
        return Architecture.from_mask(self.graph, self.mask)

    @property
    def frame_probabilities(self) -> Tensor | None:
        """Probabilities `[E]` of the frame that is shown; None when masks were recorded."""
        return self.frames[self.frame] if self.probable else None

    def most_probable(self) -> Architecture:
        """Show the deterministic architecture of this frame."""
        self.mask = self._modes[self.frame]
        return self.architecture

    def sample(self) -> Architecture:
        """Show one draw: from the sampler if the view has one, else from the frame's γ."""
        if self.sampler is None:
            p = self.frames[self.frame]
            self.mask = torch.rand(len(p), generator=self._generator) < p
        else:
            self.mask = self.sampler.sample(1, generator=self._generator).mask[0]
        return self.architecture

    def __repr__(self) -> str:
        g, frames = self.graph, f", {len(self.frames)} frames" * (len(self.frames) > 1)
        cost = f", {self._cost_name}" if self.cost is not None else ""
        about = f"{g.name}: {len(g.nodes)} nodes, {len(g)} edges{frames}{cost}"
        return f"{type(self).__name__}({about})"

    @t.validate("frame")
    def _valid_frame(self, proposal: dict) -> int:
        if not 0 <= (frame := proposal["value"]) < len(self.frames):
            raise ValueError(f"frame {frame} does not exist; there are 0…{len(self.frames) - 1}")
        return frame

    @t.observe("frame")
    def _frame_changed(self, _: dict) -> None:
        self.mask = self._modes[self.frame]

    @t.observe("mask")
    def _mask_changed(self, _: dict) -> None:
        if self.cost is not None:
            self.cost_value = price(self.cost, self.graph.reachable(self.mask)[None]).item()
            self._priced = [_to_text(self.mask), self.cost_value]

    def _handle_custom_msg(self, content: Any, buffers: Any) -> None:
        super()._handle_custom_msg(content, buffers)  # type: ignore[misc]
        if content == {"type": "sample"}:
            self.sample()

    def _read_frames(self, frames: Any, probabilities: Any, mask: Any) -> tuple[Tensor, bool]:
        """Float frames `[T ≥ 1, E]`, and whether they are probabilities."""
        E = len(self.graph)
        if frames is None and probabilities is not None:
            return check_probabilities(self.graph, probabilities)[None], True
        if frames is None:
            frames = _as_mask(self.graph, torch.ones(E).bool() if mask is None else mask)[None]
        rows = torch.as_tensor(np.asarray(frames)).detach().cpu()
        if rows.dim() != 2 or not len(rows) or rows.shape[1] != E:
            raise ValueError(f"frames are [T, {E}], got {list(rows.shape)}")
        if rows.dtype == torch.bool:
            return rows.float(), False
        return torch.stack([check_probabilities(self.graph, row) for row in rows]), True

    def _frame_masks(self) -> Tensor:
        """The deterministic architecture of every frame, bool `[T, E]`."""
        groups = self.sampler.groups if isinstance(self.sampler, ChoiceSampler) else ()
        masks = self.frames > 0.5
        for group in map(list, groups if self.probable else ()):
            masks[:, group] = False
            best = self.frames[:, group].argmax(1)
            masks[torch.arange(len(masks)), torch.tensor(group)[best]] = True
        return self.graph.reachable(masks) if self.probable else masks

    @property
    def _cost_name(self) -> str:
        cost: Any = self.cost
        return str(getattr(cost, "name", getattr(cost, "__name__", type(cost).__name__)))

    def _make_spec(self) -> dict[str, Any]:
        graph, s = self.graph, scene(self.graph)
        kinds, ends = list(s.colours), (graph.edge_sources, graph.edge_targets)
        spec: dict[str, Any] = {
            "title": self.title or graph.name,
            "width": s.width, "height": s.height, "thickness": s.thickness,
            "kinds": list(s.colours.items()), "nodes": s.nodes,
            "edges": [
                {"n": i.name, "m": i.module, "a": i.macs, "p": i.params, "s": a, "t": b,
                 "k": kinds.index(i.kind), "shape": shape}
                for i, a, b, shape in zip(graph.edges, *ends, s.edges, strict=True)
            ],
            "order": graph.order, "count": len(self.frames), "label": self.frame_label,
            "names": None if self.frame_names is None else list(map(str, self.frame_names)),
            "frames": _base64((self.frames.numpy() * 255).round().astype(np.uint8)),
            "modes": _base64(np.packbits(self._modes.numpy(), axis=1, bitorder="little")),
            "probable": self.probable, "labels": self.probable and len(graph) <= 30,
            "groups": getattr(self.sampler, "groups", None), "sampling": "kernel",
            "budget": self.budget, "full": None, "table": None, "costs": None,
            "points": self.points,
        }  # fmt: skip
        if isinstance(self.sampler, (type(None), BernoulliSampler, ChoiceSampler)):
            spec["sampling"] = "page"
        if (cost := self.cost) is not None:
            masks = torch.cat([torch.ones(1, len(graph)).bool(), graph.reachable(self._modes)])
            full, *costs = price(cost, masks).tolist()
            spec |= {"cost_name": self._cost_name, "unit": getattr(cost, "unit", ""),
                     "full": full, "costs": costs}  # fmt: skip
            # the page itself can add up a cost that is a plain sum over the edges
            if isinstance(cost, AdditiveCost) and type(cost).__call__ is AdditiveCost.__call__:
                spec["table"] = cost.per_edge.tolist()
        return json.loads(json.dumps(spec, default=list))

    def _draw(self, note: str) -> Any:
        from nas_core.viz.plots import plot_pareto
        from nas_core.viz.static import architecture_figure

        facts, t, points = [], self.frame, self.points
        if len(self.frames) > 1:
            number = f"{self.frame_label} {t + 1} of {len(self.frames)}"
            facts.append(self.frame_names[t] if self.frame_names else number)
        if self.cost_value is not None:
            unit = getattr(self.cost, "unit", "")
            budget = "" if self.budget is None else f" (budget {short(self.budget, unit)})"
            facts.append(short(self.cost_value, unit) + budget)
        title = "\n".join(filter(None, [self.title or self.graph.name, " · ".join(facts)]))
        shown = self.graph, self.mask, self.frame_probabilities
        figure = architecture_figure(*shown, title=title, left=3.6 * bool(points), note=note)
        if points:
            width, height = figure.get_size_inches()
            place = (0.6 / width, 0.5 / height, 2.8 / width, min(2.2 / height, 0.7))
            names = {name: points[name] for name in ("xlabel", "ylabel")}
            runs = pd.DataFrame({"x": points["x"], "y": points["y"]})
            ax = plot_pareto(runs, "x", "y", ax=figure.add_axes(place), **names)
            ax.scatter(runs.x[t], runs.y[t], s=130, facecolors="none", edgecolors=PALETTE[3], lw=2)
        return figure


class ParetoPanel(ArchView):
    """Several runs of one space: a scatter beside the graph; choosing a point shows that run.

    Args:
        runs: one per point: `search.Run`s (whose costs are known), `Architecture`s or masks `[E]`.
        costs, values, names: one per run (lower cost is better, higher value is better).
        view: `cost`, `budget`, `title` … of `ArchView`.
    """

    def __init__(
        self, space: Any, runs: Sequence[Any], costs: Sequence[float] | None = None,
        values: Sequence[float] = (), *, names: Sequence[str] | None = None, xlabel: str = "cost",
        ylabel: str = "accuracy", **view: Any,
    ):  # fmt: skip
        from nas_core.viz.plots import on_front

        x = [run.cost for run in runs] if costs is None else [float(c) for c in costs]
        y = [float(v) for v in values]
        if not len(runs) == len(x) == len(y) > 0:
            raise ValueError(f"{len(runs)} runs, {len(x)} costs and {len(y)} values do not match")
        if not np.isfinite([x, y]).all():
            raise ValueError("costs and values of the runs must be finite")
        names = [f"run {i + 1}" for i in range(len(runs))] if names is None else list(names)
        front = on_front(x, y)
        points = {"x": x, "y": y, "name": names, "front": front.tolist()}
        points |= {"xlabel": xlabel, "ylabel": ylabel}
        view.setdefault("frame", int(np.argmax(np.where(front, y, -np.inf))))
        kept = [getattr(run, "architecture", run) for run in runs]
        masks = np.stack([np.asarray(getattr(a, "mask", a), dtype=bool) for a in kept])
        super().__init__(space, frames=masks, frame_names=names, points=points, **view)
