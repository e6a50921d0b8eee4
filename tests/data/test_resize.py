"""Padding and pooling of whole data sets."""

import pytest
import torch

from nas_core import data
from nas_core.data import average_pool, zero_pad


def test_padding_centres_the_picture_and_labels_the_frame():
    faces = data.load("faces", size=16, train_limit=20)
    padded = zero_pad(faces, 22, label=-100)
    assert padded.input_shape == (3, 22, 22)
    assert torch.equal(padded.train.x[:, :, 3:19, 3:19], faces.train.x)
    assert torch.equal(padded.test.y[:, 3:19, 3:19], faces.test.y)
    frame = torch.ones(22, 22, dtype=torch.bool)
    frame[3:19, 3:19] = False
    assert (padded.train.x[:, :, frame] == 0).all() and (padded.train.y[:, frame] == -100).all()


def test_250_pixels_become_256():
    faces = data.load("faces", size=16, train_limit=2)
    large = torch.zeros(2, 3, 250, 250, dtype=torch.uint8)
    maps = torch.ones(2, 250, 250, dtype=torch.long)
    split = type(faces.train)(large, maps)
    photographs = data.Dataset(
        "photographs", split, split, split, ("a", "b"), (3, 250, 250), "segmentation"
    )
    padded = zero_pad(photographs, 256)
    assert padded.train.x.shape == (2, 3, 256, 256) and padded.train.y.shape == (2, 256, 256)
    assert padded.train.y.sum() == 2 * 250 * 250


def test_pooling_is_the_rounded_mean():
    digits = data.load("digits", size=16, train_limit=30)
    pooled = average_pool(digits, 2)
    assert pooled.input_shape == (1, 8, 8) and torch.equal(pooled.train.y, digits.train.y)
    by_hand = torch.nn.functional.avg_pool2d(digits.train.x.float(), 2)
    torch.testing.assert_close(pooled.train.x.float(), by_hand, atol=0.51, rtol=0)


def test_impossible_sizes_are_refused():
    digits = data.load("digits", size=8, train_limit=30)
    with pytest.raises(ValueError, match="more than 4×4"):
        zero_pad(digits, 4)
    with pytest.raises(ValueError, match="do not divide by 3"):
        average_pool(digits, 3)
    with pytest.raises(ValueError, match="label per pixel"):
        average_pool(data.load("faces", size=16, train_limit=2), 2)
