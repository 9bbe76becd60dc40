"""The equations of the paper as naive loops in float64: slow, plain, and independent of the package."""

from __future__ import annotations

from math import sqrt

import numpy as np


def guide_loss(p: np.ndarray, target: np.ndarray, distance: str, reduction: str) -> float:
    """3.1: mean over the batch of the distance of the first m components."""
    total = 0.0
    for row, point in zip(p, target, strict=True):
        parts = [abs(row[k] - point[k]) if distance == "l1" else (row[k] - point[k]) ** 2 for k in range(len(point))]
        value = sum(parts) if reduction == "sum" else sum(parts) / len(parts)
        total += sqrt(value) if distance == "l2" else value
    return total / len(p)


def norm_penalty(p: np.ndarray, kind: str) -> float:
    """4.1.2: mean norm of the embedding vectors."""
    total = 0.0
    for row in p:
        squared = sum(value**2 for value in row)
        total += {"l2": sqrt(squared), "squared": squared, "l1": sum(abs(value) for value in row)}[kind]
    return total / len(p)


def length_paper(epoch: int, longest: int) -> int:
    """3.3: n = min(max(epoch, 2), n_max)."""
    return min(max(epoch, 2), longest)


def low_pass(previous: np.ndarray, fresh: np.ndarray, alpha: float) -> np.ndarray:
    """Eq. 1, the previous guide padded with zeros where the embedding has grown."""
    result = np.zeros(fresh.shape)
    for c in range(fresh.shape[0]):
        for k in range(fresh.shape[1]):
            before = previous[c][k] if k < previous.shape[1] else 0.0
            result[c, k] = alpha * before + (1 - alpha) * fresh[c, k]
    return result


def macro_f1(true: list[int], predicted: list[int], classes: int) -> float:
    """Mean over the classes with a true cell of the harmonic mean of precision and recall."""
    scores = []
    for c in range(classes):
        hits = sum(t == c and p == c for t, p in zip(true, predicted, strict=True))
        support = sum(t == c for t in true)
        given = sum(p == c for p in predicted)
        if support == 0:
            continue
        precision = hits / given if given else 0.0
        recall = hits / support
        scores.append(2 * precision * recall / (precision + recall) if precision + recall else 0.0)
    return sum(scores) / len(scores)


def adam_row(gradients: list[float], start: float, lr: float, decay: float = 0.0) -> list[float]:
    """Adam (Kingma & Ba 2015, algorithm 1) on one number; the values after each step."""
    value, m, v, values = start, 0.0, 0.0, []
    for t, gradient in enumerate(gradients, start=1):
        g = gradient + decay * value
        m = 0.9 * m + 0.1 * g
        v = 0.999 * v + 0.001 * g * g
        value -= lr * (m / (1 - 0.9**t)) / (sqrt(v / (1 - 0.999**t)) + 1e-8)
        values.append(value)
    return values


def imbalance(counts: list[list[int]], shares: list[float]) -> float:
    """Root of the mean over parts of (q - 1)², q a part's cells over those it should hold: half from the mean over the
    classes that occur, half from the sizes. `counts` by part and class."""
    classes = [c for c in range(len(counts[0])) if sum(part[c] for part in counts) > 0]
    cells = sum(sum(part) for part in counts)
    total = 0.0
    for part, share in zip(counts, shares, strict=True):
        by_class = [(part[c] / (share * sum(other[c] for other in counts)) - 1) ** 2 for c in classes]
        total += 0.5 * sum(by_class) / len(classes) + 0.5 * (sum(part) / (share * cells) - 1) ** 2
    return sqrt(total / len(counts))
