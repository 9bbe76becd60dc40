"""Classifiers on the embedding (4.1): linear SVM, kNN and MLP by grid search, and cheap ones for every epoch.

Everything is fitted on training cells only and standardised with their mean and sd; inside the grid search with those
of the inner training part, so that no inner test cell leaks into its own scaling.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from scipy.special import softmax
from sklearn.model_selection import KFold, StratifiedKFold

from guided.config import Classifier
from guided.linear_svm import LinearSVM
from guided.metrics import macro_f1
from guided.neighbours import nearest_among
from guided.perceptron import Perceptron

Values = dict[str, Any]


class Model(Protocol):
    """A fitted classifier of embeddings (N, n)."""

    def scores(self, x: np.ndarray) -> np.ndarray:
        """Score (N, C) float32 of every class; comparable within a row only."""
        ...


def predict(model: Model, x: np.ndarray) -> np.ndarray:
    """Class (N,) of the highest score; of equal ones the first."""
    return model.scores(x).argmax(1)


@dataclass(frozen=True)
class Scaled:
    """A model behind the standardisation of its training cells."""

    mean: np.ndarray
    sd: np.ndarray
    model: Model

    def scores(self, x: np.ndarray) -> np.ndarray:
        return self.model.scores((x - self.mean) / self.sd)

    def predict(self, x: np.ndarray) -> np.ndarray:
        return predict(self, x)


@dataclass(frozen=True)
class Chosen(Scaled):
    """The winner of a grid search, refitted on all training cells."""

    family: str
    values: Values
    inner_f1: float
    grid: tuple[tuple[str, float], ...]  # every point and its inner macro-F1, in the order of the search

    @property
    def label(self) -> str:
        """What a person reads, e.g. "svm C=0.1"."""
        return _label(self.family, self.values)


def standardiser(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and sd (n,) of x (N, n), in its type; the sd of a constant component is 1, so that it stays at zero."""
    # Summed row by row in single precision, thousands of cells lose digits.
    mean, sd = x.mean(0, dtype=np.float64), x.std(0, dtype=np.float64)
    # Rounding leaves a constant component a sd of a few ulp; divided by that it would become noise.
    constant = sd <= 1e-6 * np.abs(mean) + np.finfo(x.dtype).tiny
    return mean.astype(x.dtype), np.where(constant, 1.0, sd).astype(x.dtype)


def grid_search(x: np.ndarray, y: np.ndarray, classes: int, config: Classifier, *, seed: int) -> Chosen:
    """The grid of 4.1 on training cells x (N, n) with labels y (N,) in 0..classes-1.

    Inner stratified folds; the grid point with the highest macro-F1, averaged over them, wins (the first of equals) and
    is fitted again on all cells. A fold's macro-F1 is over the classes that have a cell in its test part. SVM has
    libsvm's objective and votes (linear kernel, hinge loss, one against one), not liblinear's other objective. MLP has
    the objective of scikit-learn's MLPClassifier. kNN with more neighbours than cells asks all of them. A class with
    fewer cells than inner folds is spread as far as it goes.
    Depends on nothing but its arguments, and not on the order of the classes but for what that order changes in the
    solvers of SVM and MLP. Raises ValueError for values that are not finite, labels outside the classes or a single
    class.
    """
    _check(x, y, classes)
    points = list(_points(config))
    totals = np.zeros(len(points))
    folds = min(config.inner_folds, len(y))
    for train, test in _inner_folds(y, folds, seed):
        mean, sd = standardiser(x[train])
        inner_train, inner_test = (x[train] - mean) / sd, (x[test] - mean) / sd
        predictions = _predictions(points, inner_train, y[train], inner_test, classes, seed)
        totals += [macro_f1(y[test], predicted, classes) for predicted in predictions]
    scores = (totals / folds).tolist()
    # Equal scores may differ by the order of their sums, which is the order of the classes.
    best = int(np.argmax(np.round(scores, 12)))
    family, values = points[best]
    mean, sd = standardiser(x)
    return Chosen(
        mean=mean,
        sd=sd,
        model=_fit(family, values, (x - mean) / sd, y, classes, seed),
        family=family,
        values=values,
        inner_f1=scores[best],
        grid=tuple((_label(*point), score) for point, score in zip(points, scores, strict=True)),
    )


def fit(name: Literal["centroid", "knn"], x: np.ndarray, y: np.ndarray, classes: int) -> Scaled:
    """A cheap classifier for every epoch: nearest class mean, or five nearest neighbours, standardised.

    The nearest mean is taken in units of the training cells' sd, component by component.
    """
    _check(x, y, classes)
    mean, sd = standardiser(x)
    z = (x - mean) / sd
    model: Model = _Centroids.fit(z, y, classes) if name == "centroid" else _KNN(z, y, classes, 5, "uniform")
    return Scaled(mean, sd, model)


def _check(x: np.ndarray, y: np.ndarray, classes: int) -> None:
    if len(x) != len(y):
        raise ValueError(f"{len(y)} labels for {len(x)} cells")
    if not np.isfinite(x).all():
        raise ValueError("the embedding has values that are not finite")
    if len(y) and (y.min() < 0 or y.max() >= classes):
        raise ValueError(f"labels reach from {y.min()} to {y.max()}; {classes} classes go from 0 to {classes - 1}")
    if len(np.unique(y)) < 2:
        raise ValueError("the training cells are all of one class; a classifier needs at least two")


def _points(config: Classifier) -> Iterator[tuple[str, Values]]:
    for family in config.families:
        if family == "svm":
            yield from (("svm", {"C": c}) for c in config.svm_c)
        elif family == "knn":
            yield from (("knn", {"k": k, "weights": weights}) for k in config.knn_k for weights in config.knn_weights)
        else:
            yield from (("mlp", {"hidden": hidden}) for hidden in config.mlp_hidden)


def _predictions(
    points: list[tuple[str, Values]], z: np.ndarray, y: np.ndarray, asked: np.ndarray, classes: int, seed: int
) -> Iterator[np.ndarray]:
    """Classes (M,) of standardised cells asked (M, n) from each point of the grid, fitted on z (N, n) with y (N,)."""
    ks = [values["k"] for family, values in points if family == "knn"]
    if ks:
        neighbours = _Neighbours(z, y, classes, max(ks))
        near = neighbours.of(asked)
    asked_for = {family for family, _ in points} if len(np.unique(y)) > 1 else set()
    margins = LinearSVM(z, y) if "svm" in asked_for else None
    networks = Perceptron(z, y) if "mlp" in asked_for else None
    for family, values in points:
        if family == "knn":
            yield neighbours.vote(*near, values["k"], values["weights"]).argmax(1)
        elif family == "svm" and margins is not None:
            yield predict(_Linear.solved(margins, values["C"], classes), asked)
        elif family == "mlp" and networks is not None:
            yield predict(_Layers.solved(networks, values["hidden"], seed, classes), asked)
        else:
            yield predict(_fit(family, values, z, y, classes, seed), asked)


def _label(family: str, values: Values) -> str:
    return " ".join(
        [family, *(f"{key}={value:g}" if key == "C" else f"{key}={value}" for key, value in values.items())]
    )


def _inner_folds(y: np.ndarray, folds: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    rows = np.zeros((len(y), 1))
    if np.unique(y, return_counts=True)[1].max() < folds:  # no class fills the folds: StratifiedKFold would refuse
        yield from KFold(folds, shuffle=True, random_state=seed).split(rows)
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class")  # rare classes are what we have
        yield from StratifiedKFold(folds, shuffle=True, random_state=seed).split(rows, y)


def _fit(family: str, values: Values, z: np.ndarray, y: np.ndarray, classes: int, seed: int) -> Model:
    """A model of standardised cells z."""
    if len(np.unique(y)) == 1:  # can happen in an inner fold only
        return _Constant(int(y[0]), classes)
    if family == "knn":
        return _KNN(z, y, classes, values["k"], values["weights"])
    if family == "svm":
        return _Linear.solved(LinearSVM(z, y), values["C"], classes)
    return _Layers.solved(Perceptron(z, y), values["hidden"], seed, classes)


def _of_all(known: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Scores (N, C) float32 from those (N, K) of the classes `labels` (K,) that were seen; a class that was not scores
    below every other of its row. (-inf would not survive arithmetic.)"""
    scores = np.empty((len(known), classes), dtype=np.float32)
    scores[:] = known.min(1, keepdims=True) - 1
    scores[:, labels] = known
    return scores


@dataclass(frozen=True)
class _Constant:
    label: int
    classes: int

    def scores(self, x: np.ndarray) -> np.ndarray:
        return np.tile(np.eye(self.classes, dtype=np.float32)[self.label], (len(x), 1))


@dataclass(frozen=True)
class _Centroids:
    means: np.ndarray  # (C, n); a class without cells lies at infinity

    @classmethod
    def fit(cls, z: np.ndarray, y: np.ndarray, classes: int) -> _Centroids:
        means = np.full((classes, z.shape[1]), np.inf)
        for label in np.unique(y):
            means[label] = z[y == label].mean(0)
        return cls(means)

    def scores(self, x: np.ndarray) -> np.ndarray:
        scores = np.full((len(x), len(self.means)), -np.inf, dtype=np.float32)
        for label in np.flatnonzero(np.isfinite(self.means).all(1)):
            scores[:, label] = -np.linalg.norm(x - self.means[label], axis=1)
        return scores


@dataclass(frozen=True)
class _Linear:
    """A linear SVM by its planes, one for each pair of classes, positive for the first of the two. Scores are the votes
    of all pairs, as libsvm counts them; scikit-learn breaks ties by the sum of margins."""

    known: np.ndarray  # (K,) classes it was fitted on, ascending
    planes: np.ndarray  # (K(K-1)/2, n), pairs in the order 0-1, 0-2, …, 1-2, …
    offsets: np.ndarray  # (K(K-1)/2,)
    classes: int

    @classmethod
    def solved(cls, margins: LinearSVM, c: float, classes: int) -> _Linear:
        planes, offsets, _ = margins.solve(c)
        return cls(margins.labels, planes, offsets, classes)

    def scores(self, x: np.ndarray) -> np.ndarray:
        margins = x.astype(np.float64) @ self.planes.T + self.offsets
        first, second = np.triu_indices(len(self.known), 1)
        pairs = np.arange(len(first))
        sides = np.zeros((len(pairs), len(self.known)))
        sides[pairs, first], sides[pairs, second] = 1.0, -1.0
        known = margins @ sides
        if len(self.known) > 2:
            votes = np.where(margins >= 0, 1, -1) @ sides  # won less lost: twice the won, but for a constant
            known = votes / 2 + known / (3 * (np.abs(known) + 1))  # a third at most: ranks ties only
        return _of_all(known, self.known, self.classes)


@dataclass(frozen=True)
class _Layers:
    """A multi-layer perceptron by its weights: ReLU between the layers, softmax at the end."""

    known: np.ndarray  # (K,) classes it was fitted on, ascending
    weights: tuple[np.ndarray, ...]
    offsets: tuple[np.ndarray, ...]
    classes: int

    @classmethod
    def solved(cls, networks: Perceptron, hidden: tuple[int, ...], seed: int, classes: int) -> _Layers:
        return cls(networks.labels, *networks.solve(hidden, seed), classes)

    def scores(self, x: np.ndarray) -> np.ndarray:
        for weight, offset in zip(self.weights[:-1], self.offsets[:-1], strict=True):
            x = np.maximum(x @ weight + offset, 0)
        return _of_all(softmax(x @ self.weights[-1] + self.offsets[-1], axis=1), self.known, self.classes)


class _Neighbours:
    """Sorted nearest training cells, from which every (k, weights) votes: one list serves the whole grid."""

    def __init__(self, z: np.ndarray, y: np.ndarray, classes: int, most: int) -> None:
        self._z = z.astype(np.float64)
        self._y, self._classes, self._most = y, classes, min(most, len(z))

    def of(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Classes and distances (N, most) of the nearest training cells; of equally near ones the earlier first.

        Which of several cells equally near at the end of the list are in it is left to rounding.
        """
        indices, distances = nearest_among(self._z, x.astype(np.float64), self._most)
        return self._y[indices], distances

    def vote(self, labels: np.ndarray, distances: np.ndarray, k: int, weights: str) -> np.ndarray:
        """Share (N, C) float32 of the first k neighbours' weight per class; `distance` weighs by 1/d, and where a
        neighbour coincides only those count (scikit-learn's rule).

        Of classes with equal shares the one with the nearest cell is lifted by one ulp and so predicted: scikit-learn
        takes the first class, which would favour it at every tie and make results depend on the order of the classes.
        """
        labels, distances = labels[:, :k], distances[:, :k]
        if weights == "uniform":
            weight = np.ones_like(distances)
        else:
            coincide = distances == 0
            weight = 1 / np.where(coincide, 1.0, distances)
            some = coincide.any(1)
            weight[some] = coincide[some]
        rows = np.arange(len(labels))
        places = labels + self._classes * rows[:, None]
        votes = np.bincount(places.ravel(), weight.ravel(), len(labels) * self._classes).reshape(-1, self._classes)
        highest = votes >= votes.max(1, keepdims=True) * (1 - 1e-12)
        nearest = np.take_along_axis(highest, labels, 1).argmax(1)  # the first neighbour of a class with the most
        shares = (votes / votes.sum(1, keepdims=True)).astype(np.float32)
        shares[rows, labels[rows, nearest]] = np.nextafter(shares.max(1), np.float32(2))
        return shares


class _KNN:
    def __init__(self, z: np.ndarray, y: np.ndarray, classes: int, k: int, weights: str) -> None:
        self.cells, self.labels, self.k, self.weights = z, y, k, weights
        self._neighbours = _Neighbours(z, y, classes, k)

    def scores(self, x: np.ndarray) -> np.ndarray:
        return self._neighbours.vote(*self._neighbours.of(x), self.k, self.weights)


# --- as arrays ------------------------------------------------------------------------------------------------------


def portable(chosen: Scaled) -> Scaled:
    """The same classifier without the grid that chose it: what `to_arrays` can take apart.

    Raises ValueError for one that only knows a single class.
    """
    if isinstance(chosen.model, _Constant):
        raise ValueError("the classifier knows a single class; there is nothing to keep")
    return Scaled(chosen.mean, chosen.sd, chosen.model)


def to_arrays(classifier: Scaled) -> dict[str, np.ndarray]:
    """A `portable` classifier as plain arrays: a file of them can be read without running code that came with it."""
    arrays, model = {"mean": classifier.mean, "sd": classifier.sd}, classifier.model
    if isinstance(model, _KNN):
        arrays |= {"cells": model.cells, "labels": model.labels}
        return arrays | {"family": np.array("knn"), "k": np.array(model.k), "weights": np.array(model.weights)}
    if isinstance(model, _Linear):
        arrays |= {"planes": model.planes, "offsets": model.offsets}
        return arrays | {"family": np.array("svm"), "known": model.known}
    if isinstance(model, _Layers):
        for layer, (weight, offset) in enumerate(zip(model.weights, model.offsets, strict=True)):
            arrays |= {f"weight{layer}": weight, f"offset{layer}": offset}
        return arrays | {"family": np.array("mlp"), "known": model.known}
    raise ValueError(f"a {type(model).__name__} is no portable classifier")


def from_arrays(arrays: Mapping[str, np.ndarray], classes: int) -> Scaled:
    """The classifier of `to_arrays`, for `classes` classes.

    Raises KeyError for an array that is not there, ValueError for a perceptron without an output for each class it
    knows: before METHOD_VERSION 3 one of two classes had a single output.
    """
    family = str(arrays["family"])
    model: Model
    if family == "knn":
        model = _KNN(arrays["cells"], arrays["labels"], classes, int(arrays["k"]), str(arrays["weights"]))
    elif family == "svm":
        model = _Linear(arrays["known"], arrays["planes"], arrays["offsets"], classes)
    else:
        layers = sum(name.startswith("weight") for name in arrays)
        weights, offsets = (tuple(arrays[f"{kind}{n}"] for n in range(layers)) for kind in ("weight", "offset"))
        if len(offsets[-1]) != len(arrays["known"]):
            raise ValueError(
                f"its MLP has {len(offsets[-1])} outputs for {len(arrays['known'])} classes, as before METHOD_VERSION "
                "3; write it again"
            )
        model = _Layers(arrays["known"], weights, offsets, classes)
    return Scaled(arrays["mean"], arrays["sd"], model)
