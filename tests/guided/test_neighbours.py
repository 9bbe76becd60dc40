"""Nearest cells against sorted distances in double precision."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import cdist, pdist

from guided import neighbours
from guided.neighbours import nearest, nearest_among


def sorted_by_distance(cells: np.ndarray, asked: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    full = cdist(asked.astype(np.float64), cells.astype(np.float64))
    order = np.argsort(full, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(full, order, 1)


def clusters(length: int, width: float) -> np.ndarray:
    """400 cells in ten clusters far out: the squares of the lengths swallow the distances within."""
    rng = np.random.default_rng(length)
    means = rng.normal(0, 30, (10, length))
    return (means[rng.integers(10, size=400)] + rng.normal(0, width, (400, length))).astype(np.float32)


@pytest.fixture
def asked_again(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each second look was for."""
    rows: list[int] = []
    doubly = neighbours._doubly

    def counted(
        cells: np.ndarray, asked: np.ndarray, most: int, own: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        rows.append(len(asked))
        return doubly(cells, asked, most, own)

    monkeypatch.setattr(neighbours, "_doubly", counted)
    return rows


@pytest.mark.parametrize(("count", "length"), [(50, 2), (300, 7), (40, 300), (900, 5)])
def test_they_are_those_of_brute_force(count: int, length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "TILE", 250)  # of the 900 four, the last a narrow one
    monkeypatch.setattr(neighbours, "BLOCK", 5000)
    x = np.random.default_rng(count).normal(size=(count, length)).astype(np.float32)
    order, full = sorted_by_distance(x, x, 9)
    for indices, distances in (nearest(x, 9), nearest_among(x, x, 9)):
        np.testing.assert_array_equal(indices, order)
        np.testing.assert_allclose(distances, full, rtol=1e-5, atol=1e-6)
        assert distances.dtype == np.float32


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_on_a_lattice_the_earlier_of_equally_near_cells_comes_first(m: int, n: int, k: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    cells, asked = (rng.integers(0, 30, (count, 3)).astype(np.float64) for count in (n, m))
    indices, distances = nearest_among(cells, asked, min(k, n))
    order, full = sorted_by_distance(cells, asked, min(k, n))
    np.testing.assert_array_equal(distances, full)
    if n <= k + neighbours.SPARE:  # else which of several at the end of the list are in it is left to rounding
        np.testing.assert_array_equal(indices, order)


@pytest.mark.parametrize("length", [3, 64])
def test_they_are_exact_where_the_product_rounds_their_distances_away(length: int) -> None:
    x = clusters(length, 1e-3)
    order, full = sorted_by_distance(x, x, 9)
    rounded = np.argsort(np.square(x).sum(1) - 2 * x @ x.T, axis=1)[:, :9]
    assert (np.sort(rounded) != np.sort(order)).any(1).mean() > 0.5, "single precision goes wrong here"
    indices, distances = nearest(x, 9)
    np.testing.assert_allclose(distances, full, rtol=1e-5)
    np.testing.assert_array_equal(np.sort(indices), np.sort(order))
    double = x.astype(np.float64)
    indices, distances = nearest_among(double, double[:50] + 1e-4, 9)
    order, full = sorted_by_distance(double, double[:50] + 1e-4, 9)
    np.testing.assert_array_equal(indices, order)
    np.testing.assert_allclose(distances, full, rtol=1e-12)


def test_few_rows_are_looked_for_twice_where_cells_are_spread(asked_again: list[int]) -> None:
    nearest(clusters(64, 3.0), 9)
    assert sum(asked_again) < 20
    nearest(clusters(64, 1e-3), 9)
    assert sum(asked_again) > 350


def test_one_cell_far_out_casts_no_doubt_on_the_others(asked_again: list[int]) -> None:
    x = clusters(64, 3.0)
    x[7] *= 300
    order, full = sorted_by_distance(x, x, 9)
    indices, distances = nearest(x[::-1], 9)  # whatever the memory looks like
    assert sum(asked_again) < 20
    np.testing.assert_allclose(distances[::-1], full, rtol=1e-5)
    np.testing.assert_array_equal(len(x) - 1 - indices[::-1], order)


def test_a_cell_is_its_own_first_neighbour_even_among_duplicates() -> None:
    x = np.zeros((12, 3), dtype=np.float32)
    x[6:] = 1
    indices, distances = nearest(x, 5)
    np.testing.assert_array_equal(indices[:, 0], np.arange(12))
    np.testing.assert_array_equal(distances, 0)


def spread_out(count: int, length: int, share: float) -> np.ndarray:
    """Cells of `length` components, of which 40 directions hold all but `share` of the variance."""
    rng = np.random.default_rng(length)
    sd = np.where(np.arange(length) < 40, 1.0, np.sqrt(share * 40 / (length - 40)))
    turn = np.linalg.qr(rng.normal(size=(length, length)))[0]
    x: np.ndarray = (rng.normal(size=(count, length)) * sd @ turn).astype(np.float32)
    return x


@pytest.mark.parametrize(("share", "rows"), [(0.0, (0, 0)), (0.005, (100, 2000)), (0.5, (0, 0))])
def test_an_outline_loses_no_neighbour(
    share: float, rows: tuple[int, int], asked_again: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbours, "SPARE", 1)  # so that the order in the outline is not enough
    x = spread_out(700, 600, share)
    outline = neighbours._outline(x)
    assert (outline is None) == (share > neighbours.LOST), "one that holds half of a cell is not worth its making"
    if outline is not None:
        assert outline.shape == (700, 150)
        assert (pdist(outline) <= pdist(x) * (1 + 1e-5)).all()
    indices, distances = nearest(x, 9)
    order, full = sorted_by_distance(x, x, 9)
    np.testing.assert_array_equal(indices, order)
    np.testing.assert_allclose(distances[:, 1:], full[:, 1:], rtol=1e-5)
    first, last = rows
    assert first <= sum(asked_again) <= last


def test_few_cells_have_no_outline() -> None:
    x = spread_out(100, 600, 0.0)
    assert neighbours._outline(x) is None
    np.testing.assert_array_equal(nearest(x, 5)[0], sorted_by_distance(x, x, 5)[0])


@pytest.mark.parametrize("width", [1e-3, 1e-5])
def test_tight_clusters_of_long_embeddings_are_looked_at_in_double_precision(
    width: float, asked_again: list[int]
) -> None:
    x = clusters(512, width)
    x = x[np.sort(np.unique(x, axis=0, return_index=True)[1])]  # rounding makes copies of some
    order, full = sorted_by_distance(x, x, 9)
    for search in (lambda: nearest(x, 9), lambda: nearest_among(x, x, 9)):
        indices, distances = search()
        np.testing.assert_allclose(distances[:, 1:], full[:, 1:], rtol=1e-4)
        if width == 1e-3:
            np.testing.assert_array_equal(indices, order)
    assert len(asked_again) == 3, "in the outline and then in the whole; among others in the whole at once"


def test_what_single_precision_cannot_hold_is_found_in_double(asked_again: list[int]) -> None:
    x = 1e25 * np.random.default_rng(0).normal(size=(60, 3))
    indices, distances = nearest_among(x, x[:7], 5)
    order, full = sorted_by_distance(x, x[:7], 5)
    np.testing.assert_array_equal(indices, order)
    np.testing.assert_allclose(distances, full, rtol=1e-12)
    assert asked_again == [7]


def test_nobody_is_asked() -> None:
    x = np.random.default_rng(0).normal(size=(60, 3))
    indices, distances = nearest_among(x, x[:0], 5)
    assert indices.shape == distances.shape == (0, 5)
