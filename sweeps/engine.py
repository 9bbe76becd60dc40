"""The only module that assembles a Tuner: trains the fold runs of a study that have no record yet."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
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
from guided.guide import EmbeddingGuide, load_guide
from sweeps import schema
from sweeps.board import Board
from sweeps.records import FoldRun, Record, Records
from sweeps.searcher import FoldRunSearcher, append_to, read_log
from sweeps.spec import SearchPlan, SpecError, Variant
from sweeps.strategy import Block, End, Job, Key, Search, end_of
from sweeps.study import Study
from sweeps.tracking import TrackingThread

# A lost worker is tried again, from the last epoch it saved.
RETRIES = 2

BROKEN = ("failed", "diverged")  # what may be tried again; what a search stopped may not


class StudyLocked(RuntimeError):
    """Another driver is at work on the study."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    records: dict[str, Record]
    absent: list[FoldRun]  # without a record: the run was interrupted
    failed: list[FoldRun]  # with a record that says it failed or diverged
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

    def grow(self, runs: dict[str, FoldRun]) -> None:
        """A search has asked for another variant: these are all fold runs now."""
        self._runs = runs

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
        _set_broken_aside(records, done)
    missing = [run_id for run_id in runs if run_id not in done]
    tracking = TrackingThread(study, uri)
    if missing:
        try:
            workers = start_ray(study)
            tracking.start()
            with Board(study, done, workers, console) as board:
                grid = {"fold_run": tune.grid_search(missing), **_place(study)}
                told = tune.TuneConfig(max_concurrent_trials=workers, reuse_actors=True)
                _tune(study, grid, told, _Watcher(runs, records, board, tracking))
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
        failed=[run for run_id, run in runs.items() if run_id in done and done[run_id].status in BROKEN],
        unwritten=tracking.failure,
    )


def _set_broken_aside(records: Records, done: dict[str, Record]) -> None:
    """Take what failed or diverged out of `done`, and its record out of the way, so that it is tried again."""
    for run_id in [run_id for run_id, record in done.items() if record.status in BROKEN]:
        records.set_aside(run_id)
        del done[run_id]


def _place(study: Study) -> dict[str, str]:
    """Where a worker reads the plan, and its digest: a plan that has grown is read again."""
    return {"study": str(study.folder), "plan": content_id((study.folder / "study.json").read_text(encoding="utf-8"))}


def _tune(study: Study, space: dict[str, Any], told: tune.TuneConfig, watcher: _Watcher) -> None:
    from sweeps.trainable import FoldRunTrial  # imports torch, which the plan does not need

    resources = study.sweep.resources
    storage = study.out / "ray"
    tuner = tune.Tuner(
        tune.with_resources(FoldRunTrial, {"cpu": resources.cpus, "gpu": resources.gpus}),
        param_space=space,
        tune_config=told,
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


# --- searches -------------------------------------------------------------------------------------------------------

GIVEN_UP = ("raced out", "stopped")
ASKED = "asked.jsonl"  # in the folder of the study: the decisions of its search


@dataclass(frozen=True)
class Searched:
    """How a search ended: the study with every variant asked, the state of its decisions, and how its fold runs went.

    Fold runs that the search gave up are neither absent nor failed.
    """

    study: Study
    search: Search
    outcome: Outcome


def run_search(study: Study, plan: SearchPlan, uri: str, console: Console, *, retry_failed: bool = False) -> Searched:
    """Let a search train what it asks for, project every record into MLflow. Running it again goes on where it
    stopped: its log and the records give the same state, and what is recorded is not trained again.

    `study` holds no variant of its own or some that are recorded beside the search's. Raises StudyLocked where another
    driver runs it, ValueError for a log that is damaged or of another search.
    """
    with driver_lock(study):
        run = _SearchRun(study, plan, retry_failed)
        tracking = TrackingThread(run.study, uri)
        try:
            if not run.search.done:
                run.train(tracking, console)
            else:
                tracking.start()
        finally:
            ray.shutdown()
        return Searched(run.study, run.search, run.close(tracking))


class _SearchRun:
    """A search on its way: the study, which grows with every variant asked, and what its decisions rest on."""

    def __init__(self, study: Study, plan: SearchPlan, retry_failed: bool) -> None:
        self.study, self._plan = study, plan
        self._records = Records(study.out)
        self._runs: dict[Key, FoldRun] = {}
        self._guides: dict[str, EmbeddingGuide] = {}
        self._objectives = [objective.metric for objective in plan.settings.objectives]
        log = read_log(study.folder / ASKED)
        for decision in log:
            if decision["event"] == "ask" and decision["config"]:
                self._grow(self._resolve(decision["values"]))
        self.study.write()
        done = self._records.read_all([run.id for run in self._runs.values()])
        if retry_failed:
            _set_broken_aside(self._records, done)
        self.done = done
        self.search = Search(
            plan.space,
            _blocks(study),
            plan.settings,
            self._resolve,
            log=log,
            ended={key: end_of(done[run.id], self._objectives) for key, run in self._runs.items() if run.id in done},
            curves=self._curves(done),
            record=append_to(study.folder / ASKED),
            first=study.sweep.variants[0].varied,
        )
        if not log:
            for values, told in self._recorded():
                self.search.warm_start(values, told)

    def _recorded(self) -> Iterator[tuple[dict[str, Any], list[float]]]:
        """Values and mean objectives of variants of this space that an earlier sweep has trained on the same folds."""
        space, blocks = self._plan.space, _blocks(self.study)
        if not isinstance(space, Space) or not self._records.folder.exists():
            return
        scores: dict[str, dict[Block, list[float]]] = {}
        configs: dict[str, dict[str, Any]] = {}
        for folder in sorted(self._records.folder.iterdir()):
            identity = self._records.identity(folder.name)
            if identity is None or identity["data"] != self.study.data.fingerprint:
                continue
            end = end_of(self._records.read_whole(folder.name), self._objectives)
            if end.status == "finished":
                block = (identity["partition"], identity["fold"], identity["seed"])
                scores.setdefault(identity["config_id"], {})[block] = list(end.values)
                configs[identity["config_id"]] = flat(identity["config"])
        for config, by_block in scores.items():
            if not by_block.keys() >= set(blocks):
                continue
            values = {key: value for key, value in configs[config].items() if key in space.axes}
            values = {key: value for key, value in values.items() if space.active(key, values)}
            try:
                known = space.contains(values) and self._resolve(values).config.id == config
            except SpecError:
                continue
            if known:
                yield values, [float(np.mean(each)) for each in zip(*(by_block[b] for b in blocks), strict=True)]

    def _curves(self, done: dict[str, Record]) -> dict[Key, list[float]]:
        from guided.train import saved_history  # imports torch

        under_way = {key: run for key, run in self._runs.items() if run.id not in done}
        histories = {key: saved_history(self._records.checkpoint(run.id)) for key, run in under_way.items()}
        return {key: [epoch[schema.VAL_F1] for epoch in history] for key, history in histories.items() if history}

    def _resolve(self, values: dict[str, Any]) -> Variant:
        """The variant of these values, with a guide that fits the data. Raises SpecError where there is none."""
        variant = self._plan.resolve(values)
        if variant.config.id not in self._guides:
            try:
                self._guides[variant.config.id] = load_guide(variant.config.guide, self.study.data.classes)
            except ValueError as error:
                raise SpecError(f"variant {variant.label!r}", [str(error)]) from None
        return variant

    def _grow(self, variant: Variant) -> None:
        """Add a variant to the study and its fold runs to those that are known."""
        study = self.study
        if variant.config.id not in study.guides:
            sweep = replace(study.sweep, variants=(*study.sweep.variants, variant))
            guides = {**study.guides, variant.config.id: self._guides[variant.config.id]}
            study = self.study = replace(study, sweep=sweep, guides=guides)
        for run in study.fold_runs:
            if run.config.id == variant.config.id:
                self._runs[(run.config.id, run.partition, run.fold, run.seed)] = run

    def train(self, tracking: TrackingThread, console: Console) -> None:
        """Until the search is done or interrupted."""
        workers = start_ray(self.study)
        tracking.start()
        with Board(self.study, self.done, workers, console) as board:
            watcher = _Watcher({run.id: run for run in self._runs.values()}, self._records, board, tracking)

            def launch(job: Job) -> dict[str, Any] | End:
                if job.key not in self._runs:
                    self._grow(job.variant)
                    self.study.write()
                    board.grow(self.study)
                    tracking.grow(self.study)
                    watcher.grow({run.id: run for run in self._runs.values()})
                run = self._runs[job.key]
                record = self._records.read(run.id)
                if record is not None:
                    return end_of(record, self._objectives)
                return {"fold_run": run.id, **_place(self.study)}

            def halt(key: Key, reason: str) -> None:
                self._records.ask_stop(self._runs[key].id, reason)

            searcher = FoldRunSearcher(self.search, launch, self._end_of, halt)
            told = tune.TuneConfig(
                search_alg=searcher, num_samples=-1, max_concurrent_trials=workers, reuse_actors=True
            )
            _tune(self.study, {}, told, watcher)

    def _end_of(self, key: Key) -> End | None:
        record = self._records.read(self._runs[key].id)
        return None if record is None else end_of(record, self._objectives)

    def close(self, tracking: TrackingThread) -> Outcome:
        """Bring MLflow up to the records and tell how the fold runs of the search went."""
        done = self._records.read_all([run.id for run in self._runs.values()])
        tracking.finish(
            done, {standing.variant.label for standing in self.search.ranking() if standing.end in GIVEN_UP}
        )
        for run_id in done:
            self._records.drop_checkpoint(run_id)
        wanted = {self._runs[key].id: self._runs[key] for key in self.search.started()}
        return Outcome(
            records=done,
            absent=[run for run_id, run in wanted.items() if run_id not in done],
            failed=[run for run_id, run in wanted.items() if run_id in done and done[run_id].status in BROKEN],
            unwritten=tracking.failure,
        )


def _blocks(study: Study) -> list[Block]:
    """What a variant is trained on, in order: all folds of a partition, then the next, then the next seed."""
    sweep = study.sweep
    folds = range(sweep.variants[0].config.folds.number)
    return [(partition, fold, seed) for seed in sweep.seeds for partition in sweep.partitions for fold in folds]
