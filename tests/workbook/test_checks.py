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
    assert ex_9_1(answer)
    assert capsys.readouterr().out == "✓ 9.1 mean of squares\n"


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (lambda x: (x**2).sum(), "for three numbers expected 4.6667, got 14"),
        (lambda x: (x**2).sum(), "hint: divide by the length"),
        (lambda x: [].append(x), "returns None: is the `return` missing?"),
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
    assert not ex_9_1(answer)
    printed = capsys.readouterr().out
    mark = "○" if answer is None or answer is ... else "✗"
    assert printed.startswith(f"{mark} 9.1 mean of squares: ")
    assert told in printed


def raises(x):
    raise NotImplementedError


def only_a_docstring(x):
    """The mean of the squares."""


def only_dots(x): ...


@pytest.mark.parametrize("stub", [raises, only_a_docstring, only_dots])
def test_a_stub_is_no_mistake(stub, capsys):
    assert not ex_9_1(stub)
    assert capsys.readouterr().out == "○ 9.1 mean of squares: not written yet\n"


def test_a_constant_is_a_mistake(capsys):
    assert not ex_9_1(lambda x: 3.0)
    assert capsys.readouterr().out.startswith("✗ 9.1 mean of squares: for three numbers expected")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda x: (x > 1) - torch.sigmoid(x), "hint: mask.float()"),
        (lambda x: torch.nn.Module()(x), 'missing the required "forward"'),
    ],
)
def test_a_not_implemented_error_of_pytorch_is_shown(answer, said, capsys):
    """`mask - torch.sigmoid(logits)` raises the class that stubs raise."""
    assert not ex_9_1(answer)
    printed = capsys.readouterr().out
    assert printed.startswith("✗") and "raises NotImplementedError: " in printed and said in printed
    assert "not written yet" not in printed


def test_a_check_at_the_end_of_a_cell_displays_no_true(capsys):
    from IPython.core.interactiveshell import InteractiveShell

    format_dict, metadata = InteractiveShell.instance().display_formatter.format(ex_9_1(raises))
    assert (format_dict, metadata) == ({}, {})


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
    assert checks.ex_0_1.number == "0.1" and checks.ex_0_1 is checks.ex_0_1
    with pytest.raises(AttributeError, match="there are no checks .*ch99"):
        _ = checks.ex_99_1
    with pytest.raises(AttributeError, match="ex_0_99"):
        _ = checks.ex_0_99
    with pytest.raises(AttributeError, match="nonsense"):
        _ = checks.nonsense
