from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from guided import config as guided_config
from guided.config import Config
from sweeps.__main__ import main
from sweeps.lock import driver_lock
from sweeps.records import CorruptRecord, FoldRun, Records


def fold_run(**changes: object) -> FoldRun:
    values: dict[str, object] = {
        "variant": "a=1",
        "config": Config(),
        "data": "d" * 16,
        "guide": "g" * 12,
        "partition": 0,
        "fold": 1,
        "seed": 2,
    }
    return FoldRun(**{**values, **changes})  # type: ignore[arg-type]


def write(records: Records, run: FoldRun, f1: float = 0.5) -> Path:
    return records.write(
        run,
        "finished",
        metrics={"test/f1_macro": f1},
        history=[{"val/f1_macro": 0.4}, {"val/f1_macro": 0.5}],
        details={"classifier": "svm C=1"},
        predictions=pd.DataFrame({"id": ["x"], "true": ["a"], "predicted": ["b"]}),
        arrays={"test_embedding": np.ones((3, 2), np.float16)},
    )


def test_what_is_written_is_read(tmp_path: Path) -> None:
    records, run = Records(tmp_path), fold_run()
    assert records.read(run.id) is None
    write(records, run)
    record = records.read(run.id)
    assert record is not None and record.status == "finished"
    assert record.metrics == {"test/f1_macro": 0.5} and len(record.history) == 2
    assert record.identity["fold"] == 1 and record.details == {"classifier": "svm C=1"}
    assert [path.name for path in record.artifacts()] == ["predictions.parquet", "arrays.npz"]
    assert np.load(record.folder / "arrays.npz")["test_embedding"].shape == (3, 2)


@pytest.mark.parametrize(
    "changes",
    [
        {"config": Config.model_validate({"train": {"epochs": 3}})},
        {"data": "e" * 16},
        {"guide": "h" * 12},
        {"partition": 1},
        {"fold": 0},
        {"seed": 0},
    ],
)
def test_everything_that_may_change_a_result_changes_the_id(changes: dict[str, object]) -> None:
    assert fold_run(**changes).id != fold_run().id


def test_the_label_does_not_change_the_id() -> None:
    assert fold_run(variant="another name").id == fold_run().id


def test_the_method_version_changes_the_id(monkeypatch: pytest.MonkeyPatch) -> None:
    before = fold_run().id
    monkeypatch.setattr("sweeps.records.METHOD_VERSION", guided_config.METHOD_VERSION + 1)
    assert fold_run().id != before


def test_a_record_stays_as_it_was_first_written(tmp_path: Path) -> None:
    records, run = Records(tmp_path), fold_run()
    write(records, run, 0.5)
    write(records, run, 0.9)
    record = records.read(run.id)
    assert record is not None and record.metrics["test/f1_macro"] == 0.5
    assert [path.name for path in records.folder.iterdir()] == [run.id]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    records, run = Records(tmp_path), fold_run()
    with pytest.raises(ValueError, match="test/f1_macro"):
        write(records, run, value)
    assert not records.has(run.id)


@pytest.mark.parametrize("name", ["record.json", "predictions.parquet", "arrays.npz"])
@pytest.mark.parametrize("damage", ["truncated", "emptied", "deleted", "altered"])
def test_damage_is_named_and_refused(tmp_path: Path, name: str, damage: str) -> None:
    records, run = Records(tmp_path), fold_run()
    path = write(records, run) / name
    body = path.read_bytes()
    if damage == "deleted":
        path.unlink()
    else:
        half = len(body) // 2
        altered = body[:half] + bytes([body[half] ^ 1]) + body[half + 1 :]
        path.write_bytes({"truncated": body[:half], "emptied": b"", "altered": altered}[damage])
    with pytest.raises(CorruptRecord, match=run.id):
        records.read(run.id)


def test_an_edited_score_is_found_out(tmp_path: Path) -> None:
    records, run = Records(tmp_path), fold_run()
    path = write(records, run) / "record.json"
    sealed = json.loads(path.read_text())
    sealed["content"]["metrics"]["test/f1_macro"] = 0.99
    path.write_text(json.dumps(sealed))
    with pytest.raises(CorruptRecord, match="has been altered"):
        records.read(run.id)


def test_all_damaged_records_are_told_at_once(tmp_path: Path) -> None:
    records, runs = Records(tmp_path), [fold_run(fold=fold) for fold in range(3)]
    for run in runs:
        write(records, run)
    for run in runs[:2]:
        (records.folder / run.id / "record.json").write_text("{}")
    with pytest.raises(CorruptRecord) as caught:
        records.read_all([run.id for run in runs])
    assert all(run.id in str(caught.value) for run in runs[:2]) and runs[2].id not in str(caught.value)


def test_a_record_set_aside_is_kept(tmp_path: Path) -> None:
    records, run = Records(tmp_path), fold_run()
    for _ in range(2):
        records.write(run, "failed", reason="out of memory")
        assert records.set_aside(run.id).exists()
    assert not records.has(run.id)
    assert len(list(records.folder.iterdir())) == 2


def test_only_what_is_not_needed_is_garbage(tmp_path: Path) -> None:
    records = Records(tmp_path)
    done, under_way, retried = fold_run(fold=0), fold_run(fold=1), fold_run(fold=2)
    for run in (done, under_way):
        records.checkpoint(run.id).mkdir(parents=True)
    write(records, done)
    records.write(retried, "failed", reason="out of memory")
    records.set_aside(retried.id)
    for name in ("records/.writing-x-1", "ray/busy-1", "ray/idle-2", "studies/busy-1", "studies/idle-2"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("studies/idle-2/warmups/writing-3", "embeddings/writing-4", "embeddings/0123.npz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with driver_lock(tmp_path / "studies" / "busy-1"):
        # A driver is at work: its notes and whatever is being written stay.
        assert {path.name for path, _ in records.garbage()} == {done.id, "idle-2"}
    freed = {done.id, "idle-2", "busy-1", ".writing-x-1", "writing-3", "writing-4"}
    assert {path.name for path, _ in records.garbage()} == freed


def test_gc_frees_what_its_dry_run_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records, run = Records(tmp_path), fold_run()
    write(records, run)
    checkpoint = records.checkpoint(run.id)
    checkpoint.mkdir(parents=True)
    (checkpoint / "epoch-0.ckpt").write_bytes(bytes(3_000_000))
    (records.folder / f".writing-{run.id}").write_text("half")
    assert main(["gc", "--out", str(tmp_path), "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "would delete" in told and "2 found, 3 MB" in told and checkpoint.exists()
    assert main(["gc", "--out", str(tmp_path)]) == 0
    assert "2 found, 3 MB freed" in capsys.readouterr().out
    assert not checkpoint.exists() and list(records.folder.iterdir()) == [records.folder / run.id]


def test_an_unwritable_target_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "records").write_text("a file in the folder's place")
    with pytest.raises(OSError):
        write(Records(tmp_path), fold_run())


def test_metrics_that_come_later_stand_beside_the_record(tmp_path: Path) -> None:
    """What is recorded stays, byte for byte; a damaged addition is named."""
    records = Records(tmp_path)
    run = fold_run()
    path = records.write(run, "finished", metrics={"test/f1_macro": 0.5}) / "record.json"
    before, record = path.read_bytes(), records.read(run.id)
    assert record is not None and record.added == ""
    assert records.add(record, {"test/f1_macro": 0.9, "test/new": 0.25}) == {"test/new": 0.25}
    later = records.read(run.id)
    assert later is not None and later.metrics == {"test/f1_macro": 0.5, "test/new": 0.25} and later.added != ""
    assert records.add(later, {"test/new": 0.7}) == {} and path.read_bytes() == before
    assert records.add(later, {"test/newer": 1.0}) == {"test/newer": 1.0}
    latest = records.read(run.id)
    assert latest is not None and latest.metrics == later.metrics | {"test/newer": 1.0} and latest.added != later.added
    with pytest.raises(ValueError, match="metric 'test/bad' is nan"):
        records.add(latest, {"test/bad": float("nan")})
    (added,) = (tmp_path / "added").iterdir()
    added.write_text(added.read_text().replace("0.25", "0.75"))
    with pytest.raises(CorruptRecord, match=re.escape(f"the added metrics {added} are damaged; delete the file")):
        records.read(run.id)
