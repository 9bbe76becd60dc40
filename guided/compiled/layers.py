"""Training of a small multi-layer perceptron, step by step (guided.perceptron tells the method).

Weights (rows, columns), layer after layer, and behind them the offsets lie in one vector `values` (P,); `widths` are
those of the cells, the hidden layers and the classes.
"""

from __future__ import annotations

import numba
import numpy as np


@numba.njit(error_model="numpy", cache=True)
def descend(  # type: ignore[no-untyped-def]
    cells, classes, orders, edges, widths, values, rates, decay, keep_mean, keep_square, epsilon
):
    """Steps of Adam at `rates` (S,), bias corrections included, from `values`, overwritten.

    cells (N, n) of classes (N,); orders (passes, N) in which they come, cut into batches at `edges`; `decay` is the
    weight of half the sum of squared weights.
    """
    weights = np.sum(widths[:-1] * widths[1:])
    most = np.max(edges[1:] - edges[:-1])
    layers = np.empty(most * np.sum(widths), cells.dtype)
    errors = np.empty((2, most * np.max(widths)), cells.dtype)
    batch_cells, batch_classes = np.empty((most, widths[0]), cells.dtype), np.empty(most, classes.dtype)
    slope, mean, square = np.empty_like(values), np.zeros_like(values), np.zeros_like(values)
    new_mean, new_square = cells.dtype.type(1 - keep_mean), cells.dtype.type(1 - keep_square)
    batches = len(edges) - 1
    for step in range(len(rates)):
        begin, end = edges[step % batches], edges[step % batches + 1]
        for place in range(end - begin):
            row = orders[step // batches, begin + place]
            batch_cells[place] = cells[row]
            batch_classes[place] = classes[row]
        slopes(batch_cells[: end - begin], batch_classes, widths, values, slope, layers, errors)
        for k in range(weights):
            slope[k] += decay * values[k]
        for k in range(len(values)):
            mean[k] = keep_mean * mean[k] + new_mean * slope[k]
            square[k] = keep_square * square[k] + new_square * slope[k] * slope[k]
            values[k] -= rates[step] * mean[k] / (np.sqrt(square[k]) + epsilon)


@numba.njit(error_model="numpy", cache=True)
def slopes(cells, classes, widths, values, slope, layers, errors):  # type: ignore[no-untyped-def]
    """Gradient (P,) of the mean cross-entropy of cells (B, n), written over `slope`, by back-propagation.

    `layers` has room for B cells at all widths, each of the two rows of `errors` at the largest.
    """
    count, last = len(cells), len(widths) - 2
    layers[: cells.size] = cells.ravel()
    at, weight, offset = 0, 0, np.sum(widths[:-1] * widths[1:])
    for layer in range(last + 1):
        rows, columns = widths[layer], widths[layer + 1]
        below = layers[at : at + count * rows].reshape((count, rows))
        at += count * rows
        above = layers[at : at + count * columns].reshape((count, columns))
        np.dot(below, values[weight : weight + rows * columns].reshape((rows, columns)), above)
        offsets = values[offset : offset + columns]
        for cell in range(count):
            for column in range(columns):
                raw = above[cell, column] + offsets[column]
                above[cell, column] = raw if layer == last or raw > 0 else 0
        weight += rows * columns
        offset += columns
    outputs = layers[at : at + count * widths[-1]].reshape((count, widths[-1]))
    error = errors[0, : count * widths[-1]].reshape((count, widths[-1]))
    for cell in range(count):
        largest = np.max(outputs[cell])
        for column in range(widths[-1]):
            error[cell, column] = np.exp(outputs[cell, column] - largest)
        share = count * np.sum(error[cell])
        for column in range(widths[-1]):
            error[cell, column] /= share
        error[cell, classes[cell]] -= cells.dtype.type(1) / count
    for layer in range(last, -1, -1):
        rows, columns = widths[layer], widths[layer + 1]
        at -= count * rows
        weight -= rows * columns
        offset -= columns
        below = layers[at : at + count * rows].reshape((count, rows))
        np.dot(below.T, error, slope[weight : weight + rows * columns].reshape((rows, columns)))
        slope[offset : offset + columns] = 0
        for cell in range(count):
            for column in range(columns):
                slope[offset + column] += error[cell, column]
        if layer > 0:
            lower = errors[(last - layer + 1) % 2, : count * rows].reshape((count, rows))
            np.dot(error, values[weight : weight + rows * columns].reshape((rows, columns)).T, lower)
            for cell in range(count):
                for row in range(rows):
                    lower[cell, row] = lower[cell, row] if below[cell, row] > 0 else 0
            error = lower
