"""The equations of the paper as naive loops in float64: slow, plain, and independent of the package."""

from __future__ import annotations

from itertools import permutations, product
from math import atan, cos, gamma, pi, sqrt

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


# --- statistics -----------------------------------------------------------------------------------------------------


def correlated_t(differences: list[float], rho: float, rope: float) -> tuple[float, float, float]:
    """Corani & Benavoli (2015): Student t with k - 1 degrees of freedom, location the mean, scale² =
    (1/k + rho/(1-rho)) · variance; its mass below, inside and above the rope, by numerical integration."""
    k = len(differences)
    mean = sum(differences) / k
    variance = sum((value - mean) ** 2 for value in differences) / (k - 1)
    scale = sqrt((1 / k + rho / (1 - rho)) * variance)

    def mass_from_centre(t: float) -> float:
        """P(0 < T < t), over the angle atan(T / sqrt(df)), where the density is a power of the cosine."""
        df = k - 1
        norm = gamma((df + 1) / 2) / (sqrt(pi) * gamma(df / 2))
        steps = 500
        width = atan(t / sqrt(df)) / steps
        return sum(norm * cos((step + 0.5) * width) ** (df - 1) * width for step in range(steps))

    below = 0.5 + mass_from_centre((-rope - mean) / scale)
    up_to = 0.5 + mass_from_centre((rope - mean) / scale)
    return below, up_to - below, 1 - up_to


def benjamini_hochberg(p_values: list[float]) -> list[float]:
    """Smallest over all p of this rank or a higher one of p · m / rank."""
    m = len(p_values)
    ordered = sorted(p_values)
    corrected = []
    for p in p_values:
        candidates = [min(1.0, ordered[rank - 1] * m / rank) for rank in range(1, m + 1) if ordered[rank - 1] >= p]
        corrected.append(min(candidates))
    return corrected


def cluster_differences(
    true: np.ndarray, first: np.ndarray, second: np.ndarray, groups: np.ndarray, classes: int, draws: np.ndarray
) -> list[float]:
    """Difference in macro-F1 over the cells of the groups drawn, each as often as it was drawn."""
    cells = [[i for i in range(len(true)) if groups[i] == group] for group in range(draws.shape[1])]
    found = []
    for draw in draws:
        rows = [i for group, copies in enumerate(draw) for _ in range(copies) for i in cells[group]]
        labels = true[rows].tolist()
        found.append(macro_f1(labels, first[rows].tolist(), classes) - macro_f1(labels, second[rows].tolist(), classes))
    return found


def signed_rank_p(values: list[int]) -> float:
    """Two-sided p of the signed-rank sum, by every assignment of signs; zeros dropped, tied ranks averaged."""
    kept = [value for value in values if value != 0]
    if not kept:
        return 1.0
    sizes = sorted(abs(value) for value in kept)
    ranks = [sum(i + 1 for i, size in enumerate(sizes) if size == abs(v)) / sizes.count(abs(v)) for v in kept]
    observed = sum(rank for rank, value in zip(ranks, kept, strict=True) if value > 0)
    sums = [sum(r for r, sign in zip(ranks, signs, strict=True) if sign) for signs in product((0, 1), repeat=len(kept))]
    above = sum(one >= observed - 1e-9 for one in sums) / len(sums)
    under = sum(one <= observed + 1e-9 for one in sums) / len(sums)
    return min(1.0, 2 * min(above, under))


def friedman_p(scores: np.ndarray) -> float:
    """Share of all assignments of ranks within data sets whose rank sums spread as much as those seen."""
    sets, methods = scores.shape

    def spread(rows: list[tuple[int, ...]]) -> int:
        return sum(sum(row[method] for row in rows) ** 2 for method in range(methods))

    seen = spread([tuple(sorted(row).index(value) for value in row) for row in scores.tolist()])
    every = [spread(list(rows)) for rows in product(list(permutations(range(methods))), repeat=sets)]
    return sum(one >= seen for one in every) / len(every)
