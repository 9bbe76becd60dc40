"""Embeddings in the plane: the guide's frame, and what is drawn over them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.views import ellipse, fit_similarity, regions, view

GUIDE = np.array([[0.0, 0.0], [4.0, 1.0], [-2.0, 3.0], [1.0, -4.0]])
LABELS = np.arange(80) % 4


def cells(length: int, noise: float = 0.2) -> np.ndarray:
    """80 cells around the guide's points, in `length` components."""
    points = np.pad(GUIDE[LABELS], ((0, 0), (0, length - 2)))
    return (points + np.random.default_rng(0).normal(0, noise, points.shape)).astype(np.float32)


@given(st.floats(0.1, 10), st.floats(-3, 3), st.booleans(), st.floats(-5, 5))
def test_a_similarity_is_found_again(scale: float, angle: float, mirrored: bool, shift: float) -> None:
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    turn = turn @ np.diag([1.0, -1.0 if mirrored else 1.0])
    moved = scale * GUIDE @ turn + shift
    found = fit_similarity(moved, GUIDE)
    assert found is not None
    assert found[0] * moved @ found[1] + found[2] == pytest.approx(GUIDE, abs=1e-8)


def test_no_similarity_without_two_places() -> None:
    lacking = np.where(np.arange(4)[:, None] > 0, np.nan, GUIDE)
    assert fit_similarity(lacking, GUIDE) is None
    assert fit_similarity(np.ones((4, 2)), GUIDE) is None and fit_similarity(GUIDE, np.ones((4, 2))) is None


def test_named_positions_are_shown_as_they_are() -> None:
    embedding = cells(6)
    shown = view(embedding, LABELS, GUIDE, named=False, guide2d=True)
    assert (shown.points == embedding[:, :2].astype(np.float64)).all() and shown.how == "first two components"
    assert shown.guide is GUIDE
    two = view(cells(2), LABELS, GUIDE, named=True, guide2d=False)
    assert (two.points == cells(2).astype(np.float64)).all() and two.how == "both components"


def test_a_turned_embedding_is_brought_into_the_guides_frame() -> None:
    turned = cells(2) @ np.array([[0.0, -3.0], [3.0, 0.0]], dtype=np.float32) + 7
    shown = view(turned, LABELS, GUIDE, named=False, guide2d=False)
    assert shown.how == "both components, fitted to the guide"
    assert np.abs(shown.points - cells(2)).max() < 0.2


def test_a_long_embedding_is_laid_out_from_the_guide() -> None:
    # Classes on four orthogonal axes: nothing but the start can put them where the guide has them.
    embedding = 5 * np.eye(4)[LABELS].repeat(2, axis=1) + np.random.default_rng(1).normal(0, 0.3, (80, 8))
    shown = view(embedding.astype(np.float32), LABELS, GUIDE, named=False, guide2d=False)
    assert shown.how == "UMAP started at the guide, fitted to the guide"
    nearest = np.linalg.norm(shown.points[:, None] - GUIDE, axis=2).argmin(1)
    assert np.mean(nearest == LABELS) > 0.95
    again = view(embedding.astype(np.float32), LABELS, GUIDE, named=False, guide2d=False)
    assert (again.points == shown.points).all()


def test_the_layout_does_not_hide_mistakes() -> None:
    """Cells that lie with another class stay with it, whatever class they are given."""
    embedding = 5 * np.eye(4)[LABELS].repeat(2, axis=1) + np.random.default_rng(1).normal(0, 0.3, (80, 8))
    predicted = LABELS.copy()
    predicted[:4] = (LABELS[:4] + 1) % 4
    shown = view(embedding.astype(np.float32), predicted, GUIDE, named=False, guide2d=False)
    centres = np.stack([shown.points[8:][LABELS[8:] == number].mean(0) for number in range(4)])
    assert (np.linalg.norm(shown.points[:4, None] - centres, axis=2).argmin(1) == LABELS[:4]).all()


@pytest.mark.parametrize("length", [1, 2, 9])
def test_degenerate_embeddings_have_a_view(length: int) -> None:
    collapsed = view(np.ones((30, length)), np.zeros(30, np.int64), GUIDE, named=False, guide2d=False)
    assert collapsed.points.shape == (30, 2) and collapsed.guide is None and "one point" in collapsed.how
    few = view(np.eye(5, length), np.arange(5) % 4, GUIDE, named=False, guide2d=False)
    assert few.points.shape == (5, 2) and np.isfinite(few.points).all()
    one = view(cells(max(2, length)), np.zeros(80, np.int64), GUIDE, named=False, guide2d=False)
    assert np.isfinite(one.points).all() and one.guide is None  # one class fits no frame


def test_an_ellipse_holds_its_share() -> None:
    rng = np.random.default_rng(3)
    points = rng.normal(size=(4000, 2)) @ np.array([[3.0, 1.0], [0.0, 0.5]]) + [5, -2]
    found = ellipse(points, 0.9)
    assert found is not None
    angle = np.radians(found.angle)
    turned = (points - found.centre) @ np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    inside = (turned[:, 0] / (found.width / 2)) ** 2 + (turned[:, 1] / (found.height / 2)) ** 2 <= 1
    assert np.mean(inside) == pytest.approx(0.9, abs=0.02) and found.width > found.height
    assert ellipse(points[:2]) is None and ellipse(np.ones((9, 2))) is None
    assert ellipse(np.arange(10.0)[:, None] * [1.0, 2.0]) is None


def test_regions_are_those_of_the_nearest_cells() -> None:
    ground = regions(cells(2, 0.05).astype(np.float64), LABELS, (-5, 5, -5, 5), 101)
    for number, (x, y) in enumerate(GUIDE):
        assert ground[round(10 * (y + 5)), round(10 * (x + 5))] == number
