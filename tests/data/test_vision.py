"""Real image sets against torchvision's own reading, and what happens without them."""

import hashlib
import os
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from torchvision import datasets
from torchvision.transforms import v2

from nas_core import data
from nas_core.data.real import SETS

VISION = [name for name in SETS if name not in data.FILES]

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
    for file in SETS["fashion_mnist"].files:
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
    for file in SETS[name].files:
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
    spec = SETS["cifar100"]
    files = {f"cifar-100-python/{file}": md5 for file, md5 in sums.items()}
    assert set(files) == set(spec.files)
    monkeypatch.setitem(SETS, "cifar100", replace(spec, files=files))
    loaded = data.load("cifar100", root=tmp_path)
    assert loaded.classes == tuple(names)
    assert (len(loaded.train), len(loaded.val), len(loaded.test)) == (2000, 5000, 300)
    expected = content["test"]["data"].reshape(-1, 3, 32, 32)
    assert np.array_equal(loaded.test.x.numpy(), expected)
    assert loaded.test.y.tolist() == content["test"]["fine_labels"]
    assert torch.bincount(loaded.val.y).tolist() == [50] * 100


def test_checksums_are_those_of_torchvision():
    for name, cls in (("cifar10", datasets.CIFAR10), ("cifar100", datasets.CIFAR100)):
        parts = [*cls.train_list, *cls.test_list, [cls.meta["filename"], cls.meta["md5"]]]
        assert SETS[name].files == {f"{cls.base_folder}/{file}": md5 for file, md5 in parts}
    lists = datasets.SVHN.split_list
    published = {file: md5 for _, file, md5 in (lists[s] for s in ("train", "test"))}
    assert SETS["svhn"].files == published
    dtd = SETS["dtd"]
    assert (dtd.archive, dtd.checksum) == (datasets.DTD._URL, datasets.DTD._MD5)


def test_published_images_are_read_once_for_load_and_for_streams(real_root, no_network):
    images = data.read_images("fashion_mnist", real_root)
    official = datasets.FashionMNIST(str(real_root), train=True)
    assert torch.equal(images.x[:, 0], official.data) and torch.equal(images.y, official.targets)
    assert images.x_test.shape == (10_000, 1, 28, 28) and images.classes == tuple(official.classes)
    with pytest.raises(ValueError, match="unknown data set 'part_labels'"):
        data.read_images("part_labels", real_root)


def test_svhn_and_textures_in_their_layout(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.svhn, "check_integrity", lambda *args: True)
    for split, n in (("train", 30), ("test", 10)):
        y = np.arange(n) % 10
        x = np.broadcast_to(y.astype(np.uint8), (32, 32, 3, n))
        savemat(tmp_path / f"{split}_32x32.mat", {"X": x, "y": np.where(y, y, 10).reshape(-1, 1)})
    digits = data.read_images("svhn", tmp_path, check=False)
    assert digits.x.shape == (30, 3, 32, 32) and torch.equal(digits.x[:, 2, 9, 9].long(), digits.y)
    assert len(digits.x_test) == 10 and digits.classes == tuple("0123456789")
    with pytest.raises(data.CorruptData, match="train_32x32.mat is damaged"):
        data.read_images("svhn", tmp_path)
    for part in ("labels", "images/banded", "images/woven"):
        (tmp_path / "dtd/dtd" / part).mkdir(parents=True)
    for k, split in enumerate(("train", "val", "test")):
        names = [f"{c}/{c}_{k}.jpg" for c in ("banded", "woven")]
        (tmp_path / f"dtd/dtd/labels/{split}1.txt").write_text("\n".join(names) + "\n")
        for name in names:
            Image.new("RGB", (40 + k, 50), (20 * k, 9, 9)).save(tmp_path / "dtd/dtd/images" / name)
    textures = data.read_images("dtd", tmp_path)
    assert textures.x.shape == (4, 3, 32, 32) and textures.y.tolist() == [0, 1, 0, 1]
    assert textures.y_test.tolist() == [0, 1] and textures.classes == ("banded", "woven")
