"""Statistics of cross-validated scores: pure functions of numbers, nothing of storage or drawing.

Fold scores share most of their training cells, so their mean varies more than their sd tells. The corrected resampled t
(Nadeau & Bengio 2003) replaces the factor 1/J of the variance of a mean over J folds by 1/J + n_test/n_train. Seeds of
one fold are averaged first: they are no new data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, sqrt
from typing import Literal

import numpy as np
from scipy import optimize, stats

Verdict = Literal["better", "worse", "undecided", "identical"]


@dataclass(frozen=True)
class Difference:
    """Mean of paired differences with its interval; `p` is two-sided and not yet corrected for several comparisons."""

    mean: float
    low: float
    high: float
    p: float
    folds: int


def corrected_t(differences: Sequence[float], ratio: float, confidence: float = 0.95) -> Difference:
    """Corrected resampled t of paired differences, one per fold; `ratio` is n_test / n_train.

    The interval is mean ± t(J-1) * sd * sqrt(1/J + ratio), the p-value that of mean / (sd * sqrt(1/J + ratio)), sd with
    ddof 1. Where no fold differs the interval is [0, 0] and p is 1; where all differ by the same amount the sd says
    nothing, so the interval is unbounded and p is 1. Raises ValueError for fewer than two folds, a value that is not
    finite, or a ratio that is not positive.
    """
    values = np.asarray(differences, dtype=np.float64)
    if values.ndim != 1 or len(values) < 2:
        raise ValueError(f"an interval needs the differences of at least two folds, got {values.size}")
    if not np.isfinite(values).all():
        raise ValueError(f"differences must be finite, got {values.tolist()}")
    if not (isfinite(ratio) and ratio > 0):
        raise ValueError(f"ratio is n_test / n_train and must be positive, got {ratio}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}")
    mean, folds = float(values.mean()), len(values)
    if (values == 0).all():
        return Difference(0.0, 0.0, 0.0, 1.0, folds)
    sd = float(values.std(ddof=1))
    if sd <= 1e-12 * abs(mean):
        return Difference(mean, -np.inf, np.inf, 1.0, folds)
    error = sd * sqrt(1 / folds + ratio)
    half = float(stats.t.ppf((1 + confidence) / 2, folds - 1)) * error
    p = 2 * float(stats.t.sf(abs(mean) / error, folds - 1))
    return Difference(mean, mean - half, mean + half, p, folds)


def average_seeds(scores: Mapping[tuple[int, int, int], float]) -> dict[tuple[int, int], float]:
    """Mean over seeds: {(partition, fold, seed): score} to {(partition, fold): score}.

    Raises ValueError where the folds have different seeds: their means would not be of one kind.
    """
    grouped: dict[tuple[int, int], dict[int, float]] = {}
    for (partition, fold, seed), score in scores.items():
        grouped.setdefault((partition, fold), {})[seed] = score
    sets = {frozenset(by_seed) for by_seed in grouped.values()}
    if len(sets) > 1:
        raise ValueError(f"the folds were not all run with the same seeds: {sorted(map(sorted, sets))}")
    return {fold: float(np.mean(list(by_seed.values()))) for fold, by_seed in grouped.items()}


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction over a family of comparisons, in the order given."""
    order = np.argsort(p_values, kind="stable")
    corrected = np.empty(len(p_values))
    largest = 0.0
    for rank, position in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[position]))
        corrected[position] = largest
    return [float(p) for p in corrected]


def verdict(difference: Difference, corrected_p: float, alpha: float = 0.05) -> Verdict:
    """What a comparison with the baseline may claim at level alpha, after correction."""
    if difference.low == difference.high == 0:
        return "identical"
    if corrected_p >= alpha:
        return "undecided"
    return "better" if difference.mean > 0 else "worse"


def smallest_detectable_difference(
    folds: int, ratio: float, sd: float, alpha: float = 0.05, power: float = 0.8
) -> float:
    """The true difference that the corrected t over `folds` folds would call significant with probability `power`.

    `sd` is that of the paired fold differences. Solved for the non-central t. With five folds, ratio 0.286 and sd
    0.017, the paper's design, an observed difference must exceed 0.033, and one of 0.045 is found in 80 % of cases.
    Infinite for one fold.
    """
    if folds < 2:
        return float("inf")
    if sd == 0:
        return 0.0
    error, critical = sd * sqrt(1 / folds + ratio), float(stats.t.ppf(1 - alpha / 2, folds - 1))

    def shortfall(noncentrality: float) -> float:
        # Only the right sign counts as found.
        return float(stats.nct.sf(critical, folds - 1, noncentrality)) - power

    far = critical
    while shortfall(far) < 0:
        far *= 1.5
    return error * float(optimize.brentq(shortfall, 0.0, far))
