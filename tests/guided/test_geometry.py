from __future__ import annotations

from itertools import permutations, product

import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import pdist
from scipy.stats import ortho_group

from guided.geometry import (
    LineagePath,
    class_means,
    class_spread,
    effective_rank,
    lineage_paths,
    silhouette,
    spread,
    squared_distances,
    stability,
)

seeds = st.integers(0, 2**32 - 1)
scales = st.sampled_from([1e-6, 0.1, 3.0, 1e5])


def cells(seed: int, count: int = 24, classes: int = 4, n: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """A cloud (count, n) with labels; the last class has one cell, the one before two."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.r_[classes - 1, [classes - 2] * 2, np.arange(count - 3) % (classes - 2)])
    return 2 * rng.normal(size=(classes, n))[labels] + rng.normal(size=(count, n)), labels


def moved(x: np.ndarray, seed: int, scale: float) -> np.ndarray:
    """The same points rotated or reflected, then shifted, then at another scale."""
    rng = np.random.default_rng(seed)
    return scale * (x @ ortho_group.rvs(x.shape[-1], random_state=rng) + rng.normal(size=x.shape[-1]))


def path(seed: int, nodes: int = 4, n: int = 3) -> LineagePath:
    rng = np.random.default_rng(seed)
    return LineagePath(np.cumsum(rng.integers(1, 3, nodes)).astype(float), rng.normal(size=(nodes, n)))


# --- against the oracles --------------------------------------------------------------------------------------------


@given(seeds)
@settings(deadline=None, max_examples=20)
def test_clouds_measure_as_the_oracles_say(seed: int) -> None:
    x, y = cells(seed)
    of_classes, slow = class_spread(x, y, 5), oracles.class_spread(x, y.tolist(), 5)
    assert set(np.flatnonzero(~np.isnan(of_classes))) == set(slow) == {0, 1, 2}
    assert of_classes[[0, 1, 2]] == pytest.approx([slow[c] for c in range(3)], rel=1e-9)
    assert spread(of_classes) == pytest.approx(np.sqrt(np.mean([value**2 for value in slow.values()])))
    assert effective_rank(x) == pytest.approx(oracles.effective_rank(x), rel=1e-6)
    assert silhouette(x, y) == pytest.approx(oracles.silhouette(x, y.tolist()), rel=1e-9)


@given(seeds)
@settings(deadline=None, max_examples=30)
def test_maturity_is_that_of_the_nearest_point_of_the_path(seed: int) -> None:
    way = path(seed)
    points = 1.5 * np.random.default_rng(seed).normal(size=(20, 3))
    slow = [oracles.maturity_on_path(point, way.nodes, way.stages.tolist()) for point in points]
    assert way.maturity(points) == pytest.approx(slow)
    assert way.maturity(way.nodes) == pytest.approx(way.stages)


@given(seeds)
@settings(deadline=None, max_examples=20)
def test_paths_are_measured_as_the_oracles_say(seed: int) -> None:
    way = path(seed)
    steps = [oracles.euclidean(a, b) for a, b in zip(way.nodes[:-1], way.nodes[1:], strict=True)]
    assert way.straightness == pytest.approx(oracles.euclidean(way.nodes[0], way.nodes[-1]) / sum(steps))
    values, vectors = np.linalg.eigh(np.cov(way.nodes.T))
    main = way.nodes @ vectors[:, np.argmax(values)]
    assert way.order == pytest.approx(abs(oracles.kendall(way.stages.tolist(), main.tolist())))


def test_alignment_finds_the_best_of_all_symmetries() -> None:
    a, b = np.random.default_rng(2).normal(size=(2, 6, 2))
    both = np.stack([a, b])
    assert stability(both, "none").raw == pytest.approx(oracles.deviation(a, b))
    shift = a.mean(0) - b.mean(0)
    turned = []
    for angle, mirror in product(np.linspace(0, 2 * np.pi, 2001), (1, -1)):
        rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) * [1, mirror]
        turned.append(oracles.deviation(a - a.mean(0), (b - b.mean(0)) @ rotation))
    assert stability(both, "isometries").aligned == pytest.approx(min(turned), rel=1e-5)
    c, d = np.random.default_rng(3).normal(size=(2, 6, 3))
    swapped = [
        oracles.deviation(c - c.mean(0), ((d - d.mean(0)) * signs)[:, list(axes)])
        for axes in permutations(range(3))
        for signs in product((1, -1), repeat=3)
    ]
    assert stability(np.stack([c, d]), "axes").aligned == pytest.approx(min(swapped), rel=1e-9)
    assert stability(both, "none").aligned == stability(both, "none").raw != oracles.deviation(a, b + shift)


def test_distances_of_classes_are_compared_pair_by_pair() -> None:
    runs = np.random.default_rng(0).normal(size=(3, 5, 4))
    for symmetry, metric in (("isometries", "euclidean"), ("none", "euclidean"), ("axes", "cityblock")):
        found = stability(runs, symmetry)  # type: ignore[arg-type]
        tables = [pdist(run, metric) for run in runs]  # type: ignore[call-overload]
        pairs = [(tables[0], tables[1]), (tables[0], tables[2]), (tables[1], tables[2])]
        assert found.distance_correlation == pytest.approx(np.mean([np.corrcoef(a, b)[0, 1] for a, b in pairs]))
        apart = [np.abs(a - b).mean() / ((a.mean() + b.mean()) / 2) for a, b in pairs]
        assert found.distance_deviation == pytest.approx(np.mean(apart))


def test_class_means_are_means() -> None:
    x, y = cells(0)
    means = class_means(x.astype(np.float32), y, 5)
    for label in range(4):
        assert means[label] == pytest.approx(oracles.mean_of(list(x[y == label])), rel=1e-6)
    assert np.isnan(means[4]).all()
    assert squared_distances(x, means)[:, 4].tolist() == [np.inf] * len(x)
    assert squared_distances(x, means)[3, 1] == pytest.approx(oracles.euclidean(x[3], means[1]) ** 2)


# --- what must not matter, and what must ----------------------------------------------------------------------------


@given(seeds, scales)
@settings(deadline=None, max_examples=25)
def test_scale_rotation_and_place_do_not_matter(seed: int, scale: float) -> None:
    x, y = cells(seed)
    other = moved(x, seed, scale)
    assert class_spread(other, y, 5) == pytest.approx(class_spread(x, y, 5), rel=1e-6, nan_ok=True)
    assert effective_rank(other) == pytest.approx(effective_rank(x), rel=1e-6)
    assert silhouette(other, y) == pytest.approx(silhouette(x, y), abs=1e-6)
    way = path(seed)
    together = moved(np.vstack([way.nodes, x]), seed, scale)
    turned = LineagePath(way.stages, together[:4])
    assert turned.straightness == pytest.approx(way.straightness) and turned.order == pytest.approx(way.order)
    assert turned.maturity(together[4:]) == pytest.approx(way.maturity(x), rel=1e-5, abs=1e-5)


@given(seeds)
@settings(deadline=None, max_examples=15)
def test_only_the_symmetries_of_the_loss_are_forgiven(seed: int) -> None:
    rng = np.random.default_rng(seed)
    means = rng.normal(size=(7, 4))
    turned = moved(means, seed, 1.0)
    swapped = means[:, rng.permutation(4)] * rng.choice([-1, 1], 4) + rng.normal(size=4)
    assert stability(np.stack([means, means]), "none").raw == 0
    for symmetry in ("isometries", "axes"):
        found = stability(np.stack([means, swapped]), symmetry)  # type: ignore[arg-type]
        assert found.aligned == pytest.approx(0, abs=1e-6) and found.distance_deviation == pytest.approx(0, abs=1e-9)
        assert found.distance_correlation == pytest.approx(1)
    found = stability(np.stack([means, turned]), "isometries")
    assert found.aligned == pytest.approx(0, abs=1e-6) and found.distance_deviation == pytest.approx(0, abs=1e-9)
    assert stability(np.stack([means, turned]), "axes").aligned > 1e-3
    assert stability(np.stack([means, means + 1]), "none").aligned == pytest.approx(
        np.sqrt(7 * 4 / np.sum((means - means.mean(0)) ** 2))
    )


@given(seeds, scales)
@settings(deadline=None, max_examples=15)
def test_stability_has_no_scale_and_no_order_of_runs(seed: int, scale: float) -> None:
    runs = np.random.default_rng(seed).normal(size=(3, 5, 3))
    for symmetry in ("none", "isometries", "axes"):
        found = stability(runs, symmetry)  # type: ignore[arg-type]
        again = stability(scale * runs[[2, 0, 1]][:, ::-1], symmetry)  # type: ignore[arg-type]
        assert vars(again) == pytest.approx(vars(found))
        assert found.aligned <= found.raw + 1e-12


@pytest.mark.parametrize("k", [1, 3, 8])
def test_effective_rank_of_a_cloud_equally_wide_in_k_directions_is_k(k: int) -> None:
    rng = np.random.default_rng(k)
    cloud = np.pad(rng.normal(size=(4000, k)), ((0, 0), (0, 12 - k))).astype(np.float32)
    turned = moved(cloud, k, 1.0)
    assert effective_rank(turned) == pytest.approx(k, rel=0.01)
    stretched = effective_rank(turned + 50 * turned[:, :1] * turned[0])
    assert stretched is not None and (k == 1 or stretched < k - 0.5)


def test_a_tight_class_and_a_wide_one_differ_at_the_same_place() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 500)
    x = np.array([[0.0, 0], [10, 0]])[labels] + np.array([0.1, 1.0])[labels][:, None] * rng.normal(size=(1000, 2))
    assert class_spread(x, labels, 2) == pytest.approx([0.1 * np.sqrt(2) / 10, np.sqrt(2) / 10], rel=0.05)


def test_paths_on_a_line_and_in_zigzag() -> None:
    stages = np.arange(4.0)
    line = LineagePath(stages, np.outer(stages, [1, 2.0]))
    assert line.straightness == pytest.approx(1) and line.order == pytest.approx(1)
    zigzag = LineagePath(stages, np.array([[0, 0], [0, 1], [1, 0], [1, 1.0]]))
    assert zigzag.straightness == pytest.approx(np.sqrt(2) / (2 + np.sqrt(2)))
    swapped = LineagePath(stages, line.nodes[[1, 0, 2, 3]])
    assert swapped.order == pytest.approx(2 / 3), "one pair of six is discordant: 5/6 - 1/6"
    assert line.maturity(np.array([[-1.0, -2], [1.5, 3], [9, 18]])) == pytest.approx([-1, 1.5, 9])


def test_lineages_with_several_stages_have_paths_and_equal_stages_share_a_node() -> None:
    means = np.array([[0.0, 0], [3, 0], [1, 0], [1, 2], [np.nan, np.nan], [5, 5], [6, 6]])
    lineages = ["root", "a", "a", "a", "a", "b", "c"]
    paths = lineage_paths(means, lineages, [0, 3, 1, 1, 2, 1, 1])
    assert list(paths) == ["a"]
    assert paths["a"].stages.tolist() == [1, 3] and paths["a"].nodes.tolist() == [[1, 1], [3, 0]]


def test_a_large_set_is_sampled_through_its_classes() -> None:
    x, y = cells(0, count=600)
    whole, part = silhouette(x, y), silhouette(x, y, most=200)
    assert whole is not None and part == pytest.approx(whole, abs=0.1) and part != whole
    order = np.random.default_rng(0).permutation(600)
    assert silhouette(x[order], y[order]) == pytest.approx(whole)


# --- degenerate input -----------------------------------------------------------------------------------------------


def test_what_is_undefined_has_no_value() -> None:
    x, y = np.random.default_rng(0).normal(size=(6, 3)), np.array([0, 0, 0, 0, 0, 1])
    assert np.isnan(class_spread(x, y, 3)).all() and spread(class_spread(x, y, 3)) is None
    assert silhouette(x, np.zeros(6, dtype=np.int64)) is None and silhouette(x, np.arange(6)) is None
    point = np.full((6, 3), 0.1, dtype=np.float32)
    assert effective_rank(point) is None and effective_rank(0 * point) is None
    assert np.isnan(class_spread(point, np.array([0, 0, 0, 1, 1, 1]), 2)).all()
    two, same = LineagePath(np.arange(2.0), x[:2]), LineagePath(np.arange(3.0), np.full((3, 2), 0.1))
    assert two.straightness is two.order is same.straightness is same.order is None
    assert same.maturity(x[:, :2]).tolist() == [0] * 6, "nothing to tell stages apart by: the youngest"


def test_two_classes_have_one_distance_which_correlates_with_nothing() -> None:
    found = stability(np.random.default_rng(0).normal(size=(2, 2, 3)), "isometries")
    assert found.distance_correlation is None and found.distance_deviation > 0


def test_classes_that_a_run_lacks_are_left_out_of_all() -> None:
    runs = np.random.default_rng(0).normal(size=(3, 6, 2))
    lacking = runs.copy()
    lacking[1, 4] = np.nan
    assert stability(lacking, "axes") == stability(np.delete(runs, 4, axis=1), "axes")


@pytest.mark.parametrize(
    ("means", "symmetry", "message"),
    [
        (np.ones((1, 4, 2)), "none", r"shape \(1, 4, 2\).*at least 2 runs"),
        (np.ones((4, 2)), "none", r"shape \(4, 2\)"),
        (np.full((2, 3, 2), np.nan), "none", r"0 class\(es\) have a mean in every run"),
        (np.stack([np.eye(3), np.ones((3, 3))]), "axes", "the same position in run 1"),
        (np.stack([np.eye(3), 2 * np.eye(3)]), "rotations", "no symmetry 'rotations'; there are none, isometries"),
    ],
)
def test_means_that_cannot_be_compared_are_refused(means: np.ndarray, symmetry: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        stability(means, symmetry)  # type: ignore[arg-type]
