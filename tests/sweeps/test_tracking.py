"""MLflow is a projection of the records: rebuilt whole, without doubles, without secrets, whatever the store does."""

from __future__ import annotations

import json
import shutil
import sqlite3
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient

from sweeps import schema, tracking
from sweeps.__main__ import main
from sweeps.lock import driver_lock
from sweeps.projected import PROJECTED
from sweeps.records import Records
from sweeps.schema import without_credentials
from sweeps.spec import load_sweep
from sweeps.study import Study, make_study
from sweeps.tracking import Tracker, TrackingThread

SWEEP = """question: Which radius? See https://me:s3cret@wiki.example/page
kind: ablation
base: {loss.name: guide2d, embedding.length: 4}
vary: {guide.radius: [2, 5]}
baseline: {guide.radius: 5}
"""
SETTINGS = "data.cells=400 data.size=16 train.epochs=4 train.batch_size=32 folds.count=3"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A study of six fold runs with records as trained ones leave them; the last one failed."""
    folder = tmp_path_factory.mktemp("tracked")
    path = folder / "radius.yaml"
    path.write_text(SWEEP)
    study = make_study(load_sweep(str(path), preset="laptop", settings=SETTINGS), folder / "out", progress=False)
    study.write()
    records = Records(study.out)
    *good, bad = study.fold_runs
    for place, run in enumerate(good):
        records.write(
            run,
            "finished",
            metrics={schema.TEST_F1: 0.5 + place / 100, schema.BEST_EPOCH: 2.0},
            history=[{"epoch": float(epoch), schema.VAL_F1: 0.1 * epoch} for epoch in range(3)],
            details={"began": 1000.0 + place, "ended": 2000.0 + place, "classifier": "svm", "notes": []},
            predictions=pd.DataFrame({"id": ["x"], "true": ["blast"], "predicted": ["blast"]}),
            arrays={"test_embedding": np.zeros((1, 2))},
        )
    reason = "OSError: https://me:s3cret@host/data is away"
    records.write(bad, "failed", reason=reason, details={"began": 1000.0, "ended": 2000.0})
    return study


@pytest.fixture
def uri(template: Path, tmp_path: Path) -> str:
    return copied(template, tmp_path)


def copied(template: Path, folder: Path) -> str:
    folder.mkdir(exist_ok=True)
    shutil.copy(template, folder / "mlflow.db")
    return f"sqlite:///{folder / 'mlflow.db'}"


def projection(uri: str) -> list[dict[str, Any]]:
    """All runs without ids and the time of writing, in an order of their own."""
    client, told = MlflowClient(tracking_uri=uri), []
    for run in client.search_runs([e.experiment_id for e in client.search_experiments()]):
        tags = {key: value for key, value in run.data.tags.items() if key != "mlflow.parentRunId"}
        names = sorted(item.path for item in client.list_artifacts(run.info.run_id))
        curve = [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, schema.VAL_F1)]
        inputs = [given.dataset.digest for given in run.inputs.dataset_inputs]
        told.append(
            {"tags": tags, "params": run.data.params, "metrics": run.data.metrics, "status": run.info.status}
            | {"artifacts": names, "curve": curve, "inputs": inputs}
        )
    return sorted(told, key=lambda each: json.dumps(each["tags"], sort_keys=True))


def records_of(study: Study) -> dict[str, Any]:
    return Records(study.out).read_all([run.id for run in study.fold_runs])


def test_sync_rebuilds_a_lost_store_without_doubles(
    made: Study, uri: str, template: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = uri, copied(template, tmp_path / "again")
    Tracker(made, first).sync(records_of(made))
    arguments = ["sync", "radius", "--out", str(made.out), "--uri", second]
    assert main(arguments) == 0
    assert "6 fold runs written, 0 were there already" in capsys.readouterr().out
    whole = projection(first)
    assert projection(second) == whole
    assert [each["tags"].get(schema.ROLE) for each in whole].count(schema.FOLD_RUN_ROLE) == 6
    assert main(arguments) == 0
    assert "0 fold runs written, 6 were there already" in capsys.readouterr().out
    assert projection(second) == whole
    client = MlflowClient(tracking_uri=second)
    ids = [each.experiment_id for each in client.search_experiments()]
    for run in client.search_runs(ids, f"tags.{schema.ROLE} = '{schema.FOLD_RUN_ROLE}'")[:2]:
        client.delete_run(run.info.run_id)
    assert main(arguments) == 0
    assert "2 fold runs written, 4 were there already" in capsys.readouterr().out
    assert projection(second) == whole


def test_a_sweep_without_a_study_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sync", "radius", "--out", str(tmp_path)]) == 2
    assert "no study of radius under" in capsys.readouterr().err


def test_no_secret_reaches_the_store(made: Study, uri: str, tmp_path: Path) -> None:
    spied = made.sweep.data.model_copy(update={"source": "s3://key:s3cret@bucket/cells.csv"})
    Tracker(replace(made, sweep=replace(made.sweep, data=spied)), uri).sync(records_of(made))
    assert b"s3cret" not in (tmp_path / "mlflow.db").read_bytes()
    runs = projection(uri)
    assert {run["params"].get("data.source") for run in runs} == {"s3://***@bucket/cells.csv", None}
    assert {run["tags"].get(schema.REASON) for run in runs} == {"OSError: https://***@host/data is away", None}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql+psycopg2://me:pw@db:5432/x", "postgresql+psycopg2://***@db:5432/x"),
        ("at http://token@host and http://host", "at http://***@host and http://host"),
        ("postgresql://me:a/b:c@host/db", "postgresql://***@host/db"),
        ('{"at": "http://host:5000/x", "to": "me@host"}', '{"at": "http://host:5000/x", "to": "me@host"}'),
        ("mlruns", "mlruns"),
        ("mail me@host, alpha=0.6", "mail me@host, alpha=0.6"),
        ("sqlite:////tmp/a@b/mlflow.db", "sqlite:////tmp/a@b/mlflow.db"),
    ],
)
def test_what_stands_before_the_at_of_a_uri_is_hidden(text: str, shown: str) -> None:
    assert without_credentials(text) == shown


@pytest.mark.parametrize("change", ["", "+a line", "x" * 600_000])
def test_an_uncommitted_change_is_kept_bounded(
    made: Study, uri: str, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "_ask_git", lambda *words: change if words[0] == "diff" else "0123")
    Tracker(made, uri).sync({})
    (study,) = [run for run in projection(uri) if run["tags"].get(schema.ROLE) == schema.STUDY_ROLE]
    assert (schema.DIFF in study["artifacts"]) == bool(change)
    assert len(tracking._uncommitted()) < 500_100
    assert tracking._uncommitted().endswith("[cut; 600000 characters in all]\n") == (len(change) > 500_000)


def tracked(study: Study, uri: str, said: list[str]) -> TrackingThread:
    thread = TrackingThread(study, uri, said.append)
    thread.start()
    return thread


def wait_until(condition: Callable[[], Any]) -> None:
    for _ in range(400):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("waited 20 s in vain")


def status_of(study: Study, capsys: pytest.CaptureFixture[str], *more: str) -> str:
    assert main(["status", str(study.out.parent / "radius.yaml"), "--out", str(study.out), *more]) == 0
    return " ".join(capsys.readouterr().out.split())


@pytest.fixture
def own(made: Study, tmp_path: Path) -> Study:
    """The study and its records in a folder that may be spoilt."""
    shutil.copytree(made.out, tmp_path / "out", ignore=shutil.ignore_patterns("mlartifacts", PROJECTED))
    (tmp_path / "radius.yaml").write_text(SWEEP)
    return replace(made, out=tmp_path / "out")


def test_a_store_that_fails_is_tried_again_and_told_once(
    own: Study, uri: str, template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Artifacts cannot be written for a while: a file stands in the place of their folder."""
    monkeypatch.setattr(tracking, "FIRST_PAUSE", 0.1)
    records, said = records_of(own), list[str]()
    first, *others = records
    thread = tracked(own, uri, said)
    thread.put(first)
    wait_until(lambda: (own.folder / PROJECTED).exists())
    artifacts = own.out / "mlartifacts"
    artifacts.rename(own.out / "elsewhere")
    artifacts.write_text("a file in the folder's place")
    for run in others[:3]:
        thread.put(run)
    wait_until(lambda: said)
    assert "MLflow is away (NotADirectoryError" in said[0] and "the sweep goes on" in said[0]
    with driver_lock(own.folder):
        (state,) = json.loads(status_of(own, capsys, "--json"))
        assert state["mlflow"]["lacks"] == 5 and "NotADirectoryError" in state["mlflow"]["away"]["reason"]
        assert "MLflow lacks 5 fold runs: away for" in status_of(own, capsys)
    artifacts.unlink()
    (own.out / "elsewhere").rename(artifacts)
    wait_until(lambda: len(said) > 1)
    assert said[1:] == ["MLflow is back; written of what had waited: 3 fold runs"]
    thread.put(others[-1])
    thread.finish(records)
    assert thread.unwritten is None and len(said) == 2
    assert "MLflow" not in status_of(own, capsys)
    undisturbed = copied(template, tmp_path / "undisturbed")
    Tracker(own, undisturbed).sync(records)
    assert projection(uri) == projection(undisturbed)


def test_what_is_lacking_at_the_end_is_counted_and_brought_by_sync(own: Study, uri: str, capsys: Any) -> None:
    records, said = records_of(own), list[str]()
    first, *others = records
    thread = tracked(own, uri, said)
    thread.put(first)
    wait_until(lambda: (own.folder / PROJECTED).exists())
    shutil.rmtree(own.out / "mlartifacts")
    (own.out / "mlartifacts").write_text("a file in the folder's place")
    thread.put(others[0])
    thread.finish(records)
    assert thread.unwritten is not None and thread.unwritten.startswith("5 of 6 fold runs (NotADirectoryError: ")
    command = f"python -m sweeps sync {own.out.parent / 'radius.yaml'} --out {own.out} --uri {uri}"
    told = status_of(own, capsys)
    assert (
        "MLflow lacks 5 fold runs (NotADirectoryError: " in told and f"nothing is lost, `{command}` writes it" in told
    )
    (own.out / "mlartifacts").unlink()
    with (own.folder / PROJECTED).open("a") as file:
        file.write('{"store": "sqli')  # cut off by a kill
    assert main(command.split()[3:]) == 0
    assert "5 fold runs written, 1 were there already" in capsys.readouterr().out
    assert "MLflow" not in status_of(own, capsys)


@pytest.mark.slow
def test_a_locked_store_neither_fails_nor_hangs(made: Study, uri: str, template: Path, tmp_path: Path) -> None:
    """Another process holds the write lock from the first fold run to the last."""
    records = records_of(made)
    Tracker(made, uri)
    said = list[str]()
    holder = sqlite3.connect(tmp_path / "mlflow.db", isolation_level=None)
    began = time.monotonic()
    try:
        holder.execute("begin exclusive")
        thread = tracked(made, uri, said)
        for run in records:
            thread.put(run)
        thread.finish(records)
    finally:
        holder.close()
    assert thread.unwritten is not None and "locked" in thread.unwritten and "locked" in said[0]
    assert time.monotonic() - began < 60
    assert Tracker(made, uri).sync(records) == 6
    other = copied(template, tmp_path / "other")
    Tracker(made, other).sync(records)
    assert projection(uri) == projection(other)


def test_a_retried_fold_run_keeps_nothing_of_its_failure(made: Study, uri: str, tmp_path: Path) -> None:
    records = records_of(made)
    Tracker(made, uri).sync(records)
    bad = made.fold_runs[-1]
    again = Records(tmp_path / "again")
    again.write(
        bad,
        "finished",
        metrics={schema.TEST_F1: 0.7},
        history=[{"epoch": 0.0, schema.VAL_F1: 0.3}],
        details={"began": 3000.0, "ended": 4000.0},
    )
    retried = again.read(bad.id)
    assert retried is not None
    Tracker(made, uri).sync({**records, bad.id: retried})
    rows = [each for each in projection(uri) if each["tags"].get(schema.FOLD_RUN) == bad.id]
    assert len(rows) == 1 and rows[0]["status"] == "FINISHED"
    assert schema.REASON not in rows[0]["tags"] and rows[0]["curve"] == [(0, 0.3)]


def test_a_study_run_left_half_written_is_taken_back(made: Study, uri: str) -> None:
    tracker = Tracker(made, uri)
    tags = {schema.ROLE: schema.UNFINISHED_ROLE, schema.STUDY: made.id}
    tracker.client.create_run(tracker.experiment, tags=tags)
    for _ in range(2):
        tracker.sync({})
    roles = [run["tags"].get(schema.ROLE) for run in projection(uri)]
    assert roles.count(schema.STUDY_ROLE) == 1 and schema.UNFINISHED_ROLE not in roles


def test_a_second_run_of_one_fold_run_is_taken_back(made: Study, uri: str) -> None:
    """What a lost reply leaves: the store has made a run that the writer knows nothing of."""
    records, run = records_of(made), made.fold_runs[0]
    tracker = Tracker(made, uri)
    tags = {schema.ROLE: schema.FOLD_RUN_ROLE, schema.STUDY: made.id, schema.FOLD_RUN: run.id}
    tracker.client.create_run(tracker.experiment, tags=tags)
    tracker.sync(records)
    Tracker(made, uri).sync(records)
    rows = [each["tags"][schema.FOLD_RUN] for each in projection(uri) if schema.FOLD_RUN in each["tags"]]
    assert sorted(rows) == sorted(records)
