"""The handwritten digits that come with scikit-learn: real, small, nothing to download."""

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from nas_core.data.dataset import Dataset, image_dataset, limited, stratified_order

SIZES = (8, 16, 32)
TEST, VAL = 360, 237  # of 1797; 1200 are left for training


def digit_images(size: int = 8) -> tuple[Tensor, np.ndarray]:
    """All 1797 digits as uint8 `[N, 1, size, size]` (17 grey levels at 8×8) and labels `[N]`.

    Larger sizes are bilinear enlargements.
    """
    if size not in SIZES:
        raise ValueError(f"size is {size}; digits come in {', '.join(map(str, SIZES))}")
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    grey = torch.from_numpy(images).float().view(-1, 1, 8, 8) * (255 / 16)
    if size != 8:
        grey = interpolate(grey, size=(size, size), mode="bilinear", align_corners=False)
    return grey.round().to(torch.uint8), labels.astype(np.int64)


def digits(size: int | None, train_limit: int | None, seed: int) -> Dataset:
    """1200 / 237 / 360 digits, scaled to [−1, 1]; the test examples do not depend on the seed."""
    x, labels = digit_images(8 if size is None else size)
    fixed = stratified_order(labels, seed=0)
    test, rest = fixed[:TEST], fixed[TEST:]
    rest = rest[stratified_order(labels[rest], seed)]
    val, train = rest[:VAL], rest[VAL:]
    train = train[: limited(train_limit, len(train))]
    y = torch.from_numpy(labels)
    source = "scikit-learn load_digits (UCI optical recognition of handwritten digits)"
    resize = "none" if x.shape[-1] == 8 else "bilinear"
    provenance = {"source": source, "resize": resize, "seed": seed}
    parts = [(x[index], y[index]) for index in (train, val, test)]
    return image_dataset("digits", parts, tuple("0123456789"), provenance)
