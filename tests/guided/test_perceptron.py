"""The multi-layer perceptron against scikit-learn's and against the objective written as loops."""

from __future__ import annotations

import warnings
from itertools import pairwise

import numpy as np
import oracles
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier

from guided.compiled.layers import slopes
from guided.perceptron import PENALTY, Perceptron


def cells(count: int, classes: int, length: int, apart: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Standardised clouds `apart` between their means, each of two lumps: no plane parts them."""
    rng = np.random.default_rng(seed)
    y = np.arange(count) % classes
    lump = rng.integers(0, 2, count)
    x = apart * rng.normal(size=(classes, 2, length))[y, lump] + rng.normal(size=(count, length))
    return ((x - x.mean(0)) / x.std(0)).astype(np.float32), y


def objective(z: np.ndarray, y: np.ndarray, weights: tuple[np.ndarray, ...], offsets: tuple[np.ndarray, ...]) -> float:
    return oracles.perceptron_objective(
        z.tolist(), y.tolist(), list(weights), list(offsets), PENALTY / min(200, len(z))
    )


@pytest.mark.parametrize("hidden", [(5,), (4, 3)])
def test_the_slopes_are_those_of_the_objective(hidden: tuple[int, ...]) -> None:
    """Against central differences of the cross-entropy, through both layers and all kinds of offsets."""
    z, y = cells(12, 3, 4, 1.0, 0)
    widths = [4, *hidden, 3]
    shapes = list(pairwise(widths))
    rng = np.random.default_rng(1)
    values = rng.normal(0, 0.7, sum(rows * columns + columns for rows, columns in shapes))
    slope, layers, errors = np.zeros_like(values), np.empty(12 * sum(widths)), np.empty((2, 12 * max(widths)))
    slopes(z.astype(float), y, np.array(widths), values, slope, layers, errors)

    def at(moved: np.ndarray) -> float:
        sizes = [rows * columns for rows, columns in shapes]
        parts = np.split(moved, np.cumsum([*sizes, *widths[1:]])[:-1])
        weights = [part.reshape(shape) for part, shape in zip(parts, shapes, strict=False)]
        return oracles.perceptron_objective(z.tolist(), y.tolist(), weights, parts[len(shapes) :], 0.0)

    steps = 1e-5 * np.eye(len(values))
    wanted = [(at(values + step) - at(values - step)) / 2e-5 for step in steps]
    np.testing.assert_allclose(slope, wanted, atol=1e-7)


@pytest.mark.parametrize(
    ("count", "classes", "length", "apart", "hidden"),
    [
        (90, 3, 5, 1.0, (4,)),
        (60, 2, 3, 1.0, (3, 3)),
        (500, 4, 6, 0.7, (16,)),
        (700, 6, 30, 0.4, (24,)),
        (420, 3, 8, 5.0, (8, 8)),
    ],
)
def test_the_objective_ends_no_higher_than_scikit_learns(
    count: int, classes: int, length: int, apart: float, hidden: tuple[int, ...]
) -> None:
    """Few cells and several batches, overlapping and apart, two classes, one and two layers."""
    z, y = cells(count, classes, length, apart, count)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = MLPClassifier(hidden, random_state=0, max_iter=200).fit(z, y)
    # Of two classes scikit-learn has one output, the log odds of the second.
    theirs = [*model.coefs_], [*model.intercepts_]
    if classes == 2:
        for parts in theirs:
            parts[-1] = np.stack([np.zeros_like(parts[-1][..., 0]), parts[-1][..., 0]], -1)
    assert (
        objective(z, y, *Perceptron(z, y).solve(hidden, 0))
        <= objective(z, y, tuple(theirs[0]), tuple(theirs[1])) + 1e-3
    )


def test_it_depends_on_its_arguments_alone() -> None:
    z, y = cells(250, 3, 4, 1.0, 3)
    states = np.random.get_state()[1].copy(), torch.get_rng_state()  # type: ignore[union-attr]
    one, again, other = (Perceptron(z, y).solve((6,), seed) for seed in (0, 0, 1))
    for kind in (0, 1):
        for a, b, c in zip(one[kind], again[kind], other[kind], strict=True):
            np.testing.assert_array_equal(a, b)
            assert np.abs(a - c).max() > 0 and a.dtype == np.float32
    np.testing.assert_array_equal(np.random.get_state()[1], states[0])
    assert torch.equal(torch.get_rng_state(), states[1])


@pytest.mark.parametrize("count", [2, 3, 201, 399])
def test_any_number_of_cells_makes_batches(count: int) -> None:
    z, y = cells(count, 2, 3, 5.0, 1)
    weights, offsets = Perceptron(z, y).solve((8,), 0)
    assert [part.shape for part in (*weights, *offsets)] == [(3, 8), (8, 2), (8,), (2,)]
    assert ((np.maximum(z @ weights[0] + offsets[0], 0) @ weights[1] + offsets[1]).argmax(1) == y).mean() > 0.95
