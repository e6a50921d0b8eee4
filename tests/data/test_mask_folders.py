"""Loaders of pictures with masks, on small folders in the published layouts."""

import numpy as np
import pytest
import torch
from PIL import Image

from nas_core import data
from nas_core.data.mask_folders import STREETS

rng = np.random.default_rng(0)


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return pixels


def grey(side=8):
    return rng.integers(0, 256, (side, side), dtype=np.uint8)


def mask(side=8):
    return rng.integers(0, 2, (side, side), dtype=np.uint8) * 255


@pytest.fixture
def nuclei(tmp_path):
    truth = []
    for k in range(253):
        image = save(tmp_path / f"nuclei/images/{k:03d}.png", grey())
        truth.append((image, save(tmp_path / f"nuclei/masks/{k:03d}.png", mask())))
    return tmp_path, truth


def test_nuclei_are_split_by_order(nuclei):
    root, truth = nuclei
    cells = data.load("nuclei", root=root)
    assert [len(s) for s in (cells.train, cells.val, cells.test)] == [200, 50, 3]
    assert cells.input_shape == (1, 8, 8) and cells.task == "segmentation"
    assert cells.classes == ("background", "nucleus")
    x = torch.cat([s.x for s in (cells.train, cells.val, cells.test)])
    y = torch.cat([s.y for s in (cells.train, cells.val, cells.test)])
    for k in (0, 199, 200, 249, 250, 252):
        assert np.array_equal(x[k, 0].numpy(), truth[k][0])
        assert np.array_equal(y[k].numpy(), truth[k][1] // 255)
    assert len(data.load("nuclei", root=root, train_limit=7).train) == 7
    assert data.states(root)["nuclei"] == "here" and data.fetch("nuclei", root) == root


def test_what_is_wrong_with_nuclei_is_said(nuclei, tmp_path_factory):
    root, _ = nuclei
    with pytest.raises(data.DataNotFound, match="put there by hand: nuclei/images"):
        data.load("nuclei", root=tmp_path_factory.mktemp("empty"))
    with pytest.raises(data.DataNotFound, match="by hand"):
        data.fetch("nuclei", tmp_path_factory.mktemp("empty"))
    with pytest.raises(ValueError, match="train_limit is 201"):
        data.load("nuclei", root=root, train_limit=201)
    save(root / "nuclei/images/003.png", grey(9))
    with pytest.raises(data.CorruptData, match=r"003.png has \(9, 9\) rows and columns"):
        data.load("nuclei", root=root)
    (root / "nuclei/images/003.png").write_bytes(b"no picture")
    with pytest.raises(data.CorruptData, match="003.png is not a readable picture"):
        data.load("nuclei", root=root)
    (root / "nuclei/masks/002.png").unlink()
    with pytest.raises(data.DataNotFound, match="002.png is missing"):
        data.load("nuclei", root=root, train_limit=3)
    for k in range(250, 253):
        (root / f"nuclei/images/{k}.png").unlink()
    with pytest.raises(data.DataNotFound, match="no test pictures"):
        data.load("nuclei", root=root)


def test_real_nuclei(real_root):
    if not (real_root / "nuclei").is_dir():
        pytest.skip(f"{real_root} has no nuclei: their loader is NOT tested on real pictures")
    cells = data.load("nuclei", root=real_root)
    assert [len(s) for s in (cells.train, cells.val, cells.test)] == [200, 50, 84]
    assert cells.input_shape == (1, 128, 128)
    share = [s.y.float().mean().item() for s in (cells.train, cells.val, cells.test)]
    assert share == pytest.approx([0.0713, 0.0983, 0.0956], abs=1e-4)
    x, y = cells.train.x.float(), cells.train.y == 1
    assert x.permute(0, 2, 3, 1)[y].mean() > 3 * x.permute(0, 2, 3, 1)[~y].mean()  # they shine


def test_drive(tmp_path):
    truth = {}
    for part, first in (("training", 21), ("test", 1)):
        for k in range(first, first + 20):
            folder, name = tmp_path / "DRIVE" / part, f"{k:02d}_{part}.tif"
            image = save(folder / "images" / name, np.stack([grey(), grey(), grey()], -1))
            truth[k] = image, save(folder / f"1st_manual/{k:02d}_manual1.gif", mask())
    eyes = data.load("drive", root=tmp_path)
    assert [len(s) for s in (eyes.train, eyes.val, eyes.test)] == [16, 4, 20]
    for split, first in ((eyes.train, 21), (eyes.val, 37), (eyes.test, 1)):
        assert np.array_equal(split.x[0].permute(1, 2, 0).numpy(), truth[first][0])
        assert np.array_equal(split.y[0].numpy(), truth[first][1] // 255)


def test_roads_at_a_quarter(tmp_path):
    truth = {}
    for part in ("train", "val", "test"):
        for k in range(2):
            blocks = np.stack([grey(4)] * 3, -1).repeat(4, 0).repeat(4, 1)
            image = save(tmp_path / f"massachusetts_roads/{part}/{k}_15.tiff", blocks)
            roads = mask(4).repeat(4, 0).repeat(4, 1)
            save(tmp_path / f"massachusetts_roads/{part}_labels/{k}_15.tif", roads)
            truth[part, k] = image[::4, ::4], roads[::4, ::4] // 255
    roads = data.load("massachusetts_roads", root=tmp_path)
    assert roads.input_shape == (3, 4, 4)
    for part in ("train", "val", "test"):
        for k in range(2):
            split = getattr(roads, part)
            assert np.array_equal(split.x[k].permute(1, 2, 0).numpy(), truth[part, k][0])
            assert np.array_equal(split.y[k].numpy(), truth[part, k][1])


def test_cityscapes_trains_nineteen_classes(tmp_path):
    values = np.array([*STREETS, 0, 4, 10, 30, 255], np.uint8)
    for part, count in (("train", 6), ("val", 2)):
        for k in range(count):
            name = f"aachen_{k:06d}_000019"
            image = np.zeros((32, 48, 3), np.uint8) + np.uint8(k)
            save(tmp_path / f"cityscapes/leftImg8bit/{part}/aachen/{name}_leftImg8bit.png", image)
            ids = values.reshape(4, 6).repeat(8, 0).repeat(8, 1)
            save(tmp_path / f"cityscapes/gtFine/{part}/aachen/{name}_gtFine_labelIds.png", ids)
    streets = data.load("cityscapes", root=tmp_path)
    assert [len(s) for s in (streets.train, streets.val, streets.test)] == [5, 1, 2]
    assert len(streets.classes) == 19 and streets.classes[:2] == ("road", "sidewalk")
    assert streets.input_shape == (3, 4, 6)
    assert streets.test.y[0].flatten().tolist() == [*range(19), *[-100] * 5]
    assert streets.val.x.unique().tolist() == [5]
