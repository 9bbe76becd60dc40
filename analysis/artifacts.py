"""The files of a study in MLflow: arrays, predictions and curves of single fold runs, the thumbnails of the study, and
the only thing that analysis writes there: its report."""

from __future__ import annotations

import base64
import json
import os
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from analysis.lineages import Classes, ordered
from analysis.runs import FINISHED, StudyRuns, load_arrays
from sweeps import schema

os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")


@dataclass(frozen=True)
class FoldFiles:
    """What a fold run left of its T test cells; classes are numbers in the order of the study's Classes."""

    ids: np.ndarray  # (T,) str
    true: np.ndarray  # (T,)
    predicted: np.ndarray  # (T,)
    scores: np.ndarray  # (T, C) of the classifier
    embedding: np.ndarray  # (T, n) float32
    guide: np.ndarray | None  # (C, n): where the loss draws the classes; None: it draws to no points
    guide_2d: np.ndarray  # (C, 2)

    @property
    def margin(self) -> np.ndarray:
        """How sure the classifier is, (T,): its highest score less the second; 0 where there is one class only."""
        if self.scores.shape[1] < 2:
            return np.zeros(len(self.scores))
        top = np.sort(self.scores, axis=1)
        return np.asarray(top[:, -1] - top[:, -2])


@dataclass(frozen=True)
class Thumbnails:
    """Pictures of some cells of a study, in rows of `columns`, `side` px each."""

    ids: tuple[str, ...]
    labels: tuple[str, ...]  # class of each
    side: int
    columns: int
    webp: bytes

    @property
    def url(self) -> str:
        """The sprite as a data URL."""
        return "data:image/webp;base64," + base64.b64encode(self.webp).decode("ascii")


def load_fold(uri: str, run: str, classes: Classes) -> FoldFiles:
    """Predictions and arrays of a finished fold run, by its MLflow id. Raises ValueError for files that are of
    different cells or lack a class of the study."""
    arrays = load_arrays(uri, run)
    with TemporaryDirectory() as folder:
        table = pd.read_parquet(_client(uri).download_artifacts(run, schema.PREDICTIONS, folder))
    if len(table) != len(arrays["test_embedding"]):
        raise ValueError(
            f"run {run} has {len(table)} predictions and {len(arrays['test_embedding'])} embeddings; they must be of "
            "the same cells"
        )
    own = [str(name) for name in arrays["classes"]]
    order = [own.index(name) for name in classes.names if name in own]
    if len(order) < len(classes.names):
        raise ValueError(f"run {run} has the classes {', '.join(own)}, not {', '.join(classes.names)}")
    guide = arrays.get("guide")
    return FoldFiles(
        ids=table["id"].to_numpy(dtype=str),
        true=classes.index(table["true"].to_numpy()),
        predicted=classes.index(table["predicted"].to_numpy()),
        scores=table[[f"score/{name}" for name in classes.names]].to_numpy(dtype=np.float64),
        embedding=arrays["test_embedding"],
        guide=None if guide is None else guide[order].astype(np.float64),
        guide_2d=arrays["guide_2d"][order].astype(np.float64),
    )


def load_curves(uri: str, run: str) -> pd.DataFrame:
    """What a fold run recorded of each epoch: a row per epoch (from 0), a column per metric."""
    with TemporaryDirectory() as folder:
        path = Path(_client(uri).download_artifacts(run, schema.RECORD, folder))
        record = json.loads(path.read_text(encoding="utf-8"))
    content = record.get("content", record)
    return pd.DataFrame(content["history"])


def load_versions(uri: str, run: str) -> dict[str, str]:
    """Versions of the packages that trained a fold run."""
    found: dict[str, str] = json.loads(_client(uri).get_run(run).data.tags.get(schema.VERSIONS, "{}"))
    return found


def load_classes(uri: str, study: StudyRuns) -> Classes:
    """The classes of a study in order, from its own run. A study that has none (recorded before there was one, or not
    yet ended) takes them from a finished fold run: every class is then a lineage of its own. Raises ValueError where
    no fold run has finished either."""
    run = _study_run(uri, study)
    if run is not None:
        with TemporaryDirectory() as folder:
            told = json.loads(Path(_client(uri).download_artifacts(run, schema.CLASSES, folder)).read_text("utf-8"))
        return ordered(told["classes"], told["lineages"], told["stages"], np.array(told["points"], dtype=np.float64))
    finished = study.frame[study.frame["status"] == FINISHED]
    if finished.empty:
        raise ValueError(f"no fold run of {study.sweep} has finished, so that its classes are not known")
    arrays = load_arrays(uri, finished.iloc[0]["run"])
    return ordered([str(name) for name in arrays["classes"]], points=arrays.get("guide_2d"))


def load_thumbnails(uri: str, study: StudyRuns) -> Thumbnails | None:
    """The thumbnails of a study; None where none are recorded."""
    run = _study_run(uri, study)
    if run is None:
        return None
    client = _client(uri)
    with TemporaryDirectory() as folder:
        cells = pd.read_parquet(client.download_artifacts(run, schema.CELLS, folder))
        told = json.loads(Path(client.download_artifacts(run, schema.CLASSES, folder)).read_text("utf-8"))
        webp = Path(client.download_artifacts(run, schema.SPRITE, folder)).read_bytes()
    ids, labels = (tuple(cells[column].astype(str)) for column in ("id", "class"))
    return Thumbnails(ids, labels, int(told["thumbnail"]), int(told["columns"]), webp)


def attach(uri: str, study: StudyRuns, folder: Path) -> str | None:
    """Put a report's folder beside the study in MLflow, in place of an earlier one; returns why that was not possible,
    or None. A store that is away or may not be written never costs the report."""
    try:
        client, run = _client(uri), _study_run(uri, study)
        if run is None:
            return "the study has no run of its own in MLflow; run the sweep again to write it"
        client.log_artifacts(run, str(folder), schema.REPORT)
    except (MlflowException, SQLAlchemyError, OSError) as error:
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
    return None


def _study_run(uri: str, study: StudyRuns) -> str | None:
    client = _client(uri)
    experiment = client.get_experiment_by_name(study.experiment)
    where = f"tags.`{schema.ROLE}` = '{schema.STUDY_ROLE}' and tags.`{schema.STUDY}` = '{study.id}'"
    found = client.search_runs([experiment.experiment_id], where, max_results=1) if experiment else []
    return str(found[0].info.run_id) if found else None


def _client(uri: str) -> MlflowClient:
    return MlflowClient(tracking_uri=uri)
