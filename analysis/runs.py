"""The only reader of MLflow: a study as one tidy frame, a row for every planned fold run whether it exists or not."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from math import isfinite
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
from mlflow import MlflowClient

from analysis.cache import search_cached
from analysis.store import Run, is_database, search
from sweeps import schema

os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

for name in ("mlflow.store.db.utils", "alembic"):
    logging.getLogger(name).setLevel(logging.WARNING)

# MLflow stores an infinity as the largest double.
LARGEST = 1.7e308

FINISHED, ABSENT = "finished", "absent"

# Parameters of a variant that tables are made by.
LOSS, LENGTH_LIMIT, GROWING, WARM_UP = "loss.name", "embedding.length", "embedding.growing", "embedding.warmup"

HOLD_OUT = "folds.holdout"

# What every finished fold run has recorded, beside the metric that its sweep is about.
NEEDED = (schema.TRAIN_CELLS, schema.TEST_CELLS, schema.BEST_EPOCH, schema.BEST_LENGTH, schema.SECONDS)


@dataclass(frozen=True)
class VariantInfo:
    """One variant of a study."""

    label: str
    id: str
    varied: dict[str, Any]  # dotted key: value, what sets it apart
    parameters: dict[str, str]  # every dotted key of its configuration, as MLflow holds it
    baseline: bool
    planned: tuple[tuple[int, int, int], ...]  # (partition, fold, seed)


@dataclass(frozen=True)
class StudyRuns:
    """What MLflow holds of one study.

    `frame` has one row per planned fold run: variant, partition, fold, seed, run (MLflow's id), status (finished,
    failed, diverged or absent), reason, classifier, grouped_by, notes (tuple), and a column per metric, NaN where a
    fold run is not finished.
    """

    sweep: str
    id: str
    started: str
    question: str
    metric: str
    data: str
    fingerprint: str
    git_commit: str
    git_dirty: bool
    experiment: str
    variants: tuple[VariantInfo, ...]  # in the order of the sweep file
    frame: pd.DataFrame
    stage: str = schema.ABLATION  # search: trained in order to choose, its metric is of validation cells; or judge
    judges: str = ""  # of a judgement: id of the study it judges the winner of

    @property
    def locked(self) -> tuple[str, ...]:
        """Of a judgement: the groups that the search never saw, one for each fold."""
        names = json.loads(self.baseline.parameters.get(HOLD_OUT, "[]")) if self.stage == schema.JUDGE else []
        return tuple(str(name) for name in names)

    @property
    def baseline(self) -> VariantInfo:
        """The variant the others are compared with."""
        return next(variant for variant in self.variants if variant.baseline)

    @property
    def complete(self) -> bool:
        """Whether every planned fold run has finished."""
        return bool((self.frame["status"] == FINISHED).all())

    @property
    def ratio(self) -> float | None:
        """n_test / n_train, averaged over finished fold runs; None where there is none."""
        finished = self.frame[self.frame["status"] == FINISHED]
        return float((finished[schema.TEST_CELLS] / finished[schema.TRAIN_CELLS]).mean()) if len(finished) else None


def default_uri(out: Path) -> str:
    """MLFLOW_TRACKING_URI, else the SQLite store under OUT."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{out.absolute() / 'mlflow.db'}"


def load_study(uri: str, sweep: str, study: str | None = None, cache: Path | None = None) -> StudyRuns:
    """Read one study of `sweep`: the one named, else the one that was started last; of a search, its judgement. What
    has finished of a tracking server is kept in the folder `cache`, if one is given.

    The metric of a search is the validation macro-F1 that it chose by. Raises ValueError for a sweep or study that is
    not there (with the nearest name), and for a record that cannot be
    trusted: two runs for one fold run or variant, a variant that is gone, a metric that is missing or not finite, no
    baseline or several.
    """
    client = _client(uri)
    experiments = [e for e in client.search_experiments() if e.name.startswith(schema.experiment_name(sweep, ""))]
    ids = [experiment.experiment_id for experiment in experiments]
    wanted = {schema.ROLE: schema.VARIANT_ROLE, schema.SWEEP: sweep}
    parents = search(client, uri, ids, wanted, params=True) if ids else []
    if not parents:
        raise ValueError(f"no runs of sweep {sweep!r} in {schema.without_credentials(uri)}; {_known(client, sweep)}")
    started = {run.tags[schema.STUDY]: run.tags[schema.STARTED] for run in parents}
    # What a search trained in order to choose is read by its id only: the folds that chose a winner flatter it.
    chosen_from = {run.tags[schema.STUDY] for run in parents if run.tags.get(schema.STAGE) == schema.SEARCH}
    results = [one for one in started if one not in chosen_from]
    if not results and study is None:
        raise ValueError(
            f"the search {sweep!r} has not been judged yet; run the sweep again to go on (its fold runs so far are "
            f"study {', '.join(sorted(chosen_from))})"
        )
    chosen = study or max(results, key=lambda one: (started[one], one))
    if chosen not in started:
        held = ", ".join(f"{one} ({when})" for one, when in sorted(started.items(), key=lambda item: item[1]))
        raise ValueError(f"sweep {sweep!r} has no study {chosen!r}; it has: {held}")
    parents = [run for run in parents if run.tags[schema.STUDY] == chosen]
    parents.sort(key=lambda run: int(run.tags[schema.ORDER]))
    of_study = {schema.ROLE: schema.FOLD_RUN_ROLE, schema.STUDY: chosen}
    if cache is None or is_database(uri):
        children = search(client, uri, ids, of_study, params=False)
    else:
        children = search_cached(client, uri, ids, of_study, cache)
    _refuse_gaps(parents, children)
    variants = tuple(_variant(run) for run in parents)
    baselines = [variant.label for variant in variants if variant.baseline]
    if len(baselines) != 1:
        raise ValueError(
            f"study {chosen} of sweep {sweep!r} has {len(baselines)} baselines {baselines}; one is needed: run the "
            "sweep again, or delete the variants that its file no longer has"
        )
    tags = parents[0].tags
    stage = tags.get(schema.STAGE, schema.ABLATION)
    metric = schema.BEST_VAL_F1 if stage == schema.SEARCH else tags[schema.METRIC]
    return StudyRuns(
        sweep=sweep,
        id=chosen,
        started=started[chosen],
        question=tags[schema.QUESTION],
        metric=metric,
        data=tags[schema.DATA_NAME],
        fingerprint=tags[schema.DATA_FINGERPRINT],
        git_commit=tags.get(schema.GIT_COMMIT, ""),
        git_dirty=tags.get(schema.GIT_DIRTY) == "true",
        experiment=schema.experiment_name(sweep, tags[schema.DATA_NAME]),
        variants=variants,
        frame=_frame(variants, children, metric),
        stage=stage,
        judges=tags.get(schema.JUDGES, ""),
    )


def newest_studies(uri: str, sweep: str) -> list[str]:
    """Ids of the study of `sweep` that was started last on each data set, in the order of the data sets' names; what a
    search trained in order to choose is left out. Raises ValueError where there is none."""
    client = _client(uri)
    experiments = [e for e in client.search_experiments() if e.name.startswith(schema.experiment_name(sweep, ""))]
    ids = [experiment.experiment_id for experiment in experiments]
    wanted = {schema.ROLE: schema.VARIANT_ROLE, schema.SWEEP: sweep}
    newest: dict[tuple[str, str], tuple[str, str]] = {}
    for run in search(client, uri, ids, wanted, params=False) if ids else []:
        if run.tags.get(schema.STAGE) == schema.SEARCH:
            continue
        place = run.tags[schema.DATA_NAME], run.tags[schema.DATA_FINGERPRINT]
        newest[place] = max(newest.get(place, ("", "")), (run.tags[schema.STARTED], run.tags[schema.STUDY]))
    if not newest:
        raise ValueError(f"no study of sweep {sweep!r} in {schema.without_credentials(uri)}; {_known(client, sweep)}")
    return [study for _, (_, study) in sorted(newest.items())]


def load_predictions(uri: str, run: str) -> pd.DataFrame:
    """The recorded predictions of one fold run, by its MLflow id: id, true, predicted, a score per class, and region
    and patient where the data and the record have them."""
    with TemporaryDirectory() as folder:
        return pd.read_parquet(_client(uri).download_artifacts(run, schema.PREDICTIONS, folder))


def load_arrays(uri: str, run: str) -> dict[str, np.ndarray]:
    """The recorded arrays of one fold run, by its MLflow id: test_embedding (N, n) float32, test_labels (N,), …"""
    with TemporaryDirectory() as folder:
        path = _client(uri).download_artifacts(run, schema.ARRAYS, folder)
        with np.load(path, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in arrays.files}
    found["test_embedding"] = found["test_embedding"].astype(np.float32)
    return found


def _client(uri: str) -> MlflowClient:
    # MLflow would create an empty store where none is.
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
        raise ValueError(f"there is no store {uri.removeprefix('sqlite:///')}; run a sweep first, or name its OUT")
    return MlflowClient(tracking_uri=uri)


def _known(client: MlflowClient, sweep: str) -> str:
    names = sorted({e.name.split(" on ")[0] for e in client.search_experiments() if " on " in e.name})
    near = get_close_matches(sweep, names, n=1)
    if near:
        return f"did you mean {near[0]!r}?"
    return f"it has {', '.join(names)}" if names else "it holds no sweep yet"


def _refuse_gaps(parents: Sequence[Run], children: Sequence[Run]) -> None:
    """A variant whose run was deleted must not leave the table unseen, nor one that stands twice weigh twice."""
    labels: dict[str, Run] = {}
    for run in parents:
        first = labels.setdefault(run.tags[schema.VARIANT_ID], run)
        if first is not run:
            raise ValueError(
                f"variant {run.tags[schema.VARIANT]!r} stands twice in MLflow, as {first.id} and "
                f"{run.id}; delete one of them"
            )
    orphans = sorted({run.tags[schema.VARIANT] for run in children if run.tags[schema.VARIANT_ID] not in labels})
    places = {int(run.tags[schema.ORDER]) for run in parents}
    gone = orphans or [f"number {place + 1}" for place in sorted(set(range(max(places))) - places)]
    if gone:
        raise ValueError(
            f"the run of variant {', '.join(gone)} is not in MLflow; run the sweep again to write it, or restore it"
        )


def _variant(run: Run) -> VariantInfo:
    tags = run.tags
    if LENGTH_LIMIT not in run.params:
        raise ValueError(f"variant {tags[schema.VARIANT]!r} is only partly in MLflow; run the sweep again")
    return VariantInfo(
        label=tags[schema.VARIANT],
        id=tags[schema.VARIANT_ID],
        varied=json.loads(tags[schema.VARIED]),
        parameters=run.params,
        baseline=tags[schema.BASELINE] == "true",
        planned=tuple((int(p), int(f), int(s)) for p, f, s in json.loads(tags[schema.PLANNED])),
    )


def _frame(variants: Sequence[VariantInfo], children: Sequence[Run], metric: str) -> pd.DataFrame:
    found: dict[tuple[str, int, int, int], Run] = {}
    for run in children:
        tags = run.tags
        key = tags[schema.VARIANT_ID], int(tags[schema.PARTITION]), int(tags[schema.FOLD]), int(tags[schema.SEED])
        if key in found:
            raise ValueError(
                f"fold run {tags['mlflow.runName']!r} stands twice in MLflow, as {found[key].id} and "
                f"{run.id}; delete one of them"
            )
        found[key] = run
    rows = []
    for variant in variants:
        for partition, fold, seed in variant.planned:
            place = {"variant": variant.label, "partition": partition, "fold": fold, "seed": seed}
            rows.append(place | _outcome(found.get((variant.id, partition, fold, seed)), metric))
    return pd.DataFrame(rows)


def _outcome(run: Run | None, metric: str) -> dict[str, Any]:
    if run is None:
        return {"status": ABSENT, "reason": "has not been run, or is still running"}
    tags = run.tags
    outcome: dict[str, Any] = {
        "run": run.id,
        "status": tags[schema.STATUS],
        "reason": tags.get(schema.REASON, ""),
        "classifier": tags.get(schema.CLASSIFIER, ""),
        "grouped_by": tags.get(schema.GROUPED_BY, ""),
        "notes": tuple(json.loads(tags.get(schema.NOTES, "[]"))),
    }
    if outcome["status"] != FINISHED:
        return outcome
    if run.status != "FINISHED":
        return {"status": ABSENT, "reason": "is only partly in MLflow; run the sweep again to write the rest"}
    for key, value in run.metrics.items():
        if not isfinite(value) or abs(value) > LARGEST:
            raise ValueError(f"fold run {tags['mlflow.runName']!r}: metric {key!r} is {value}; that is no result")
    lacking = [key for key in (metric, *NEEDED) if key not in run.metrics]
    if lacking:
        raise ValueError(f"fold run {tags['mlflow.runName']!r} is finished but lacks {', '.join(lacking)}")
    return outcome | run.metrics
