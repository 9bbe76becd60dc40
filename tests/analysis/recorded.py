"""Studies as the sweeps leave them in MLflow, with numbers chosen by the test."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from PIL import Image

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
    tags: Mapping[str, str] | None = None,
) -> Recorded:
    """One parent per variant, one child per fold and seed, by the names of sweeps.schema.

    `scores` holds a score per fold (seed s adds s / 100); `bad` (variant, fold) -> (status, reason) what did not end;
    `classes` the F1 of each class, the same in all fold runs; `parameters` what sets a variant apart, by its label;
    `tags` more tags of every run. Validation scores are 0.1 above the test scores.
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
        **(tags or {}),
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
                    schema.BEST_VAL_F1: folds[fold] + seed / 100 + 0.1,
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


# Class: lineage, stage, point on the guide.
CLASSES = {
    "blast": ("undifferentiated", 0, (0.0, 0.0)),
    "myelocyte": ("neutrophilic", 2, (0.0, 2.0)),
    "segmented": ("neutrophilic", 5, (0.0, 5.0)),
    "lymphocyte": ("lymphoid", 4, (0.0, -4.5)),
    "monocyte": ("monocytic", 4, (-4.0, -2.0)),
}


def write_cells(
    recorded: Recorded,
    folder: Path,
    *,
    cells: int = 300,
    length: int = 2,
    guided: bool = True,
    classes: Mapping[str, tuple[str, float, tuple[float, float]]] = CLASSES,
    ids: str = "cell-{}",
    pictures: bool = True,
) -> None:
    """The files of every finished fold run, and the study's own run: `cells` test cells over the folds, around the
    guide's points of their classes, every tenth predicted wrongly, each a thumbnail in one grey that tells its number.
    """
    names, points = list(classes), np.array([point for *_, point in classes.values()])
    client, folds = recorded.client, sorted({fold for _, _, fold, _ in recorded.fold_runs})
    labels = np.arange(cells) % len(names)
    name_of = [ids.format(number) for number in range(cells)]
    for (_, _, fold, seed), run in recorded.fold_runs.items():
        if client.get_run(run).data.tags[schema.STATUS] != "finished":
            continue
        rows = np.flatnonzero(np.arange(cells) // len(names) % len(folds) == fold)
        rng = np.random.default_rng([fold, seed])
        embedding = np.zeros((len(rows), length))
        embedding[:, :2] = points[labels[rows]]
        embedding += rng.normal(0, 0.4, embedding.shape)
        predicted = np.where(np.arange(len(rows)) % 10 == 9, (labels[rows] + 1) % len(names), labels[rows])
        scores = np.eye(len(names))[predicted] + rng.uniform(0, 0.5, (len(rows), len(names)))
        table = pd.DataFrame({"id": np.array(name_of)[rows], "true": np.array(names)[labels[rows]]})
        table["predicted"] = np.array(names)[predicted]
        table = pd.concat([table, pd.DataFrame(scores, columns=[f"score/{name}" for name in names])], axis=1)
        table.to_parquet(folder / schema.PREDICTIONS)
        guide = {"guide": np.pad(points, ((0, 0), (0, length - 2)))} if guided else {}
        np.savez(
            folder / schema.ARRAYS,
            test_embedding=embedding.astype(np.float16),
            test_labels=labels[rows],
            classes=np.array(names),
            guide_2d=points,
            **guide,
        )
        history = [
            {"epoch": float(epoch), schema.VAL_F1: 0.1 * epoch + 0.01 * fold, schema.LENGTH: float(2 + epoch)}
            for epoch in range(4)
        ]
        (folder / schema.RECORD).write_text(
            json.dumps({"content": {"history": history, "details": {"host": "secret"}}})
        )
        for name in (schema.PREDICTIONS, schema.ARRAYS, schema.RECORD):
            client.log_artifact(run, str(folder / name))
    if not pictures:
        return
    first = client.get_run(next(iter(recorded.variants.values())))
    tags = {key: first.data.tags[key] for key in (schema.SWEEP, schema.STUDY)} | {schema.ROLE: schema.STUDY_ROLE}
    run = client.create_run(first.info.experiment_id, tags=tags).info.run_id
    side, columns = 8, int(np.ceil(np.sqrt(cells)))
    sprite = np.zeros((-(-cells // columns) * side, columns * side, 3), dtype=np.uint8)
    for place in range(cells):
        y, x = place // columns * side, place % columns * side
        sprite[y : y + side, x : x + side] = 40 + 8 * (place % 25)
    buffer = io.BytesIO()
    Image.fromarray(sprite).save(buffer, "WEBP", lossless=True)
    (folder / schema.SPRITE).write_bytes(buffer.getvalue())
    pd.DataFrame({"id": name_of, "class": np.array(names)[labels]}).to_parquet(folder / schema.CELLS)
    told = {"thumbnail": side, "columns": columns, "classes": names, "points": points.tolist()}
    told |= {"lineages": [each[0] for each in classes.values()], "stages": [each[1] for each in classes.values()]}
    (folder / schema.CLASSES).write_text(json.dumps(told), encoding="utf-8")
    for name in (schema.SPRITE, schema.CELLS, schema.CLASSES):
        client.log_artifact(run, str(folder / name))
