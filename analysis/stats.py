"""Statistics of cross-validated scores: pure functions of numbers, nothing of storage or drawing.

Fold scores share most of their training cells, so their mean varies more than their sd tells. The corrected resampled t
(Nadeau & Bengio 2003) replaces the factor 1/J of the variance of a mean over J folds by 1/J + n_test/n_train. Seeds of
one fold are averaged first: they are no new data. Three questions, three answers:

- is the training method better on data like these? corrected_t, posterior, and verdict over both
- are these trained networks better for the next patient? cluster_bootstrap
- is the method better over several data sets? wilcoxon for two methods, friedman for more (Demšar 2006)

A test that cannot reach its level, whatever the data say, is refused rather than computed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, factorial, inf, isfinite, log2, sqrt
from typing import Literal

import numpy as np
from scipy import optimize, stats

Verdict = Literal["identical", "practically equal", "better", "worse", "inconclusive"]

ALPHA = 0.05
# Differences in macro-F1 that nobody would act on: the region of practical equivalence of Corani & Benavoli (2015).
ROPE = 0.01
# Below this many groups a bootstrap over groups has too few distinct resamples for a 95 % interval.
FEWEST_GROUPS = 5
# Up to this many tied differences every assignment of signs is enumerated (4,096: a third of a second).
ENUMERATED = 12


# --- one data set, cross-validated ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """Mean of paired differences with its interval; `p` is two-sided and not yet corrected for several comparisons."""

    mean: float
    low: float
    high: float
    p: float
    folds: int


@dataclass(frozen=True)
class Posterior:
    """Probabilities that the true difference lies below, inside and above the region of practical equivalence."""

    below: float
    inside: float
    above: float


def corrected_t(differences: Sequence[float], ratio: float, confidence: float = 0.95) -> Difference:
    """Corrected resampled t of paired differences, one per fold; `ratio` is n_test / n_train.

    The interval is mean ± t(J-1) * sd * sqrt(1/J + ratio), the p-value that of mean / (sd * sqrt(1/J + ratio)), sd with
    ddof 1. Where no fold differs the interval is [0, 0] and p is 1; where all differ by the same amount the sd says
    nothing, so the interval is unbounded and p is 1. Raises ValueError for fewer than two folds, a value that is not
    finite, or a ratio that is not positive.
    """
    values = _checked(differences, ratio)
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}")
    mean, folds, error = float(values.mean()), len(values), _standard_error(values, ratio)
    if (values == 0).all():
        return Difference(0.0, 0.0, 0.0, 1.0, folds)
    if error == 0:
        return Difference(mean, -inf, inf, 1.0, folds)
    half = float(stats.t.ppf((1 + confidence) / 2, folds - 1)) * error
    p = 2 * float(stats.t.sf(abs(mean) / error, folds - 1))
    return Difference(mean, mean - half, mean + half, p, folds)


def posterior(differences: Sequence[float], ratio: float, rope: float = ROPE) -> Posterior:
    """Bayesian correlated t (Corani & Benavoli 2015): where the true difference lies relative to [-rope, rope].

    Under their prior the posterior of the mean difference is a Student t with J-1 degrees of freedom around the mean,
    with scale² = (1/J + rho/(1-rho)) * var and rho = n_test / (n_test + n_train), hence rho/(1-rho) = `ratio`: the
    scale of corrected_t. (baycomp fixes rho at 1/J, a ratio of 1/(J-1).) Where no fold differs all mass lies inside;
    where all differ by the same amount the sd says nothing, and none does. Raises ValueError as corrected_t, and for a
    rope that is not positive.
    """
    values = _checked(differences, ratio)
    if not (isfinite(rope) and rope > 0):
        raise ValueError(f"the region of practical equivalence needs a positive half-width, got {rope}")
    mean, error = float(values.mean()), _standard_error(values, ratio)
    if (values == 0).all():
        return Posterior(0.0, 1.0, 0.0)
    if error == 0:
        return Posterior(0.5, 0.0, 0.5)
    below = float(stats.t.cdf((-rope - mean) / error, len(values) - 1))
    above = float(stats.t.sf((rope - mean) / error, len(values) - 1))
    return Posterior(below, max(0.0, 1 - below - above), above)


def _checked(differences: Sequence[float], ratio: float) -> np.ndarray:
    values = np.asarray(differences, dtype=np.float64)
    if values.ndim != 1 or len(values) < 2:
        raise ValueError(f"an interval needs the differences of at least two folds, got {values.size}")
    if not np.isfinite(values).all():
        raise ValueError(f"differences must be finite, got {values.tolist()}")
    if not (isfinite(ratio) and ratio > 0):
        raise ValueError(f"ratio is n_test / n_train and must be positive, got {ratio}")
    return values


def _standard_error(values: np.ndarray, ratio: float) -> float:
    """sd * sqrt(1/J + ratio); 0 where the folds differ by rounding only."""
    sd = float(values.std(ddof=1))
    return 0.0 if sd <= 1e-12 * float(np.abs(values).max()) else sd * sqrt(1 / len(values) + ratio)


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


def verdict(difference: Difference, corrected_p: float, equal: Posterior, alpha: float = ALPHA) -> Verdict:
    """What a comparison with the baseline may claim. The first that holds:

    1. identical: no fold differs
    2. practically equal: the difference lies inside the ROPE with probability 1 - alpha or more. It comes before
       better and worse, because a difference that is sure and too small to matter is no reason to change a method.
    3. better, worse: p after correction for the family is below alpha
    4. inconclusive
    """
    if difference.low == difference.high == 0:
        return "identical"
    if equal.inside >= 1 - alpha:
        return "practically equal"
    if corrected_p >= alpha:
        return "inconclusive"
    return "better" if difference.mean > 0 else "worse"


# --- several comparisons --------------------------------------------------------------------------------------------


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction over a family of comparisons, in the order given: keeps the chance of any false
    claim under alpha, whatever the dependence."""
    order = np.argsort(p_values, kind="stable")
    corrected = np.empty(len(p_values))
    largest = 0.0
    for rank, position in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[position]))
        corrected[position] = largest
    return [float(p) for p in corrected]


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """Benjamini & Hochberg's correction, in the order given: keeps the expected share of false claims among the claims
    under alpha. For screens of many variants whose winners are run again; claims of a report take holm."""
    return [float(p) for p in stats.false_discovery_control(p_values, method="bh")] if len(p_values) else []


# --- what a design can see ------------------------------------------------------------------------------------------


def smallest_significant_difference(folds: float, ratio: float, sd: float, alpha: float = ALPHA) -> float:
    """The observed mean difference that the corrected t over `folds` folds just calls significant.

    `sd` is that of the paired fold differences. With five folds, ratio 0.286 and sd 0.017, the paper's design, 0.033;
    with folds = inf, endless repeats on the same cells, 0.018 is left: only more data lower it. Infinite for one fold.
    """
    return inf if folds < 2 else sd * sqrt(1 / folds + ratio) * float(stats.t.ppf(1 - alpha / 2, folds - 1))


def smallest_detectable_difference(
    folds: float, ratio: float, sd: float, alpha: float = ALPHA, power: float = 0.8
) -> float:
    """The true difference that the corrected t over `folds` folds would call significant with probability `power`.

    `sd` is that of the paired fold differences. Solved for the non-central t. With five folds, ratio 0.286 and sd
    0.017, the paper's design, an observed difference must exceed 0.033, and one of 0.045 is found in 80 % of cases.
    Infinite for one fold.
    """
    if folds < 2:
        return inf
    if sd == 0:
        return 0.0
    error, critical = sd * sqrt(1 / folds + ratio), float(stats.t.ppf(1 - alpha / 2, folds - 1))
    if folds == inf:
        return error * (critical + float(stats.norm.ppf(power)))

    def shortfall(noncentrality: float) -> float:
        # Only the right sign counts as found.
        return float(stats.nct.sf(critical, folds - 1, noncentrality)) - power

    far = critical
    while shortfall(far) < 0:
        far *= 1.5
    return error * float(optimize.brentq(shortfall, 0.0, far))


def data_needed(
    target: float, folds: float, ratio: float, sd: float, alpha: float = ALPHA, power: float = 0.8
) -> float:
    """How many times the data a true difference of `target` needs to be found with probability `power`.

    (smallest_detectable_difference / target)²: more folds or repeats over the same cells leave the term `ratio`, but
    the sd of fold differences falls with the square root of the data, as far as new data are like the old: patients
    and regions, not only cells. Below 1 the data at hand are more than enough. Raises ValueError for a target that is
    not positive.
    """
    if not (isfinite(target) and target > 0):
        raise ValueError(f"the difference to be found must be positive, got {target}")
    return (smallest_detectable_difference(folds, ratio, sd, alpha, power) / target) ** 2


# --- the next patient -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GroupDifference:
    """Difference in macro-F1 of pooled predictions, with an interval over groups (patients or regions)."""

    mean: float
    low: float
    high: float
    groups: int


def cluster_bootstrap(
    true: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    groups: np.ndarray,
    classes: int,
    *,
    resamples: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
) -> GroupDifference:
    """Macro-F1 of predictions `first` minus that of `second`, both (N,) class numbers for the same cells with labels
    `true` (N,), pooled over the test folds; whole groups (N,) are drawn with replacement.

    It answers how the networks at hand compare on the next patient; the luck of training is not in it. Macro-F1 is
    taken over the classes that have a true cell in the resample. With few groups a percentile interval is too short:
    its tails are moved out to Φ(-sqrt(G/(G-1)) t(G-1)) (the expanded percentile interval of Hesterberg 2015). Even so
    the nominal 95 % leave out the truth in 9 % of simulated cases with 6 groups, in 6 % with 13 (test_nulls.py): with
    a handful of patients read the interval as too short.
    Raises ValueError for arrays that do not match, classes out of range, fewer than 5 groups, or too few resamples
    for the tails.
    """
    true, first, second, groups = (np.asarray(given) for given in (true, first, second, groups))
    if true.ndim != 1 or not true.shape == first.shape == second.shape == groups.shape:
        shapes = ", ".join(str(given.shape) for given in (true, first, second, groups))
        raise ValueError(f"true, first, second and groups must be of one length, got shapes {shapes}")
    for name, given in (("true", true), ("first", first), ("second", second)):
        if not np.issubdtype(given.dtype, np.integer) or (len(given) and not 0 <= given.min() <= given.max() < classes):
            raise ValueError(f"{name} must hold class numbers from 0 to {classes - 1}")
    names, group = np.unique(groups, return_inverse=True)
    count = len(names)
    if count < FEWEST_GROUPS:
        raise ValueError(f"a bootstrap over {count} groups says nothing of the next one; it needs {FEWEST_GROUPS}")
    tail = float(stats.norm.cdf(-sqrt(count / (count - 1)) * stats.t.ppf((1 + confidence) / 2, count - 1)))
    if resamples * tail < 1:
        raise ValueError(
            f"{resamples} resamples of {count} groups do not reach the tail {tail:.2g} of the interval; "
            f"take {ceil(1 / tail)} or more"
        )

    def per_group(label: np.ndarray, kept: np.ndarray | None = None) -> np.ndarray:
        """Cells of each class per group, (G, C)."""
        cells = group * classes + label
        return np.bincount(cells if kept is None else cells[kept], minlength=count * classes).reshape(count, classes)

    support = per_group(true)
    pairs = [(per_group(true, true == given), per_group(given)) for given in (first, second)]
    draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples)

    def difference(weights: np.ndarray) -> np.ndarray:
        """(R, G) copies of each group to (R,) differences."""
        cells = weights @ support
        scores = []
        for hits, given in pairs:
            with np.errstate(invalid="ignore"):
                f1 = 2 * (weights @ hits) / (cells + weights @ given)
            scores.append(np.nanmean(np.where(cells > 0, f1, np.nan), axis=1))
        return scores[0] - scores[1]

    low, high = np.quantile(difference(draws), [tail, 1 - tail])
    return GroupDifference(float(difference(np.ones((1, count), np.int64))[0]), float(low), float(high), count)


# --- several data sets ----------------------------------------------------------------------------------------------


def wilcoxon(differences: Sequence[float], alpha: float = ALPHA) -> float:
    """Two-sided p of Wilcoxon's signed-rank test over the differences of two methods, one per data set (Demšar 2006).

    Exact, but for more than 12 values of which some are tied: the normal approximation. Zeros are dropped. Raises
    ValueError where even differences of one sign could not reach alpha: n of them cannot go below 2^(1-n), so that
    five folds (0.0625) or five data sets are too few for 0.05.
    """
    values = np.asarray(differences, dtype=np.float64)
    if values.ndim != 1 or not np.isfinite(values).all():
        raise ValueError(f"differences must be a list of finite numbers, got {values.tolist()}")
    _must_reach(2.0 ** (1 - len(values)), alpha, f"a Wilcoxon test of {len(values)} differences", ceil(1 - log2(alpha)))
    kept = values[values != 0]
    if len(kept) == 0:
        return 1.0
    method: str | stats.PermutationMethod = "exact"
    if len(np.unique(np.abs(kept))) < len(kept):
        method = stats.PermutationMethod(n_resamples=2 ** len(kept)) if len(kept) <= ENUMERATED else "approx"
    return float(stats.wilcoxon(kept, method=method).pvalue)


def friedman(scores: np.ndarray, alpha: float = ALPHA, *, resamples: int = 20_000, seed: int = 0) -> float:
    """p of Friedman's test that `scores` (D data sets, K methods) come from methods that are all alike (Demšar 2006).

    By permuting the ranks within data sets, all of them where there are at most `resamples`: the chi-square
    approximation does not hold for few data sets. Where it rejects, compare each method with the baseline by wilcoxon
    and correct with holm. Raises ValueError for fewer than three methods (take wilcoxon), and where even equal rankings
    could not reach alpha: their p is (1/K!)^(D-1).
    """
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 2 or values.shape[1] < 3 or not np.isfinite(values).all():
        raise ValueError(f"scores must be finite, data sets x at least three methods, got shape {values.shape}")
    sets, methods = values.shape
    orders = factorial(methods)
    fewest = 1 + ceil(-log2(alpha) / log2(orders))
    _must_reach((1 / orders) ** (sets - 1), alpha, f"a Friedman test of {methods} methods on {sets} data sets", fewest)
    ranks = stats.rankdata(values, axis=1)

    def spread(*columns: np.ndarray, axis: int) -> np.ndarray:
        return np.sum([column.sum(axis=axis) ** 2 for column in columns], axis=0)

    found = stats.permutation_test(
        tuple(ranks.T),
        spread,
        permutation_type="samples",
        vectorized=True,
        n_resamples=resamples,
        batch=1000,
        alternative="greater",
        rng=np.random.default_rng(seed),
    )
    return float(found.pvalue)


def _must_reach(attainable: float, alpha: float, test: str, fewest: int) -> None:
    if attainable > alpha:
        raise ValueError(
            f"{test} cannot go below p = {attainable:.4g} and so never reaches {alpha:g}; it needs at least {fewest}"
        )
