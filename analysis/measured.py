"""What claims are judged by: a study's variants as methods, and a number per fold of each, recorded or worked out from
recorded embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log

import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from sklearn.neighbors import NearestNeighbors

from analysis.repeats import MOST_RUNS, over_seeds, symmetry_of
from analysis.runs import FINISHED, GROWING, LENGTH_LIMIT, LOSS, WARM_UP, StudyRuns, VariantInfo, load_arrays
from analysis.stats import average_seeds
from guided.metrics import macro_f1
from sweeps import schema

NEIGHBOURS = 5  # of the classifier that asks what part of an embedding tells
RARE = 1 / 3  # the share of classes, those with the fewest cells, that are called rare
UNREADABLE = (ValueError, OSError, MlflowException)  # what reading a run's files may raise


# --- what is measured -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measure:
    """A number per fold run. `rope` is the half-width of practical equivalence: ours, the paper gives none. Of a
    `ratio`, logarithms are compared, because the scale means nothing; `rope` is then that of the logarithm."""

    name: str
    key: str
    rope: float | None = None  # None: that of macro-F1, which the caller gives
    ratio: bool = False


TENTH = log(1.1)

F1 = Measure("test macro-F1", schema.TEST_F1)
SPREAD = Measure("spread within a class", schema.SPREAD, TENTH, ratio=True)
BEST_EPOCH = Measure("epochs until the best", schema.BEST_EPOCH, TENTH, ratio=True)
RANK = Measure("effective rank", schema.EFFECTIVE_RANK, TENTH, ratio=True)
SILHOUETTE = Measure("silhouette", schema.SILHOUETTE, 0.02)
STRAIGHTNESS = Measure("straightness of lineages", schema.STRAIGHTNESS, 0.02)
# Worked out from other recorded numbers and the recorded embeddings, see Measured.
RARE_SPREAD = Measure("spread of rare classes over that of the others", "rare spread", TENTH, ratio=True)
RARE_F1 = Measure("F1 of rare classes", "rare f1")
MOVED = Measure("how far classes move between seeds", "raw", TENTH, ratio=True)
ALIGNED = Measure("how far classes move between seeds, once aligned", "aligned", TENTH, ratio=True)
ARRANGED = Measure("correlation of the distances between classes over seeds", "distances", 0.02)
WHOLE = Measure(f"macro-F1 of {NEIGHBOURS} neighbours among the test cells", "whole")
FIRST_TWO = Measure(f"macro-F1 of {NEIGHBOURS} neighbours among the test cells, two components", "first two")
REST = Measure(f"macro-F1 of {NEIGHBOURS} neighbours among the test cells, other components", "rest")
CHANCE = Measure("macro-F1 of one answer for all", "chance")

OF_SEEDS = (MOVED, ALIGNED, ARRANGED)
OF_PARTS = (WHOLE, FIRST_TWO, REST, CHANCE)


# --- methods ---------------------------------------------------------------------------------------------------------

# (growing, warm-up). The paper's growing embedding has a warm-up and its baselines have none; where a study has not
# that pair, the one with the other warm-up stands for it.
Schedule = tuple[bool, bool]
PLAIN: tuple[Schedule, ...] = ((False, False), (False, True))
GROWN: tuple[Schedule, ...] = ((True, True), (True, False))
# How the paper trains each loss; the other schedules follow, for a study that trains all of its losses alike.
AS_IN_PAPER: dict[str, tuple[Schedule, ...]] = {
    **dict.fromkeys(("ce", "triplet", "ctl", "guide2d"), PLAIN + GROWN),
    **dict.fromkeys(("guide_umap", "distance"), GROWN + PLAIN),
}


@dataclass(frozen=True)
class Side:
    """The methods on one side of a claim. Without `schedules`: each as the paper trains it, else otherwise."""

    losses: tuple[str, ...]
    schedules: tuple[Schedule, ...] | None = None

    def told(self) -> str:
        words = {PLAIN: " not growing", GROWN: " growing", None: ""}
        return " and ".join(self.losses) + words.get(self.schedules, "")


# --- measured --------------------------------------------------------------------------------------------------------


class Untested(ValueError):
    """Why a study cannot judge a claim."""


class Measured:
    """A study's variants by method, and measures by fold, each worked out once."""

    def __init__(self, study: StudyRuns, uri: str) -> None:
        self.study, self._uri = study, uri
        self.lengths = sorted({int(variant.parameters[LENGTH_LIMIT]) for variant in study.variants})
        self._known: dict[tuple[str, str], dict[tuple[int, int], float]] = {}
        self._arrays_read = 0
        self._rare_classes: list[str] | None = None

    def variants(self, loss: str, side: Side, length: int) -> list[VariantInfo]:
        """Those of the first schedule that the study has."""
        of_method = [
            variant
            for variant in self.study.variants
            if variant.parameters[LOSS] == loss and int(variant.parameters[LENGTH_LIMIT]) == length
        ]
        for schedule in side.schedules or AS_IN_PAPER[loss]:
            found = [variant for variant in of_method if _schedule(variant) == schedule]
            if found:
                return found
        return []

    def side(
        self, side: Side, lengths: Sequence[int], measure: Measure
    ) -> tuple[dict[tuple[int, int], float], list[str]]:
        """Mean of a measure over the methods and lengths of a side, by (partition, fold), and the variants' labels."""
        chosen = []
        for loss in side.losses:
            for length in lengths:
                found = self.variants(loss, side, length)
                if not found:
                    raise Untested(f"the study does not have {Side((loss,), side.schedules).told()} at {length}")
                if len(found) > 1:
                    several = ", ".join(variant.label for variant in found)
                    raise Untested(f"several variants are {loss} at length {length} ({several}), the claim is of one")
                chosen += found
        values = [self._of(variant, measure) for variant in chosen]
        if any(each.keys() != values[0].keys() for each in values):
            raise Untested(f"not run on the same folds: {', '.join(variant.label for variant in chosen)}")
        means = {fold: float(np.mean([each[fold] for each in values])) for fold in values[0]}
        return means, [variant.label for variant in chosen]

    def _of(self, variant: VariantInfo, measure: Measure) -> dict[tuple[int, int], float]:
        key = (variant.label, measure.key)
        if key not in self._known:
            rows = self.study.frame[self.study.frame["variant"] == variant.label]
            lacking = int((rows["status"] != FINISHED).sum())
            if lacking:
                raise Untested(f"{variant.label} lacks {lacking} of {len(rows)} fold runs")
            if measure in OF_SEEDS:
                self._over_seeds(variant, rows)
            elif measure in OF_PARTS:
                self._of_parts(variant, rows)
            else:
                self._known[key] = self._recorded(variant, rows, measure)
        return self._known[key]

    def _recorded(self, variant: VariantInfo, rows: pd.DataFrame, measure: Measure) -> dict[tuple[int, int], float]:
        """A measure that every fold run has, its logarithm if it is a ratio; seeds averaged."""
        values = self._column(rows, measure)
        if measure is BEST_EPOCH:
            values = values + 1  # counted from 0
        undefined = int(values.isna().sum())
        if undefined:
            raise Untested(f"{measure.name} is not recorded for {undefined} fold runs of {variant.label}")
        if measure.ratio:
            if (values <= 0).any():
                raise Untested(f"{measure.name} is 0 in a fold run of {variant.label}")
            values = np.log(values)
        places = zip(rows["partition"], rows["fold"], rows["seed"], strict=True)
        return average_seeds(dict(zip(places, values.astype(float), strict=True)))

    def _column(self, rows: pd.DataFrame, measure: Measure) -> pd.Series:
        if measure is RARE_F1:
            return self._classes(rows, schema.TEST_F1_CLASS, self._rare()).mean(axis=1)
        if measure is RARE_SPREAD:
            prefix = schema.CLASS_SPREAD
            known = {name.removeprefix(prefix) for name in rows.columns if name.startswith(prefix)}
            rare, others = (
                np.sqrt((self._classes(rows, prefix, names) ** 2).mean(axis=1))
                for names in (self._rare(), sorted(known - set(self._rare())))
            )
            return rare / others
        return rows[measure.key] if measure.key in rows.columns else pd.Series(np.nan, rows.index)

    @staticmethod
    def _classes(rows: pd.DataFrame, prefix: str, names: Sequence[str]) -> pd.DataFrame:
        """The recorded values of some classes; a class that a fold lacks is NaN there."""
        return rows.reindex(columns=[prefix + name for name in names])

    def _rare(self) -> list[str]:
        """The third of the classes with the fewest cells, by the test parts of the first partition."""
        if self._rare_classes is None:
            rows = self.study.frame[self.study.frame["variant"] == self.study.baseline.label]
            first = rows[(rows["partition"] == rows["partition"].min()) & (rows["seed"] == rows["seed"].min())]
            if (first["status"] != FINISHED).any():
                raise Untested(f"the baseline {self.study.baseline.label} lacks fold runs, so classes are not counted")
            counts: pd.Series | None = None
            for run in first["run"]:
                arrays = self._arrays(run)
                names = [str(name) for name in arrays["classes"]]
                own = pd.Series(np.bincount(arrays["test_labels"], minlength=len(names)), index=names)
                counts = own if counts is None else counts + own
            assert counts is not None  # a variant has fold runs
            self._rare_classes = counts.sort_values(kind="stable").index[: max(1, int(len(counts) * RARE))].tolist()
        return self._rare_classes

    def _over_seeds(self, variant: VariantInfo, rows: pd.DataFrame) -> None:
        if rows["seed"].nunique() < 2:
            raise Untested(f"{variant.label} was not repeated with other seeds")
        for partition, fold in rows[["partition", "fold"]].drop_duplicates().itertuples(index=False):
            of_fold = rows[(rows["partition"] == partition) & (rows["fold"] == fold)]
            self._count(len(of_fold))
            where = f"partition {partition} fold {fold}"
            try:
                found = over_seeds(self._uri, of_fold["run"].tolist(), symmetry_of(variant), where)
            except UNREADABLE as error:
                raise Untested(f"{variant.label}: {_first_line(error)}") from None
            told = {MOVED: found.raw, ALIGNED: found.aligned, ARRANGED: found.distance_correlation}
            for measure, value in told.items():
                # Half precision moves a class by a thousandth of the layout; below that there is nothing to compare.
                if value is None:
                    raise Untested(f"{variant.label}: {where}: no class stands in two repeats")
                shown = log(max(value, 1e-3)) if measure.ratio else value
                self._known.setdefault((variant.label, measure.key), {})[partition, fold] = shown

    def _of_parts(self, variant: VariantInfo, rows: pd.DataFrame) -> None:
        """How well neighbours among the test cells tell a class by the whole embedding and by parts of it."""
        scores: dict[Measure, dict[tuple[int, int, int], float]] = {measure: {} for measure in OF_PARTS}
        for _, row in rows.iterrows():
            arrays = self._arrays(row["run"])
            embedding, labels, classes = arrays["test_embedding"], arrays["test_labels"], len(arrays["classes"])
            if embedding.shape[1] < 3:
                raise Untested(f"an embedding of {variant.label} has only two components at its best epoch")
            place = (row["partition"], row["fold"], row["seed"])
            for measure, part in ((WHOLE, embedding), (FIRST_TWO, embedding[:, :2]), (REST, embedding[:, 2:])):
                scores[measure][place] = macro_f1(labels, neighbours_say(part, labels, classes), classes)
            commonest = np.full_like(labels, np.bincount(labels).argmax())
            scores[CHANCE][place] = macro_f1(labels, commonest, classes)
        for measure, of_measure in scores.items():
            self._known[variant.label, measure.key] = average_seeds(of_measure)

    def _arrays(self, run: str) -> dict[str, np.ndarray]:
        self._count(1)
        try:
            return load_arrays(self._uri, run)
        except UNREADABLE as error:
            raise Untested(f"the embeddings of run {run} cannot be read ({_first_line(error)})") from None

    def _count(self, runs: int) -> None:
        self._arrays_read += runs
        if self._arrays_read > MOST_RUNS:
            raise Untested(f"it needs the embeddings of more than {MOST_RUNS} fold runs")


def neighbours_say(embedding: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Class (N,) of each cell by majority among its NEIGHBOURS nearest others, in an embedding (N, n); of equal votes
    the lowest class."""
    near = NearestNeighbors(n_neighbors=min(NEIGHBOURS, len(labels) - 1)).fit(embedding).kneighbors()[1]
    return np.eye(classes)[labels[near]].sum(axis=1).argmax(axis=1)


def _schedule(variant: VariantInfo) -> Schedule:
    return variant.parameters[GROWING] == "true", variant.parameters[WARM_UP] == "true"


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0]
