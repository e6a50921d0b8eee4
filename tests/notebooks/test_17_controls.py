"""Chapter 17: what each of its bands must reject, and its exercises both ways."""

from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

from nas_core import growing
from nas_core.data import average_pool, load
from nas_core.growing import GrowConfig, GrowingNetwork, Plan, Schedule
from nas_core.workbook import Book, checks, notebooks
from tests.notebooks.book import claimed, control_tests, exercises

BANDS = claimed("17")
PLAN = Plan(width=8, cells=(1, 1, 1, 1), dense=False, size=16, stem_pool=2)


@cache
def chapter_functions():
    """`simulated`, `formula` and `ring_accuracy` as the chapter defines them."""
    names = {"torch": torch, "nn": nn, "growing": growing, "np": np}
    for cell in notebooks.code_cells(notebooks.read(Book.load().find("17").path)):
        for name in ("simulated", "ring_accuracy"):
            if f"def {name}(" in cell.source:
                exec(cell.source.split("\n\n\nthresholds =")[0].split("\n\n\nexpect(")[0], names)
    return names


def off_formula(column):
    """Difference from the formula when the classifiers are too sure of themselves."""
    names, thresholds = chapter_functions(), (0.7, 0.8, 0.9)
    logits, y = names["simulated"](sharpness=3.0)
    rows = growing.exit_curve(logits, y, [1, 2, 3, 4], thresholds)
    at = {"accuracy": 0, "depth": 1}[column]
    return max(abs(r[column] - names["formula"](r["threshold"])[at]) for r in rows)


def agreeing():
    """All classifiers give the same answers: none is right where the last is wrong."""
    logits, y = chapter_functions()["simulated"]()
    return growing.overthinking(logits[:1].expand(4, -1, -1), y).double().mean()


def wrong_variance():
    torch.manual_seed(0)
    z = torch.randn(64, 5, 4, 4) * 3 + 2
    variance, mean = torch.var_mean(z, (0, 2, 3), correction=1, keepdim=True)
    by_hand = (z - mean) / (variance + 1e-5).sqrt()
    return (nn.BatchNorm2d(5, affine=False)(z) - by_hand).abs().max()


@cache
def images():
    return average_pool(load("colour_shapes", train_limit=3000, seed=0), 2)


def accuracies(net):
    logits, y = growing.all_exits(net, images().test)
    return 100 * (logits.argmax(-1) == y).double().mean(1)


def untrained_depth():
    torch.manual_seed(0)
    values = accuracies(GrowingNetwork(PLAN))
    return values[-1] - values[0]


def shuffled_labels():
    data = average_pool(load("colour_shapes", train_limit=3000, seed=0), 2)
    data.train.y = data.train.y[torch.randperm(3000, generator=torch.Generator().manual_seed(0))]
    torch.manual_seed(0)
    net = GrowingNetwork(PLAN, blocks=1)
    config = GrowConfig(Schedule(4, 0.02, (), (), grow=(1, 2, 3)), batch_size=32, best=False)
    growing.grow_and_prune(net, data, config, progress=False)
    return accuracies(net)[-1]


@cache
def trained():
    """The chapter's whole network with classifiers, for fewer epochs."""
    torch.manual_seed(0)
    net = GrowingNetwork(PLAN)
    config = GrowConfig(Schedule(6, 0.02, (5,), (0.1,), grow=()), batch_size=32)
    growing.grow_and_prune(net, images(), config, progress=False)
    return growing.all_exits(net, images().test)


def gain_of_shuffled_confidence():
    """Early exit whose depths belong to other images."""
    logits, y = trained()
    right = (logits.argmax(-1) == y).double()
    gains = []
    for q, row in zip((0.2, 0.3, 0.4, 0.5), growing.exit_curve(
        logits, y, [1, 2, 3, 4], (0.2, 0.3, 0.4, 0.5)
    ), strict=True):  # fmt: skip
        depth, drawn = growing.exit_depth(logits, q), []
        for shift in range(1, len(y), 50):
            drawn.append(right.gather(0, depth.roll(shift)[None]).mean())
        gains.append(float(torch.stack(drawn).mean()) - row["random"])
    return 100 * max(gains)


def reversed_rule():
    """Leave where the confidence is *below* q."""
    logits, _ = trained()
    depths = []
    for q in (0.0, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.9, 1.0):
        out = logits.softmax(-1).amax(-1) < q
        out[-1] = True
        depths.append(float(out.int().argmax(0).double().mean()))
    return (np.diff(depths) < 0).sum()


def loss_of_the_same_head():
    torch.manual_seed(0)
    plan = Plan(width=8, cells=(1, 1, 1, 1), dense=False, size=16, stem_pool=2, internal=False)
    net = GrowingNetwork(plan, blocks=1)
    config = GrowConfig(Schedule(4, 0.02, (), (), grow=()), batch_size=32)
    growing.grow_and_prune(net, images(), config, progress=False)
    before = accuracies(net)[0]
    net.grow()
    return before - accuracies(net)[0]


def added_without_classifiers():
    net = GrowingNetwork(Plan(dense=False, internal=False), blocks=1)
    old = len(net.classifiers)
    net.grow()
    return len(net.classifiers) - old


def line_on(target):
    x = np.linspace(-5, 5, 200)
    features = np.stack([np.ones_like(x), x, np.sin(x)], 1)
    return np.linalg.lstsq(features, target(x), rcond=None)[0][2]


CONTROLS = {
    "mean squared error of the line": {"the feature sin x": lambda: 0.0},
    "coefficient of sin x": {"a sine of height 1": lambda: line_on(lambda x: np.sin(x) + x)},
    "accuracy of two linear layers, %": {
        "a ReLU": lambda: chapter_functions()["ring_accuracy"](nn.ReLU())
    },
    "accuracy with a ReLU between, %": {
        "no ReLU": lambda: chapter_functions()["ring_accuracy"](nn.Identity())
    },
    "difference from eq. 5": {"variance with n − 1": wrong_variance},
    "largest difference from the formula, accuracy": {"too sure": lambda: off_formula("accuracy")},
    "largest difference from the formula, depth": {"too sure": lambda: off_formula("depth")},
    "share of overthought examples": {"classifiers that agree": agreeing},
    "classifiers that growing added": {"one head": added_without_classifiers},
    "weights of the dense network, reading A": {
        "plain cells": lambda: growing.pruning.count(
            growing.pruning.weights(GrowingNetwork(Plan(dense=False)))
        )
    },
    "points that depth adds, whole network": {"untrained": untrained_depth},
    "accuracy of the grown network, %": {"shuffled labels": shuffled_labels},
    "points that the old classifier loses, new classifier": {
        "the head moves": loss_of_the_same_head
    },
    "mean depths that fall when q rises": {"the rule reversed": reversed_rule},
    "mean depth at q = 0": {"all at the last": lambda: 3.0},
    "largest gain of early exit over random exits, points": {
        "confidence of other images": gain_of_shuffled_confidence
    },
    "share of overthought images": {
        "classifiers that agree": lambda: (
            growing.overthinking(trained()[0][:1].expand(4, -1, -1), trained()[1]).double().mean()
        )
    },
    "work at the chosen threshold, share": {"no early exit": lambda: 1.0},
    "work of growing, share of the whole (report's schedule)": {
        "all blocks from the start": lambda: 1.0
    },
}


test_every_band_has_a_control, test_the_band_rejects_the_mistake = control_tests(BANDS, CONTROLS)


# ------------------------------------------------------------------------------------ exercises

CHECKS = {"leave": checks.ex_17_1, "grow": checks.ex_17_2}
SOLVED = exercises("17", "solution", torch=torch)


@pytest.mark.parametrize("name", CHECKS)
def test_solutions_pass_and_stubs_do_not(name, capsys):
    assert CHECKS[name](SOLVED[name])
    assert not CHECKS[name](exercises("17", "stub")[name])
    assert "not written yet" in capsys.readouterr().out


def wrong_exit(mistake):
    def leave(blocks, classifiers, x, q):
        inside = torch.arange(len(x))
        answer, depth = torch.zeros_like(inside), torch.zeros_like(inside)
        for i, (block, classify) in enumerate(zip(blocks, classifiers, strict=True)):
            if mistake == "all rows" and i:
                block(x[:1])
            x = block(x)
            logits = classify(x)
            confidence, predicted = (logits if mistake == "logits" else logits.softmax(1)).max(1)
            out = (confidence > q) | ((i == len(blocks) - 1) & (mistake != "stays"))
            rows = torch.arange(len(inside)) if mistake == "rows" else inside
            answer[rows[out]], depth[rows[out]] = predicted[out], i
            x, inside = x[~out], inside[~out]
            if not len(inside):
                break
        return answer, depth

    return leave


def first_rate(blocks, classifiers, optimizer, block, classifier):
    blocks.append(block)
    classifiers.append(classifier)
    optimizer.add_param_group({"params": [*block.parameters(), *classifier.parameters()]})


def forgets_the_classifier(blocks, classifiers, optimizer, block, classifier):
    blocks.append(block)
    classifiers.append(classifier)
    optimizer.add_param_group({"params": block.parameters(), "lr": 0.01})


def starts_anew(blocks, classifiers, optimizer, block, classifier):
    first_rate(blocks, classifiers, optimizer, block, classifier)
    optimizer.param_groups[1]["lr"] = 0.01
    optimizer.state.clear()


def copies_the_old_block(blocks, classifiers, optimizer, block, classifier):
    block.load_state_dict(blocks[-1].state_dict())
    first_rate(blocks, classifiers, optimizer, block, classifier)


@pytest.mark.parametrize(
    ("name", "answer", "words"),
    [
        ("leave", wrong_exit("logits"), "softmax"),
        ("leave", wrong_exit("stays"), "sure or not"),
        ("leave", wrong_exit("rows"), "mixed up"),
        ("leave", wrong_exit("all rows"), "no others"),
        ("leave", lambda blocks, classifiers, x, q: x, "two tensors"),
        ("grow", first_rate, "current rate is 0.01"),
        ("grow", forgets_the_classifier, "does not train 2 of the 4"),
        ("grow", starts_anew, "momentum"),
        ("grow", copies_the_old_block, "as they are"),
        ("grow", lambda b, c, o, block, classifier: b.append(block), "`classifiers`"),
    ],
)
def test_usual_mistakes_are_recognized(name, answer, words, capsys):
    assert not CHECKS[name](answer)
    assert words in capsys.readouterr().out
