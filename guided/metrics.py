"""Scores of a fold, over the fixed set of classes of the data; `evaluate` gathers all that a fold run records.

Labels and predictions are (N,) in 0..C-1. A value per class is NaN where it is undefined, a single value is None; the
record leaves it out, for a missing result is no number. Imports no torch: analysis may use it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp, softmax
from scipy.stats import rankdata

from guided.geometry import (
    LineagePath,
    class_means,
    class_spread,
    effective_rank,
    lineage_paths,
    silhouette,
    spread,
    squared_distances,
)
from guided.guide import EmbeddingGuide

BINS = 15  # of the calibration error, as in Guo et al. 2017
REACH = 1e4  # a temperature is sought so far on both sides of the typical distance


def f1_per_class(true: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """F1 = 2·TP / (2·TP + FP + FN) of each class, (C,); NaN for a class without a true cell among `true` (N,).

    Such a class has no recall to measure. Cells wrongly given to it still count, as misses of their own classes.
    """
    confusion = np.bincount(true * classes + predicted, minlength=classes * classes).reshape(classes, classes)
    hits = np.diag(confusion).astype(np.float64)
    support, given = confusion.sum(1), confusion.sum(0)
    with np.errstate(invalid="ignore"):
        f1 = 2 * hits / (support + given)
    return np.where(support > 0, f1, np.nan)


def macro_f1(true: np.ndarray, predicted: np.ndarray, classes: int) -> float:
    """Mean F1 over the classes that have a true cell (4.1: "macro-averaged F1")."""
    if len(true) == 0:
        raise ValueError("macro-F1 of no cells is undefined")
    return float(np.nanmean(f1_per_class(true, predicted, classes)))


def accuracy(true: np.ndarray, predicted: np.ndarray) -> float:
    """Share of cells that are right."""
    return float(np.mean(true == predicted))


# --- lineages -------------------------------------------------------------------------------------------------------


def lineage_distances(lineages: Sequence[str], stages: Sequence[float]) -> np.ndarray:
    """Distance (C, C) in stages between classes of `lineages` (C,) and `stages` (C,) on the lineage tree.

    The root is the undifferentiated cell, stage 0 (or the least stage, where one is below 0); each lineage is a chain
    that leaves it, with a class as deep as its stage. Two classes are as far apart as the way through their lowest
    common ancestor is long: within a lineage the number of stages between them, across lineages the sum of their
    depths. (Bertinetto et al. 2020 take the ancestor's height, with all classes as leaves; for two leaves of one depth
    that is half of this. Here a class may be the ancestor of another.) Different classes are never at 0, or their
    confusion would cost nothing: those at one place of the tree are as far apart as the closest of the others, or 1
    where no others are. Without lineages and stages every mistake thus costs 1.
    """
    lineage, depth = np.array(lineages), np.array(stages, dtype=np.float64)
    depth = depth - min(0.0, depth.min())
    same = lineage[:, None] == lineage
    way = np.where(same, np.abs(depth[:, None] - depth), depth[:, None] + depth)
    step = way[way > 0].min() if (way > 0).any() else 1.0
    way = np.where(way > 0, way, step)
    np.fill_diagonal(way, 0.0)
    return way


def severity(true: np.ndarray, predicted: np.ndarray, distances: np.ndarray) -> float:
    """Mean distance (C, C) between true and predicted class over all cells (Bertinetto et al. 2020, "average
    hierarchical distance"): 0 where all are right; few grave mistakes may equal many slight ones."""
    if len(true) == 0:
        raise ValueError("the severity of no cells is undefined")
    return float(distances[true, predicted].mean())


def mistake_severity(true: np.ndarray, predicted: np.ndarray, distances: np.ndarray) -> float | None:
    """The same over mistakes alone (Bertinetto et al. 2020, "hierarchical distance of a mistake"): how grave a mistake
    is, however many there are. None where there is none."""
    wrong = true != predicted
    return severity(true[wrong], predicted[wrong], distances) if wrong.any() else None


def lineage_accuracy(true: np.ndarray, predicted: np.ndarray, lineages: Sequence[str]) -> float:
    """Share of cells whose predicted class is of the right lineage."""
    lineage = np.unique(lineages, return_inverse=True)[1]
    return accuracy(lineage[true], lineage[predicted])


def staged_cells(
    true: np.ndarray, predicted: np.ndarray, lineages: Sequence[str], stages: Sequence[float]
) -> np.ndarray:
    """Mask (N,) of the cells whose maturity can be judged: the predicted lineage is right and has several stages."""
    lineage, stage = np.unique(lineages, return_inverse=True)[1], np.array(stages, dtype=np.float64)
    several = np.array([np.ptp(stage[lineage == own]) > 0 for own in lineage])
    return (lineage[true] == lineage[predicted]) & several[true]


def maturity_error(predicted: np.ndarray, maturity: np.ndarray) -> float | None:
    """Mean absolute difference in stages between the stages (N,) of the predicted classes and the true maturity (N,),
    a stage or a continuous value. None of no cells."""
    return float(np.abs(predicted - maturity).mean()) if len(maturity) else None


def pooled_spearman(first: np.ndarray, second: np.ndarray, groups: np.ndarray) -> float | None:
    """Spearman's rank correlation (1904) of two values (N,) within groups (N,), pooled over them.

    Ranks are taken within a group, centred and divided by its number of cells; the correlation is Pearson's over all
    cells. What separates groups so counts for nothing, a group counts by its cells, and one whose ranks are all tied
    in one value adds to the other's variance: the constant answer earns 0. For one group it is Spearman's own. None
    where a value is constant within each group.
    """
    first_ranks, second_ranks = ranks = np.zeros((2, len(groups)))
    for group in np.unique(groups):
        rows = groups == group
        for own, values in zip(ranks, (first, second), strict=True):
            own[rows] = (rankdata(values[rows]) - (rows.sum() + 1) / 2) / rows.sum()
    norm = np.linalg.norm(first_ranks) * np.linalg.norm(second_ranks)
    return float(first_ranks @ second_ranks / norm) if norm > 0 else None


# --- confidence -----------------------------------------------------------------------------------------------------


def fit_temperature(squared: np.ndarray, labels: np.ndarray) -> float:
    """The temperature T > 0 for which softmax(-d²/T) of squared distances d² (N, C) gives the labels (N,) the highest
    likelihood (temperature scaling, Guo et al. 2017, of the distances of a prototypical network, Snell et al. 2017).

    To be fitted on validation cells: on training cells a network is surer than it should be, and test cells are for
    testing. A class at infinity has no share; its cells tell nothing and are left out. T is sought within a factor of
    10⁴ around the mean by which the other classes are farther than the nearest: where all cells are nearest to their
    own class the likelihood has no maximum. Where no class is farther than another every T gives the same, and it is 1.
    Raises ValueError where no cell is left.
    """
    known = np.isfinite(squared[np.arange(len(labels)), labels])
    if not known.any():
        raise ValueError("no cell is of a class with an anchor: a temperature cannot be fitted")
    gaps = squared[known] - squared[known].min(1, keepdims=True)
    own = gaps[np.arange(len(gaps)), labels[known]]
    scale = float(gaps[np.isfinite(gaps)].mean())
    if scale == 0:
        return 1.0

    def cost(log_t: float) -> float:  # convex in 1/T, so with one minimum in log T
        return float(np.mean(own / np.exp(log_t) + logsumexp(-gaps / np.exp(log_t), axis=1)))

    bounds = (np.log(scale / REACH), np.log(scale * REACH))
    return float(np.exp(minimize_scalar(cost, bounds=bounds, method="bounded").x))


def confidences(squared: np.ndarray, temperature: float, predicted: np.ndarray) -> np.ndarray:
    """Confidence (N,) in the predicted classes (N,): their share in softmax(-d²/T) of squared distances d² (N, C)."""
    return softmax(-squared / temperature, axis=1)[np.arange(len(predicted)), predicted]


def calibration_error(confidence: np.ndarray, right: np.ndarray, bins: int = BINS) -> float:
    """Expected calibration error of confidences (N,) with `right` (N,) bool, in bins of equal mass (adaptive; Nguyen &
    O'Connor 2015, Nixon et al. 2019): Σ_bins share of cells · |share that is right - mean confidence|.

    Cells are cut by rank into `bins` bins. Cells of equal confidence share the bin of the first of them, so that the
    order of the cells means nothing; fewer cells than bins have bins of their own. Raises ValueError for no cells.
    """
    if len(confidence) == 0:
        raise ValueError("the calibration error of no cells is undefined")
    place = (rankdata(confidence, method="min").astype(np.int64) - 1) * bins // len(confidence)
    return float(np.abs(np.bincount(place, right - confidence)).sum() / len(confidence))


def risk_coverage_area(confidence: np.ndarray, right: np.ndarray) -> float:
    """Area under the risk-coverage curve, AURC (Geifman et al. 2019): the share of mistakes among the k most confident
    cells, averaged over k = 1..N.

    Cells of equal confidence are taken in the mean over all their orders. Raises ValueError for no cells.
    """
    if len(confidence) == 0:
        raise ValueError("the risk-coverage area of no cells is undefined")
    _, place, counts = np.unique(-confidence, return_inverse=True, return_counts=True)
    share = np.bincount(place, ~right) / counts
    return float(np.mean(np.cumsum(np.repeat(share, counts)) / np.arange(1, len(right) + 1)))


def excess_risk_coverage_area(confidence: np.ndarray, right: np.ndarray) -> float:
    """AURC beyond that of a perfect order, all mistakes last, at the same accuracy (E-AURC, Geifman et al. 2019; here
    with the exact sum): compares confidences of classifiers that are not equally good. 0 is perfect."""
    return risk_coverage_area(confidence, right) - risk_coverage_area(right.astype(np.float64), right)


# --- all of a fold run ----------------------------------------------------------------------------------------------


class Cells(NamedTuple):
    """Embedded cells of one part of a fold."""

    embedding: np.ndarray  # (N, n)
    labels: np.ndarray  # (N,)


def evaluate(
    guide: EmbeddingGuide,
    train: Cells,
    validation: Cells,
    test: Cells,
    predicted: np.ndarray,
    *,
    points: np.ndarray | None,
    maturity: np.ndarray | None,
) -> dict[str, float]:
    """Everything beyond F1 that a fold run records of its predictions (T,) of the test cells, named as in the record.

    `points` (C, n) is where the loss draws the classes, None for a loss that draws to none; `maturity` (T,) is the true
    continuous maturity of the test cells, where it is known. Scores and shapes are those of the test cells. Training
    cells only lend their class means, as anchors of the confidence and of the lineages' paths on which maturity is
    read; validation cells only fit the temperature. Undefined metrics are left out. See the functions for each.
    """
    lineages, stages, classes = guide.lineages, guide.stages, len(guide.classes)
    true, right = test.labels, test.labels == predicted
    means = class_means(*train, classes)
    found: dict[str, float | None] = {}
    distances = lineage_distances(lineages, stages)
    found["test/severity"] = severity(true, predicted, distances)
    found["test/mistake_severity"] = mistake_severity(true, predicted, distances)
    found["test/lineage_accuracy"] = lineage_accuracy(true, predicted, lineages)
    found |= _maturity(guide, lineage_paths(means, lineages, stages), test, predicted, maturity)
    found |= _shape(guide, test)
    found |= _confidence("", means, validation, test, predicted, right)
    if points is not None:
        found |= _confidence("guide_", points, validation, test, predicted, right)
    return {name: value for name, value in found.items() if value is not None}


def _maturity(
    guide: EmbeddingGuide,
    paths: dict[str, LineagePath],
    test: Cells,
    predicted: np.ndarray,
    maturity: np.ndarray | None,
) -> dict[str, float | None]:
    """Maturity as predicted (over the cells whose lineage is right) and as read off the embedding (over all cells of a
    lineage that has a path), within lineages."""
    lineage, stage = np.array(guide.lineages), np.array(guide.stages)
    judged = staged_cells(test.labels, predicted, guide.lineages, guide.stages)
    told, group = stage[predicted[judged]], lineage[test.labels[judged]]
    read = np.full(len(test.labels), np.nan)
    for name, path in paths.items():
        rows = lineage[test.labels] == name
        read[rows] = path.maturity(test.embedding[rows])
    on_path = ~np.isnan(read)
    read, read_group = read[on_path], lineage[test.labels[on_path]]
    found: dict[str, float | None] = {"test/maturity_cells": float(judged.sum())}
    against = {"": stage[test.labels]} | ({} if maturity is None else {"true_": maturity})
    for kind, truth in against.items():
        found[f"test/{kind}maturity_error"] = maturity_error(told, truth[judged])
        found[f"test/{kind}maturity_correlation"] = pooled_spearman(told, truth[judged], group)
        found[f"embedding/{kind}maturity_correlation"] = pooled_spearman(read, truth[on_path], read_group)
    if maturity is not None:  # beyond what the class already tells: the place between two stages
        within = pooled_spearman(read, maturity[on_path], test.labels[on_path])
        found["embedding/true_maturity_within_class"] = within
    return found


def _shape(guide: EmbeddingGuide, test: Cells) -> dict[str, float | None]:
    classes = len(guide.classes)
    spreads = class_spread(*test, classes)
    found: dict[str, float | None] = {
        "embedding/spread": spread(spreads),
        "embedding/effective_rank": effective_rank(test.embedding),
        "embedding/silhouette": silhouette(*test),
    }
    found |= {
        f"embedding/class_spread/{name}": float(value)
        for name, value in zip(guide.classes, spreads, strict=True)
        if not np.isnan(value)
    }
    paths = lineage_paths(class_means(*test, classes), guide.lineages, guide.stages)
    for kind in ("straightness", "order"):
        values = {name: value for name, path in paths.items() if (value := getattr(path, kind)) is not None}
        found |= {f"embedding/lineage_{kind}/{name}": value for name, value in values.items()}
        found[f"embedding/{kind}"] = float(np.mean(list(values.values()))) if values else None
    return found


def _confidence(
    prefix: str, anchors: np.ndarray, validation: Cells, test: Cells, predicted: np.ndarray, right: np.ndarray
) -> dict[str, float | None]:
    """Calibration and risk-coverage of the confidence by distance to the anchors (C, n) of the classes."""
    held = squared_distances(validation.embedding, anchors)
    if not np.isfinite(held[np.arange(len(held)), validation.labels]).any():
        return {}
    temperature = fit_temperature(held, validation.labels)
    confidence = confidences(squared_distances(test.embedding, anchors), temperature, predicted)
    return {
        f"confidence/{prefix}temperature": temperature,
        f"test/{prefix}ece": calibration_error(confidence, right),
        f"test/{prefix}aurc": risk_coverage_area(confidence, right),
        f"test/{prefix}aurc_excess": excess_risk_coverage_area(confidence, right),
    }
