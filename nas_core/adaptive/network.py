"""A super-network unrolled over a stream; a controller chooses the architecture of each step."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from nas_core.supernet import SuperNetwork
from nas_core.supernet.samplers import bernoulli_log_prob
from nas_core.training import require

Blind = Literal["noise", "shuffled"] | None


class Controller(nn.Module):
    """z_{t+1} = GRU(Φ_t, z_t), Γ_t = σ(h(z_t)) (thesis section 4.3.3).

    Γ_t depends only on inputs *before* step t. z_0 is learned. `features` is the size of Φ, `edges`
    the number of gates, `hidden` the size of z, `bias` the first logit of every gate (3: γ ≈ .95).

    `blind` replaces Φ in control experiments. "noise": normal noise. "shuffled": the Φ of another
    stream of the batch at the same step; the inputs keep their distribution at each step and lose
    their meaning for *this* stream. Either can learn how much to spend (and count steps), not when.
    """

    fixed: None = None

    def __init__(
        self, features: int, edges: int, *, hidden: int = 100, bias: float = 3, blind: Blind = None
    ):
        known = blind in (None, "noise", "shuffled")
        require(known, "blind", blind, "None, 'noise' or 'shuffled'")
        super().__init__()
        self.recurrent = nn.GRUCell(features, hidden)
        self.gates = nn.Linear(hidden, edges)
        nn.init.constant_(self.gates.bias, bias)
        self.initial = nn.Parameter(torch.zeros(hidden))
        self.blind = blind

    @property
    def macs(self) -> int:
        """Multiply-adds per step: three gates of the GRU, and the linear layer."""
        hidden, features = self.recurrent.hidden_size, self.recurrent.input_size
        return 3 * hidden * (features + hidden) + self.gates.weight.numel()

    def start(self, batch: int) -> Tensor:
        """z_0 `[B, hidden]`."""
        return self.initial.expand(batch, -1)

    def logits(self, state: Tensor) -> Tensor:
        """log-odds of Γ `[B, E]`."""
        return self.gates(state)

    def step(self, features: Tensor, state: Tensor) -> Tensor:
        """z_{t+1} from Φ_t and z_t."""
        if self.blind == "noise":
            features = torch.randn_like(features)
        elif self.blind == "shuffled":
            # A rotation moves every row; a batch of one stream has no other one to take from.
            others = int(torch.randint(1, max(2, len(features)), ()))
            features = features.roll(others, 0) if len(features) > 1 else features * 0
        return self.recurrent(features, state)


class FixedController(nn.Module):
    """Always the edges of `mask`, bool `[E]`, at no cost: a static network in the same code."""

    fixed: Tensor
    blind: Blind = None
    macs = 0

    def __init__(self, mask: Tensor):
        super().__init__()
        self.register_buffer("fixed", mask.clone())

    def start(self, batch: int) -> Tensor:
        """An empty state `[B, 0]`."""
        return torch.zeros(batch, 0, device=self.fixed.device)

    def logits(self, state: Tensor) -> Tensor:
        """±30 `[B, E]`: certain to within float32."""
        return (self.fixed * 60.0 - 30.0).expand(len(state), -1)

    def step(self, features: Tensor, state: Tensor) -> Tensor:
        return state


class Unrolled(NamedTuple):
    """What happened at each step; zero (False) where a sequence has ended. One step: without T."""

    logits: Tensor  # [B, T, C], predictions
    mask: Tensor  # bool [B, T, E], architectures, without dead ends
    log_prob: Tensor  # [B, T], log P(A_t | z_t), differentiable
    gamma: Tensor  # [B, T, E], Γ, detached


class AdaptiveNetwork(nn.Module):
    """f(x_t, E ∘ H_t) with H_t drawn from a controller of x_1 … x_{t−1} (fig. 4.6).

    The `trunk` is a super-network from a map to Φ `[B, n]`; a linear classifier on Φ is always on.
    `moments` (mean and deviation of each coefficient, `StreamSet.moments`) normalise the maps.
    """

    mean: Tensor
    std: Tensor
    edge_macs: Tensor

    def __init__(
        self,
        trunk: SuperNetwork,
        num_classes: int,
        controller: Controller | FixedController | None = None,
        *,
        moments: tuple[Tensor, Tensor] | None = None,
    ):
        super().__init__()
        shape = trunk.graph.shapes.get(trunk.graph.sink, ())
        ends = len(shape) == 1 and trunk.input_shape is not None
        needed = "features (n,) of a trunk with input_shape, e.g. of keyword_cnn(head=False)"
        require(ends, f"the output of {trunk.graph.name}", shape, needed)
        coefficients = (trunk.input_shape or ())[-1]
        mean, std = moments or (torch.zeros(coefficients), torch.ones(coefficients))
        self.trunk = trunk
        self.classifier = nn.Linear(shape[0], num_classes)
        self.controller = controller or Controller(shape[0], trunk.num_edges)
        gates = self.controller.logits(self.controller.start(1)).shape[1]
        require(gates == trunk.num_edges, "number of gates", gates, f"{trunk.num_edges}, as edges")
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self.register_buffer("edge_macs", trunk.graph.macs.double(), persistent=False)

    @property
    def overhead(self) -> int:
        """Multiply-adds of every step whatever the architecture: classifier and controller."""
        return self.classifier.weight.numel() + self.controller.macs

    @property
    def full_macs(self) -> int:
        """Multiply-adds of a step with everything on."""
        return int(self.edge_macs.sum()) + self.overhead

    def macs(self, mask: Tensor) -> Tensor:
        """C(A) of masks without dead ends `[..., E]`, controller included; float64 `[...]`."""
        return mask.double() @ self.edge_macs + self.overhead

    def forward(
        self, x: Tensor, state: Tensor, *, draw: Tensor | None = None
    ) -> tuple[Unrolled, Tensor]:
        """Choose an architecture, compute maps `[B, 1, F, n_mfcc]` with it; also gives z_{t+1}.

        `state` is z_t `[B, hidden]`, `controller.start(B)` at first. Uniform numbers `draw`
        `[B, E]` sample H; without them the most probable architecture (γ > ½) is taken.
        """
        logits = self.controller.logits(state)  # [B, E]
        gamma = torch.sigmoid(logits.detach())
        wanted = gamma > 0.5 if draw is None else draw.to(gamma) < gamma
        # An edge behind a closed gate is never drawn and contributes nothing to P(A).
        connected, drawn = self.trunk.graph.connected(wanted)
        log_prob = bernoulli_log_prob(logits, connected, drawn)  # [B]
        mask = self.trunk.graph.reachable(connected)
        features = self._features(x, mask)  # Φ_t [B, n]
        following = self.controller.step(features, state)  # z_{t+1} [B, hidden]
        return Unrolled(self.classifier(features), mask, log_prob, gamma), following

    def decide(self, x: Tensor, state: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Logits `[1, C]` and the next state: `forward` of one stream whose mask `[E]` is known."""
        features = self._features(x, mask.unsqueeze(0))
        return self.classifier(features), self.controller.step(features, state)

    def _features(self, x: Tensor, mask: Tensor) -> Tensor:
        x = (x - self.mean) / self.std
        return self.trunk(x, mask[0] if len(mask) == 1 else mask)

    def unroll(
        self,
        x: Tensor,
        length: Tensor,
        *,
        generator: torch.Generator | None = None,
        everything: bool = False,
    ) -> Unrolled:
        """Run over sequences of maps `[B, T, 1, F, n_mfcc]` with `length` `[B]` real steps each.

        Steps beyond the length are never computed. Architectures are sampled with `generator`,
        or the most probable ones; `everything` (warm-up) has all edges on and the controller at
        rest, so that log P is 0.
        """
        batch, steps = x.shape[:2]
        kept = torch.ones_like(self.edge_macs).bool() if everything else self.controller.fixed
        if kept is not None:  # bool [E]: all steps of all sequences in one call
            valid = torch.arange(steps, device=x.device) < length.unsqueeze(1)  # [B, T]
            mask = self.trunk.graph.reachable(kept)
            features = self._features(x[valid], mask.unsqueeze(0))  # [N, n], N real steps
            logits = features.new_zeros(batch, steps, self.classifier.out_features)
            logits[valid] = self.classifier(features)
            masks = valid.unsqueeze(2) & mask  # [B, T, E]
            return Unrolled(logits, masks, logits.new_zeros(batch, steps), masks.to(logits))
        out = Unrolled(
            x.new_zeros(batch, steps, self.classifier.out_features),
            torch.zeros(batch, steps, self.trunk.num_edges, dtype=torch.bool, device=x.device),
            x.new_zeros(batch, steps),
            x.new_zeros(batch, steps, self.trunk.num_edges),
        )
        state = self.controller.start(batch)  # [B, hidden]
        rows = torch.arange(batch, device=x.device)  # sequences that have not ended
        for t in range(min(steps, int(length.max()))):
            going = length[rows] > t
            if not going.all():
                rows, state = rows[going], state[going]
            draw = None
            if generator is not None:  # drawn for all rows, so that padding changes nothing
                draw = torch.rand(batch, self.trunk.num_edges, generator=generator)
                draw = draw.to(x.device)[rows]
            step, state = self(x[rows, t], state, draw=draw)
            for total, value in zip(out, step, strict=True):
                total[rows, t] = value
        return out
