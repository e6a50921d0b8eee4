"""The budgeted search on a problem with a known answer, and everything that may go wrong."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace

import pytest
import torch

from nas_core import costs
from nas_core.search import BudgetConfig, Run, SearchWarning, budgeted, per_example_loss
from nas_core.supernet import BernoulliSampler, ChoiceSampler, SuperNetwork
from nas_core.training import NonFiniteLoss, TensorData, evaluate
from tests.search.problems import CONFIG, Xor, xor_net, xor_sampler

USEFUL = 2 * 32 + 32 * 8
HEAD = 8 * 2
FULL = USEFUL + 2 * 8 + 2 * 400 + HEAD


def search(
    config=CONFIG, budget=USEFUL + HEAD + 20, cost=None, net=None, data=None, **kwargs
) -> Run:
    net = net or xor_net()
    kwargs.setdefault("progress", False)
    sampler = kwargs.pop("sampler", None) or xor_sampler(net)
    cost = cost or costs.computation(net)
    return budgeted(net, sampler, cost, budget, data or Xor(), config, **kwargs)


def test_the_useful_edge_is_kept_and_the_idle_ones_go():
    net = xor_net()
    run = search(net=net)
    kept = set(run.architecture.edges)
    assert "useful" in kept and "head" in kept and not kept & {"idle 1", "idle 2"}
    assert run.meets_budget and "meets the budget" in run.statement()
    assert run.cost == run.architecture.macs <= USEFUL + HEAD + 20
    found = run.architecture.extract(net).eval()
    assert evaluate(found, Xor().test)["accuracy"] > 0.95
    last = run.history.iloc[-1]
    assert last.violation < 0.1 and last.cost_mean < 0.6 * FULL
    assert last.entropy < run.history.iloc[3].entropy


def test_without_lambda_nothing_pushes_the_cost_down():
    """Negative control: the same search with λ = 0 keeps to no budget."""
    run = search(replace(CONFIG, lam=0.0))
    assert run.cost > USEFUL + HEAD + 20 and not run.meets_budget
    assert "MISSES" in run.statement()


def test_bounded_logits_keep_every_choice_open():
    """With the same hasty Γ: free, it is certain of everything; bounded, it can still turn."""
    hasty = replace(CONFIG, gamma_lr=200.0)
    free, bounded = search(hasty), search(replace(hasty, max_logit=2.0))
    limit = torch.sigmoid(torch.tensor(2.0)) + 1e-6
    gamma = bounded.probabilities[CONFIG.warmup_epochs :, :-1]  # the head is fixed
    assert (gamma <= limit).all() and (gamma >= 1 - limit).all()
    assert free.history.entropy.iloc[-1] < 1e-3 < bounded.history.entropy.iloc[-1]


def test_a_tighter_budget_costs_less():
    cheap = search(budget=2 * 8 + HEAD)
    assert cheap.architecture.edges == ("linear", "head") and cheap.meets_budget
    assert cheap.history.val_accuracy.iloc[-1] < 0.8  # a line cannot solve it


def test_history_and_probabilities():
    run = search()
    assert run.history.epoch.tolist() == list(range(15))
    assert run.history.phase.tolist() == ["warm-up"] * 3 + ["search"] * 12
    assert run.probabilities.shape == (15, 5)
    assert (run.probabilities[:3] == 1).all() and (run.probabilities[:, 4] == 1).all()
    assert (run.history.cost_mean[:3] == FULL).all() and run.full_cost == FULL
    assert run.config["lam"] == 3 and run.seed == 0 and "torch" in run.versions


def test_warm_up_on_drawn_architectures_leaves_gamma_alone():
    """Choosing one of four operations, the sum of all four is a network that is never used."""
    config = replace(CONFIG, epochs=4, warmup_sampled=True, gamma_lr=50.0)
    net = xor_net()
    sampler = ChoiceSampler.paths(net.graph)
    run = search(config, net=net, sampler=sampler)
    assert (run.history.cost_mean[:3] < 0.7 * FULL).all()  # one of four branches at a time
    assert (run.probabilities[:3] == 1).all() and run.history.entropy[:3].tolist() == [0.0] * 3
    assert run.history.loss[2] < run.history.loss[0]


def test_same_seed_same_bits_other_seed_other_bits():
    a, b, c = search(), search(), search(replace(CONFIG, seed=1))
    assert a.history.equals(b.history) and torch.equal(a.probabilities, b.probabilities)
    assert not a.history.equals(c.history)


def test_equal_objectives_leave_gamma_alone():
    """With D the same for every sample the batch-mean baseline makes the update exactly zero."""
    net = xor_net()
    with torch.no_grad():
        for p in net.parameters():
            p.zero_()
    sampler = xor_sampler(net)
    config = replace(CONFIG, lr=1e-30, epochs=2, warmup_epochs=0, lam=0.0)
    search(config, net=net, sampler=sampler)
    assert (sampler.logits == 3).all()


def test_gamma_starts_from_the_initial_logit_after_warm_up():
    net = xor_net()
    sampler = xor_sampler(net)
    with torch.no_grad():
        sampler.logits.fill_(-5)
    search(replace(CONFIG, gamma_lr=0.0, epochs=4), net=net, sampler=sampler)
    assert (sampler.logits == 3).all()


def test_the_budget_counts_in_units_of_the_cost():
    """A cost twice as large with a budget twice as large is the same problem."""
    net = xor_net()
    double = costs.AdditiveCost(net.graph.macs * 2, "double", "macs")
    a, b = search(), search(cost=double, budget=2 * (USEFUL + HEAD + 20), net=net)
    assert torch.equal(a.probabilities, b.probabilities) and b.cost == 2 * a.cost


def test_black_box_and_stochastic_costs():
    net = xor_net()
    noise = torch.Generator().manual_seed(0)

    def energy(mask):
        exact = mask.double() @ net.graph.macs.double()
        return exact * (1 + 0.1 * torch.randn(len(mask), generator=noise).double())

    run = search(cost=energy, budget=1.3 * (USEFUL + HEAD), net=net)
    assert "useful" in run.architecture.edges
    assert not {"idle 1", "idle 2"} <= set(run.architecture.edges)


def test_path_sampler_searches_too():
    net = xor_net()
    run = search(sampler=ChoiceSampler.paths(net.graph), net=net)
    assert len(run.architecture.kept) == 2 and run.meets_budget


def test_impossible_budget_names_the_cheapest():
    with pytest.raises(ValueError, match="cheapest costs 32"):
        search(budget=31)


def test_budget_of_exactly_the_cheapest_is_accepted():
    assert search(replace(CONFIG, epochs=4), budget=32).budget == 32


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"warmup_epochs": 15}, "warmup_epochs is 15"),
        ({"warmup_epochs": -1}, "warmup_epochs is -1"),
        ({"lam": -1.0}, "lam is -1"),
        ({"max_logit": 0.0}, "max_logit is 0"),
        ({"max_logit": float("nan")}, "max_logit is nan"),
        ({"lam": float("nan")}, "lam is nan"),
        ({"lr": -1.0}, "lr is -1"),
        ({"momentum": 2.0}, "momentum is 2"),
        ({"gamma_momentum": 1.0}, "momentum is 1"),
        ({"gamma_lr": float("inf")}, "gamma_lr is inf"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"milestones": (9, 4)}, "milestones"),
    ],
)
def test_impossible_configurations_are_refused(change, words):
    with pytest.raises(ValueError, match=words):
        replace(CONFIG, **change)


def test_a_cost_of_the_wrong_shape_is_refused_before_training():
    with pytest.raises(ValueError, match="must return one number each"):
        search(cost=lambda mask: mask.double())


def test_nan_loss_stops_and_keeps_the_last_good_state(tmp_path):
    path = tmp_path / "run.pt"
    with pytest.raises(NonFiniteLoss) as caught:
        search(replace(CONFIG, lr=1e30), checkpoint=path)
    assert caught.value.checkpoint == path and path.exists()


def test_runs_are_saved_and_loaded(tmp_path):
    run = search(replace(CONFIG, epochs=5))
    run.save(tmp_path / "run.pt")
    twin = Run.load(tmp_path / "run.pt")
    assert twin.architecture == run.architecture and twin.history.equals(run.history)
    assert torch.equal(twin.probabilities, run.probabilities)
    assert twin.statement() == run.statement() and twin.graph.fingerprint == run.graph.fingerprint


def test_a_file_that_is_no_run_is_refused(tmp_path):
    path = tmp_path / "run.pt"
    search(replace(CONFIG, epochs=4), checkpoint=path)  # the checkpoint of a loop
    with pytest.raises(ValueError, match="not a saved run"):
        Run.load(path)


def test_resuming_between_epochs_gives_the_same_bits(tmp_path):
    whole = search()
    path = tmp_path / "run.pt"
    calls = 0
    net = xor_net()
    inner = costs.computation(net)

    def breaking(mask):
        nonlocal calls
        calls += 1
        if calls == 40:
            raise KeyboardInterrupt
        return inner(mask)

    first = search(cost=breaking, net=net, checkpoint=path)
    assert first.interrupted and 3 < len(first.history) < 15
    again = search(cost=breaking, checkpoint=path)
    assert not again.interrupted and again.history.equals(whole.history)
    assert torch.equal(again.probabilities, whole.probabilities)


def test_a_checkpoint_of_another_search_is_refused(tmp_path):
    search(replace(CONFIG, epochs=4), checkpoint=tmp_path / "run.pt")
    with pytest.raises(ValueError, match="lam"):
        search(replace(CONFIG, epochs=4, lam=1.0), checkpoint=tmp_path / "run.pt")
    with pytest.raises(ValueError, match="budget"):
        search(replace(CONFIG, epochs=4), budget=FULL, checkpoint=tmp_path / "run.pt")


def refused(path, words, **changes):
    """A checkpoint of CONFIG for 4 epochs does not serve another search; both values are named."""
    short = replace(CONFIG, epochs=4)
    if not path.exists():
        search(short, checkpoint=path)
    with pytest.raises(ValueError, match=words) as caught:
        search(short, checkpoint=path, **changes)
    return str(caught.value)


def test_a_checkpoint_knows_its_cost(tmp_path):
    """Another cost once resumed a finished run and gave it the wrong name."""
    net = xor_net()
    message = refused(tmp_path / "run.pt", "cost", cost=costs.memory(net))
    assert "computation" in message and "memory" in message
    dearer = costs.AdditiveCost(net.graph.macs * 2, "computation", "macs")
    refused(tmp_path / "run.pt", "cost", cost=dearer)


def test_two_nameless_costs_are_told_apart_by_what_they_charge(tmp_path):
    short = replace(CONFIG, epochs=4)
    one, two = (lambda mask, k=k: k * mask.sum(1).double() for k in (1, 2))
    search(short, cost=one, budget=3, checkpoint=tmp_path / "run.pt")
    search(short, cost=one, budget=3, checkpoint=tmp_path / "run.pt")
    with pytest.raises(ValueError, match="cost"):
        search(short, cost=two, budget=3, checkpoint=tmp_path / "run.pt")


def test_a_checkpoint_knows_its_data_and_sampler(tmp_path):
    refused(tmp_path / "run.pt", "train data", data=Xor(seed=1))
    other = Xor()
    other.val = Xor(seed=1).val
    refused(tmp_path / "run.pt", "val data", data=other)
    net = xor_net()
    undecided = BernoulliSampler(net.graph, logit=0.0, fixed=net.graph.of_kind("head"))
    message = refused(tmp_path / "run.pt", "sampler", sampler=undecided)
    assert "logit 3" in message and "logit 0" in message
    refused(tmp_path / "run.pt", "sampler", sampler=BernoulliSampler(net.graph))


def test_stochastic_costs_can_be_resumed(tmp_path):
    noise = torch.Generator().manual_seed(0)

    def energy(mask):
        return mask.sum(1).double() + 0.1 * torch.rand(len(mask), generator=noise).double()

    short = replace(CONFIG, epochs=4)
    for _ in range(2):
        search(short, cost=energy, budget=3, checkpoint=tmp_path / "run.pt")


def test_a_sampler_of_another_graph_is_refused():
    edges = [(f"{i}", f"{i + 1}", torch.nn.Linear(2, 2)) for i in range(5)]
    chain = SuperNetwork(edges, "0", "5", input_shape=(2,))  # as many edges as xor_net
    with pytest.raises(ValueError, match="sampler"):
        search(sampler=BernoulliSampler(chain.graph))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_no_numbers_are_refused(value):
    net = xor_net()
    sampler = xor_sampler(net)
    with torch.no_grad():
        sampler.logits[0] = value
    with pytest.raises(ValueError, match="not finite|finite"):
        search(replace(CONFIG, warmup_epochs=0), net=net, sampler=sampler)


def test_no_training_examples_are_refused():
    data = Xor()
    data.train = TensorData(data.train.x[:0], data.train.y[:0])
    with pytest.raises(ValueError, match="no training examples"):
        search(data=data)


def test_frozen_weights_and_networks_without_any_can_be_searched():
    """Nothing learns in warm-up then; Γ learns afterwards."""
    net = xor_net().requires_grad_(False)
    before = [p.clone() for p in net.parameters()]
    run = search(replace(CONFIG, epochs=6), net=net)
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
    assert run.probabilities[-1, 0] != run.probabilities[3, 0]
    bare = SuperNetwork(
        [("x", "y", torch.nn.Identity(), "a"), ("x", "y", torch.nn.Tanh(), "b")],
        "x", "y", input_shape=(2,),
    )  # fmt: skip
    run = search(
        replace(CONFIG, epochs=8, gamma_lr=10.0),
        net=bare,
        sampler=BernoulliSampler(bare.graph),
        cost=costs.AdditiveCost([1.0, 2.0]),
        budget=1,
    )
    assert run.history.cost_mean.iloc[-1] < 2  # of 3 in warm-up


# ------------------------------------------------------- faults that were planted and once survived


class Normed(torch.nn.Module):
    """A layer whose output in training mode differs from that in evaluation mode."""

    def __init__(self):
        super().__init__()
        self.linear, self.norm = torch.nn.Linear(2, 16), torch.nn.BatchNorm1d(16)

    def forward(self, x):
        return torch.relu(self.norm(self.linear(x)))


def normed_net():
    torch.manual_seed(0)
    edges = [("x", "h", Normed(), "body"), ("h", "y", torch.nn.Linear(16, 2), "head", "head")]
    return SuperNetwork(edges, "x", "y", input_shape=(2,))


def test_validation_runs_in_evaluation_mode_and_training_does_not():
    net, data = normed_net(), Xor(256)
    data.val.x[:] = 3 * data.val.x + 1  # other statistics than in training
    config = replace(CONFIG, epochs=3, warmup_epochs=1)
    run = search(config, budget=1e9, net=net, data=data)
    assert net.edge_modules[0].norm.running_mean.abs().sum() > 0  # training mode while it learned
    net.eval()
    mode = run.architecture.mask
    measured = evaluate(lambda x: net(x, mode), data.val)
    assert run.history.val_loss.iloc[-1] == pytest.approx(measured["loss"], abs=1e-9)
    net.train()
    in_training = evaluate(lambda x: net(x, mode), data.val)
    assert in_training["loss"] != pytest.approx(measured["loss"], abs=1e-3)


def test_nothing_is_learned_from_the_validation_data():
    poisoned = Xor()
    poisoned.val = TensorData(torch.zeros_like(poisoned.val.x), 1 - poisoned.val.y)
    a, b = xor_net(), xor_net()
    config = replace(CONFIG, epochs=6)
    clean, dirty = search(config, net=a), search(config, net=b, data=poisoned)
    assert torch.equal(clean.probabilities, dirty.probabilities)
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        assert torch.equal(p, q)
    assert not clean.history.val_loss.equals(dirty.history.val_loss)


def test_milestones_divide_the_rate_of_the_weights_from_their_epoch_on():
    config = replace(CONFIG, epochs=6, warmup_epochs=1, milestones=(2, 4))
    assert [config.lr_at(e) for e in range(6)] == pytest.approx(
        [0.03, 0.03, 0.003, 0.003, 0.0003, 0.0003]
    )
    plain = replace(config, milestones=())
    a, b = (search(c).history for c in (config, plain))
    assert a.loss[:2].equals(b.loss[:2]) and a.loss[2] != b.loss[2]
    # A milestone in the first epoch is a smaller rate from the start.
    early, slow = replace(plain, milestones=(0,)), replace(plain, lr=plain.lr * 0.1)
    assert search(early).history.equals(search(slow).history)


def test_a_larger_lambda_lowers_the_cost_from_the_first_steps():
    config = replace(CONFIG, epochs=5, warmup_epochs=1, gamma_lr=5.0)
    free, paid = (search(replace(config, lam=lam)).history.cost_mean.iloc[-1] for lam in (0.0, 30))
    assert paid < 0.8 * free


def test_the_entropy_bonus_keeps_gates_open():
    kept, lost = (
        search(replace(CONFIG, entropy_weight=w)).history.entropy.iloc[-1] for w in (0.1, -0.1)
    )
    assert kept > lost


# ------------------------------------------------------- costs of either sign


def test_negative_and_mixed_costs_can_be_searched():
    """A gain is a negative cost. The unit of overspending stays positive."""
    net = xor_net()
    gain = costs.AdditiveCost([-4.0, -1.0, 3.0, 2.0, 0.0], "net cost", "units")  # full: 0
    run = search(cost=gain, budget=-3.5, net=net)
    assert run.full_cost == 0 and run.meets_budget and "of the full network" not in run.statement()
    flipped = search(cost=costs.AdditiveCost([-5.0] * 5), budget=-9.0)
    assert flipped.meets_budget  # two edges suffice


def test_a_feasible_budget_is_not_refused_where_more_edges_cost_less():
    """Every single path costs 10, the whole network 1: the bound from paths was called exact."""
    net = xor_net()

    def cost(mask):
        return torch.where(mask.all(1), 1.0, 10.0)

    run = search(replace(CONFIG, lam=0.0), cost=cost, budget=5, net=net)
    assert run.meets_budget and run.cost == 1


# ------------------------------------------------------- warnings


def test_a_search_that_goes_wrong_warns_unless_it_is_quiet(capsys, recwarn):
    hasty = replace(CONFIG, gamma_lr=200.0)
    search(hasty)
    assert not [w for w in recwarn if w.category is SearchWarning]
    with pytest.warns(SearchWarning, match="stood still"):
        search(hasty, progress=True)


SCRIPT = """
    import sys, torch
    torch.set_num_threads(1)
    from tests.search.test_budgeted import LONG, search
    search(LONG, checkpoint=sys.argv[1])
"""
LONG = replace(CONFIG, epochs=25, batch_size=8)


def test_killed_at_arbitrary_steps_and_resumed_bit_for_bit(tmp_path):
    """SIGKILL while training, twice; the end is that of an undisturbed run."""
    root = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
    environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    checkpoint = tmp_path / "killed.ckpt"
    for delay in (0.05, 0.31):
        seen = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        arguments = [sys.executable, "-c", textwrap.dedent(SCRIPT), str(checkpoint)]
        process = subprocess.Popen(arguments, env=environment, cwd=root)
        while process.poll() is None and (
            not checkpoint.exists() or checkpoint.stat().st_mtime_ns == seen
        ):
            time.sleep(0.01)  # wait until this process has finished an epoch of its own
        time.sleep(delay)
        assert process.poll() is None, "ended before it could be killed: make LONG longer"
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert 0 < len(torch.load(checkpoint)["history"]["rows"]) < LONG.epochs
    resumed = search(LONG, checkpoint=checkpoint)
    whole = search(LONG, checkpoint=tmp_path / "whole.ckpt")
    assert resumed.history.equals(whole.history)
    assert torch.equal(resumed.probabilities, whole.probabilities)
    states = [torch.load(path)["state"] for path in (checkpoint, tmp_path / "whole.ckpt")]
    for part in ("supernet", "sampler", "theta", "gamma"):
        _assert_same(states[0][part], states[1][part])


def _assert_same(a, b):
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            _assert_same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            _assert_same(x, y)
    else:
        assert a == b


def test_pixel_losses_are_means_over_the_image():
    output, target = torch.randn(2, 3, 4, 4), torch.randint(3, (2, 4, 4))
    losses = per_example_loss(output, target)
    expected = torch.nn.functional.cross_entropy(output[1:], target[1:])
    assert losses.shape == (2,) and torch.isclose(losses[1], expected)


def test_a_batch_without_any_live_architecture_is_survived():
    """The head's source is only reached by a gate that is off: loss of the constant prediction."""
    net = SuperNetwork([("x", "y", torch.nn.Linear(2, 2))], "x", "y", input_shape=(2,))
    sampler = BernoulliSampler(net.graph, logit=-50.0)
    config = BudgetConfig(epochs=1, warmup_epochs=0, batch_size=64, milestones=())
    run = search(config, budget=4, net=net, sampler=sampler)
    assert run.architecture.is_empty and not run.meets_budget and run.cost == 0
    assert run.history.loss.item() == pytest.approx(torch.log(torch.tensor(2.0)).item(), abs=1e-5)
    assert "nothing was found" in run.statement()
