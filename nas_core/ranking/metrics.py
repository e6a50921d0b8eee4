"""Does a score order architectures as their true accuracy does? Yu (2021), chapters 5 and 6.

Truths and scores are arrays `[N]`, the larger the better; accuracies are fractions of 1. A loss is
negated first. Every comparison belongs beside the ranking by size: see `beside_size`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import pandas as pd

STEP = 0.001  # accuracies that round to the same multiple of this share a rank


def kendall(truth: Any, scores: Any) -> float:
    """Kendall's τ-b: (concordant − discordant) pairs over those that are not tied; NaN if none."""
    from scipy.stats import kendalltau

    truth, scores = _paired(truth, scores)
    return float(kendalltau(truth, scores).statistic)


def spearman(truth: Any, scores: Any) -> float:
    """Correlation of the ranks; NaN where one side is constant."""
    from scipy.stats import rankdata

    ranks = [rankdata(values) for values in _paired(truth, scores)]
    if any(np.ptp(r) == 0 for r in ranks):
        return math.nan
    return float(np.corrcoef(*ranks)[0, 1])


def sparse_kendall(
    truth: Any,
    scores: Any,
    step: float = STEP,
    variant: Literal["rounded", "released"] = "rounded",
) -> float:
    """s-KdT: Kendall's τ after truths closer than `step` were made equal (section 6.3.3).

    Args:
        step: width of a bin of the truth; .1 % in the source.
        variant: "rounded" is τ-b of the rounded truth and the scores. "released" follows the
            authors' code: bins are the floor of the truth, the architectures are ordered by their
            score, and the bins in that order are compared with the sorted bins.
    """
    truth, scores = _paired(truth, scores)
    if not 0 < step < math.inf:
        raise ValueError(f"step is {step}; it must be above 0 (.001 is a tenth of a percent)")
    if variant == "rounded":
        return kendall(rounded(truth, step), scores)
    if variant != "released":
        raise ValueError(f"variant is {variant!r}; it must be 'rounded' or 'released'")
    bins = np.floor(truth / step + 1e-9)
    return kendall(np.sort(bins), bins[np.argsort(scores, kind="stable")])


def sparse_spearman(truth: Any, scores: Any, step: float = STEP) -> float:
    """s-SpR: Spearman's correlation with the rounded truth."""
    return spearman(rounded(truth, step), scores)


def rounded(truth: Any, step: float = STEP) -> np.ndarray:
    """Truths as whole numbers of steps; the bins of `sparse_kendall`."""
    return np.round(np.asarray(truth, dtype=float) / step)


def final_accuracy(truth: Any, scores: Any, top: int = 3) -> float:
    """FSA: mean truth of the `top` architectures with the highest scores (section 6.3.4)."""
    truth, scores = _paired(truth, scores)
    if not 1 <= top <= len(truth):
        raise ValueError(f"top is {top}; there are {len(truth)} architectures")
    return float(truth[np.argsort(-scores, kind="stable")[:top]].mean())


def rank_of(value: float, truth: Any) -> int:
    """Rank of an accuracy in a space: 1 + the number of architectures that are better."""
    return 1 + int((np.asarray(truth) > value).sum())


def p_above_random(rank: float, total: int, draws: int, *, printed: bool = False) -> float:
    """p(>random): the probability that `draws` random architectures are all worse (eq. 5.1).

    A random architecture is worse than the one of rank r with probability 1 − r/r_max, so all are
    with (1 − r/r_max)^n. Every value of tables 5.3 and 5.4 is this one.

    Args:
        rank: 1 is the best of the space.
        total: number of architectures, r_max.
        printed: return 1 − (1 − r/r_max)^n, as eq. 5.1 is printed, the probability of losing.
    """
    if not 1 <= rank <= total or draws < 1:
        raise ValueError(f"rank {rank} of {total}, {draws} draws; need 1 ≤ rank ≤ total, draws ≥ 1")
    wins = (1 - rank / total) ** draws
    return 1 - wins if printed else wins


def welch(a: Any, b: Any) -> float:
    """Two-sided p-value of Welch's t-test between two lists of scores (at least two each).

    Lists without any spread give 1 where their means agree and 0 where they differ.
    """
    a, b = (np.asarray(values, dtype=float) for values in (a, b))
    if min(len(a), len(b)) < 2:
        raise ValueError(f"{len(a)} and {len(b)} scores; a variance needs at least two of each")
    return welch_from_moments(*((v.mean(), spread(v), len(v)) for v in (a, b)))


def spread(values: Any) -> float:
    """Standard deviation (n − 1); exactly 0 where all values are equal."""
    return float(np.std(values, ddof=1)) if np.ptp(values) else 0.0


def welch_from_moments(a: tuple[float, float, int], b: tuple[float, float, int]) -> float:
    """`welch` from mean, standard deviation (n − 1) and n, such as a table prints."""
    from scipy.stats import t

    (mean_a, std_a, n_a), (mean_b, std_b, n_b) = a, b
    u, v = std_a**2 / n_a, std_b**2 / n_b  # squared standard errors
    if u + v == 0:
        return float(mean_a == mean_b)
    freedom = (u + v) ** 2 / (u**2 / (n_a - 1) + v**2 / (n_b - 1))
    return float(2 * t.sf(abs(mean_a - mean_b) / math.sqrt(u + v), freedom))


def kendall_at_equal_size(truth: Any, scores: Any, sizes: Any) -> float:
    """Kendall's τ-b over those pairs alone that have the same size; NaN where there are none.

    The ranking by size has no opinion on these pairs, so that nothing of it is left in this number.
    """
    truth, scores = _paired(truth, scores)
    groups = np.unique(np.asarray(sizes), return_inverse=True)[1]
    if len(groups) != len(truth):
        raise ValueError(f"{len(truth)} truths and {len(groups)} sizes; give one each")
    total = np.zeros(3)  # Σ x·y, Σ x², Σ y² over pairs, as in a correlation
    for g in np.unique(groups):
        x, y = (np.sign(np.subtract.outer(v[groups == g], v[groups == g])) for v in (truth, scores))
        total += (x * y).sum(), (x * x).sum(), (y * y).sum()
    return float(total[0] / math.sqrt(total[1] * total[2])) if total[1] * total[2] else math.nan


def beside_size(
    truth: Any,
    scores: Mapping[str, Any],
    sizes: Any,
    *,
    step: float = STEP,
    size: str = "size",
) -> pd.DataFrame:
    """Every score beside the ranking by size: the control of all comparisons of these chapters.

    Args:
        scores: by name, `[N]` each.
        sizes: multiply-adds or parameters `[N]`; the larger is taken to be the better.
        size: name of the control's row, which comes last.

    Returns:
        A row per score: `s-KdT`, `SpR`, `FSA` (top 3), and `at equal size`, Kendall's τ over the
        pairs of equal size (NaN for the control, which ties them).
    """
    rows = {
        name: {
            "s-KdT": sparse_kendall(truth, values, step),
            "SpR": spearman(truth, values),
            "FSA": final_accuracy(truth, values),
            "at equal size": kendall_at_equal_size(truth, values, sizes),
        }
        for name, values in {**scores, size: sizes}.items()
    }
    return pd.DataFrame(rows).T


def _paired(truth: Any, scores: Any) -> tuple[np.ndarray, np.ndarray]:
    truth, scores = np.asarray(truth, dtype=float), np.asarray(scores, dtype=float)
    if truth.shape != scores.shape or truth.ndim != 1 or len(truth) < 2:
        raise ValueError(
            f"truths {list(truth.shape)} and scores {list(scores.shape)}; both are [N], N ≥ 2"
        )
    if np.isnan(truth).any() or np.isnan(scores).any():
        raise ValueError("a truth or a score is NaN; leave those architectures out")
    return truth, scores
