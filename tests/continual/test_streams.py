import os
import pickle
from functools import partial

import numpy as np
import pytest
import torch
import torchvision
from scipy.io import savemat

from nas_core.continual import (
    CTRL,
    Embedded,
    FitConfig,
    Real,
    Stream,
    TaskSpec,
    alexnet,
    check_input_shift,
    ctrl_stream,
    make_learner,
    permuted_digits,
    sources,
    split_classes,
    streams,
    tabulated_stream,
    task_source,
)  # fmt: skip
from nas_core.continual.families import CLASSES, RAINBOW, draw_family, paint
from nas_core.continual.sources import REAL
from nas_core.continual.streams import (
    THESIS_SIZES,
    check_deranged,
    check_relations,
    derange,
    long_specs,
    small_fraction,
)  # fmt: skip
from nas_core.data import CorruptData, DataNotFound, read_images
from nas_core.data.reference import load as reference

SMALL = Embedded(16, (110, 40, 10))


@pytest.mark.parametrize("family", CLASSES)
def test_families_are_deterministic_and_their_splits_differ(family):
    x, y = draw_family(family, 3, size=16)
    again, _ = draw_family(family, 3, size=16)
    other, _ = draw_family(family, 3, size=16, split="val")
    assert x.dtype == torch.uint8 and x.shape == (3 * len(CLASSES[family]), 3, 16, 16)
    assert torch.equal(x, again) and not torch.equal(x, other)
    assert y.bincount().tolist() == [3] * len(CLASSES[family])


@pytest.mark.parametrize("family", [f for f in CLASSES if f != "many_objects"])
def test_families_can_be_told_apart_by_a_simple_classifier(family):
    """Nearest neighbours beat chance clearly, and shuffled labels do not."""
    from sklearn.neighbors import KNeighborsClassifier

    x, y = draw_family(family, 60, size=16)
    xt, yt = draw_family(family, 20, size=16, split="test")
    # Fourier magnitudes: textures and cluttered scenes have no fixed place.
    a, b = (torch.fft.rfft2(v.float().mean(1)).abs().flatten(1).log1p() for v in (x, xt))
    plain = KNeighborsClassifier(5).fit(x.flatten(1), y).score(xt.flatten(1), yt)
    score = max(plain, KNeighborsClassifier(5).fit(a, y).score(b, yt))
    shuffled = y[torch.randperm(len(y), generator=torch.Generator().manual_seed(0))]
    assert score > 0.17, score
    assert KNeighborsClassifier(5).fit(a, shuffled).score(b, yt) < 0.17


def test_painted_digits_have_the_background_asked_for():
    x, _ = draw_family("rainbow_digits", 2, size=16)
    corner = paint(x, 2)[:, :, 0, 0].float().mean(0) / 255
    assert torch.allclose(corner, torch.tensor(RAINBOW["blue"]), atol=0.01)
    with pytest.raises(ValueError, match="0…2"):
        paint(x, 3)


@pytest.mark.parametrize("name", CTRL)
def test_streams_are_the_same_for_the_same_seed(name):
    one, two = (ctrl_stream(name, SMALL, tasks=6) for _ in range(2))
    assert one.fingerprint == two.fingerprint and one.specs == two.specs
    assert torch.equal(one[1].train.x, two[1].train.x)
    assert ctrl_stream(name, SMALL, seed=1, tasks=6).fingerprint != one.fingerprint
    for task in one:
        assert len(task.train) == task.spec.train and len(task.val) == task.spec.val
        counts = task.train.y.bincount(minlength=task.way)
        assert counts.max() - counts.min() <= 1
        x = task.train.plain().inputs(task.train.x)  # normalised by its own statistics
        assert x.mean((0, 2, 3)).abs().max() < 1e-4


LARGE, LITTLE, TINY = (4000, 2000), (400, 200), (50, 30)
BETWEEN = ["mnist", "dtd", "fashion_mnist", "svhn"]
TABLE_5_2 = {
    "minus": (["cifar10", *BETWEEN, "cifar10"], [LARGE, *[LITTLE] * 5]),
    "plus": (["cifar10", *BETWEEN, "cifar10"], [*[LITTLE] * 5, LARGE]),
    "in": (
        ["rainbow_mnist", "cifar10", *BETWEEN[1:], "rainbow_mnist"],
        [LARGE, *[LITTLE] * 4, TINY],
    ),
    "out": (["cifar10", *BETWEEN, "cifar10"], [LARGE, *[LITTLE] * 5]),
    "pl": ([*BETWEEN, "cifar10"], [*[LITTLE] * 4, LARGE]),
}


@pytest.mark.parametrize("name", TABLE_5_2)
def test_streams_are_those_of_table_5_2(name):
    specs = ctrl_stream(name, SMALL, sizes=THESIS_SIZES).specs
    datasets, sizes = TABLE_5_2[name]
    assert [REAL[s.dataset][0] for s in specs] == datasets
    assert [(s.train, s.val) for s in specs] == sizes
    assert all(len(s.classes) == 10 and s.test_per_class is None for s in specs)


def test_relations_of_the_five_transfer_streams():
    minus, plus, out = (ctrl_stream(n, SMALL).specs for n in ("minus", "plus", "out"))
    inp, plastic = (ctrl_stream(n, SMALL).specs for n in ("in", "pl"))
    assert minus[0].classes == minus[-1].classes and minus[0].train > minus[-1].train
    assert plus[0].classes == plus[-1].classes and plus[0].train < plus[-1].train
    assert all(a != b for a, b in zip(out[0].classes, out[-1].classes, strict=True))
    assert inp[0].background != inp[-1].background and inp[0].classes == inp[-1].classes
    assert len({s.dataset for s in plastic}) == len(plastic) == 5


def test_wrong_relations_are_refused():
    specs = list(ctrl_stream("out", SMALL).specs)
    with pytest.raises(ValueError, match="fixed points"):
        check_relations("out", [specs[0], *specs[1:-1], specs[0]])
    with pytest.raises(ValueError, match="share a data set"):
        check_relations("pl", [specs[0], specs[0]])
    with pytest.raises(ValueError, match="inputs differ"):
        rainbow = list(ctrl_stream("in", SMALL).specs)
        check_relations("in", [rainbow[0], *rainbow[1:-1], rainbow[0]])
    with pytest.raises(ValueError, match="training examples first"):
        minus = ctrl_stream("minus", SMALL).specs
        check_relations("minus", minus[::-1])


@pytest.mark.parametrize("seed", range(20))
def test_derangements_have_no_fixed_point(seed):
    classes = tuple("abcdefghij")
    after = derange(classes, np.random.default_rng(seed))
    check_deranged(classes, after)
    with pytest.raises(ValueError, match="fixed points"):
        check_deranged(classes, classes)


def test_too_few_images_and_unknown_classes_are_refused():
    stream = Stream("x", [TaskSpec("digits", ("0", "1"), 500, 20)], SMALL)
    with pytest.raises(ValueError, match="has 110; ask for fewer"):
        stream[0]
    with pytest.raises(ValueError, match="no classes"):
        Stream("x", [TaskSpec("digits", ("0", "cat"), 20, 20)], SMALL)[0]
    with pytest.raises(ValueError, match="each once"):
        TaskSpec("digits", ("0", "0"), 20, 20)


def test_tasks_without_images_to_test_on_are_refused():
    with pytest.raises(ValueError, match="test_per_class is 0"):
        TaskSpec("digits", ("0", "1"), 20, 20, test_per_class=0)
    specs = [TaskSpec("digits", ("0", "1"), 20, 20)]
    with pytest.raises(ValueError, match="per_class is 0"):
        Stream("x", specs, Embedded(16, (20, 20, 0)))[0]

    class WithoutOnes(Embedded):
        def pool(self, role, split):
            x, y = super().pool(role, split)
            return (x[y != 1], y[y != 1]) if split == "test" else (x, y)

    with pytest.raises(ValueError, match="digits has no test images of '1'"):
        Stream("x", specs, WithoutOnes(16, (20, 20, 20)))[0]


def test_tasks_of_one_class_and_of_less_than_one_example_per_class_are_refused():
    with pytest.raises(ValueError, match="two or more classes"):
        TaskSpec("digits", ("0",), 20, 20)
    for train, val in ((2, 20), (20, 2), (-5, 20)):
        with pytest.raises(ValueError, match="at least one of each class"):
            TaskSpec("digits", ("0", "1", "2"), train, val)
    for way in (0, 1, -5):
        with pytest.raises(ValueError, match="cannot be split"):
            split_classes(SMALL, way=way, train=100, val=50)


@pytest.mark.parametrize("classes", [(), ("a",), ("a", "a"), ("a", "b", "b")])
def test_what_cannot_be_deranged_is_refused_and_not_tried_for_ever(classes):
    with pytest.raises(ValueError, match="two or more different classes"):
        derange(classes, np.random.default_rng(0))


def test_tasks_that_a_stream_does_not_have_are_refused():
    stream = ctrl_stream("pl", SMALL, sizes={"large": (200, 100)})
    for index in (5, -1, 1.5, slice(2)):
        with pytest.raises(IndexError, match="tasks 0…4"):
            stream[index]
        with pytest.raises(IndexError, match="tasks 0…4"):
            stream.keep(0, index)
    with pytest.raises(ValueError, match="at least one task"):
        stream.keep()
    with pytest.raises(ValueError, match="tasks is 0"):
        ctrl_stream("long", SMALL, tasks=0)


def test_misspelt_sizes_are_refused():
    for name in ("minus", "long"):
        with pytest.raises(ValueError, match=r"sizes \['Large'\] are unknown"):
            ctrl_stream(name, SMALL, sizes={"Large": (200, 100)})


def test_the_same_digits_on_a_coloured_ground_are_no_unrelated_task():
    specs = list(ctrl_stream("pl", SMALL).specs)
    rainbow = TaskSpec("rainbow_digits", CLASSES["digits"], 100, 50, background=0)
    with pytest.raises(ValueError, match="share a data set"):
        check_relations("pl", [*specs, rainbow])


def test_schedule_of_the_long_stream():
    assert [small_fraction(t) for t in (1, 33, 34, 66, 67, 100)] == [0.5, 0.5, 0.75, 0.75, 1, 1]
    small = np.array([[s.train == 25 for s in long_specs(SMALL, seed=seed)] for seed in range(30)])
    assert small[:, 66:].all()
    assert abs(small[:, :33].mean() - 0.5) < 0.06  # 990 draws: four standard errors
    assert abs(small[:, 33:66].mean() - 0.75) < 0.06
    large = [s for s in long_specs(SMALL, seed=0) if s.train > 25]
    assert all((s.train, s.val) == (550, 200) for s in large)  # all there is: 5 × 110, 5 × 40
    assert len(long_specs(SMALL, tasks=12)) == 12


def test_permuted_digits_and_disjoint_splits():
    stream = permuted_digits(SMALL, tasks=3, train=100, val=50)
    a, b = stream[0], stream[1]
    assert a.input_shape == (1, 16, 16)
    assert not torch.equal(a.train.x[0].flatten().sort().values, a.train.x[0].flatten())
    pools = [t.test.x.flatten(1).float().mean(0).sort().values for t in (a, b)]
    assert torch.allclose(*pools)  # the same images, other places
    assert not torch.equal(a.test.x, b.test.x)
    split = split_classes(SMALL, train=100, val=50)
    seen = [c for s in split.specs for c in s.classes]
    assert len(split) == 5 and len(set(seen)) == len(seen) == 50
    with pytest.raises(ValueError, match="cannot be split"):
        split_classes(SMALL, way=7, train=100, val=50)


def test_a_task_alone_has_the_same_images():
    stream = ctrl_stream("minus", SMALL, sizes={"large": (200, 100)})
    alone = stream.only(5)
    assert len(alone) == 1 and alone[0].id == 0
    assert torch.equal(alone[0].train.x, stream[5].train.x)


def test_appendix_a_lists_one_whole_instance():
    table = reference("s_long")
    assert len(table) == 100 and table["task"].tolist() == list(range(1, 101))
    assert all(len(set(c)) == 5 for c in table["classes"])
    small = (table["train"] == 25).to_numpy()
    assert small[66:].all() and 0.3 < small[:33].mean() < 0.7
    capped = table[table["dataset"].isin(["svhn", "cifar10", "fashion-mnist"])]
    assert (capped["test"] == 5000).all()


def test_svhn_and_cifar100_are_read_in_their_published_layout(tmp_path, monkeypatch):
    """Images whose every pixel is their label; torchvision's check sums are those of all images."""
    for module in (torchvision.datasets.svhn, torchvision.datasets.cifar):
        monkeypatch.setattr(module, "check_integrity", lambda *args: True)
    monkeypatch.setattr(sources, "read_images", partial(read_images, check=False))
    for split, n in (("train", 200), ("test", 50)):
        y = np.arange(n) % 10
        x = np.broadcast_to(y.astype(np.uint8), (32, 32, 3, n))
        savemat(tmp_path / f"{split}_32x32.mat", {"X": x, "y": np.where(y, y, 10).reshape(-1, 1)})
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    names = [f"class_{i}" for i in range(100)]
    for split, n in (("train", 1000), ("test", 200)):
        y = np.arange(n) % 100
        x = np.broadcast_to(y.astype(np.uint8).reshape(-1, 1), (n, 3072))
        rows = {"data": x.copy(), "fine_labels": y.tolist()}
        (folder / split).write_bytes(pickle.dumps(rows))
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": names}))
    real = Real(str(tmp_path), size=8)
    assert real.classes("svhn") == tuple("0123456789")
    assert real.classes("cifar100") == tuple(names)
    sizes = {"svhn": (129, 71, 50), "cifar100": (900, 100, 200)}  # 26040 / 73257 and a tenth
    for name, expected in sizes.items():
        for split, n in zip(("train", "val", "test"), expected, strict=True):
            x, y = real.pool(name, split)
            assert x.shape == (n, 3, 8, 8) and torch.equal(x[:, 1, 3, 3].long(), y)


def test_all_of_appendix_a_is_built_from_data_sets_of_the_published_sizes(monkeypatch):
    """The hundred rows on blank images: sizes, classes and labels; tests on images are below."""
    table = reference("s_long")
    many = sorted({c for row in table[table.dataset == "cifar100"]["classes"] for c in row})
    many += [f"other {i}" for i in range(100 - len(many))]
    clothes = sorted({c for row in table[table.dataset == "fashion-mnist"]["classes"] for c in row})
    objects = sorted({c for row in table[table.dataset == "cifar10"]["classes"] for c in row})
    digits = [str(i) for i in range(10)]
    published = {
        "mnist": (60_000, digits), "fashion_mnist": (60_000, clothes), "svhn": (73_250, digits),
        "cifar10": (50_000, objects), "cifar100": (50_000, many),
    }  # fmt: skip

    def blank(name, root):
        size, classes = published[name]
        y, y_test = torch.arange(size) % len(classes), torch.arange(10_000) % len(classes)
        x, x_test = (torch.zeros(len(n), 1, 4, 4, dtype=torch.uint8) for n in (y, y_test))
        return x, y, x_test, y_test, classes

    assert len(clothes) == len(objects) == 10
    monkeypatch.setattr(sources, "read_images", blank)
    stream = tabulated_stream(table, Real("blank", size=4))
    assert len(stream) == 100
    for task, row in zip(stream, table.itertuples(), strict=True):
        assert (len(task.train), len(task.val), task.way) == (row.train, row.val, 5)
        assert task.name.split()[1] == row.dataset.replace("-", "_")
        assert set(task.train.y.tolist()) == set(range(5))
        assert [c.replace("_", " ").lower() for c in task.classes] == [
            str(c).replace("_", " ").lower() for c in row.classes
        ]


DATA = os.environ.get("NAS_DATA", "")


@pytest.mark.skipif(not os.path.isdir(os.path.join(DATA, "MNIST")), reason="NAS_DATA has no MNIST")
def test_real_streams_and_the_rows_of_appendix_a():
    real = Real(DATA)
    table = reference("s_long")
    here = table[table["dataset"].isin(["mnist", "fashion-mnist", "cifar10"])]
    for task, row in zip(tabulated_stream(here, real), here.itertuples(), strict=True):
        # at most 1000 test images of each class
        assert (len(task.train), len(task.val), len(task.test)) == (row.train, row.val, row.test)
        assert task.input_shape == (3, 32, 32)
    digits = permuted_digits(real, tasks=1, train=50_000, val=10_000)[0]
    assert digits.input_shape == (1, 28, 28) and len(digits.train) == 50_000


@pytest.fixture
def whole_sets(tmp_path, monkeypatch):
    """The data root without a CIFAR-100 that is only there in part: it would be refused."""
    for entry in os.scandir(DATA):
        (tmp_path / entry.name).symlink_to(entry.path)
    try:
        read_images("cifar100")
    except CorruptData:
        (tmp_path / "cifar-100-python").unlink()
    except DataNotFound:
        pass
    monkeypatch.setenv("NAS_DATA", str(tmp_path))


@pytest.mark.skipif(not os.path.isdir(os.path.join(DATA, "MNIST")), reason="NAS_DATA has no MNIST")
@pytest.mark.parametrize("name", ["minus", "plus", "in", "out", "pl"])
def test_ctrl_on_real_images_with_families_for_what_is_missing(name, whole_sets):
    images = task_source("real", 16, (60, 30, 20))
    assert "digits" not in images.embedded_for
    sizes = {"large": (500, 100), "small": (200, 100), "tiny": (50, 30)}
    stream = ctrl_stream(name, images, sizes=sizes, test_per_class=20)
    for task, spec in zip(stream, stream.specs, strict=True):
        assert task.input_shape == (3, 16, 16)
        assert (len(task.train), len(task.val)) == (spec.train, spec.val)
        assert task.name.endswith(images.name(spec.dataset)) and len(task.test) == 200
        missing = spec.dataset in images.embedded_for
        assert task.name.split()[1].startswith("embedded") == missing


def test_chapters_take_what_there_is(tmp_path, monkeypatch):
    assert task_source("embedded", 16, (9, 8, 7)) == Embedded(16, (9, 8, 7))
    with pytest.raises(ValueError, match="'embedded' or 'real'"):
        task_source("imagenet", 16, (9, 8, 7))
    monkeypatch.setenv("NAS_DATA", str(tmp_path))
    with pytest.raises(DataNotFound, match="no data set of CTrL"):
        task_source("real", 16, (9, 8, 7))


def test_kept_tasks_have_their_images():
    stream = ctrl_stream("minus", SMALL, sizes={"large": (200, 100)})
    kept = stream.keep(0, 3, 5)
    assert [t.name for t in kept] == [stream[i].name for i in (0, 3, 5)]
    assert all(
        torch.equal(a.train.x, stream[i].train.x) for a, i in zip(kept, (0, 3, 5), strict=True)
    )
    assert kept.fingerprint != stream.keep(0, 2, 5).fingerprint


def test_missing_real_data_says_what_to_do(tmp_path):
    with pytest.raises(DataNotFound, match="nas-workbook data fetch mnist"):
        Real(str(tmp_path)).pool("digits", "train")
    with pytest.raises(DataNotFound, match="nas-workbook data fetch svhn"):
        Real(str(tmp_path)).pool("wild_digits", "train")
    assert Real(str(tmp_path), embedded_for=("wild_digits",)).name("svhn") == "embedded wild_digits"


# ---------------------------------------------------------------- S^in


def test_a_pure_background_saturates_its_channel_and_leaves_the_ink_in_the_others():
    """ink + (255 − ink) · colour, channel by channel."""
    x, _ = draw_family("rainbow_digits", 2, size=16)
    for number, colour in enumerate(RAINBOW.values()):
        painted = paint(x, number)
        for c in range(3):
            full = torch.full_like(x[:, c], 255)
            assert torch.equal(painted[:, c], full if colour[c] == 1 else x[:, c])
    assert sorted(map(sum, RAINBOW.values())) == [1, 1, 1]  # red, green and blue


def test_normalisation_does_not_undo_the_background():
    """On a mixed colour every channel would be an affine function of the ink."""
    stream = ctrl_stream("in", Embedded(16, (110, 40, 10)), augment=False)
    first, last = stream[0], stream[5]
    flat = [t.train.inputs(t.train.x).std((0, 2, 3)) < 0.5 for t in (first, last)]
    assert [int(f.sum()) for f in flat] == [1, 1] and not torch.equal(*flat)


def test_an_s_in_that_the_first_network_already_solves_is_refused(monkeypatch):
    """Painted in pure colours the first network loses; in mixed colours it does not."""
    config = FitConfig((0.003,), (0.0,), batch_size=32, max_steps=150, patience=150)
    mixed = torch.tensor([[0.85, 0.1, 0.1], [0.1, 0.6, 0.15], [0.1, 0.2, 0.8]]).view(3, 1, 3, 1, 1)

    def faulty(x, number):
        return (x + (255 - x) * mixed[number]).round().to(torch.uint8)

    source = Embedded(16, (100, 20, 30))
    sizes = {"large": (1000, 200), "small": (20, 10), "tiny": (30, 20)}
    learner = make_learner("Independent", alexnet(0.25, 16), config)
    stream = ctrl_stream("in", source, sizes=sizes, augment=False)
    learner.learn(stream[0])
    own, shifted = check_input_shift(learner, stream)
    assert own > 0.8 and shifted < own - 0.05
    monkeypatch.setattr(streams, "paint", faulty)
    learner = make_learner("Independent", alexnet(0.25, 16), config)
    learner.learn(stream[0])
    with pytest.raises(ValueError, match="asks nothing of a learner"):
        check_input_shift(learner, stream)
    out = ctrl_stream("out", source, sizes=sizes)
    with pytest.raises(ValueError, match="other labels"):
        check_input_shift(learner, out)
