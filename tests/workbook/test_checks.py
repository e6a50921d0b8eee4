"""The framework of exercise checks: right answers pass, typical mistakes are explained."""

import numpy as np
import pytest
import torch

from nas_core.workbook import checks
from nas_core.workbook.checks import compare, exercise, same

CASES = {"three numbers": [torch.tensor([1.0, 2.0, 3.0])], "one number": [torch.tensor([4.0])]}


def mean_square(x):
    return (x**2).mean()


def forgets_the_mean(got, want, x):
    return np.isclose(float(got), float(want) * len(x))


@exercise("9.1", "mean of squares")
def ex_9_1(fn):
    return compare(fn, mean_square, CASES, hints=[(forgets_the_mean, "divide by the length")])


def modifies(x):
    x += 1
    return ((x - 1) ** 2).mean()


@pytest.mark.parametrize(
    "answer",
    [
        mean_square,
        lambda x: float(sum(v * v for v in x.tolist()) / len(x)),
        lambda x: np.mean(np.square(x.numpy())),
    ],
)
def test_right_answers_of_any_kind(answer, capsys):
    assert ex_9_1(answer) is True
    assert capsys.readouterr().out == "✓ 9.1 mean of squares\n"


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (lambda x: (x**2).sum(), "for three numbers expected 4.6667, got 14"),
        (lambda x: (x**2).sum(), "hint: divide by the length"),
        (lambda x: None, "returns None: is the `return` missing?"),
        (lambda x: x**2, "expected shape [], got [3]"),
        (lambda x: "4.67", "got '4.67' (str)"),
        (lambda x: x.nothing, "raises AttributeError"),
        (lambda x, y: x, "raises TypeError"),
        (lambda x: mean_square(x) > 1, "expected numbers"),
        (lambda x: float("nan"), "got nan"),
        (modifies, "changes its arguments"),
        (None, "there is no answer yet"),
        (..., "there is no answer yet"),
        (3.0, "expected a function, got 3.0 (float)"),
    ],
)
def test_mistakes_are_explained_and_never_raise(answer, told, capsys):
    assert ex_9_1(answer) is False
    printed = capsys.readouterr().out
    assert printed.startswith("✗ 9.1 mean of squares: ")
    assert told in printed


def test_a_stub_is_no_mistake(capsys):
    def stub(x):
        raise NotImplementedError

    assert ex_9_1(stub) is False
    assert "not written yet" in capsys.readouterr().out


def test_where_an_exception_comes_from(capsys):
    def divides(x):
        y = x.numel() - 3
        return 1 / y

    ex_9_1(divides)
    assert "ZeroDivisionError: division by zero (line" in capsys.readouterr().out


def test_a_check_leaves_the_random_state_alone():
    @exercise("9.2", "draws")
    def ex(fn):
        return same(fn(), 1.0)

    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    ex(lambda: torch.rand(()))
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize(
    ("got", "want", "told"),
    [
        ([True, False], torch.tensor([True, False]), None),
        (torch.tensor([1, 0]), torch.tensor([True, False]), "expected booleans"),
        ([1.0, 2.0], [1.0, 2.0 + 1e-7], None),
        ([1.0, 2.5, 3.5], [1.0, 2.0, 3.0], "at [1]: expected 2, got 2.5 (2 of 3 values differ)"),
        (1e6 + 1, 1e6, None),
        ((torch.ones(2), "a"), (torch.ones(2), "a"), None),
        ((torch.ones(2), "b"), (torch.ones(2), "a"), "in [1] expected 'a'"),
        ((torch.ones(2),), (torch.ones(2), "a"), "expected 2 elements"),
        ({"a": 1}, {"a": 2}, "in ['a'] expected 2, got 1"),
        ({"b": 1}, {"a": 1}, "expected the keys ['a'], got ['b']"),
        (5, {"a": 1}, "expected a mapping"),
        ({1, 2}, {2, 1}, None),
        ([2, 1], {2, 1}, "(set), got [2, 1] (list)"),
        (float("nan"), float("nan"), None),
        (float("inf"), float("inf"), None),
        (float("inf"), 1.0, "expected 1, got inf"),
        (None, None, None),
    ],
)
def test_same(got, want, told):
    problem = same(got, want)
    assert problem is None if told is None else told in problem


def test_exercises_are_found_by_chapter():
    with pytest.raises(AttributeError, match="chapter 99 has no checks"):
        _ = checks.ex_99_1
    with pytest.raises(AttributeError, match="ex_0_99"):
        _ = checks.ex_0_99
    with pytest.raises(AttributeError, match="nonsense"):
        _ = checks.nonsense
