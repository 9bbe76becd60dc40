"""Statistics against hand-worked values, scipy, and naive loops."""

from __future__ import annotations

from collections.abc import Callable
from math import inf, sqrt

import numpy as np
import oracles
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from analysis.stats import (
    Difference,
    Posterior,
    Verdict,
    average_seeds,
    benjamini_hochberg,
    cluster_bootstrap,
    corrected_t,
    data_needed,
    friedman,
    holm,
    posterior,
    smallest_detectable_difference,
    smallest_significant_difference,
    verdict,
    wilcoxon,
)

RATIO = 60 / 210  # five folds, an eighth of the other four for validation: 0.2 / 0.7
DIFFERENCES = [0.05, 0.06, 0.04, 0.05, 0.05]
scores = st.lists(st.floats(-0.3, 0.3).map(lambda value: round(value, 4)), min_size=2, max_size=12)
spread = scores.filter(lambda values: float(np.std(values)) > 1e-4)
p_lists = st.lists(st.floats(0, 1), min_size=1, max_size=8)


# --- corrected t and posterior --------------------------------------------------------------------------------------


def test_corrected_t_by_hand() -> None:
    """mean .05; sd = sqrt((2 · .01²) / 4) = .0070711; error = sd · sqrt(1/5 + 2/7) = .0070711 · .696932 = .0049281;
    t(4) at 97.5 % = 2.776445, so ± .0136825; t = 10.1460, two-sided p over t(4) = .000532."""
    found = corrected_t(DIFFERENCES, RATIO)
    assert found.mean == pytest.approx(0.05)
    assert (found.low, found.high) == pytest.approx((0.0363175, 0.0636825), abs=1e-7)
    assert found.p == pytest.approx(0.000532, abs=1e-6) and found.folds == 5


@given(spread)
def test_corrected_t_is_the_paired_t_with_a_wider_error(values: list[float]) -> None:
    """Without the shared training cells, ratio -> 0, it is scipy's t of one sample."""
    plain = stats.ttest_1samp(values, 0)
    found = corrected_t(values, 1e-12)
    assert found.p == pytest.approx(plain.pvalue, abs=1e-9)
    interval = plain.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), abs=1e-9)
    wider = corrected_t(values, RATIO)
    stretch = sqrt(1 + len(values) * RATIO)
    assert wider.high - wider.mean == pytest.approx(stretch * (found.high - found.mean))
    assert wider.p >= found.p - 1e-12


@given(spread)
def test_the_interval_excludes_zero_exactly_where_p_is_small(values: list[float]) -> None:
    found = corrected_t(values, RATIO)
    assert (found.low > 0 or found.high < 0) == (found.p < 0.05)
    mirrored = corrected_t([-value for value in values], RATIO)
    assert (mirrored.low, mirrored.high, mirrored.p) == pytest.approx((-found.high, -found.low, found.p))


def test_folds_that_do_not_differ_or_differ_alike() -> None:
    assert corrected_t([0.0, 0.0, 0.0], RATIO) == Difference(0.0, 0.0, 0.0, 1.0, 3)
    assert posterior([0.0, 0.0, 0.0], RATIO) == Posterior(0.0, 1.0, 0.0)
    alike = corrected_t([0.1, 0.1, 0.1], RATIO)
    assert (alike.low, alike.high, alike.p) == (-inf, inf, 1.0) and alike.mean == pytest.approx(0.1)
    assert posterior([0.1, 0.1, 0.1], RATIO) == Posterior(0.5, 0.0, 0.5)


@pytest.mark.parametrize("test", [corrected_t, posterior])
def test_what_cannot_be_tested_is_refused(test: Callable[..., object]) -> None:
    with pytest.raises(ValueError, match="at least two folds, got 1"):
        test([0.1], RATIO)
    with pytest.raises(ValueError, match=r"must be finite, got \[0.1, nan\]"):
        test([0.1, float("nan")], RATIO)
    with pytest.raises(ValueError, match="must be positive, got 0"):
        test([0.1, 0.2], 0)
    with pytest.raises(ValueError, match="confidence must lie between 0 and 1, got 95"):
        corrected_t([0.1, 0.2], RATIO, confidence=95)
    with pytest.raises(ValueError, match=r"needs a positive half-width, got -0\.01"):
        posterior([0.1, 0.2], RATIO, rope=-0.01)


@given(spread, st.floats(0.001, 0.05))
def test_posterior_is_corani_and_benavolis(values: list[float], rope: float) -> None:
    """Eq. 8 of Corani & Benavoli (2015) with the correlation 1/k that baycomp fixes, so that rho/(1-rho) = 1/(k-1)."""
    below, inside, above = oracles.correlated_t(values, 1 / len(values), rope)
    found = posterior(values, 1 / (len(values) - 1), rope)
    assert (found.below, found.inside, found.above) == pytest.approx((below, inside, above), abs=1e-6)
    assert found.below + found.inside + found.above == pytest.approx(1)


@given(spread)
def test_posterior_without_a_rope_is_half_the_p(values: list[float]) -> None:
    found, difference = posterior(values, RATIO, 1e-12), corrected_t(values, RATIO)
    assert 2 * min(found.below, found.above) == pytest.approx(difference.p, abs=1e-6)


def test_five_folds_of_the_papers_spread_are_practically_equal_only_within_0033() -> None:
    """Mean 0, sd .017: 95 % of t(4) lie within 2.776445 · .017 · .696932 = .0328945."""
    values = 0.017 * np.array([1, 1, -1, -1, 0])
    assert np.std(values, ddof=1) == pytest.approx(0.017)
    assert posterior(list(values), RATIO, 0.0328).inside < 0.95 < posterior(list(values), RATIO, 0.0329).inside


# --- verdicts -------------------------------------------------------------------------------------------------------

NOWHERE, INSIDE = Posterior(0.3, 0.4, 0.3), Posterior(0.01, 0.96, 0.03)


@pytest.mark.parametrize(
    ("difference", "p", "equal", "expected"),
    [
        (Difference(0.0, 0.0, 0.0, 1.0, 5), 1.0, INSIDE, "identical"),
        (Difference(0.004, 0.001, 0.007, 0.001, 5), 0.001, INSIDE, "practically equal"),  # clear, but too small
        (Difference(0.0, -0.008, 0.008, 1.0, 5), 1.0, INSIDE, "practically equal"),
        (Difference(0.05, 0.03, 0.07, 0.001, 5), 0.049, NOWHERE, "better"),
        (Difference(-0.05, -0.07, -0.03, 0.001, 5), 0.049, NOWHERE, "worse"),
        (Difference(0.05, 0.03, 0.07, 0.001, 5), 0.05, NOWHERE, "inconclusive"),  # clear alone, not in its family
        (Difference(0.1, -inf, inf, 1.0, 5), 1.0, Posterior(0.5, 0.0, 0.5), "inconclusive"),
    ],
)
def test_precedence_of_verdicts(difference: Difference, p: float, equal: Posterior, expected: Verdict) -> None:
    assert verdict(difference, p, equal) == expected


# --- seeds, families ------------------------------------------------------------------------------------------------


def test_seeds_are_averaged_within_a_fold() -> None:
    by_seed = {(0, 0, 0): 0.6, (0, 0, 1): 0.7, (0, 1, 0): 0.5, (0, 1, 1): 0.7, (1, 0, 0): 0.4, (1, 0, 1): 0.4}
    assert average_seeds(by_seed) == pytest.approx({(0, 0): 0.65, (0, 1): 0.6, (1, 0): 0.4})


def test_folds_with_different_seeds_are_refused() -> None:
    with pytest.raises(ValueError, match=r"not all run with the same seeds: \[\[0\], \[0, 1\]\]"):
        average_seeds({(0, 0, 0): 0.6, (0, 0, 1): 0.7, (0, 1, 0): 0.5})


def test_holm_by_hand() -> None:
    """Sorted .01 .03 .04, times 3, 2, 1: .03 .06 .04, and never below the one before: .03 .06 .06."""
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0] and holm([]) == []


@given(p_lists)
def test_holm_lies_between_the_raw_p_and_bonferroni(p_values: list[float]) -> None:
    for raw, corrected in zip(p_values, holm(p_values), strict=True):
        assert raw <= corrected <= min(1.0, len(p_values) * raw) + 1e-12


@given(p_lists, st.randoms(use_true_random=False))
def test_corrections_follow_the_order_given(p_values: list[float], random: object) -> None:
    order = list(range(len(p_values)))
    random.shuffle(order)  # type: ignore[attr-defined]
    for correct in (holm, benjamini_hochberg):
        turned = correct([p_values[place] for place in order])
        assert turned == pytest.approx([correct(p_values)[place] for place in order])


@given(p_lists)
def test_benjamini_hochberg_is_no_stricter_than_holm(p_values: list[float]) -> None:
    assert benjamini_hochberg(p_values) == pytest.approx(oracles.benjamini_hochberg(p_values))
    assert all(one <= other + 1e-12 for one, other in zip(benjamini_hochberg(p_values), holm(p_values), strict=True))


def test_benjamini_hochberg_by_hand() -> None:
    """Sorted .01 .03 .04, times 3/1, 3/2, 3/3: .03 .045 .04, and never above the one after: .03 .04 .04."""
    assert benjamini_hochberg([0.04, 0.01, 0.03]) == pytest.approx([0.04, 0.03, 0.04])
    assert benjamini_hochberg([]) == []


# --- designs --------------------------------------------------------------------------------------------------------


def test_the_papers_design() -> None:
    """facts.md and method.md: n_test/n_train .286, sd .017, five folds."""
    design = (0.286, 0.017)
    assert smallest_significant_difference(5, *design) == pytest.approx(0.033, abs=5e-4)
    assert smallest_detectable_difference(5, *design) == pytest.approx(0.045, abs=5e-4)
    assert smallest_significant_difference(inf, *design) == pytest.approx(0.018, abs=5e-4)
    # Endless repeats, by hand: .017 · sqrt(.286) · (1.95996 + .84162).
    assert smallest_detectable_difference(inf, *design) == pytest.approx(0.0254704, abs=1e-6)
    assert smallest_detectable_difference(100_000, *design) == pytest.approx(0.02547, abs=1e-5)
    assert smallest_detectable_difference(1, *design) == smallest_significant_difference(1, *design) == inf
    assert smallest_detectable_difference(5, 0.286, 0.0) == 0.0


def test_the_detectable_difference_is_found_in_80_percent_of_draws() -> None:
    """Draws with the correlation that the test assumes: a check of the non-central t, not of the assumption."""
    ratio, sd, folds = 0.286, 0.017, 5
    true = smallest_detectable_difference(folds, ratio, sd)
    rng = np.random.default_rng(0)
    rho = ratio / (1 + ratio)
    total = sd / sqrt(1 - rho)  # the sd within a study is that of what the folds do not share
    shared, own = rng.normal(0, total * sqrt(rho), (20_000, 1)), rng.normal(0, sd, (20_000, folds))
    drawn = true + shared + own
    error = drawn.std(1, ddof=1) * sqrt(1 / folds + ratio)
    found = (drawn.mean(1) / error > stats.t.ppf(0.975, folds - 1)).mean()
    assert found == pytest.approx(0.8, abs=0.01)


def test_the_data_a_smaller_difference_needs() -> None:
    """A third of the detectable difference: nine times the data."""
    detectable = smallest_detectable_difference(5, 0.286, 0.017)
    assert data_needed(detectable / 3, 5, 0.286, 0.017) == pytest.approx(9)
    assert data_needed(0.01, 5, 0.286, 0.017) == pytest.approx(19.87, abs=0.01)
    assert data_needed(0.1, 5, 0.286, 0.017) < 1
    with pytest.raises(ValueError, match="must be positive, got 0"):
        data_needed(0, 5, 0.286, 0.017)


# --- bootstrap over groups ------------------------------------------------------------------------------------------


def predictions(seed: int, groups: int, cells: int = 300, classes: int = 4) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    true = rng.integers(0, classes, cells)

    def guess(share: float) -> np.ndarray:
        return np.where(rng.random(cells) < share, true, rng.integers(0, classes, cells))

    return true, guess(0.8), guess(0.6), rng.permutation(np.arange(cells) % groups)


@pytest.mark.parametrize("groups", [5, 13])
def test_cluster_bootstrap_is_the_naive_loop_over_resampled_groups(groups: int) -> None:
    true, first, second, group = predictions(0, groups)
    draws = np.random.default_rng(3).multinomial(groups, np.full(groups, 1 / groups), size=1200)
    naive = oracles.cluster_differences(true, first, second, group, 4, draws)
    tail = stats.norm.cdf(-sqrt(groups / (groups - 1)) * stats.t.ppf(0.975, groups - 1))
    found = cluster_bootstrap(true, first, second, group, 4, resamples=1200, seed=3)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(naive, [tail, 1 - tail])), abs=1e-12)
    pooled = oracles.macro_f1(list(true), list(first), 4) - oracles.macro_f1(list(true), list(second), 4)
    assert found.mean == pytest.approx(pooled) and found.groups == groups and 0 < found.low < found.mean < found.high


def test_cluster_bootstrap_is_symmetric_and_sure_of_equals() -> None:
    true, first, second, group = predictions(1, 8)
    one, other = (cluster_bootstrap(true, *pair, group, 4) for pair in ((first, second), (second, first)))
    assert (one.mean, one.low, one.high) == pytest.approx((-other.mean, -other.high, -other.low))
    same = cluster_bootstrap(true, first, first, group, 4)
    assert (same.mean, same.low, same.high) == (0, 0, 0)


def test_groups_count_not_their_cells() -> None:
    """Every cell ten times: nothing new is known of the next patient."""
    true, first, second, group = predictions(2, 8)
    once = cluster_bootstrap(true, first, second, group, 4)
    tenfold = cluster_bootstrap(*(np.repeat(given, 10) for given in (true, first, second, group)), classes=4)
    assert (tenfold.low, tenfold.high) == pytest.approx((once.low, once.high))


def test_two_thousand_resamples_take_milliseconds() -> None:
    from timeit import repeat

    true, first, second, group = predictions(0, 13, cells=7020, classes=15)
    seconds = min(repeat(lambda: cluster_bootstrap(true, first, second, group, 15), number=1, repeat=3))
    assert seconds < 0.1  # 4 ms on an idle core


def test_what_cannot_be_bootstrapped_is_refused() -> None:
    true, first, second, group = predictions(0, 4)
    with pytest.raises(ValueError, match="over 4 groups says nothing of the next one; it needs 5"):
        cluster_bootstrap(true, first, second, group, 4)
    true, first, second, group = predictions(0, 5)
    with pytest.raises(
        ValueError, match=r"100 resamples of 5 groups do not reach the tail 0\.00095 .* take 1049 or more"
    ):
        cluster_bootstrap(true, first, second, group, 4, resamples=100)
    with pytest.raises(ValueError, match=r"of one length, got shapes \(300,\), \(299,\)"):
        cluster_bootstrap(true, first[1:], second, group, 4)
    with pytest.raises(ValueError, match="second must hold class numbers from 0 to 2"):
        cluster_bootstrap(np.minimum(true, 2), np.minimum(first, 2), second, group, 3)
    with pytest.raises(ValueError, match="true must hold class numbers"):
        cluster_bootstrap(true.astype(float), first, second, group, 4)


# --- several data sets ----------------------------------------------------------------------------------------------


@given(st.lists(st.integers(-9, 9), min_size=6, max_size=8))
def test_wilcoxon_counts_all_signs(values: list[int]) -> None:
    assert wilcoxon(values) == pytest.approx(oracles.signed_rank_p(values))


def test_wilcoxon_is_scipys_where_nothing_is_tied() -> None:
    values = np.random.default_rng(0).normal(0.3, 1, 30)
    assert wilcoxon(list(values)) == stats.wilcoxon(values).pvalue
    tied = np.round(values, 1)
    kept = tied[tied != 0]
    assert wilcoxon(list(tied)) == stats.wilcoxon(kept, method="approx").pvalue


def test_a_test_that_cannot_reach_its_level_is_refused() -> None:
    told = r"Wilcoxon test of 5 differences cannot go below p = 0.0625 and so never reaches 0.05; it needs at least 6"
    with pytest.raises(ValueError, match=told):
        wilcoxon([0.1, 0.2, 0.3, 0.4, 0.5])
    assert wilcoxon([0.1, 0.2, 0.3, 0.4, 0.5], alpha=0.1) == 0.0625
    assert wilcoxon([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]) == 0.03125
    with pytest.raises(ValueError, match=r"Friedman test of 3 methods on 2 data sets .* p = 0.1667 .* at least 3"):
        friedman(np.arange(6.0).reshape(2, 3))
    with pytest.raises(ValueError, match="at least three methods, got shape"):
        friedman(np.zeros((8, 2)))
    with pytest.raises(ValueError, match="finite numbers"):
        wilcoxon([0.1, float("nan")] * 5)


def test_friedman_by_counting() -> None:
    """Equal rankings of three methods on three data sets: 6 of 216 assignments of ranks are as extreme."""
    assert friedman(np.tile([0.1, 0.2, 0.3], (3, 1))) == pytest.approx(1 / 36)
    uneven = np.array([[1, 2, 3], [1, 2, 3], [1, 3, 2], [2, 1, 3]], dtype=float)
    assert friedman(uneven) == pytest.approx(oracles.friedman_p(uneven))


def test_friedman_nears_scipys_approximation_with_many_data_sets() -> None:
    values = np.random.default_rng(1).normal(size=(40, 4)) + 0.2 * np.arange(4)
    assert friedman(values) == pytest.approx(stats.friedmanchisquare(*values.T).pvalue, abs=0.01)


def test_wilcoxon_oracle_by_hand() -> None:
    """All six of one sign: 2 of 64 assignments."""
    assert oracles.signed_rank_p([1, 2, 3, 4, 5, 6]) == 2 / 64
