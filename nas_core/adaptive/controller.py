"""What chooses the architecture of the next step: a recurrent controller, or a constant."""

from typing import Literal

import torch
from torch import Tensor, nn

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
        self,
        features: int,
        edges: int,
        *,
        hidden: int = 100,
        bias: float = 3.0,
        blind: Blind = None,
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
