"""The equations of the paper as naive loops in float64: slow, plain, and independent of the package."""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise, permutations
from math import exp, log, sqrt

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


# --- metrics --------------------------------------------------------------------------------------------------------


def lineage_distance(a: int, b: int, lineages: list[str], stages: list[float]) -> float:
    """Length of the way between two places of the tree, through the lowest common ancestor (stages from 0 on)."""
    ancestor = min(stages[a], stages[b]) if lineages[a] == lineages[b] else 0.0
    return (stages[a] - ancestor) + (stages[b] - ancestor)


def ranks(values: list[float]) -> list[float]:
    """Rank from 1, equal values sharing the mean of theirs."""
    return [sum(w < v for w in values) + (sum(w == v for w in values) + 1) / 2 for v in values]


def pooled_spearman(first: list[float], second: list[float], groups: list[int]) -> float:
    """Pearson's correlation of ranks within groups, centred and in shares of the group."""
    xy = xx = yy = 0.0
    for group in set(groups):
        rows = [i for i, g in enumerate(groups) if g == group]
        a, b = ranks([first[i] for i in rows]), ranks([second[i] for i in rows])
        middle = (len(rows) + 1) / 2
        for x, y in zip(a, b, strict=True):
            x, y = (x - middle) / len(rows), (y - middle) / len(rows)
            xy, xx, yy = xy + x * y, xx + x * x, yy + y * y
    return xy / sqrt(xx * yy)


def distance_shares(row: list[float], temperature: float) -> list[float]:
    """softmax(-d²/T) of the squared distances of one cell."""
    weights = [exp(-(square - min(row)) / temperature) for square in row]
    return [weight / sum(weights) for weight in weights]


def calibration_error(confidence: list[float], right: list[bool], bins: int) -> float:
    """Σ over bins of equal mass: share of cells · |share right - mean confidence|."""
    n, members = len(confidence), defaultdict(list)
    for i in range(n):
        surer_than = sum(c < confidence[i] for c in confidence)
        members[surer_than * bins // n].append(i)
    total = 0.0
    for cells in members.values():
        share = sum(right[i] for i in cells) / len(cells)
        total += len(cells) / n * abs(share - sum(confidence[i] for i in cells) / len(cells))
    return total


def risk_coverage_area(confidence: list[float], right: list[bool]) -> float:
    """Mean over all orders that respect the confidence of the mean over k of the mistakes among the first k."""
    areas = []
    for order in permutations(range(len(right))):
        if any(confidence[i] < confidence[j] for i, j in pairwise(order)):
            continue
        mistakes, area = 0, 0.0
        for k, cell in enumerate(order, start=1):
            mistakes += not right[cell]
            area += mistakes / k
        areas.append(area / len(right))
    return sum(areas) / len(areas)


def euclidean(a: np.ndarray, b: np.ndarray) -> float:
    return sqrt(sum((x - y) ** 2 for x, y in zip(a, b, strict=True)))


def mean_of(rows: list[np.ndarray]) -> np.ndarray:
    return np.array([sum(row[k] for row in rows) / len(rows) for k in range(len(rows[0]))])


def class_spread(x: np.ndarray, y: list[int], classes: int) -> dict[int, float]:
    """Root mean square distance to the class mean over the root mean square distance between two means, of classes
    with two cells or more."""
    members = {c: [row for row, label in zip(x, y, strict=True) if label == c] for c in range(classes)}
    members = {c: rows for c, rows in members.items() if len(rows) > 1}
    means = {c: mean_of(rows) for c, rows in members.items()}
    pairs = [euclidean(means[a], means[b]) ** 2 for a in means for b in means if a < b]
    between = sqrt(sum(pairs) / len(pairs))
    return {
        c: sqrt(sum(euclidean(row, means[c]) ** 2 for row in rows) / (len(rows) - 1)) / between
        for c, rows in members.items()
    }


def effective_rank(x: np.ndarray) -> float:
    """exp(-Σ p log p) of p = σ/Σσ; σ² are the eigenvalues of the scatter around the mean."""
    centred = x - mean_of(list(x))
    scatter = sum(np.outer(row, row) for row in centred)
    sigma = [sqrt(max(value, 0.0)) for value in np.linalg.eigvalsh(scatter)]
    p = [value / sum(sigma) for value in sigma]
    return exp(-sum(value * log(value) for value in p if value > 0))


def silhouette(x: np.ndarray, y: list[int]) -> float:
    """Mean of (b - a)/max(a, b): mean distance to the own class, and to the nearest other; 0 for a lone cell."""
    total = 0.0
    for i in range(len(x)):
        mean = {}
        for label in set(y):
            others = [j for j in range(len(x)) if y[j] == label and j != i]
            if others:
                mean[label] = sum(euclidean(x[i], x[j]) for j in others) / len(others)
        if y[i] in mean:
            a, b = mean.pop(y[i]), min(mean[label] for label in mean if label != y[i])
            total += (b - a) / max(a, b)
    return total / len(x)


def kendall(a: list[float], b: list[float]) -> float:
    """Concordant less discordant pairs, over all pairs (no ties)."""
    pairs = [(i, j) for i in range(len(a)) for j in range(i)]
    return sum(1 if (a[i] - a[j]) * (b[i] - b[j]) > 0 else -1 for i, j in pairs) / len(pairs)


def maturity_on_path(point: np.ndarray, nodes: np.ndarray, stages: list[float]) -> float:
    """The stage at the nearest foot of a perpendicular or node, the first and the last piece going on as lines."""
    best, found = float("inf"), 0.0
    for k in range(len(nodes) - 1):
        along = [b - a for a, b in zip(nodes[k], nodes[k + 1], strict=True)]
        ahead = [x - a for x, a in zip(point, nodes[k], strict=True)]
        t = sum(u * v for u, v in zip(along, ahead, strict=True)) / sum(u * u for u in along)
        if t < 0 and k > 0:
            t = 0.0
        if t > 1 and k < len(nodes) - 2:
            t = 1.0
        distance = sqrt(sum((v - t * u) ** 2 for u, v in zip(along, ahead, strict=True)))
        if distance < best:
            best, found = distance, stages[k] + t * (stages[k + 1] - stages[k])
    return found


def deviation(a: np.ndarray, b: np.ndarray) -> float:
    """Root mean square distance of positions over the root mean square distance to their centres."""
    between = sum(euclidean(p, q) ** 2 for p, q in zip(a, b, strict=True))
    size = sum(euclidean(p, mean_of(list(run))) ** 2 for run in (a, b) for p in run) / 2
    return sqrt(between / size)
