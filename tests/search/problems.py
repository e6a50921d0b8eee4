"""A search whose answer is known: a curved boundary, which only one edge can follow."""

from __future__ import annotations

import torch
from torch import nn

from nas_core.search import BudgetConfig
from nas_core.supernet import BernoulliSampler, SuperNetwork
from nas_core.training import TensorData

CONFIG = BudgetConfig(
    epochs=15, warmup_epochs=3, batch_size=64, lr=0.03, milestones=(), gamma_lr=1.0, lam=3.0
)


class Xor:
    """Sign of x1·(x2 + 0.7): a line gets about three quarters right."""

    def __init__(self, n: int = 1024, seed: int = 0):
        x = torch.randn(3 * n, 2, generator=torch.Generator().manual_seed(seed))
        y = (x[:, 0] * (x[:, 1] + 0.7) > 0).long()
        parts = [TensorData(x[i : i + n], y[i : i + n]) for i in range(0, 3 * n, n)]
        self.train, self.val, self.test = parts


def xor_net(seed: int = 0) -> SuperNetwork:
    """x → h by a useful, a useless linear and two idle dear edges; h → y is the head."""
    torch.manual_seed(seed)

    def deep(hidden: int) -> nn.Sequential:
        return nn.Sequential(nn.Linear(2, hidden), nn.ReLU(), nn.Linear(hidden, 8))

    class Idle(nn.Module):
        """Costs multiply-adds and says nothing."""

        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(2, 200, bias=False)

        def forward(self, x):
            return self.linear(x).sum(1, keepdim=True).expand(-1, 8) * 0

    edges = [
        ("x", "h", deep(32), "useful"),
        ("x", "h", nn.Linear(2, 8), "linear"),
        ("x", "h", Idle(), "idle 1"),
        ("x", "h", Idle(), "idle 2"),
        ("h", "y", nn.Linear(8, 2), "head", "head"),
    ]
    return SuperNetwork(edges, "x", "y", input_shape=(2,))


def xor_sampler(net: SuperNetwork) -> BernoulliSampler:
    return BernoulliSampler(net.graph, fixed=net.graph.of_kind("head"))
