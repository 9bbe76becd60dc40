"""MLflow is a projection of the records: rebuilt whole, without doubles, without secrets, whatever the store does."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient

from sweeps import schema, tracking
from sweeps.__main__ import main
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


@pytest.mark.slow
def test_a_locked_store_neither_fails_nor_hangs(made: Study, uri: str, template: Path, tmp_path: Path) -> None:
    """Another process holds the write lock from the first fold run to the last."""
    records = records_of(made)
    Tracker(made, uri)
    thread = TrackingThread(made, uri)
    thread.start()
    assert thread.failure is None
    holder = sqlite3.connect(tmp_path / "mlflow.db", isolation_level=None)
    began = time.monotonic()
    try:
        holder.execute("begin exclusive")
        for run in records:
            thread.put(run)
        thread.finish(records)
    finally:
        holder.close()
    assert thread.failure is not None and "locked" in thread.failure
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


class Server:
    """An MLflow server of its own port and folder, in a process group of its own."""

    def __init__(self, uri: str, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self._port}"
        options = {"--backend-store-uri": uri, "--artifacts-destination": str(folder / "files"), "--workers": "1"}
        options |= {"--host": "127.0.0.1", "--port": str(self._port)}
        words = [word for option in options.items() for word in option]
        self._command = [sys.executable, "-m", "mlflow", "server", *words]
        self._folder = folder

    def start(self) -> None:
        self._process = subprocess.Popen(
            self._command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            cwd=self._folder,
        )
        for _ in range(240):
            try:
                urllib.request.urlopen(f"{self.uri}/health", timeout=2)
            except OSError:
                assert self._process.poll() is None, "the server did not start"
                time.sleep(0.5)
            else:
                return
        raise AssertionError("the server does not answer")

    def kill(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


@pytest.mark.slow
def test_a_server_killed_on_the_way_is_brought_up_by_sync(
    made: Study, uri: str, template: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server, records = Server(uri, tmp_path), records_of(made)
    server.start()
    try:
        thread = TrackingThread(made, server.uri)
        thread.start()
        first, *others = records
        thread.put(first)
        for _ in range(120):
            if thread._tracker is not None and thread._tracker.is_projected(records[first]):
                break
            time.sleep(0.5)
        server.kill()
        for run in others:
            thread.put(run)
        thread.finish(records)
        assert thread.failure is not None and first not in thread.unwritten and set(thread.unwritten) == set(others)
        server.start()
        assert main(["sync", "radius", "--out", str(made.out), "--uri", server.uri]) == 0
        assert "5 fold runs written, 1 were there already" in capsys.readouterr().out
        undisturbed = copied(template, tmp_path / "undisturbed")
        Tracker(made, undisturbed).sync(records)
        assert projection(server.uri) == projection(undisturbed)
    finally:
        server.kill()
