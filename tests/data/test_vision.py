"""Real image sets against torchvision's own reading, and what happens without them."""

import hashlib
import os
import pickle

import numpy as np
import pytest
import torch
from torchvision import datasets
from torchvision.transforms import v2

from nas_core import data
from nas_core.data import vision
from nas_core.data.vision import VISION

CASES = {
    "mnist": (datasets.MNIST, 48_000, 12_000, 10_000),
    "fashion_mnist": (datasets.FashionMNIST, 48_000, 12_000, 10_000),
    "cifar10": (datasets.CIFAR10, 45_000, 5_000, 10_000),
}


@pytest.mark.parametrize("name", CASES)
def test_real_sets_equal_torchvision(name, real_root, no_network):
    cls, train, val, test = CASES[name]
    loaded = data.load(name, root=real_root)
    assert [len(s) for s in (loaded.train, loaded.val, loaded.test)] == [train, val, test]
    raw = cls(str(real_root), train=False)
    assert loaded.classes == tuple(raw.classes)
    channels = loaded.input_shape[0]
    scale = v2.Compose(
        [v2.ToImage(), v2.ToDtype(torch.float32, scale=True),
         v2.Normalize((0.5,) * channels, (0.5,) * channels)]
    )  # fmt: skip
    x, y = next(iter(loaded.test.batches(50, seed=0, shuffle=False)))
    for i in range(50):
        image, label = raw[i]
        torch.testing.assert_close(x[i], scale(image), rtol=0, atol=1e-6)
        assert int(y[i]) == label
    # Training and validation are all of the official training set, each image once.
    official = cls(str(real_root), train=True)
    pixels = torch.as_tensor(np.asarray(official.data))
    pixels = pixels.unsqueeze(1) if pixels.dim() == 3 else pixels.permute(0, 3, 1, 2)

    def digest(x, y):
        rows = x.reshape(len(x), -1).contiguous().numpy()
        return sorted(hash((r.tobytes(), int(k))) for r, k in zip(rows, y, strict=True))

    both = [torch.cat(parts) for parts in zip(*((s.x, s.y) for s in (loaded.train, loaded.val)),
                                              strict=True)]  # fmt: skip
    assert digest(*both) == digest(pixels, torch.as_tensor(official.targets))
    shares = [torch.bincount(s.y, minlength=10) / len(s) for s in (loaded.train, loaded.val)]
    assert (shares[0] - shares[1]).abs().max() < 1e-3
    if name == "cifar10":
        assert torch.bincount(loaded.train.y).tolist() == [4500] * 10


def test_augmentation_of_the_thesis(real_root):
    cifar = data.load("cifar10", root=real_root, train_limit=500)
    assert repr(cifar.train.augment) == "Augment(padding=2, flip=True)"
    x, _ = next(iter(cifar.train.batches(500, seed=0, shuffle=False)))
    black = (x == -1).all(1)  # [B, 32, 32]
    # The padding is 2: a third row or column of black has to be in the picture itself.
    assert black[:, :2].all(2).any(1).float().mean() > 0.2
    assert black[:, 2].all(1).float().mean() < 0.1
    mnist = data.load("mnist", root=real_root, train_limit=10)
    assert repr(mnist.train.augment) == "Augment(padding=2, flip=False)"


def test_a_limit_keeps_classes_balanced(real_root):
    cifar = data.load("cifar10", root=real_root, train_limit=200)
    assert torch.bincount(cifar.train.y).tolist() == [20] * 10
    whole = data.load("cifar10", root=real_root)
    assert torch.equal(cifar.train.x, whole.train.x[:200])
    assert torch.equal(cifar.val.x, whole.val.x)


def test_a_changed_file_is_named(real_root, tmp_path):
    for file in VISION["fashion_mnist"].files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        os.symlink(real_root / file, tmp_path / file)
    victim = tmp_path / "FashionMNIST/raw/t10k-labels-idx1-ubyte"
    content = bytearray(victim.read_bytes())
    content[5000] ^= 1
    victim.unlink()
    victim.write_bytes(content)
    with pytest.raises(data.CorruptData, match=r"t10k-labels-idx1-ubyte is damaged: its md5 is"):
        data.load("fashion_mnist", root=tmp_path)


@pytest.mark.parametrize("name", VISION)
def test_missing_sets_name_the_command_and_download_nothing(name, tmp_path, no_network):
    with pytest.raises(data.DataNotFound) as caught:
        data.load(name, root=tmp_path)
    assert f"nas-workbook data fetch {name}\n" in str(caught.value)
    assert str(tmp_path) in str(caught.value) and "NAS_DATA" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", VISION)
def test_files_of_the_right_name_and_wrong_content_are_refused(name, tmp_path):
    for file in VISION[name].files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_bytes(b"not what was published")
    with pytest.raises(data.CorruptData, match=f"data fetch {name}"):
        data.load(name, root=tmp_path)


def test_cifar100_from_files_in_its_layout(tmp_path, monkeypatch):
    """No copy of CIFAR-100 at hand: a small one with checksums of its own."""
    rng = np.random.default_rng(0)
    names = [f"class_{k}" for k in range(100)]
    content = {"meta": {"fine_label_names": names}}
    for split, count in (("train", 7000), ("test", 300)):
        content[split] = {
            "data": rng.integers(0, 256, (count, 3072), dtype=np.uint8),
            "fine_labels": [int(k) for k in np.arange(count) % 100],
            "coarse_labels": [0] * count,
        }
    (tmp_path / "cifar-100-python").mkdir()
    sums = {}
    for file, record in content.items():
        raw = pickle.dumps(record)
        (tmp_path / "cifar-100-python" / file).write_bytes(raw)
        sums[file] = hashlib.md5(raw).hexdigest()
    cls = datasets.CIFAR100
    monkeypatch.setattr(cls, "train_list", [["train", sums["train"]]])
    monkeypatch.setattr(cls, "test_list", [["test", sums["test"]]])
    monkeypatch.setattr(cls, "meta", {**cls.meta, "md5": sums["meta"]})
    spec = VISION["cifar100"]
    files = {f"cifar-100-python/{file}": md5 for file, md5 in sums.items()}
    assert set(files) == set(spec.files)
    monkeypatch.setitem(
        VISION, "cifar100", vision.VisionSet(cls, files, spec.val, spec.augment, spec.source)
    )
    loaded = data.load("cifar100", root=tmp_path)
    assert loaded.classes == tuple(names)
    assert (len(loaded.train), len(loaded.val), len(loaded.test)) == (2000, 5000, 300)
    expected = content["test"]["data"].reshape(-1, 3, 32, 32)
    assert np.array_equal(loaded.test.x.numpy(), expected)
    assert loaded.test.y.tolist() == content["test"]["fine_labels"]
    assert torch.bincount(loaded.val.y).tolist() == [50] * 100


@pytest.mark.parametrize("name", VISION)
def test_fetch_is_what_downloads(name, tmp_path, monkeypatch):
    calls = []

    def pretend(root, train, download):
        calls.append((root, download))

    spec = VISION[name]
    monkeypatch.setitem(
        VISION, name, vision.VisionSet(pretend, spec.files, spec.val, spec.augment, spec.source)
    )
    with pytest.raises(data.DataNotFound):  # the pretended download leaves nothing behind
        data.fetch(name, tmp_path / "new")
    assert calls == [(str(tmp_path / "new"), True)]
