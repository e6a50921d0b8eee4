"""What the super-network costs beside the networks it stands for. Ratios within one run.

    OMP_NUM_THREADS=1 python benchmarks/supernet.py

Writes benchmarks/results/supernet.json. Nothing here is asserted in tests: run it by hand, on a
quiet machine, before and after a change to nas_core/supernet.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from common import write_results
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, relu

from nas_core import costs
from nas_core.spaces import conv_fabric, plain_resnet, resnet_fabric
from nas_core.supernet import BernoulliSampler, Graph, SuperNetwork


def seconds(fn: Callable[[], object]) -> float:
    start = time.perf_counter()
    fn()
    return time.perf_counter() - start


def interleaved(repeats: int, *functions: Callable[[], object]) -> list[list[float]]:
    """Times of several functions run in turn, so that a drifting machine hits all alike."""
    for fn in functions:
        fn()
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(repeats):
        for mine, fn in zip(times, functions, strict=True):
            mine.append(seconds(fn))
    return times


# ------------------------------------------------------------------ reachability


def recorded(graph: Graph, mask: Tensor) -> Tensor:
    """Reachability the way an event-recording network does it: per node and per example."""
    out = torch.zeros_like(mask)
    for b, row in enumerate(mask.tolist()):
        arrived: dict[int, set[int]] = {0: set()}
        for e in graph.order:
            source, target = graph.edge_sources[e], graph.edge_targets[e]
            if row[e] and source in arrived:
                arrived.setdefault(target, set()).update(arrived[source] | {e})
        # an event of the sink remembers every edge that it was computed from
        for e in arrived.get(len(graph.nodes) - 1, ()):
            out[b, e] = True
    return out


def reachability(repeats: int) -> list[dict]:
    rows = []
    spaces = {
        "ResNet fabric n=18": (resnet_fabric(18).graph, 64),
        "convolutional fabric W=28 H=6": (conv_fabric(28, 6, 2, 10).graph, 256),
    }
    for name, (graph, batch) in spaces.items():
        mask = torch.rand(batch, len(graph), generator=torch.Generator().manual_seed(0)) < 0.9
        mask = graph.connected(mask)[0]
        assert torch.equal(graph.reachable(mask), recorded(graph, mask))
        fast = interleaved(10 * repeats, lambda g=graph, m=mask: g.reachable(m))[0]
        slow = interleaved(1, lambda g=graph, m=mask: recorded(g, m))[0]
        ms = 1e3 * statistics.median(fast)
        rows.append(
            {
                "what": f"reachable: {name}, {len(graph.nodes)} nodes × {batch} examples",
                "value": round(ms, 3),
                "unit": "ms",
                "versus": f"event recording {1e3 * slow[0]:.0f} ms, {1e3 * slow[0] / ms:.0f}×",
            }
        )
    return rows


# ------------------------------------------------------------------ extracted networks


class PlainResNet20(nn.Module):
    """The same network written by hand."""

    def __init__(self):
        super().__init__()
        self.stem, self.stem_bn = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        self.blocks, inputs = nn.ModuleList(), 16
        for outputs in (16, 32, 64):
            for i in range(3):
                stride = 2 if i == 0 and outputs > 16 else 1
                block = nn.ModuleDict(
                    {
                        "conv1": nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
                        "bn1": nn.BatchNorm2d(outputs),
                        "conv2": nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
                        "bn2": nn.BatchNorm2d(outputs),
                    }
                )
                if stride > 1:
                    projection = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
                    block["skip"] = nn.Sequential(projection, nn.BatchNorm2d(outputs))
                self.blocks.append(block)
                inputs = outputs
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = relu(self.stem_bn(self.stem(x)))
        for b in self.blocks:
            out = b["bn2"](b["conv2"](relu(b["bn1"](b["conv1"](x)))))
            x = relu(out + (b["skip"](x) if "skip" in b else x))
        return self.head(x.mean((2, 3)))


def training_step(net: nn.Module, x: Tensor, y: Tensor, *mask: Tensor) -> Callable[[], None]:
    optimiser = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9)

    def step() -> None:
        optimiser.zero_grad()
        cross_entropy(net(x, *mask), y).backward()
        optimiser.step()

    return step


def extracted(repeats: int) -> list[dict]:
    fabric = resnet_fabric(3)
    arch = plain_resnet(fabric.graph)
    x, y = torch.randn(64, 3, 32, 32), torch.randint(10, (64,))
    net = arch.extract(fabric)
    times = interleaved(
        repeats, training_step(net, x, y), training_step(PlainResNet20(), x, y),
        training_step(fabric, x, y, arch.mask),
    )  # fmt: skip
    ours, hand, masked = (statistics.median(t) for t in times)
    return [
        {
            "what": "training step: extracted ResNet-20 / the same written by hand",
            "value": round(ours / hand, 3),
            "unit": "ratio",
            "versus": f"{1e3 * ours:.0f} ms / {1e3 * hand:.0f} ms",
        },
        {
            "what": "training step: super-network with the mask of ResNet-20 / written by hand",
            "value": round(masked / hand, 3),
            "unit": "ratio",
            "versus": f"{1e3 * masked:.0f} ms / {1e3 * hand:.0f} ms",
        },
    ]


# ------------------------------------------------------------------ one architecture per example


class Dense(nn.Module):
    """Every module on every row, its output multiplied by the mask: saves nothing."""

    def __init__(self, net: SuperNetwork):
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        graph, keep = self.net.graph, mask.to(x.dtype)
        values: dict[int, Tensor] = {0: x}
        done = -1
        for e in graph.order:
            source, target = graph.edge_sources[e], graph.edge_targets[e]
            if source != done:
                op = self.net.node_op(source)
                values[source] = values[source] if op is None else op(values[source])
                done = source
            out = self.net.edge_modules[e](values[source])
            out = out * keep[:, e].view(-1, *[1] * (out.dim() - 1))
            values[target] = out if target not in values else values[target] + out
        return values[len(graph.nodes) - 1]


def masks_at_share(net: SuperNetwork, share: float, batch: int, count: int) -> list[Tensor]:
    """Fresh per-example masks whose mean cost is this share of the full network's."""
    graph, cost = net.graph, costs.computation(net)
    sampler = BernoulliSampler(graph, fixed=graph.of_kind("stem", "head"))
    full = cost(torch.ones(1, len(graph), dtype=torch.bool)).item()
    low, high = -3.0, 12.0
    for _ in range(25):  # bisection on the common logit
        middle = (low + high) / 2
        with torch.no_grad():
            sampler.logits.fill_(middle)
        mask = graph.reachable(sampler.sample(256, torch.Generator().manual_seed(0)).mask)
        low, high = (middle, high) if cost(mask).mean().item() / full < share else (low, middle)
    generator = torch.Generator().manual_seed(1)
    if share == 1.0:
        return [torch.ones(batch, len(graph), dtype=torch.bool)] * count
    return [graph.reachable(sampler.sample(batch, generator).mask) for _ in range(count)]


def per_example(repeats: int) -> list[dict]:
    rows = []
    spaces = {
        "ResNet fabric n=3": (resnet_fabric(3), (3, 32, 32)),
        "convolutional fabric W=3 F=64": (conv_fabric(3, 6, 64, 10), (3, 32, 32)),
    }
    batch = 64
    y = torch.randint(10, (batch,))
    for name, (net, shape) in spaces.items():
        x = torch.randn(batch, *shape)
        dense = Dense(net)
        for share in (1.0, 0.85, 0.5, 0.25):
            masks = masks_at_share(net, share, batch, repeats + 1)
            real = statistics.mean(costs.computation(net)(m).mean().item() for m in masks)
            real /= int(net.graph.macs.sum())
            ours, theirs = [], []
            for i, mask in enumerate(masks):  # a new mask every step, as in training
                a = seconds(training_step(net, x, y, mask))
                b = seconds(training_step(dense, x, y, mask))
                if i:
                    ours.append(a)
                    theirs.append(b)
            ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
            rows.append(
                {
                    "what": f"step at {real:.0%} of the MACs: sparse / masked dense, {name}",
                    "value": round(ratio, 3),
                    "unit": "ratio",
                    "versus": f"{1e3 * statistics.median(ours):.0f} ms / "
                    f"{1e3 * statistics.median(theirs):.0f} ms",
                }
            )
    return rows


# ------------------------------------------------------------------ a whole epoch


def whole_epoch() -> list[dict]:
    """A budgeted epoch (sampling, costs, policy, validation) beside plain training of the net."""
    from nas_core import data
    from nas_core.search import BudgetConfig, budgeted

    images = data.load("colour_shapes", train_limit=512)

    def epochs(count: int, warmup: int) -> float:
        torch.manual_seed(0)
        net = resnet_fabric(3)
        graph = net.graph
        sampler = BernoulliSampler(graph, fixed=graph.of_kind("stem", "head"))
        cost = costs.computation(net)
        config = BudgetConfig(epochs=count, warmup_epochs=warmup, batch_size=64, gamma_lr=0.0)
        return seconds(
            lambda: budgeted(
                net, sampler, cost, float(graph.macs.sum()), images, config, progress=False
            )
        )

    plain = epochs(3, 2) - epochs(2, 1)  # one more epoch of the whole network
    searched = epochs(2, 0) - epochs(1, 0)  # one more epoch with sampling, γ ≈ 0.95
    return [
        {
            "what": "epoch: budgeted search at γ ≈ 0.95 / training of the full ResNet fabric",
            "value": round(searched / plain, 3),
            "unit": "ratio",
            "versus": f"{searched:.1f} s / {plain:.1f} s",
        }
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    torch.manual_seed(0)
    torch.set_num_threads(1)
    parts = (reachability, extracted, per_example)
    rows = [row for part in parts for row in part(repeats)] + whole_epoch()
    write_results("supernet", rows)


if __name__ == "__main__":
    main()
