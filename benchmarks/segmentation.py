"""Images a second of DRU(4) beside the U-Net, on one thread, in one run.

    OMP_NUM_THREADS=1 python benchmarks/segmentation.py

One image at a time, as in a film, at 224×304 pixels in colour: the 230×306 of the source's hands
(table 2.1) cut to multiples of 16. Its 61 images a second were measured on a GPU; here only the
ratios mean something. Nothing is trained: the time does not depend on the weights.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from common import write_results

from nas_core.segmentation import count_macs, segmenter

HEIGHT, WIDTH = 224, 304
NETWORKS = [("U-Net-G", 1), ("DRU(4)", 1), ("DRU(4)", 2), ("DRU(4)", 3), ("SRU(4)", 3)]


@torch.no_grad()
def seconds(repeats: int) -> list[list[float]]:
    """Processor time of every image, the networks in turn, so that a busy machine hits all."""
    x = torch.randn(1, 3, HEIGHT, WIDTH)
    nets = [(segmenter(name, 3, 2).eval(), looks) for name, looks in NETWORKS]
    times: list[list[float]] = [[] for _ in nets]
    for k in range(repeats + 2):  # the first two warm up
        for mine, (net, looks) in zip(times, nets, strict=True):
            start = time.thread_time()
            net(x, looks)
            if k > 1:
                mine.append(time.thread_time() - start)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=21)
    repeats = parser.parse_args().repeats
    torch.manual_seed(0)
    torch.set_num_threads(1)
    times = seconds(repeats)
    macs = [count_macs(segmenter(name, 3, 2), HEIGHT, WIDTH, looks) for name, looks in NETWORKS]
    rows = []
    for (name, looks), mine, mac in zip(NETWORKS, times, macs, strict=True):
        own = statistics.median(mine)
        ratio = statistics.median(a / b for a, b in zip(mine, times[0], strict=True))
        what = f"{name}, {looks} iteration{'s' * (looks > 1)}, {HEIGHT}×{WIDTH}"
        versus = f"{ratio:.2f} × the time of the U-Net, {mac / macs[0]:.2f} × its macs"
        rows.append({"what": what, "value": float(f"{1 / own:.3g}"), "unit": "images/s",
                     "versus": versus})  # fmt: skip
    write_results("segmentation", rows)


if __name__ == "__main__":
    main()
