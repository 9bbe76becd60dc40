"""The shape of an embedding, Euclidean throughout: spread, rank, the paths of the lineages, stability over repeats.

All take an embedding (N, n) with labels (N,) in 0..C-1 or class means (C, n). A value per class or cell is NaN where it
is undefined (a class without cells), as in `guided.metrics.f1_per_class`; a single value is then None.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
from scipy.linalg import svdvals
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist, pdist
from scipy.stats import kendalltau
from sklearn.metrics import silhouette_score

Symmetry = Literal["none", "isometries", "axes"]

ROUNDING = 1e-12  # what arithmetic leaves between equal positions, in shares of their coordinates, is no distance


def class_means(embedding: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Mean embedding (C, n) float64 of each class; a row of NaN for a class without cells."""
    sums = np.eye(classes)[:, labels] @ embedding.astype(np.float64)
    counts = np.bincount(labels, minlength=classes)
    return np.where(counts[:, None] > 0, sums / np.maximum(counts, 1)[:, None], np.nan)


def class_spread(embedding: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Spread (C,) of each class in units of the distance between classes, whatever the scale of the embedding.

    Root mean square distance of the cells to their class mean (divided by cells - 1, so that a rare class does not
    look tight), over the root mean square distance between the means of two classes. Roots of the traces that
    Fukunaga's class separability compares (Introduction to Statistical Pattern Recognition, 2nd ed., ch. 10). NaN for
    a class with fewer than two cells, which does not count as a mean either, and for all where there are fewer than
    two such classes or their means coincide.
    """
    counts = np.bincount(labels, minlength=classes)
    known = counts > 1
    means = class_means(embedding, labels, classes)
    between = np.sqrt(np.mean(pdist(means[known]) ** 2)) if known.sum() > 1 else 0.0
    if between <= ROUNDING * np.abs(embedding).max():
        return np.full(classes, np.nan)
    squares = np.bincount(labels, np.sum((embedding - means[labels]) ** 2, axis=1), minlength=classes)
    return np.where(known, np.sqrt(squares / np.maximum(counts - 1, 1)) / between, np.nan)


def spread(of_classes: np.ndarray) -> float | None:
    """Root mean square (over classes, rare ones like frequent ones) of `class_spread`; None where all are undefined."""
    known = of_classes[~np.isnan(of_classes)]
    return float(np.sqrt(np.mean(known**2))) if len(known) else None


def effective_rank(embedding: np.ndarray) -> float | None:
    """Effective rank (Roy & Vetterli 2007): exp of the entropy of the singular values, normalised to sum 1.

    Of the embedding around its mean, so that it counts the directions in which cells differ: k for a cloud that is
    equally wide in k directions. None where all cells share one embedding.
    """
    centred = embedding - embedding.mean(0, dtype=np.float64)
    values = svdvals(centred)
    if values[0] <= ROUNDING * np.sqrt(embedding.size) * np.abs(embedding).max():
        return None
    share = values[values > 0] / values.sum()
    return float(np.exp(-np.sum(share * np.log(share))))


def silhouette(embedding: np.ndarray, labels: np.ndarray, most: int = 2000) -> float | None:
    """Mean silhouette (Rousseeuw 1987) by scikit-learn; a cell that is alone in its class counts 0.

    Of more than `most` cells, evenly spaced ones in the order of their classes are taken, which keeps the shares of
    the classes. None where all are of one class or no two are.
    """
    rows = np.argsort(labels, kind="stable")
    if len(rows) > most:
        rows = rows[np.linspace(0, len(rows) - 1, most).astype(np.int64)]
    if not 1 < len(np.unique(labels[rows])) < len(rows):
        return None
    return float(silhouette_score(embedding[rows], labels[rows]))


@dataclass(frozen=True)
class LineagePath:
    """The class means of one lineage in the order of their stages; classes of equal stage share a node, their mean."""

    stages: np.ndarray  # (S,) ascending, S >= 2
    nodes: np.ndarray  # (S, n)

    @property
    def _is_point(self) -> bool:
        return float(np.ptp(self.nodes, axis=0).max()) <= ROUNDING * float(np.abs(self.nodes).max())

    @property
    def straightness(self) -> float | None:
        """Distance between the ends over the length of the path (a movement path's straightness index, Batschelet
        1981): 1 on a line, less for a zig-zag. None for two nodes, which are always straight, and for no length."""
        if len(self.nodes) < 3 or self._is_point:
            return None
        length = np.linalg.norm(np.diff(self.nodes, axis=0), axis=1).sum()
        return float(np.linalg.norm(self.nodes[-1] - self.nodes[0]) / length)

    @property
    def order(self) -> float | None:
        """|Kendall's tau| between the stages and the nodes' places along their main direction (first principal axis,
        whose sign means nothing): 1 where the stages come in order. None for two nodes or nodes that coincide."""
        if len(self.nodes) < 3 or self._is_point:
            return None
        centred = self.nodes - self.nodes.mean(0)
        places = centred @ np.linalg.svd(centred, full_matrices=False)[2][0]
        return abs(float(kendalltau(self.stages, places).statistic))

    def maturity(self, embedding: np.ndarray) -> np.ndarray:
        """Maturity (N,) in stages read off an embedding (N, n): the stage at the nearest point of the path.

        Linear in the stage between two nodes. The first and the last piece go on as straight lines, so that cells
        beyond the youngest and the oldest mean are told apart too.
        """
        pieces = len(self.nodes) - 1
        distances, found = np.empty((pieces, len(embedding))), np.empty((pieces, len(embedding)))
        for piece in range(pieces):
            start, along = self.nodes[piece], self.nodes[piece + 1] - self.nodes[piece]
            square = along @ along
            t = (embedding - start) @ along / (square if square > 0 else 1.0)
            t = np.clip(t, None if piece == 0 else 0.0, None if piece == pieces - 1 else 1.0)
            distances[piece] = np.linalg.norm(embedding - start - t[:, None] * along, axis=1)
            found[piece] = self.stages[piece] + t * (self.stages[piece + 1] - self.stages[piece])
        return np.take_along_axis(found, distances.argmin(0)[None], 0)[0]


def lineage_paths(means: np.ndarray, lineages: Sequence[str], stages: Sequence[float]) -> dict[str, LineagePath]:
    """The path of every lineage with at least two stages among class means (C, n); a row of NaN is left out."""
    lineage, stage = np.array(lineages), np.array(stages, dtype=np.float64)
    known = ~np.isnan(means).any(1)
    paths = {}
    for name in dict.fromkeys(lineages):
        own = known & (lineage == name)
        steps = np.unique(stage[own])
        if len(steps) > 1:
            paths[name] = LineagePath(steps, np.array([means[own & (stage == step)].mean(0) for step in steps]))
    return paths


@dataclass(frozen=True)
class Stability:
    """How far class positions repeat, averaged over all pairs of runs.

    A deviation is in shares of the size of the layout: 0 is a repeat; unrelated layouts around one centre come near √2
    before they are aligned.
    """

    raw: float  # deviation of the positions as they are
    aligned: float  # deviation that the symmetries of the loss leave
    distance_correlation: float | None  # Pearson, between the distances of all pairs of classes; None for two classes
    distance_deviation: float  # mean absolute difference of those distances over their mean


def stability(means: np.ndarray, symmetry: Symmetry) -> Stability:
    """Stability of class positions over R runs: `means` (R, C, n), shorter embeddings padded with zeros.

    `symmetry` names what the loss cannot see and so may change from run to run at no cost:
    - `none`: nothing. Guide losses name the positions themselves; `aligned` is `raw`.
    - `isometries`: translation, rotation and reflection, removed by orthogonal Procrustes (Schönemann 1966). Losses of
      Euclidean distances: triplet, and the distance loss with L2.
    - `axes`: translation, permutation of the axes and their signs, removed by the best assignment of axes (Kuhn 1955).
      The distance loss as in eq. 2: L1 distances do not survive a rotation. Distances are L1 then.
    A head after the embedding (cross-entropy) follows any linear map: take `isometries`, and read the distances with
    care. The deviation of two runs is the root mean square distance of their positions over the root mean square
    distance of a position to the centre of its run. Classes that a run lacks (NaN) are left out. Raises ValueError for
    fewer than two runs, fewer than two classes in all of them, and classes that all coincide in a run.
    """
    if means.ndim != 3 or len(means) < 2:
        raise ValueError(f"class means of shape {means.shape}; stability needs (runs, classes, n) and at least 2 runs")
    means = means[:, ~np.isnan(means).any((0, 2))]
    if means.shape[1] < 2:
        raise ValueError(f"{means.shape[1]} class(es) have a mean in every run; stability needs at least 2")
    centred = means - means.mean(1, keepdims=True)
    sizes = np.sum(centred**2, axis=(1, 2))
    if not sizes.all():
        raise ValueError(f"every class has the same position in run {int(np.argmin(sizes))}")
    between = [pdist(run, "cityblock" if symmetry == "axes" else "euclidean") for run in means]
    raw, aligned, correlations, deviations = [], [], [], []
    for a, b in combinations(range(len(means)), 2):
        size = (sizes[a] + sizes[b]) / 2
        raw.append(np.sqrt(np.sum((means[a] - means[b]) ** 2) / size))
        overlap = _overlap(centred[a], centred[b], symmetry)
        aligned.append(raw[-1] if overlap is None else np.sqrt(max(0.0, sizes[a] + sizes[b] - 2 * overlap) / size))
        deviations.append(np.mean(np.abs(between[a] - between[b])) / np.mean((between[a] + between[b]) / 2))
        if min(np.ptp(between[a]), np.ptp(between[b])) > 0:
            correlations.append(np.corrcoef(between[a], between[b])[0, 1])
    correlation = float(np.mean(correlations)) if len(correlations) == len(raw) else None
    return Stability(float(np.mean(raw)), float(np.mean(aligned)), correlation, float(np.mean(deviations)))


def _overlap(a: np.ndarray, b: np.ndarray, symmetry: Symmetry) -> float | None:
    """Largest Σ a·Q(b) over the symmetries Q, of centred layouts (C, n): ‖a - Q(b)‖² is ‖a‖² + ‖b‖² less twice it."""
    if symmetry == "none":
        return None
    cross = a.T @ b
    if symmetry == "isometries":
        return float(svdvals(cross).sum())
    if symmetry == "axes":
        gain = np.abs(cross)
        return float(gain[linear_sum_assignment(gain, maximize=True)].sum())
    raise ValueError(f"there is no symmetry {symmetry!r}; there are none, isometries and axes")


def squared_distances(embedding: np.ndarray, anchors: np.ndarray) -> np.ndarray:
    """Squared distance (N, C) of an embedding (N, n) to an anchor (C, n) of each class; inf for an anchor of NaN."""
    known = ~np.isnan(anchors).any(1)
    squared = np.full((len(embedding), len(anchors)), np.inf)
    squared[:, known] = cdist(embedding, anchors[known], "sqeuclidean")
    return squared
