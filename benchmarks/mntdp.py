"""MNTDP-D's search over seven paths against one training and against seven separate ones.

The thesis' ResNet (64 channels, 32×32) unless `--width` says otherwise; equal steps, equal
batches; the three are measured in turn, several times, in processor time of one thread, and the
median is taken, so that a busy machine slows all of them alike. `python benchmarks/mntdp.py`
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from common import write_results
from torch.nn.functional import cross_entropy

from nas_core.continual import FitConfig, make_learner, resnet
from nas_core.continual.learners.mntdp import Trunk
from nas_core.training import one_thread


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    one_thread()
    torch.manual_seed(0)
    backbone = resnet(args.width)
    learner = make_learner("MNTDP-D", backbone, FitConfig())
    learner.library.grow((0,) * 7, 10)
    learner.library.eval().requires_grad_(False)
    prefixes = learner.prefixes([(0, 1.0)])
    suffixes = [
        torch.nn.ModuleList([backbone.block(n, 10) for n in range(len(p), 7)]) for p in prefixes
    ]
    trunk = Trunk(learner.library, prefixes)
    search = torch.optim.Adam([p for s in suffixes for p in s.parameters()], fused=True)
    whole = torch.nn.Sequential(*backbone.path(10))
    alone = torch.optim.Adam(whole.parameters(), fused=True)
    x, y = torch.randn(args.batch, 3, 32, 32), torch.randint(10, (args.batch,))

    def independent() -> None:
        alone.zero_grad()
        cross_entropy(whole(x), y).backward()
        alone.step()

    def all_paths() -> None:
        search.zero_grad()
        seen = trunk(x)
        losses = []
        for prefix, suffix in zip(prefixes, suffixes, strict=True):
            h = seen[prefix]
            for module in suffix:
                h = module(h)
            losses.append(cross_entropy(h, y))
        torch.stack(losses).sum().backward()
        search.step()

    times: dict[str, list[float]] = {"one": [], "seven": [], "search": []}
    for turn in range(args.rounds + 1):
        for name, steps in (("one", [independent]), ("search", [all_paths]),
                            ("seven", [independent] * 7)):  # fmt: skip
            start = time.process_time()
            for step in steps:
                step()
            if turn:  # the first round warms up
                times[name].append(time.process_time() - start)
    one, seven, all_seven = (statistics.median(times[n]) for n in ("one", "seven", "search"))
    setting = f"ResNet {args.width} channels, batch {args.batch}, one thread"
    write_results(
        "mntdp",
        [
            {"what": f"search over 7 paths / one Independent training; {setting}",
             "value": round(all_seven / one, 2), "unit": "×", "versus": "limit 3"},
            {"what": f"search over 7 paths / seven full trainings; {setting}",
             "value": round(all_seven / seven, 2), "unit": "×", "versus": "limit 0.45"},
        ],
    )  # fmt: skip


if __name__ == "__main__":
    main()
