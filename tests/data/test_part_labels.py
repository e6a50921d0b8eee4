"""The loader of Part Labels, on a small folder in the published layout."""

import numpy as np
import pytest
import torch
from PIL import Image

from nas_core import data

PEOPLE = {
    "parts_train.txt": [("Ada_Lovelace", 1), ("Ada_Lovelace", 12), ("Alan_Turing", 3)],
    "parts_validation.txt": [("Grace_Hopper", 2)],
    "parts_test.txt": [("Kurt_Goedel", 7), ("Emmy_Noether", 1)],
}


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    truth = {}
    (tmp_path / "parts_lfw_funneled_gt_images").mkdir()
    for listing, people in PEOPLE.items():
        (tmp_path / listing).write_text("".join(f"{name} {number}\n" for name, number in people))
        for name, number in people:
            file = f"{name}_{number:04d}"
            (tmp_path / "lfw_funneled" / name).mkdir(parents=True, exist_ok=True)
            photo = rng.integers(0, 256, (250, 250, 3), dtype=np.uint8)
            target = rng.integers(0, 3, (250, 250))
            path = tmp_path / "lfw_funneled" / name / f"{file}.jpg"
            Image.fromarray(photo).save(path, quality=95)
            colours = np.eye(3, dtype=np.uint8)[target] * 255  # red hair, green skin, blue ground
            Image.fromarray(colours).save(tmp_path / "parts_lfw_funneled_gt_images" / f"{file}.ppm")
            truth[file] = (np.asarray(Image.open(path)), target)
    return tmp_path, truth


@pytest.mark.parametrize("nested", [False, True])
def test_pictures_maps_and_padding(folder, nested, tmp_path_factory):
    root, truth = folder
    if nested:
        outer = tmp_path_factory.mktemp("outer")
        root = root.rename(outer / "part_labels").parent
    parts = data.load("part_labels", root=root)
    assert parts.classes == ("hair", "skin", "background") and parts.task == "segmentation"
    assert parts.input_shape == (3, 256, 256)
    for split, people in zip((parts.train, parts.val, parts.test), PEOPLE.values(), strict=True):
        assert len(split) == len(people)
        for x, y, (name, number) in zip(split.x, split.y, people, strict=True):
            photo, target = truth[f"{name}_{number:04d}"]
            assert np.array_equal(x[:, 3:253, 3:253].permute(1, 2, 0).numpy(), photo)
            assert np.array_equal(y[3:253, 3:253].numpy(), target)
            border = torch.ones(256, 256, dtype=torch.bool)
            border[3:253, 3:253] = False
            assert (x[:, border] == 0).all() and (y[border] == -100).all()


def test_a_limit_reads_the_first_pictures(folder):
    parts = data.load("part_labels", root=folder[0], train_limit=1)
    assert (len(parts.train), len(parts.val), len(parts.test)) == (1, 1, 2)


def test_missing_and_broken_files_are_named(folder, tmp_path_factory):
    root, _ = folder
    with pytest.raises(data.DataNotFound, match="nas-workbook data fetch part_labels"):
        data.load("part_labels", root=tmp_path_factory.mktemp("empty"))
    with pytest.raises(data.DataNotFound, match=r"fetched by hand.*lfw_funneled"):
        data.fetch("part_labels", root)
    photo = root / "lfw_funneled" / "Alan_Turing" / "Alan_Turing_0003.jpg"
    whole = photo.read_bytes()
    photo.write_bytes(whole[:1000])
    with pytest.raises(data.CorruptData, match=r"Alan_Turing_0003\.jpg is not a readable picture"):
        data.load("part_labels", root=root)
    Image.new("RGB", (100, 250)).save(photo)
    with pytest.raises(data.CorruptData, match=r"is 100×250, not 250×250"):
        data.load("part_labels", root=root)
    photo.unlink()
    with pytest.raises(data.DataNotFound, match=r"Alan_Turing_0003\.jpg is missing"):
        data.load("part_labels", root=root)
    (root / "parts_test.txt").unlink()
    photo.write_bytes(whole)
    with pytest.raises(data.DataNotFound, match=r"parts_test\.txt is missing"):
        data.load("part_labels", root=root)
