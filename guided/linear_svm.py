"""A linear support vector machine, one against one: libsvm's problem, solved in the space of the weights.

    min over w, b of  ½ |w|² + C Σ max(0, 1 - y (w·x + b))

for every pair of classes, b without a penalty. libsvm descends in the dual, two cells a step: millions of steps at
large C. Here the dual is solved by the proximal point method (Yan and Li 2020, "An efficient augmented Lagrangian
method for support vector machine"): each of its problems is piecewise quadratic in the r + 1 weights, and a few Newton
steps solve it, whatever C is. A linear kernel sees only the span of the cells, so they are rotated once into it: a
long embedding of a small trunk has a rank far below its length.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.svm import SVC

GAP = 1e-6  # relative duality gap at which a pair is solved; libsvm's default leaves 2e-5 to 2e-4
MOST_STEPS = 2000  # Newton steps of a pair; some 30 are usual
MARGIN = 0.3  # first width, in units of the margin, over which a cell's dual weight goes from 0 to C
NARROWEST = 1e-4  # the last one
STEEPER = 3.0  # growth of the weight per unit of margin with each proximal step
# Bounds of that weight times the mean square of the cells, first and last: where classes lie so far apart that C does
# not matter, steeper problems would take Newton from one kink to the next.
STIFF, STIFFEST = 1e2, 1e4


class LinearSVM:
    """The pairs of one training set, solved for one C after another; each C starts where the last one ended."""

    def __init__(self, z: np.ndarray, y: np.ndarray) -> None:
        """z (N, n) standardised cells, y (N,) their classes, at least two of them."""
        self.labels, y = np.unique(y, return_inverse=True)
        order = np.argsort(y, kind="stable")
        self._turn = span(z)
        cells = z[order].astype(np.float64) @ self._turn
        self._cells = np.column_stack([cells, np.ones(len(cells))])  # (N, r + 1)
        self._starts = np.searchsorted(y[order], np.arange(len(self.labels) + 1))
        self.first, self.second = np.triu_indices(len(self.labels), 1)
        sizes = np.diff(self._starts)
        self._ends = np.r_[0, np.cumsum(sizes[self.first] + sizes[self.second])]
        self._dual = np.zeros(self._ends[-1])
        self._weights = np.zeros((len(self.first), self._cells.shape[1]))
        self._c = 1.0

    @property
    def rank(self) -> int:
        """Dimensions of the span of the cells."""
        return self._turn.shape[1]

    def solve(self, c: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Weights (P, n) and intercepts (P,) of the P pairs of classes, positive for the first of the two, and the
        relative duality gap (P,) that is left.

        Where several intercepts are optimal, the middle of them, as in libsvm, which also solves a pair that is not
        solved to GAP in MOST_STEPS (none in 1,500 random problems); its gap is then nan.
        """
        self._dual *= c / self._c
        self._c = float(c)
        try:
            gaps, intercepts = _solve_pairs(
                self._cells, self._starts, self.first, self.second, self._ends, self._c, self._dual, self._weights
            )
        except np.linalg.LinAlgError:  # a step without a solution in floats: libsvm takes every pair
            gaps, intercepts = np.full((2, len(self.first)), np.nan)
        weights = self._weights[:, :-1].copy()
        for pair in np.flatnonzero(~(gaps <= GAP)):
            sides = [self._cells[slice(*self._starts[[i, i + 1]]), :-1] for i in (self.first[pair], self.second[pair])]
            # Of two classes libsvm's margin is positive for the higher one: the first.
            signs = np.repeat([1, -1], [len(side) for side in sides])
            model = SVC(kernel="linear", C=c).fit(np.vstack(sides), signs)
            weights[pair], intercepts[pair], gaps[pair] = model.coef_[0], model.intercept_[0], np.nan
        return weights @ self._turn.T, intercepts, gaps


def span(z: np.ndarray) -> np.ndarray:
    """Orthonormal basis (n, r) of the span of z (N, n), at least one column; what is below rounding is left out."""
    values, vectors = np.linalg.eigh(z.T.astype(np.float64) @ z)
    kept = values > len(z) * np.finfo(z.dtype).eps ** 2 * values[-1]
    kept[-1] = True
    basis: np.ndarray = vectors[:, kept]
    return basis


def _solve_pairs(*problem: Any) -> tuple[np.ndarray, np.ndarray]:
    from guided.compiled.pairs import solve_pairs  # numba takes a second to import: only where an SVM is fitted

    gaps, intercepts = solve_pairs(*problem)
    return gaps, intercepts
