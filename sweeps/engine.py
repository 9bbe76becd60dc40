"""The only module that assembles a Tuner: trains the fold runs of a study that have no record yet."""

from __future__ import annotations

import math
import pickle
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from sweeps.place import start_ray  # first: it sets what Ray reads when it is imported

# isort: split
import ray
from ray import tune
from ray.exceptions import RayActorError
from ray.tune.stopper import NoopStopper
from rich.console import Console

from guided.config import content_id
from sweeps.attempt import attempts_in
from sweeps.board import Board
from sweeps.lock import driver_lock
from sweeps.records import FoldRun, Record, Records
from sweeps.study import Study
from sweeps.tracking import TrackingThread

# A lost worker is tried again, from the last epoch it saved.
RETRIES = 2
# So many fold runs that could not read or write end a sweep: the next ones could not either.
HINDERED = 3


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    records: dict[str, Record]
    absent: list[FoldRun]  # without a record: the run was interrupted
    failed: list[FoldRun]  # with a record that is not finished
    unwritten: str | None  # why MLflow lacks something
    hindered: dict[str, str]  # absent ones that could not read or write, by id, and why


class _Watcher(tune.Callback):
    """Tells the board and the tracking what Tune hears; writes the record of a fold run that failed for good.

    Two kinds of failure are not the fold run's own and leave no record. What ran out of memory or died with its
    process is `starved`, to be tried again alone. What could not read or write (disk full, folder gone) is `hindered`
    and left for the next start.
    """

    def __init__(self, runs: dict[str, FoldRun], records: Records, board: Board, tracking: TrackingThread) -> None:
        self._runs, self._records, self._board, self._tracking = runs, records, board, tracking
        self.starved: dict[str, str] = {}
        self.hindered: dict[str, str] = {}

    def __reduce__(self) -> tuple[type[tune.Callback], tuple[()]]:
        # Tune pickles its callbacks for a restore that never happens here.
        return tune.Callback, ()

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        run_id = trial.config["fold_run"]
        if "out_of_memory" in result:
            self.starved[run_id] = result["out_of_memory"]
            self._board.waits(run_id, "out of memory, again when alone")
        elif "hindered" in result:
            self._hinder(run_id, result["hindered"])
        elif not result.get("done"):
            self._board.epoch(run_id, result["epoch"], result["val_f1"], result["length"])
        else:
            self._ended(run_id)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        run_id = trial.config["fold_run"]
        cause = _cause(trial)
        if self._records.has(run_id):
            self._ended(run_id)
        elif isinstance(cause, RayActorError) and run_id not in self.starved:
            self.starved[run_id] = _told(cause)
            self._board.waits(run_id, "its process died, again when alone")
        elif isinstance(cause, OSError):
            self._hinder(run_id, _told(cause))
        else:
            now, attempts = time.time(), attempts_in(self._records.checkpoint(run_id))
            began = min((attempt["began"] for attempt in attempts if "began" in attempt), default=now)
            details: dict[str, Any] = {"began": began, "ended": now, "attempts": attempts, "notes": []}
            reason = _told(cause) + (" (also alone)" if run_id in self.starved else "")
            try:
                self._records.write(self._runs[run_id], "failed", reason=reason, details=details)
            except OSError as error:
                self._hinder(run_id, _told(error))
            else:
                self._ended(run_id)

    def _hinder(self, run_id: str, reason: str) -> None:
        self.hindered[run_id] = reason
        self._board.waits(run_id, reason)

    def _ended(self, run_id: str) -> None:
        record = self._records.read(run_id)
        if record is not None:
            self._board.ended(run_id, record)
            self._tracking.put(run_id)


class _Hindered(tune.Stopper):
    """Ends a sweep whose fold runs cannot read or write."""

    def __init__(self, watcher: _Watcher) -> None:
        self._watcher = watcher

    def __reduce__(self) -> tuple[type[NoopStopper], tuple[()]]:
        return NoopStopper, ()

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return len(self._watcher.hindered) >= HINDERED


def _cause(trial: Any) -> BaseException:
    """What a trial raised. Tune keeps it in a file of this driver."""
    path = trial.pickled_error_file
    if path is None:
        return RuntimeError(trial.get_error() or "no message")
    error: BaseException = pickle.loads(Path(path).read_bytes())
    return getattr(error, "cause", None) or error


def _told(error: BaseException) -> str:
    """The last line of an error, in the words of its kind."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1] if lines else 'no message'}"


def run_study(study: Study, uri: str | None, console: Console, *, retry_failed: bool = False) -> Outcome:
    """Train what has no record yet, project every record into MLflow (`uri` None: leave that to a later run).

    Running it again goes on where it stopped. Raises StudyLocked where another driver is at work, OSError where OUT
    cannot be written, ValueError where a record is damaged or no node can hold a fold run.
    """
    with driver_lock(study.folder):
        return _run_locked(study, uri, console, retry_failed)


def _run_locked(study: Study, uri: str | None, console: Console, retry_failed: bool) -> Outcome:
    records = Records(study.out)
    runs = {run.id: run for run in study.fold_runs}
    _check_writable(study)
    study.write()
    done = records.read_all(list(runs))
    if retry_failed:
        for run_id in [run_id for run_id, record in done.items() if record.status != "finished"]:
            records.set_aside(run_id)
            del done[run_id]
    missing = [run_id for run_id in runs if run_id not in done]
    tracking = TrackingThread(study, uri)
    hindered: dict[str, str] = {}
    if missing:
        try:
            place = start_ray(study, uri)
            tracking.start()
            with Board(study, done, place.workers, console) as board:
                watcher = _Watcher(runs, records, board, tracking)
                _tune(study, missing, watcher, place.workers)
                alone = [run_id for run_id in watcher.starved if not records.has(run_id)]
                if alone:
                    _tune(study, alone, watcher, place.workers, alone=True)
                hindered = watcher.hindered
        finally:
            ray.shutdown()
    else:
        tracking.start()
    done = records.read_all(list(runs))
    tracking.finish(done)
    for run_id in done:
        records.drop_checkpoint(run_id)
    return Outcome(
        records=done,
        absent=[run for run_id, run in runs.items() if run_id not in done],
        failed=[run for run_id, run in runs.items() if run_id in done and done[run_id].status != "finished"],
        unwritten=tracking.failure,
        hindered=hindered,
    )


def _check_writable(study: Study) -> None:
    """Raises OSError naming the folder under OUT that cannot be written."""
    for name in ("records", "checkpoints", "ray", "studies"):
        folder = study.out / name
        probe = folder / f".probe-{uuid4().hex[:12]}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            probe.write_bytes(bytes(4096))
            probe.unlink()
        except OSError as error:
            probe.unlink(missing_ok=True)
            raise OSError(error.errno, f"cannot write into {folder}: {error.strerror}") from None


def _tune(study: Study, missing: list[str], watcher: _Watcher, workers: int, *, alone: bool = False) -> None:
    """Train fold runs side by side, or one after the other with a fresh process and whole GPUs each."""
    from sweeps.trainable import FoldRunTrial, LoneFoldRunTrial  # import torch, which the plan does not need

    resources = study.sweep.resources
    storage = study.out / "ray"
    plan = content_id((study.folder / "study.json").read_text(encoding="utf-8"))
    gpus = math.ceil(resources.gpus) if alone else resources.gpus
    tuner = tune.Tuner(
        tune.with_resources(LoneFoldRunTrial if alone else FoldRunTrial, {"cpu": resources.cpus, "gpu": gpus}),
        param_space={"fold_run": tune.grid_search(missing), "study": str(study.folder), "plan": plan},
        tune_config=tune.TuneConfig(max_concurrent_trials=1 if alone else workers, reuse_actors=not alone),
        run_config=tune.RunConfig(
            name=study.folder.name,
            storage_path=str(storage),
            callbacks=[watcher],
            stop=_Hindered(watcher),
            failure_config=tune.FailureConfig(max_failures=RETRIES),
            checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
            verbose=0,
        ),
    )
    tuner.fit()
    # Tune's own notes are never read again: a new Tuner gets what has no record.
    shutil.rmtree(storage / study.folder.name, ignore_errors=True)
