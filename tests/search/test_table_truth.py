"""The side-by-side searches of `benchmarks/table_truth.py` against the library's own arithmetic."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import cross_entropy, one_hot

from benchmarks import table_truth as t
from nas_core import costs
from nas_core.search import BudgetConfig, budgeted
from nas_core.search.cell_batch import DIGIT_CELLS, table_data
from nas_core.supernet import ChoiceSampler

SEEDS = (3, 7)
EDGES = DIGIT_CELLS.edges


def one_network(seed):
    torch.manual_seed(seed)
    return DIGIT_CELLS.network()


def mask_of(graph, ops):
    """bool `[B, E]` of choices `[B, edges]`."""
    mask = torch.zeros(len(ops), len(graph), dtype=torch.bool)
    mask[:, [graph.index("stem"), graph.index("head")]] = True
    for row, cell in zip(mask, ops.tolist(), strict=True):
        for (i, j), choice in zip(EDGES, cell, strict=True):
            row[graph.index(f"{i}→{j} {t.CHOICES[choice]}")] = True
    return mask


@pytest.mark.parametrize("whole", [False, True])
def test_losses_gradients_and_statistics_equal_those_of_the_super_network(whole):
    generator = torch.Generator().manual_seed(0)
    ops = torch.randint(4, (16, 2, 6), generator=generator)
    ops[:, :, 0] = 0
    ops[3, :, 0] = 2  # a convolution that one row alone selects: running statistics serve it
    x = torch.randn(16, 2, 8, 8, generator=generator)
    y = torch.randint(10, (16, 2), generator=generator)
    chosen = one_hot(ops, 4).float()
    nets = t.Fabrics(SEEDS)
    losses = t.losses_of(nets(x, torch.ones_like(chosen) if whole else chosen), y)  # [B, R]
    losses.mean(0).sum().backward()
    for n, seed in enumerate(SEEDS):
        net = one_network(seed)
        masks = None if whole else mask_of(net.graph, ops[:, n])
        alone = cross_entropy(net(x[:, n : n + 1], masks), y[:, n], reduction="none")
        alone.mean().backward()
        torch.testing.assert_close(alone, losses[:, n], atol=1e-5, rtol=1e-5)
        large = net.edge_modules[net.graph.index("1→2 nor_conv_3x3")]
        torch.testing.assert_close(nets.large["12"].grad[n], large[0].weight.grad)
        torch.testing.assert_close(nets.stem.grad[n], net.edge_modules[0][0].weight.grad)
        where = 2 * (1 + EDGES.index((1, 2)))  # of this convolution among the norms
        torch.testing.assert_close(nets.running[1, where, n], large[1].running_var)


def test_multiply_adds_equal_those_of_the_graph():
    net = one_network(0)
    ops = torch.randint(4, (20, 6), generator=torch.Generator().manual_seed(0))
    assert torch.equal(t.macs_of(ops), costs.computation(net)(mask_of(net.graph, ops)))
    assert net.graph.macs.sum().item() == t.FULL


def test_a_search_learns_as_the_librarys_does():
    """Other random draws, the same algorithm: costs, losses and entropies agree on average."""
    train, held = table_data()
    budget, epochs = 0.4 * 56528, 4
    settings = t.Settings(epochs=epochs, warmup=1, gamma_lr=1.0, lam=4.0)
    seeds = list(range(4))
    limits = torch.full((4,), budget, dtype=torch.float64)
    _, _, remarks = t.run_searches(seeds, limits, settings)
    found = []
    for seed in seeds:
        net = one_network(seed)
        pairs = [(str(i), str(j)) for i, j in EDGES]
        edges = net.graph.edges
        groups = [[e for e, at in enumerate(edges) if (at.source, at.target) == p] for p in pairs]
        config = BudgetConfig(
            epochs=epochs, warmup_epochs=1, warmup_sampled=True, batch_size=16, lr=0.05,
            milestones=(3,), gamma_lr=1.0, lam=4.0, seed=seed,
        )  # fmt: skip
        data = SimpleNamespace(train=train, val=held["val"])
        sampler, cost = ChoiceSampler(net.graph, groups), costs.computation(net)
        found.append(budgeted(net, sampler, cost, budget, data, config, progress=False).history)

    def mean(values):
        return sum(values) / len(values)

    ours, theirs = (
        {
            "entropy": mean([r["entropy"] for r in remarks]),
            "loss": mean([r["loss"] for r in remarks]),
        },
        {
            "entropy": mean([h.entropy.iloc[-1] for h in found]),
            "loss": mean([h.loss.iloc[-1] for h in found]),
        },
    )
    assert ours["entropy"] == pytest.approx(theirs["entropy"], rel=0.3)
    assert ours["loss"] == pytest.approx(theirs["loss"], rel=0.1)
    assert ours["entropy"] < 6 * torch.log(torch.tensor(4.0)).item() - 0.5  # Γ has moved


def test_judging_knows_the_best_and_the_worst():
    budget = 0.4 * t.table().about.macs.max()
    best = t.judge(t.table().best(max_macs=budget), budget)
    assert best["percentile_affordable"] > 99.9 and 0 < best["budget_use"] <= 1
    accuracy = t.table().accuracies(split="test")
    worst = t.judge(t.table().cells[int(accuracy.argmin())], budget)
    assert worst["percentile_affordable"] < 0.1 and worst["percentile_equal_cost"] < 1


def test_the_last_stage_draws_what_is_affordable_and_spends():
    logits = torch.zeros(6, 4)
    draws = t.spending_draws(logits, 20_000, seed=0)
    assert draws.shape == (t.DRAWS, 6) and (t.macs_of(draws) <= 20_000).all()
    assert t.macs_of(draws).min() > 18_000
    certain = torch.tensor([0.0, 0, 50, 0]).repeat(6, 1)  # all 3×3: above every budget
    assert (t.macs_of(t.spending_draws(certain, 20_000, seed=0)) <= 20_000).all()


def test_signal_to_noise_of_known_gradients():
    g = torch.Generator().manual_seed(0)
    steps = [0.5 + torch.randn(1, 6, 4, generator=g) for _ in range(3000)]
    assert t.signal_to_noise(steps, 1)[0]["snr_first"] == pytest.approx(0.5, abs=0.05)
    noise = [torch.randn(1, 6, 4, generator=g) for _ in range(3000)]
    assert t.signal_to_noise(noise, 1)[0]["snr_last"] < 0.05
