"""The pairs of a linear SVM: proximal point steps on the dual, each by Newton (guided.linear_svm tells the method)."""

from __future__ import annotations

import numba
import numpy as np

from guided.linear_svm import GAP, MARGIN, MOST_STEPS, NARROWEST, STEEPER, STIFF, STIFFEST


@numba.njit(error_model="numpy", cache=True)
def solve_pairs(cells, starts, first, second, ends, c, dual, weights):  # type: ignore[no-untyped-def]
    """Solve every pair from its row of `weights` and part of `dual`, overwritten; gaps and intercepts (P,)."""
    gaps, intercepts = np.empty(len(first)), np.empty(len(first))
    for pair in range(len(first)):
        i, j = first[pair], second[pair]
        ours, theirs = starts[i + 1] - starts[i], starts[j + 1] - starts[j]
        signed = np.empty((ours + theirs, cells.shape[1]))
        signed[:ours] = cells[starts[i] : starts[i + 1]]
        signed[ours:] = -cells[starts[j] : starts[j + 1]]
        gaps[pair], intercepts[pair] = _solve(signed, ours, c, dual[ends[pair] : ends[pair + 1]], weights[pair])
    return gaps, intercepts


@numba.njit(error_model="numpy", cache=True)
def _solve(signed, ours, c, dual, w):  # type: ignore[no-untyped-def]
    """One pair: y·(x, 1) in `signed` (N, r + 1), the first `ours` rows of the first class."""
    count, width = signed.shape
    r = width - 1
    margin, moved, a = np.empty(count), np.empty(count), np.empty(count)
    near = np.empty((count, width))
    square = max(np.sum(signed[:, :r] ** 2) / count, 1e-12)
    steep, steepest = min(c / MARGIN, STIFF / square), min(c / NARROWEST, STIFFEST / square)
    margin[:] = 1 - signed @ w
    better = _intercept(margin, w[r], ours)
    margin -= (better - w[r]) * signed[:, r]
    w[r] = better
    gap = np.inf
    settled = False  # a proximal step from where the last one ended goes nowhere
    for _ in range(MOST_STEPS):
        slack = positive = negative = 0.0
        active = 0
        for k in range(count):
            raw = dual[k] + steep * margin[k]
            a[k] = min(max(raw, 0.0), c)
            slack += max(margin[k], 0.0)
            if k < ours:
                positive += a[k]
            else:
                negative += a[k]
            if 0.0 < raw < c:
                near[active] = signed[k]
                active += 1
        pulled, pushed = a[:ours] @ signed[:ours], a[ours:] @ signed[ours:]
        slope = -(pulled + pushed)
        slope[:r] += w[:r]
        # The dual needs equal sums on both sides: the heavier one is scaled down.
        if positive > 0 and negative > 0:
            lesser = min(positive, negative)
            share, other = lesser / positive, lesser / negative
        else:
            lesser = share = other = 0.0
        lower, square, error = 2 * lesser, 0.0, abs(slope[r])
        for k in range(r):
            lower -= 0.5 * (share * pulled[k] + other * pushed[k]) ** 2
            square += w[k] ** 2
            error += 0.5 * slope[k] ** 2
        upper = 0.5 * square + c * slack
        gap = (upper - lower) / upper
        if gap <= GAP:
            break
        if settled and error <= 0.2 * (upper - lower) and abs(slope[r]) <= 0.1 * lesser:
            dual[:] = a
            steep = min(steep * STEEPER, steepest)
            settled = False
            continue
        settled = True
        curve = steep * (near[:active].T @ near[:active])
        for k in range(r):
            curve[k, k] += 1.0
        curve[r, r] += 0.01 * steep  # b alone has no curvature where no cell is near; the step's length is found below
        step = _newton(curve, slope)
        moved[:] = signed @ step
        length = _line_search(margin, moved, dual, steep, c, w[:r] @ step[:r], step[:r] @ step[:r])
        w += length * step
        margin -= length * moved
    dual[:] = a
    return gap, _intercept(margin, w[r], ours)


@numba.njit(error_model="numpy", cache=True)
def _intercept(margin, b, ours):  # type: ignore[no-untyped-def]
    """The b with the least sum of hinges, of several the middle, given 1 - y (w·x + b) (N,) at some b.

    Each hinge bends at one b and adds 1 to the slope there, which starts at minus the cells of the first class.
    """
    bends = margin + b
    bends[ours:] = b - margin[ours:]
    bends.sort()
    return 0.5 * (bends[ours - 1] + bends[ours])


@numba.njit(error_model="numpy", cache=True)
def _newton(curve, slope):  # type: ignore[no-untyped-def]
    """-curve⁻¹ slope, by Cholesky."""
    lower = np.linalg.cholesky(curve)
    step = -slope
    for k in range(len(step)):
        step[k] = (step[k] - lower[k, :k] @ step[:k]) / lower[k, k]
    for k in range(len(step) - 1, -1, -1):
        step[k] /= lower[k, k]
        step[:k] -= step[k] * lower[k, :k]
    return step


@numba.njit(error_model="numpy", fastmath={"reassoc", "contract"}, cache=True)
def _line_search(margin, moved, dual, steep, c, along, square):  # type: ignore[no-untyped-def]
    """Length of the step at which the slope along it, which rises from piece to piece, is a tenth of what it was."""
    first, low, high, length = 0.0, 0.0, np.inf, 0.0
    for trial in range(60):
        slope, curve = along + length * square, square
        for k in range(len(margin)):
            raw = dual[k] + steep * (margin[k] - length * moved[k])
            slope -= min(max(raw, 0.0), c) * moved[k]
            curve += steep * moved[k] ** 2 if 0.0 < raw < c else 0.0
        if trial == 0:
            first = slope
            length = 1.0
            continue
        if abs(slope) <= 0.1 * abs(first):
            break
        if slope > 0:
            high = length
        else:
            low = length
        length -= slope / curve
        if not low < length < high:
            length = 2 * low if high == np.inf else 0.5 * (low + high)
    return length
