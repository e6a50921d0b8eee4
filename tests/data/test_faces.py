"""The drawn faces: one scene at every size, parts where faces have them, no give-away colours."""

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from nas_core import data

HAIR, SKIN, BACKGROUND = range(3)


@pytest.fixture(scope="module")
def faces():
    return data.load("faces", train_limit=200)


def test_shapes_classes_and_task(faces):
    assert faces.task == "segmentation" and faces.classes == ("hair", "skin", "background")
    assert faces.train.y.shape == (200, 32, 32)
    share = torch.bincount(faces.train.y.flatten()) / faces.train.y.numel()
    assert (share > torch.tensor([0.08, 0.15, 0.5])).all()


@pytest.mark.parametrize("size", [16, 64])
def test_every_size_shows_the_same_faces(faces, size):
    other = data.load("faces", size=size, train_limit=50).train
    fine, coarse = (faces.train, other) if size == 16 else (other, faces.train)
    y = fine.y[:50]
    # A coarse pixel's class against the majority of the four fine ones, where they agree.
    blocks = y.unfold(1, 2, 2).unfold(2, 2, 2).flatten(3)
    clear = (blocks == blocks[..., :1]).all(-1)
    agree = blocks[..., 0] == coarse.y[:50]
    assert clear.float().mean() > 0.7 and agree[clear].float().mean() > 0.995
    x = torch.nn.functional.avg_pool2d(fine.x[:50].float(), 2)
    assert (x - coarse.x[:50].float()).abs().mean() < 16  # noise and edges


def test_hair_is_above_skin_and_the_corners_are_background(faces):
    y = faces.train.y
    rows = torch.arange(32.0).view(1, 32, 1).expand_as(y)
    mean_row = [(rows * (y == k)).sum((1, 2)) / (y == k).sum((1, 2)) for k in (HAIR, SKIN)]
    with_hair = (y == HAIR).any(2).any(1)
    assert with_hair.float().mean() > 0.8
    assert (mean_row[0] < mean_row[1])[with_hair].float().mean() > 0.98
    corners = y[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert (corners == BACKGROUND).float().mean() > 0.95


def test_mirroring_moves_picture_and_map_alike(faces):
    plain = faces.train
    batch = next(iter(faces.train.batches(200, seed=1, shuffle=False)))
    x, y = batch
    mirrored = (y != plain.y).flatten(1).any(1)
    assert 0.3 < mirrored.float().mean() < 0.7
    assert torch.equal(y[mirrored], plain.y[mirrored].flip(-1))
    assert torch.equal(x[mirrored], plain.inputs(plain.x)[mirrored].flip(-1))


def test_colour_alone_does_not_decide(faces):
    def pixels(split):
        return split.x.permute(0, 2, 3, 1).reshape(-1, 3).numpy(), split.y.flatten().numpy()

    (x, y), (x_test, y_test) = pixels(faces.train), pixels(faces.test)
    always_background = (y_test == BACKGROUND).mean()
    model = LinearDiscriminantAnalysis().fit(x[::7], y[::7])
    accuracy = model.score(x_test, y_test)
    assert always_background - 0.02 < accuracy < 0.8


def test_place_alone_does_not_decide_either(faces):
    """The best guess that looks at the position only leaves an eighth of the pixels wrong."""
    counts = np.stack([(faces.train.y == k).sum(0).numpy() for k in range(3)])
    guess = torch.from_numpy(counts.argmax(0))
    accuracy = (faces.test.y == guess).float().mean()
    assert 0.7 < accuracy < 0.9
