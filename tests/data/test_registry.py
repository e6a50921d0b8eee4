"""Names, roots, limits and splits that all data sets share."""

from pathlib import Path

import numpy as np
import pytest
import torch

import nas_core
from nas_core import data
from nas_core.data import places, registry


def test_names():
    names = data.available()
    assert names[:4] == ("digits", "colour_shapes", "faces", "curves")
    assert set(names[4:]) == {
        "mnist", "fashion_mnist", "cifar10", "cifar100", "part_labels", "nuclei", "drive",
        "massachusetts_roads", "cityscapes",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["digits", "colour_shapes", "faces", "curves"])
def test_embedded_sets_are_complete_and_reproducible(name, no_network, monkeypatch, tmp_path):
    monkeypatch.setenv("NAS_DATA", str(tmp_path))  # empty: nothing is read from there
    torch.manual_seed(1)
    one = data.load(name, train_limit=200)
    torch.manual_seed(2)
    two = data.load(name, train_limit=200)
    for split in ("train", "val", "test"):
        a, b = getattr(one, split), getattr(two, split)
        assert torch.equal(a.x, b.x) and torch.equal(a.y, b.y)
        assert a.x.dtype == torch.uint8 and a.y.dtype == torch.int64
        assert tuple(a.x.shape[1:]) == one.input_shape
        assert set(a.y.unique().tolist()) == set(range(len(one.classes)))
        x, _ = next(iter(a.batches(100, seed=0)))
        assert x.dtype == torch.float32 and -1 <= x.min() < -0.5 and 0.5 < x.max() <= 1
    assert len(one.train) == 200
    assert one.val.augment is None and one.test.augment is None
    assert one.provenance["source"] and one.name == name


@pytest.mark.parametrize("name", ["digits", "colour_shapes", "faces", "curves"])
def test_other_seeds_give_other_training_sets(name):
    one, two = (data.load(name, train_limit=100, seed=seed) for seed in (0, 1))
    assert not torch.equal(one.train.x, two.train.x)


@pytest.mark.parametrize("name", ["digits", "colour_shapes", "faces", "curves"])
def test_a_smaller_limit_keeps_the_first_examples(name):
    small, large = (data.load(name, train_limit=limit).train for limit in (130, 260))
    assert torch.equal(small.x, large.x[:130]) and torch.equal(small.y, large.y[:130])


@pytest.mark.parametrize("classes", [2, 5, 10])
def test_every_prefix_of_a_stratified_order_is_proportional(classes):
    rng = np.random.default_rng(classes)
    labels = rng.choice(classes, size=397, p=rng.dirichlet(np.full(classes, 3.0)))
    order = data.stratified_order(labels, seed=3)
    assert sorted(order) == list(range(397))
    share = np.bincount(labels, minlength=classes) / 397
    for end in range(1, 398):
        counts = np.bincount(labels[order[:end]], minlength=classes)
        # each class is within one of its share; rounding of the others adds at most the same
        assert np.abs(counts - end * share).max() <= 1.5
    assert not np.array_equal(order, data.stratified_order(labels, seed=4))
    within = order[labels[order] == 0]
    assert not np.array_equal(within, np.sort(within))  # shuffled inside the classes, too


def test_balanced_classes_stay_exactly_balanced():
    labels = np.tile(np.arange(10), 50)
    order = data.stratified_order(labels, seed=0)
    for end in range(0, 501, 10):
        assert (np.bincount(labels[order[:end]], minlength=10) == end // 10).all()


def test_data_root(tmp_path, monkeypatch):
    monkeypatch.setenv("NAS_DATA", str(tmp_path / "env"))
    assert data.data_root(tmp_path / "arg") == tmp_path / "arg"
    assert data.data_root() == tmp_path / "env"
    monkeypatch.delenv("NAS_DATA")
    monkeypatch.delenv("NAS_BOOK", raising=False)
    for folder in ("book/notebooks", "book/data", "elsewhere/notebooks", "elsewhere/data"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "book" / "notebooks" / "meta.yaml").write_text("")
    monkeypatch.chdir(tmp_path / "book" / "notebooks")
    assert data.data_root() == tmp_path / "book" / "data"
    # Another project with folders of these names is not the book: the package's one is taken.
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert data.data_root() == Path(nas_core.__file__).resolve().parents[1] / "data"
    monkeypatch.setenv("NAS_BOOK", str(tmp_path / "book"))
    assert data.data_root() == tmp_path / "book" / "data"


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("imagenet", {}, "unknown data set 'imagenet'; choose from digits"),
        ("digits", {"size": 12}, "size is 12; digits come in 8, 16, 32"),
        ("faces", {"size": 8}, "size is 8; faces come in 16, 32, 64"),
        ("colour_shapes", {"size": 64}, "32×32 only"),
        ("mnist", {"size": 28}, "one size only"),
        ("digits", {"train_limit": 1201}, r"train_limit is 1201; it must be in 1…1200"),
        ("faces", {"train_limit": 0}, "train_limit is 0"),
    ],
)
def test_wrong_requests_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        data.load(name, **options)


def test_fetching_an_embedded_set_does_nothing(no_network, tmp_path):
    assert data.fetch("digits", tmp_path) == tmp_path
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="unknown data set"):
        data.fetch("imagenet", tmp_path)


def test_moving_and_describing_a_data_set():
    digits = data.load("digits").to("cpu")
    assert repr(digits) == "Dataset(digits: 1200 / 237 / 360 of 1×8×8, 10 classes)"


def test_states_are_told_by_the_names_of_files(tmp_path, no_network):
    found = data.states(tmp_path)
    assert set(found) == {*data.available(), *data.FILES} and found["digits"] == "embedded"
    assert found["mnist"] == "not here: nas-workbook data fetch mnist"
    assert found["svhn"].endswith("data fetch svhn (for chapters 08 to 10)")
    for split in ("train", "test"):
        (tmp_path / f"{split}_32x32.mat").write_bytes(b"")
    (tmp_path / "parts_train.txt").write_text("")
    found = data.states(tmp_path)
    assert found["svhn"] == found["part_labels"] == "here"


def test_the_list_without_pytorch_names_what_the_registry_knows():
    assert tuple(data.states()) == (*data.available(), *data.FILES)
    assert set(registry.EMBEDDED) == set(places.EMBEDDED)
    assert set(registry.ADVICE) == set(places.BY_HAND)
