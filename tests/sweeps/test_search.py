"""Small searches through Ray, undisturbed and disturbed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from sweeps import schema
from sweeps.records import Record, Records
from sweeps.study import read_study

# One worker, so that the course of the search is the same each time. Short fold runs without a warm-up.
DRIVER = """
import json, sys
from dataclasses import replace
from pathlib import Path
from rich.console import Console
from sweeps.engine import SearchPlan, run_search
from sweeps.replay import ListedSpace
from sweeps.spec import SearchSettings, load_sweep
from sweeps.study import make_study

folder, told = Path(sys.argv[1]), sys.argv[2]
settings = (
    "data.cells=400 data.size=16 train.epochs=4 train.batch_size=32 folds.count=2 embedding.warmup=false "
    "embedding.growing=false classifier.families=[knn] validation.classifier=centroid resources.workers=1"
)
sweep = load_sweep(str(folder / "search.yaml"), preset="laptop", settings=settings)
space = ListedSpace(sweep.variants)
plan = SearchPlan(space, SearchSettings.model_validate_json(told), space.resolve)
alone = replace(sweep, variants=tuple(variant for variant in sweep.variants if variant.baseline))
study = make_study(alone, folder / "out", progress=False)
done = run_search(study, plan, f"sqlite:///{folder / 'out' / 'mlflow.db'}", Console())
print(json.dumps([[row.variant.label, row.end, row.blocks, list(row.told)] for row in done.search.ranking()]))
sys.exit(0 if done.search.done and not done.outcome.absent else 1)
"""
SWEEP = """question: Which length and radius?
kind: ablation
base: {loss.name: guide2d}
vary: {embedding.length: [4, 8], guide.radius: [2, 5]}
baseline: {embedding.length: 4, guide.radius: 2}
"""
RACING = {"rule": "racing", "first": 1, "margin": 0.0}
ASHA = {"rule": "asha", "min_epochs": 1, "eta": 3}


def command(folder: Path, stop: dict[str, Any]) -> list[str]:
    folder.mkdir(exist_ok=True)
    (folder / "search.yaml").write_text(SWEEP)
    settings = {"sampler": "tpe", "variants": 4, "startup": 2, "seed": 1, "stop": stop}
    return [sys.executable, "-c", DRIVER, str(folder), json.dumps(settings)]


def run(folder: Path, stop: dict[str, Any]) -> list[Any]:
    told = subprocess.run(command(folder, stop), capture_output=True, text=True, timeout=600, check=False)
    assert told.returncode == 0, told.stdout + told.stderr
    assert "Traceback" not in told.stderr, told.stderr
    return list(json.loads(told.stdout.splitlines()[-1]))


def log_of(folder: Path) -> list[dict[str, Any]]:
    (path,) = (folder / "out" / "studies").glob("*/asked.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def records_of(folder: Path) -> dict[str, Record]:
    records = Records(folder / "out")
    return records.read_all([path.name for path in records.folder.iterdir()])


def lasting(record: Record) -> dict[str, Any]:
    """What must be equal between an undisturbed and a disturbed run."""
    plain = {key: value for key, value in record.metrics.items() if not key.startswith("time/")}
    history = [{k: v for k, v in epoch.items() if not k.startswith("time/")} for epoch in record.history]
    return {"status": record.status, "reason": record.reason, "metrics": plain, "history": history}


def statuses(folder: Path, role: str) -> list[str]:
    client = MlflowClient(tracking_uri=f"sqlite:///{folder / 'out' / 'mlflow.db'}")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    return sorted(run.info.status for run in client.search_runs(experiments, f"tags.`{schema.ROLE}` = '{role}'"))


def test_a_racing_search_trains_what_it_asks_for_and_nothing_twice(tmp_path: Path) -> None:
    ranking = run(tmp_path, RACING)
    log, records = log_of(tmp_path), records_of(tmp_path)
    assert len(ranking) == 4 and ranking[0][1:3] == ["finished", 2]
    assert {end for _, end, _, _ in ranking} == {"finished", "raced out"}
    blocks = {label: count for label, _, count, _ in ranking}
    started = [(line["number"], tuple(line["block"])) for line in log if line["event"] == "start"]
    assert len(set(started)) == len(started) == len(records) == sum(blocks.values())
    assert all(record.status == "finished" for record in records.values())
    # The plan on disk has every variant, so that status and tables find them.
    (folder,) = (tmp_path / "out" / "studies").iterdir()
    assert {variant.label for variant in read_study(folder).sweep.variants} >= set(blocks)
    assert statuses(tmp_path, schema.FOLD_RUN_ROLE) == ["FINISHED"] * len(records)
    assert statuses(tmp_path, schema.VARIANT_ROLE).count("KILLED") == sum(
        end == "raced out" for _, end, _, _ in ranking
    )
    # Again: nothing is asked, nothing trained.
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "records").rglob("*")}
    assert run(tmp_path, RACING) == ranking and log_of(tmp_path) == log
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "records").rglob("*")} == before


@pytest.mark.slow
@pytest.mark.timeout(1800)  # six starts of Ray
@pytest.mark.parametrize(("stop", "after"), [(ASHA, 2), (RACING, 3)])
def test_a_killed_search_goes_on_to_the_same_end(tmp_path: Path, stop: dict[str, Any], after: int) -> None:
    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "disturbed"
    ranking = run(undisturbed, stop)
    driver = subprocess.Popen(
        command(disturbed, stop), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=dict(os.environ)
    )
    records, checkpoints = disturbed / "out" / "records", disturbed / "out" / "checkpoints"
    deadline = time.monotonic() + 600
    while len(list(records.glob("*/record.json"))) < after or not list(checkpoints.glob("*/progress.json")):
        assert driver.poll() is None and time.monotonic() < deadline, "the driver ended before it was killed"
        time.sleep(0.02)
    driver.send_signal(signal.SIGKILL)
    driver.communicate()
    kept = {path: path.stat().st_mtime_ns for path in records.glob("*/record.json")}
    assert run(disturbed, stop) == ranking
    assert log_of(disturbed) == log_of(undisturbed)
    ours, theirs = records_of(disturbed), records_of(undisturbed)
    assert {key: lasting(record) for key, record in ours.items()} == {
        key: lasting(record) for key, record in theirs.items()
    }
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in kept.items()), "what was recorded was done again"
    if stop is ASHA:
        stopped = [record for record in ours.values() if record.status == "stopped"]
        assert stopped and all(record.history and not record.metrics for record in stopped)
        assert "KILLED" in statuses(disturbed, schema.FOLD_RUN_ROLE)
