"""The guide in n dimensions (3.2): supervised UMAP of the training embedding, inverted at the guide, low-pass filtered.

    graph   exact neighbours -> fuzzy simplicial set -> intersection with the labels (supervised UMAP)
    layout  the graph drawn in 2-D, started with every cell at its class's point of the guide
    query   where the inverse is asked: UMAP moves away from the frame the guide was drawn in, so `frame` says how the
            guide is carried over
    inverse a point of the layout becomes a point of the embedding

Two engines do this. `reference` is umap-learn's own fit and inverse_transform; `fast`, the default, computes the same
graph and follows the same forces in numpy and compiled loops, in a fraction of the time. Where it
differs on purpose, the functions say so. Its targets are close to umap-learn's, not equal to them in distribution: the
two differ by more than seeds do, least in the frame `centroid` and most in `rescaled`. A claim about the paper's
guideUMAP is to be checked with `reference`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from scipy import optimize, sparse, spatial

from guided.config import Frame, GuideUMAP
from guided.neighbours import nearest

JITTER = 1e-3  # sd of the start's noise, as a share of the guide's extent
EDGE = 1e-5  # a point so near the hull, as a share of the layout's extent, is taken inwards: single precision is 1e-7
INWARDS = 1e-3  # how far, as a share of the way to the layout's centre
UMAP_EXTENT = 10.0  # umap-learn stretches every axis of its start to [0, 10]
NEGATIVES = 5  # umap-learn's negative samples per edge
CUT = 4.0  # umap-learn's bound on each component of a force
PUSH = 2.0  # longest push a cell takes in one epoch of the fast layout, in units of the stretched frame
SWEEPS = 8
INVERSE_STEPS = 80


@dataclass(frozen=True)
class Refresh:
    """A new guide in the dimensions of the embedding."""

    target: np.ndarray  # (C, n) float32
    outside_hull: int  # guide points that fell outside the layout and were moved to its nearest cell
    agreement: float  # share of the classes whose target, before the filter, lies nearest their own class mean


def pad_guide(guide: np.ndarray, length: int) -> np.ndarray:
    """Guide (C, m) with zeros behind, up to (C, length) (3.2: the start, and whenever the embedding has grown)."""
    if guide.shape[1] > length:
        raise ValueError(f"a guide of {guide.shape[1]} components does not fit an embedding of length {length}")
    return np.pad(guide, ((0, 0), (0, length - guide.shape[1])))


def low_pass(previous: np.ndarray, new: np.ndarray, alpha: float) -> np.ndarray:
    """Eq. 1: alpha * previous + (1 - alpha) * new, `previous` (C, m) zero-padded to the components of `new` (C, n).

    alpha = 1 never leaves `previous`, alpha = 0 has no memory; against a fixed `new` the distance shrinks by alpha
    a step.
    """
    return alpha * pad_guide(previous, new.shape[1]) + (1 - alpha) * new


def refresh_guide(
    embedding: np.ndarray, labels: np.ndarray, guide: np.ndarray, loss: GuideUMAP, *, seed: int
) -> Refresh:
    """The second term of eq. 1: UMAP⁻¹(e2D).

    embedding (N, n), labels (N,) in 0..C-1, guide (C, 2). A class without a cell is asked for like the others. Depends
    on nothing but its arguments. The target moves and scales with the embedding, and its rows follow a new order of
    the classes (exactly so in the fast engine; umap-learn's inverse of a point depends on the points beside it).
    At most `loss.inverse_neighbors` cells place a point; umap-learn, and so `reference`, takes as many as the
    embedding has components: a fifth of 4,914 cells at length 1024. Raises ValueError where UMAP would return nonsense
    without a word: values that are not finite, a collapsed embedding, labels outside the guide, fewer than four cells.
    """
    _check(embedding, labels, guide)
    # UMAP's steps have a fixed size in the units of the data: a small embedding would drown in them. One scale for all
    # components keeps the geometry, and leaves a component that has just opened and is nearly constant at that.
    centre = embedding.mean(0, dtype=np.float64)
    offsets = embedding - centre
    scale = float(np.sqrt(np.vdot(offsets, offsets) / offsets.size))
    # Cells that differ by the rounding of single precision would be blown up to a cloud.
    if scale <= 1e-7 * float(np.abs(centre).max()):
        raise ValueError("every cell has the same embedding; there is nothing UMAP could lay out")
    offsets /= scale
    x = offsets.astype(np.float32)
    rng = np.random.default_rng(seed)
    start = jittered_start(guide, labels, rng)
    knn = nearest(x, min(loss.n_neighbors, len(x) - 1))

    def asked_in(layout: np.ndarray) -> tuple[np.ndarray, int]:
        return into_hull(query_frame(guide, layout, start, labels, loss.frame), layout)

    if loss.engine == "reference":
        with _torch_threads_kept():
            layout, model = _reference_layout(x, labels, start, knn, loss, seed)
            asked, outside = asked_in(layout)
            target = model.inverse_transform(asked.astype(np.float32))
    else:
        graph, rho, sigma = supervised_graph(*knn, labels, loss.target_weight)
        layout = optimise_layout(stretched(start, start), graph, loss, rng)
        asked, outside = asked_in(layout)
        target = inverse(asked, layout, x, rho, sigma, min(x.shape[1], loss.inverse_neighbors), loss, rng)
    target = (target * scale + centre).astype(np.float32)
    if not np.isfinite(target).all():
        raise ValueError("the inverse of UMAP is not finite")
    return Refresh(target, outside, agreement(target, embedding, labels))


def _check(embedding: np.ndarray, labels: np.ndarray, guide: np.ndarray) -> None:
    if not np.isfinite(embedding).all():
        raise ValueError("the embedding has values that are not finite")
    if len(embedding) < 4 or embedding.shape[1] < 2:
        raise ValueError(f"an embedding {embedding.shape} is too small for UMAP; it needs 4 cells and 2 components")
    if len(labels) != len(embedding):
        raise ValueError(f"{len(labels)} labels for {len(embedding)} cells")
    if labels.min() < 0 or labels.max() >= len(guide):
        raise ValueError(
            f"labels reach from {labels.min()} to {labels.max()}, the guide has classes 0 to {len(guide) - 1} "
            "(UMAP would read -1 as unlabelled)"
        )
    if not np.isfinite(guide).all() or (np.ptp(guide, axis=0) == 0).any():
        raise ValueError("the guide needs finite points that differ in both coordinates")


def jittered_start(guide: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Every cell (N, 2) at its class's point of the guide, with noise of its own.

    umap-learn's de-duplication noise is a share of the mean distance to the nearest neighbour, which is 0 when every
    class point repeats: all cells of a class would start, and with equal random streams stay, on one point.
    """
    extent = float(np.ptp(guide, axis=0).max())
    return guide[labels] + rng.normal(0.0, JITTER * extent, (len(labels), 2))


def stretched(points: np.ndarray, start: np.ndarray) -> np.ndarray:
    """`points` (…, 2) in the frame umap-learn gives its start: each axis of `start` stretched to [0, 10]."""
    low, span = start.min(0), np.ptp(start, axis=0)
    return UMAP_EXTENT * (points - low) / span


def query_frame(
    guide: np.ndarray, layout: np.ndarray, start: np.ndarray, labels: np.ndarray, frame: Frame
) -> np.ndarray:
    """Where in the layout (N, 2) each point of the guide (C, 2) is looked for.

    The paper inverts "at e2D". `raw` takes that literally. `rescaled` follows umap-learn's stretching of its start
    (N, 2), from which the layout then moves away. `similarity` (rotation, one scale, shift) and `affine` are fitted by
    least squares from every cell's point of the guide to where the layout has it, and so follow what the optimisation
    did to most cells. `centroid` asks at each class's mean in the layout, and for a class without cells where
    `similarity` puts it.

    Where the classes with cells do not fix a fit: along a direction in which they do not differ, `affine` moves
    nothing (classes without cells are projected onto the line of the others); from a single class both ask for every
    class at the layout's centre. A mirrored layout is no similarity of the guide: the nearest one shrinks towards the
    centre.
    """
    if frame == "raw":
        return guide.astype(np.float64)
    if frame == "rescaled":
        return stretched(guide, start)
    if frame == "affine":
        return _affine(guide[labels], layout, guide)
    placed = _similarity(guide[labels], layout, guide)
    if frame == "centroid":
        for label in np.unique(labels):
            placed[label] = layout[labels == label].mean(0)
    return placed


def _affine(source: np.ndarray, target: np.ndarray, points: np.ndarray) -> np.ndarray:
    """`points` under the affine map that best carries source (N, 2) to target (N, 2), of several the smallest."""
    to_centre = target.mean(0)
    centred, from_centre = _centred(source)
    linear = np.linalg.lstsq(centred, target - to_centre, rcond=1e-9)[0]
    placed: np.ndarray = (points - from_centre) @ linear + to_centre
    return placed


def _similarity(source: np.ndarray, target: np.ndarray, points: np.ndarray) -> np.ndarray:
    """`points` under the rotation, scale and shift that best carry source (N, 2) to target (N, 2) (Umeyama 1991)."""
    to_centre = target.mean(0)
    centred, from_centre = _centred(source)
    left, values, right = np.linalg.svd((target - to_centre).T @ centred)
    sign = np.array([1.0, np.sign(np.linalg.det(left @ right))])  # no reflection
    rotation = left * sign @ right
    spread = np.square(centred).sum()
    scale = (values * sign).sum() / spread if spread > 0 else 0.0
    placed: np.ndarray = scale * (points - from_centre) @ rotation.T + to_centre
    return placed


def _centred(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points (N, 2) from their mean, and that mean (2,); exactly zero where they are one point but for rounding."""
    centre = points.mean(0)
    offsets = points - centre
    return np.where(np.abs(offsets).max() > 1e-9 * np.abs(points).max(), offsets, 0.0), centre


def into_hull(asked: np.ndarray, layout: np.ndarray) -> tuple[np.ndarray, int]:
    """Points (C, 2) outside the convex hull of the layout (N, 2) moved to its nearest cell, and how many there were.

    umap-learn lets such a point pass: `find_simplex` answers -1, which indexes the last triangle. A point on the hull
    is not counted, but taken a hair inwards, where rounding does not decide whether a triangle is found. Raises
    ValueError for a layout on one line, which has no inside.
    """
    extent = float(np.ptp(layout, axis=0).max())
    try:
        hull = spatial.ConvexHull(layout)
    except spatial.QhullError as error:
        raise ValueError("the layout of UMAP lies on a line; no point is inside it") from error
    beyond = (hull.equations[:, :2] @ asked.T + hull.equations[:, 2:]).max(0)
    outside, edge = beyond > EDGE * extent, beyond > -EDGE * extent
    moved = asked.copy()
    moved[outside] = layout[spatial.cKDTree(layout).query(asked[outside])[1]]
    moved[edge] += INWARDS * (layout.mean(0) - moved[edge])
    return moved, int(outside.sum())


def agreement(target: np.ndarray, embedding: np.ndarray, labels: np.ndarray) -> float:
    """Share of the classes with cells whose target (C, n) lies nearer their own mean embedding than any other's."""
    present = np.unique(labels)
    means = np.stack([embedding[labels == label].mean(0) for label in present])
    return float(np.mean(spatial.distance.cdist(target[present], means).argmin(1) == np.arange(len(present))))


def supervised_graph(
    indices: np.ndarray, distances: np.ndarray, labels: np.ndarray, target_weight: float
) -> tuple[sparse.csr_matrix, np.ndarray, np.ndarray]:
    """Fuzzy simplicial set of the cells intersected with the labels: (N, N) graph, rho (N,), sigma (N,).

    The same numbers as umap-learn's `fuzzy_simplicial_set` and `discrete_metric_simplicial_set_intersection`: edges
    between classes lose the factor exp(-2.5 / (1 - target_weight)).
    """
    count, k = indices.shape
    rho, sigma = smooth_distances(distances)
    excess = distances - rho[:, None]
    # sigma is 0 only where every distance is 0, and then no excess is positive.
    strength = np.exp(-np.maximum(excess, 0.0) / np.maximum(sigma, np.finfo(np.float32).tiny)[:, None])
    rows = np.repeat(np.arange(count), k)
    columns = indices.ravel()
    own = rows == columns
    directed = sparse.csr_matrix((strength.ravel()[~own], (rows[~own], columns[~own])), shape=(count, count))
    graph = _union(directed).tocoo()
    far = np.exp(-2.5 / (1 - target_weight)) if target_weight < 1 else 0.0
    graph.data[labels[graph.row] != labels[graph.col]] *= far
    graph = graph.tocsr()
    graph.eliminate_zeros()
    largest = graph.max(axis=1).toarray().ravel()
    largest[largest == 0] = 1.0
    return _union(sparse.diags(1 / largest) @ graph), rho, sigma


def _union(directed: sparse.csr_matrix) -> sparse.csr_matrix:
    """Probabilistic union of a graph with its transpose: an edge holds if it holds in either direction."""
    transpose = directed.T.tocsr()
    return (directed + transpose - directed.multiply(transpose)).tocsr()


def smooth_distances(distances: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """rho and sigma (N,) of the neighbour distances (N, k), self first: sum exp(-(d - rho)+ / sigma) = log2(k).

    umap-learn's `smooth_knn_dist`, all cells bisected at once.
    """
    k = distances.shape[1]
    target = np.log2(k)
    positive = np.where(distances > 0, distances, np.inf).min(1)
    rho = np.where(np.isfinite(positive), positive, 0.0).astype(np.float32)
    excess = np.maximum(distances[:, 1:] - rho[:, None], 0.0).astype(np.float64)
    low, high, middle = np.zeros(len(rho)), np.full(len(rho), np.inf), np.ones(len(rho))
    for _ in range(64):
        total = np.exp(-excess / middle[:, None]).sum(1)
        open_ = np.abs(total - target) >= 1e-5
        if not open_.any():
            break
        above = total > target
        high = np.where(open_ & above, middle, high)
        low = np.where(open_ & ~above, middle, low)
        halved = (low + np.where(np.isinf(high), 0.0, high)) / 2
        middle = np.where(open_, np.where(np.isinf(high), middle * 2, halved), middle)
    own_mean = distances.mean(1)
    floor = 1e-3 * np.where(rho > 0, own_mean, distances.mean())
    return rho, np.maximum(middle, floor).astype(np.float32)


@lru_cache
def curve(min_dist: float) -> tuple[float, float]:
    """a, b of 1 / (1 + a d^2b), fitted to UMAP's membership: 1 up to min_dist, then exp(-(d - min_dist))."""
    d = np.linspace(0, 3, 300)
    wanted = np.where(d < min_dist, 1.0, np.exp(-(d - min_dist)))
    (a, b), _ = optimize.curve_fit(lambda d, a, b: 1 / (1 + a * d ** (2 * b)), d, wanted)
    return float(a), float(b)


def optimise_layout(
    start: np.ndarray, graph: sparse.csr_matrix, loss: GuideUMAP, rng: np.random.Generator
) -> np.ndarray:
    """The graph drawn in 2-D (N, 2), from `start` (N, 2), by UMAP's forces.

    umap-learn moves one sampled edge after the other. Here every cell moves once an epoch under the expectation of
    those steps: each edge with its weight instead of a draw. Pushes are taken as they are, up to `PUSH`; pulls, which
    would overshoot when many act at once, are solved for implicitly (frozen at the epoch's start, Jacobi sweeps). So
    whole classes drift as far as in umap-learn; NOTES.md has the comparison.
    """
    from guided.compiled.forces import relaxed  # numba takes a second to import: only where guides are refreshed

    a, b = curve(loss.min_dist)
    graph = graph.tocsr()
    graph.sort_indices()
    count = len(start)
    head, tail = np.repeat(np.arange(count), np.diff(graph.indptr)), graph.indices.astype(np.intp)
    weight = graph.data.astype(np.float32)
    degree = np.bincount(head, weight, count).astype(np.float32)
    pulls = sparse.csr_matrix((weight, graph.indices, graph.indptr), shape=graph.shape)
    y = np.ascontiguousarray(start.T, dtype=np.float32)  # (2, N): every step below runs along one coordinate
    for epoch in range(loss.fit_epochs):
        rate = np.float32(1 - epoch / loss.fit_epochs)
        square = np.maximum(_squares(y.take(head, 1) - y.take(tail, 1)), np.float32(1e-6))
        power = square**b
        # 2ab d^(2b-2) / (1 + a d^2b), times two: an edge pulls at a cell both as its head and as its tail.
        pulls.data = rate * weight * (4 * a * b) * power / (square * (1 + a * power))
        others = np.stack([rng.permutation(count) for _ in range(NEGATIVES)])
        away = y[:, None] - y.take(others, 1)  # (2, NEGATIVES, N)
        square = _squares(away)
        strength = 2 * b / ((0.001 + square) * (1 + a * square**b))
        push = rate * degree * np.clip(strength * away, -CUT, CUT).sum(1)
        push /= np.maximum(np.sqrt(_squares(push)) / PUSH, 1.0)
        stiffness = 1 + pulls @ np.ones(count, dtype=np.float32)
        pushed = (y + push) / stiffness
        pulls.data /= stiffness[head]
        y = relaxed(pulls.indptr, pulls.indices, pulls.data, pushed, y + push, SWEEPS)
    return y.T.astype(np.float64)


def _squares(vectors: np.ndarray) -> np.ndarray:
    """Squared lengths of vectors (2, …)."""
    squares: np.ndarray = vectors[0] ** 2 + vectors[1] ** 2
    return squares


def inverse(
    asked: np.ndarray,
    layout: np.ndarray,
    x: np.ndarray,
    rho: np.ndarray,
    sigma: np.ndarray,
    neighbors: int,
    loss: GuideUMAP,
    rng: np.random.Generator,
) -> np.ndarray:
    """Points (C, n) of the embedding x (N, n) for the points asked (C, 2) of its layout (N, 2).

    As in umap-learn: start at the mean of the nearest cells of the layout, weighted by their membership
    1 / (1 + a d^2b), then descend the fuzzy cross-entropy in the space of x: pulled with 1/sigma towards those cells,
    pushed away from random ones. On purpose different: the nearest cells are the nearest in the layout (umap-learn
    walks its Delaunay graph from one corner of the triangle, and in a gap between classes sees only that side); their
    number is `neighbors` (umap-learn: as many as x has components); and a step is a share of the neighbours' spread
    (umap-learn: clipped in units of the data).
    """
    from guided.compiled.forces import clipped_sum
    from guided.compiled.search import distances_to

    a, b = curve(loss.min_dist)
    count = min(neighbors, len(layout))
    distance, near = spatial.cKDTree(layout).query(asked, k=np.arange(1, count + 1))
    membership = 1 / (1 + a * distance ** (2 * b))
    share = membership / membership.sum(1, keepdims=True)
    points = np.einsum("ck,ckn->cn", share, x[near], dtype=np.float64)
    spread = distances_to(x, points, near).mean(1, keepdims=True)
    # Drawn in proportion to its membership and pulling with its inverse: an edge's expected pull. umap-learn never
    # draws an edge whose share of the largest is below one in its 100 epochs.
    drawn = membership / membership.max(1, keepdims=True)
    drawn[drawn < 0.01] = 0.0
    stiffness = 1 / (membership * sigma[near] + 1e-6)
    sample = min(len(x), 256)
    even = np.full((len(asked), sample), 1 / sample)
    for step in range(INVERSE_STEPS):
        pull, most = clipped_sum(x, points, near, distances_to(x, points, near), stiffness, drawn, CUT)
        others = np.tile(rng.choice(len(x), sample, replace=False), (len(asked), 1))
        gap = distances_to(x, points, others)
        member = np.exp(-np.maximum(gap - rho[others], 1e-6) / (sigma[others] + 1e-6))
        strength = member / ((1 - member) * sigma[others] + 1e-6)
        push, _ = clipped_sum(x, points, others, gap, strength, even, CUT)
        force = pull - NEGATIVES * drawn.sum(1, keepdims=True) * push
        points += (1 - step / INVERSE_STEPS) * spread * _bounded(force / np.maximum(most, 1e-12))
    return points


def _bounded(force: np.ndarray) -> np.ndarray:
    """Vectors (C, n) longer than 1 shortened to 1."""
    return force / np.maximum(np.linalg.norm(force, axis=1, keepdims=True), 1.0)


def _reference_layout(
    x: np.ndarray, labels: np.ndarray, start: np.ndarray, knn: tuple[np.ndarray, np.ndarray], loss: GuideUMAP, seed: int
) -> tuple[np.ndarray, Any]:
    """umap-learn's own layout (N, 2) and the fitted model, for its inverse."""
    import umap  # compiles for seconds: only where the reference is asked for

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*precomputed_knn.*")  # exact neighbours carry no search index
        model = umap.UMAP(
            n_neighbors=knn[0].shape[1],
            min_dist=loss.min_dist,
            n_epochs=loss.fit_epochs,
            init=start.astype(np.float32),
            target_weight=loss.target_weight,
            precomputed_knn=(knn[0], knn[1]),
            random_state=seed,
            n_jobs=1,
        ).fit(x, y=labels)
    model.n_epochs = None  # the inverse counts its own epochs: umap-learn's default of 100
    return model.embedding_.astype(np.float64), model


@contextmanager
def _torch_threads_kept() -> Iterator[None]:
    """numba starts its threads with omp_set_num_threads, which torch shares: training would go on with another number
    of threads, hence other sums."""
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
