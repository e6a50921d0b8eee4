"""How a check of an exercise is written: `answer -> None when right, else what is wrong`.

Each chapter has a module of them here: `ch03.py` holds `ex_3_1`, `ex_3_2`, …; notebooks reach
them through `nas_core.workbook.checks`.
"""

from __future__ import annotations

import copy
import dis
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

Problem = str | None  # what is wrong, in words for the student
Hint = tuple[Any, str]  # predicate (got, want, *arguments) -> bool; what to say where it holds
_EMPTY = ("there is no answer yet", "not written yet")


class Verdict:
    """Whether an answer is right. Displays nothing: the check has printed its line."""

    def __init__(self, good: bool):
        self.good = good

    def __bool__(self) -> bool:
        return self.good

    def _ipython_display_(self) -> None:
        pass


class Exercise:
    """A named check. Called with a student's answer it prints one line and returns a `Verdict`.

    The line begins with ✓ (right), ✗ (wrong) or ○ (not written yet). Nothing a student's code
    does raises from here, Ctrl-C apart.
    """

    def __init__(self, number: str, title: str, body: Callable[[Any], Problem]):
        self.number, self.title, self.body = number, title, body
        self.__doc__ = body.__doc__

    def __call__(self, answer: Any) -> Verdict:
        problem = self.problem(answer)
        mark = "✓" if problem is None else "○" if problem in _EMPTY else "✗"
        print(f"{mark} {self.number} {self.title}" + (f": {problem}" if problem else ""))
        return Verdict(problem is None)

    def problem(self, answer: Any) -> Problem:
        """What is wrong with the answer, or None."""
        if answer is None or answer is ...:
            return _EMPTY[0]
        if _has_no_body(answer):
            return _EMPTY[1]
        state = torch.random.get_rng_state()
        try:
            return self.body(answer)
        except Exception as error:
            return _EMPTY[1] if _is_stub(error) else _raised(error)
        finally:
            torch.random.set_rng_state(state)

    def __repr__(self) -> str:
        return f"<exercise {self.number} {self.title}>"


def exercise(number: str, title: str) -> Callable[[Callable[[Any], Problem]], Exercise]:
    """Decorator: turn a function `answer -> problem or None` into an `Exercise`."""
    return lambda body: Exercise(number, title, body)


def compare(
    answer: Any,
    reference: Callable[..., Any],
    cases: Mapping[str, Sequence[Any]],
    *,
    tolerance: float = 1e-5,
    hints: Iterable[Hint] = (),
) -> Problem:
    """Call `answer` and `reference` on the arguments of every case and compare what they return.

    `cases` maps words that describe a case to its positional arguments. A case whose arguments
    the answer modifies fails. The first hint whose predicate `(got, want, *arguments)` holds is
    added to the message.
    """
    if not callable(answer):
        return f"expected a function, got {_show(answer)}"
    for label, arguments in cases.items():
        want = reference(*copy.deepcopy(arguments))
        given = copy.deepcopy(arguments)
        try:
            got = answer(*given)
        except Exception as error:
            if _is_stub(error):
                raise
            return f"for {label} {_raised(error)}" + _hint(hints, error, None, arguments)
        problem = same(got, want, tolerance)
        if problem is None and any(
            same(a, b, 0.0)
            for a, b in zip(given, arguments, strict=True)
            if _is_data(b) or isinstance(b, list)
        ):
            return f"for {label} it changes its arguments; work on copies"
        if problem:
            return f"for {label} {problem}" + _hint(hints, got, want, arguments)
    return None


def same(got: Any, want: Any, tolerance: float = 1e-5) -> Problem:
    """How `got` differs from `want`, or None: type, shape, kind of number, then the values.

    Numbers agree when |got - want| <= tolerance · max(1, |want|); a number, an array and a tensor
    of the same shape may stand for each other. Containers are compared element by element.
    """
    if got is None and want is not None:
        return "it returns None: is the `return` missing?"
    if isinstance(want, Mapping):
        if not isinstance(got, Mapping):
            return f"expected a mapping, got {_show(got)}"
        if set(got) != set(want):
            return f"expected the keys {sorted(map(str, want))}, got {sorted(map(str, got))}"
        return _first((f"[{k!r}]", same(got[k], v, tolerance)) for k, v in want.items())
    if isinstance(want, list | tuple) and not _numeric(want):
        if not isinstance(got, list | tuple) or len(got) != len(want):
            return f"expected {len(want)} elements, got {_show(got)}"
        pairs = enumerate(zip(got, want, strict=True))
        return _first((f"[{i}]", same(g, w, tolerance)) for i, (g, w) in pairs)
    if isinstance(want, set | frozenset | str) or want is None:
        return None if got == want else f"expected {_show(want)}, got {_show(got)}"
    if _is_data(want):
        return _same_numbers(got, want, tolerance)
    return None if got == want else f"expected {_show(want)}, got {_show(got)}"


def _same_numbers(got: Any, want: Any, tolerance: float) -> Problem:
    if not _is_data(got):
        return f"expected {_show(want)}, got {_show(got)}"
    a, b = _array(got), _array(want)
    if a.shape != b.shape:
        return f"expected shape {list(b.shape)}, got {list(a.shape)}"
    if (a.dtype == bool) != (b.dtype == bool):
        return f"expected {_kind(b)}, got {_kind(a)}"
    if a.size == 0:
        return None
    x, y = a.astype(float), b.astype(float)
    with np.errstate(invalid="ignore"):
        close = np.abs(x - y) <= tolerance * np.maximum(1, np.abs(y))
    wrong = ~(close | (x == y) | (np.isnan(x) & np.isnan(y)))
    if not wrong.any():
        return None
    at = tuple(int(i) for i in np.argwhere(wrong)[0])
    where = f"at {list(at)}: " if at else ""
    count = f" ({int(wrong.sum())} of {wrong.size} values differ)" if wrong.size > 1 else ""
    return f"{where}expected {_number(b[at])}, got {_number(a[at])}{count}"


def _first(problems: Iterable[tuple[str, Problem]]) -> Problem:
    return next((f"in {where} {problem}" for where, problem in problems if problem), None)


def _hint(hints: Iterable[Hint], got: Any, want: Any, arguments: Sequence[Any]) -> str:
    """The words of the first hint that applies; of an answer that raises, `got` is the error."""
    found = (text for holds, text in hints if _holds(holds, got, want, arguments))
    return next((f"\n  hint: {text}" for text in found), "")


def _holds(predicate: Callable[..., bool], got: Any, want: Any, arguments: Sequence[Any]) -> bool:
    """A predicate that fails on a student's strange value does not apply."""
    try:
        return bool(predicate(got, want, *arguments))
    except Exception:
        return False


def _has_no_body(answer: Any) -> bool:
    """Whether a function is only `...`, `pass` or a docstring, as some stubs are."""
    code = getattr(answer, "__code__", None)
    if code is None or not set(code.co_consts) <= {None, answer.__doc__}:
        return False
    steps = {i.opname for i in dis.get_instructions(code)}
    return steps <= {"RESUME", "NOP", "LOAD_CONST", "RETURN_VALUE", "RETURN_CONST"}


def _is_stub(error: Exception) -> bool:
    """Whether this is a stub's bare `raise NotImplementedError`.

    PyTorch raises the same class, with a message, for operations that a dtype does not have.
    """
    own = isinstance(error, NotImplementedError) and not error.args
    return own and "site-packages" not in traceback.extract_tb(error.__traceback__)[-1].filename


def _raised(error: Exception) -> str:
    """The error and the line of the student's code that it comes from."""
    frames = traceback.extract_tb(error.__traceback__)
    last = ([f for f in frames if "site-packages" not in f.filename] or frames)[-1]
    where = f" (line {last.lineno} of {last.name})" if last.line else ""
    hint = "\n  hint: mask.float() turns a mask into numbers" if "bool tensor" in str(error) else ""
    return f"it raises {type(error).__name__}: {error}{where}{hint}"


def _is_data(value: Any) -> bool:
    scalars = bool | int | float | complex | np.generic | np.ndarray | torch.Tensor
    return isinstance(value, scalars) or (isinstance(value, list | tuple) and _numeric(value))


def _numeric(values: Any) -> bool:
    return len(values) > 0 and all(isinstance(v, bool | int | float | np.generic) for v in values)


def _array(value: Any) -> np.ndarray:
    return value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)


def _kind(array: np.ndarray) -> str:
    return "booleans" if array.dtype == bool else f"numbers ({array.dtype})"


def _number(value: Any) -> str:
    return str(bool(value)) if np.asarray(value).dtype == bool else f"{value:.5g}"


def _show(value: Any) -> str:
    if isinstance(value, torch.Tensor | np.ndarray) and _array(value).ndim:
        return f"a {type(value).__name__} of shape {list(value.shape)}"
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '…'} ({type(value).__name__})"
