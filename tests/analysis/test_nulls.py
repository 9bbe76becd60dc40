"""Does what we print hold? Thousands of studies in which no variant is better, each on fresh data.

Classifiers are really fitted and tested on folds by region: cells of four classes in 15 regions, each region with a
shift of its own. Variants are alike by construction: they see blocks of features that are drawn alike, so that none can
be better but by luck. Simulating fold scores with an assumed correlation would only prove the assumption.
"""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt
from typing import Literal

import numpy as np
import pytest
from scipy import stats

from analysis.stats import cluster_bootstrap, corrected_t, holm, posterior, verdict

CLASSES, REGIONS, CELLS, FOLDS, FEATURES = 4, 15, 20, 5, 6  # cells of a region, features of a variant
RATIO = 60 / 210
NULLS = 2000

Fit = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
Luck = Literal["data", "fold", "study"]
Recorder = Callable[[str, object], None]


def centroid(x: np.ndarray, one_hot: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Nearest class mean: x (R, N, S), one_hot (R, N, C), train (R, N) to class numbers (R, N)."""
    means = _means(x, one_hot, train)
    return (x @ means.transpose(0, 2, 1) - (means**2).sum(2)[:, None] / 2).argmax(2)


def discriminant(x: np.ndarray, one_hot: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Linear discriminant analysis with equal priors; shapes as for `centroid`."""
    means = _means(x, one_hot, train)
    rest = (x - one_hot @ means) * train[:, :, None]
    covariance = rest.transpose(0, 2, 1) @ rest / (train.sum(1) - CLASSES)[:, None, None]
    weights = np.linalg.solve(covariance, means.transpose(0, 2, 1))
    return (x @ weights - (means.transpose(0, 2, 1) * weights).sum(1)[:, None] / 2).argmax(2)


def _means(x: np.ndarray, one_hot: np.ndarray, train: np.ndarray) -> np.ndarray:
    own = one_hot * train[:, :, None]
    return own.transpose(0, 2, 1) @ x / own.sum(1)[:, :, None]


def macro_f1(one_hot: np.ndarray, predicted: np.ndarray, test: np.ndarray) -> np.ndarray:
    """(R,) over the test cells and the classes among them."""
    true = one_hot * test[:, :, None]
    given = np.eye(CLASSES)[predicted] * test[:, :, None]
    support = true.sum(1)
    with np.errstate(invalid="ignore"):
        f1 = 2 * (true * given).sum(1) / (support + given.sum(1))
    return np.nanmean(np.where(support > 0, f1, np.nan), axis=1)


def fold_scores(
    nulls: int,
    rng: np.random.Generator,
    fit: Fit,
    *,
    variants: int = 2,
    partitions: int = 1,
    luck: Luck = "data",
    class_shift: float = 0.0,
    weaker: float = 1.0,
    cells: int = CELLS,
) -> np.ndarray:
    """Macro-F1 of `nulls` studies, (R, variants, partitions · folds).

    luck "data": each variant has a block of features of its own, all blocks alike in distribution. Otherwise features
    differ in worth, and a variant draws some of them as a network draws its first weights: anew for every fold, or once
    for the "study". `class_shift` is the sd of what a region does to one class only; `weaker` scales the class means
    in the last variant's features (1: a true null).
    """
    count = REGIONS * cells
    blocks = variants if luck == "data" else 2
    worth = np.random.default_rng(1).normal(0, 0.6, (CLASSES, blocks, FEATURES))
    if luck == "data":
        worth = np.repeat(worth[:, :1], blocks, axis=1)
        worth[:, -1] *= weaker
    width = blocks * FEATURES
    labels, region = rng.integers(0, CLASSES, (nulls, count)), np.repeat(np.arange(REGIONS), cells)
    one_hot = np.eye(CLASSES)[labels]
    x = worth.reshape(CLASSES, width)[labels] + rng.normal(size=(nulls, count, width))
    x += 0.5 * rng.normal(size=(nulls, REGIONS, width))[:, region]
    shifts = class_shift * rng.normal(size=(nulls, REGIONS, CLASSES, width))
    x += shifts[np.arange(nulls)[:, None], region, labels]

    def draw() -> list[np.ndarray]:
        if luck == "data":
            own = np.arange(width).reshape(blocks, FEATURES)
            return [np.broadcast_to(one, (nulls, FEATURES)) for one in own]
        return [rng.permuted(np.tile(np.arange(width), (nulls, 1)), axis=1)[:, :FEATURES] for _ in range(variants)]

    drawn = draw()
    scores = np.empty((nulls, variants, partitions * FOLDS))
    for partition in range(partitions):
        fold_of = rng.permuted(np.tile(np.arange(REGIONS) % FOLDS, (nulls, 1)), axis=1)[:, region]
        for fold in range(FOLDS):
            test = fold_of == fold
            train = ~test & (rng.random((nulls, count)) >= 1 / 8)  # the rest is for validation
            drawn = draw() if luck == "fold" else drawn
            for variant, columns in enumerate(drawn):
                seen = np.take_along_axis(x, columns[:, None], axis=2)
                found = macro_f1(one_hot, fit(seen, one_hot, train), test)
                scores[:, variant, partition * FOLDS + fold] = found
    return scores


def rejections(scores: np.ndarray) -> tuple[int, int]:
    """Studies with a false claim: by the naive paired t (smallest p of the family), and by what analysis prints."""
    naive = printed = 0
    for study in scores:
        paired = study[1:] - study[0]
        found = [corrected_t(list(row), RATIO) for row in paired]
        p_values = holm([one.p for one in found])
        claims = [
            verdict(one, p, posterior(list(row), RATIO)) for one, p, row in zip(found, p_values, paired, strict=True)
        ]
        printed += bool({"better", "worse"} & set(claims))
        errors = paired.std(1, ddof=1) / sqrt(paired.shape[1])
        naive += bool((np.abs(paired.mean(1)) > stats.t.ppf(0.975, paired.shape[1] - 1) * errors).any())
    return naive, printed


def simulate(seed: int, fit: Fit, **options: object) -> tuple[int, int]:
    rng = np.random.default_rng(seed)
    parts = [rejections(fold_scores(NULLS // 10, rng, fit, **options)) for _ in range(10)]  # type: ignore[arg-type]
    naive, printed = (sum(counts) for counts in zip(*parts, strict=True))
    return naive, printed


CASES: dict[str, tuple[Fit, dict[str, object]]] = {
    "class means": (centroid, {}),
    "discriminant": (discriminant, {}),
    "regions that shift classes": (discriminant, {"class_shift": 0.6}),
    "three partitions": (centroid, {"partitions": 3}),
    "six comparisons, Holm": (centroid, {"variants": 7}),
    "luck of training in each fold": (discriminant, {"luck": "fold"}),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_what_is_printed_rejects_true_nulls_in_at_most_6_percent(case: str, record_property: Recorder) -> None:
    fit, options = CASES[case]
    naive, printed = simulate(0, fit, **options)
    interval = stats.binomtest(printed, NULLS).proportion_ci(0.95)
    told = f"{printed / NULLS:.1%} [{interval.low:.1%}, {interval.high:.1%}]; naive paired t {naive / NULLS:.1%}"
    record_property(f"false claims, {case}", told)
    print(f"{case}: {told}")
    assert interval.high <= 0.06
    assert naive > printed


@pytest.mark.slow
def test_a_true_difference_is_found() -> None:
    """What never rejects would pass the test above."""
    _, printed = simulate(1, discriminant, weaker=0.3)
    assert printed / NULLS > 0.5


@pytest.mark.slow
def test_one_draw_of_luck_for_all_folds_breaks_the_promise() -> None:
    """Where a variant's first weights are the same in every fold, their luck is in every fold score, and no test over
    folds can tell it from the method: the more cells, the worse. guided.train therefore draws them from (seed,
    partition, fold)."""
    naive, printed = simulate(2, discriminant, luck="study", cells=60)
    print(f"one draw for all folds: {printed / NULLS:.1%}; naive paired t {naive / NULLS:.1%}")
    assert printed / NULLS > 0.06


@pytest.mark.slow
@pytest.mark.parametrize(("groups", "promised"), [(6, 0.10), (13, 0.07)])
def test_the_bootstrap_over_patients_leaves_out_the_truth_as_often_as_it_says(
    groups: int, promised: float, record_property: Recorder
) -> None:
    """Two networks alike but for luck with each patient, so that the truth is 0. Nominal is 5 %: with six patients, as
    the paper has, the promise is not kept, and the docstring of cluster_bootstrap says so."""
    rng, cells = np.random.default_rng(groups), 60
    group = np.repeat(np.arange(groups), cells)
    outside = 0
    for _ in range(NULLS):
        true = rng.integers(0, CLASSES, len(group))
        # The share of cells that are right varies between patients, for each network in its own way.
        right = rng.random((2, len(group))) < rng.beta(7, 3, (2, groups))[:, group]
        first, second = np.where(right, true, rng.integers(0, CLASSES, (2, len(group))))
        found = cluster_bootstrap(true, first, second, group, CLASSES)
        outside += not found.low <= 0 <= found.high
    interval = stats.binomtest(outside, NULLS).proportion_ci(0.95)
    told = f"{outside / NULLS:.1%} [{interval.low:.1%}, {interval.high:.1%}]"
    record_property(f"intervals over {groups} patients that leave out the truth", told)
    print(f"bootstrap over {groups} patients: {told}")
    assert interval.high <= promised
