"""The search for nearest cells behind its products: what guided.neighbours looks through, element by element."""

from __future__ import annotations

import numba
import numpy as np

STRIDE = 64  # elements that are looked at together
GROUPS = 2  # of elements, for each one that is to be kept


@numba.njit(error_model="numpy", cache=True)
def offer(product, squares, begin, columns, values, places, mutual):  # type: ignore[no-untyped-def]
    """Let row after row of product (R, C) of cells keep the smallest of what it is offered.

    Row i is cell `begin` + i and column j is cell `columns` + j. A cell r is offered another one c by its squared
    distance less the square of r, squares[c] - 2 r·c. Of the smallest, values (N, K) and places (N, K) are kept as a
    heap, the largest first. With `mutual` the columns are offered the rows as well.
    """
    rows, count = product.shape
    two = product.dtype.type(2)  # a bare 2 would make it double precision
    others = squares[columns : columns + count]
    tops = values[columns : columns + count, 0].copy() if mutual else others  # else for its type alone, as `own` below
    minima = np.empty(GROUPS * values.shape[1], product.dtype)
    for i in range(rows):
        row, kept, at = product[i], values[begin + i], places[begin + i]
        own = squares[begin + i] if mutual else kept[0]
        bound = _bound(row, others, minima, values.shape[1]) if kept[0] == np.inf else kept[0]
        top = min(kept[0], bound)
        for start in range(0, count, STRIDE):
            stop = min(start + STRIDE, count)
            if stop - start == STRIDE:
                # Whether any of them is taken, without a branch: the processor takes many at once.
                some = np.uint8(0)
                for step in range(STRIDE):
                    j = np.uint64(start + step)  # as it is never negative, numba need not look
                    twice = two * row[j]
                    some |= np.uint8(others[j] - twice < top)
                    if mutual:
                        some |= np.uint8(own - twice < tops[j])
                if not some:
                    continue
            for j in range(start, stop):
                twice = two * row[j]
                if others[j] - twice < top:
                    _replace_top(kept, at, others[j] - twice, columns + j)
                    top = min(kept[0], bound)
                if mutual and own - twice < tops[j]:
                    _replace_top(values[columns + j], places[columns + j], own - twice, begin + i)
                    tops[j] = values[columns + j, 0]


@numba.njit(error_model="numpy", cache=True)
def _bound(row, others, minima, most):  # type: ignore[no-untyped-def]
    """Just above the `most` smallest offers of a row (C,): they are no larger than so many of the minima of groups."""
    groups, two = len(minima), row.dtype.type(2)
    if len(row) < 2 * groups:
        return row.dtype.type(np.inf)
    minima[:] = np.inf
    for start in range(0, len(row) - groups + 1, groups):
        for group in range(groups):
            j = np.uint64(start + group)
            offered = others[j] - two * row[j]
            minima[group] = offered if offered < minima[group] else minima[group]
    smallest, places = np.full(most, np.inf, row.dtype), np.empty(most, np.int64)
    for group in range(groups):
        if minima[group] < smallest[0]:
            _replace_top(smallest, places, minima[group], group)
    return np.nextafter(smallest[0], row.dtype.type(np.inf))


@numba.njit(error_model="numpy", cache=True)
def _replace_top(values, places, value, place):  # type: ignore[no-untyped-def]
    """Put `value` in a heap (K,) instead of its largest."""
    count, at = len(values), 0
    while True:
        child = 2 * at + 1
        if child + 1 < count and values[child + 1] > values[child]:
            child += 1
        if child >= count or values[child] <= value:
            break
        values[at], places[at] = values[child], places[child]
        at = child
    values[at], places[at] = value, place


# Sums in any order: that of a pair is the same whichever of the two is asked and wherever they stand.
@numba.njit(error_model="numpy", fastmath={"reassoc", "contract"}, cache=True)
def distances_to(cells, asked, near):  # type: ignore[no-untyped-def]
    """Euclidean distances (M, K), in the type of asked (M, n), to those of cells (N, n) in near (M, K)."""
    distances = np.empty(near.shape, asked.dtype)
    for row in range(near.shape[0]):
        point = asked[row]
        for place in range(near.shape[1]):
            cell = cells[near[row, place]]
            square = asked.dtype.type(0)
            for component in range(point.shape[0]):
                gap = point[component] - cell[component]
                square += gap * gap
            distances[row, place] = np.sqrt(square)
    return distances
