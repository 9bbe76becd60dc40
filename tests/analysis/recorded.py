"""Studies as the sweeps leave them in MLflow, with numbers chosen by the test."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag

from sweeps import schema

# 300 cells in five folds of 60, an eighth of the other 240 for validation: n_test / n_train = 60 / 210.
CELLS = {schema.TEST_CELLS: 60.0, schema.TRAIN_CELLS: 210.0, schema.VALIDATION_CELLS: 30.0}

# Fold scores of three variants. Differences to radius=5: +.05 ± .0071 over all folds, and 0 ± .0158.
SCORES = {
    "radius=2": (0.75, 0.77, 0.73, 0.77, 0.73),
    "radius=5": (0.70, 0.71, 0.69, 0.72, 0.68),
    "radius=8": (0.70, 0.73, 0.67, 0.73, 0.67),
}


@dataclass(frozen=True)
class Recorded:
    """MLflow ids of what was written."""

    uri: str
    variants: dict[str, str]
    fold_runs: dict[tuple[str, int, int, int], str] = field(default_factory=dict)  # (variant, partition, fold, seed)

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(tracking_uri=self.uri)


def copy_store(template: Path, folder: Path) -> str:
    """URI of a copy of a store in `folder`; making one from nothing takes seconds."""
    shutil.copy(template, folder / "mlflow.db")
    return f"sqlite:///{folder / 'mlflow.db'}"


def write_study(
    uri: str,
    scores: Mapping[str, Sequence[float]],
    *,
    baseline: str,
    sweep: str = "radius",
    study: str = "5eed",
    started: str = "2026-01-02T03:04:05+00:00",
    data: str = "marrow",
    seeds: Sequence[int] = (0,),
    bad: Mapping[tuple[str, int], tuple[str, str]] | None = None,
    classes: Mapping[str, float] | None = None,
    parameters: Mapping[str, Mapping[str, str]] | None = None,
) -> Recorded:
    """One parent per variant, one child per fold and seed, by the names of sweeps.schema.

    `scores` holds a score per fold (seed s adds s / 100); `bad` (variant, fold) -> (status, reason) what did not end;
    `classes` the F1 of each class, the same in all fold runs; `parameters` what sets a variant apart, by its label.
    """
    client = MlflowClient(tracking_uri=uri)
    name = schema.experiment_name(sweep, data)
    found = client.get_experiment_by_name(name)
    location = (Path(uri.removeprefix("sqlite:///")).parent / "artifacts").as_uri()
    experiment = found.experiment_id if found else client.create_experiment(name, artifact_location=location)
    common = {
        schema.SWEEP: sweep,
        schema.STUDY: study,
        schema.STARTED: started,
        schema.DATA_NAME: data,
        schema.DATA_FINGERPRINT: "f1n9e5",
        schema.QUESTION: "Which radius?",
        schema.METRIC: schema.TEST_F1,
        schema.GIT_COMMIT: "0123456789abcdef",
        schema.GIT_DIRTY: "false",
    }
    recorded = Recorded(uri, {})
    for order, (variant, folds) in enumerate(scores.items()):
        switches = {"embedding.growing": "true", "embedding.warmup": "true"}
        params = {"loss.name": "guide2d", "embedding.length": "64", **switches, **(parameters or {}).get(variant, {})}
        key, _, value = variant.partition("=")
        varied = (parameters or {}).get(variant) or {f"guide.{key}": value}
        own = {
            **common,
            schema.VARIANT: variant,
            schema.VARIANT_ID: f"id-{variant}",
            schema.VARIED: json.dumps(varied),
        }
        plan = [[0, fold, seed] for seed in seeds for fold in range(len(folds))]
        tags = {
            **own,
            schema.ROLE: schema.VARIANT_ROLE,
            schema.ORDER: str(order),
            schema.BASELINE: str(variant == baseline).lower(),
            schema.PLANNED: json.dumps(plan),
        }
        parent = client.create_run(experiment, tags=tags, run_name=variant).info.run_id
        client.log_batch(parent, params=[Param(name, value) for name, value in params.items()])
        recorded.variants[variant] = parent
        for partition, fold, seed in plan:
            status, reason = (bad or {}).get((variant, fold), ("finished", ""))
            tags = {
                **own,
                schema.ROLE: schema.FOLD_RUN_ROLE,
                schema.FOLD_RUN: f"{variant}-{partition}-{fold}-{seed}",
                schema.PARTITION: str(partition),
                schema.FOLD: str(fold),
                schema.SEED: str(seed),
                schema.STATUS: status,
                schema.GROUPED_BY: "region",
                schema.NOTES: json.dumps(["class blast has no test cell"] if fold == 0 else []),
                "mlflow.parentRunId": parent,
            } | ({schema.REASON: reason} if reason else {})
            name = f"{variant} · partition {partition} · fold {fold} · seed {seed}"
            child = client.create_run(experiment, tags=tags, run_name=name).info.run_id
            recorded.fold_runs[variant, partition, fold, seed] = child
            if status == "finished":
                metrics = {
                    **CELLS,
                    schema.TEST_F1: folds[fold] + seed / 100,
                    schema.BEST_EPOCH: 6.0 + fold,
                    schema.BEST_LENGTH: 14.0,
                    schema.SECONDS: 12.5,
                    **{schema.TEST_F1_CLASS + label: f1 for label, f1 in (classes or {}).items()},
                }
                client.log_batch(child, metrics=[Metric(key, value, 0, 0) for key, value in metrics.items()])
            client.set_terminated(child, "FINISHED" if status == "finished" else "FAILED")
    return recorded


def copy_run(recorded: Recorded, run_id: str) -> str:
    """Write a run a second time."""
    run = recorded.client.get_run(run_id)
    again = recorded.client.create_run(run.info.experiment_id, tags=run.data.tags, run_name=run.info.run_name)
    recorded.client.log_batch(
        again.info.run_id,
        metrics=[Metric(key, value, 0, 0) for key, value in run.data.metrics.items()],
        params=[Param(key, value) for key, value in run.data.params.items()],
        tags=[RunTag("mlflow.runName", str(run.info.run_name))],
    )
    recorded.client.set_terminated(again.info.run_id, run.info.status)
    return str(again.info.run_id)
