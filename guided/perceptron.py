"""A multi-layer perceptron: the problem of scikit-learn's MLPClassifier, solved in a fraction of its steps.

    min over W, b of  mean cross-entropy + ½ · PENALTY / min(BATCH, N) · Σ W²

with ReLU between the layers, softmax at the end and no penalty on b. scikit-learn takes 200 passes of Adam at a rate of
0.001 and stops without having converged. Here the rate rises to RATE and falls to zero along a cosine ("one cycle",
Smith and Topin 2018, "Super-convergence"): PASSES passes end at a lower value of the objective (NOTES.md has the
comparison).
"""

from __future__ import annotations

from itertools import pairwise
from math import cos, pi, sqrt

import numpy as np
import torch

PENALTY = 1e-4  # scikit-learn's alpha; it divides by the cells of a batch
BATCH = 200  # cells of a step, at most
PASSES = 36
LEAST_STEPS = 400  # few cells make few steps a pass
RATE = 0.02  # the highest
RISE = 0.25  # share of the steps until it is reached
BETAS = (0.9, 0.99)
EPSILON = 1e-8


def solve(
    z: np.ndarray, y: np.ndarray, hidden: tuple[int, ...], seed: int
) -> tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...]]:
    """Weights (n, h1), (h1, h2), …, (h, K) and offsets (h1,), …, (K,) in float32, for z (N, n) standardised cells with
    y (N,) in 0..K-1.

    Starts as scikit-learn does, uniform within ±sqrt(6 / (rows + columns)). Depends on nothing but its arguments.
    """
    rng = np.random.default_rng(seed)
    widths = [z.shape[1], *hidden, int(y.max()) + 1]
    shapes = list(pairwise(widths))
    values = torch.empty(sum(rows * columns + columns for rows, columns in shapes))
    slope, mean, square = torch.zeros_like(values), torch.zeros_like(values), torch.zeros_like(values)
    weights, offsets = _layers(values, shapes)
    for weight, offset in zip(weights, offsets, strict=True):
        bound = sqrt(6 / sum(weight.shape))
        for part in (weight, offset):
            part.copy_(torch.from_numpy(rng.uniform(-bound, bound, tuple(part.shape))))
    slopes = _layers(slope, shapes)
    penalised = sum(rows * columns for rows, columns in shapes)
    decay = PENALTY / min(BATCH, len(z))
    cells, targets = torch.from_numpy(z.astype(np.float32)), torch.eye(widths[-1])[torch.from_numpy(y)]
    batches = -(-len(z) // BATCH)
    edges = np.linspace(0, len(z), batches + 1).astype(int)
    passes = max(PASSES, -(-LEAST_STEPS // batches))
    steps = passes * batches
    for step in range(steps):
        batch = step % batches
        if batch == 0:
            order = torch.from_numpy(rng.permutation(len(z)))
            shuffled, wanted = cells[order], targets[order]
        rows = slice(edges[batch], edges[batch + 1])
        _slopes(shuffled[rows], wanted[rows], weights, offsets, *slopes)
        slope[:penalised].add_(values[:penalised], alpha=decay)
        mean.lerp_(slope, 1 - BETAS[0])
        square.mul_(BETAS[1]).addcmul_(slope, slope, value=1 - BETAS[1])
        first, second = (1 - beta ** (step + 1) for beta in BETAS)
        rate = _rate((step + 0.5) / steps) * sqrt(second) / first
        values.addcdiv_(mean, square.sqrt().add_(EPSILON), value=-rate)
    return tuple(weight.numpy() for weight in weights), tuple(offset.numpy() for offset in offsets)


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
    """Gradient of the mean cross-entropy of cells (B, n) with classes one-hot in `wanted` (B, K), by back-propagation,
    written over `by_weights` and `by_offsets`. Autograd would take twice the time of products so small."""
    layers = [cells]
    for weight, offset in zip(weights[:-1], offsets[:-1], strict=True):
        layers.append(torch.addmm(offset, layers[-1], weight).relu_())
    error = torch.addmm(offsets[-1], layers[-1], weights[-1]).softmax(1).sub_(wanted).div_(len(cells))
    for n in reversed(range(len(weights))):
        torch.mm(layers[n].T, error, out=by_weights[n])
        torch.sum(error, 0, out=by_offsets[n])
        if n:
            error = torch.mm(error, weights[n].T).mul_(layers[n] > 0)


def _rate(share: float) -> float:
    """Rate of a step, given the share of all steps that are done in its middle."""
    if share < RISE:
        return RATE * share / RISE
    return RATE * 0.5 * (1 + cos(pi * (share - RISE) / (1 - RISE)))
