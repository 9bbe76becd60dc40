"""Cross-validation (4.1): folds that keep related cells together, with a validation split inside the training part."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Literal

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from guided.config import Folds
from guided.data import Dataset


@dataclass(frozen=True)
class Fold:
    """Row indices of one fold, sorted. Raises ValueError unless the three parts are disjoint and not empty, and unless
    no group of cells stands in the test part and in another."""

    partition: int
    index: int
    train: np.ndarray  # (N,) int64
    validation: np.ndarray
    test: np.ndarray
    grouped_by: Literal["region", "patient", "none"]
    groups: np.ndarray | None  # (cells of the data set,) group of each cell
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        parts = {"training": self.train, "validation": self.validation, "test": self.test}
        where = f"fold {self.index} of partition {self.partition}"
        for name, rows in parts.items():
            if len(rows) == 0:
                raise ValueError(f"{where} has no {name} cells")
        everything = np.concatenate(list(parts.values()))
        if len(np.unique(everything)) != len(everything):
            raise ValueError(f"{where}: a cell stands in two parts")
        if self.groups is not None:
            shared = np.intersect1d(self.groups[self.test], self.groups[np.concatenate([self.train, self.validation])])
            if len(shared):
                raise ValueError(
                    f"{where}: {self.grouped_by} {str(shared[0])!r} stands in the test part and in another"
                )


def make_folds(data: Dataset, config: Folds, partition: int = 0) -> list[Fold]:
    """Stratified folds of a data set, grouped by region or patient, with 12.5 % of the training cells for validation.

    `partition` seeds the cut. Every cell is tested once. The validation cells are drawn by class (4.1: "12.5 % of the
    training data"), so training and validation may share a region. Raises ValueError where a grouping is asked for
    that the data do not have, or where there are fewer groups than folds.
    """
    grouped_by, groups = _groups(data, config)
    if groups is None:
        rare = int(np.bincount(data.labels, minlength=len(data.classes)).max())
        if rare < config.count:
            raise ValueError(f"folds.count is {config.count}, but no class has that many cells (at most {rare})")
        splitter: StratifiedGroupKFold | StratifiedKFold = StratifiedKFold(
            config.count, shuffle=True, random_state=partition
        )
    else:
        found = len(np.unique(groups))
        if found < config.count:
            raise ValueError(
                f"folds.count is {config.count}, but the data have {found} {grouped_by}s; "
                f"ask for at most {found} folds or another folds.group"
            )
        splitter = StratifiedGroupKFold(config.count, shuffle=True, random_state=partition)
    with warnings.catch_warnings():
        # A class with fewer cells than folds is named in the fold's notes instead.
        warnings.filterwarnings("ignore", message="The least populated class", category=UserWarning)
        cuts = list(splitter.split(np.zeros(len(data.labels)), data.labels, groups))
    folds = []
    for index, (rest, test) in enumerate(cuts):
        rng = np.random.default_rng([partition, index])
        held = _stratified_sample(data.labels[rest], config.validation, rng)
        train, validation = np.sort(rest[~held]), np.sort(rest[held])
        notes = [*_absent(data, train, "training"), *_absent(data, validation, "validation")]
        notes += [*_absent(data, test, "test"), *_shared_patients(data, grouped_by, rest, test)]
        folds.append(Fold(partition, index, train, validation, np.sort(test), grouped_by, groups, tuple(notes)))
    return folds


def _groups(data: Dataset, config: Folds) -> tuple[Literal["region", "patient", "none"], np.ndarray | None]:
    if config.group == "none":
        return "none", None
    if config.group in ("auto", "region") and data.region is not None:
        return "region", data.region
    if config.group in ("auto", "patient") and data.patient is not None:
        return "patient", data.patient
    if config.group == "auto":
        return "none", None
    raise ValueError(f"folds.group is {config.group}, but the data {data.name!r} name no {config.group}s")


def _stratified_sample(labels: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Mask (N,) of a sample of `share` of the cells: systematic sampling through the cells ordered by class, in random
    order within a class, so that every class gives its share up to one cell."""
    order = np.lexsort((rng.random(len(labels)), labels))
    position = np.arange(len(labels)) + 1
    start = rng.random()
    chosen = np.floor(position * share + start) > np.floor((position - 1) * share + start)
    mask = np.zeros(len(labels), dtype=bool)
    mask[order[chosen]] = True
    return mask


def _absent(data: Dataset, rows: np.ndarray, part: str) -> list[str]:
    absent = np.setdiff1d(np.arange(len(data.classes)), data.labels[rows])
    return [f"no {part} cell of {', '.join(data.classes[c] for c in absent)}"] if len(absent) else []


def _shared_patients(data: Dataset, grouped_by: str, rest: np.ndarray, test: np.ndarray) -> list[str]:
    if data.patient is None or grouped_by == "patient":
        return []
    shared = np.intersect1d(data.patient[rest], data.patient[test])
    return [f"patients in training and test: {', '.join(shared.tolist())}"] if len(shared) else []
