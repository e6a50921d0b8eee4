"""Distributed cost of sampled W = 8 fabrics: cold, remembered, and one at a time by networkx.

python benchmarks/distributed_cost.py
"""

from __future__ import annotations

import time

import torch
from common import write_results

from nas_core.costs import Distributed, longest_first
from nas_core.spaces import conv_fabric
from nas_core.supernet import BernoulliSampler
from nas_core.training import one_thread


def milliseconds(call, repeats: int = 5) -> float:
    """Best CPU time of some repeats: one thread, and other work on the machine does not count."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        call()
        times.append(1e3 * (time.process_time() - start))
    return min(times)


def main() -> None:
    one_thread()
    net = conv_fabric(8, 6, 2, 10)
    graph = net.graph
    sampler = BernoulliSampler(graph, fixed=graph.of_kind("stem", "head"))
    masks = graph.reachable(sampler.sample(400, torch.Generator().manual_seed(0)).mask)
    masks = masks.unique(dim=0)[:256]
    assert len(masks) == 256
    rows = []
    for n in (1, 2, 4):
        cold = milliseconds(lambda n=n: Distributed(net, n)(masks))
        cost = Distributed(net, n)
        cost(masks)
        warm = milliseconds(lambda cost=cost: cost(masks))
        what = f"256 distinct W=8 fabrics, n={n}"
        rows += [
            {"what": f"{what}, cold", "value": round(cold, 1), "unit": "ms", "versus": "limit 150"},
            {"what": f"{what}, again", "value": round(warm, 2), "unit": "ms", "versus": "memoised"},
        ]
    slow = Distributed(net, 2, longest_first)
    each = milliseconds(lambda: slow(masks[:16]), 1) * 16
    rows.append(
        {
            "what": "the same, n=2, one at a time through networkx (of 16)",
            "value": round(each),
            "unit": "ms",
            "versus": "another allocation",
        }
    )
    write_results("distributed_cost", rows)


if __name__ == "__main__":
    main()
