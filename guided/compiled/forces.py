"""The forces of UMAP's inverse, pair by pair (guided.inverse_umap tells what for)."""

from __future__ import annotations

import numba
import numpy as np


@numba.njit(error_model="numpy", fastmath={"nnan", "reassoc", "contract"}, cache=True)
def clipped_sum(cells, points, near, gaps, strength, weight, cut):  # type: ignore[no-untyped-def]
    """Forces of strength (C, K) along unit vectors from points (C, n) to those of cells (N, n) in near (C, K), which
    are gaps (C, K) away, every component cut at ±`cut`: their sum (C, n) by weight (C, K), and the sum (C, 1) of their
    lengths. A cell at the point itself has no direction and no force."""
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
