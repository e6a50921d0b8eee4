"""Batches of device tensors: order, values and reproducibility."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from nas_core.training import Augment, TensorData, derived_seeds


def make(count=23, **kwargs):
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(256, (count, 3, 6, 6), generator=generator, dtype=torch.uint8)
    return TensorData(x, torch.arange(count), **kwargs)


def collect(data, **kwargs):
    batches = list(data.batches(5, **kwargs))
    return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])


def test_normalisation_equals_torchvision():
    mean, std = (0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261)
    data = make(normalise=(mean, std))
    x, _ = collect(data, seed=0, shuffle=False)
    expected = v2.Normalize(mean, std)(v2.ToDtype(torch.float32, scale=True)(data.x))
    assert x.dtype == torch.float32
    torch.testing.assert_close(x, expected, rtol=0, atol=1e-6)


def test_half_and_half_maps_bytes_onto_minus_one_to_one():
    x = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1)
    data = TensorData(x, torch.zeros(2), normalise=((0.5,), (0.5,)))
    assert collect(data, seed=0, shuffle=False)[0].flatten().tolist() == [-1.0, 1.0]


def test_bytes_without_normalisation_are_scaled_and_floats_kept():
    data = make()
    assert torch.equal(collect(data, seed=0, shuffle=False)[0], data.x.float() / 255)
    floats = TensorData(torch.randn(4, 2), torch.zeros(4))
    assert torch.equal(collect(floats, seed=0, shuffle=False)[0], floats.x)


@pytest.mark.parametrize(("drop_last", "seen"), [(False, 23), (True, 20)])
def test_every_example_comes_once(drop_last, seen):
    x, y = collect(make(), seed=4, epoch=2, drop_last=drop_last)
    assert len(set(y.tolist())) == len(y) == seen
    assert torch.equal(x, make().x[y].float() / 255)  # inputs stay with their targets


def test_batches_are_a_pure_function_of_seed_and_epoch():
    augmented = make(augment=Augment(2, flip=True))
    torch.manual_seed(1)
    first = collect(augmented, seed=3, epoch=7)
    torch.manual_seed(2)  # the global generator plays no part
    list(augmented.batches(5, seed=9, epoch=9))
    again = collect(augmented, seed=3, epoch=7)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    for other in ({"seed": 3, "epoch": 8}, {"seed": 4, "epoch": 7}, {"seed": 7, "epoch": 3}):
        assert not torch.equal(first[1], collect(augmented, **other)[1])


def test_drawing_batches_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    collect(make(augment=Augment(1)), seed=0)
    assert torch.equal(before, torch.get_rng_state())


def test_orders_of_different_epochs_are_independent():
    data = TensorData(torch.zeros(2000, 1), torch.arange(2000))
    orders = [collect(data, seed=0, epoch=e)[1].numpy() for e in range(6)]
    correlation = np.corrcoef(orders)
    assert np.abs(correlation[~np.eye(6, dtype=bool)]).max() < 0.1
    same_place = [(a == b).mean() for a, b in pairwise(orders)]
    assert max(same_place) < 0.01


def test_seeds_do_not_collide_for_neighbouring_keys():
    seeds = [s for seed in range(40) for epoch in range(40) for s in derived_seeds(seed, epoch)]
    assert len(set(seeds)) == len(seeds)


def test_augmentation_only_where_asked():
    data = make(augment=Augment(flip=True))
    x, y = collect(data.plain(), seed=0)
    assert torch.equal(x, data.x[y].float() / 255)
    x, y = collect(data, seed=0)
    assert not torch.equal(x, data.x[y].float() / 255)


def test_subset_and_move():
    data = make(augment=Augment(flip=True), normalise=((0.5,) * 3, (0.5,) * 3))
    part = data.subset([4, 1, 9])
    assert part.y.tolist() == [4, 1, 9] and torch.equal(part.x, data.x[[4, 1, 9]])
    assert part.augment is data.augment and part.normalise == data.normalise
    assert len(data.to("cpu")) == 23 and data.to("cpu").device.type == "cpu"


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: TensorData(torch.zeros(3, 1), torch.zeros(4)), "x has 3 examples and y has 4"),
        (
            lambda: TensorData(torch.zeros(3, 1), torch.zeros(3), Augment(flip=True)),
            "augment needs",
        ),
        (lambda: make(normalise=((0.5,) * 3, (0.5, 0.0, 0.5))), "must be above 0"),
        (lambda: make(normalise=((0.5,) * 2, (0.5,) * 2)), "2 means and 2 deviations for 3"),
        (lambda: next(make().batches(0, seed=0)), "batch_size is 0"),
        (lambda: make().subset([]), "no examples"),
        (lambda: TensorData(torch.zeros(3, 1), torch.full((3, 4), 2)), "not one-hot"),
        (
            lambda: TensorData(torch.full((3, 1), 255.0), torch.zeros(3), None, ((0.5,), (0.5,))),
            r"up to 255, .* divide x by 255",
        ),
    ],
)
def test_wrong_input_is_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
