"""The equations of the paper as naive loops in float64: slow, plain, and independent of the package."""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise, permutations, product
from math import atan, cos, exp, gamma, log, pi, sqrt

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


def _between(a: np.ndarray, b: np.ndarray, distance: str) -> float:
    if distance == "l1":
        return sum(abs(x - y) for x, y in zip(a, b, strict=True))
    return sqrt(sum((x - y) ** 2 for x, y in zip(a, b, strict=True)))


def distance_loss(
    p: np.ndarray,
    target: np.ndarray,
    distance: str,
    difference: str,
    form: str,
    floor: float = 1.0,
    weights: list[float] | None = None,
) -> float:
    """Eq. 2: 2 / (b(b-1)) times the sum over i > j."""
    b = len(p)
    pairs = [(i, j) for i in range(b) for j in range(i)]
    if not pairs:
        return 0.0
    d = {(i, j): _between(p[i], p[j], distance) for i, j in pairs}
    wanted = {(i, j): _between(target[i], target[j], distance) for i, j in pairs}
    if form == "scale_free":
        mean_d, mean_wanted = sum(d.values()) / len(pairs), sum(wanted.values()) / len(pairs)
        if mean_wanted == 0:
            return 0.0
        d = {pair: value / mean_d for pair, value in d.items()}
        wanted = {pair: value / mean_wanted for pair, value in wanted.items()}
    total = 0.0
    for i, j in pairs:
        value = d[i, j] - wanted[i, j]
        if form == "relative":
            value /= max(wanted[i, j], floor)
        value = abs(value) if difference == "absolute" else value**2
        total += value * (1.0 if weights is None else (weights[i] + weights[j]) / 2)
    return 2 / (b * (b - 1)) * total


def triplets(p: np.ndarray, labels: list[int], mining: str, margin: float) -> set[tuple[int, int, int]]:
    """Every triplet of the batch looked at; ties would go to the first."""
    b = len(p)
    found = set()
    for a in range(b):
        positives = [i for i in range(b) if i != a and labels[i] == labels[a]]
        negatives = [i for i in range(b) if labels[i] != labels[a]]
        if mining == "batch_hard":
            if positives and negatives:
                far = max(positives, key=lambda i: _between(p[a], p[i], "l2"))
                near = min(negatives, key=lambda i: _between(p[a], p[i], "l2"))
                found.add((a, far, near))
            continue
        for i in positives:
            for j in negatives:
                if 0 < _between(p[a], p[j], "l2") - _between(p[a], p[i], "l2") <= margin:
                    found.add((a, i, j))
    return found


def triplet_loss(
    p: np.ndarray, labels: list[int], mining: str, margin: float, weights: list[float] | None = None
) -> float:
    """Mean over the mined triplets of the hinge, each weighed by its anchor."""
    found = triplets(p, labels, mining, margin)
    total = 0.0
    for a, i, j in found:
        hinge = max(0.0, _between(p[a], p[i], "l2") - _between(p[a], p[j], "l2") + margin)
        total += hinge * (1.0 if weights is None else weights[a])
    return total / len(found) if found else 0.0


def class_centre_triplet_loss(
    p: np.ndarray, labels: list[int], margin: float, anchor: str, class_weight: dict[int, float] | None = None
) -> float:
    """Lei et al. 2020: class means of the batch as anchors, or as positives and negatives of each cell."""
    present = sorted(set(labels))
    if len(present) < 2:
        return 0.0
    members = {c: [p[i] for i in range(len(p)) if labels[i] == c] for c in present}
    centres = {c: [sum(x[k] for x in members[c]) / len(members[c]) for k in range(p.shape[1])] for c in present}
    terms = []
    for c in present:
        if anchor == "centre":
            far = max(_between(centres[c], x, "l2") for x in members[c])
            near = min(_between(centres[c], x, "l2") for other in present if other != c for x in members[other])
            terms.append((c, far - near + margin))
        else:
            for x in members[c]:
                near = min(_between(x, centres[other], "l2") for other in present if other != c)
                terms.append((c, _between(x, centres[c], "l2") - near + margin))
    weight = class_weight or dict.fromkeys(present, 1.0)
    return sum(weight[c] * max(0.0, value) for c, value in terms) / len(terms)


def cross_entropy(logits: np.ndarray, targets: np.ndarray, weights: list[float] | None = None) -> float:
    """Mean over the batch; targets (B, C) are shares."""
    total = 0.0
    for i, (row, target) in enumerate(zip(logits, targets, strict=True)):
        norm = sum(exp(value) for value in row)
        value = -sum(t * log(exp(x) / norm) for t, x in zip(target, row, strict=True))
        total += value * (1.0 if weights is None else weights[i])
    return total / len(logits)


def supervised_contrastive_loss(
    p: np.ndarray, labels: list[int], temperature: float, weights: list[float] | None = None
) -> float:
    """Khosla et al. 2020, eq. 2, over the cells that have a partner."""
    z = [row / sqrt(sum(value**2 for value in row)) for row in p]

    def closeness(i: int, j: int) -> float:
        return exp(sum(x * y for x, y in zip(z[i], z[j], strict=True)) / temperature)

    terms = []
    for i in range(len(p)):
        partners = [j for j in range(len(p)) if j != i and labels[j] == labels[i]]
        if partners:
            norm = sum(closeness(i, a) for a in range(len(p)) if a != i)
            value = -sum(log(closeness(i, j) / norm) for j in partners) / len(partners)
            terms.append(value * (1.0 if weights is None else weights[i]))
    return sum(terms) / len(terms) if terms else 0.0


def prototype_loss(
    p: np.ndarray,
    points: np.ndarray,
    labels: list[int],
    temperature: float,
    pull: float,
    weights: list[float] | None = None,
) -> float:
    """Yang et al. 2018: softmax over negative squared distances, and the squared distance to the own point."""
    total = 0.0
    for i, (x, label) in enumerate(zip(p, labels, strict=True)):
        squared = [_between(x, point, "l2") ** 2 for point in points]
        norm = sum(exp(-value / temperature) for value in squared)
        value = -log(exp(-squared[label] / temperature) / norm) + pull * squared[label]
        total += value * (1.0 if weights is None else weights[i])
    return total / len(p)


def soften(distances: np.ndarray, beta: float) -> np.ndarray:
    """Bertinetto et al. 2020, eq. 4."""
    longest = max(value for row in distances for value in row)
    rows = []
    for row in distances:
        shares = [exp(-beta * value / longest) for value in row]
        rows.append([share / sum(shares) for share in shares])
    return np.array(rows)


def length_paper(epoch: int, longest: int) -> int:
    """3.3: n = min(max(epoch, 2), n_max)."""
    return min(max(epoch, 2), longest)


def length_growing(epoch: int, longest: int, factor: int) -> int:
    """3.3 with 4.1's factor, the first three epochs kept at 2: the embedding opens `factor` components an epoch."""
    length = 2
    for now in range(epoch + 1):
        if now > 2:
            for _ in range(factor):
                if length < longest:
                    length += 1
    return length


def length_literal(epoch: int, longest: int, factor: int) -> int:
    """3.3 with 4.1's factor before the epoch: n = min(max(factor · epoch, 2), n_max)."""
    length = 0
    for _ in range(epoch):
        length += factor
    if length < 2:
        length = 2
    return longest if length > longest else length


def length_staged(epoch: int, longest: int, step: int, full_at: int) -> int:
    """Lengths 2, 2·step, 2·step², …, n_max; the k-th of K growths falls on share k / K of the way from epoch 2 on."""
    lengths = [2]
    while lengths[-1] < longest:
        lengths.append(min(lengths[-1] * step, longest))
    now = 2
    for k, length in enumerate(lengths):
        if k > 0 and (epoch - 2) * (len(lengths) - 1) >= k * (full_at - 2):
            now = length
    return now


def lengths_plateau(scores: list[float], longest: int, step: int, patience: int) -> list[int]:
    """Length of each epoch 0 … len(scores): multiplied when no epoch of the last `patience` beat those before them.

    Epochs 0-2 have length 2 and do not count; each new length starts counting anew.
    """
    lengths, best, waited = [], None, 0
    length = 2
    for epoch in range(len(scores) + 1):
        if best is not None and waited >= patience and length < longest:
            length, best, waited = min(length * step, longest), None, 0
        lengths.append(length)
        if epoch >= 3 and epoch < len(scores):
            if best is None or scores[epoch] > best:
                best, waited = scores[epoch], 0
            else:
                waited += 1
    return lengths


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


def hinge_objective(
    cells: list[list[float]], signs: list[float], weights: np.ndarray, intercept: float, c: float
) -> float:
    """½ |w|² + C Σ max(0, 1 - y (w·x + b)): the problem of a linear SVM for two classes (signs y = ±1)."""
    total = 0.5 * sum(float(w) ** 2 for w in weights)
    for x, sign in zip(cells, signs, strict=True):
        margin = float(intercept)
        for w, component in zip(weights, x, strict=True):
            margin += float(w) * component
        total += c * max(0.0, 1.0 - sign * margin)
    return total


def perceptron_objective(
    cells: list[list[float]], labels: list[int], weights: list[np.ndarray], offsets: list[np.ndarray], penalty: float
) -> float:
    """Mean cross-entropy of a multi-layer perceptron (ReLU, softmax) and ½ penalty Σ W², as MLPClassifier has it."""
    total = 0.0
    for x, label in zip(cells, labels, strict=True):
        values = list(x)
        for layer, (weight, offset) in enumerate(zip(weights, offsets, strict=True)):
            found = []
            for column in range(len(offset)):
                value = float(offset[column])
                for row, component in enumerate(values):
                    value += float(weight[row, column]) * component
                found.append(max(value, 0.0) if layer < len(weights) - 1 else value)
            values = found
        highest = max(values)
        total += highest + log(sum(exp(value - highest) for value in values)) - values[label]
    squares = sum(float(w) ** 2 for weight in weights for w in weight.ravel())
    return total / len(cells) + 0.5 * penalty * squares
