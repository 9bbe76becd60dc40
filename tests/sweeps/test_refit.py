"""A variant trained on all cells, from the records of its fold runs to the model file and MLflow."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow.pytorch
import numpy as np
import pandas as pd
import pytest
import torch
from mlflow import MlflowClient
from rich.console import Console

from guided.data import Dataset
from guided.metrics import fit_temperature
from guided.model import load_model, unit
from sweeps import schema
from sweeps.__main__ import main
from sweeps.records import Records
from sweeps.refit import find_study, plan_refit, train_refit
from sweeps.spec import load_sweep
from sweeps.study import Study, make_study
from sweeps.trainable import FoldRunTrial

SWEEP = """question: Which radius?
kind: ablation
base: {loss.name: guide2d, embedding.length: 4}
vary: {guide.radius: [2, 5]}
baseline: {guide.radius: 5}
"""
SETTINGS = (
    "data.cells=300 data.size=16 train.epochs=4 train.batch_size=32 folds.count=3 "
    "classifier.families=[knn] validation.classifier=centroid"
)


def recorded(out: Path, settings: str = SETTINGS) -> Study:
    """A study whose fold runs of radius 5 are recorded, by the trainable but without Ray."""
    path = out / "radius.yaml"
    out.mkdir(parents=True, exist_ok=True)
    path.write_text(SWEEP)
    study = make_study(load_sweep(str(path), preset="laptop", settings=settings), out, progress=False)
    study.write()
    for run in study.runs_of(study.sweep.variants[1]):
        trial = FoldRunTrial({"fold_run": run.id, "study": str(study.folder), "plan": settings})
        while not trial.step()["done"]:
            pass
        trial.cleanup()
    return study


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return recorded(tmp_path_factory.mktemp("refit")).out


def rewritten(out: Path, run_id: str, change: dict[str, Any]) -> None:
    """Change metrics of a record and seal it anew."""
    from sweeps.records import _seal

    path = out / "records" / run_id / schema.RECORD
    content = json.loads(path.read_text())["content"]
    content["metrics"] |= change
    path.write_text(json.dumps({"seal": _seal(content), "content": content}))


def test_it_trains_for_the_median_of_the_best_epochs(out: Path, tmp_path: Path) -> None:
    shutil.copytree(out, tmp_path / "out")
    study = find_study(tmp_path / "out", "radius", None)
    for run, best in zip(study.runs_of(study.sweep.variants[1]), (0.0, 2.0, 3.0), strict=True):
        rewritten(study.out, run.id, {schema.BEST_EPOCH: best})
    refit = plan_refit(study, "radius=5")
    assert refit.lengths == (2, 2, 2) and len(refit.rows) == 300, "epochs count from 0: the median 2 is the third"


def test_it_is_calibrated_on_what_the_fold_runs_held_out(out: Path) -> None:
    study = find_study(out, "radius", None)
    refit = plan_refit(study, "radius=5")
    squared, labels = [], []
    for record in refit.records.values():
        arrays = np.load(record.folder / schema.ARRAYS)
        embedding, anchors = arrays["test_embedding"].astype(float), arrays["anchors"].astype(float)
        known = ~np.isnan(anchors).any(1)
        part = np.full((len(embedding), len(anchors)), np.inf)
        for row, p in enumerate(embedding):
            for number in np.flatnonzero(known):
                part[row, number] = np.sum((p - anchors[number]) ** 2) / unit(anchors) ** 2
        squared.append(part)
        labels.append(arrays["test_labels"])
    expected = fit_temperature(np.concatenate(squared), np.concatenate(labels))
    assert refit.calibration.temperature == pytest.approx(expected)
    assert refit.calibration.cells == 300, "every cell is held out once"
    assert refit.calibration.distances[-1] == pytest.approx(np.sqrt(np.concatenate(squared).min(1).max()))


def test_the_model_file_predicts_and_is_not_trained_twice(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refit = plan_refit(find_study(out, "radius", None), "radius=5")
    model = train_refit(refit, "cpu", Console(quiet=True))
    assert model.about["epochs"] == len(refit.lengths) == len(model.about["history"])
    assert model.about["fold_runs"] == sorted(refit.records) and model.size == model.field == 16
    data: Dataset = refit.study.data
    told = model.predict(model.embed(np.array(data.images[:50])))
    assert set(told["class"]) <= set(data.classes)
    assert not list(out.glob("checkpoints/refit-*"))
    before = refit.path.stat().st_mtime_ns
    train_refit(refit, "cpu", Console())
    assert "nothing to train" in capsys.readouterr().out and refit.path.stat().st_mtime_ns == before
    refit.path.write_bytes(refit.path.read_bytes()[:-50])
    with pytest.raises(ValueError, match="no model file, or damaged"):
        train_refit(refit, "cpu", Console(quiet=True))
    refit.path.unlink()


def test_a_variant_that_is_not_complete_is_refused(out: Path, tmp_path: Path) -> None:
    study = find_study(out, "radius", None)
    with pytest.raises(ValueError, match=r"3 of 3 fold runs of 'radius=2' are not finished \(radius=2 · partition 0"):
        plan_refit(study, "radius=2")
    with pytest.raises(ValueError, match="no variant 'radius=55'; did you mean 'radius=5'"):
        plan_refit(study, "radius=55")
    with pytest.raises(ValueError, match=r"no study of 'radius' in .*; run the sweep first"):
        find_study(tmp_path, "radius", None)
    with pytest.raises(ValueError, match=rf"no study 'abc' in .*; there are: {study.id}"):
        find_study(out, "radius", "abc")


def test_a_record_without_class_means_is_refused(out: Path, tmp_path: Path) -> None:
    shutil.copytree(out, tmp_path / "out")
    study = find_study(tmp_path / "out", "radius", None)
    run = study.runs_of(study.sweep.variants[1])[0]
    record = Records(study.out).read(run.id)
    assert record is not None
    arrays = {key: value for key, value in np.load(record.folder / schema.ARRAYS).items() if key != "anchors"}
    frame = pd.read_parquet(record.folder / schema.PREDICTIONS)
    Records(study.out).set_aside(run.id)
    Records(study.out).write(
        run, "finished", metrics=record.metrics, history=record.history, predictions=frame, arrays=arrays
    )
    with pytest.raises(ValueError, match="before fold runs kept their class means"):
        plan_refit(study, "radius=5")


@pytest.fixture
def uri_of_mlflow() -> Iterator[None]:
    """MLflow keeps the store it was told in the environment, where the sweeps of later tests would find it."""
    yield
    mlflow.set_tracking_uri(None)


@pytest.mark.slow
def test_mlflow_has_the_network_and_the_file(out: Path, tmp_path: Path, uri_of_mlflow: None) -> None:
    export, uri = tmp_path / "a model.npz", f"sqlite:///{out / 'mlflow.db'}"
    words = ["refit", "radius", "radius=5", "--out", str(out), "--export", str(export), "--uri", uri]
    assert main(words) == 0 and main(words) == 0
    client = MlflowClient(tracking_uri=uri)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    (run,) = client.search_runs(experiments, f"tags.`{schema.ROLE}` = '{schema.REFIT_ROLE}'")
    assert run.info.status == "FINISHED" and run.data.tags[schema.VARIANT] == "radius=5"
    (parent,) = client.search_runs(experiments, f"tags.`{schema.VARIANT}` = 'radius=5' and tags.`role` = 'variant'")
    assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
    model = load_model(export)
    assert len(client.get_metric_history(run.info.run_id, schema.TRAIN_LOSS)) == model.about["epochs"]
    mlflow.set_tracking_uri(uri)
    network = mlflow.pytorch.load_model(f"runs:/{run.info.run_id}/model")
    pixels = np.random.default_rng(0).integers(0, 256, (7, 16, 16, 3), dtype=np.uint8)
    with torch.no_grad():
        embedding = network(torch.from_numpy(pixels.astype(np.float32))).numpy()
    assert embedding == pytest.approx(model.embed(pixels), rel=1e-3, abs=1e-4)
    described = mlflow.models.get_model_info(f"runs:/{run.info.run_id}/model")
    assert described.signature is not None and described.saved_input_example_info is not None
    folder = Path(client.download_artifacts(run.info.run_id, schema.MODEL_FILE, str(tmp_path)))
    assert [path.read_bytes() for path in folder.iterdir()] == [export.read_bytes()]
