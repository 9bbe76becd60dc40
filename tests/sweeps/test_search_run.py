"""A search from the command line: what it takes over, how it ends, and what its exit code says."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from analysis.__main__ import main as analysis
from sweeps import schema
from sweeps.__main__ import INCOMPLETE, INTERRUPTED, OK, main
from sweeps.asked import ASKED, read_log
from sweeps.budget import Budget
from sweeps.engine import Outcome, Searched, _SearchRun
from sweeps.judge import winner_of
from sweeps.plan import plan_of
from sweeps.records import Records
from sweeps.spec import SearchPlan, load_sweep
from sweeps.strategy import End, Search
from sweeps.study import Study, make_study
from sweeps.warm import recorded_variants

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


def recorded(study: Study, *values: dict[str, Any]) -> None:
    """Another study's plan in OUT with the variants of these values, and their records."""
    assert study.sweep.search is not None
    variants = [study.sweep.search.resolve(each) for each in values]
    guides = {variant.config.id: next(iter(study.guides.values())) for variant in variants}
    sweep = replace(study.sweep, name="earlier", stage="ablation", search=None, identity="", variants=tuple(variants))
    other = replace(study, sweep=replace(sweep, variants=(replace(variants[0], baseline=True), *variants[1:])))
    other = replace(other, guides=guides)
    other.write()
    for variant in other.sweep.variants:
        for run in other.runs_of(variant):
            score = {schema.BEST_VAL_F1: 0.9 + run.fold / 100}
            Records(study.out).write(run, "finished", metrics=score, details={"began": 0.0, "ended": 36_000.0})


WARM = {"embedding.length": 16, "norm.weight": 0.001}
OTHER = {"embedding.length": 16, "norm.weight": 0.01}


def warmed(study: Study, source: str) -> SearchPlan:
    assert study.sweep.search is not None
    plan = study.sweep.search
    return replace(plan, settings=plan.settings.model_copy(update={"warm_start": source}))


def test_what_another_study_recorded_on_every_fold_competes(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    recorded(study, WARM, {"embedding.length": 4, "norm.weight": 0.01})
    one = next(iter(Records(study.out).folder.glob("*")))
    half = Records(study.out).read(one.name)
    assert half is not None
    for source in ("earlier", "everything", f"earlier-{next((study.out / 'studies').glob('earlier-*')).name[8:]}"):
        assert len(recorded_variants(study, warmed(study, source))) == 2
    assert recorded_variants(study, warmed(study, "none")) == []
    with pytest.raises(ValueError, match=r"no study of 'erlier' under .*did you mean 'earlier'"):
        recorded_variants(study, warmed(study, "erlier"))
    # One of the fold runs is gone: that variant is not known on every fold.
    shutil.rmtree(one)
    (left,) = recorded_variants(study, warmed(study, "earlier"))
    assert left.variant.config.id != half.identity["config_id"]
    assert plan_of(replace(study, sweep=replace(study.sweep, search=warmed(study, "earlier"))))["warm_start"] == {
        "from": "earlier", "variants": 1,
    }  # fmt: skip
    tight = replace(study.sweep, budget=Budget(fold_runs=1, hours=1.0))
    run = _SearchRun(replace(study, sweep=tight), warmed(study, "earlier"), False)
    assert list(run.warm.values()) == [left.source] and run.limit is None, "it costs the search nothing"
    log = read_log(study.folder / ASKED)
    assert [line["event"] for line in log] == ["warm", "told"] and log[1]["told"] == [pytest.approx(0.905)]
    standing = winner_of(run.search.ranking())
    assert standing is not None and standing.source == left.source
    # Again, and with more recorded in between: the log is what counts once something was asked.
    job = run.search.next()
    assert job is not None and job.variant.baseline
    recorded(study, OTHER)
    again = _SearchRun(study, warmed(study, "everything"), False)
    assert again.warm == run.warm and read_log(study.folder / ASKED)[:2] == log


def test_a_warm_start_cut_short_is_made_whole(study: Study) -> None:
    recorded(study, WARM, OTHER)
    _SearchRun(study, warmed(study, "earlier"), False)
    path = study.folder / ASKED
    whole = path.read_bytes()
    assert [line["event"] for line in read_log(path)] == ["warm", "told"] * 2
    for lines in range(4):
        path.write_bytes(b"".join(whole.splitlines(keepends=True)[:lines]))
        assert len(_SearchRun(study, warmed(study, "earlier"), False).warm) == 2
        assert path.read_bytes() == whole


def test_a_warm_start_takes_no_fold_run_of_another_kind(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    assert study.sweep.search is not None
    recorded(study, WARM)
    assert len(recorded_variants(study, warmed(study, "earlier"))) == 1
    # Other groups locked, so that what is locked here was trained on; the same values else.
    free = make_study(
        load_sweep(str(study.out.parent / "lengths.yaml"), preset="laptop", settings=TINY), study.out, progress=False
    )
    first = free.sweep.variants[0]
    folds = first.config.folds.model_copy(update={"holdout": ("patient=P1", "patient=P2")})
    moved = replace(first, config=first.config.model_copy(update={"folds": folds}))
    sweep = replace(free.sweep, name="free", stage="ablation", search=None, identity="", variants=(moved,))
    other = replace(free, sweep=sweep, guides={moved.config.id: next(iter(free.guides.values()))})
    other.write()
    for run in other.fold_runs:
        Records(study.out).write(run, "finished", metrics={schema.BEST_VAL_F1: 0.9})
    assert recorded_variants(study, warmed(study, "free")) == []
    # The same variant of another version of the method, and on other data.
    with monkeypatch.context() as patch:
        patch.setattr("sweeps.records.METHOD_VERSION", 999)
        assert recorded_variants(study, warmed(study, "everything")) == []
    path = next((study.out / "studies").glob("earlier-*")) / "study.json"
    plan = json.loads(path.read_text())
    path.write_text(json.dumps(plan | {"fingerprint": "another"}))
    assert recorded_variants(study, warmed(study, "everything")) == []
    path.write_text("{")
    with pytest.raises(ValueError, match=r"the plan .* cannot be read"):
        recorded_variants(study, warmed(study, "everything"))


def test_what_another_search_stopped_is_trained_to_its_end(study: Study) -> None:
    plan = study.sweep.search
    assert plan is not None
    records, run = Records(study.out), _SearchRun(study, plan, False)
    jobs = [run.search.next() for _ in range(2)]
    for job, status in zip(jobs, ("stopped", "finished"), strict=True):
        assert job is not None
        run._grow(job.variant)
        metrics = {schema.BEST_VAL_F1: 0.5} if status == "finished" else {}
        records.write(run._runs[job.key], status, reason="it is behind", metrics=metrics)  # type: ignore[arg-type]
    first, second = jobs
    assert first is not None and second is not None
    again = _SearchRun(study, plan, False)  # killed behind the start of both
    assert [record.status for record in again.done.values()] == ["finished"]
    resumed = again.search.next()
    assert resumed is not None and resumed.key == first.key and again.recorded(first) is None
    # Found when it is about to start.
    records.write(again._runs[first.key], "stopped", reason="it is behind")
    assert again.recorded(first) is None and not records.has(again._runs[first.key].id)
    assert records.beside_of(again._runs[first.key].id) == [], "its cost is the other search's"
    assert again.recorded(second) is not None


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

    def trained(stage: str) -> int:
        plans = [json.loads(each.read_text()) for each in out.glob("studies/*/study.json")]
        tested = {"search": "folds", "judge": "holdout"}[stage]
        assert any(plan["stage"] == stage for plan in plans)
        records = Records(out)
        found = records.read_all([folder.name for folder in records.folder.iterdir()])
        return sum(record.identity["config"]["folds"]["tested"] == tested for record in found.values())

    first = run(3)
    assert first.returncode == INCOMPLETE, first.stdout + first.stderr
    assert "budget.fold_runs is spent (3 of 3)" in first.stdout and trained("search") == 3
    stamps = {each: each.stat().st_mtime_ns for each in out.glob("records/*/record.json")}
    second = run(6)
    assert second.returncode == OK, second.stdout + second.stderr
    assert trained("search") == 6 and trained("judge") in (2, 4)  # the baseline alone, or the winner beside it
    assert all(each.stat().st_mtime_ns == stamp for each, stamp in stamps.items()), "what was recorded was done again"
    assert analysis(["table", "lengths", "--uri", f"sqlite:///{out / 'mlflow.db'}"]) == OK
    assert "which the search never saw: patient=P3, patient=P5" in capsys.readouterr().out
