"""What the figures of cells need of a study's files: a bounded number of them, however many fold runs there are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from analysis.artifacts import (
    FoldFiles,
    Thumbnails,
    load_classes,
    load_curves,
    load_fold,
    load_thumbnails,
    load_versions,
)
from analysis.figures import shown_rows
from analysis.lineages import Classes
from analysis.pictures import of_repeats
from analysis.repeats import symmetry_of
from analysis.runs import FINISHED, LOSS
from analysis.tables import Comparison
from analysis.views import View, view
from guided.geometry import Symmetry

MOST_VARIANTS, MOST_FOLDS, MOST_SEEDS = 8, 10, 6
MOST_CELLS = 1500  # of a fold that are laid out for its figure; together, of all folds of a variant, for the explorer


@dataclass(frozen=True)
class Laid:
    """Cells of a fold with their place in the plane."""

    files: FoldFiles
    view: View


@dataclass(frozen=True)
class Evidence:
    """Files of the variants that figures show (see shown_rows), of the first partition and seed; by variant and fold,
    only what has finished. `repeats` holds class means over seeds (R, C, n), symmetry and guide (C, 2), of the first
    fold."""

    classes: Classes
    thumbnails: Thumbnails | None
    folds: Mapping[str, Mapping[int, FoldFiles]]
    laid: Mapping[str, Mapping[int, Laid]]
    curves: Mapping[str, list[pd.DataFrame]]
    repeats: Mapping[str, tuple[np.ndarray, Symmetry, np.ndarray]]
    versions: dict[str, str]


def gather(uri: str, comparison: Comparison) -> Evidence:
    """Read and lay out what the figures of cells need: at most MOST_VARIANTS variants x MOST_FOLDS folds, MOST_SEEDS
    seeds. Raises ValueError where no fold run has finished, or for files that cannot be of this study."""
    study = comparison.study
    classes, thumbnails = load_classes(uri, study), load_thumbnails(uri, study)
    pictured = set(thumbnails.ids) if thumbnails else set()
    finished = study.frame[study.frame["status"] == FINISHED]
    partition = int(study.frame["partition"].iloc[0])
    folds: dict[str, dict[int, FoldFiles]] = {}
    laid: dict[str, dict[int, Laid]] = {}
    curves, repeats = {}, {}
    by_label = {variant.label: variant for variant in study.variants}
    for label in shown_rows(comparison, MOST_VARIANTS)["variant"]:
        variant = by_label[label]
        own = finished[(finished["variant"] == label) & (finished["partition"] == partition)]
        if own.empty:
            continue
        first = own[own["seed"] == own["seed"].iloc[0]].head(MOST_FOLDS)
        runs = dict(zip(first["fold"].astype(int), first["run"], strict=True))
        folds[label] = {fold: load_fold(uri, run, classes) for fold, run in runs.items()}
        curves[label] = [load_curves(uri, run) for run in runs.values()]
        laid[label] = {}
        for place, (fold, files) in enumerate(folds[label].items()):
            most = MOST_CELLS if place == 0 else MOST_CELLS // len(runs)
            some = _some(files, pictured, most)
            named = some.guide is not None and some.embedding.shape[1] == 2
            guide2d = variant.parameters[LOSS] == "guide2d"
            found = view(some.embedding, some.predicted, some.guide_2d, named=named, guide2d=guide2d)
            laid[label][fold] = Laid(some, found)
        seeds = own[own["fold"] == own["fold"].iloc[0]].head(MOST_SEEDS)
        if len(seeds) > 1:
            again = [load_fold(uri, run, classes) for run in seeds["run"]]
            repeats[label] = of_repeats(again, len(classes.names)), symmetry_of(variant), again[0].guide_2d
    versions = load_versions(uri, finished.iloc[0]["run"])
    return Evidence(classes, thumbnails, folds, laid, curves, repeats, versions)


def _some(files: FoldFiles, pictured: set[str], most: int) -> FoldFiles:
    """At most `most` cells of a fold, those with a picture first, in the order of the fold."""
    if len(files.ids) <= most:
        return files
    order = np.random.default_rng(0).permutation(len(files.ids))
    without = np.array([files.ids[row] not in pictured for row in order])
    rows = np.sort(order[np.argsort(without, kind="stable")][:most])
    parts = {name: getattr(files, name)[rows] for name in ("ids", "true", "predicted", "scores", "embedding")}
    return replace(files, **parts)
