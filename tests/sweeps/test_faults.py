"""Sweeps killed, starved and damaged in real processes: resumed exactly or refused loudly, nothing done twice."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from faults import environment, executions
from test_engine import SETTINGS, command, lasting, records_of, sweep_file, wait_for

from sweeps.__main__ import main
from sweeps.attempt import Superseded
from sweeps.lock import StudyLocked, driver_lock, holder
from sweeps.records import Record
from sweeps.spec import load_sweep
from sweeps.study import make_study, read_study
from sweeps.trainable import FoldRunTrial

ONE = """# One variant
question: Which radius?
kind: ablation
base: {loss.name: guide2d, embedding.length: 4}
vary: {guide.radius: [5]}
baseline: {guide.radius: 5}
"""
EPOCHS, FOLDS = 4, 3


def run(
    folder: Path, *more: str, env: dict[str, str] | None = None, **options: Any
) -> subprocess.CompletedProcess[str]:
    words = command(folder / "radius.yaml", folder / "out", "--no-mlflow", *more, **options)
    return subprocess.run(words, capture_output=True, text=True, timeout=400, check=False, env=env)


def start(folder: Path, env: dict[str, str]) -> subprocess.Popen[str]:
    words = command(folder / "radius.yaml", folder / "out", "--no-mlflow")
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env)


def end(driver: subprocess.Popen[str]) -> str:
    """Kill a driver without a word, as a lost spot node would; wait until its workers are gone."""
    family = psutil.Process(driver.pid).children(recursive=True)
    driver.send_signal(signal.SIGKILL)
    printed, _ = driver.communicate()
    psutil.wait_procs(family, timeout=60)
    return printed


def assert_same(out: Path, undisturbed: dict[str, Record]) -> None:
    ours = records_of(out)
    assert {key: lasting(record) for key, record in ours.items()} == {
        key: lasting(record) for key, record in undisturbed.items()
    }


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    sweep_file(folder, ONE)
    log = folder / "log"
    told = run(folder, env=environment(log))
    assert told.returncode == 0, told.stdout + told.stderr
    assert Counter(executions(log)).most_common(1)[0][1] == 1 and len(executions(log)) == EPOCHS * FOLDS
    return folder


@pytest.fixture
def fresh(tmp_path: Path, undisturbed: Path) -> Path:
    """A folder with the sweep and the decoded data, and no record."""
    sweep_file(tmp_path, ONE)
    (tmp_path / "out").mkdir()
    shutil.copytree(undisturbed / "out" / "cache", tmp_path / "out" / "cache")
    return tmp_path


# --- kills -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_driver_killed_at_random_points_until_done(undisturbed: Path, fresh: Path) -> None:
    chance, log = random.Random(0), fresh / "log"
    # Epochs of a tenth of a second would be over before the next kill.
    pause: dict[str, Any] = {"how": "pause", "where": "epoch", "always": True, "seconds": 0.7}
    epochs = [{**pause, "fold": fold, "epoch": epoch} for fold in range(FOLDS) for epoch in range(EPOCHS)]
    env, kills = environment(log, *epochs), 0
    while True:
        driver = start(fresh, env)
        enough = len(executions(log)) + chance.randint(2, 6)
        wait_for(partial(epochs_or_end, log, enough, driver), 200, "some epochs")
        time.sleep(chance.random() / 5)
        if driver.poll() is not None:
            printed, _ = driver.communicate()
            assert driver.returncode == 0, printed
            break
        end(driver)
        kills += 1
    assert kills >= 2
    assert_same(fresh / "out", records_of(undisturbed / "out"))
    counted = Counter(executions(log))
    assert len(counted) == EPOCHS * FOLDS
    # What a kill costs: the epoch under way, of each of the two fold runs that ran.
    assert counted.total() - len(counted) <= 2 * kills
    attempts = [record.details["attempts"] for record in records_of(fresh / "out").values()]
    assert sum(map(len, attempts)) > FOLDS and not list((fresh / "out" / "checkpoints").iterdir())


def epochs_or_end(log: Path, epochs: int, driver: subprocess.Popen[str]) -> bool:
    return len(executions(log)) >= epochs or driver.poll() is not None


@pytest.mark.slow
def test_fold_runs_killed_at_their_worst_moments(undisturbed: Path, fresh: Path) -> None:
    log = fresh / "log"
    faults = (
        {"how": "kill", "where": "epoch", "fold": 0, "epoch": 2},
        {"how": "kill", "where": "checkpoint", "fold": 1, "epoch": 3},
        {"how": "kill", "where": "record", "fold": 2},  # the record is there, Tune has not heard of it
    )
    told = run(fresh, env=environment(log, *faults))
    assert len(list(log.glob("struck-*"))) == 3, "a fault was not provoked"
    assert told.returncode == 0, told.stdout + told.stderr
    assert_same(fresh / "out", records_of(undisturbed / "out"))
    by_fold = Counter(fold for _, _, fold, _, _ in executions(log))
    assert by_fold == {0: EPOCHS + 1, 1: EPOCHS + 1, 2: EPOCHS}, "more than the epoch under way was done again"
    attempts = {r.identity["fold"]: r.details["attempts"] for r in records_of(fresh / "out").values()}
    assert {fold: len(tried) for fold, tried in attempts.items()} == {0: 2, 1: 2, 2: 1}
    spans = [(tried["first_epoch"], tried["last_epoch"]) for tried in attempts[0]]
    assert spans == [(0, 1), (2, 3)]


# --- memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_out_of_memory_leaves_neighbours_alive_and_is_tried_again_alone(undisturbed: Path, fresh: Path) -> None:
    log = fresh / "log"
    once = {"how": "memory", "where": "epoch", "fold": 0, "epoch": 2}
    always = {"how": "memory", "where": "epoch", "fold": 1, "epoch": 1, "always": True}
    told = run(fresh, env=environment(log, once, always))
    assert told.returncode == 1, told.stdout + told.stderr
    assert told.stdout.count("out of memory, again when alone") == 2
    ours = {record.identity["fold"]: record for record in records_of(fresh / "out").values()}
    theirs = {record.identity["fold"]: record for record in records_of(undisturbed / "out").values()}
    assert lasting(ours[0]) == lasting(theirs[0]) and lasting(ours[2]) == lasting(theirs[2])
    assert (ours[1].status, ours[1].reason) == ("failed", "MemoryError: provoked (also alone)")
    first, second = ours[0].details["attempts"]
    (neighbour,) = ours[2].details["attempts"]
    assert second["process"] not in (first["process"], neighbour["process"]), "not a fresh process"
    assert (first["last_epoch"], second["first_epoch"]) == (1, 2)
    assert second["began"] > ours[2].details["ended"], "not alone"


# --- storage ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 MB: room for the checkpoints of two fold runs under way."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)], check=False)
    if mounted.returncode != 0:
        pytest.skip("no right to mount a small file system")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.slow
def test_a_full_disk_ends_the_sweep_and_records_nothing_false(undisturbed: Path, fresh: Path, small_disk: Path) -> None:
    (fresh / "out" / "checkpoints").symlink_to(small_disk)
    filler = small_disk / "filler"
    filler.write_bytes(bytes(shutil.disk_usage(small_disk).free - 200_000))  # room for the probe, not for a checkpoint
    told = run(fresh)
    assert told.returncode == 130, told.stdout + told.stderr
    assert "not trained" in told.stdout and "No space left on device" in told.stdout
    assert not list((fresh / "out" / "records").glob("*/record.json"))
    filler.unlink()
    told = run(fresh)
    assert told.returncode == 0, told.stdout + told.stderr
    assert_same(fresh / "out", records_of(undisturbed / "out"))


@pytest.mark.parametrize("name", ["", "records", "checkpoints", "ray", "studies"])
def test_a_file_in_the_place_of_a_folder_is_named(
    undisturbed: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    if name:
        shutil.copytree(undisturbed / "out" / "cache", out / "cache")
    (out / name).write_text("a file in the folder's place")
    assert main([*command(sweep_file(tmp_path, ONE), out)[3:], "--no-mlflow"]) == 2
    assert str(out / name) in capsys.readouterr().err


# --- damage ----------------------------------------------------------------------------------------------------------


def trial(out: Path, fold: int) -> FoldRunTrial:
    """A fold run of the study in `out`, driven by hand."""
    (folder,) = (out / "studies").iterdir()
    (chosen,) = [run for run in read_study(folder).fold_runs if run.fold == fold]
    plan = hashlib.sha256((folder / "study.json").read_bytes()).hexdigest()
    return FoldRunTrial({"fold_run": chosen.id, "study": str(folder), "plan": plan})


@pytest.fixture
def halfway(undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A sweep that was stopped with fold 0 done and fold 1 behind its third epoch."""
    monkeypatch.setattr("sweeps.worker.limit_threads", lambda cpus: None)
    out = tmp_path / "out"
    shutil.copytree(undisturbed / "out", out)
    for record in records_of(out).values():
        if record.identity["fold"] > 0:
            shutil.rmtree(record.folder)
    under_way = trial(out, 1)
    for _ in range(3):
        under_way.step()
    under_way.stop()
    return out


@pytest.mark.parametrize("damage", ["truncated", "emptied", "deleted"])
@pytest.mark.parametrize(
    ("pattern", "redone"),
    [
        ("checkpoints/*/epoch-0.ckpt", 0),
        ("checkpoints/*/epoch-1.ckpt", 1),  # the newest: behind the third epoch
        ("checkpoints/*/progress.json", 0),
        ("checkpoints/*/attempt-1.json", 0),
    ],
)
def test_a_damaged_file_of_a_fold_run_under_way_is_got_over(
    undisturbed: Path, halfway: Path, pattern: str, redone: int, damage: str
) -> None:
    spoil(halfway, pattern, damage)
    again = trial(halfway, 1)
    steps = 0
    while not again.step()["done"]:
        steps += 1
    assert steps == EPOCHS - 3 + redone
    ours, theirs = (
        {record.identity["fold"]: lasting(record) for record in records_of(out).values()}
        for out in (halfway, undisturbed / "out")
    )
    assert ours[1] == theirs[1]


def test_two_damaged_checkpoints_are_refused(halfway: Path) -> None:
    for name in ("epoch-0.ckpt", "epoch-1.ckpt"):
        spoil(halfway, f"checkpoints/*/{name}", "truncated")
    with pytest.raises(ValueError, match=r"no sound checkpoint in .*epoch-0.ckpt is damaged"):
        trial(halfway, 1).step()


def test_a_process_that_was_given_up_stops_when_another_has_its_fold_run(halfway: Path) -> None:
    old, new = trial(halfway, 2), trial(halfway, 2)
    assert [old.step()["epoch"], new.step()["epoch"]] == [0, 1]
    with pytest.raises(Superseded, match="another process has the fold run"):
        old.step()
    assert new.step()["epoch"] == 2


@pytest.mark.parametrize("damage", ["truncated", "emptied", "deleted"])
@pytest.mark.parametrize(
    "pattern",
    [
        "records/*/record.json",
        "records/*/predictions.parquet",
        "records/*/arrays.npz",
        "studies/*/study.json",
        "cache/*/images.npy",
        "cache/*/table.npz",
        "cache/*/meta.json",
    ],
)
def test_a_damaged_file_of_the_study_is_named_and_refused(
    halfway: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], pattern: str, damage: str
) -> None:
    if (pattern, damage) == ("studies/*/study.json", "deleted"):
        pytest.skip("a plan that is not there is written")
    victim = spoil(halfway, pattern, damage)
    before = {path: path.read_bytes() for path in (halfway / "records").rglob("*") if path.is_file()}
    assert main([*command(sweep_file(tmp_path, ONE), halfway)[3:], "--no-mlflow"]) == 2
    told = capsys.readouterr().err
    assert str(victim) in told, told
    assert {path: path.read_bytes() for path in (halfway / "records").rglob("*") if path.is_file()} == before


def spoil(out: Path, pattern: str, damage: str) -> Path:
    (victim,) = out.glob(pattern)
    body = victim.read_bytes()
    if damage == "deleted":
        victim.unlink()
    else:
        victim.write_bytes(b"" if damage == "emptied" else body[: len(body) // 2])
    return victim


def test_a_damaged_index_of_the_data_only_costs_decoding(halfway: Path, tmp_path: Path) -> None:
    spoil(halfway, "cache/index/*.json", "truncated")
    sweep = load_sweep(str(sweep_file(tmp_path, ONE)), preset="laptop", settings=SETTINGS)
    (study,) = (halfway / "studies").iterdir()
    assert make_study(sweep, halfway, progress=False).id == read_study(study).id


# --- two drivers -----------------------------------------------------------------------------------------------------


def test_the_second_driver_refuses_and_a_dead_ones_lock_is_taken_over(tmp_path: Path) -> None:
    hold = (
        "import sys; from pathlib import Path; from sweeps.lock import driver_lock\n"
        "with driver_lock(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    first = subprocess.Popen(
        [sys.executable, "-c", hold, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert first.stdout is not None and first.stdout.readline() == "held\n"
    assert holder(tmp_path) == f"process {first.pid} on {socket.gethostname()}"
    with pytest.raises(StudyLocked, match=f"is being run by process {first.pid} on"), driver_lock(tmp_path):
        pass
    first.kill()
    first.communicate()
    assert holder(tmp_path) is None
    for content in ("", "{", "[]"):  # only the lock itself decides
        (tmp_path / "driver.lock").write_text(content)
        with driver_lock(tmp_path):
            assert holder(tmp_path) == f"process {os.getpid()} on {socket.gethostname()}"


def test_a_driver_of_another_machine_is_told_by_its_beat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Where locks are local to a machine, this one gets the lock although the other driver lives.
    monkeypatch.setattr("sweeps.lock.WATCH", 0.6)
    path = tmp_path / "driver.lock"
    there = {"process": 7, "host": "another.machine", "beat": 1}
    path.write_text(json.dumps(there))
    beat = threading.Timer(0.2, lambda: path.write_text(json.dumps(there | {"beat": 2})))
    beat.start()
    with pytest.raises(StudyLocked, match=r"process 7 on another\.machine"), driver_lock(tmp_path):
        pass
    beat.join()
    with driver_lock(tmp_path):  # no beat any more: it is dead
        pass
    assert path.read_text() == ""


def test_a_file_system_without_locks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*given: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("sweeps.lock.fcntl.flock", no_locks)
    with pytest.raises(OSError, match="cannot lock files"), driver_lock(tmp_path):
        pass
