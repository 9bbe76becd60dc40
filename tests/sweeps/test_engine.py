"""Whole small sweeps through Ray into SQLite, undisturbed and disturbed."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faults import environment
from mlflow import MlflowClient
from mlflow_server import Server
from test_tracking import projection

from guided.result import FoldResult, result_of
from sweeps import schema
from sweeps.__main__ import main
from sweeps.projected import PROJECTED
from sweeps.records import Record, Records
from sweeps.study import Study, read_study

SWEEP = """# Which radius?
question: Which radius?
kind: ablation
base: {loss.name: guide2d, embedding.length: 4}
vary: {guide.radius: [2, 5]}
baseline: {guide.radius: 5}
"""
SETTINGS = (
    "data.cells=400 data.size=16 train.epochs=4 train.batch_size=32 folds.count=3 "
    "classifier.families=[knn] validation.classifier=centroid"
)


def sweep_file(folder: Path, text: str = SWEEP) -> Path:
    path = folder / "radius.yaml"
    path.write_text(text)
    return path


def command(path: Path, out: Path, *more: str, settings: str = SETTINGS) -> list[str]:
    base = [sys.executable, "-m", "sweeps", "run", str(path), "--preset", "laptop", "--out", str(out)]
    return [*base, "--set", settings, *more]


def run(path: Path, out: Path, *more: str, settings: str = SETTINGS) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(path, out, *more, settings=settings), capture_output=True, text=True, timeout=300, check=False
    )


def study_of(out: Path) -> Study:
    (folder,) = (out / "studies").iterdir()
    return read_study(folder)


def records_of(out: Path) -> dict[str, Record]:
    study = study_of(out)
    return Records(out).read_all([run.id for run in study.fold_runs])


def lasting(record: Record) -> dict[str, Any]:
    """What must be equal between an undisturbed and a disturbed run."""
    plain = {key: value for key, value in record.metrics.items() if not key.startswith("time/")}
    history = [{k: v for k, v in epoch.items() if not k.startswith("time/")} for epoch in record.history]
    predictions = (record.folder / schema.PREDICTIONS).read_bytes()
    return {"status": record.status, "metrics": plain, "history": history, "predictions": predictions}


def children_of(out: Path) -> list[Any]:
    client = MlflowClient(tracking_uri=f"sqlite:///{out / 'mlflow.db'}")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    return list(client.search_runs(experiments, f"tags.`{schema.ROLE}` = '{schema.FOLD_RUN_ROLE}'"))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed run")  # a space in the path
    told = run(sweep_file(folder), folder / "out")
    assert told.returncode == 0, told.stdout + told.stderr
    return folder


def test_every_fold_run_has_a_record_and_its_mlflow_run(undisturbed: Path) -> None:
    out = undisturbed / "out"
    records = records_of(out)
    assert len(records) == 6 and all(record.status == "finished" for record in records.values())
    children = children_of(out)
    assert sorted(child.data.tags[schema.FOLD_RUN] for child in children) == sorted(records)
    for child in children:
        record = records[child.data.tags[schema.FOLD_RUN]]
        assert child.info.status == "FINISHED"
        assert child.data.metrics[schema.TEST_F1] == pytest.approx(record.metrics[schema.TEST_F1])
        assert child.data.tags[schema.FOLD] == str(record.identity["fold"])
        assert child.data.params["guide.radius"] in ("2.0", "5.0")
        (given,) = child.inputs.dataset_inputs
        assert given.dataset.digest == record.identity["data"] and given.dataset.name == "synthetic marrow"


def test_curves_have_one_point_per_epoch(undisturbed: Path) -> None:
    out = undisturbed / "out"
    client = MlflowClient(tracking_uri=f"sqlite:///{out / 'mlflow.db'}")
    for child in children_of(out):
        curve = client.get_metric_history(child.info.run_id, schema.VAL_F1)
        record = records_of(out)[child.data.tags[schema.FOLD_RUN]]
        assert [point.step for point in curve] == list(range(4))
        assert [point.value for point in curve] == [epoch[schema.VAL_F1] for epoch in record.history]


def test_fold_runs_are_nested_under_variants_that_carry_the_mean(undisturbed: Path) -> None:
    out = undisturbed / "out"
    client = MlflowClient(tracking_uri=f"sqlite:///{out / 'mlflow.db'}")
    children = children_of(out)
    parents = {child.data.tags["mlflow.parentRunId"] for child in children}
    assert len(parents) == 2
    for parent_id in parents:
        parent = client.get_run(parent_id)
        mine = [c.data.metrics[schema.TEST_F1] for c in children if c.data.tags["mlflow.parentRunId"] == parent_id]
        assert parent.info.status == "FINISHED" and len(mine) == 3
        assert parent.data.metrics["cv/test/f1_macro_mean"] == pytest.approx(np.mean(mine))
        assert parent.data.metrics["cv/test/f1_macro_std"] == pytest.approx(np.std(mine, ddof=1))
        assert parent.data.metrics["cv/test/f1_macro_folds"] == 3
        assert json.loads(parent.data.tags[schema.PLANNED]) == [[0, 0, 0], [0, 1, 0], [0, 2, 0]]


def test_artifacts_are_the_records_files(undisturbed: Path) -> None:
    out = undisturbed / "out"
    client = MlflowClient(tracking_uri=f"sqlite:///{out / 'mlflow.db'}")
    for child in children_of(out):
        names = {item.path for item in client.list_artifacts(child.info.run_id)}
        assert names == {schema.RECORD, schema.PREDICTIONS, schema.ARRAYS}


def test_the_same_command_again_does_nothing(undisturbed: Path) -> None:
    out = undisturbed / "out"
    before = {path: path.stat().st_mtime_ns for path in (out / "records").rglob("*")}
    runs = len(children_of(out))
    told = run(undisturbed / "radius.yaml", out)
    assert told.returncode == 0 and "6 already done" in told.stdout and "nothing left to train" in told.stdout
    assert {path: path.stat().st_mtime_ns for path in (out / "records").rglob("*")} == before
    assert len(children_of(out)) == runs


def test_finished_fold_runs_leave_little_on_disk(undisturbed: Path) -> None:
    out = undisturbed / "out"
    assert not list((out / "checkpoints").iterdir()) and not list((out / "ray").iterdir())
    for record in records_of(out).values():
        assert sum(path.stat().st_size for path in record.folder.iterdir()) < 2_000_000


def test_a_longer_sweep_adds_only_what_is_new(undisturbed: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(undisturbed / "out", out)
    before = set(records_of(out))
    told = run(sweep_file(tmp_path, SWEEP.replace("[2, 5]", "[2, 5, 8]")), out)
    assert told.returncode == 0, told.stdout + told.stderr
    assert "6 already done" in told.stdout
    after = records_of(out)  # one study still: the folder is the same
    assert len(after) == 9 and before < set(after)
    assert len(children_of(out)) == 9


def wait_for(condition: Any, seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {seconds} s for {what}")
        time.sleep(0.05)


def started(path: Path, out: Path, settings: str = SETTINGS) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(path, out, settings=settings), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.mark.slow
@pytest.mark.parametrize("finished_before", [0, 1, 3])
def test_a_killed_driver_started_again_ends_with_the_same_records(
    undisturbed: Path, tmp_path: Path, finished_before: int
) -> None:
    path, out = sweep_file(tmp_path), tmp_path / "out"
    driver = started(path, out)
    checkpoints, records = out / "checkpoints", out / "records"

    def reached() -> bool:
        done = len([p for p in records.glob("*") if not p.name.startswith(".")]) if records.exists() else 0
        under_way = list(checkpoints.glob("*/progress.json")) if checkpoints.exists() else []
        return done >= finished_before and bool(under_way)

    wait_for(reached, 120, "the driver to get under way")
    driver.send_signal(signal.SIGKILL)
    driver.communicate()
    kept = {p.parent.name: p.stat().st_mtime_ns for p in records.glob("*/record.json")} if records.exists() else {}
    told = run(path, out)
    assert told.returncode == 0, told.stdout + told.stderr
    ours, theirs = records_of(out), {k: v for k, v in records_of(undisturbed / "out").items()}
    assert {key: lasting(record) for key, record in ours.items()} == {key: lasting(theirs[key]) for key in ours}
    assert len(ours) == 6
    for name, stamp in kept.items():
        assert (records / name / "record.json").stat().st_mtime_ns == stamp, "a finished fold run was done again"
    assert sorted(child.data.tags[schema.FOLD_RUN] for child in children_of(out)) == sorted(ours)


@pytest.mark.slow
def test_a_killed_worker_is_tried_again_from_its_last_epoch(undisturbed: Path, tmp_path: Path) -> None:
    import psutil

    path, out = sweep_file(tmp_path), tmp_path / "out"
    driver = started(path, out)
    wait_for(lambda: list((out / "checkpoints").glob("*/progress.json")), 120, "a first epoch")
    trials = [
        child
        for child in psutil.Process(driver.pid).children(recursive=True)
        if any("ray::ResourceTrainable" in part for part in child.cmdline())  # Tune's wrapper with the resources
    ]
    assert trials
    trials[0].send_signal(signal.SIGKILL)
    printed, _ = driver.communicate(timeout=200)
    assert driver.returncode == 0, printed
    ours, theirs = records_of(out), records_of(undisturbed / "out")
    assert {key: lasting(record) for key, record in ours.items()} == {key: lasting(theirs[key]) for key in ours}


@pytest.mark.slow
def test_ctrl_c_ends_cleanly_and_says_how_to_go_on(tmp_path: Path) -> None:
    path, out = sweep_file(tmp_path), tmp_path / "out"
    driver = started(path, out, settings=SETTINGS.replace("train.epochs=4", "train.epochs=60"))
    wait_for(lambda: list((out / "checkpoints").glob("*/progress.json")), 120, "a first epoch")
    driver.send_signal(signal.SIGINT)
    printed, _ = driver.communicate(timeout=120)
    assert driver.returncode == 130, printed
    assert "the same command goes on where it was" in printed and "Traceback" not in printed


@pytest.mark.slow
def test_two_drivers_on_one_study_the_second_refuses(tmp_path: Path) -> None:
    path, out = sweep_file(tmp_path), tmp_path / "out"
    first = started(path, out)
    wait_for(lambda: list(out.glob("studies/*/driver.lock")), 60, "the first driver's lock")
    second = run(path, out)
    assert second.returncode == 2 and f"is being run by process {first.pid}" in second.stderr
    printed, _ = first.communicate(timeout=200)
    assert first.returncode == 0, printed


@pytest.mark.slow
def test_a_diverged_fold_run_is_named_and_the_rest_goes_on(tmp_path: Path) -> None:
    text = SWEEP.replace("guide.radius: [2, 5]", "train.learning_rate: [0.003, 1.0e+30]").replace(
        "baseline: {guide.radius: 5}", "baseline: {train.learning_rate: 0.003}"
    )
    path, out = sweep_file(tmp_path, text), tmp_path / "out"
    told = run(path, out)
    assert told.returncode == 1, told.stdout + told.stderr
    states = [record.status for record in records_of(out).values()]
    assert sorted(states) == ["diverged"] * 3 + ["finished"] * 3, told.stdout + told.stderr
    assert "diverged" in told.stdout and "epoch 0" in told.stdout
    statuses = sorted(child.data.tags[schema.STATUS] for child in children_of(out))
    assert statuses == ["diverged"] * 3 + ["finished"] * 3
    # Not repeated by itself, repeated when asked, and what was recorded stays.
    assert "6 already done" in run(path, out).stdout
    again = run(path, out, "--retry-failed")
    assert again.returncode == 1 and "[4/6]" in again.stdout
    assert len(list((out / "records").glob("*.attempt1"))) == 3
    assert len(children_of(out)) == 6


def test_a_corrupt_record_is_named_and_refused(undisturbed: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(undisturbed / "out", out)
    victim = sorted((out / "records").iterdir())[0]
    (victim / "record.json").write_text("{")
    told = run(undisturbed / "radius.yaml", out)
    assert told.returncode == 2 and victim.name in told.stderr and "Traceback" not in told.stderr


def test_what_no_node_can_hold_is_refused_before_it_starts(tmp_path: Path) -> None:
    told = run(sweep_file(tmp_path), tmp_path / "out", settings=SETTINGS + " resources.cpus=4096")
    assert told.returncode == 2 and "asks for 4096 CPUs" in told.stderr
    assert not list((tmp_path / "out").glob("records/*"))


def test_a_dead_store_does_not_stop_the_sweep_and_is_filled_later(tmp_path: Path) -> None:
    path, out = sweep_file(tmp_path), tmp_path / "out"
    told = run(path, out, "--uri", "http://127.0.0.1:9")  # nothing listens there
    assert told.returncode == 1 and "MLflow lacks some of the record" in told.stdout, told.stdout + told.stderr
    assert len(records_of(out)) == 6
    told = run(path, out)
    assert told.returncode == 0 and "6 already done" in told.stdout
    assert len(children_of(out)) == 6


def timeless(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A projection without what tells when it was trained, by which state of the checkout, and how long that took."""
    for each in runs:
        for key in (schema.STARTED, schema.GIT_COMMIT, schema.GIT_DIRTY, "mlflow.source.git.commit"):
            each["tags"].pop(key, None)
        each["artifacts"] = [name for name in each["artifacts"] if name != schema.DIFF]
        each["metrics"] = {key: value for key, value in each["metrics"].items() if "time/" not in key}
    return sorted(runs, key=lambda each: json.dumps(each["tags"], sort_keys=True))


@pytest.mark.slow
def test_a_server_killed_in_the_middle_and_started_again_gets_all(
    undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It dies when fold 0 is written, is away while fold 1 is trained, and comes back before fold 2 ends."""
    path, out, log = sweep_file(tmp_path), tmp_path / "out", tmp_path / "log"
    server = Server(f"sqlite:///{tmp_path / 'mlflow.db'}", tmp_path)
    server.start()
    faults = [
        {"how": "wait", "where": "epoch", "epoch": 3, "fold": fold, "until": until, "always": True}
        for fold, until in ((1, "killed"), (2, "back"))
    ]
    words = [*command(path, out, "--uri", server.uri)]
    driver = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment(log, *faults)
    )

    def noted(kind: str) -> int:
        files = list(out.glob(f"studies/*/{PROJECTED}"))
        return sum(f'"{kind}"' in line for line in files[0].read_text().splitlines()) if files else 0

    try:
        wait_for(lambda: noted("fold_run") >= 2, 150, "fold 0 in MLflow")
        server.kill()
        (log / "killed").touch()
        wait_for(lambda: noted("away") and len(list(out.glob("records/*/record.json"))) == 4, 150, "fold 1")
        assert main(["status", str(path), "--out", str(out), "--json"]) == 0
        (state,) = json.loads(capsys.readouterr().out)
        assert state["mlflow"]["lacks"] == 2 and state["mlflow"]["away"]["reason"]
        server.start()
        wait_for(lambda: noted("back"), 150, "the server to be written again")
        (log / "back").touch()
        printed, _ = driver.communicate(timeout=100)
        assert driver.returncode == 0, printed
        assert printed.count("MLflow is away (") == 1 and "MLflow lacks" not in printed
        assert printed.count("MLflow is back; written of what had waited: 2 fold runs") == 1
        assert main(["sync", str(path), "--out", str(out), "--uri", server.uri]) == 0
        assert "0 fold runs written, 6 were there already" in capsys.readouterr().out
        theirs = projection(f"sqlite:///{undisturbed / 'out' / 'mlflow.db'}")
        assert timeless(projection(server.uri)) == timeless(theirs)
    finally:
        (log / "killed").touch()
        (log / "back").touch()
        server.kill()
        driver.kill()
        driver.communicate()


def test_status_from_another_process(undisturbed: Path) -> None:
    arguments = [sys.executable, "-m", "sweeps", "status", str(undisturbed / "radius.yaml"), "--out"]
    told = subprocess.run(
        [*arguments, str(undisturbed / "out")], capture_output=True, text=True, check=False, env=dict(os.environ)
    )
    assert told.returncode == 0 and "radius=2" in told.stdout and "3/3" in told.stdout
    nothing = subprocess.run([*arguments, str(undisturbed)], capture_output=True, text=True, check=False)
    assert nothing.returncode == 2 and "no study" in nothing.stdout


@pytest.mark.slow
def test_what_differs_behind_the_embedding_only_is_not_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Within a sweep, and in a later one with another grid: the executions are counted, what was recorded stays, and a
    record equals that of a sweep which trained the variant itself. So do records that get a metric later."""

    def file(name: str, vary: str, baseline: str) -> Path:
        base = "{loss.name: guide2d, embedding.length: 4, embedding.growing: false, embedding.warmup: false}"
        path = tmp_path / f"{name}.yaml"
        path.write_text(f"question: Which one?\nkind: ablation\nbase: {base}\nvary: {vary}\nbaseline: {baseline}\n")
        return path

    def all_records(out: Path) -> dict[str, Record]:
        return Records(out).read_all([path.name for path in (out / "records").iterdir()])

    cut = file("cut", "{classifier.components: [all, 2]}", "{classifier.components: all}")
    out = tmp_path / "out"
    told = run(cut, out)
    assert told.returncode == 0 and "3 of the fold runs to come train nothing" in told.stdout, told.stdout + told.stderr
    first = all_records(out)
    trained = {key for key, record in first.items() if any("last_epoch" in each for each in record.details["attempts"])}
    assert len(first) == 6 and len(trained) == 3 and len(list((out / "embeddings").iterdir())) == 3
    assert {key for key, record in first.items() if record.details["reused"]} == first.keys() - trained
    written = {key: (record.folder / schema.RECORD).read_bytes() for key, record in first.items()}

    other = file("other", "{classifier.families: [[svm], [knn, svm]]}", "{classifier.families: [svm]}")
    settings = SETTINGS.replace("classifier.families=[knn] ", "")
    told = run(other, out, settings=settings)
    assert told.returncode == 0 and "6 of the fold runs to come train nothing" in told.stdout, told.stdout + told.stderr
    both = all_records(out)
    assert len(both) == 12 and all(both[key].details["reused"] for key in both.keys() - first.keys())
    assert {key: (both[key].folder / schema.RECORD).read_bytes() for key in first} == written
    tags = {child.data.tags[schema.FOLD_RUN]: child.data.tags.get(schema.REUSED) for child in children_of(out)}
    assert tags == {key: None if key in trained else "true" for key in both}

    alone = tmp_path / "alone"
    two = file("alone", "{classifier.components: [2]}", "{classifier.components: 2}")
    assert run(two, alone, "--no-mlflow").returncode == 0
    own = all_records(alone)
    assert len(own) == 3 and not any(record.details["reused"] for record in own.values())
    assert {key: lasting(record) for key, record in own.items()} == {key: lasting(both[key]) for key in own}

    def measured(name: str, value: float) -> None:
        def with_more(*given: Any, **named: Any) -> FoldResult:
            result = result_of(*given, **named)
            return dataclasses.replace(result, metrics={**result.metrics, name: value})

        monkeypatch.setattr("sweeps.remeasure.result_of", with_more)

    measured("test/new", 0.25)
    assert main(["remeasure", "cut", "--out", str(out)]) == 0
    assert "6 of 6 fold runs have new metrics: test/new" in capsys.readouterr().out
    later = all_records(out)
    assert {key for key, record in later.items() if record.metrics.get("test/new") == 0.25} == first.keys()
    assert {key: (both[key].folder / schema.RECORD).read_bytes() for key in first} == written
    children = [child for child in children_of(out) if child.data.tags[schema.FOLD_RUN] in first]
    assert [child.data.metrics["test/new"] for child in children] == [0.25] * 6
    client = MlflowClient(tracking_uri=f"sqlite:///{out / 'mlflow.db'}")
    parents = {child.data.tags["mlflow.parentRunId"] for child in children}
    assert [client.get_run(run).data.metrics["cv/test/new_mean"] for run in parents] == [0.25] * 2
    measured("test/accuracy", 2.0)
    assert main(["remeasure", "cut", "--out", str(out)]) == 2
    assert "and comes out as 2 from" in capsys.readouterr().err
    shutil.rmtree(out / "embeddings")
    assert main(["remeasure", "cut", "--out", str(out)]) == 1
    assert "6 kept no embedding" in capsys.readouterr().out
