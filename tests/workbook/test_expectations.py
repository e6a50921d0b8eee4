"""expect(), the bands read from a notebook, and what makes a band meaningful."""

import nbformat
import numpy as np
import pytest
import torch

from nas_core.workbook import ExpectationError, expect
from tests.notebooks.book import bands, separates
from tests.workbook.books import code


@pytest.mark.parametrize("value", [0.9, 1, torch.tensor(0.95), np.float32(0.95), torch.ones(1)])
def test_the_verdict_names_the_band_and_never_the_value(capsys, value):
    expect("accuracy of the found network", value, 0.9, 1)
    assert capsys.readouterr().out == "✓ accuracy of the found network: within [0.9, 1]\n"


@pytest.mark.parametrize("value", [0.8999, 1.0001, float("nan"), float("inf"), torch.tensor(-1)])
def test_outside_raises_with_the_value(value):
    with pytest.raises(ExpectationError, match=r"accuracy: .* lies outside \[0.9, 1\]"):
        expect("accuracy", value, 0.9, 1)


@pytest.mark.parametrize(("lo", "hi"), [(1, 0), (0, float("inf")), (float("nan"), 1)])
def test_bands_are_finite_and_ordered(lo, hi):
    with pytest.raises(ValueError, match="no band"):
        expect("x", 0.5, lo, hi)


@pytest.mark.parametrize("value", ["high", torch.ones(2), None])
def test_only_single_numbers(value):
    with pytest.raises(TypeError, match="no single number"):
        expect("x", value, 0, 1)


def notebook(tmp_path, *sources):
    path = tmp_path / "n.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[code(s) for s in sources]), str(path))
    return path


def test_bands_are_read_without_executing(tmp_path):
    path = notebook(
        tmp_path,
        "raise SystemExit",
        "expect('a', f(x), 0.5, 1)\nworkbook.expect(name='b', value=y, lo=-2, hi=-1.5)",
        "for i in range(2):\n    expect('c', i, lo=0, hi=2)",
    )
    assert bands(path) == {"a": (0.5, 1.0), "b": (-2.0, -1.5), "c": (0.0, 2.0)}


@pytest.mark.parametrize(
    "source",
    ["expect('a', x, lo, 1)", "expect(f'a{i}', x, 0, 1)", "expect('a', x, 0)", "expect('a', *x)"],
)
def test_bands_must_be_literal(tmp_path, source):
    with pytest.raises(ValueError, match="code cell 2.*literal"):
        bands(notebook(tmp_path, "x = 1", source))


def test_names_of_bands_are_unique(tmp_path):
    with pytest.raises(ValueError, match="'a' a second time"):
        bands(notebook(tmp_path, "expect('a', 1, 0, 1)", "expect('a', 1, 0, 2)"))


def test_a_band_must_stay_clear_of_its_control():
    assert separates((0.8, 1.0), 0.1)
    assert not separates((0.8, 1.0), 0.85)  # the control is inside
    assert not separates((0.5, 1.0), 0.4)  # outside, but the band is too wide for it
    assert separates((0.5, 1.0), 0.24) and not separates((0.5, 1.0), 0.25)
