from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from sklearn.metrics import f1_score

from guided.config import GuidePoints
from guided.geometry import squared_distances
from guided.guide import EmbeddingGuide, load_guide
from guided.metrics import (
    Cells,
    accuracy,
    calibration_error,
    confidences,
    evaluate,
    excess_risk_coverage_area,
    f1_per_class,
    fit_temperature,
    lineage_accuracy,
    lineage_distances,
    macro_f1,
    maturity_error,
    mistake_severity,
    pooled_spearman,
    risk_coverage_area,
    severity,
    staged_cells,
)
from guided.synthetic import CLASSES
from sweeps import schema

cells = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=60)


@given(cells)
@settings(deadline=None)
def test_macro_f1_is_the_mean_over_the_classes_present(pairs: list[tuple[int, int]]) -> None:
    true, predicted = (list(part) for part in zip(*pairs, strict=True))
    ours = macro_f1(np.array(true), np.array(predicted), 5)
    assert ours == pytest.approx(oracles.macro_f1(true, predicted, 5), abs=1e-12)
    present = sorted(set(true))
    assert ours == pytest.approx(f1_score(true, predicted, labels=present, average="macro", zero_division=0))


@given(cells, st.permutations(range(5)))
@settings(deadline=None)
def test_the_order_of_the_classes_does_not_matter(pairs: list[tuple[int, int]], order: list[int]) -> None:
    true, predicted = (np.array(part) for part in zip(*pairs, strict=True))
    turned = np.array(order)
    assert macro_f1(true, predicted, 5) == pytest.approx(macro_f1(turned[true], turned[predicted], 5))


def test_a_class_without_true_cells_has_no_f1_but_its_predictions_cost_the_others() -> None:
    true, predicted = np.array([0, 0, 1, 1]), np.array([0, 2, 1, 1])
    f1 = f1_per_class(true, predicted, 3)
    assert f1[0] == pytest.approx(2 / 3) and f1[1] == 1 and np.isnan(f1[2])
    assert macro_f1(true, predicted, 3) == pytest.approx(5 / 6)
    assert accuracy(true, predicted) == 0.75


def test_no_cells_have_no_score() -> None:
    with pytest.raises(ValueError, match="undefined"):
        macro_f1(np.array([], dtype=np.int64), np.array([], dtype=np.int64), 3)


# --- lineages -------------------------------------------------------------------------------------------------------

# Two classes share a place of the tree (c2, c3), as the unspecified labels of the second acquisition do in `pbc`.
LINEAGES = ["root", "a", "a", "a", "a", "b", "c"]
STAGES = [0.0, 1.0, 2.0, 2.0, 4.5, 3.0, 3.0]
DISTANCES = lineage_distances(LINEAGES, STAGES)
PLACES = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=40)


def parts(pairs: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    true, predicted = zip(*pairs, strict=True)
    return np.array(true), np.array(predicted)


def test_distances_are_ways_through_the_tree() -> None:
    for i in range(7):
        for j in range(7):
            way = oracles.lineage_distance(i, j, LINEAGES, STAGES)
            assert DISTANCES[i, j] == (1.0 if {i, j} == {2, 3} else way), (i, j)
    assert DISTANCES[1, 4] == 3.5 and DISTANCES[4, 5] == 7.5 and DISTANCES[0, 5] == 3


def test_distances_are_a_metric() -> None:
    assert np.array_equal(DISTANCES, DISTANCES.T) and ((DISTANCES == 0) == np.eye(7, dtype=bool)).all()
    assert (DISTANCES[:, None] <= DISTANCES[:, :, None] + DISTANCES[None]).all()


def test_without_lineages_and_stages_every_mistake_costs_one() -> None:
    assert np.array_equal(lineage_distances(["x", "y", "z"], [0, 0, 0]), 1 - np.eye(3))


def test_the_root_is_never_above_a_class() -> None:
    assert np.array_equal(lineage_distances(["x", "y"], [-2, 1]), [[0, 3], [3, 0]])


@given(PLACES)
@settings(deadline=None)
def test_severity_is_zero_if_and_only_if_all_are_right(pairs: list[tuple[int, int]]) -> None:
    true, predicted = parts(pairs)
    ways = [DISTANCES[t, p] for t, p in pairs]
    found = severity(true, predicted, DISTANCES)
    assert found == pytest.approx(sum(ways) / len(ways))
    assert (found == 0) == (accuracy(true, predicted) == 1)
    of_mistakes = [way for (t, p), way in zip(pairs, ways, strict=True) if t != p]
    only = mistake_severity(true, predicted, DISTANCES)
    assert only == (pytest.approx(sum(of_mistakes) / len(of_mistakes)) if of_mistakes else None)
    plain = severity(true, predicted, 1 - np.eye(7))
    assert plain == pytest.approx(1 - accuracy(true, predicted))


@given(PLACES)
@settings(deadline=None)
def test_lineages_and_stages_are_judged_cell_by_cell(pairs: list[tuple[int, int]]) -> None:
    true, predicted = parts(pairs)
    right = [LINEAGES[t] == LINEAGES[p] for t, p in pairs]
    assert lineage_accuracy(true, predicted, LINEAGES) == pytest.approx(sum(right) / len(right))
    judged = staged_cells(true, predicted, LINEAGES, STAGES)
    assert judged.tolist() == [LINEAGES[t] == LINEAGES[p] == "a" for t, p in pairs], "the others have one stage"
    stage = np.array(STAGES)
    errors = [abs(STAGES[t] - STAGES[p]) for t, p in pairs if LINEAGES[t] == LINEAGES[p] == "a"]
    found = maturity_error(stage[predicted[judged]], stage[true[judged]])
    assert found == (pytest.approx(sum(errors) / len(errors)) if errors else None)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 2)), min_size=1, max_size=25))
@settings(deadline=None)
def test_rank_correlation_is_pooled_within_groups(triples: list[tuple[int, int, int]]) -> None:
    first, second, groups = (list(part) for part in zip(*triples, strict=True))
    found = pooled_spearman(np.array(first), np.array(second), np.array(groups))
    try:
        expected = oracles.pooled_spearman(first, second, groups)  # type: ignore[arg-type]
    except ZeroDivisionError:
        assert found is None
        return
    assert found == pytest.approx(expected, abs=1e-12)
    apart = np.array(first) + 100 * np.array(groups)
    assert pooled_spearman(np.exp(apart / 50), np.array(second), np.array(groups)) == pytest.approx(found, abs=1e-12)
    if len(set(groups)) == 1:
        assert found == pytest.approx(spearmanr(first, second).statistic, abs=1e-12)


def test_what_separates_lineages_is_no_order_of_maturity() -> None:
    groups = np.repeat([0, 1], 50)
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 100)) + 10 * groups
    assert abs(spearmanr(a, b).statistic) > 0.7 and abs(pooled_spearman(a, b, groups) or 1) < 0.25


# --- confidence -----------------------------------------------------------------------------------------------------

GUESSES = st.lists(st.tuples(st.sampled_from([0.1, 0.4, 0.5, 0.9, 1.0]), st.booleans()), min_size=1, max_size=7)


@given(GUESSES)
@settings(deadline=None, max_examples=50)
def test_areas_are_means_over_all_orders_of_equals(pairs: list[tuple[float, bool]]) -> None:
    confidence, right = (list(part) for part in zip(*pairs, strict=True))
    found = risk_coverage_area(np.array(confidence), np.array(right))
    assert found == pytest.approx(oracles.risk_coverage_area(confidence, right))


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60), st.integers(1, 20), st.randoms())
@settings(deadline=None)
def test_calibration_error_is_that_of_bins_of_equal_mass(pairs: list[tuple[float, bool]], bins: int, rng: Any) -> None:
    confidence, right = (list(part) for part in zip(*pairs, strict=True))
    found = calibration_error(np.array(confidence), np.array(right), bins)
    assert found == pytest.approx(oracles.calibration_error(confidence, right, bins), abs=1e-12)
    assert 0 <= found <= 1
    rng.shuffle(pairs)
    confidence, right = (list(part) for part in zip(*pairs, strict=True))
    assert calibration_error(np.array(confidence), np.array(right), bins) == pytest.approx(found, abs=1e-12)
    if bins == 1:
        assert found == pytest.approx(abs(np.mean(right) - np.mean(confidence)))


def test_bins_have_equal_mass_wherever_the_confidences_lie() -> None:
    confidence = np.r_[np.full(10, 0.99), np.linspace(0.991, 1, 10)]
    right = np.r_[np.zeros(10, dtype=bool), np.ones(10, dtype=bool)]
    assert calibration_error(confidence, right, 2) == pytest.approx((0.99 + np.mean(1 - confidence[10:])) / 2)
    assert calibration_error(confidence, right, 1) == pytest.approx(confidence.mean() - 0.5)


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=40))
@settings(deadline=None)
def test_a_perfect_confidence_has_the_least_area(pairs: list[tuple[float, bool]]) -> None:
    confidence, right = (np.array(part) for part in zip(*pairs, strict=True))
    perfect, worst = risk_coverage_area(right * 1.0, right), risk_coverage_area(-1.0 * right, right)
    found = risk_coverage_area(confidence, right)
    assert perfect - 1e-12 <= found <= worst + 1e-12
    assert excess_risk_coverage_area(confidence, right) == pytest.approx(found - perfect, abs=1e-12)
    assert excess_risk_coverage_area(right * 0.5, right) == 0
    assert risk_coverage_area(np.ones(len(right)), right) == pytest.approx(1 - right.mean())
    assert risk_coverage_area(confidence**3 * 7, right) <= worst + 1e-12


@given(st.integers(0, 2**32 - 1), st.sampled_from([1e-6, 1.0, 1e6]))
@settings(deadline=None, max_examples=20)
def test_the_temperature_is_the_likeliest(seed: int, unit: float) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, 40)
    squared = rng.gamma(2, size=(40, 4)) * np.where(np.eye(4, dtype=bool)[labels], 0.6, 1.0)
    found = fit_temperature(unit * squared, labels)

    def cost(temperature: float) -> float:
        shares = [oracles.distance_shares(row.tolist(), temperature) for row in squared]
        return -float(np.mean([np.log(row[label]) for row, label in zip(shares, labels, strict=True)]))

    assert cost(found / unit) <= min(cost(t) for t in np.geomspace(0.02, 2000, 60)) + 1e-9
    confidence = confidences(unit * squared, found, labels)
    slow = [oracles.distance_shares(row.tolist(), found / unit)[c] for row, c in zip(squared, labels, strict=True)]
    assert confidence == pytest.approx(slow)


def test_a_temperature_calibrates_what_is_normal() -> None:
    """Equal normal clouds around the anchors: the posterior is softmax(-d²/2σ²), so T is 2σ² and the error is small."""
    rng = np.random.default_rng(0)
    anchors, labels = rng.normal(size=(5, 3)), rng.integers(0, 5, 8000)
    x = anchors[labels] + 0.7 * rng.normal(size=(8000, 3))
    squared = squared_distances(x, anchors)
    predicted = squared.argmin(1)
    temperature = fit_temperature(squared[:4000], labels[:4000])
    assert temperature == pytest.approx(2 * 0.49, rel=0.1)
    right = (predicted == labels)[4000:]
    error = calibration_error(confidences(squared[4000:], temperature, predicted[4000:]), right)
    bold = calibration_error(confidences(squared[4000:], temperature / 5, predicted[4000:]), right)
    assert error < 0.025 and bold > 5 * error


def test_temperatures_without_an_optimum_are_defined() -> None:
    labels = np.array([0, 1])
    sure = fit_temperature(np.array([[0.0, 1], [1, 0]]), labels)
    assert sure > 0 and confidences(np.array([[0.0, 1]]), sure, np.array([0])) == pytest.approx(1)
    assert fit_temperature(np.ones((2, 2)), labels) == 1.0
    absent = np.array([[0.0, 1, np.inf], [2, 3, np.inf], [1, 1, np.inf]])
    with_absent = fit_temperature(absent, np.array([0, 1, 2]))
    assert with_absent == fit_temperature(absent[:2, :2], np.array([0, 1])), "its cells tell nothing"
    assert confidences(absent, 1.0, np.array([2, 2, 2])).tolist() == [0, 0, 0]
    with pytest.raises(ValueError, match="no cell is of a class with an anchor"):
        fit_temperature(absent, np.array([2, 2, 2]))


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (lambda none: severity(none, none, np.zeros((2, 2))), "severity of no cells"),
        (lambda none: calibration_error(none * 1.0, none == 0), "calibration error of no cells"),
        (lambda none: risk_coverage_area(none * 1.0, none == 0), "risk-coverage area of no cells"),
    ],
)
def test_no_cells_have_no_other_score_either(score: Callable[[np.ndarray], float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        score(np.array([], dtype=np.int64))


# --- all of a fold run ----------------------------------------------------------------------------------------------


def fold_run(seed: int, noise: float = 0.5) -> tuple[EmbeddingGuide, Cells, Cells, Cells, np.ndarray, np.ndarray]:
    """The marrow's guide with embeddings that scatter along each lineage as the true maturity does, the predictions
    (T,) of the nearest point and the true maturity (T,) of the test cells."""
    rng = np.random.default_rng(seed)
    guide = load_guide(GuidePoints(), [c.name for c in CLASSES])
    deepest = np.maximum(np.array(guide.stages), 1)
    found = []
    for count in (600, 120, 200):
        labels = rng.integers(0, 15, count)
        beyond = 0.4 * rng.normal(size=count)
        places = guide.points[labels] * (1 + beyond / deepest[labels])[:, None]
        embedding = np.pad(places, ((0, 0), (0, 3))) + noise * rng.normal(size=(count, 5))
        found.append((Cells(embedding.astype(np.float32), labels), np.array(guide.stages)[labels] + beyond))
    (train, _), (validation, _), (test, maturity) = found
    predicted = squared_distances(test.embedding[:, :2], guide.points).argmin(1)
    return guide, train, validation, test, predicted, maturity


def test_every_name_of_the_record_is_in_the_schema_and_every_value_finite() -> None:
    guide, train, validation, test, predicted, maturity = fold_run(0)
    points = np.pad(guide.points, ((0, 0), (0, 3)))
    found = evaluate(guide, train, validation, test, predicted, points=points, maturity=maturity)
    names = {value for key, value in vars(schema).items() if key.isupper()}
    prefixes = {schema.CLASS_SPREAD: guide.classes, schema.LINEAGE_STRAIGHTNESS: ("erythroid", "neutrophilic")}
    prefixes |= {schema.LINEAGE_ORDER: ("erythroid", "neutrophilic")}
    single = {name for name in found if not name.startswith(tuple(prefixes))}
    assert single <= names and all(np.isfinite(value) for value in found.values())
    assert set(found) - single == {prefix + part for prefix, parts in prefixes.items() for part in parts}
    without = evaluate(guide, train, validation, test, predicted, points=None, maturity=None)
    gone = {name for name in found if "/guide_" in name or "/true_" in name}
    assert without == {name: value for name, value in found.items() if name not in gone} and len(gone) == 8


def test_the_parts_of_a_fold_are_kept_apart() -> None:
    guide, train, validation, test, predicted, maturity = fold_run(1)
    told = {"points": None, "maturity": maturity}
    plain = evaluate(guide, train, validation, test, predicted, **told)  # type: ignore[arg-type]
    calibrated = {"confidence/temperature", "test/ece", "test/aurc", "test/aurc_excess"}
    other = Cells(validation.embedding[::2] * 2, validation.labels[::2])
    changed = evaluate(guide, train, other, test, predicted, **told)  # type: ignore[arg-type]
    assert {name for name in plain if plain[name] != changed[name]} <= calibrated
    assert plain["confidence/temperature"] != changed["confidence/temperature"]
    other = Cells(train.embedding + np.float32(0.3) * np.sin(train.labels)[:, None].astype(np.float32), train.labels)
    changed = evaluate(guide, other, validation, test, predicted, **told)  # type: ignore[arg-type]
    read = {name for name in plain if name.startswith("embedding/") and "maturity" in name}
    assert {name for name in plain if plain[name] != changed[name]} <= calibrated | read
    half = slice(None, 100)
    fewer = Cells(test.embedding[half], test.labels[half])
    changed = evaluate(guide, train, validation, fewer, predicted[half], points=None, maturity=maturity[half])
    assert changed["confidence/temperature"] == plain["confidence/temperature"], "no test cell has a say in it"


def test_maturity_between_two_stages_is_seen_where_the_embedding_has_it() -> None:
    guide, train, validation, test, predicted, maturity = fold_run(2, noise=0.05)
    found = evaluate(guide, train, validation, test, predicted, points=None, maturity=maturity)
    assert found["embedding/true_maturity_within_class"] > 0.9 < found["embedding/true_maturity_correlation"]
    shuffled = np.random.default_rng(0).permutation(len(maturity))
    stage = np.array(guide.stages)[test.labels]
    blind = stage + (maturity - stage)[shuffled]
    found = evaluate(guide, train, validation, test, predicted, points=None, maturity=blind)
    assert abs(found["embedding/true_maturity_within_class"]) < 0.25
    assert found["embedding/true_maturity_correlation"] > 0.7, "the class alone tells most of it"


def test_renamed_classes_change_nothing() -> None:
    guide, train, validation, test, predicted, maturity = fold_run(3)
    order = np.random.default_rng(0).permutation(15)
    place = np.argsort(order)
    turned = guide.restricted([guide.classes[c] for c in order])
    plain = evaluate(guide, train, validation, test, predicted, points=guide_points(guide), maturity=maturity)
    cells = [Cells(part.embedding, place[part.labels]) for part in (train, validation, test)]
    found = evaluate(turned, *cells, place[predicted], points=guide_points(turned), maturity=maturity)
    assert found == pytest.approx(plain, rel=1e-6)


def guide_points(guide: EmbeddingGuide) -> np.ndarray:
    return np.pad(guide.points, ((0, 0), (0, 3)))


def test_a_fold_that_tells_little_records_little() -> None:
    """All right, one lineage of one stage, validation cells of classes that no training cell shows."""
    guide = EmbeddingGuide("two", ("x", "y"), np.array([[0.0, 1], [1, 0]]), ("x", "y"), (0.0, 0.0))
    one = np.zeros(5, dtype=np.int64)
    cells = Cells(np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32), one)
    found = evaluate(guide, cells, cells._replace(labels=one + 1), cells, one, points=None, maturity=None)
    assert set(found) == {"test/severity", "test/lineage_accuracy", "test/maturity_cells", "embedding/effective_rank"}
    assert found["test/severity"] == found["test/maturity_cells"] == 0 and found["test/lineage_accuracy"] == 1


def test_metrics_are_free_of_torch() -> None:
    code = "import sys, guided.metrics, guided.geometry; print([m for m in ('torch', 'umap') if m in sys.modules])"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[]"
