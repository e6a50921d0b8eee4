"""Moving rows between nodes against plain indexing."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nas_core.supernet.rows import gather_rows, sum_rows


def plain_sum(parts, rows):
    total = torch.zeros(rows, *parts[0][0].shape[1:], dtype=parts[0][0].dtype)
    for tensor, index in parts:
        total = total.index_add(0, torch.arange(rows) if index is None else index, tensor)
    return total


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 4), st.integers(0, 3), st.integers(0, 10**6), st.booleans())
def test_sums_of_whole_and_partial_tensors(whole, partial, seed, maps):
    """Also with three and more whole summands beside partial ones."""
    if whole + partial == 0:
        return
    g = torch.Generator().manual_seed(seed)
    shape = (2, 3, 3) if maps else (4,)
    layout = torch.channels_last if maps else torch.contiguous_format
    indices = [None] * whole + [torch.randperm(6, generator=g)[: 1 + k] for k in range(partial)]
    tensors = [
        torch.randn(6 if i is None else len(i), *shape, generator=g, dtype=torch.float64)
        .contiguous(memory_format=layout)
        .requires_grad_()
        for i in indices
    ]
    parts = list(zip(tensors, indices, strict=True))
    weight = torch.randn(6, *shape, generator=g, dtype=torch.float64)
    got, expected = sum_rows(parts, 6), plain_sum(parts, 6)
    torch.testing.assert_close(got, expected)
    grads = torch.autograd.grad((got * weight).sum(), tensors)
    for a, b in zip(grads, torch.autograd.grad((expected * weight).sum(), tensors), strict=True):
        torch.testing.assert_close(a, b)


def test_gathered_rows_and_their_gradient():
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    indices = [torch.tensor([0, 2]), None, torch.tensor([2, 4])]
    parts = gather_rows(x, indices)
    for part, i in zip(parts, indices, strict=True):
        assert torch.equal(part, x if i is None else x[i])
    sum((k + 1) * part.sum() for k, part in enumerate(parts)).backward()
    assert x.grad[:, 0].tolist() == [1 + 2, 2, 1 + 2 + 3, 2, 2 + 3]


@pytest.mark.parametrize("index", [None, torch.tensor([0, 1, 2])])
def test_summands_that_would_broadcast_are_refused(index):
    parts = [(torch.ones(3, 4), None), (torch.ones(3, 1), index)]
    with pytest.raises(ValueError, match=r"shapes \[\(1,\), \(4,\)\] meet at node b"):
        sum_rows(parts, 3, "node b")


def test_summands_of_two_dtypes_are_promoted():
    parts = [
        (torch.ones(3, 2, dtype=torch.bfloat16), None),
        (torch.ones(2, 2), torch.tensor([0, 2])),
    ]
    total = sum_rows(parts, 3)
    assert total.dtype == torch.float32 and total[:, 0].tolist() == [2, 1, 2]
