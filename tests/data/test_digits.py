"""The embedded digits against scikit-learn and PIL."""

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier

from nas_core import data
from nas_core.data.digits import digit_images


def test_small_digits_are_scikit_learns():
    images, labels = load_digits(return_X_y=True)
    x, y = digit_images(8)
    assert np.array_equal(y, labels)
    assert np.array_equal(np.rint(x.numpy().reshape(-1, 64) * (16 / 255)), images)


@pytest.mark.parametrize("size", [16, 32])
def test_large_digits_are_bilinear_enlargements(size):
    images, _ = load_digits(return_X_y=True)
    x, _ = digit_images(size)
    for i in range(0, 1797, 200):
        picture = Image.fromarray((images[i].reshape(8, 8) * (255 / 16)).astype(np.float32))
        expected = np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR))
        assert np.abs(x[i, 0].numpy() - expected).max() <= 0.51


def test_splits_are_disjoint_stratified_and_the_test_set_is_fixed():
    first, second = (data.load("digits", seed=seed) for seed in (0, 1))
    assert torch.equal(first.test.x, second.test.x)
    rows = [row.numpy().tobytes() for s in (first.train, first.val, first.test) for row in s.x]
    every = [row.numpy().tobytes() for row in digit_images(8)[0]]
    assert sorted(rows) == sorted(every)
    for split in (first.train, first.val, first.test):
        share = torch.bincount(split.y, minlength=10) / len(split)
        assert (share - 0.1).abs().max() < 0.01


def test_labels_belong_to_their_images():
    digits = data.load("digits")
    flat = [s.x.flatten(1).numpy() for s in (digits.train, digits.test)]
    neighbour = KNeighborsClassifier(1).fit(flat[0], digits.train.y.numpy())
    assert neighbour.score(flat[1], digits.test.y.numpy()) > 0.97
