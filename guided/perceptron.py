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
import torch

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
        self._cells = torch.from_numpy((z @ self._turn).astype(np.float32))
        self._wanted = torch.eye(len(self.labels))[:, torch.from_numpy(numbered)]

    def solve(self, hidden: tuple[int, ...], seed: int) -> tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...]]:
        """Weights (n, h1), (h1, h2), …, (h, K) and offsets (h1,), …, (K,), float32, for the K classes of `labels`.

        The start is scikit-learn's: uniform within ±sqrt(6 / (rows + columns)). Depends on nothing but cells, hidden
        layers and seed.
        """
        rng = np.random.default_rng(seed)
        count, length = len(self._cells), len(self._turn)
        shapes = list(pairwise([self._cells.shape[1], *hidden, len(self.labels)]))
        values = torch.empty(sum(rows * columns + columns for rows, columns in shapes))
        slope, mean, square = torch.zeros_like(values), torch.zeros_like(values), torch.zeros_like(values)
        (first, *others), offsets = weights, _ = _layers(values, shapes)
        first.copy_(torch.from_numpy(self._turn.T @ _uniform(rng, (length, hidden[0]), length + hidden[0])))
        for weight in others:
            weight.copy_(torch.from_numpy(_uniform(rng, tuple(weight.shape), sum(weight.shape))))
        for offset, above in zip(offsets, [length, *hidden], strict=True):
            offset.copy_(torch.from_numpy(_uniform(rng, tuple(offset.shape), above + len(offset))))
        slopes = _layers(slope, shapes)
        penalised = sum(rows * columns for rows, columns in shapes)
        decay = PENALTY / min(BATCH, count)
        batches = -(-count // BATCH)
        edges = np.linspace(0, count, batches + 1).astype(int)
        steps = batches * max(PASSES, -(-LEAST_STEPS // batches))
        for step in range(steps):
            batch = step % batches
            if batch == 0:
                order = torch.from_numpy(rng.permutation(count))
                cells, wanted = self._cells[order], self._wanted[:, order]
            rows = slice(edges[batch], edges[batch + 1])
            _slopes(cells[rows], wanted[:, rows], weights, offsets, *slopes)
            slope[:penalised].add_(values[:penalised], alpha=decay)
            mean.lerp_(slope, 1 - BETAS[0])
            square.mul_(BETAS[1]).addcmul_(slope, slope, value=1 - BETAS[1])
            bias, bias_of_square = (1 - beta ** (step + 1) for beta in BETAS)
            rate = _rate((step + 0.5) / steps) * sqrt(bias_of_square) / bias
            values.addcdiv_(mean, square.sqrt().add_(EPSILON), value=-rate)
        unturned = (self._turn @ first.numpy()).astype(np.float32)
        return (unturned, *(weight.numpy() for weight in others)), tuple(offset.numpy() for offset in offsets)


def _uniform(rng: np.random.Generator, shape: tuple[int, ...], fan: int) -> np.ndarray:
    """Uniform within ±sqrt(6 / fan), as Glorot and Bengio (2010) start layers."""
    bound = sqrt(6 / fan)
    return rng.uniform(-bound, bound, shape)


def _layers(flat: torch.Tensor, shapes: list[tuple[int, int]]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Weights and offsets as views of one vector, all weights first."""
    sizes = [rows * columns for rows, columns in shapes]
    *weights, behind = flat.split([*sizes, len(flat) - sum(sizes)])
    offsets = behind.split([columns for _, columns in shapes])
    return [weight.view(shape) for weight, shape in zip(weights, shapes, strict=True)], list(offsets)


def _slopes(
    cells: torch.Tensor,
    wanted: torch.Tensor,
    weights: list[torch.Tensor],
    offsets: list[torch.Tensor],
    by_weights: list[torch.Tensor],
    by_offsets: list[torch.Tensor],
) -> None:
    """Gradient of the mean cross-entropy of cells (B, n) with classes one-hot in `wanted` (K, B), by back-propagation,
    written over `by_weights` and `by_offsets`; autograd would add its own time to products so small."""
    layers = [cells]
    for weight, offset in zip(weights[:-1], offsets[:-1], strict=True):
        layers.append(torch.addmm(offset, layers[-1], weight).relu_())
    # A class a row: over rows so short as a cell's classes softmax takes ten times as long.
    outputs = torch.addmm(offsets[-1][:, None], weights[-1].T, layers[-1].T)
    error = outputs.softmax(0).sub_(wanted).div_(len(cells)).T
    for n in reversed(range(len(weights))):
        torch.mm(layers[n].T, error, out=by_weights[n])
        torch.sum(error, 0, out=by_offsets[n])
        if n:
            error = torch.mm(error, weights[n].T).mul_(layers[n].sign())  # behind a ReLU none is negative


def _rate(share: float) -> float:
    """Rate of a step, given the share of all steps that are done in its middle."""
    if share < RISE:
        return RATE * share / RISE
    return RATE * 0.5 * (1 + cos(pi * (share - RISE) / (1 - RISE)))
