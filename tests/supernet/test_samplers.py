"""Samplers against enumeration of every mask."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nas_core.supernet import BernoulliSampler, ChoiceSampler
from tests.supernet.graphs import DIAMOND, dags, graph_of


def every_mask(edges: int) -> torch.Tensor:
    return (torch.arange(2**edges).unsqueeze(1) >> torch.arange(edges)) % 2 == 1


def diamond(**kwargs) -> BernoulliSampler:
    sampler = BernoulliSampler(graph_of(DIAMOND), **kwargs)
    with torch.no_grad():
        sampler.logits.copy_(torch.tensor([0.3, -0.7, 1.1, 0.2, -0.4]))
    return sampler


def test_probabilities_of_all_masks_sum_to_one():
    sampler = diamond()
    probabilities = sampler.log_prob(every_mask(5)).exp()
    assert probabilities.sum().item() == pytest.approx(1, abs=1e-6)


@settings(max_examples=20, deadline=None)
@given(dags(max_nodes=5), st.integers(0, 1000))
def test_probabilities_sum_to_one_on_any_graph(graph, seed):
    if len(graph) > 14:
        return
    sampler = BernoulliSampler(graph, fixed=[0])
    with torch.no_grad():
        sampler.logits.normal_(generator=torch.Generator().manual_seed(seed))
    assert sampler.log_prob(every_mask(len(graph))).exp().sum().item() == pytest.approx(1, abs=1e-5)


def test_frequencies_equal_probabilities():
    sampler = diamond()
    sample = sampler.sample(40_000, torch.Generator().manual_seed(0))
    number = sample.mask.long() @ (2 ** torch.arange(5))
    frequency = torch.bincount(number, minlength=32) / len(number)
    expected = sampler.log_prob(every_mask(5)).exp()
    assert (frequency - expected).abs().max().item() < 4 * math.sqrt(0.25 / 40_000)


def test_sampled_log_prob_is_that_of_the_mask():
    sampler = diamond()
    sample = sampler.sample(64, torch.Generator().manual_seed(1))
    torch.testing.assert_close(sample.log_prob, sampler.log_prob(sample.mask))


def test_edges_without_a_connected_source_are_off_and_free():
    sampler = diamond()
    with torch.no_grad():
        sampler.logits[:2] = torch.tensor([-100.0, 0.0])  # node a is never reached
    sample = sampler.sample(200, torch.Generator().manual_seed(2))
    assert not sample.mask[:, [0, 2, 3]].any()
    sample.log_prob.sum().backward()
    assert sampler.logits.grad[[2, 3]].abs().sum() == 0


def test_entropy_estimate_is_unbiased():
    sampler = diamond()
    p = sampler.log_prob(every_mask(5)).exp()
    exact = -(p[p > 0] * p[p > 0].log()).sum().item()
    estimate = sampler.sample(40_000, torch.Generator().manual_seed(3)).entropy.mean().item()
    assert estimate == pytest.approx(exact, abs=0.02)
    assert sampler.entropy().item() > exact  # the sum over edges ignores connectivity


def test_fixed_edges_are_always_kept_and_not_scored():
    sampler = diamond(fixed=[0, 3])
    sample = sampler.sample(100, torch.Generator().manual_seed(4))
    assert sample.mask[:, [0, 3]].all()
    sample.log_prob.sum().backward()
    assert sampler.logits.grad[[0, 3]].abs().sum() == 0
    assert sampler.probabilities()[[0, 3]].tolist() == [1, 1]
    with pytest.raises(ValueError, match=r"\[7\]"):
        diamond(fixed=[7])


def test_initial_probability_and_reset():
    sampler = BernoulliSampler(graph_of(DIAMOND))
    assert sampler.probabilities().tolist() == pytest.approx([0.9526] * 5, abs=1e-4)
    with torch.no_grad():
        sampler.logits.zero_()
    sampler.reset()
    assert sampler.logits.tolist() == [3.0] * 5


def test_mode_keeps_likely_live_edges():
    sampler = diamond()
    assert sampler.mode().tolist() == [True, False, False, True, False]


def test_same_generator_same_masks():
    a = diamond().sample(50, torch.Generator().manual_seed(5)).mask
    b = diamond().sample(50, torch.Generator().manual_seed(5)).mask
    assert torch.equal(a, b)


def paths() -> ChoiceSampler:
    sampler = ChoiceSampler.paths(graph_of(DIAMOND))
    with torch.no_grad():
        sampler.logits.copy_(torch.tensor([0.3, -0.7, 1.1, 0.2, -0.4]))
    return sampler


def test_path_sampler_draws_exactly_the_paths():
    sampler = paths()
    masks = every_mask(5)
    p = sampler.log_prob(masks).exp()
    assert p.sum().item() == pytest.approx(1, abs=1e-6)
    likely = {tuple(m.nonzero().flatten().tolist()) for m in masks[p > 0]}
    assert likely == {(0, 3), (0, 2, 4), (1, 4)}
    p_a = 1 / (1 + math.exp(-1.0))  # softmax of .3 and −.7
    assert sampler.log_prob(masks[0b10010]).exp().item() == pytest.approx(1 - p_a, abs=1e-6)


def test_path_frequencies_and_entropy():
    sampler = paths()
    masks = every_mask(5)
    p = sampler.log_prob(masks).exp()
    sample = sampler.sample(40_000, torch.Generator().manual_seed(0))
    torch.testing.assert_close(sample.log_prob, sampler.log_prob(sample.mask))
    frequency = torch.bincount(sample.mask.long() @ (2 ** torch.arange(5)), minlength=32) / 40_000
    assert (frequency - p).abs().max().item() < 0.01
    exact = -(p[p > 0] * p[p > 0].log()).sum().item()
    assert sample.entropy.mean().item() == pytest.approx(exact, abs=0.02)


def test_path_mode_is_a_path():
    assert paths().mode().tolist() == [True, False, True, False, True]


def test_parallel_edges_make_a_cell():
    graph = graph_of([("s", "a"), ("s", "a"), ("s", "a"), ("a", "t"), ("s", "t")])
    sampler = ChoiceSampler(graph, [[0, 1, 2]])
    sample = sampler.sample(300, torch.Generator().manual_seed(0))
    assert (sample.mask[:, :3].sum(1) == 1).all() and sample.mask[:, 3:].all()
    assert sample.log_prob.detach().exp().tolist() == pytest.approx([1 / 3] * 300)


@pytest.mark.parametrize("groups", [[[0, 1], [1, 2]], [[9]], [[]]])
def test_bad_groups_are_refused(groups):
    with pytest.raises(ValueError, match="group"):
        ChoiceSampler(graph_of(DIAMOND), groups)


def test_choices_follow_their_generator_and_reset_to_uniform():
    def masks(seed):
        return paths().sample(50, torch.Generator().manual_seed(seed)).mask

    before = torch.get_rng_state()
    assert torch.equal(masks(5), masks(5)) and not torch.equal(masks(5), masks(6))
    assert torch.equal(before, torch.get_rng_state())
    sampler = paths()
    assert not torch.allclose(sampler.probabilities()[:2], torch.tensor([0.5, 0.5]))
    sampler.reset()
    assert sampler.probabilities().tolist() == pytest.approx([0.5, 0.5, 0.5, 0.5, 1.0])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("make", [diamond, paths])
def test_logits_that_are_not_finite_are_refused(make, value):
    sampler = make()
    with torch.no_grad():
        sampler.logits[2] = value
    for use in (lambda: sampler.sample(3), sampler.mode, sampler.probabilities):
        with pytest.raises(ValueError, match=f"logit of edge e2 is {value}"):
            use()
