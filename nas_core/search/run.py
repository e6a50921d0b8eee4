"""The record of one search: everything needed to read, replay or continue from its result."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import pandas as pd
from torch import Tensor

from nas_core.supernet import Architecture, Graph
from nas_core.training import load_checkpoint, save_atomic


@dataclass
class Run:
    """Result of `search.budgeted`."""

    graph: Graph
    history: pd.DataFrame  # one row per epoch
    probabilities: Tensor  # float32 [T, E]: γ at the end of each epoch, 1 during warm-up
    architecture: Architecture  # the deterministic architecture at the end
    cost: float  # of that architecture
    budget: float
    full_cost: float  # of the whole super-network
    cost_name: str
    cost_unit: str
    config: dict[str, Any]
    seed: int
    versions: dict[str, str]
    interrupted: bool = False  # Ctrl-C came before the last epoch
    extra: dict[str, Any] = field(default_factory=dict)  # whatever the caller wants to keep

    @property
    def meets_budget(self) -> bool:
        return not self.architecture.is_empty and self.cost <= self.budget

    def statement(self) -> str:
        """One sentence that says what was found and whether it keeps to the budget."""
        if self.architecture.is_empty:
            return "No path from input to output has every γ above ½: nothing was found."
        verdict = "meets" if self.meets_budget else "MISSES"
        share = self.cost / self.full_cost
        cost = f"{self.cost:.4g} {self.cost_unit}".rstrip()
        return (
            f"{len(self.architecture.kept)} of {len(self.graph)} edges are left; their "
            f"{self.cost_name} of {cost} ({share:.0%} of the full network) "
            f"{verdict} the budget of {self.budget:.4g}."
        )

    def save(self, path: str | Path) -> None:
        """Write the run to one file; an interrupted write leaves the old file in place."""
        record = {f.name: getattr(self, f.name) for f in fields(self)}
        record["graph"] = self.graph.to_dict()
        record["history"] = self.history.to_dict("list")
        record["architecture"] = self.architecture.kept
        save_atomic(record, Path(path))

    @classmethod
    def load(cls, path: str | Path) -> Run:
        """Read `save`'s file back."""
        record = load_checkpoint(Path(path))
        graph = Graph.from_dict(record["graph"])
        record["graph"] = graph
        record["history"] = pd.DataFrame(record["history"])
        record["architecture"] = Architecture(graph, tuple(record["architecture"]))
        return cls(**record)
