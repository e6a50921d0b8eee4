"""The drawn curves: thin, faint, and interrupted in the picture but not in the truth."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from nas_core import data


@pytest.fixture(scope="module")
def curves():
    return data.load("curves")


def test_shapes_classes_and_task(curves):
    assert curves.task == "segmentation" and curves.classes == ("background", "curve")
    assert curves.input_shape == (1, 48, 48)
    assert [len(s) for s in (curves.train, curves.val, curves.test)] == [60, 40, 100]
    share = curves.train.y.float().mean((1, 2))
    assert 0.08 < share.mean() < 0.16 and share.min() > 0
    assert data.load("curves", size=32, train_limit=3).train.x.shape == (3, 1, 32, 32)
    with pytest.raises(ValueError, match="size is 8"):
        data.load("curves", size=8)


def test_curves_are_thin_and_faint(curves):
    x, y = curves.train.x[:, 0].float() / 255, curves.train.y.bool()
    widest = [ndimage.distance_transform_edt(one).max() for one in y.numpy()]
    assert np.median(widest) < 4  # where curves cross they are wider
    contrast = x[y].mean() - x[~y].mean()
    assert 0.05 < contrast < 0.2
    # no threshold on the brightness does well
    best = max(((x > t) & y).sum() / ((x > t) | y).sum() for t in torch.linspace(0.3, 0.9, 25))
    assert best < 0.4


def test_truth_goes_on_behind_holes(curves):
    """Curves run from border to border, also where the picture shows nothing of them."""
    touches = []
    for one in curves.train.y.numpy():
        parts, count = ndimage.label(one, np.ones((3, 3)))
        border = np.concatenate([parts[0], parts[-1], parts[:, 0], parts[:, -1]])
        touches += [part in border for part in range(1, count + 1)]
    assert np.mean(touches) > 0.97
    # smoothed by 5×5 pixels, some of a curve is darker than most of the background
    x = torch.nn.functional.avg_pool2d(curves.train.x.float(), 5, 1, 2)[:, 0]
    y = curves.train.y.bool()
    ground = x[~y].median()
    assert 0.05 < (x[y] < ground).float().mean() < 0.4
