"""Distributions over the architectures of a super-network (thesis section 3.4.2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid

from nas_core.supernet.graph import Graph


class Sample(NamedTuple):
    """What a sampler draws for a batch."""

    mask: Tensor  # bool [B, E], connectivity-aware but not pruned: see Graph.reachable
    log_prob: Tensor  # [B], log P(H | Γ), differentiable
    entropy: Tensor  # [B], its mean is an unbiased estimate of the entropy of H, differentiable


def bernoulli_log_prob(logits: Tensor, mask: Tensor, drawn: Tensor) -> Tensor:
    """log P(H) `[B]` of masks `[B, E]` whose edges were kept independently with σ(logits).

    Logits are `[E]`, or `[B, E]` for a distribution per row. Edges outside `drawn` (bool `[B, E]`,
    those whose source was connected) add 0.
    """
    logits = logits.expand(mask.shape)
    log_p = -binary_cross_entropy_with_logits(logits, mask.to(logits.dtype), reduction="none")
    return (log_p * drawn.to(logits.dtype)).sum(1)


class _Sampler(nn.Module):
    """A logit per edge, `[E]`; subclasses define what is drawn and its probability."""

    # (batch, generator) -> edges [B, E] drawn as if every node were connected
    _wanted: Callable[[int, torch.Generator | None], Tensor]
    # (mask [B, E], drawn [B, E]) -> rows [B] that are never drawn; log-probability, entropy [B]
    _impossible: Callable[[Tensor, Tensor], Tensor]
    _score: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

    def __init__(self, graph: Graph, logit: float):
        super().__init__()
        self.graph, self.initial_logit = graph, float(logit)
        self.logits = nn.Parameter(torch.full((len(graph),), self.initial_logit))

    def reset(self) -> None:
        """Set every logit back to its initial value, as the thesis does after warm-up."""
        nn.init.constant_(self.logits, self.initial_logit)

    def sample(self, batch: int, generator: torch.Generator | None = None) -> Sample:
        """Draw one architecture per example of a batch of this size."""
        mask, drawn = self.graph.connected(self._wanted(batch, generator))
        return Sample(mask, *self._score(mask, drawn))

    def log_prob(self, mask: Tensor) -> Tensor:
        """log P(H | Γ) `[B]` of given connectivity-aware masks `[B, E]`; −∞ for impossible ones."""
        mask = self.graph.check_mask(mask)
        connected, drawn = self.graph.connected(mask)
        impossible = (mask & ~connected).any(1) | self._impossible(mask, drawn)
        return torch.where(impossible, -torch.inf, self._score(mask, drawn)[0])

    def _checked(self) -> Tensor:
        """The logits, refused where they are not finite: their entropy would be NaN."""
        if not self.logits.isfinite().all():
            e = int((~self.logits.isfinite()).nonzero()[0])
            fault = f"the logit of edge {self.graph.edges[e].name} is {self.logits[e].item()}"
            raise ValueError(f"{fault}; logits must be finite; ±20 already means (almost) certain")
        return self.logits


class BernoulliSampler(_Sampler):
    """Γ: every edge is kept independently with probability γ = σ(γ̂).

    Edges are drawn in topological order and only where their source is already connected to the
    input; an edge that is not drawn is off and adds nothing to log P. The parameter `logits`
    (γ̂, one per edge) starts at `logit`, where 3 is γ ≈ 0.95. Edges whose numbers are in `fixed`
    (a stem, a classifier) are always kept: they are not drawn.
    """

    fixed: Tensor

    def __init__(self, graph: Graph, *, logit: float = 3.0, fixed: Sequence[int] = ()):
        super().__init__(graph, logit)
        if wrong := [e for e in fixed if not 0 <= e < len(graph)]:
            raise ValueError(f"fixed edges {wrong} are not in 0…{len(graph) - 1} of {graph.name}")
        self.register_buffer("fixed", torch.tensor([e in fixed for e in range(len(graph))]))

    def _wanted(self, batch: int, generator: torch.Generator | None) -> Tensor:
        noise = torch.rand(batch, len(self.graph), generator=generator, device=self.logits.device)
        return (noise < torch.sigmoid(self._checked())) | self.fixed

    def _impossible(self, mask: Tensor, drawn: Tensor) -> Tensor:
        return (drawn & self.fixed & ~mask).any(1)

    def _score(self, mask: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
        drawn = drawn & ~self.fixed
        entropy = drawn.to(self.logits.dtype) @ self._edge_entropy()
        return bernoulli_log_prob(self.logits, mask, drawn), entropy

    def _edge_entropy(self) -> Tensor:
        gamma = torch.sigmoid(self.logits)
        return -(gamma * logsigmoid(self.logits) + (1 - gamma) * logsigmoid(-self.logits))

    def entropy(self) -> Tensor:
        """Σ_e H(γ_e) in nats over the edges that are not fixed: 0 when one architecture is left."""
        return (self._edge_entropy() * ~self.fixed).sum()

    def probabilities(self) -> Tensor:
        """γ `[E]`, detached; 1 for fixed edges."""
        return torch.where(self.fixed, 1.0, torch.sigmoid(self._checked())).detach()

    def mode(self) -> Tensor:
        """The deterministic architecture: the edges with γ > ½ on a live path, bool `[E]`."""
        return self.graph.reachable(self.probabilities() > 0.5)


class ChoiceSampler(_Sampler):
    """Exactly one edge out of each group, drawn from a categorical distribution.

    Edges outside every group (a list of edge numbers) are always kept. A group only counts where
    one of its edges starts at a connected node: choices depend on those before them. Groups of the
    edges out of each node give *paths*, groups of parallel edges *cells*.
    """

    membership: Tensor

    def __init__(self, graph: Graph, groups: Sequence[Sequence[int]]):
        super().__init__(graph, 0.0)
        flat = [e for group in groups for e in group]
        if len(set(flat)) < len(flat) or any(not 0 <= e < len(graph) for e in flat):
            raise ValueError(f"groups must be disjoint lists of edges 0…{len(graph) - 1}")
        if not all(groups):
            raise ValueError("a group needs at least one edge to choose from")
        self.groups = tuple(tuple(group) for group in groups)
        member = torch.zeros(len(self.groups), len(graph), dtype=torch.bool)
        for g, group in enumerate(self.groups):
            member[g, list(group)] = True
        self.register_buffer("membership", member)

    @classmethod
    def paths(cls, graph: Graph) -> ChoiceSampler:
        """Sampler over the source→sink paths: at every node one outgoing edge is chosen."""
        return cls(graph, [edges for edges in graph.leaving if edges])

    def _log_choice(self) -> Tensor:
        """log-probability of every edge within its group `[E]`; 0 for edges outside groups."""
        logits = self._checked().masked_fill(~self.membership, -torch.inf)  # [G, E]
        total = torch.logsumexp(logits, 1) @ self.membership.to(logits.dtype)  # [G] → [E]
        return (self.logits - total) * self.membership.any(0)

    def _wanted(self, batch: int, generator: torch.Generator | None) -> Tensor:
        choice = self.probabilities()
        wanted = (~self.membership.any(0)).expand(batch, -1).clone()
        for group in self.groups:
            p = choice[list(group)]
            picked = torch.multinomial(p, batch, replacement=True, generator=generator)
            wanted[torch.arange(batch), torch.tensor(group, device=p.device)[picked]] = True
        return wanted

    def _impossible(self, mask: Tensor, drawn: Tensor) -> Tensor:
        free = drawn & ~self.membership.any(0)
        # A group keeps at most one edge; exactly one if all of its edges were drawn. (Of a group
        # that was drawn in part, the chosen edge may be one that starts at an unconnected node.)
        kept, whole = self._count(mask), self._count(drawn) == self.membership.sum(1)  # [B, G]
        return (free & ~mask).any(1) | ((kept > 1) | (whole & (kept != 1))).any(1)

    def _count(self, mask: Tensor) -> Tensor:
        return mask.to(self.logits.dtype) @ self.membership.to(self.logits.dtype).T

    def _score(self, mask: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
        log_choice = self._log_choice()
        active = (self._count(drawn) > 0).to(log_choice.dtype)  # [B, G]
        return mask.to(log_choice.dtype) @ log_choice, active @ self._group_entropy(log_choice)

    def _group_entropy(self, log_choice: Tensor) -> Tensor:
        return -(self.membership.to(log_choice.dtype) @ (log_choice.exp() * log_choice))

    def entropy(self) -> Tensor:
        """Σ over groups of the entropy of the choice, in nats."""
        return self._group_entropy(self._log_choice()).sum()

    def probabilities(self) -> Tensor:
        """Probability of every edge within its group `[E]`, detached; 1 outside groups."""
        return self._log_choice().exp().detach()

    def mode(self) -> Tensor:
        """The most probable choice of every group, pruned to the live path; bool `[E]`."""
        p = self.probabilities()
        mask = ~self.membership.any(0)
        for group in self.groups:
            mask[group[int(p[list(group)].argmax())]] = True
        return self.graph.reachable(mask)
