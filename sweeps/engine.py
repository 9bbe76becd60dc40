"""The only module that assembles a Tuner: trains the fold runs of a study that have no record yet."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any

# Read by Ray when it is imported or started.
os.environ.setdefault("RAY_AUTH_MODE", "disabled" if "RAY_ADDRESS" not in os.environ else "token")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # the coming behaviour; else Ray warns at every start

import ray
from ray import tune
from rich.console import Console

from guided.config import content_id
from sweeps.board import Board
from sweeps.records import FoldRun, Record, Records
from sweeps.study import Study
from sweeps.tracking import TrackingThread

# A lost worker is tried again, from the last epoch it saved.
RETRIES = 2


class StudyLocked(RuntimeError):
    """Another driver is at work on the study."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    records: dict[str, Record]
    absent: list[FoldRun]  # without a record: the run was interrupted
    failed: list[FoldRun]  # with a record that is not finished
    unwritten: str | None  # why MLflow lacks something


@contextmanager
def driver_lock(study: Study) -> Iterator[None]:
    """One driver per study. Raises StudyLocked naming the other; the kernel frees the lock of a driver that died."""
    study.folder.mkdir(parents=True, exist_ok=True)
    path = study.folder / "driver.lock"
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise StudyLocked(
                f"study {study.folder.name} is being run by {_owner(file)}; wait for it or stop it"
            ) from None
        file.seek(0)
        file.truncate()
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


def _owner(file: IO[str]) -> str:
    file.seek(0)
    return file.read() or "another process"


class _Watcher(tune.Callback):
    """Tells the board and the tracking what Tune hears; writes the record of a fold run that failed for good."""

    def __init__(self, runs: dict[str, FoldRun], records: Records, board: Board, tracking: TrackingThread) -> None:
        self._runs, self._records, self._board, self._tracking = runs, records, board, tracking

    def __reduce__(self) -> tuple[type[tune.Callback], tuple[()]]:
        # Tune pickles its callbacks for a restore that never happens here.
        return tune.Callback, ()

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        run_id = trial.config["fold_run"]
        if not result.get("done"):
            self._board.epoch(run_id, result["epoch"], result["val_f1"], result["length"])
        else:
            self._ended(run_id)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        run_id = trial.config["fold_run"]
        if not self._records.has(run_id):
            now = time.time()
            details: dict[str, Any] = {"began": trial.start_time or now, "ended": now, "notes": []}
            self._records.write(self._runs[run_id], "failed", reason=_reason(trial), details=details)
        self._ended(run_id)

    def _ended(self, run_id: str) -> None:
        record = self._records.read(run_id)
        if record is not None:
            self._board.ended(run_id, record)
            self._tracking.put(run_id)


def _reason(trial: Any) -> str:
    """The last line of what a trial raised, in the words of the cause."""
    error = trial.get_error()
    cause = getattr(error, "cause", None) or error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    text = lines[-1] if lines else "no message"
    name = type(cause).__name__
    return text if text.startswith(name) or "Error" in text.split(":")[0] else f"{name}: {text}"


def start_ray(study: Study) -> int:
    """Connect to RAY_ADDRESS, or start Ray on this machine; returns how many fold runs fit at a time.

    Raises ValueError where no node can hold a fold run: Tune would wait for ever.
    """
    resources = study.sweep.resources
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if "RAY_ADDRESS" not in os.environ:
        options |= {
            "num_cpus": max(len(os.sched_getaffinity(0)), 1),
            "include_dashboard": False,
            "object_store_memory": 100 * 2**20,  # images go by memory map, nothing large by Ray
        }
    ray.init(**options)
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    fits = [
        min(
            int(node.get("CPU", 0) // resources.cpus),
            int(node.get("GPU", 0) // resources.gpus) if resources.gpus else 10**6,
        )
        for node in nodes
    ]
    if max(fits, default=0) == 0:
        found = "; ".join(f"{node.get('CPU', 0):g} CPUs, {node.get('GPU', 0):g} GPUs" for node in nodes)
        raise ValueError(
            f"a fold run asks for {resources.cpus} CPUs and {resources.gpus:g} GPUs, and no node has them "
            f"(found: {found}); "
            'choose another preset, or SET="resources.cpus=… resources.gpus=… resources.device=cpu"'
        )
    return min(sum(fits), resources.workers or sum(fits))


def run_study(study: Study, uri: str, console: Console, *, retry_failed: bool = False) -> Outcome:
    """Train what has no record yet, project every record into MLflow. Running it again goes on where it stopped."""
    with driver_lock(study):
        return _run_locked(study, uri, console, retry_failed)


def _run_locked(study: Study, uri: str, console: Console, retry_failed: bool) -> Outcome:
    records = Records(study.out)
    runs = {run.id: run for run in study.fold_runs}
    study.write()
    done = records.read_all(list(runs))
    if retry_failed:
        for run_id in [run_id for run_id, record in done.items() if record.status != "finished"]:
            records.set_aside(run_id)
            del done[run_id]
    missing = [run_id for run_id in runs if run_id not in done]
    tracking = TrackingThread(study, uri)
    if missing:
        try:
            workers = start_ray(study)
            tracking.start()
            with Board(study, done, workers, console) as board:
                _tune(study, missing, workers, _Watcher(runs, records, board, tracking))
        finally:
            ray.shutdown()
    else:
        tracking.start()
    done = records.read_all(list(runs))
    tracking.finish(done)
    for run_id in done:
        records.drop_checkpoint(run_id)
    if done.keys() == runs.keys():
        shutil.rmtree(study.warmups, ignore_errors=True)
    return Outcome(
        records=done,
        absent=[run for run_id, run in runs.items() if run_id not in done],
        failed=[run for run_id, run in runs.items() if run_id in done and done[run_id].status != "finished"],
        unwritten=tracking.failure,
    )


def _tune(study: Study, missing: list[str], workers: int, watcher: _Watcher) -> None:
    from sweeps.trainable import FoldRunTrial  # imports torch, which the plan does not need

    resources = study.sweep.resources
    storage = study.out / "ray"
    plan = content_id((study.folder / "study.json").read_text(encoding="utf-8"))
    tuner = tune.Tuner(
        tune.with_resources(FoldRunTrial, {"cpu": resources.cpus, "gpu": resources.gpus}),
        param_space={"fold_run": tune.grid_search(missing), "study": str(study.folder), "plan": plan},
        tune_config=tune.TuneConfig(max_concurrent_trials=workers, reuse_actors=True),
        run_config=tune.RunConfig(
            name=study.folder.name,
            storage_path=str(storage),
            callbacks=[watcher],
            failure_config=tune.FailureConfig(max_failures=RETRIES),
            checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
            verbose=0,
        ),
    )
    tuner.fit()
    # Tune's own notes are never read again: a new Tuner gets what has no record.
    shutil.rmtree(storage / study.folder.name, ignore_errors=True)
