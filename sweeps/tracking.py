"""The only MLflow writer: projects records into runs, by the names of sweeps.schema.

One writer, in the driver, behind a thread of its own: fold runs only write their records, so workers need no MLflow, an
SQLite store has one writer however many workers there are, and a dead server costs nothing but a later `sync`. The
records are the spool: a fold run is projected until its projection is known to have ended well, and projecting twice
changes nothing, because its run is found by the tag `fold_run` and equal metrics fall on each other.
"""

from __future__ import annotations

import getpass
import json
import logging
import os
import queue
import subprocess
import threading
import time
import warnings
from collections import defaultdict, deque
from collections.abc import Callable, Set
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

# Short patience: a server that is away must not hold the sweep; what could not be written is written by `sync`.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from sweeps import schema
from sweeps.projected import Projected, ProjectionLog, ended_at, read_projected
from sweeps.records import Record, Records
from sweeps.schema import without_credentials
from sweeps.spec import Variant, flat
from sweeps.study import Study
from sweeps.thumbnails import write_thumbnails

if TYPE_CHECKING:
    from guided.model import GuidedModel
    from sweeps.refit import Refit

for name in ("mlflow.store.db.utils", "alembic"):
    logging.getLogger(name).setLevel(logging.WARNING)  # a new store tells every one of its migrations

FAILURES = (MlflowException, SQLAlchemyError, OSError)
PAGE = 100  # runs a request: a busy server that gives 1,000 runs of 80 metrics takes longer than our patience
BATCH = 900  # MLflow takes at most 1,000 metrics a request
MOST_DIFF = 500_000  # characters of an uncommitted change that are kept
# Seconds between two tries of a store that has failed; doubled from try to try.
FIRST_PAUSE, LONGEST_PAUSE = 2.0, 120.0


def default_uri(out: Path) -> str:
    """MLFLOW_TRACKING_URI, else an SQLite store under OUT (an absolute path: Tune changes the working directory)."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{out.absolute() / 'mlflow.db'}"


class Tracker:
    """Projects one study. Methods raise one of FAILURES where the store cannot be reached."""

    def __init__(self, study: Study, uri: str) -> None:
        self._study = study
        self._client = MlflowClient(tracking_uri=uri)
        self.log = ProjectionLog(study.folder, without_credentials(uri))
        self._common = _common_tags(study)
        self._input = _dataset_input(study)
        self._experiment = self._make_experiment(uri)
        self._parents: dict[str, str] = {}
        self.grow(study)
        self._children = self._existing_children()

    def grow(self, study: Study) -> None:
        """Take in the variants that a search has added."""
        self._study = study
        self._place = {run.id: (variant, run) for variant in study.sweep.variants for run in study.runs_of(variant)}
        for index, variant in enumerate(study.sweep.variants):
            if variant.label not in self._parents:
                self._parents[variant.label] = self._parent(index, variant)

    def _make_experiment(self, uri: str) -> str:
        name = schema.experiment_name(self._study.sweep.name, self._study.data.name)
        found = self._client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        # A server keeps its own artifact store; beside SQLite they go under OUT.
        location = (self._study.out / "mlartifacts").as_uri() if uri.startswith("sqlite:") else None
        # Without its kind the UI opens on traces of language models instead of runs.
        tags = {"mlflow.experimentKind": "custom_model_development"}
        return str(self._client.create_experiment(name, artifact_location=location, tags=tags))

    def _search(self, *conditions: tuple[str, str]) -> list[Any]:
        where = " and ".join(f"tags.`{key}` = '{value}'" for key, value in conditions)
        runs, token = [], None
        while True:
            page = self._client.search_runs([self._experiment], where, max_results=PAGE, page_token=token)
            runs += list(page)
            token = page.token
            if not token:
                return runs

    def _parent(self, index: int, variant: Variant) -> str:
        study = self._study
        conditions = (
            (schema.ROLE, schema.VARIANT_ROLE),
            (schema.STUDY, study.id),
            (schema.VARIANT_ID, variant.config.id),
        )
        found = self._search(*conditions)
        runs = study.runs_of(variant)
        tags = {
            **self._common,
            schema.ROLE: schema.VARIANT_ROLE,
            schema.VARIANT: variant.label,
            schema.VARIANT_ID: variant.config.id,
            schema.GUIDE_HASH: study.guides[variant.config.id].hash,
            schema.VARIED: json.dumps(variant.varied),
            schema.ORDER: str(index),
            schema.BASELINE: str(variant.baseline).lower(),
            schema.PLANNED: json.dumps([[run.partition, run.fold, run.seed] for run in runs]),
            "mlflow.runName": variant.label,
            "mlflow.note.content": study.sweep.question,
        }
        tags = {key: without_credentials(value) for key, value in tags.items()}
        if found:
            run_id = str(found[0].info.run_id)
        else:
            run = self._client.create_run(self._experiment, tags=tags, run_name=variant.label)
            run_id = str(run.info.run_id)
        parameters = [Param(key, value) for key, value in _parameters(study, variant).items()]
        self._client.log_batch(run_id, params=parameters, tags=_run_tags(tags))
        self._client.log_inputs(run_id, datasets=[self._input])
        return run_id

    def _existing_children(self) -> dict[str, Any]:
        conditions = ((schema.ROLE, schema.FOLD_RUN_ROLE), (schema.STUDY, self._study.id))
        found: dict[str, Any] = {}
        for run in self._search(*conditions):
            # Where the reply to its making was lost, a fold run was given a second run; the records have it once.
            if found.setdefault(run.data.tags[schema.FOLD_RUN], run) is not run:
                self._client.delete_run(run.info.run_id)
        return found

    @property
    def client(self) -> MlflowClient:
        return self._client

    @property
    def experiment(self) -> str:
        """Id of the study's experiment."""
        return self._experiment

    def parent_of(self, variant: Variant) -> str:
        """Id of the run of a variant."""
        return self._parents[variant.label]

    def is_projected(self, record: Record) -> bool:
        """Whether the projection of this very record has ended well; a fold run that was retried has a newer one."""
        child = self._children.get(record.id)
        if child is None or child.info.end_time != ended_at(record):
            return False
        return bool(child.data.tags.get(schema.ADDED, "") == record.added)

    def project(self, record: Record) -> None:
        """Write one fold run: nested under its variant, its curves, scores, tags and files."""
        study = self._study
        variant, run = self._place[record.id]
        began, ended = int(1000 * record.details["began"]), ended_at(record)
        tags = {
            **self._common,
            schema.ROLE: schema.FOLD_RUN_ROLE,
            schema.VARIANT: variant.label,
            schema.VARIANT_ID: variant.config.id,
            schema.GUIDE_HASH: run.guide,
            schema.VARIED: json.dumps(variant.varied),
            schema.FOLD_RUN: run.id,
            schema.PARTITION: str(run.partition),
            schema.FOLD: str(run.fold),
            schema.SEED: str(run.seed),
            schema.STATUS: record.status,
            schema.REASON: record.reason,
            schema.CLASSIFIER: record.details.get("classifier", ""),
            schema.GROUPED_BY: record.details.get("grouped_by", ""),
            schema.ADDED: record.added,
            schema.REUSED: "true" if record.details.get("reused") else "",
            schema.NOTES: json.dumps(record.details.get("notes", [])),
            schema.VERSIONS: json.dumps(record.details.get("versions", {})),
            "mlflow.parentRunId": self._parents[variant.label],
            "mlflow.runName": run.name,
        }
        tags = {key: without_credentials(value) for key, value in tags.items() if value != ""}
        child = self._children.get(run.id)
        if child is not None and child.info.start_time != began:
            # Of an earlier attempt: its curve and its reason must not mix with those of this one.
            self._client.delete_run(child.info.run_id)
            child = None
        if child is None:
            child = self._client.create_run(self._experiment, start_time=began, tags=tags, run_name=run.name)
            self._children[run.id] = child
        mlflow_id = child.info.run_id
        parameters = {**_parameters(study, variant), "fold": str(run.fold), "seed": str(run.seed)}
        parameters["partition"] = str(run.partition)
        metrics = [
            # Equal time stamps make a repeated batch fall on itself.
            Metric(key, value, ended, step)
            for step, epoch in enumerate(record.history)
            for key, value in epoch.items()
            if key != "epoch"
        ]
        metrics += [Metric(key, value, ended, 0) for key, value in record.metrics.items()]
        self._client.log_batch(
            mlflow_id, params=[Param(key, value) for key, value in parameters.items()], tags=_run_tags(tags)
        )
        for start in range(0, len(metrics), BATCH):
            self._client.log_batch(mlflow_id, metrics=metrics[start : start + BATCH])
        self._client.log_inputs(mlflow_id, datasets=[self._input])
        for path in [record.folder / schema.RECORD, *record.artifacts()]:
            self._client.log_artifact(mlflow_id, str(path))
        status = {"finished": "FINISHED", "stopped": "KILLED"}.get(record.status, "FAILED")
        self._client.set_terminated(mlflow_id, status, end_time=ended)
        self._children[run.id] = self._client.get_run(mlflow_id)
        self.log.written(record)

    def close(self, records: dict[str, Record], given_up: Set[str] = frozenset()) -> None:
        """Aggregate each variant over its folds and set its state; only a complete variant gets a mean. `given_up` are
        the labels of variants that a search will not complete."""
        now = max((ended_at(record) for record in records.values()), default=0)
        for variant in self._study.sweep.variants:
            runs = self._study.runs_of(variant)
            finished = {run: records[run.id] for run in runs if run.id in records}
            complete = len(finished) == len(runs) and all(r.status == "finished" for r in finished.values())
            mlflow_id = self._parents[variant.label]
            if complete:
                grouped: dict[str, dict[tuple[int, int], list[float]]] = defaultdict(lambda: defaultdict(list))
                for run, record in finished.items():
                    for key, value in record.metrics.items():
                        grouped[key][run.partition, run.fold].append(value)
                metrics = []
                for key, by_fold in grouped.items():
                    folds = np.array([np.mean(values) for values in by_fold.values()])
                    metrics.append(Metric(f"{schema.CV}{key}_mean", float(folds.mean()), now, 0))
                    metrics.append(Metric(f"{schema.CV}{key}_folds", float(len(folds)), now, 0))
                    if len(folds) > 1:
                        metrics.append(Metric(f"{schema.CV}{key}_std", float(folds.std(ddof=1)), now, 0))
                for start in range(0, len(metrics), BATCH):
                    self._client.log_batch(mlflow_id, metrics=metrics[start : start + BATCH])
            ends = {record.status for record in finished.values()}
            broken = ends & {"failed", "diverged"}
            ended = "KILLED" if variant.label in given_up else "RUNNING"
            status = "FINISHED" if complete else "FAILED" if broken else ended
            if status == "RUNNING":
                self._client.update_run(mlflow_id, status=status)
            else:
                self._client.set_terminated(mlflow_id, status)
        self._show_cells()

    def _show_cells(self) -> None:
        """Once per study: thumbnails and the lineages of the classes, in a run of the study's own."""
        study = self._study
        if self._search((schema.ROLE, schema.STUDY_ROLE), (schema.STUDY, study.id)):
            return
        unfinished = {schema.ROLE: schema.UNFINISHED_ROLE, schema.STUDY: study.id}
        for run in self._search(*unfinished.items()):
            self._client.delete_run(run.info.run_id)
        tags = {
            **self._common,
            schema.ROLE: schema.STUDY_ROLE,
            "mlflow.note.content": without_credentials(study.sweep.question),
        }
        with TemporaryDirectory() as folder:
            write_thumbnails(study, Path(folder))
            if diff := _uncommitted():
                (Path(folder) / schema.DIFF).write_text(diff, encoding="utf-8")
            # Found only when whole: the tags that name it come last.
            run = self._client.create_run(self._experiment, tags=unfinished, run_name=f"study {study.sweep.name}")
            self._client.log_artifacts(run.info.run_id, folder)
        self._client.log_batch(run.info.run_id, tags=_run_tags(tags))
        self._client.set_terminated(run.info.run_id)

    def sync(self, records: dict[str, Record], given_up: Set[str] = frozenset()) -> int:
        """Project every record that is not yet in MLflow and close the variants; returns how many were missing."""
        missing = 0
        for record in records.values():
            if self.is_projected(record):
                self.log.written(record)
            else:
                self.project(record)
                missing += 1
        self.close(records, given_up)
        self.log.back()
        return missing


def log_refit(refit: Refit, model: GuidedModel, uri: str) -> str:
    """Log a refit beside the fold runs of its variant, and return its run's id. One that is there is left as it is.

    The run has the network from pixels to embedding for `mlflow.pytorch.load_model`, as a traced graph that loads
    without running pickled code and without this package, and the model file for `python -m guided predict`.
    """
    tracker, study, variant = Tracker(refit.study, uri), refit.study, refit.variant
    client, experiment, parent = tracker.client, tracker.experiment, tracker.parent_of(variant)
    for run in client.search_runs([experiment], f"tags.`{schema.REFIT}` = '{refit.id}'"):
        if run.info.status == "FINISHED":
            return str(run.info.run_id)
    tags = {
        **_common_tags(study),
        schema.ROLE: schema.REFIT_ROLE,
        schema.REFIT: refit.id,
        schema.VARIANT: variant.label,
        schema.VARIANT_ID: variant.config.id,
        schema.GUIDE_HASH: study.guides[variant.config.id].hash,
        "mlflow.parentRunId": parent,
        "mlflow.runName": f"{variant.label} · refit on all cells",
    }
    run_id = str(client.create_run(experiment, tags=tags, run_name=tags["mlflow.runName"]).info.run_id)
    parameters = {**_parameters(study, variant), "epochs": str(len(refit.lengths)), "seed": str(refit.seed)}
    client.log_batch(run_id, params=[Param(key, value) for key, value in parameters.items()])
    now = int(1000 * time.time())
    metrics = [
        Metric(key, value, now, step)
        for step, epoch in enumerate(model.about["history"])
        for key, value in epoch.items()
        if key != "epoch"
    ]
    for start in range(0, len(metrics), BATCH):
        client.log_batch(run_id, metrics=metrics[start : start + BATCH])
    client.log_inputs(run_id, datasets=[_dataset_input(study)])
    _log_network(refit, model, run_id, uri)
    client.log_artifact(run_id, str(refit.path), schema.MODEL_FILE)
    client.set_terminated(run_id)
    return run_id


def _log_network(refit: Refit, model: GuidedModel, run_id: str, uri: str) -> None:
    import mlflow.pytorch  # with torch, which the tracking of fold runs does not need
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    example = np.array(refit.study.data.images[refit.rows[:2]], dtype=np.float32)
    pixels, length = TensorSpec(np.dtype(np.float32), (-1, *example.shape[1:])), refit.length
    embedding = TensorSpec(np.dtype(np.float32), (-1, length))
    mlflow.set_tracking_uri(uri)
    with mlflow.start_run(run_id=run_id), warnings.catch_warnings():
        # torch packs views of one storage together and asks about a case that is none: the weights are on the CPU.
        warnings.filterwarnings("ignore", message="No complete tensor found in the group")
        mlflow.pytorch.log_model(
            model.net,
            name=schema.MODEL,
            signature=ModelSignature(Schema([pixels]), Schema([embedding])),
            input_example=example,
            pip_requirements=[f"{package}=={version(package)}" for package in ("torch", "numpy")],
            serialization_format="pt2",
        )


class TrackingThread:
    """Projects records as they come, beside the sweep, which never waits for it. A store that fails is tried again,
    after a longer pause each time, and what it lacks waits; `tell` is called once when it goes away and once when it is
    back. Without a URI nothing is projected."""

    def __init__(self, study: Study, uri: str | None, tell: Callable[[str], None]) -> None:
        self._study, self._uri, self._tell = study, uri, tell
        self._records = Records(study.out)
        self._inbox: queue.Queue[str | None] = queue.Queue()
        self._waiting: deque[str] = deque()
        self._tracker: Tracker | None = None
        self._failure: str | None = None
        self._thread = threading.Thread(target=self._work, args=(uri,), name="tracking", daemon=True)
        self.unwritten: str | None = None  # after `finish`: what MLflow lacks, and why

    def start(self) -> None:
        """Open the store, behind what the sweep does meanwhile."""
        if self._uri is not None:
            self._thread.start()

    def grow(self, study: Study) -> None:
        """Take in the variants that a search has added."""
        self._study = study

    def put(self, run_id: str) -> None:
        """A fold run has left its record."""
        self._inbox.put(run_id)

    def _work(self, uri: str) -> None:
        pause, due = FIRST_PAUSE, time.monotonic()
        while True:
            idle = not self._waiting and self._tracker is not None
            try:
                run_id = self._inbox.get(timeout=None if idle else max(0.0, due - time.monotonic()))
            except queue.Empty:
                pass
            else:
                if run_id is None:
                    return
                self._waiting.append(run_id)
            if time.monotonic() < due:
                continue
            try:
                self._write(uri)
            except FAILURES as error:
                self._went_away(uri, _line(error))
                due, pause = time.monotonic() + pause, min(2 * pause, LONGEST_PAUSE)
            else:
                pause = FIRST_PAUSE

    def _write(self, uri: str) -> None:
        tracker, waited = self._open(uri), len(self._waiting)
        while self._waiting:
            record = self._records.read(self._waiting[0])
            if record is not None and not tracker.is_projected(record):
                tracker.project(record)
            self._waiting.popleft()
        tracker.log.back()
        if self._failure is not None:
            self._failure = None
            self._tell(f"MLflow is back; written of what had waited: {_counted(waited)}")

    def _open(self, uri: str) -> Tracker:
        if self._tracker is None:
            self._tracker = Tracker(self._study, uri)
        self._tracker.grow(self._study)
        return self._tracker

    def _went_away(self, uri: str, reason: str) -> None:
        self._tracker = None  # one cannot know what of the last request the store has: it is read anew
        self._waiting.rotate(-1)  # a record that the store refuses shall not hold up the others
        self._note(uri, reason)
        if self._failure is None:
            self._tell(f"MLflow is away ({reason}); the sweep goes on, its records wait and are tried again")
        self._failure = reason

    def _note(self, uri: str, reason: str) -> Projected:
        """Leave word for `status`, and return what the store is known to hold."""
        store = without_credentials(uri)
        with suppress(OSError):  # of a full disk: `status` then tells less, and the sweep goes on
            ProjectionLog(self._study.folder, store).away(reason)
        known = read_projected(self._study.folder)
        return known if known is not None and known.store == store else Projected(store)

    def finish(self, records: dict[str, Record], given_up: Set[str] = frozenset()) -> None:
        """Wait for what is under way, then bring MLflow up to all records, once more also where it was away."""
        if self._uri is None:
            return
        self._inbox.put(None)
        self._thread.join()
        try:
            self._open(self._uri).sync(records, given_up)
        except FAILURES as error:
            reason = _line(error)
            lacking = self._note(self._uri, reason).lacking(records.values())
            told = f"{lacking} of {_counted(len(records))}" if lacking else "the means of the variants"
            self.unwritten = f"{told} ({reason})"


def _counted(fold_runs: int) -> str:
    return "1 fold run" if fold_runs == 1 else f"{fold_runs} fold runs"


def _line(error: BaseException) -> str:
    told = str(error).strip()
    return without_credentials(f"{type(error).__name__}: {told.splitlines()[0] if told else 'no message'}")


def _run_tags(tags: dict[str, str]) -> list[RunTag]:
    return [RunTag(key, value) for key, value in tags.items()]


def _parameters(study: Study, variant: Variant) -> dict[str, str]:
    """All parameters, flat; numbers as plain decimals, so that the UI sorts and plots them."""
    values = flat(variant.config.model_dump(mode="json")) | {
        f"data.{key}": value for key, value in study.sweep.data.model_dump(mode="json").items()
    }
    shown = {}
    for key, value in values.items():
        text = value if isinstance(value, str) else json.dumps(value)
        shown[key] = without_credentials(text)[:6000]  # MLflow's limit
    return shown


def _dataset_input(study: Study) -> DatasetInput:
    """The data set as MLflow shows it: name and digest, and the options that made it. Logging it again changes
    nothing, because MLflow knows a data set by name and digest."""
    data = study.data
    source = without_credentials(json.dumps(study.sweep.data.model_dump(mode="json"), ensure_ascii=False))
    profile = json.dumps({"cells": len(data.labels), "classes": len(data.classes), "size": study.sweep.data.size})
    kind = "code" if study.sweep.data.source == "synthetic" else "local"
    described = Dataset(data.name, data.fingerprint, source_type=kind, source=source, profile=profile)
    return DatasetInput(described, tags=[InputTag("mlflow.data.context", "cross-validation")])


def _common_tags(study: Study) -> dict[str, str]:
    commit, dirty = _git()
    tags = {
        schema.SWEEP: study.sweep.name,
        schema.STAGE: study.sweep.stage,
        schema.JUDGES: study.sweep.judges,
        schema.STUDY: study.id,
        schema.STARTED: study.started,
        schema.DATA_NAME: study.data.name,
        schema.DATA_FINGERPRINT: study.data.fingerprint,
        schema.QUESTION: study.sweep.question,
        schema.METRIC: study.sweep.metric,
        schema.GIT_COMMIT: commit,
        schema.GIT_DIRTY: dirty,
        "mlflow.source.git.commit": commit,
        "mlflow.source.name": "sweeps",
        "mlflow.source.type": "LOCAL",
        "mlflow.user": getpass.getuser(),
    }
    return {key: without_credentials(value) for key, value in tags.items() if value}


def _git() -> tuple[str, str]:
    """Commit and whether the tree differs from it; empty where the package does not stand in a checkout."""
    commit = _ask_git("rev-parse", "HEAD")
    if not commit:
        return "", ""
    return commit, str(bool(_ask_git("status", "--porcelain"))).lower()


def _uncommitted() -> str:
    """How tracked files differ from the commit; files that git does not know may hold anything and stay out."""
    diff = without_credentials(_ask_git("diff", "HEAD") or "")
    return diff if len(diff) <= MOST_DIFF else f"{diff[:MOST_DIFF]}\n[cut; {len(diff)} characters in all]\n"


def _ask_git(*words: str) -> str | None:
    try:
        answer = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), *words],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
    except OSError:
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None
