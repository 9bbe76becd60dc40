"""A search from the command line: what it takes over, how it ends, and what its exit code says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from analysis.__main__ import main as analysis
from sweeps import schema
from sweeps.__main__ import INCOMPLETE, INTERRUPTED, OK, main
from sweeps.asked import ASKED, read_log
from sweeps.engine import Outcome, Searched, _SearchRun
from sweeps.records import Records
from sweeps.spec import load_sweep
from sweeps.strategy import End, Search
from sweeps.study import Study, make_study

SEARCH = """
question: Which length and penalty?
kind: search
base: {loss.name: guide2d, embedding.growing: false, embedding.warmup: false, classifier.families: [knn]}
space: {embedding.length: {choice: [4, 8, 16]}, norm.weight: {choice: [0.001, 0.01]}}
search: {variants: 4, startup: 2, stop: {rule: none}}
locked: [patient=P3, patient=P5]
judge_seeds: [0]
baseline: {embedding.length: 8, norm.weight: 0.001}
"""
TINY = "data.cells=300 data.size=16 folds.count=2 train.epochs=2 train.batch_size=16 validation.classifier=centroid"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "lengths.yaml"
    path.write_text(SEARCH)
    return path


@pytest.fixture
def study(path: Path) -> Study:
    return make_study(load_sweep(str(path), preset="laptop", settings=TINY), path.parent / "out", progress=False)


def test_variants_recorded_on_the_same_folds_are_told_to_the_sampler_once(study: Study) -> None:
    plan = study.sweep.search
    assert plan is not None
    records = Records(study.out)
    run = _SearchRun(study, plan, False)
    whole, half, broken = (run._resolve({"embedding.length": 16, "norm.weight": w}) for w in (0.001, 0.01, 0.001))
    other = plan.resolve({"embedding.length": 4, "norm.weight": 0.01})
    for variant in (whole, half, other):
        run._resolve(variant.varied)
        run._grow(variant)
    assert broken.config.id == whole.config.id
    for variant, folds in ((whole, 2), (half, 1)):
        for each in run.study.runs_of(variant)[:folds]:
            records.write(each, "finished", metrics={schema.BEST_VAL_F1: 0.5 + each.fold / 10})
    for each in run.study.runs_of(other):
        records.write(each, "diverged", reason="epoch 0: the training loss is nan")
    again = _SearchRun(study, plan, False)
    assert again.warm == 1, "only a variant that was trained on every fold"
    assert read_log(study.folder / ASKED) == [
        {"event": "warm", "values": {"embedding.length": 16, "norm.weight": 0.001}, "told": [0.55]}
    ]
    assert _SearchRun(study, plan, False).warm == 0 and len(read_log(study.folder / ASKED)) == 1


Fake = Callable[..., Searched]


def ended(study: Study, count: int, status: str = "finished", **told: Any) -> Fake:
    """A run of the search that ended after `count` fold runs."""

    def run(given: Study, plan: Any, *_: Any, **__: Any) -> Searched:
        blocks = [(0, fold, 0) for fold in range(2)]
        search = Search(plan.space, blocks, plan.settings, plan.resolve, first=given.sweep.variants[0].varied)
        for _ in range(count):
            job = search.next()
            assert job is not None
            search.ended(job.key, End("finished", (0.5,), (0.5 - job.number / 10,)))
        if count == 8:
            assert search.next() is None
        outcome: dict[str, Any] = {"records": {}, "absent": [], "failed": [], "unwritten": None, "hindered": {}}
        return Searched(given, search, Outcome(**outcome | told))

    return run


@pytest.mark.parametrize(
    ("count", "told", "code", "judged"),
    [
        (8, {}, OK, True),
        (4, {}, INTERRUPTED, False),  # stopped between two fold runs
        (4, {"limit": "budget.fold_runs is spent"}, INCOMPLETE, True),
        (1, {"limit": "budget.fold_runs is spent"}, INCOMPLETE, False),  # nothing that could be judged
    ],
)
def test_the_exit_code_says_how_a_search_ended(
    path: Path,
    study: Study,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    count: int,
    told: dict[str, Any],
    code: int,
    judged: bool,
) -> None:
    seen: list[Study] = []

    def run_study(given: Study, *_: Any, **__: Any) -> Outcome:
        seen.append(given)
        return Outcome({}, [], [], None, {})

    monkeypatch.setattr("sweeps.engine.run_search", ended(study, count, **told))
    monkeypatch.setattr("sweeps.engine.run_study", run_study)
    arguments = ["run", str(path), "--out", str(study.out), "--preset", "laptop", "--no-mlflow", "--set", TINY]
    assert main(arguments) == code
    assert [each.sweep.stage for each in seen] == ["judge"] * judged
    out = " ".join(capsys.readouterr().out.split())
    assert ("is not done" in out) == (count < 8)


def test_too_many_failures_leave_nothing_to_judge(
    path: Path, study: Study, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path.write_text(SEARCH + "max_failures: 1\n")
    run = study.fold_runs[0]
    Records(study.out).write(run, "failed", reason="RuntimeError: no such disk", details={"began": 0.0, "ended": 1.0})
    records = Records(study.out).read_all([run.id])
    limit = "1 fold runs have failed, and max_failures is 1"
    monkeypatch.setattr("sweeps.engine.run_search", ended(study, 4, records=records, failed=[run], limit=limit))
    monkeypatch.setattr("sweeps.engine.run_study", lambda *_, **__: pytest.fail("it was judged"))
    arguments = ["run", str(path), "--out", str(study.out), "--preset", "laptop", "--no-mlflow", "--set", TINY]
    assert main(arguments) == INCOMPLETE
    assert limit in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.timeout(1200)  # four starts of Ray
def test_a_search_stops_at_its_budget_and_goes_on_with_more(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = path.parent / "out"

    def run(fold_runs: int) -> subprocess.CompletedProcess[str]:
        settings = f"{TINY} search.variants=3 budget.fold_runs={fold_runs}"
        words = ["run", str(path), "--out", str(out), "--preset", "laptop", "--set", settings]
        told = subprocess.run(
            [sys.executable, "-m", "sweeps", *words], capture_output=True, text=True, timeout=500, env=dict(os.environ)
        )
        assert "Traceback" not in told.stderr, told.stderr
        return told

    def recorded(stage: str) -> int:
        plans = [json.loads(each.read_text()) for each in out.glob("studies/*/study.json")]
        tested = {"search": "folds", "judge": "holdout"}[stage]
        assert any(plan["stage"] == stage for plan in plans)
        records = Records(out)
        found = records.read_all([folder.name for folder in records.folder.iterdir()])
        return sum(record.identity["config"]["folds"]["tested"] == tested for record in found.values())

    first = run(3)
    assert first.returncode == INCOMPLETE, first.stdout + first.stderr
    assert "budget.fold_runs is spent (3 of 3)" in first.stdout and recorded("search") == 3
    stamps = {each: each.stat().st_mtime_ns for each in out.glob("records/*/record.json")}
    second = run(6)
    assert second.returncode == OK, second.stdout + second.stderr
    assert recorded("search") == 6 and recorded("judge") in (2, 4)  # the baseline alone, or the winner beside it
    assert all(each.stat().st_mtime_ns == stamp for each, stamp in stamps.items()), "what was recorded was done again"
    assert analysis(["table", "lengths", "--uri", f"sqlite:///{out / 'mlflow.db'}"]) == OK
    assert "which the search never saw: patient=P3, patient=P5" in capsys.readouterr().out
