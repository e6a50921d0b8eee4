"""The record of one search: everything needed to read, replay or continue from its result."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nas_core.supernet import Architecture, Graph
from nas_core.training import load_checkpoint, save_atomic

if TYPE_CHECKING:
    import pandas as pd

STILL = 0.02  # a Γ whose every γ moves by less than this in an epoch stands still
OPEN = 0.1  # a gate is undecided while its γ is further than this from 0 and from 1


class SearchWarning(UserWarning):
    """The result of a search should not be trusted as it is; the message says what to change."""


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

    @property
    def meets_budget(self) -> bool:
        return not self.architecture.is_empty and self.cost <= self.budget

    def statement(self) -> str:
        """What was found, whether it keeps to the budget, and what to distrust."""
        if self.architecture.is_empty:
            found = "No path from input to output has every γ above ½: nothing was found."
        else:
            verdict = "meets" if self.meets_budget else "MISSES"
            cost = f"{self.cost:.4g} {self.cost_unit}".rstrip()
            if self.full_cost > 0:
                cost += f" ({self.cost / self.full_cost:.0%} of the full network)"
            found = (
                f"{len(self.architecture.kept)} of {len(self.graph)} edges are left; their "
                f"{self.cost_name} of {cost} {verdict} the budget of {self.budget:.4g}."
            )
        return " ".join([found, *self.diagnosis()])

    def diagnosis(self) -> list[str]:
        """Sentences that say why this result should be distrusted, and what to change."""
        epochs = int((self.history.phase == "search").sum())
        gamma = self.probabilities[len(self.history) - epochs :]  # [epochs, E]
        if epochs < 2:
            return []
        first, last = self.history.loss.iloc[0], self.history.loss.iloc[-1]
        # Epochs of the search until Γ stood still, and the undecided gates on the live part.
        moved = ((gamma[1:] - gamma[:-1]).abs().amax(1) > STILL).nonzero()
        settled = int(moved.max()) + 2 if len(moved) else 1
        nodes = {self.graph.source, *(self.graph.edges[e].target for e in self.architecture.kept)}
        live = torch.tensor([edge.source in nodes for edge in self.graph.edges])
        undecided = int((live & (gamma[-1] > OPEN) & (gamma[-1] < 1 - OPEN)).sum())
        remarks = []
        if last > 0.95 * first:
            remarks.append(
                f"The network did not learn (loss {first:.3g} in the first epoch, {last:.3g} in "
                "the last), so that Γ followed the cost alone: change lr, or train longer."
            )
        if not self.meets_budget and bool((gamma[-1] > 0.5).all()):
            remarks.append(
                f"No gate closed in {len(gamma)} epochs of search although the budget is exceeded: "
                "raise gamma_lr (× 3 to × 10), or search longer."
            )
        elif settled <= len(gamma) / 2 and not undecided:
            remarks.append(
                f"Γ stood still after {settled} of {len(gamma)} epochs of search, before the loss "
                "could say much: lower gamma_lr (÷ 3 to ÷ 10), set gamma_momentum to 0, or bound "
                "it with max_logit."
            )
        if undecided:
            remarks.append(
                f"{undecided} of {int(live.sum())} gates are undecided (γ within "
                f"{OPEN:g}…{1 - OPEN:g}): search longer, raise gamma_lr, or choose among several "
                "architectures with `search.shortlist`."
            )
        if not self.architecture.is_empty and not self.meets_budget:
            remarks.append("Raise lam (× 3 to × 10), or choose with `search.shortlist`.")
        elif self.meets_budget and self.cost < 0.85 * self.budget < 0.85 * self.full_cost:
            remarks.append(
                f"{1 - self.cost / self.budget:.0%} of the budget is unused: samples above it are "
                "punished, and nothing rewards coming close. Choose with `search.shortlist`, which "
                "prefers architectures that spend, or lower gamma_lr or lam."
            )
        return remarks

    def save(self, path: str | Path) -> None:
        """Write the run to one file; an interrupted write leaves the old file in place."""
        saved = {"graph": self.graph.to_dict(), "history": self.history.to_dict("list")}
        saved["architecture"] = self.architecture.kept
        save_atomic({f.name: getattr(self, f.name) for f in fields(self)} | saved, path)

    @classmethod
    def load(cls, path: str | Path) -> Run:
        """Read `save`'s file back."""
        import pandas as pd

        record, wanted = load_checkpoint(path), {f.name for f in fields(cls)}
        if not isinstance(record, dict) or set(record) != wanted:
            raise ValueError(f"{path} is not a saved run: it does not hold {sorted(wanted)}")
        graph, history = Graph.from_dict(record["graph"]), pd.DataFrame(record["history"])
        arch = Architecture(graph, tuple(record["architecture"]))
        return cls(**record | {"graph": graph, "history": history, "architecture": arch})
