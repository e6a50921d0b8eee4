"""B-CNF on real images under several costs; rows go to data/results/04_neural_fabrics.

python benchmarks/fabric_study.py --data mnist --seeds 0 1
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from dataclasses import replace

import torch

from nas_core import costs, data
from nas_core.data import average_pool, zero_pad
from nas_core.search import BudgetConfig, budgeted
from nas_core.spaces import conv_fabric
from nas_core.supernet import BernoulliSampler
from nas_core.training import describe_device, evaluate, one_thread, pick_device
from nas_core.workbook.results import record_result

COSTS = {
    "computation": lambda net: costs.computation(net),
    "memory": lambda net: costs.memory(net),
    "distributed n=1": lambda net: costs.Distributed(net, 1),
    "distributed n=4": lambda net: costs.Distributed(net, 4),
}


def study(given: argparse.Namespace, cost_name: str, budget: float, seed: int) -> dict:
    """One search, then the chosen architecture on the test set; a row of the results."""
    device = pick_device(given.device)
    images = zero_pad(data.load(given.data, train_limit=given.train, seed=seed), 32)
    images = average_pool(images, 32 // given.size)
    images = replace(images, val=images.val.subset(range(2000))).to(device)
    torch.manual_seed(seed)
    scales = given.size.bit_length()
    net = conv_fabric(given.columns, scales, given.channels, 10, input_shape=images.input_shape)
    sampler = BernoulliSampler(net.graph, fixed=net.graph.of_kind("stem", "head"))
    cost = COSTS[cost_name](net)
    full = torch.ones(1, net.num_edges, dtype=torch.bool)
    limit = budget * cost(full).item() if budget <= 1 else budget
    config = BudgetConfig(
        epochs=given.epochs,
        warmup_epochs=given.epochs // 4,
        batch_size=100,
        lr=0.1,
        milestones=(3 * given.epochs // 4,),
        lam=given.lam,
        gamma_lr=given.gamma_lr,
        gamma_momentum=given.gamma_momentum,
        max_logit=given.max_logit,
        seed=seed,
    )
    start = time.process_time()
    run = budgeted(net, sampler, cost, limit, images, config, progress=False)
    seconds = time.process_time() - start
    mask = run.architecture.mask
    net.eval()
    chosen = evaluate(lambda x: net(x, mask.to(device)), images.test)["accuracy"]
    grid = [e for e in run.architecture.kept if net.graph.edges[e].kind not in ("stem", "head")]
    finest = [e for e in range(net.num_edges) if net.graph.edges[e].target.endswith(".0")]
    finest = [e for e in finest if net.graph.edges[e].kind != "stem"]
    widest = max(map(len, costs.Distributed(net, 4).schedule(mask)), default=0)
    return {
        "data": given.data,
        "cost_name": cost_name,
        "budget": limit / run.full_cost,
        "cost": run.cost / run.full_cost,
        "cycles": run.cost if cost_name.startswith("distributed") else None,
        "meets_budget": run.meets_budget,
        "val_accuracy": run.history.val_accuracy.iloc[-1],
        "test_accuracy": chosen,
        "edges": len(grid),
        "finest_kept": len(set(finest) & set(grid)) / len(finest),
        "widest_cycle": widest,
        "entropy": sampler.sample(1024).entropy.mean().item(),
        "seed": seed,
        "cpu_seconds": round(seconds, 1),
    }


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="mnist", choices=["mnist", "fashion_mnist", "cifar10"])
    parser.add_argument("--costs", nargs="+", default=["computation", "memory"], choices=COSTS)
    parser.add_argument(
        "--budget", type=float, default=0.3, help="share of the full cost; > 1: units"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--train", type=int, default=4000)
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--size", type=int, default=16, help="pixels per side after pooling")
    parser.add_argument("--columns", type=int, default=4)
    parser.add_argument("--channels", type=int, default=8)
    parser.add_argument("--lam", type=float, default=10.0)
    parser.add_argument("--gamma-lr", type=float, default=10.0)
    parser.add_argument("--gamma-momentum", type=float, default=0.9)
    parser.add_argument("--max-logit", type=float, default=5.0, help="0: γ is not bounded")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--name", required=True, help="of the file in data/results")
    return parser


def configuration(argv: list[str]) -> dict:
    """What the record of `python benchmarks/fabric_study.py *argv` says of its settings."""
    given = vars(parser().parse_args(argv))
    return given | {"max_logit": given["max_logit"] or None}


def main() -> None:
    argv = sys.argv[1:]
    config = configuration(argv)
    given = argparse.Namespace(**config)
    one_thread()
    rows = []
    for seed in given.seeds:
        for cost in given.costs:
            rows.append(study(given, cost, given.budget, seed))
            print(rows[-1], flush=True)
            record_result(
                "04_neural_fabrics",
                given.name,
                rows,
                command=shlex.join(["python", "benchmarks/fabric_study.py", *argv]),
                seeds=sorted({row["seed"] for row in rows}),
                device=describe_device(pick_device(given.device)),
                config=config,
            )


if __name__ == "__main__":
    main()
