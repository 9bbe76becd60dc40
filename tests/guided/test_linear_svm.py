"""The linear SVM against libsvm and against its own bounds, written as loops."""

from __future__ import annotations

import warnings

import numpy as np
import oracles
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from sklearn.svm import SVC

from guided import linear_svm
from guided.linear_svm import GAP, LinearSVM


def cells(seed: int, sizes: tuple[int, ...], length: int, apart: float, lattice: bool) -> tuple[np.ndarray, np.ndarray]:
    """Clouds of the given sizes, `apart` between their means; on a lattice cells coincide and margins tie."""
    rng = np.random.default_rng(seed)
    y = np.repeat(np.arange(len(sizes)), sizes)
    x = rng.normal(size=(len(sizes), length))[y] * apart + rng.normal(size=(len(y), length))
    x = np.round(x) if lattice else x
    order = rng.permutation(len(y))
    return x[order].astype(np.float32), y[order]


def objectives(z: np.ndarray, y: np.ndarray, weights: np.ndarray, intercepts: np.ndarray, c: float) -> list[float]:
    """The hinge objective of each pair of classes, in the order (0, 1), (0, 2), …, (1, 2), …"""
    labels, found, pair = sorted(set(y.tolist())), [], 0
    for i, first in enumerate(labels):
        for second in labels[i + 1 :]:
            rows = [row for row in range(len(y)) if y[row] in (first, second)]
            signs = [1.0 if y[row] == first else -1.0 for row in rows]
            found.append(oracles.hinge_objective(z[rows].tolist(), signs, weights[pair], intercepts[pair], c))
            pair += 1
    return found


def theirs(z: np.ndarray, y: np.ndarray, c: float) -> tuple[np.ndarray, np.ndarray]:
    """Weights and intercepts of libsvm, solved far below its default tolerance."""
    model = SVC(kernel="linear", C=c, tol=1e-4, cache_size=50).fit(z.astype(np.float64), y)
    # libsvm's margin of two classes alone is positive for the second one.
    sign = -1.0 if len(model.classes_) == 2 else 1.0
    return sign * model.coef_, sign * model.intercept_


@settings(max_examples=30, deadline=None, phases=[Phase.generate])  # shrinking would take minutes
@given(
    st.integers(0, 10_000),
    st.lists(st.integers(1, 25), min_size=2, max_size=4),
    st.integers(1, 12),
    st.sampled_from([0.0, 0.5, 3.0, 30.0]),
    st.booleans(),
    st.sampled_from([1e-3, 0.1, 1.0, 30.0]),
)
def test_the_objective_is_libsvms(
    seed: int, sizes: list[int], length: int, apart: float, lattice: bool, c: float
) -> None:
    """Overlapping and separable, one cell against many, more components than cells, cells that coincide."""
    z, y = cells(seed, tuple(sizes), length, apart, lattice)
    weights, intercepts, gaps = LinearSVM(z, y).solve(c)
    assert (gaps <= GAP).all()
    ours, wanted = (np.array(objectives(z, y, *found, c)) for found in ((weights, intercepts), theirs(z, y, c)))
    # libsvm stops above the least objective, and its dual, which holds exactly, lies below it.
    assert (ours <= wanted * (1 + 2 * GAP)).all()
    assert (ours >= np.array(bounds(z, y, c)) * (1 - 1e-6)).all()


def bounds(z: np.ndarray, y: np.ndarray, c: float) -> list[float]:
    """The dual objective Σ a - ½ |Σ a y x|² of libsvm's solution of each pair: no objective is less."""
    labels, found = sorted(set(y.tolist())), []
    for i, first in enumerate(labels):
        for second in labels[i + 1 :]:
            rows = np.isin(y, (first, second))
            model = SVC(kernel="linear", C=c).fit(z[rows].astype(np.float64), y[rows])
            weights = model.dual_coef_[0] @ z[rows][model.support_].astype(np.float64)
            found.append(float(np.abs(model.dual_coef_).sum() - 0.5 * weights @ weights))
    return found


def test_weights_and_intercepts_are_libsvms() -> None:
    z, y = cells(3, (40, 30, 20), 6, 1.0, lattice=False)
    weights, intercepts, _ = LinearSVM(z, y).solve(1.0)
    wanted, wanted_intercepts = theirs(z, y, 1.0)
    np.testing.assert_allclose(weights, wanted, atol=3e-3)
    np.testing.assert_allclose(intercepts, wanted_intercepts, atol=3e-3)


def test_two_cells_by_hand() -> None:
    """Cells at -1 and 3 are parted by w = 1/2, b = -1/2 (margin 2 on both sides), for which both weigh 1/8 in the
    dual; C = 1/10 is less, so w = 4/10, and any b from -0.6 to -0.2 is as good: the middle is taken."""
    z, y = np.array([[3.0], [-1.0]]), np.array([0, 1])
    weights, intercepts, _ = LinearSVM(z, y).solve(1.0)
    np.testing.assert_allclose([weights[0, 0], intercepts[0]], [0.5, -0.5], atol=1e-3)
    weights, intercepts, _ = LinearSVM(z, y).solve(0.1)
    # The hinges 1 - (1.2 + b) and 1 + (-0.4 + b) bend at b = -0.2 and b = -0.6.
    np.testing.assert_allclose([weights[0, 0], intercepts[0]], [0.4, -0.4], atol=1e-3)


def test_a_warm_start_changes_nothing_but_the_way() -> None:
    z, y = cells(5, (60, 50, 4), 8, 0.8, lattice=False)
    along = LinearSVM(z, y)
    for c in (0.01, 10.0, 0.1):
        warm, cold = along.solve(c), LinearSVM(z, y).solve(c)
        one, other = (objectives(z, y, *found[:2], c) for found in (warm, cold))
        np.testing.assert_allclose(one, other, rtol=2 * GAP)
    again = LinearSVM(z, y)
    for c in (0.01, 10.0, 0.1):
        repeated = again.solve(c)
    for one, other in zip(warm, repeated, strict=True):
        np.testing.assert_array_equal(one, other)


def test_only_the_span_of_the_cells_is_worked_in() -> None:
    """Three directions behind forty components: the same machine as in the three."""
    z, y = cells(1, (50, 40, 30), 3, 1.0, lattice=False)
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(40, 3)))[0]
    long = (z @ turn.T).astype(np.float32)
    machine = LinearSVM(long, y)
    assert machine.rank == 3
    short, found = LinearSVM(z, y).solve(1.0), machine.solve(1.0)
    np.testing.assert_allclose(long @ found[0].T + found[1], z @ short[0].T + short[1], atol=5e-3)


def test_cells_without_any_difference_are_left_to_the_intercept() -> None:
    z, y = np.zeros((7, 4), dtype=np.float32), np.array([0, 0, 0, 0, 0, 1, 1])
    weights, intercepts, _ = LinearSVM(z, y).solve(1.0)
    np.testing.assert_array_equal(weights, np.zeros((1, 4)))
    assert intercepts[0] == pytest.approx(1.0)  # the five are content, the two cost 2 each


def test_a_pair_that_is_not_solved_is_libsvms(monkeypatch: pytest.MonkeyPatch) -> None:
    z, y = cells(2, (9, 12, 7), 4, 0.5, lattice=False)
    monkeypatch.setattr(linear_svm, "_solve_pairs", lambda *_: (np.full(3, 0.02), np.zeros(3)))
    weights, intercepts, gaps = LinearSVM(z, y).solve(3)
    assert np.isnan(gaps).all()
    wanted = theirs(z, y, 3.0)
    np.testing.assert_allclose(objectives(z, y, weights, intercepts, 3.0), objectives(z, y, *wanted, 3.0), rtol=1e-3)


def test_thousands_of_components_of_very_different_size_are_solved_without_a_warning() -> None:
    rng = np.random.default_rng(0)
    z = (rng.normal(size=(60, 300)) * np.geomspace(1e-6, 30, 300)).astype(np.float32)
    y = rng.integers(0, 3, 60)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for c in (0.01, 10.0):
            assert (LinearSVM(z, y).solve(c)[2] <= GAP).all()
