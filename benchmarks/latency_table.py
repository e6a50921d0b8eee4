"""Measure every edge of a space on this device and write a table that a search can use as cost.

    python benchmarks/latency_table.py fabric.json --space conv_fabric -a columns 4 -a scales 5 \\
        -a channels 16 -a num_classes 10 -a input_shape "(1, 16, 16)" --batch-size 32

In a notebook: `costs.LatencyTable.load("fabric.json").cost(supernet.graph)`. The table is good for
the device, the thread count and the batch size it was measured with; its error on whole networks
is printed and kept in it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from nas_core.workbook.cli import literal


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", type=Path, help="JSON file to write; its folder must exist")
    parser.add_argument("--space", default="conv_fabric", help="a function of nas_core.spaces")
    parser.add_argument(
        "-a",
        dest="arguments",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "VALUE"),
        help="an argument of that function; may be repeated",
    )
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda, …")
    parser.add_argument("--batch-size", type=int, default=1, help="examples per call")
    parser.add_argument("--repeats", type=int, default=20, help="measured calls per edge")
    parser.add_argument("--networks", type=int, default=16, help="whole networks to check against")
    parser.add_argument("--seed", type=int, default=0, help="of the networks drawn for that")


def main(args: argparse.Namespace) -> int:
    import torch

    from nas_core import costs, spaces
    from nas_core.supernet import BernoulliSampler, SuperNetwork
    from nas_core.training import one_thread, pick_device

    known = [name for name in vars(spaces) if callable(getattr(spaces, name))]
    if args.space not in known:
        raise ValueError(f"space {args.space!r} is unknown; there are {', '.join(known)}")
    if not args.out.parent.is_dir():
        raise FileNotFoundError(f"folder {args.out.parent} does not exist")
    try:
        values = {name: literal(value) for name, value in args.arguments}
        net = getattr(spaces, args.space)(**values)
    except TypeError as error:
        raise ValueError(f"arguments of {args.space}: {error}") from error
    if not isinstance(net, SuperNetwork):
        raise ValueError(f"{args.space} makes no super-network")
    one_thread()
    device = pick_device(args.device)
    net.to(device)
    table = costs.latency_table(net, batch_size=args.batch_size, repeats=args.repeats)
    sampler = BernoulliSampler(net.graph, logit=1.0, fixed=net.graph.of_kind("stem", "head"))
    generator = torch.Generator().manual_seed(args.seed)
    masks = net.graph.reachable(sampler.sample(args.networks, generator).mask)
    measured = costs.Latency(net, batch_size=args.batch_size, repeats=args.repeats)
    table = costs.check_table(table, measured, masks)
    table.save(args.out)
    left = table.error or {}
    print(f"{len(table.edges)} edges on {table.device}, batch of {table.batch_size}: {args.out}")
    print(
        f"times {table.factor:.2f} for whole networks; error on {left['networks']:.0f}: median "
        f"{left['median_relative']:.0%}, worst {left['worst_relative']:.0%}; "
        f"rank correlation {left['rank_correlation']:.2f}"
    )
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments(parser)
    try:
        sys.exit(main(parser.parse_args()))
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"latency_table.py: {error}")
