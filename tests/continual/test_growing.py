"""DEN and RCL: their steps against closed forms and against networks with a known answer."""

import copy

import pytest
import torch

from nas_core.continual import FitConfig, make_learner, mlp
from nas_core.continual.learners.growing import (
    DEN,
    RCL,
    Controller,
    GrowingMLP,
    group_threshold,
    soft_threshold,
)  # fmt: skip

SMALL = mlp((3, 8, 8), 12)


def den(quick, **options):
    return make_learner("DEN", SMALL, quick, **options)


# ---------------------------------------------------------------- proximal steps


def test_soft_threshold_minimises_its_objective():
    """argmin_z ½(z − x)² + t|z|, on a fine grid."""
    z = torch.linspace(-3, 3, 60001, dtype=torch.float64)
    for x in (-2.0, -0.4, 0.0, 0.3, 0.5, 1.7):
        best = z[(0.5 * (z - x) ** 2 + 0.5 * z.abs()).argmin()]
        found = soft_threshold(torch.tensor(x, dtype=torch.float64), 0.5)
        assert found.item() == pytest.approx(best.item(), abs=1e-4)
    assert (soft_threshold(torch.tensor([-0.5, 0.2, 0.5]), 0.5) == 0).all()  # exactly


def test_group_threshold_shortens_rows_and_keeps_their_direction():
    rows = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]])
    found = group_threshold(rows, 1.0)
    assert torch.allclose(found[0], rows[0] * 4 / 5)  # norm 5 becomes 4
    assert (found[1:] == 0).all()
    one = torch.tensor([[2.0], [-0.3]])  # with one entry a row it is the soft threshold
    assert torch.allclose(group_threshold(one, 0.5), soft_threshold(one, 0.5))


def test_the_first_task_of_den_is_sparse_and_more_so_under_a_larger_l1(digits, quick):
    zeros = []
    for l1 in (0.0, 0.1, 1.0):
        learner = den(quick, l1=l1)
        learner.learn(digits[0])
        zeros.append(sum(int((m.weight == 0).sum()) for m in learner.net.layers))
    assert zeros[0] == 0 < zeros[1] < zeros[2]


# ---------------------------------------------------------------- removing units


def _net(seed: int = 0) -> GrowingMLP:
    torch.manual_seed(seed)
    net = GrowingMLP(6, [5, 4])
    net.add_head(3)
    return net


@pytest.mark.parametrize("layer", [0, 1])
def test_a_unit_without_weights_is_removed_and_outputs_stay(layer):
    net, x = _net(), torch.randn(9, 6)
    with torch.no_grad():
        net.layers[layer].weight[2] = 0
        net.layers[layer].bias[2] = 0.7  # what it sends must move into its readers
    before, width = net(x, 0), net.widths[layer + 1]
    gone = torch.zeros(width, dtype=torch.bool)
    gone[2] = True
    net.remove(layer, gone)
    assert net.widths[layer + 1] == width - 1
    assert torch.allclose(net(x, 0), before, atol=1e-6)


@pytest.mark.parametrize("layer", [0, 1])
def test_a_unit_that_nothing_reads_is_removed_and_outputs_stay(layer):
    net, x = _net(), torch.randn(9, 6)
    reader = net.layers[1] if layer == 0 else net.heads[0].linear
    with torch.no_grad():
        reader.weight[:, 1] = 0
    before = net(x, 0)
    gone = torch.zeros(net.widths[layer + 1], dtype=torch.bool)
    gone[1] = True
    net.remove(layer, gone)
    assert torch.allclose(net(x, 0), before, atol=1e-6)


def test_pruning_removes_new_useless_units_only(quick):
    learner = den(quick)
    learner.net = _net()
    x = torch.randn(9, 6)
    with torch.no_grad():
        learner.net.layers[1].weight[[0, 3]] = 0  # an old one and a new one
    before = learner.net(x, 0)
    assert learner.prune([5, 2]) == 1 and learner.net.widths == [6, 5, 3]
    assert torch.allclose(learner.net(x, 0), before, atol=1e-6)
    with torch.no_grad():
        learner.net.layers[1].weight.zero_()
    learner.prune([0, 0])
    assert learner.net.widths == [6, 1, 1]  # a layer keeps one unit


def test_expansion_under_a_strong_group_penalty_adds_nothing(digits, quick):
    widths = []
    for l1 in (0.0, 300.0):
        learner = den(quick, target=1.1, drift=1e9)
        learner.learn(digits[0])
        before = learner.net.widths
        learner.l1 = l1
        report = learner.learn(digits[1])
        widths.append([a - b for a, b in zip(learner.net.widths, before, strict=True)][1:])
        assert report.choice.endswith("0 split")
    assert widths == [[10, 10], [0, 0]]


def test_new_units_come_only_where_the_target_is_missed(digits, quick):
    for target, added in ((0.0, False), (1.1, True)):
        learner = den(quick, target=target, drift=1e9)
        learner.learn(digits[0])
        before = learner.net.widths
        learner.learn(digits[1])
        assert (learner.net.widths != before) == added


# ---------------------------------------------------------------- selecting and splitting


def test_only_weights_on_paths_to_the_head_are_selected(quick):
    learner = den(quick)
    learner.net = _net()
    head = torch.zeros(3, 4)
    head[1, 2] = 0.5  # the head reads unit 2
    with torch.no_grad():
        learner.net.layers[1].weight[2] = torch.tensor([0.0, 1.0, 0.0, -1.0, 0.0])
    first, second = learner.selected(head)
    assert second[2].tolist() == [0, 1, 0, 1, 0] and second.sum() == 2
    assert (first.sum(1) > 0).tolist() == [False, True, False, True, False]


def test_more_units_are_split_at_a_smaller_threshold(quick):
    learner = den(quick)
    learner.net = _net()
    old = [(m.weight.detach().clone(), m.bias.detach().clone()) for m in learner.net.layers]
    with torch.no_grad():
        for m in learner.net.layers:  # unit i moves by 10 % · i of its norm
            m.weight *= 1 + 0.1 * torch.arange(len(m.weight)).view(-1, 1)
    counts = []
    for learner.drift in (0.0, 0.05, 0.15, 0.25, 0.5):
        counts.append(sum(int(d.sum()) for d in learner.drifted(old)))
    assert counts == [7, 7, 5, 3, 0]


@pytest.mark.parametrize("expanded", [0, 3])
def test_after_a_split_the_old_task_is_as_it_was_and_the_new_one_keeps_its_network(expanded, quick):
    """Every old unit moves and is split: nothing of the new network may be lost."""
    learner = den(quick, drift=0.0)
    net = learner.net = _net()
    x = torch.randn(9, 6)
    old_task = net(x, 0)
    old = [(m.weight.detach().clone(), m.bias.detach().clone()) for m in net.layers]
    net.add_head(3)
    net.grow([expanded, expanded])
    net.widen_head(1)
    with torch.no_grad():
        for m, (w, _) in zip(net.layers, old, strict=True):
            m.weight[: len(w), : w.shape[1]] += 0.3
            m.bias[: len(w)] -= 0.1
    new_task = net(x, 1)
    assert not torch.allclose(net(x, 0), old_task, atol=1e-3)
    assert learner.split(1, old) == 9
    assert net.widths == [6, 10 + expanded, 8 + expanded]
    assert torch.allclose(net(x, 0), old_task, atol=1e-5)
    assert torch.allclose(net(x, 1), new_task, atol=1e-5)


def test_copies_are_retrained_and_old_units_stay(digits, quick, monkeypatch):
    """Expand, split, retrain, in this order: old predictions are exact after a split of all."""
    learner = den(quick, drift=0.0, target=1.1)
    learner.learn(digits[0])
    x = digits[0].test.inputs(digits[0].test.x)
    before = learner.predict(x, 0)
    trained = []
    original = DEN.train_units

    def noted(self, trial, masks, **options):
        trained.append(None if masks is None else [int(m.sum()) for m in masks])
        return original(self, trial, masks, **options)

    monkeypatch.setattr(DEN, "train_units", noted)
    report = learner.learn(digits[1])
    assert torch.allclose(learner.predict(x, 0), before, atol=1e-5)
    assert "split" in report.choice and len(trained) == 4
    assert trained[0] is None  # the head alone; then selected weights, new units, copies
    assert sum(trained[3]) > sum(trained[2]) > 0


# ---------------------------------------------------------------- RCL


def test_the_controller_finds_the_rewarded_proposal():
    """Policy and critic on a bandit with a known best pair of choices."""
    from nas_core.search.reinforce import policy_loss

    torch.manual_seed(0)
    controller = Controller(3)
    optimizer = torch.optim.Adam(controller.parameters(), lr=0.02)
    for _ in range(400):
        picked, log_p, values = controller.propose(2)
        reward = torch.full_like(values, float(picked == [2, 0]) + 0.2 * (picked[0] == 2))
        loss = policy_loss(log_p, -reward, -values.detach())
        loss = loss + torch.nn.functional.mse_loss(values, reward)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    drawn = [controller.propose(2) for _ in range(50)]
    assert sum(picked == [2, 0] for picked, _, _ in drawn) > 40
    first, second = torch.stack([values for _, _, values in drawn]).mean(0).tolist()
    assert 0.8 < first < 1.4 and 0.8 < second < 1.4  # the critic expects what it gets


def test_rcl_plays_a_hundred_episodes_and_trains_each_proposal_once(digits, monkeypatch):
    config = FitConfig(lr=(0.01,), weight_decay=(0.0,), batch_size=20, max_steps=40, eval_every=10)
    learner = make_learner("RCL", SMALL, config, proposals=(0, 4), trial_steps=10)
    learner.learn(digits[0])
    calls = []
    original = RCL._with_units

    def counted(self, trial, start, units):
        calls.append((tuple(units), trial.max_steps))
        return original(self, trial, start, units)

    monkeypatch.setattr(RCL, "_with_units", counted)
    report = learner.learn(digits[1])
    short = [units for units, steps in calls if steps == 10]
    assert len(report.details["rewards"]) == 100
    assert len(short) == len(set(short)) == 4 and len(calls) == 5
    best = max(report.details["rewards"])
    assert best > 0.5  # two classes, few steps
    units = [int(n) for n in report.choice.split()[0].split("+")]
    assert calls[-1] == (tuple(units), None)
    again = copy.deepcopy(learner.controller.state_dict())
    other = make_learner("RCL", SMALL, config, proposals=(0, 4), trial_steps=10)
    other.load_state_dict(learner.state_dict())  # the controller goes on where it was
    assert all(torch.equal(v, other.controller.state_dict()[k]) for k, v in again.items())


def test_a_price_above_every_gain_adds_nothing(digits, quick):
    learner = make_learner("RCL", SMALL, quick, episodes=30, price=1.0)
    for task in digits:
        report = learner.learn(task)
    assert report.choice == "0+0 units" and learner.net.widths == [192, 12, 12]
    with pytest.raises(ValueError, match="episodes is 0"):
        make_learner("RCL", SMALL, quick, episodes=0)
