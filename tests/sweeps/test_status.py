from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_engine import SETTINGS, sweep_file

from sweeps.__main__ import main
from sweeps.asked import ASKED, append_to
from sweeps.lock import driver_lock
from sweeps.records import PROGRESS, Records
from sweeps.spec import load_sweep
from sweeps.study import Study, make_study


@pytest.fixture
def study(tmp_path: Path) -> Study:
    """Six fold runs of four epochs: one finished, one failed, one under way, three waiting."""
    sweep = load_sweep(str(sweep_file(tmp_path)), preset="laptop", settings=SETTINGS + " resources.cpus=2")
    study = make_study(sweep, tmp_path / "out", progress=False)
    study.write()
    records = Records(study.out)
    finished, failed, under_way, *_ = study.fold_runs
    epoch = {"val/f1_macro": 0.5, "time/train": 100.0, "time/embed": 10.0, "time/validate": 5.0, "time/refresh": 5.0}
    metrics = {"test/f1_macro": 0.75, "time/total": 500.0}
    records.write(finished, "finished", metrics=metrics, history=[epoch] * 4)
    records.write(failed, "failed", reason="MemoryError: provoked (also alone)", history=[epoch])
    progress = {"epoch": 1, "val_f1": 0.4, "length": 2, "time": time.time(), "seconds": 240.0}
    records.checkpoint(under_way.id).mkdir(parents=True)
    (records.checkpoint(under_way.id) / PROGRESS).write_text(json.dumps(progress))
    return study


def told(study: Study, capsys: pytest.CaptureFixture[str], *more: str) -> str:
    path = str(study.out.parent / "radius.yaml")
    assert main(["status", path, "--out", str(study.out), *more]) == 0
    return capsys.readouterr().out


def test_states_cost_and_time_left(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    with driver_lock(study.folder):
        (state,) = json.loads(told(study, capsys, "--json", "--price", "3"))
    assert state["states"] == {"finished": 1, "running": 1, "failed": 1, "waiting": 3}
    hours = 2 * (500 + 120 + 240) / 3600
    assert state["cost"] == pytest.approx({"cpu_hours": hours, "money": 3 * hours})
    # 860 s for 7 epochs; open: 2 of the one under way, 3 x 4; one at work.
    assert state["seconds_left"] == pytest.approx(860 / 7 * 14)
    # The first variant at its own 740 s for 6 epochs, two of four left and the next fold run; the other at its 120 s.
    assert [variant["seconds_left"] for variant in state["variants"]] == pytest.approx([740 / 6 * 6, 120 * 8])
    runs = [run for variant in state["variants"] for run in variant["fold_runs"]]
    assert [run["test_f1"] for run in runs if run["state"] == "finished"] == [0.75]
    assert [run["reason"] for run in runs if run["state"] == "failed"] == ["MemoryError: provoked (also alone)"]


def test_without_a_driver_nothing_runs(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    (state,) = json.loads(told(study, capsys, "--json"))
    assert state["driver"] is None and state["seconds_left"] is None
    assert state["states"] == {"finished": 1, "interrupted": 1, "failed": 1, "waiting": 3}


def test_a_damaged_record_is_shown_and_the_rest_too(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    (Records(study.out).folder / study.fold_runs[0].id / "record.json").write_text("{")
    (Records(study.out).checkpoint(study.fold_runs[2].id) / PROGRESS).write_text("{}")
    (state,) = json.loads(told(study, capsys, "--json"))
    assert state["states"] == {"damaged": 1, "failed": 1, "waiting": 4}


def test_what_a_person_reads(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    with driver_lock(study.folder):
        text = " ".join(told(study, capsys).split())
    assert "1/3" in text and "epoch 2/4" in text and "fold 0 failed" in text and "at most" in text


def test_reading_writes_nothing(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    def stamps() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in study.out.rglob("*")}

    before = stamps()
    told(study, capsys)
    assert stamps() == before


def test_watching_ends_with_the_sweep(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    records = Records(study.out)
    for run in study.fold_runs[2:]:
        records.write(run, "finished", metrics={"test/f1_macro": 0.5, "time/total": 1.0}, history=[])
    text = told(study, capsys, "--watch", "0.01")
    assert "5 finished, 1 failed" in text and f"{np.mean([0.75, 0.5, 0.5]):.3f}" in text


SEARCH = """question: Which length?
kind: search
base: {loss.name: guide2d}
space: {embedding.length: {choice: [4, 8, 16]}}
search: {variants: 3, stop: {rule: racing, first: 1}}
locked: [patient=P3]
baseline: {embedding.length: 4}
"""


def test_a_search_shows_validation_alone_and_what_it_gave_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "lengths.yaml"
    tiny = "data.cells=300 data.size=16 folds.count=2 train.batch_size=16 train.epochs=2"
    path.write_text(SEARCH)
    alone = make_study(load_sweep(str(path), preset="laptop", settings=tiny), tmp_path / "out", progress=False)
    assert alone.sweep.search is not None
    more = tuple(alone.sweep.search.resolve({"embedding.length": length}) for length in (8, 16))
    guide = next(iter(alone.guides.values()))
    sweep = replace(alone.sweep, variants=(*alone.sweep.variants, *more))
    study = replace(alone, sweep=sweep, guides={variant.config.id: guide for variant in sweep.variants})
    study.write()
    records, log = Records(study.out), append_to(study.folder / ASKED)
    for number, variant in enumerate(sweep.variants):
        log({"event": "ask", "number": number, "values": variant.varied, "config": variant.config.id, "refused": ""})
    base, raced, broken = (study.runs_of(variant) for variant in sweep.variants)
    metrics = {"test/f1_macro": 0.75, "best/val_f1_macro": 0.25, "time/total": 5.0}
    records.write(base[0], "finished", metrics=metrics)
    records.write(raced[0], "finished", metrics=metrics)
    records.write(broken[0], "diverged", reason="epoch 0: the training loss is nan")
    for number, end in ((1, "raced out"), (2, "diverged")):
        log({"event": "told", "number": number, "end": end, "told": [0.0], "curve": [], "why": "0.1 behind"})
    with (study.folder / ASKED).open("a") as file:
        file.write('{"event": "st')  # the driver is writing
    before = (study.folder / ASKED).read_bytes()
    assert main(["status", str(path), "--out", str(study.out), "--json"]) == 0
    (state,) = json.loads(capsys.readouterr().out)
    assert state["states"] == {"finished": 2, "waiting": 1, "given up": 2, "diverged": 1}
    assert [variant.get("end") for variant in state["variants"]] == [None, "raced out", "diverged"]
    assert "test_f1" not in json.dumps(state) and (study.folder / ASKED).read_bytes() == before
    assert main(["status", str(path), "--out", str(study.out)]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "validation scores, no result" in told and "0.250" in told and "0.750" not in told
    assert "raced out: 0.1 behind" in told
    records.set_aside(broken[0].id)  # tried again: the variant is open once more
    assert main(["status", str(path), "--out", str(study.out), "--json"]) == 0
    (state,) = json.loads(capsys.readouterr().out)
    assert state["states"] == {"finished": 2, "waiting": 3, "given up": 1}
