import copy

import pytest
import torch
from torch import nn

from nas_core.continual import (
    Embedded,
    FitConfig,
    Library,
    Stream,
    TaskSpec,
    make_learner,
    mlp,
    rank_past,
    resnet,
)
from nas_core.continual.learners.mntdp import Trunk
from nas_core.supernet import Architecture

NARROW = resnet(4, 8)


@pytest.fixture
def images(digits):
    return digits


@pytest.mark.parametrize("name", ["MNTDP-D", "MNTDP-S", "MNTDP-D (k=all)", "MNTDP-S (k=all)"])
def test_old_modules_stay_bit_for_bit_with_their_statistics(name, images, quick):
    learner = make_learner(name, NARROW, quick)
    for task in images:
        before = {k: v.clone() for k, v in learner.library.state_dict().items()}
        old = [learner.predict(t.test.inputs(t.test.x), t.id) for t in list(images)[: task.id]]
        learner.learn(task)
        after = learner.library.state_dict()
        assert all(torch.equal(v, after[k]) for k, v in before.items())
        assert any("running_mean" in k for k in after)
        for t, logits in zip(images, old, strict=False):
            assert torch.equal(learner.predict(t.test.inputs(t.test.x), t.id), logits)


@pytest.mark.parametrize("name", ["MNTDP-D", "MNTDP-S"])
def test_paths_branch_to_the_right_and_nothing_unused_stays(name, images, quick):
    learner = make_learner(name, NARROW, quick)
    for task in images:
        learner.learn(task)
    used = set()
    for t, path in enumerate(learner.library.paths):
        new = [owner == t for owner in path]
        assert new == sorted(new)  # old modules first, then new ones only
        reused = new.count(False)
        assert any(path[:reused] == p[:reused] for p in learner.library.paths[:t]) or not t
        used |= {Library.key(layer, owner) for layer, owner in enumerate(path)}
    assert used == set(learner.library.store)


def _library_of_two() -> Library:
    torch.manual_seed(0)
    library = Library(NARROW)
    library.grow((0,) * 7, 2)
    library.grow((0, 0, 1, 1, 1, 1, 1), 2)
    return library.eval()


def test_the_trunk_runs_every_shared_module_once():
    library = _library_of_two()
    calls = {key: 0 for key in library.store}
    for key, module in library.store.items():
        module.register_forward_hook(
            lambda m, a, o, key=key: calls.__setitem__(key, calls[key] + 1)
        )
    prefixes = [p[:n] for p in library.paths for n in range(7)]
    x = torch.randn(3, 3, 8, 8)
    out = Trunk(library, prefixes)(x)
    trunk = [k for k in calls if not k.startswith("layer6")]
    assert all(calls[k] == 1 for k in trunk) and calls["layer6_task0"] == 0
    h = x
    for layer in range(4):
        h = library.module(layer, library.paths[1][layer])(h)
    assert torch.equal(out[library.paths[1][:4]], h)


def test_candidates_are_seven_per_source():
    learner = make_learner("MNTDP-D", NARROW)
    learner.net = _library_of_two()
    assert [len(p) for p in learner.prefixes([(0, 1.0)])] == [6, 5, 4, 3, 2, 1, 0]
    both = learner.prefixes([(0, 1.0), (1, 0.5)])
    assert len(both) == len(set(both)) == 7 + 4  # the first two modules and "all new" are shared


def test_cached_features_change_nothing(images, quick):
    cached, direct = (make_learner("MNTDP-D", NARROW, quick) for _ in range(2))
    direct.cache_bytes = 0  # nothing fits
    for task in images:
        a, b = cached.learn(task), direct.learn(task)
        assert a.val_accuracy == pytest.approx(b.val_accuracy, abs=0.051)
    assert cached.library.paths[0] == direct.library.paths[0]


def test_the_prior_finds_the_task_with_the_same_images():
    classes = ("0", "1", "2", "3", "4")
    cat = Embedded(8, (60, 30, 10))
    specs = [
        TaskSpec("digits", classes, 250, 100),
        TaskSpec("textures", ("banded", "striped"), 60, 30),
        TaskSpec("digits", classes, 60, 60),
    ]
    stream = Stream("x", specs, cat, augment=False)
    config = FitConfig(lr=(0.003,), weight_decay=(0.0,), max_steps=80, batch_size=32)
    learner = make_learner("Independent", mlp((3, 8, 8), 16), config)
    for task in list(stream)[:2]:
        learner.learn(task)
    ranking = rank_past(learner.library, stream[2])
    assert [t for t, _ in ranking] == [0, 1]
    assert ranking[0][1] > ranking[1][1] > 0.2


def test_stochastic_space_is_exactly_the_candidate_paths(images, quick):
    learner = make_learner("MNTDP-S", NARROW, quick)
    learner.net = _library_of_two()
    net, gamma, new, prefixes, masks = learner.space(images[0], [(0, 1.0), (1, 1.0)])
    assert len(prefixes) == 11 + 2  # and the two whole paths
    assert gamma.log_prob(masks).exp().sum().item() == pytest.approx(1.0, abs=1e-5)
    drawn = net.graph.reachable(gamma.sample(200, torch.Generator().manual_seed(0)).mask)
    assert (drawn.unsqueeze(1) == masks).all(2).any(1).all()
    for p, mask in zip(prefixes, masks, strict=True):  # the network computes that path
        x = torch.randn(2, 3, 8, 8)
        h = x
        for layer in range(7):
            module = learner.library.module(layer, p[layer]) if layer < len(p) else new[layer]
            h = module.eval()(h)
        assert torch.allclose(net.eval()(x, mask), h, atol=1e-6)


def test_gamma_moves_to_the_path_that_knows_and_away_from_one_that_errs(images):
    """With new modules that cannot learn, only the old path can have a low loss."""
    config = FitConfig(lr=(0.003,), weight_decay=(0.0,), batch_size=20, max_steps=100, patience=60)
    frozen = FitConfig(**{**vars(config), "lr": (1e-9,), "max_steps": 240, "patience": 240})
    options = {"entropy": 0.02, "gamma_lr": (0.05,), "start": "choices"}
    first = make_learner("MNTDP-S", mlp((3, 8, 8), 16), config, **options)
    first.learn(images[0])
    spec = images.specs[0]
    turned = TaskSpec("digits", spec.classes[::-1], 40, 20)
    whole = {}
    for name, again in (("same", spec), ("turned", turned)):
        learner = copy.deepcopy(first)
        learner.config = frozen
        stream = Stream("again", [spec, again], images.source, augment=False)
        report = learner.learn(stream[1])
        whole[name] = dict(report.details["probabilities"])[3]
    assert whole["same"] > 0.8  # it starts at 1/8
    assert whole["turned"] < 0.05


def test_a_repeated_task_is_answered_by_the_old_path_and_an_unrelated_prior_is_not(images):
    config = FitConfig(lr=(0.003,), weight_decay=(0.0,), batch_size=20, max_steps=100, patience=60)
    learner = make_learner("MNTDP-D", mlp((3, 8, 8), 16), config)
    learner.learn(images[0])
    before = learner.total_memory()
    again = Stream("again", [images.specs[0], images.specs[0]], images.source, augment=False)
    report = learner.learn(again[1])
    assert report.details["reused"] == 3 and learner.total_memory() == before
    turned = TaskSpec("digits", images.specs[0].classes[::-1], 40, 20)
    report = learner.learn(Stream("x", [turned] * 3, images.source, augment=False)[2])
    assert report.details["reused"] == 2  # only the head is new: the labels have changed


def test_the_graph_of_paths_is_drawable(images):
    library = _library_of_two()
    graph, masks = library.graph()
    assert masks.shape == (2, len(graph)) and torch.equal(graph.reachable(masks), masks)
    assert [len(Architecture.from_mask(graph, m).kept) for m in masks] == [9, 9]
    shared = (masks[0] & masks[1]).sum()
    assert shared == 2


@pytest.mark.parametrize("name", ["MNTDP-D", "MNTDP-S"])
@pytest.mark.parametrize("prior", ["knn", "random"])
def test_k_may_be_larger_than_the_library(name, prior, images, quick):
    learner = make_learner(name, NARROW, quick, k=50, prior=prior)
    for past, task in enumerate(images):
        report = learner.learn(task)
        assert sorted(t for t, _ in report.details["sources"]) == list(range(past))
    assert learner.name.startswith(f"{name} (k=50)")


@pytest.mark.parametrize("name", ["MNTDP-D", "MNTDP-S"])
def test_two_examples_are_enough_to_choose_a_path(name, images):
    """One per class: fewer than the neighbours that vote, and halves of one example."""
    config = FitConfig(lr=(0.01,), weight_decay=(0.0,), max_steps=12, eval_every=6)
    specs = [images.specs[0], TaskSpec("digits", ("0", "1"), 2, 2)]
    specs += [TaskSpec("digits", ("4", "5"), 2, 2)]
    learner = make_learner(name, mlp((3, 8, 8), 12), config)
    for task in Stream("tiny", specs, images.source, augment=False):
        learner.learn(task)
    assert len(learner.library) == 3


def test_wrong_options_are_refused(quick):
    for options in ({"k": 0}, {"k": "some"}, {"prior": "oracle"}):
        with pytest.raises(ValueError):
            make_learner("MNTDP-D", NARROW, quick, **options)
    library = _library_of_two()
    with pytest.raises(ValueError, match="cannot use a head"):
        library.grow((0,) * 7, 5)
    with pytest.raises(ValueError, match="layer0_task9 is not in the library"):
        library.grow((9,) * 7, 2)
    with pytest.raises(ValueError, match="has 7 modules, got 3"):
        library.grow((2,) * 3, 2)
    with pytest.raises(ValueError, match="already has layer0_task0"):
        library.put(0, 0, nn.Identity(), 2)
    with pytest.raises(ValueError, match="not learnt"):
        library.path(2)
    assert isinstance(copy.deepcopy(library), nn.Module)
