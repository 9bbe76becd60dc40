"""Test embeddings in two dimensions, and what is drawn over them: ellipses and the regions of the classes."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from scipy.linalg import orthogonal_procrustes
from scipy.stats import chi2
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors

from guided.geometry import class_means

MOST = 1500  # cells of a fold that are laid out; of more a seeded sample is taken
NEIGHBOURS, EPOCHS = 15, 200
FEWEST = 8  # cells that UMAP can lay out


@dataclass(frozen=True)
class View:
    """An embedding in the plane."""

    points: np.ndarray  # (N, 2)
    guide: np.ndarray | None  # (C, 2) the guide's points in the same frame; a row of NaN: none. None: nothing to fit
    how: str  # what a reader must know of the frame


def view(embedding: np.ndarray, predicted: np.ndarray, guide: np.ndarray, *, named: bool, guide2d: bool) -> View:
    """A 2-D view of an embedding (N, n) whose cells were given the classes `predicted` (N,), beside a `guide` (C, 2).

    Two components are shown as they are, those of guide2D truncated to the first two ("embeddings can simply be
    truncated", section 5). Longer ones go through UMAP started at the guide, as section 5 asks. Of 3.2 it keeps the
    start and leaves the labels out: a supervised layout of test cells would show classes apart that the network does
    not tell apart, so a cell starts at the guide's point of its *predicted* class and only its neighbours move it.
    `named` says that the loss names the positions of two components, which then stand in the guide's own frame; other
    views are brought there by the similarity (shift, rotation, reflection, scale) that fits their class means best,
    which changes no shape. Cells that all coincide are shown as they are.
    """
    points = embedding[:, :2].astype(np.float64)
    if embedding.shape[1] == 1:
        points = np.column_stack([points[:, 0], np.zeros(len(points))])
    if len(points) == 0 or float(np.ptp(embedding, axis=0).max()) == 0:
        return View(points, None, "all cells share one point")
    if guide2d or named:
        return View(points, guide, "both components" if embedding.shape[1] == 2 else "first two components")
    if embedding.shape[1] <= 2:
        how = "both components"
    elif len(embedding) < FEWEST:
        how = "first two components, too few cells for UMAP"
    else:
        points, how = _umap(embedding, _start(predicted, guide)), "UMAP started at the guide"
    fitted = fit_similarity(class_means(points, predicted, len(guide)), guide)
    if fitted is None:
        return View(points, None, how)
    scale, rotation, shift = fitted
    return View(scale * points @ rotation + shift, guide, f"{how}, fitted to the guide")


def _start(predicted: np.ndarray, guide: np.ndarray) -> np.ndarray:
    """The guide's point of each cell's predicted class, shaken a little: UMAP cannot part cells that start as one."""
    size = float(np.ptp(guide, axis=0).max()) or 1.0
    return guide[predicted] + np.random.default_rng(0).normal(0, 0.02 * size, (len(predicted), 2))


def _umap(embedding: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Unsupervised UMAP (N, 2) from a start (N, 2), seeded; exact neighbours."""
    import umap  # compiles for seconds: only where a long embedding is drawn

    count = min(NEIGHBOURS, len(embedding) - 1)
    # Standardised: UMAP's steps are not free of scale, and a class of its own scale must not be drowned.
    scaled = (embedding - embedding.mean(0)) / (float(embedding.std()) or 1.0)
    distances, indices = NearestNeighbors(n_neighbors=count).fit(scaled).kneighbors(scaled)
    spans = np.ptp(start, axis=0)
    if spans.min() == 0:  # UMAP divides by the span of each axis
        start = start + np.random.default_rng(1).normal(0, 1e-3 * (float(spans.max()) or 1.0), start.shape)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*precomputed_knn.*")
        model = umap.UMAP(
            n_neighbors=count,
            n_epochs=EPOCHS,
            init=start.astype(np.float32),
            precomputed_knn=(indices, distances.astype(np.float32)),
            random_state=0,
            n_jobs=1,
        ).fit(scaled.astype(np.float32))
    return np.asarray(model.embedding_, dtype=np.float64)


def fit_similarity(points: np.ndarray, target: np.ndarray) -> tuple[float, np.ndarray, np.ndarray] | None:
    """(scale, rotation (2, 2), shift (2,)) with which scale · points @ rotation + shift is nearest to `target` (C, 2)
    in the least squares (orthogonal Procrustes, Schönemann 1966, with scale). Rows of NaN in either are left out. None
    where fewer than two classes are left or one side has no extent."""
    known = ~(np.isnan(points).any(1) | np.isnan(target).any(1))
    if known.sum() < 2:
        return None
    a, b = points[known], target[known]
    a_mean, b_mean = a.mean(0), b.mean(0)
    size = float(np.sum((a - a_mean) ** 2))
    if size == 0 or float(np.sum((b - b_mean) ** 2)) == 0:
        return None
    rotation, overlap = orthogonal_procrustes(a - a_mean, b - b_mean)
    scale = float(overlap) / size
    if scale <= 0:
        return None
    return scale, rotation, b_mean - scale * a_mean @ rotation


@dataclass(frozen=True)
class Ellipse:
    """The region of a normal distribution that holds a share of its mass."""

    centre: np.ndarray  # (2,)
    width: float
    height: float
    angle: float  # degrees, of the width


def ellipse(points: np.ndarray, share: float = 0.9) -> Ellipse | None:
    """The ellipse of the normal distribution fitted to points (N, 2) that holds `share` of it. None for fewer than
    three points and for points on one line or in one place, which have no ellipse."""
    if len(points) < 3:
        return None
    values, vectors = np.linalg.eigh(np.cov(points.T))
    if values[0] <= 1e-9 * values[1] or values[1] <= 0:
        return None
    minor, major = 2 * np.sqrt(values * chi2.ppf(share, 2))
    angle = float(np.degrees(np.arctan2(vectors[1, 1], vectors[0, 1])))
    return Ellipse(points.mean(0), float(major), float(minor), angle)


def regions(points: np.ndarray, predicted: np.ndarray, box: tuple[float, float, float, float], side: int) -> np.ndarray:
    """What the classifier makes of the plane, (side, side) class numbers, row 0 at the bottom: at each place of `box`
    (left, right, bottom, top) the class that most of the nearest 15 cells (nearer ones counting more) are *predicted*
    to be. For an embedding of two components that is close to the classifier's own decision; for a longer one there is
    no such thing in the plane, and it is the picture's summary."""
    left, right, bottom, top = box
    x, y = np.meshgrid(np.linspace(left, right, side), np.linspace(bottom, top, side))
    model = KNeighborsClassifier(min(15, len(points)), weights="distance").fit(points, predicted)
    return np.asarray(model.predict(np.column_stack([x.ravel(), y.ravel()]))).reshape(side, side)
