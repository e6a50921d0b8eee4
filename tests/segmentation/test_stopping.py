"""How many iterations an image gets: cases whose best choice is known."""

import pytest
import torch

from nas_core.segmentation import StopController, glimpses


def task(images=200, steps=3):
    """Half of the images gain by every iteration, half never do; input 0 tells which, noisily."""
    generator = torch.Generator().manual_seed(0)
    gains = torch.arange(images) % 2 == 0
    seen = torch.randn(steps, images, 3, generator=generator)
    seen[..., 0] = 2 * gains.float() + 0.3 * torch.randn(steps, images, generator=generator)
    losses = 1.0 - 0.3 * gains * torch.arange(steps)[:, None]
    return seen, losses, gains


def test_images_that_gain_get_all_iterations_and_the_others_one():
    torch.manual_seed(0)
    seen, losses, gains = task()
    chosen = StopController(3).fit(seen, losses, price=0.1).decide(seen)
    right = torch.where(gains, 2, 0)
    assert (chosen == right).float().mean() > 0.95


def test_inputs_that_say_nothing_cannot_tell_the_images_apart():
    torch.manual_seed(0)
    seen, losses, gains = task()
    blind = seen[:, torch.randperm(seen.shape[1])]
    chosen = StopController(3).fit(blind, losses, price=0.1).decide(blind).float()
    assert abs(chosen[gains].mean() - chosen[~gains].mean()) < 0.4


@pytest.mark.parametrize(("price", "last"), [(0.0, 2), (1.0, 0)])
def test_free_iterations_are_all_taken_and_dear_ones_are_not(price, last):
    torch.manual_seed(0)
    seen, losses, _ = task()
    losses = losses - 0.05 * torch.arange(3)[:, None]  # all gain a little
    chosen = StopController(3).fit(seen, losses, price).decide(seen)
    assert (chosen == last).float().mean() > 0.95


def test_probabilities_of_stopping_are_those_of_a_walk_through_the_iterations():
    torch.manual_seed(0)
    seen = torch.randn(4, 5, 3)
    rule = StopController(4)
    rule.weight.data, rule.bias.data = torch.randn(3), torch.randn(3)
    p = rule(seen).exp()
    stop = (seen[:-1] @ rule.weight + rule.bias[:, None]).sigmoid().T  # [B, 3]
    by_hand = torch.stack(
        [stop[:, 0], (1 - stop[:, 0]) * stop[:, 1],
         (1 - stop[:, 0]) * (1 - stop[:, 1]) * stop[:, 2], (1 - stop).prod(1)], 1,
    )  # fmt: skip
    assert torch.allclose(p, by_hand, atol=1e-6)
    first = [next((t for t in range(3) if row[t] > 0.5), 3) for row in stop]
    assert rule.decide(seen).tolist() == first


def test_glimpses_by_hand():
    logits = torch.tensor([0.0, 0.0, 8.0, 0.0]).view(2, 1, 2, 1, 1).expand(2, 1, 2, 3, 3)
    entropy, change, share = glimpses(logits).unbind(-1)
    p = torch.tensor(8.0).sigmoid()
    assert torch.allclose(entropy[0], torch.tensor(2.0).log())
    assert torch.allclose(change, torch.stack([torch.zeros(1), (p - 0.5).expand(1)]), atol=1e-6)
    assert torch.allclose(share[:, 0], torch.stack([torch.tensor(0.5), p]), atol=1e-6)
