"""Masks, scores and keep counts, against autograd and the report's numbers of parameters."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from nas_core.data import reference
from nas_core.growing import GrowingNetwork, Plan, pruning
from nas_core.training import make_optimizer, train_epoch

BLOCKS = [25_008, 47_872, 45_568, 50_944]
SMALL = Plan(width=4, cells=(2, 1), classes=3, size=8)


def example(seed=0, plan=SMALL):
    torch.manual_seed(seed)
    net = GrowingNetwork(plan)
    x, y = torch.randn(16, 3, plan.size, plan.size), torch.arange(16) % plan.classes

    def loss(net=net):
        return sum(F.cross_entropy(logits, y) for logits in net.exits(x))

    return net, loss, x, y


def mlp(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 3))


# ---------------------------------------------------------------- scores


def test_snip_is_the_gradient_of_an_explicit_mask():
    net, loss, x, y = example()
    parts = pruning.weights(net)
    scores = pruning.snip(parts, loss, module=net)
    c = {name: torch.ones_like(w, requires_grad=True) for name, w in parts.items()}
    masked = {name: w.detach() * c[name] for name, w in parts.items()}

    class Exits(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x):
            return self.net.exits(x)

    logits = functional_call(Exits(), {f"net.{k}": v for k, v in masked.items()}, (x,))
    total = sum(F.cross_entropy(one, y) for one in logits)
    gradients = torch.autograd.grad(total, list(c.values()))
    assert len(scores) == len(gradients) > 5
    for score, gradient in zip(scores.values(), gradients, strict=True):
        torch.testing.assert_close(score, gradient.abs(), atol=1e-6, rtol=1e-5)
        assert score.max() > 0


def test_snip_by_finite_differences():
    net = mlp().double()
    x, y = torch.randn(8, 6).double(), torch.arange(8) % 3
    parts = pruning.weights(net)
    scores = pruning.snip(parts, lambda: F.cross_entropy(net(x), y), module=net)
    w, h = net[0].weight, 1e-6
    for index in [(0, 0), (3, 2), (9, 5)]:
        value, losses = w[index].item(), []
        for factor in (1 + h, 1 - h):  # the mask of this weight moves around 1
            with torch.no_grad():
                w[index] = value * factor
            losses.append(F.cross_entropy(net(x), y).item())
        with torch.no_grad():
            w[index] = value
        slope = abs(losses[0] - losses[1]) / (2 * h)
        assert scores["0.weight"][index].item() == pytest.approx(slope, rel=1e-4, abs=1e-9)


@pytest.mark.parametrize("reinit", ["none", "score only", "persistent"])
def test_three_modes_of_reinitialisation(reinit):
    net, loss, *_ = example()
    parts = pruning.weights(net, net.block(0))
    before = {k: v.clone() for k, v in net.state_dict().items()}
    plain = pruning.snip(parts, loss, module=net)
    torch.manual_seed(5)
    scores = pruning.snip(parts, loss, module=net, reinit=reinit)
    after = net.state_dict()
    moved = {name for name in before if not torch.equal(after[name], before[name])}
    # never the running statistics, the other blocks, biases or batch norm
    assert moved == (set(parts) if reinit == "persistent" else set())
    same = all(torch.equal(scores[k], plain[k]) for k in parts)
    assert same == (reinit == "none")
    assert all(w.grad is None for w in net.parameters())
    if reinit == "persistent":  # what was scored is what is there
        again = pruning.snip(parts, loss, module=net)
        assert all(torch.allclose(again[k], scores[k], atol=1e-7) for k in parts)
    with pytest.raises(ValueError, match="'always'"):
        pruning.snip(parts, loss, module=net, reinit="always")


def test_reinitialised_weights_have_the_spread_of_new_ones():
    net = GrowingNetwork(Plan())
    parts = pruning.weights(net)
    before = {name: w.detach().std().item() for name, w in parts.items()}
    for w in parts.values():
        pruning.draw(w)
    for name, w in parts.items():
        assert w.detach().std().item() == pytest.approx(before[name], rel=0.2), name


# ---------------------------------------------------------------- masks


def test_the_best_weights_are_kept_globally_and_per_layer():
    net, *_ = example()
    scores = pruning.magnitude(pruning.weights(net))
    total = sum(s.numel() for s in scores.values())
    for keep in (0, 1, 137, total):
        masks = pruning.keep_best(scores, keep)
        assert pruning.count(masks) == keep
        kept = torch.cat([scores[k][m] for k, m in masks.items()])
        gone = torch.cat([scores[k][~m] for k, m in masks.items()])
        assert not len(kept) or not len(gone) or kept.min() >= gone.max()
    layers = {k: pruning.keep_count(0.3, s.numel()) for k, s in scores.items()}
    masks = pruning.keep_best(scores, layers)
    for name, mask in masks.items():
        assert mask.sum() == layers[name] == int(0.3 * mask.numel())
        assert scores[name][mask].min() >= scores[name][~mask].max()


def test_equal_scores_still_keep_the_exact_number():
    masks = pruning.keep_best({"a": torch.zeros(7), "b": torch.zeros(5)}, 9)
    assert pruning.count(masks) == 9 and masks["a"].all()


def test_impossible_masks_are_refused():
    scores = {"a": torch.arange(4.0)}
    with pytest.raises(ValueError, match="cannot keep 5 of the 4"):
        pruning.keep_best(scores, 5)
    first = pruning.keep_best(scores, 2)
    with pytest.raises(ValueError, match="cannot keep 3 of the 2"):
        pruning.keep_best(scores, 3, within=first)
    with pytest.raises(ValueError, match="finite"):
        pruning.keep_best({"a": torch.tensor([0.0, float("nan")])}, 1)
    with pytest.raises(ValueError, match="keep ratio 1.2"):
        pruning.keep_count(1.2, 10)
    with pytest.raises(ValueError, match="no convolution"):
        pruning.weights(nn.ReLU())


def test_iterated_masks_are_nested_and_reach_the_target():
    net, loss, *_ = example()
    parts = pruning.weights(net)
    total = sum(w.numel() for w in parts.values())
    masks = None
    for step in (1, 2, 3):
        scores = pruning.snip(parts, loss, module=net)
        keep = pruning.keep_count(pruning.keep_ratio(0.1, step, 3), total)
        new = pruning.keep_best(scores, keep, within=masks)
        if masks is not None:
            assert all((new[k] <= masks[k]).all() for k in new)
        masks = new
        pruning.apply(parts, masks)
        assert pruning.count(masks) == keep
    assert keep == int(0.1 * total)
    assert [pruning.keep_ratio(0.1, s, 3) for s in (1, 2, 3)] == pytest.approx([0.7, 0.4, 0.1])


def test_random_masks_with_the_ratios_of_another_score():
    net, loss, *_ = example()
    parts = pruning.weights(net)
    masks = pruning.keep_best(pruning.snip(parts, loss, module=net), 200)
    generator = torch.Generator().manual_seed(0)
    control = pruning.keep_best(pruning.random(parts, generator), pruning.layer_counts(masks))
    assert pruning.layer_counts(control) == pruning.layer_counts(masks)
    assert len(set(pruning.layer_counts(masks).values())) > 3  # SNIP's ratios differ by layer
    assert any(not torch.equal(control[k], masks[k]) for k in masks)


def test_structured_masks_keep_whole_filters_with_their_batch_norm():
    net, *_ = example()
    parameters = dict(net.named_parameters())
    scores = pruning.magnitude(pruning.weights(net))
    convolutions = {k: s for k, s in scores.items() if s.dim() == 4}
    filters = sum(len(s) for s in convolutions.values())
    masks = pruning.keep_filters(scores, 0.5, parameters)
    rows = {k: masks[k].flatten(1) for k in convolutions}
    assert all((r.all(1) | ~r.any(1)).all() and r.any() for r in rows.values())
    assert sum(int(r.all(1).sum()) for r in rows.values()) == int(0.5 * filters)
    assert set(masks) == {
        *convolutions,
        *(k for k in parameters if ".1." in k and "classifiers" not in k),
    }
    for name, r in rows.items():
        for norm in ("1.weight", "1.bias"):
            assert torch.equal(masks[name.removesuffix("0.weight") + norm], r.all(1))
    few = pruning.keep_filters(scores, 0.0, parameters)
    best = {k: int(s.flatten(1).mean(1).argmax()) for k, s in convolutions.items()}
    assert all(few[k].flatten(1).all(1).nonzero().tolist() == [[best[k]]] for k in convolutions)


def test_magnitude_pruning_removes_exactly_the_smallest_of_all_layers():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 5))
    parts = pruning.weights(net)
    assert list(parts) == ["0.weight", "3.weight"]
    before = torch.cat([w.flatten() for w in parts.values()]).detach().clone()
    pruning.apply(parts, pruning.keep_best(pruning.magnitude(parts), 152 - 38))
    after = torch.cat([w.flatten() for w in parts.values()]).detach()
    gone = after == 0
    assert gone.sum() == 38 and before[gone].abs().max() <= before[~gone].abs().min()
    assert torch.equal(after[~gone], before[~gone]) and net[1].weight.all()


# ---------------------------------------------------------------- the report's counts


def test_printed_parameters_are_the_kept_weights_of_the_blocks():
    for name in ("table_12", "table_15", "table_16", "table_17"):
        frame = reference.load(f"report_{name}")
        for row in frame.itertuples():
            if "keep_0" in frame:
                ratios = [getattr(row, f"keep_{b}") for b in range(4)]
            else:
                ratios = [row.keep] * 4
            kept = sum(pruning.keep_count(r, n) for r, n in zip(ratios, BLOCKS, strict=True))
            assert kept == row.kept, (name, row)
    # A9: the first row of table 15 prints the number of table 16
    first = reference.load("report_table_15").iloc[0]
    assert (first["params"], first["kept"]) == (106_328, 110_103)
    for name in ("12", "15", "16", "17"):
        frame = reference.load(f"report_table_{name}")
        wrong = frame[frame["params"] != frame["kept"]]
        assert len(wrong) == (name == "15")


@pytest.mark.parametrize(
    ("ratio", "kept"),
    [(0.8, 135_512), (0.7, 118_572), (0.6, 101_633), (0.5, 84_696), (0.4, 67_755),
     (0.3, 50_816), (0.2, 33_876), (0.1, 16_937), (0.53, 89_777), (0.43, 72_836),
     (0.33, 55_897), (0.23, 38_958)],
)  # fmt: skip
def test_counts_at_constant_ratios(ratio, kept):
    assert sum(pruning.keep_count(ratio, n) for n in BLOCKS) == kept


@pytest.mark.parametrize(
    ("ratios", "kept"),
    [((0.8, 0.7, 0.6, 0.5), 106_328), ((0.7, 0.6, 0.5, 0.4), 89_389),
     ((0.6, 0.5, 0.4, 0.3), 72_450), ((0.5, 0.4, 0.3, 0.2), 55_510),
     ((0.4, 0.3, 0.2, 0.1), 38_571)],
)  # fmt: skip
def test_counts_at_decreasing_ratios(ratios, kept):
    assert sum(pruning.keep_count(r, n) for r, n in zip(ratios, BLOCKS, strict=True)) == kept


def test_iterative_counts_of_table_13_are_met_within_its_rounding():
    for row in reference.load("report_table_13").itertuples():
        kept = sum(pruning.keep_count(pruning.keep_ratio(row.keep, 3, 3), n) for n in BLOCKS)
        assert 0 <= row.params - kept <= 2


# ---------------------------------------------------------------- pruned weights stay pruned


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_pruned_weights_are_exactly_zero_after_fifty_steps(kind):
    net, _, x, y = example()
    optimizer = make_optimizer(
        net.parameters(), kind, lr=0.01, momentum=0.9, weight_decay=1e-2
    )  # fmt: skip
    loss = lambda x, y: F.cross_entropy(net(x), y)  # noqa: E731
    train_epoch([(x, y)] * 5, loss, optimizer)  # momentum of weights that are pruned next
    parts = pruning.weights(net)
    masks = pruning.keep_best(pruning.magnitude(parts), 200)
    before = {k: w.detach().clone() for k, w in parts.items()}
    hold = pruning.hold(optimizer, parts, masks)
    assert pruning.count(parts) == 200
    train_epoch([(x, y)] * 50, loss, optimizer)
    for name, w in parts.items():
        assert (w[~masks[name]] == 0).all()
        assert not masks[name].any() or not torch.equal(w[masks[name]], before[name][masks[name]])
    hold.remove()
    train_epoch([(x, y)], loss, optimizer)  # the control: momentum revives them
    assert any((w[~masks[k]] != 0).any() for k, w in parts.items())


# ---------------------------------------------------------------- lottery tickets


def test_lottery_ticket_rewinds_survivors_to_their_first_values():
    net = mlp()
    start = {k: v.clone() for k, v in net.state_dict().items()}
    seen, trained = [], []

    def train(masks):
        assert all((net.get_parameter(k)[~m] == 0).all() for k, m in masks.items())
        seen.append(masks)
        with torch.no_grad():
            for p in net.parameters():
                p.add_(torch.randn_like(p))
        pruning.apply(dict(net.named_parameters()), masks)
        trained.append({k: p.detach().clone() for k, p in net.named_parameters()})

    masks = pruning.lottery_ticket(net, start, train, keep=0.2, rounds=3)
    counts = [pruning.count(m) for m in (*seen, masks)]
    assert counts == [90, int(90 * 0.2 ** (1 / 3)), int(90 * 0.2 ** (2 / 3)), 18]
    for old, new in zip(seen, [*seen[1:], masks], strict=True):
        assert all((new[k] <= old[k]).all() for k in new)
    kept = torch.cat([trained[-1][k][m].abs() for k, m in masks.items()])
    lost = torch.cat([trained[-1][k][seen[-1][k] & ~m].abs() for k, m in masks.items()])
    assert kept.min() >= lost.max()  # the largest after training, not before
    for name, value in net.state_dict().items():
        mask = masks.get(name, torch.ones_like(value, dtype=torch.bool))
        assert torch.equal(value, start[name] * mask)


def test_rewinding_goes_back_to_the_state_of_an_early_epoch():
    net = mlp()
    early = {k: torch.full_like(v, 2.0) for k, v in net.state_dict().items()}
    masks = pruning.lottery_ticket(net, early, lambda masks: None, keep=0.5, rounds=2)
    assert pruning.count(masks) == 45
    for name, value in net.named_parameters():
        assert (value == 2 * masks.get(name, torch.tensor(True))).all()
