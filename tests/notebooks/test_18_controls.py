"""Chapter 18: what each of its bands must reject, and its exercises both ways."""

import copy
from functools import cache

import pytest
import torch
from torch.nn.functional import cross_entropy

from nas_core import growing
from nas_core.data import load, reference
from nas_core.growing import GrowConfig, GrowingNetwork, Plan, Schedule, pruning
from nas_core.supernet import count_macs
from nas_core.workbook import checks
from tests.notebooks.book import claimed, control_tests, exercises

BANDS = claimed("18")
PLAN = Plan(width=8, cells=(1, 1, 1, 1), dense=False, in_channels=1, size=8)


def fresh():
    torch.manual_seed(0)
    return GrowingNetwork(PLAN)


def kept_without_classifiers():
    """Counts of table 12 if the classifiers were not pruned and not counted."""
    net = GrowingNetwork(Plan())
    cells = sum(w.numel() for k, w in pruning.weights(net).items() if "classifiers" not in k)
    table = reference.load("report_table_12")
    return sum(pruning.keep_count(r, cells) != p for r, p in table[["keep", "params"]].values)


def gradient_alone():
    net, x, y = fresh(), torch.randn(64, 1, 8, 8), torch.randint(10, (64,))
    parts = pruning.weights(net)
    g = torch.autograd.grad(cross_entropy(net(x), y), list(parts.values()), allow_unused=True)
    scores = pruning.snip(parts, lambda: cross_entropy(net(x), y), module=net)
    return max(float((a.abs() - scores[k]).abs().max()) for k, a in zip(parts, g, strict=True)
               if a is not None)  # fmt: skip


@cache
def trained(shuffled=False):
    """The chapter's unpruned network after a shorter training, and its test accuracy."""
    data = load("digits", train_limit=600)
    if shuffled:
        order = torch.randperm(600, generator=torch.Generator().manual_seed(0))
        data.train.y = data.train.y[order]
    torch.manual_seed(0)
    net = GrowingNetwork(PLAN, blocks=1)
    config = GrowConfig(Schedule(6, 0.03, (), (), grow=(1, 2, 3)), batch_size=32, best=False)
    growing.grow_and_prune(net, data, config, progress=False)
    return net, accuracy(net)


def accuracy(net):
    logits, y = growing.all_exits(net, load("digits").test)
    return 100 * (logits[-1].argmax(-1) == y).double().mean().item()


def executed_share(extracted):
    """Multiply-adds executed after half of the filters are set to zero, of all."""
    torch.manual_seed(0)
    net = GrowingNetwork(Plan(width=32, cells=(1, 1, 1, 1), dense=False, stem_pool=2)).eval()
    whole = count_macs(net, (3, 32, 32))[0]
    named = dict(net.named_parameters())
    score = pruning.magnitude(pruning.weights(net))
    pruning.apply(named, pruning.keep_filters(score, 0.5, named))
    small = growing.extract(net) if extracted else net
    return count_macs(small, (3, 32, 32))[0] / whole


def half_by_random_twice():
    """The score compared with itself under another draw."""
    reached = []
    for seed in (0, 1):
        net = copy.deepcopy(trained()[0])
        parts = pruning.weights(net)
        score = pruning.random(parts, torch.Generator().manual_seed(seed))
        pruning.apply(parts, pruning.keep_best(score, pruning.count(parts) // 2))
        reached.append(accuracy(net))
    return reached[1] - reached[0]


def changed_logits():
    """A cell is removed that something reads."""
    net = copy.deepcopy(trained()[0]).eval()
    x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    before = net.exits(x)
    with torch.no_grad():
        for w in net.cells[0].parameters():
            w.zero_()
    return float((net.exits(x) - before).abs().max().detach())


CONTROLS = {
    "printed counts of table 12 that κ does not give": {
        "classifiers left out": kept_without_classifiers
    },
    "largest difference from autograd through a mask": {"the gradient alone": gradient_alone},
    "score half way (a²/4)": {"the gradient alone, a/2": lambda: 1.5},
    "score at convergence": {"magnitude": lambda: 3.0},
    "useful inputs that magnitude finds at the start": {"a trained network": lambda: 1.0},
    "pruned weights that came back, with hold": {"no hold": lambda: 1.0},
    "pruned weights that came back, without": {"hold": lambda: 0.0},
    "weights kept, share of all": {"nothing pruned": lambda: 1.0},
    "accuracy with all weights, %": {"shuffled labels": lambda: trained(True)[1]},
    "accuracy with a tenth, by SNIP, %": {"shuffled labels": lambda: trained(True)[1]},
    "logits that extract changes, largest difference": {"a live cell removed": changed_logits},
    "executed share, a fifth of the weights": {
        "filters removed": lambda: executed_share(extracted=True)
    },
    "executed share, half of the filters": {
        "zeros left in place": lambda: executed_share(extracted=False)
    },
    "half by magnitude, not trained on: points above random": {
        "random against random": half_by_random_twice
    },
}


test_every_band_has_a_control, test_the_band_rejects_the_mistake = control_tests(BANDS, CONTROLS)


# ------------------------------------------------------------------------------------ exercises

CHECKS = {"snip_masks": checks.ex_18_1, "ticket": checks.ex_18_2}
SOLVED = exercises("18", "solution", torch=torch)


@pytest.mark.parametrize("name", CHECKS)
def test_solutions_pass_and_stubs_do_not(name, capsys):
    assert CHECKS[name](SOLVED[name])
    assert not CHECKS[name](exercises("18", "stub")[name])
    assert "not written yet" in capsys.readouterr().out


def wrong_snip(mistake):
    def snip_masks(weights, loss, keep):
        gradients = torch.autograd.grad(loss(), list(weights.values()))
        pairs = {k: (w.detach(), g) for (k, w), g in zip(weights.items(), gradients, strict=True)}
        score = {
            "gradient": lambda w, g: g.abs(), "weight": lambda w, g: w.abs(),
            "smallest": lambda w, g: -(w * g).abs(), "signed": lambda w, g: w * g,
        }.get(mistake, lambda w, g: (w * g).abs())  # fmt: skip
        scores = {k: score(w, g) for k, (w, g) in pairs.items()}
        if mistake == "local":
            return pruning.keep_best(scores, {k: int(keep * s.numel()) for k, s in scores.items()})
        total = sum(s.numel() for s in scores.values())
        masks = pruning.keep_best(scores, int(keep * total) + (mistake == "one more"))
        if mistake == "prunes":
            pruning.apply(weights, masks)
        return {k: m.float() if mistake == "float" else m for k, m in masks.items()}

    return snip_masks


def wrong_ticket(mistake):
    def ticket(weights, train, keep, rounds):
        first = {k: w.clone() for k, w in weights.items()}
        masks, n = pruning.keep_all(weights), sum(w.numel() for w in weights.values())
        for r in range(1, rounds + 1):
            train(masks)
            share = keep ** (r / rounds)
            left = int(share * (pruning.count(masks) if mistake == "of the rest" else n))
            score = pruning.magnitude(weights)
            if mistake == "smallest":
                score = {k: -s for k, s in score.items()}
            if mistake == "comes back":
                score = {k: s + 10 * ~masks[k] for k, s in score.items()}
                masks = pruning.keep_best(score, left)
            else:
                masks = pruning.keep_best(score, left, within=masks)
            if mistake == "never rewinds" or (mistake == "last round" and r == rounds):
                continue
            for k, w in weights.items():
                w.copy_(first[k] * masks[k])
        return masks

    return ticket


@pytest.mark.parametrize(
    ("name", "answer", "words"),
    [
        ("snip_masks", wrong_snip("gradient"), "gradient alone"),
        ("snip_masks", wrong_snip("weight"), "weight alone"),
        ("snip_masks", wrong_snip("smallest"), "smallest scores"),
        ("snip_masks", wrong_snip("signed"), "absolute value"),
        ("snip_masks", wrong_snip("one more"), "weights are kept instead of"),
        ("snip_masks", wrong_snip("prunes"), "changes the weights"),
        ("snip_masks", wrong_snip("float"), "bool tensor"),
        ("ticket", wrong_ticket("never rewinds"), "rewind"),
        ("ticket", wrong_ticket("last round"), "rewind once more"),
        ("ticket", wrong_ticket("of the rest"), "of all weights"),
        ("ticket", wrong_ticket("comes back"), "came back"),
        ("ticket", wrong_ticket("smallest"), "largest weights"),
    ],
)
def test_usual_mistakes_are_recognized(name, answer, words, capsys):
    assert not CHECKS[name](answer)
    assert words in capsys.readouterr().out


def test_layers_that_do_not_compete_are_recognized(capsys):
    assert not checks.ex_18_1(wrong_snip("local"))
    assert "instead of" in (said := capsys.readouterr().out) or "join their scores" in said
