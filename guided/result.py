"""From the embedding of a fold's cells to its result: classifier by grid search, the test cells, once, and metrics."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace

import numpy as np

from guided import classify
from guided.config import Config
from guided.data import Dataset
from guided.folds import Fold
from guided.geometry import class_means
from guided.growth import is_warmup
from guided.guide import EmbeddingGuide
from guided.kept import Embedded
from guided.metrics import Cells, accuracy, evaluate, f1_per_class, macro_f1

Epoch = dict[str, float]
PARTS = ("train", "embed", "validate", "refresh")  # of an epoch, timed


@dataclass(frozen=True)
class FoldResult:
    """What a finished fold run leaves. Metrics are named as in the MLflow record."""

    metrics: dict[str, float]
    history: list[Epoch]
    classifier: str  # the winner of the grid, e.g. "svm C=0.1"
    grid: list[tuple[str, float]]  # inner macro-F1 of every grid point
    test_rows: np.ndarray  # (T,) rows of the data set
    predicted: np.ndarray  # (T,) classes
    scores: np.ndarray  # (T, C) float32
    embedding: np.ndarray  # (T, n) float16, of the test cells at the best epoch
    anchors: np.ndarray  # (C, n) float32, class means of the training cells there; NaN for a class without any
    guide: np.ndarray | None  # (C, n) the points the cells were drawn to at the best epoch; None: the loss has none
    notes: list[str] = field(default_factory=list)


def truncated(embedded: Embedded, components: int) -> Embedded:
    """The first `components` of every cell and point."""
    return replace(
        embedded,
        train=embedded.train[:, :components],
        validation=embedded.validation[:, :components],
        test=embedded.test[:, :components],
        points=None if embedded.points is None else embedded.points[:, :components],
    )


def result_of(
    embedded: Embedded,
    data: Dataset,
    fold: Fold,
    guide: EmbeddingGuide,
    config: Config,
    *,
    seed: int,
    began: float | None = None,
) -> FoldResult:
    """The result of a fold run whose cells are `embedded`, by the classifier options of `config`.

    Depends on nothing of the training but `embedded`: one that was kept gives the result of its training bit for bit,
    but for the time since `began` (time.perf_counter, default: now).
    """
    began = time.perf_counter() if began is None else began
    labels, classes, length = data.labels, len(data.classes), embedded.length
    cut = truncated(embedded, config.seen(length))
    chosen = classify.grid_search(cut.train, labels[fold.train], classes, config.classifier, seed=seed)
    predicted, true = chosen.predict(cut.test), labels[fold.test]
    metrics = {
        "test/f1_macro": macro_f1(true, predicted, classes),
        "test/accuracy": accuracy(true, predicted),
        "best/epoch": float(embedded.epoch),
        "best/length": float(length),
        "best/val_f1_macro": float(embedded.val_f1),
        "epochs/run": float(len(embedded.history)),
        "data/train_cells": float(len(fold.train)),
        "data/validation_cells": float(len(fold.validation)),
        "data/test_cells": float(len(fold.test)),
    }
    if embedded.by_head is not None:
        metrics["test/f1_macro_head"] = macro_f1(true, embedded.by_head, classes)
    per_class = zip(data.classes, f1_per_class(true, predicted, classes), strict=True)
    metrics |= {f"test/f1/{name}": float(f1) for name, f1 in per_class if not np.isnan(f1)}
    metrics |= evaluate(
        guide,
        Cells(cut.train, labels[fold.train]),
        Cells(cut.validation, labels[fold.validation]),
        Cells(cut.test, true),
        predicted,
        points=cut.points,
        maturity=None if data.maturity is None else data.maturity[fold.test],
    )
    for part in PARTS:
        metrics[f"time/{part}_total"] = sum(epoch[f"time/{part}"] for epoch in embedded.history)
    metrics["time/final"] = time.perf_counter() - began
    metrics["time/total"] = metrics["time/final"] + sum(metrics[f"time/{part}_total"] for part in PARTS)
    notes = list(fold.notes)
    if is_warmup(embedded.epoch, config.embedding):
        notes.append("best epoch lies in the warm-up")
    if length < config.embedding.length:
        notes.append(f"length {length} of {config.embedding.length} at the best epoch")
    return FoldResult(
        metrics=metrics,
        history=embedded.history,
        classifier=chosen.label,
        grid=list(chosen.grid),
        test_rows=fold.test,
        predicted=predicted,
        scores=chosen.scores(cut.test),
        embedding=cut.test.astype(np.float16),
        anchors=class_means(cut.train, labels[fold.train], classes).astype(np.float32),
        guide=None if cut.points is None else np.asarray(cut.points, dtype=np.float32),
        notes=notes,
    )
