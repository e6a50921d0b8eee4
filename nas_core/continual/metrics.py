"""What a learner is judged by at the end of a stream (thesis section 5.3.1).

`accuracy[i, t]` is the test accuracy on task t after learning tasks 0…i. Only the last row and the
diagonal are needed; every other entry may be NaN.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def _square(accuracy) -> np.ndarray:
    matrix = np.asarray(accuracy, dtype=float)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not len(matrix):
        raise ValueError(f"accuracy is [T, T] with T ≥ 1, got {list(matrix.shape)}")
    needed = np.concatenate([matrix[-1], np.diag(matrix)])
    if not ((needed >= 0) & (needed <= 1)).all():  # NaN is neither
        raise ValueError("the last row and the diagonal of accuracy must be numbers in [0, 1]")
    return matrix


def average_accuracy(accuracy) -> float:
    """A(S): mean accuracy over all tasks after the last one (eq. 5.1)."""
    return float(_square(accuracy)[-1].mean())


def forgetting(accuracy) -> float:
    """F(S): mean over t < T of accuracy at the end minus accuracy just after task t (eq. 5.2).

    Negative means that the learner forgot; 0 for a stream of one task.
    """
    matrix = _square(accuracy)
    change = matrix[-1, :-1] - np.diag(matrix)[:-1]
    return float(change.mean()) if len(change) else 0.0


def transfer(accuracy, alone: float) -> float:
    """T(S): accuracy on the last task minus `alone`, that of the same learner without a past.

    Equation 5.3; `alone` is measured after learning the last task as the only one.
    """
    if not 0 <= alone <= 1:
        raise ValueError(f"alone is {alone}; it is an accuracy in [0, 1]")
    return float(_square(accuracy)[-1, -1] - alone)


def learning_curve_area(curves: Sequence[Sequence[float]], beta: int = 5) -> float:
    """LCA@β: mean over tasks and over b = 0…β of test accuracy after b batches (eq. 5.4).

    `curves` holds per task the accuracies after 0, 1, 2, … batches, at least β + 1 of them.
    """
    if beta < 0:
        raise ValueError(f"beta is {beta}; it must be at least 0")
    if not len(curves) or any(len(curve) < beta + 1 for curve in curves):
        raise ValueError(f"LCA@{beta} needs {beta + 1} accuracies for every task")
    return float(np.mean([np.mean(curve[: beta + 1]) for curve in curves]))


def megabytes(count: int) -> float:
    """Bytes in the unit of the thesis' tables: 10⁶ bytes."""
    return count / 1e6
