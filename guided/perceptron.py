"""A multi-layer perceptron: the problem of scikit-learn's MLPClassifier, solved in a sixth of its steps.

    min over W, b of  mean cross-entropy + ½ · PENALTY / min(BATCH, N) · Σ W²

with ReLU between the layers, softmax at the end and no penalty on b. scikit-learn takes 200 passes of Adam at a rate of
0.001 and stops without having converged. Here the cells are rotated onto their principal axes, where one rate for each
weight fits (and a long embedding of a small trunk has few of them), and the rate rises to RATE and falls to zero along
a cosine ("one cycle", Smith and Topin 2018, "Super-convergence"): the objective ends as low or lower (NOTES.md).
"""

from __future__ import annotations

from itertools import pairwise
from math import cos, pi, sqrt

import numpy as np

from guided.linear_svm import span

PENALTY = 1e-4  # scikit-learn's alpha; it divides by the cells of a batch
BATCH = 200  # cells of a step, at most
PASSES = 34
LEAST_STEPS = 400  # few cells make few steps a pass
RATE = 0.015  # the highest
RISE = 0.25  # share of the steps until it is reached
BETAS = (0.9, 0.99)
EPSILON = 1e-8


class Perceptron:
    """Networks of one training set, each with its own hidden layers."""

    def __init__(self, z: np.ndarray, y: np.ndarray) -> None:
        """z (N, n) standardised cells, y (N,) their classes, at least two of them."""
        self.labels, numbered = np.unique(y, return_inverse=True)
        self._turn = span(z)
        self._cells = np.ascontiguousarray(z @ self._turn, dtype=np.float32)
        self._numbered = numbered

    def solve(self, hidden: tuple[int, ...], seed: int) -> tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...]]:
        """Weights (n, h1), (h1, h2), …, (h, K) and offsets (h1,), …, (K,), float32, for the K classes of `labels`.

        The start is scikit-learn's: uniform within ±sqrt(6 / (rows + columns)). Depends on nothing but cells, hidden
        layers and seed.
        """
        from guided.compiled.layers import descend  # numba takes a second to import: only where an MLP is fitted

        rng = np.random.default_rng(seed)
        count, length = len(self._cells), len(self._turn)
        widths = [self._cells.shape[1], *hidden, len(self.labels)]
        weights = [self._turn.T @ _uniform(rng, (length, hidden[0]), length + hidden[0])]
        weights += [_uniform(rng, shape, sum(shape)) for shape in pairwise(widths[1:])]
        offsets = [_uniform(rng, (width,), above + width) for above, width in pairwise([length, *widths[1:]])]
        values = np.concatenate([part.ravel() for part in (*weights, *offsets)]).astype(np.float32)
        batches = -(-count // BATCH)
        passes = max(PASSES, -(-LEAST_STEPS // batches))
        steps = np.arange(1, passes * batches + 1)
        bias, bias_of_square = (1 - beta**steps for beta in BETAS)
        rates = np.array([_rate((step - 0.5) / len(steps)) for step in steps]) * np.sqrt(bias_of_square) / bias
        descend(
            self._cells,
            self._numbered,
            np.stack([rng.permutation(count) for _ in range(passes)]),
            np.linspace(0, count, batches + 1).astype(int),
            np.array(widths),
            values,
            rates.astype(np.float32),
            np.float32(PENALTY / min(BATCH, count)),
            *map(np.float32, (*BETAS, EPSILON)),
        )
        ends = np.cumsum([part.size for part in (*weights, *offsets)])[:-1]
        found = np.split(values, ends)
        first, *others = (part.reshape(shape) for part, shape in zip(found, pairwise(widths), strict=False))
        unturned = (self._turn @ first).astype(np.float32)
        return (unturned, *others), tuple(found[len(weights) :])


def _uniform(rng: np.random.Generator, shape: tuple[int, ...], fan: int) -> np.ndarray:
    """Uniform within ±sqrt(6 / fan), as Glorot and Bengio (2010) start layers."""
    bound = sqrt(6 / fan)
    return rng.uniform(-bound, bound, shape)


def _rate(share: float) -> float:
    """Rate of a step, given the share of all steps that are done in its middle."""
    if share < RISE:
        return RATE * share / RISE
    return RATE * 0.5 * (1 + cos(pi * (share - RISE) / (1 - RISE)))
