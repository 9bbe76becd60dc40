"""Each rule of a search through a real Ray, one for all: what its log, its records and MLflow say in the end."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_engine import wait_for
from test_search import log_of, records_of, statuses

from sweeps import schema
from sweeps.rules import adjusted

pytestmark = [pytest.mark.slow, pytest.mark.timeout(420)]

DRIVER = """
import json, sys
from pathlib import Path
from rich.console import Console
from sweeps.engine import run_search
from sweeps.spec import load_sweep
from sweeps.study import make_study

settings = (
    "data.cells=300 data.size=16 folds.count=3 train.epochs=2 train.batch_size=16 backbone.name=densenet_small "
    "embedding.warmup=false embedding.growing=false classifier.families=[knn] validation.classifier=centroid"
)
for folder in map(Path, sys.argv[1:]):
    out = folder / "out"
    study = make_study(load_sweep(str(folder / "rule.yaml"), preset="laptop", settings=settings), out, progress=False)
    ended = run_search(study, study.sweep.search, f"sqlite:///{out / 'mlflow.db'}", Console(file=sys.stderr))
    told = {
        "done": ended.search.done,
        "limit": ended.outcome.limit,
        "front": [row.number for row in ended.search.front()],
        "ranking": [[row.number, row.variant.config.id, row.end, row.blocks] for row in ended.search.ranking()],
    }
    (folder / "told.json").write_text(json.dumps(told))
"""
SWEEP = """question: Which length and step?
kind: search
base: {{loss.name: guide2d}}
space:
  embedding.length: {{choice: [4, 8]}}
  train.learning_rate: {{choice: {rates}}}
search: {search}
{more}
locked: [patient=P3, patient=P5]
baseline: {{embedding.length: 8, train.learning_rate: 0.003}}
"""
RATES = "[0.003, 1.0e-6]"
TWO = "[{metric: best/val_f1_macro, direction: maximize}, {metric: best/length, direction: minimize}]"
RULES = {
    "racing": (RATES, "{variants: 4, startup: 2, stop: {rule: racing, first: 1}}", ""),
    "asha": (RATES, "{variants: 4, startup: 2, stop: {rule: asha, min_epochs: 1, eta: 3}}", ""),
    "two": (RATES, f"{{variants: 3, startup: 2, objectives: {TWO}, stop: {{rule: none}}}}", ""),
    "failures": ("[0.003, 1.0e+30]", "{variants: 4, startup: 4, stop: {rule: none}}", "max_failures: 1"),
}


def prepared(folder: Path, rule: str) -> Path:
    folder.mkdir()
    rates, search, more = RULES[rule]
    (folder / "rule.yaml").write_text(SWEEP.format(rates=rates, search=search, more=more))
    return folder


@pytest.fixture(scope="module")
def environment() -> Iterator[dict[str, str]]:
    """That of drivers which share one Ray of two CPUs."""
    folder = Path(tempfile.mkdtemp(prefix="ry-"))  # short: sockets have 107 characters
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    told = {**os.environ, "RAY_AUTH_MODE": "disabled", "SWEEPS_NODE_CACHE": str(folder / "node")}
    ray = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", "--disable-usage-stats"]
    ray += [f"--port={address.split(':')[1]}", f"--temp-dir={folder}", "--num-cpus=2", "--node-ip-address=127.0.0.1"]
    ray += ["--include-dashboard=false", "--object-store-memory=80000000"]
    with (folder / "head.log").open("w") as log:
        head = subprocess.Popen(ray, stdout=log, stderr=subprocess.STDOUT, env=told, cwd=folder)
    try:
        wait_for(lambda: "runtime started" in (folder / "head.log").read_text(), 60, "the head")
        yield {**told, "RAY_ADDRESS": address}
    finally:
        head.send_signal(signal.SIGTERM)
        head.wait(60)
        shutil.rmtree(folder, ignore_errors=True)


def drive(folders: list[Path], env: dict[str, str]) -> None:
    words = [sys.executable, "-c", DRIVER, *map(str, folders)]
    told = subprocess.run(words, capture_output=True, text=True, timeout=400, env=env, check=False)
    assert told.returncode == 0 and "Traceback" not in told.stderr, told.stdout + told.stderr


@pytest.fixture(scope="module")
def driven(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("rules")
    folders = {rule: prepared(root / rule, rule) for rule in RULES}
    drive(list(folders.values()), environment)
    return folders


def told_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "told.json").read_text()))


def scores(folder: Path) -> dict[str, dict[tuple[int, int, int], float]]:
    """Validation scores of the finished fold runs by config id and block."""
    found: dict[str, dict[tuple[int, int, int], float]] = {}
    for record in records_of(folder).values():
        if record.status == "finished":
            block = (record.identity["partition"], record.identity["fold"], record.identity["seed"])
            found.setdefault(record.identity["config_id"], {})[block] = record.metrics[schema.BEST_VAL_F1]
    return found


def started(log: list[dict[str, Any]]) -> list[tuple[int, tuple[int, ...]]]:
    lines = [(line["number"], tuple(line["block"])) for line in log if line["event"] == "start"]
    assert len(set(lines)) == len(lines), "nothing is started twice"
    return lines


def ends(log: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    return {line["number"]: line for line in log if line["event"] == "told"}


def test_racing_trains_no_fold_of_what_is_out_and_tells_its_adjusted_estimate(driven: dict[str, Path]) -> None:
    folder = driven["racing"]
    log, told, by_config = log_of(folder), told_of(folder), scores(folder)
    assert told["done"] and len(started(log)) == len(records_of(folder))
    out = [row for row in told["ranking"] if row[2] == "raced out"]
    assert out and {row[2] for row in told["ranking"]} == {"finished", "raced out"}
    assert all(row[3] == 3 for row in told["ranking"] if row[2] == "finished") and all(row[3] < 3 for row in out)
    whole = [by_config[row[1]] for row in told["ranking"] if row[2] == "finished"]
    assert all(len(by_config[row[1]]) == row[3] for row in told["ranking"])
    for number, config, _, blocks in out:
        line = ends(log)[number]
        assert f"behind the best on the same {blocks} folds" in line["why"] and len(line["told"]) == 1
        cleared = [each["blocks"] for each in log if each["event"] == "cleared" and each["number"] == number]
        assert cleared == list(range(2, blocks + 1))
        if len(whole) == 1:  # else the field has grown since
            rivals = [by_config[row[1]] for row in told["ranking"] if row[1] != config]
            assert np.isfinite(adjusted(by_config[config], rivals, [(0, fold, 0) for fold in range(3)]))
    assert statuses(folder, schema.VARIANT_ROLE).count("KILLED") == len(out)
    assert set(statuses(folder, schema.FOLD_RUN_ROLE)) == {"FINISHED"}


def test_asha_stops_within_a_fold_and_marks_what_it_stopped(driven: dict[str, Path]) -> None:
    folder = driven["asha"]
    log, told, records = log_of(folder), told_of(folder), records_of(folder)
    assert told["done"] and len(started(log)) == len(records)
    numbers = {line["number"]: line["config"] for line in log if line["event"] == "ask"}
    halted = {(line["number"], *line["block"]) for line in log if line["event"] == "rung" and line["stop"]}
    assert halted and all(line["epochs"] == 1 for line in log if line["event"] == "rung")
    stopped = [record for record in records.values() if record.status == "stopped"]
    assert stopped and {record.identity["config_id"] for record in stopped} <= {numbers[at[0]] for at in halted}
    for record in stopped:
        assert "not among the best of its loss after 1 epochs" in record.reason
        assert record.metrics == {} and record.artifacts() == []
        number = next(at[0] for at in halted if numbers[at[0]] == record.identity["config_id"])
        itself = (number, *(record.identity[name] for name in ("partition", "fold", "seed"))) in halted
        # Another fold run of the variant may be in its second epoch when this one is judged.
        assert len(record.history) == 1 if itself else len(record.history) <= 2
    for number in {at[0] for at in halted}:
        assert ends(log)[number]["end"] == "stopped" and len(ends(log)[number]["curve"]) == 1
    assert statuses(folder, schema.FOLD_RUN_ROLE).count("KILLED") == len(stopped)


def test_two_objectives_are_told_together_and_give_a_front(driven: dict[str, Path]) -> None:
    folder = driven["two"]
    log, told, records = log_of(folder), told_of(folder), records_of(folder)
    assert told["done"] and len(records) == len(started(log)) == 9
    rows = {}
    for number, config, end, blocks in told["ranking"]:
        assert (end, blocks) == ("finished", 3)
        own = [record.metrics for record in records.values() if record.identity["config_id"] == config]
        rows[number] = [float(np.mean([m[name] for m in own])) for name in (schema.BEST_VAL_F1, schema.BEST_LENGTH)]
        assert ends(log)[number]["told"] == pytest.approx(rows[number])

    def dominated(at: int) -> bool:
        return any(row[0] >= rows[at][0] and row[1] <= rows[at][1] and row != rows[at] for row in rows.values())

    assert sorted(told["front"]) == sorted(number for number in rows if not dominated(number))


def test_too_many_failures_end_the_search(driven: dict[str, Path]) -> None:
    folder = driven["failures"]
    log, told, records = log_of(folder), told_of(folder), records_of(folder)
    assert not told["done"] and "max_failures is 1" in told["limit"]
    broken = [record for record in records.values() if record.status == "diverged"]
    assert 1 <= len(broken) <= 2, "the second CPU may have been at another one"
    assert all("is " in record.reason for record in broken) and len(records) < 12
    diverged = {line["number"] for line in log if line["event"] == "told" and line["end"] == "diverged"}
    assert len(diverged) >= 1 and all(ends(log)[number]["told"] == [0.0] for number in diverged)
    assert statuses(folder, schema.FOLD_RUN_ROLE).count("FAILED") == len(broken)


def test_interrupted_and_run_again_it_goes_on_with_its_log(environment: dict[str, str], tmp_path: Path) -> None:
    folder = prepared(tmp_path / "racing", "racing")
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )
    records = folder / "out" / "records"
    wait_for(lambda: len(list(records.glob("*/record.json"))) >= 2 or driver.poll() is not None, 120, "two records")
    driver.send_signal(signal.SIGINT)
    told, _ = driver.communicate(timeout=120)
    assert list((folder / "out" / "studies").glob("*/asked.jsonl")), told
    before, kept = log_of(folder), {path: path.stat().st_mtime_ns for path in records.glob("*/record.json")}
    assert len(kept) < 8, "it was interrupted in the middle"
    drive([folder], environment)
    log = log_of(folder)
    assert log[: len(before)] == before and len(log) > len(before)
    assert told_of(folder)["done"] and len(started(log)) == len(records_of(folder))
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in kept.items()), "what was recorded was done again"
