"""The refreshed guide: its parts against umap-learn, its traps against the naive call."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from guided import inverse_umap
from guided.config import GuideUMAP
from guided.guide import SHIPPED, read_guide
from guided.inverse_umap import (
    agreement,
    into_hull,
    inverse,
    jittered_start,
    low_pass,
    nearest,
    optimise_layout,
    pad_guide,
    query_frame,
    refresh_guide,
    stretched,
    supervised_graph,
)

GUIDE = read_guide(SHIPPED / "marrow.yaml").scaled(5.0).points
CLASSES = len(GUIDE)


def cells(count: int = 900, length: int = 8, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """An embedding (N, n) half way through a training: classes around the guide, other components weak."""
    rng = np.random.default_rng(seed)
    labels = np.sort(rng.integers(0, CLASSES, count))
    means = np.hstack([GUIDE, rng.normal(0, 0.6, (CLASSES, length - 2))])
    noise = rng.normal(size=(count, length)) * np.r_[1.0, 1.0, np.full(length - 2, 0.3)]
    return (means[labels] + noise).astype(np.float32), labels


@pytest.fixture(autouse=True)
def torch_threads() -> Iterator[None]:
    """Where a test calls umap-learn itself, numba changes the number of threads torch works with."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


# --- padding and the filter -----------------------------------------------------------------------------------------


@given(st.floats(0, 1), st.integers(1, 30), st.integers(2, 6))
def test_the_filter_approaches_a_fixed_target_by_alpha_a_step(alpha: float, steps: int, length: int) -> None:
    rng = np.random.default_rng(0)
    target = rng.normal(size=(4, length))
    points = rng.normal(size=(4, 2))
    began = np.abs(pad_guide(points, length) - target)
    for _ in range(steps):
        points = low_pass(points, target, alpha)
    np.testing.assert_allclose(np.abs(points - target), alpha**steps * began, atol=1e-9)


def test_the_filter_at_its_ends() -> None:
    previous, new = np.ones((3, 2)), np.full((3, 4), 5.0)
    np.testing.assert_array_equal(low_pass(previous, new, 1.0), [[1, 1, 0, 0]] * 3)
    np.testing.assert_array_equal(low_pass(previous, new, 0.0), new)


def test_padding_never_cuts() -> None:
    with pytest.raises(ValueError, match="guide of 5 components does not fit an embedding of length 3"):
        pad_guide(np.zeros((2, 5)), 3)


# --- the parts against umap-learn -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "length"), [(50, 2), (300, 7), (40, 300)])
def test_neighbours_are_those_of_brute_force(count: int, length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inverse_umap, "BLOCK", 5000)  # several blocks
    x = np.random.default_rng(count).normal(size=(count, length)).astype(np.float32)
    indices, distances = nearest(x, 9)
    full = cdist(x, x)
    np.testing.assert_array_equal(indices, np.argsort(full, axis=1)[:, :9])
    np.testing.assert_allclose(distances, np.sort(full, axis=1)[:, :9], rtol=1e-5, atol=1e-6)


def test_a_cell_is_its_own_first_neighbour_even_among_duplicates() -> None:
    x = np.zeros((12, 3), dtype=np.float32)
    x[6:] = 1
    indices, distances = nearest(x, 5)
    np.testing.assert_array_equal(indices[:, 0], np.arange(12))
    np.testing.assert_array_equal(distances, 0)


@pytest.mark.parametrize("duplicates", [False, True])
def test_the_graph_is_umap_learns(duplicates: bool) -> None:
    from umap.umap_ import discrete_metric_simplicial_set_intersection, fuzzy_simplicial_set

    x, labels = cells(400)
    if duplicates:
        x[:40] = x[0]
    indices, distances = nearest(x, 15)
    graph, rho, sigma = supervised_graph(indices, distances, labels, 0.5)
    theirs, sigmas, rhos = fuzzy_simplicial_set(
        x, 15, np.random.RandomState(0), "euclidean", knn_indices=indices, knn_dists=distances
    )
    theirs = discrete_metric_simplicial_set_intersection(theirs, labels, far_dist=5.0)
    np.testing.assert_allclose(rho, rhos, rtol=1e-5)
    np.testing.assert_allclose(sigma, sigmas, rtol=1e-4)
    np.testing.assert_allclose(graph.toarray(), theirs.toarray(), atol=1e-4)


def test_with_all_weight_on_the_labels_no_edge_crosses_classes() -> None:
    x, labels = cells(300)
    edges = supervised_graph(*nearest(x, 15), labels, 1.0)[0].tocoo()
    assert edges.nnz > 0
    np.testing.assert_array_equal(labels[edges.row], labels[edges.col])


def test_the_fast_layout_moves_classes_as_far_as_umap_learn() -> None:
    """Distance of class centres between the engines is no larger than between two seeds of umap-learn (times 1.3),
    and classes are as tight. Both drift far from the start, so a layout that stays put would fail."""
    x, labels = cells(1200, 16)
    knn = nearest(x, 15)
    loss = GuideUMAP()
    start = jittered_start(GUIDE, labels, np.random.default_rng(0))
    frame = stretched(start, start)

    def centres(layout: np.ndarray) -> np.ndarray:
        return np.stack([layout[labels == label].mean(0) for label in range(CLASSES)])

    def tightness(layout: np.ndarray) -> float:
        return float(np.linalg.norm(layout - centres(layout)[labels], axis=1).mean())

    def apart(one: np.ndarray, other: np.ndarray) -> float:
        return float(np.linalg.norm(centres(one) - centres(other), axis=1).mean())

    theirs = [inverse_umap._reference_layout(x, labels, start, knn, loss, seed)[0] for seed in range(3)]
    graph = supervised_graph(*knn, labels, loss.target_weight)[0]
    ours = [optimise_layout(frame, graph, loss, np.random.default_rng(seed)) for seed in range(3)]
    between_seeds = np.mean([apart(theirs[0], theirs[1]), apart(theirs[0], theirs[2]), apart(theirs[1], theirs[2])])
    between_engines = np.mean([apart(own, other) for own in ours for other in theirs])
    assert between_engines < 1.3 * between_seeds
    assert apart(theirs[0], frame) > between_seeds
    assert apart(ours[0], frame) > 0.7 * np.mean([apart(other, frame) for other in theirs])
    assert tightness(ours[0]) == pytest.approx(tightness(theirs[0]), rel=0.5)


@pytest.mark.parametrize("frame", ["similarity", "centroid"])
def test_the_fast_inverse_lands_where_umap_learns_does(frame: str) -> None:
    """On umap-learn's own layout: far nearer to umap-learn's answer than classes are to each other."""
    x, labels = cells(1200, 8)
    x = (x - x.mean(0)) / x.std()
    knn = nearest(x, 15)
    loss = GuideUMAP()
    start = jittered_start(GUIDE, labels, np.random.default_rng(0))
    layout, model = inverse_umap._reference_layout(x, labels, start, knn, loss, 0)
    _, rho, sigma = supervised_graph(*knn, labels, loss.target_weight)
    asked, _ = into_hull(query_frame(GUIDE, layout, start, labels, frame), layout)  # type: ignore[arg-type]
    theirs = model.inverse_transform(asked.astype(np.float32))
    ours = inverse(asked, layout, x, rho, sigma, 8, loss, np.random.default_rng(0))
    means = np.stack([x[labels == label].mean(0) for label in range(CLASSES)])
    between = np.median(cdist(means, means)[np.triu_indices(CLASSES, 1)])
    assert np.median(np.linalg.norm(ours - theirs, axis=1)) < 0.15 * between


def test_the_reference_engine_answers_like_the_fast_one() -> None:
    x, labels = cells(700)
    threads = torch.get_num_threads()
    fast = refresh_guide(x, labels, GUIDE, GuideUMAP(frame="centroid"), seed=1)
    reference = refresh_guide(x, labels, GUIDE, GuideUMAP(frame="centroid", engine="reference"), seed=1)
    assert torch.get_num_threads() == threads  # numba's start would have changed it, and with it every later sum
    assert reference.target.shape == (CLASSES, 8)
    assert min(fast.agreement, reference.agreement) >= 0.8
    between = np.median(cdist(reference.target, reference.target)[np.triu_indices(CLASSES, 1)])
    assert np.median(np.linalg.norm(fast.target - reference.target, axis=1)) < 0.25 * between


# --- traps, each with the naive call beside it ----------------------------------------------------------------------


def test_trap_the_raw_guide_lies_in_another_frame() -> None:
    x, labels = cells()
    right = {
        frame: np.mean([refresh_guide(x, labels, GUIDE, GuideUMAP(frame=frame), seed=s).agreement for s in range(3)])
        for frame in ("raw", "rescaled", "similarity", "affine", "centroid")
    }
    assert right["raw"] < 0.4
    assert right["rescaled"] < 0.6
    assert right["centroid"] > 0.8
    assert min(right["similarity"], right["affine"]) > right["raw"]


def test_trap_a_query_outside_the_hull_gets_an_unrelated_triangle() -> None:
    from scipy.spatial import Delaunay

    layout = np.random.default_rng(0).uniform(0, 1, (200, 2))
    asked = np.array([[0.5, 0.5], [3.0, 0.5], [-2.0, -2.0]])
    naive = Delaunay(layout).find_simplex(asked)
    assert naive[1] == naive[2] == -1  # both would index the last triangle
    moved, outside = into_hull(asked, layout)
    assert outside == 2
    np.testing.assert_array_equal(moved[0], asked[0])
    assert (Delaunay(layout).find_simplex(moved) >= 0).all()
    closest = layout[cdist(asked[1:], layout).argmin(1)]
    np.testing.assert_allclose(moved[1:], closest, atol=2e-3)


def test_points_outside_are_counted_and_recorded() -> None:
    x, labels = cells()
    assert refresh_guide(x, labels, GUIDE * 20, GuideUMAP(frame="raw"), seed=0).outside_hull > CLASSES / 2
    assert refresh_guide(x, labels, GUIDE, GuideUMAP(frame="centroid"), seed=0).outside_hull == 0


@pytest.mark.parametrize("factor", [1e-2, 1e2])
def test_trap_small_embeddings_drown(factor: float) -> None:
    x, labels = cells()
    plain = refresh_guide(x, labels, GUIDE, GuideUMAP(frame="centroid"), seed=3)
    scaled = refresh_guide((x * factor + 7).astype(np.float32), labels, GUIDE, GuideUMAP(frame="centroid"), seed=3)
    assert abs(scaled.agreement - plain.agreement) <= 1 / CLASSES
    np.testing.assert_allclose(
        np.median(np.abs((scaled.target - 7) / factor - plain.target)), 0, atol=0.1 * float(x.std())
    )


def test_trap_cells_of_a_class_must_not_share_one_start() -> None:
    labels = np.repeat(np.arange(CLASSES), 20)
    naive = GUIDE[labels]
    assert len(np.unique(naive, axis=0)) == CLASSES
    start = jittered_start(GUIDE, labels, np.random.default_rng(0))
    assert len(np.unique(start, axis=0)) == len(labels)
    assert len(np.unique(start[:, 0])) == len(labels)  # equal x would share a random stream
    assert np.abs(start - naive).max() < 0.01 * np.ptp(GUIDE)


def test_trap_constant_components_and_unopened_ones_are_harmless() -> None:
    x, labels = cells(length=8)
    x[:, 5] = 2.5
    x[:, 6] *= 1e-6  # has only just opened
    refreshed = refresh_guide(x, labels, GUIDE, GuideUMAP(frame="centroid"), seed=0)
    assert np.isfinite(refreshed.target).all()
    np.testing.assert_allclose(refreshed.target[:, 5], 2.5, atol=1e-4)
    assert np.abs(refreshed.target[:, 6] - x[:, 6].mean()).max() < 0.01 * x.std()
    assert refreshed.agreement > 0.8


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda x, y, g: (np.where(np.arange(8) == 3, np.nan, x), y, g), "not finite"),
        (lambda x, y, g: (np.ones_like(x), y, g), "same embedding"),
        (lambda x, y, g: (x[:3], y[:3], g), "too small for UMAP"),
        (lambda x, y, g: (x, np.where(y == 0, -1, y), g), "unlabelled"),
        (lambda x, y, g: (x, y + 1, g), "labels reach"),
        (lambda x, y, g: (x, y, g * [1.0, 0.0]), "differ in both coordinates"),
        (lambda x, y, g: (x, y[:-1], g), "labels for"),
    ],
)
def test_trap_what_umap_would_swallow_is_refused(spoil, message: str) -> None:  # type: ignore[no-untyped-def]
    x, labels, guide = spoil(*cells(), GUIDE)
    with pytest.raises(ValueError, match=message):
        refresh_guide(x, labels, guide, GuideUMAP(), seed=0)


def test_a_class_without_cells_still_gets_a_target() -> None:
    x, labels = cells()
    x, labels = x[labels != 4], labels[labels != 4]
    for frame in ("similarity", "centroid"):
        refreshed = refresh_guide(x, labels, GUIDE, GuideUMAP(frame=frame), seed=0)  # type: ignore[arg-type]
        assert np.isfinite(refreshed.target[4]).all()


def test_few_cells_and_one_class_are_enough() -> None:
    x, labels = cells(12)
    assert np.isfinite(refresh_guide(x, labels, GUIDE, GuideUMAP(), seed=0).target).all()
    assert np.isfinite(refresh_guide(x, np.zeros_like(labels), GUIDE, GuideUMAP(), seed=0).target).all()


def test_a_seed_repeats_and_another_does_not() -> None:
    x, labels = cells()
    one, again, other = (refresh_guide(x, labels, GUIDE, GuideUMAP(), seed=seed).target for seed in (5, 5, 6))
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - other).max() > 0


def test_nothing_warns(recwarn: pytest.WarningsRecorder) -> None:
    x, labels = cells(300)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        refresh_guide(x, labels, GUIDE, GuideUMAP(), seed=0)


# --- frames ---------------------------------------------------------------------------------------------------------


def test_similarity_and_affine_recover_what_moved_the_layout() -> None:
    labels = np.repeat(np.arange(CLASSES), 10)
    start = jittered_start(GUIDE, labels, np.random.default_rng(0))
    turn = np.array([[0.6, -0.8], [0.8, 0.6]])
    turned = 3 * start @ turn.T + [4, -1]
    np.testing.assert_allclose(query_frame(GUIDE, turned, start, labels, "similarity"), 3 * GUIDE @ turn.T + [4, -1])
    sheared = start @ np.array([[1.0, 0.5], [0.0, 2.0]]) + 1
    np.testing.assert_allclose(
        query_frame(GUIDE, sheared, start, labels, "affine"), GUIDE @ np.array([[1.0, 0.5], [0.0, 2.0]]) + 1
    )
    mirrored = start * [-1, 1]
    assert np.abs(query_frame(GUIDE, mirrored, start, labels, "similarity") - GUIDE * [-1, 1]).max() > 0.5


def test_centroid_asks_at_the_class_means() -> None:
    labels = np.repeat(np.arange(CLASSES), 10)
    layout = np.random.default_rng(1).normal(size=(len(labels), 2))
    start = jittered_start(GUIDE, labels, np.random.default_rng(0))
    wanted = layout.reshape(CLASSES, 10, 2).mean(1)
    np.testing.assert_allclose(query_frame(GUIDE, layout, start, labels, "centroid"), wanted)


def test_agreement_counts_the_classes_that_are_there() -> None:
    embedding = np.array([[0.0, 0], [1, 1], [5, 5]], dtype=np.float32)
    labels = np.array([0, 0, 2])
    target = np.array([[0.4, 0.4], [9, 9], [0, 1]])
    assert agreement(target, embedding, labels) == 0.5
