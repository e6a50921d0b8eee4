"""Batched augmentation against one-example-at-a-time loops in NumPy and PIL."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from scipy.stats import chisquare
from torchvision.transforms.functional import crop, hflip, pad

from nas_core.training import Augment
from nas_core.training.tensors import IGNORED


def images(count=40, channels=3, height=11, width=8):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(
        256, (count, channels, height, width), generator=generator, dtype=torch.uint8
    )


def corners(x, padding, generator):
    """What a crop draws: row and column of each window's corner."""
    return torch.randint(2 * padding + 1, (2, len(x)), generator=generator)


def twin(generator):
    """A generator that will draw the same numbers."""
    return torch.Generator().set_state(generator.get_state())


@pytest.mark.parametrize("padding", [1, 2, 4])
def test_crop_equals_pad_and_slice(padding):
    x, generator = images(), torch.Generator().manual_seed(padding)
    rows, columns = corners(x, padding, twin(generator))
    got = Augment(padding)(x, generator)
    margin = (padding, padding)
    padded = np.pad(x.numpy(), ((0, 0), (0, 0), margin, margin))
    for i in range(len(x)):
        r, c = int(rows[i]), int(columns[i])
        assert np.array_equal(got[i].numpy(), padded[i, :, r : r + 11, c : c + 8])
    assert got.dtype == torch.uint8 and got.is_contiguous()


def test_crop_and_flip_equal_pil():
    x, generator = images(height=8), torch.Generator().manual_seed(3)
    augment = Augment(2, flip=True)
    draws = twin(generator)
    rows, columns = corners(x, 2, draws)
    flips = torch.rand(len(x), generator=draws) < 0.5
    got = augment(x, generator)
    assert 0 < flips.sum() < len(x)
    for i in range(len(x)):
        picture = Image.fromarray(x[i].permute(1, 2, 0).numpy())
        picture = crop(pad(picture, 2), int(rows[i]), int(columns[i]), 8, 8)
        picture = ImageOps.mirror(picture) if flips[i] else picture
        assert np.array_equal(got[i].permute(1, 2, 0).numpy(), np.asarray(picture))


def test_maps_move_with_their_images():
    x = images(channels=1)
    y = x[:, 0].long()  # the map is the image, so it must stay the image
    got_x, got_y = Augment(3, flip=True).pair(x, y, torch.Generator().manual_seed(0))
    outside = got_y == IGNORED
    assert outside.any() and not torch.equal(got_x, x)
    assert torch.equal(got_y[~outside], got_x[:, 0].long()[~outside])
    assert (got_x[:, 0][outside] == 0).all()


def test_pair_draws_what_the_image_alone_draws():
    x, augment = images(), Augment(2, flip=True)
    alone = augment(x, torch.Generator().manual_seed(5))
    together, _ = augment.pair(x, x[:, 0].long(), torch.Generator().manual_seed(5))
    assert torch.equal(alone, together)


def test_flip_equals_torchvision():
    x, generator = images(), torch.Generator().manual_seed(9)
    flips = torch.rand(len(x), generator=twin(generator)) < 0.5
    expected = torch.stack([hflip(a) if f else a for a, f in zip(x, flips, strict=True)])
    assert torch.equal(Augment(flip=True)(x, generator), expected)


def test_every_window_and_side_is_equally_likely():
    x = torch.arange(25.0).view(1, 1, 5, 5).expand(20_000, 1, 5, 5)
    middle = Augment(2)(x, torch.Generator().manual_seed(0))[:, 0, 2, 2].long()
    counts = torch.bincount(middle, minlength=25)  # what lies in the middle names the window
    assert len(counts) == 25 and chisquare(counts.numpy()).pvalue > 1e-3
    flipped = Augment(flip=True)(x, torch.Generator().manual_seed(0))[:, 0, 0, 0] == 4
    assert abs(flipped.double().mean() - 0.5) < 4 * 0.5 / len(x) ** 0.5


def test_a_crop_without_padding_is_refused():
    with pytest.raises(ValueError, match="padding is 0"):
        Augment(0)
