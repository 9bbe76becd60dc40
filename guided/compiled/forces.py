"""The forces of UMAP's layout and of its inverse, pair by pair (guided.inverse_umap tells what for)."""

from __future__ import annotations

import numba
import numpy as np


@numba.njit(error_model="numpy", fastmath={"reassoc", "contract"}, cache=True)
def clipped_sum(cells, points, near, gaps, strength, weight, cut):  # type: ignore[no-untyped-def]
    """Forces of strength (C, K) along unit vectors from points (C, n) to those of cells (N, n) in near (C, K), which
    are gaps (C, K) away, every component cut at ±`cut`: their sum (C, n) and that (C, 1) of their lengths, both by
    weight (C, K). A cell at the point itself has no direction and no force."""
    total, lengths = np.zeros(points.shape), np.zeros((len(points), 1))
    for row in range(near.shape[0]):
        point, sums = points[row], total[row]
        for place in range(near.shape[1]):
            share = weight[row, place]
            if share == 0 or gaps[row, place] == 0:
                continue
            cell, slope = cells[near[row, place]], strength[row, place] / gaps[row, place]
            if strength[row, place] <= cut:  # no component is longer than the whole
                for component in range(point.shape[0]):
                    sums[component] += share * slope * (cell[component] - point[component])
                lengths[row, 0] += share * strength[row, place]
                continue
            square = 0.0
            for component in range(point.shape[0]):
                force = slope * (cell[component] - point[component])
                force = cut if force > cut else (-cut if force < -cut else force)
                sums[component] += share * force
                square += force * force
            lengths[row, 0] += share * np.sqrt(square)
    return total, lengths


@numba.njit(error_model="numpy", cache=True)
def relaxed(starts, ends, weight, pushed, y, sweeps):  # type: ignore[no-untyped-def]
    """Jacobi sweeps of y = pushed + W y for cells (2, N), where row i of W has weight[starts[i] : starts[i + 1]] in the
    columns `ends`."""
    count = y.shape[1]
    old, new = np.empty((count, 2), y.dtype), np.empty((count, 2), y.dtype)  # both coordinates of a cell side by side
    for i in range(count):
        old[i, 0], old[i, 1] = y[0, i], y[1, i]
    for _ in range(sweeps):
        for i in range(count):
            first, second = pushed[0, i], pushed[1, i]
            for edge in range(starts[i], starts[i + 1]):
                end = ends[edge]
                first += weight[edge] * old[end, 0]
                second += weight[edge] * old[end, 1]
            new[i, 0], new[i, 1] = first, second
        old, new = new, old
    return np.ascontiguousarray(old.T)
