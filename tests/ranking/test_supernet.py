"""Super-networks: one loop, its configurations, and scores with shared weights."""

import random

import pytest
import torch
import torch.nn.functional as F

from nas_core.ranking import supernet as sn
from nas_core.ranking.evaluation import enas, scorer
from nas_core.ranking.spaces import tiny
from nas_core.search.cell_batch import DIGIT_CELLS, table_data
from nas_core.spaces.cells import CellSpace
from nas_core.training import TensorData, accuracy

SHORT = sn.SuperNetConfig(epochs=1, batch_size=16)
TRAIN, HELD = table_data()
FEW = TRAIN.subset(range(64))


def network(space=DIGIT_CELLS, seed=0):
    torch.manual_seed(seed)
    return space.network()


def test_one_path_is_plain_training_of_that_path():
    """Against a loop written out with torch alone."""
    net = network()
    cell = (2, 1, 0, 3, 0, 2)
    losses = sn.train_supernet(net, sn.single_path(DIGIT_CELLS, net, lambda rng: cell), FEW, SHORT)
    other = network()
    mask = DIGIT_CELLS.mask(other, cell)
    optimizer = torch.optim.SGD(other.parameters(), lr=0.025, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 4)
    mean = 0.0
    for x, y in FEW.batches(16, seed=0, epoch=0, drop_last=True):
        optimizer.zero_grad()
        loss = F.cross_entropy(other(x, mask), y)
        loss.backward()
        optimizer.step()
        schedule.step()
        mean += loss.item() / 4
    assert losses == pytest.approx([mean])
    for a, b in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_fair_uses_every_operation_once_on_every_edge():
    net = network()
    draw, groups = sn.fair(DIGIT_CELLS, net), DIGIT_CELLS.groups(net)  # [edges, ops]
    rng, orders = random.Random(0), set()
    for _ in range(50):
        masks = torch.stack(draw(rng))  # [4, E]
        assert bool((masks[:, groups].sum(0) == 1).all())
        assert bool((masks[:, groups].sum(2) == 1).all())
        orders.add(tuple(masks[0].tolist()))
    assert len(orders) > 40  # the permutations of the edges are independent


def test_gradients_of_several_paths_are_averaged_and_the_penalty_is_added_once():
    net, seen = network(), {}
    cells = [(2, 1, 0, 3, 0, 2), (0, 0, 2, 2, 1, 1), (2, 2, 2, 2, 2, 2)]
    masks = [DIGIT_CELLS.mask(net, cell) for cell in cells]

    def penalty(module, step):
        seen[step.number] = [p.grad.clone() for p in module.parameters() if p.grad is not None]
        assert step.total == 4 and len(step.masks) == 3 and len(step.x) == 16
        return 0.0 * sum(p.sum() for p in module.parameters())

    sn.train_supernet(net, lambda rng: masks, FEW, SHORT, penalty=penalty)
    assert sorted(seen) == [0, 1, 2, 3]
    other = network().train()
    x, y = next(FEW.batches(16, seed=0, epoch=0, drop_last=True))
    sum(F.cross_entropy(other(x, mask), y) / 3 for mask in masks).backward()
    wanted = [p.grad for p in other.parameters() if p.grad is not None]
    for got, want in zip(seen[0], wanted, strict=True):
        torch.testing.assert_close(got, want)


def test_a_penalty_is_felt():
    def pulled(strength):
        net = network()
        start = [p.detach().clone() for p in net.parameters()]

        def penalty(module, step):
            pairs = zip(module.parameters(), start, strict=True)
            if not strength:
                return None  # as during a warm-up
            return strength * sum((p - old).square().sum() for p, old in pairs)

        sn.train_supernet(net, sn.single_path(DIGIT_CELLS, net), FEW, SHORT, penalty=penalty)
        pairs = zip(net.parameters(), start, strict=True)
        return sum(float((p - old).detach().square().sum()) for p, old in pairs)

    assert pulled(10.0) < 0.5 * pulled(0.0)


def test_the_same_seed_gives_the_same_weights():
    def trained(seed):
        net = network()
        config = sn.SuperNetConfig(epochs=2, batch_size=16, seed=seed)
        sn.train_supernet(net, sn.single_path(DIGIT_CELLS, net), FEW, config)
        return torch.cat([p.detach().flatten() for p in net.parameters()])

    assert torch.equal(trained(1), trained(1)) and not torch.equal(trained(1), trained(2))


def test_cells_that_connect_nothing_are_drawn_again():
    space = CellSpace(nodes=3, ops=("none", "skip_connect"))
    net, rng = network(space), random.Random(0)
    draw = sn.single_path(space, net)
    assert all(draw(rng)[0].any() for _ in range(50))
    assert {len(sn.fair(space, net)(rng)) for _ in range(50)} == {1, 2}
    assert scorer(space, net, FEW)([(0, 0, 0)]) == [0.0]


def test_running_statistics_score_as_evaluation_does_and_batch_statistics_do_not():
    net = network()
    sn.train_supernet(net, sn.single_path(DIGIT_CELLS, net), TRAIN, sn.SuperNetConfig(epochs=2))
    before = {k: v.clone() for k, v in net.state_dict().items() if "running" in k}
    cells = [(2, 1, 0, 3, 0, 2), (0, 0, 2, 2, 1, 1)]
    masks = [DIGIT_CELLS.mask(net, cell) for cell in cells]
    running = sn.shared_scores(net, masks, HELD["val"], statistics="running", batch_size=128)
    alone = [
        accuracy(DIGIT_CELLS.architecture(net, cell).extract(net).eval(), HELD["val"])
        for cell in cells
    ]
    assert running.tolist() == pytest.approx(alone)
    batch = sn.shared_scores(net, masks, HELD["val"])
    net.train()
    with torch.no_grad():
        x, y = next(HELD["val"].batches(797, seed=0, shuffle=False))
        by_hand = [(net(x, mask).argmax(1) == y).double().mean().item() for mask in masks]
    assert batch.tolist() == pytest.approx(by_hand) and batch.tolist() != running.tolist()
    net = network()
    net.load_state_dict(before, strict=False)
    sn.shared_scores(net, masks, HELD["val"])
    for name, value in before.items():
        assert torch.equal(net.state_dict()[name], value)
    with pytest.raises(ValueError, match="'batch' or 'running'"):
        sn.shared_scores(net, masks, HELD["val"], statistics="mixed")


def test_wrong_settings_are_named():
    net = network()
    with pytest.raises(ValueError, match="fewer than one batch"):
        sn.train_supernet(net, sn.single_path(DIGIT_CELLS, net), FEW, sn.SuperNetConfig(1, 65))
    with pytest.raises(ValueError, match="batch_size 1"):
        sn.SuperNetConfig(batch_size=1)
    bad = TensorData(torch.full((32, 1, 8, 8), float("nan")), torch.zeros(32, dtype=torch.long))
    with pytest.raises(FloatingPointError, match="epoch 0"):
        sn.train_supernet(net, sn.single_path(DIGIT_CELLS, net), bad, SHORT)


# ---------------------------------------------------------------- searching with scores


def ones(cells):
    """Number of convolutions 3×3: a score whose optimum is known."""
    return [float(cell.count(3)) for cell in cells]


def test_evolution_finds_what_random_draws_do_not():
    rng = random.Random(0)
    evolved = [ones([sn.evolve(tiny, ones, rng, 60, size=10, sample=5)])[0] for _ in range(10)]
    drawn = [ones([sn.best_of_random(tiny, ones, rng, 6)])[0] for _ in range(10)]
    assert sum(evolved) >= 28 > sum(drawn) + 3
    assert sn.best_of_random(tiny, ones, rng, 2_000) == (3, 3, 3)


def test_enas_learns_to_draw_good_cells():
    """Rewards decide what it draws: on data without a signal it has no reason to prefer a cell."""
    net = network()
    config = sn.SuperNetConfig(epochs=12, lr=0.1)
    cell = enas(DIGIT_CELLS, net, TRAIN, HELD["val"], config, policy_steps=4)
    macs = DIGIT_CELLS.architecture(net, cell).macs
    draws = [DIGIT_CELLS.sample(random.Random(s)) for s in range(50)]
    typical = sorted(DIGIT_CELLS.architecture(net, c).macs for c in draws)[25]
    assert macs > typical  # in this space larger cells are better
