"""What a fold run takes of its machine is in its record where it was asked for, and nowhere else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from test_engine import SETTINGS, sweep_file

from sweeps import schema
from sweeps.engine import _place
from sweeps.records import Record, Records
from sweeps.spec import load_sweep
from sweeps.study import Study, make_study
from sweeps.trainable import FoldRunTrial
from sweeps.usage import USAGE, with_usage

USES = {schema.CPU_USE, schema.MEMORY_USE}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    folder = tmp_path_factory.mktemp("usage")
    settings = SETTINGS.replace("train.epochs=4", "train.epochs=3") + " resources.system_metrics=true"
    return make_study(load_sweep(str(sweep_file(folder)), preset="laptop", settings=settings), folder / "out")


def trained(study: Study, number: int, *, stop_after: int | None = None) -> Record:
    """The record of a fold run, stopped and begun anew on the way if asked for."""
    study.write()
    run = study.fold_runs[number]
    settings = {"fold_run": run.id, **_place(study)}
    trial = FoldRunTrial(settings)
    if stop_after is not None:
        for _ in range(stop_after):
            trial.step()
        trial.stop()
        with (Records(study.out).checkpoint(run.id) / USAGE).open("a") as file:
            file.write('{"epoch": 1, "sys')  # cut off by a kill
        trial = FoldRunTrial(settings)
    while not trial.step()["done"]:
        pass
    record = Records(study.out).read(run.id)
    assert record is not None
    return record


def test_every_epoch_is_measured_also_across_a_restart(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sweeps.worker.limit_threads", lambda cpus: None)
    record = trained(study, 0, stop_after=1)
    assert len(record.history) == 3
    # The line that was cut off takes the next one with it: an epoch without a measurement, no false one.
    assert [epoch.keys() >= USES for epoch in record.history] == [True, False, True]
    for epoch in (record.history[0], record.history[2]):
        assert 0 < epoch[schema.CPU_USE] < 6400 and 50 < epoch[schema.MEMORY_USE] < 100_000
        assert schema.GPU_MEMORY_USE not in epoch


def test_it_is_off_by_default_and_changes_no_id(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sweeps.worker.limit_threads", lambda cpus: None)
    resources = study.sweep.resources.model_copy(update={"system_metrics": False})
    plain = replace(study, sweep=replace(study.sweep, resources=resources))
    assert not load_sweep("ablation_lowpass", preset="laptop").resources.system_metrics
    assert plain.id == study.id and [run.id for run in plain.fold_runs] == [run.id for run in study.fold_runs]
    assert not any(key.startswith("system/") for epoch in trained(plain, 1).history for key in epoch)


def test_the_second_training_of_an_epoch_counts(tmp_path: Path) -> None:
    (tmp_path / USAGE).write_text('{"epoch": 0, "a": 1.0}\n{"epoch": 1, "a": 2.0}\n{"epoch": 1, "a": 3.0}\n')
    history = [{"epoch": float(epoch), "b": 0.5} for epoch in range(3)]
    assert with_usage(history, tmp_path) == [
        {"epoch": 0.0, "b": 0.5, "a": 1.0},
        {"epoch": 1.0, "b": 0.5, "a": 3.0},
        {"epoch": 2.0, "b": 0.5},
    ]
