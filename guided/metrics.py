"""Scores of a fold, over the fixed set of classes of the data."""

from __future__ import annotations

import numpy as np


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
