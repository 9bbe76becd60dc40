"""The only module that assembles a Tuner: trains the fold runs of a study that have no record yet."""

from __future__ import annotations

import math
import pickle
import shutil
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
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
from guided.guide import EmbeddingGuide, load_guide
from sweeps import schema
from sweeps.asked import ASKED, append_to, read_log
from sweeps.attempt import attempts_in
from sweeps.board import Board
from sweeps.budget import Ledger, exhausted
from sweeps.lock import driver_lock
from sweeps.records import BROKEN, FoldRun, Record, Records
from sweeps.rules import Block
from sweeps.searcher import FoldRunSearcher
from sweeps.spec import SearchPlan, SpecError, Sweep, Variant
from sweeps.strategy import Decision, End, Job, Key, Search, end_of
from sweeps.study import Study
from sweeps.tracking import TrackingThread
from sweeps.trainable import FoldRunTrial, LoneFoldRunTrial
from sweeps.warm import recorded_variants

# A lost worker is tried again, from the last epoch it saved.
RETRIES = 2
# So many fold runs that could not read or write end a sweep: the next ones could not either.
HINDERED = 3


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    records: dict[str, Record]
    absent: list[FoldRun]  # without a record: the run was interrupted
    failed: list[FoldRun]  # with a record that says it failed or diverged
    unwritten: str | None  # what MLflow lacks, and why
    hindered: dict[str, str]  # absent ones that could not read or write, by id, and why
    limit: str | None = None  # which limit of the sweep ended it


class _Watcher(tune.Callback):
    """Tells the board and the tracking what Tune hears; writes the record of a fold run that failed for good.

    Two kinds of failure are not the fold run's own and leave no record. What ran out of memory or died with its
    process is `starved`, to be tried again alone. What could not read or write (disk full, folder gone) is `hindered`
    and left for the next start.
    """

    def __init__(
        self,
        sweep: Sweep,
        runs: dict[str, FoldRun],
        done: dict[str, Record],
        records: Records,
        board: Board,
        tracking: TrackingThread,
    ) -> None:
        self._sweep, self._runs = sweep, runs
        self._records, self._board, self._tracking = records, board, tracking
        self._ledger = _ledger(records, runs, done)
        self.limit: str | None = None  # which limit of the sweep is reached
        self.starved: dict[str, str] = {}
        self.hindered: dict[str, str] = {}

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
        if "out_of_memory" in result:
            self.starved[run_id] = result["out_of_memory"]
            self._board.waits(run_id, "out of memory, again when alone")
        elif "hindered" in result:
            self._hinder(run_id, result["hindered"])
        elif not result.get("done"):
            self._board.epoch(run_id, result["epoch"], result["val_f1"], result["length"])
            if self._sweep.budget.timed:
                self._ledger.beside(run_id, self._records.beside_of(run_id))
                self._look()
        else:
            self.ended(run_id)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        run_id = trial.config["fold_run"]
        cause = _cause(trial)
        if self._records.has(run_id):
            self.ended(run_id)
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
                self.ended(run_id)

    @property
    def alone(self) -> list[str]:
        """Starved fold runs that still have no record."""
        return [run_id for run_id in self.starved if not self._records.has(run_id)]

    @property
    def recorded(self) -> int:
        """How many fold runs have a record."""
        return self._ledger.recorded

    def _hinder(self, run_id: str, reason: str) -> None:
        self.hindered[run_id] = reason
        self._board.waits(run_id, reason)

    def ended(self, run_id: str) -> None:
        """A fold run has a record."""
        record = self._records.read(run_id)
        if record is not None:
            self._ledger.record(record)
            self._ledger.beside(run_id, self._records.beside_of(run_id))
            self._look()
            self._board.ended(run_id, record)
            self._tracking.put(run_id)

    def _look(self) -> None:
        self.limit = _limit(self._sweep, self._ledger)


def _ledger(records: Records, runs: Iterable[str], done: Mapping[str, Record]) -> Ledger:
    """What the fold runs of these ids have cost so far; `done` are the records they have."""
    ledger = Ledger()
    for record in done.values():
        ledger.record(record)
    for run_id, spans in records.beside(runs).items():
        ledger.beside(run_id, spans)
    return ledger


def _of(runs: Mapping[str, FoldRun], done: Mapping[str, Record]) -> dict[str, Record]:
    """The records of these fold runs."""
    return {run_id: record for run_id, record in done.items() if run_id in runs}


def _limit(sweep: Sweep, ledger: Ledger) -> str | None:
    cost = ledger.spent(sweep.resources.gpus, sweep.budget.price_per_hour)
    return exhausted(sweep.budget, sweep.max_failures, cost)


def limit_reached(sweep: Sweep, records: Records, runs: Iterable[str], done: Mapping[str, Record]) -> str | None:
    """Which limit of the sweep its fold runs have reached, or None."""
    return _limit(sweep, _ledger(records, runs, done))


class _Limits(tune.Stopper):
    """Ends a sweep whose fold runs cannot read or write, or whose budget is spent. What is under way goes on from its
    last epoch when the sweep does."""

    def __init__(self, watcher: _Watcher) -> None:
        self._watcher = watcher

    def __reduce__(self) -> tuple[type[NoopStopper], tuple[()]]:
        return NoopStopper, ()

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return len(self._watcher.hindered) >= HINDERED or self._watcher.limit is not None


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
    # What a search stopped is no result here: it is trained to its end.
    _set_aside(records, done, ("stopped", *(BROKEN if retry_failed else ())))
    limit = limit_reached(study.sweep, records, runs, done)
    missing = [run_id for run_id in runs if run_id not in done]
    if study.sweep.budget.fold_runs is not None:
        missing = missing[: max(0, study.sweep.budget.fold_runs - len(done))]
    tracking = TrackingThread(study, uri, _teller(console))
    hindered: dict[str, str] = {}
    if missing and limit is None:
        try:
            place = start_ray(study, uri)
            tracking.start()
            with Board(study, done, place.workers, console) as board:
                watcher = _Watcher(study.sweep, runs, done, records, board, tracking)
                for turn in study.in_turns([runs[run_id] for run_id in missing]):
                    if turn and watcher.limit is None:
                        _tune(study, [run.id for run in turn], watcher, place.workers)
                alone = watcher.alone
                if alone and watcher.limit is None:
                    _tune(study, alone, watcher, place.workers, alone=True)
                hindered = watcher.hindered
        finally:
            ray.shutdown()
    else:
        tracking.start()
    done = records.read_all(list(runs))
    tracking.finish(done)
    if done.keys() == runs.keys():
        shutil.rmtree(study.warmups, ignore_errors=True)
    return _outcome(study, runs, done, tracking, hindered)


def _outcome(
    study: Study,
    wanted: dict[str, FoldRun],
    done: dict[str, Record],
    tracking: TrackingThread,
    hindered: dict[str, str],
) -> Outcome:
    """How the fold runs `wanted` ended; frees the checkpoints of those that are recorded."""
    records = Records(study.out)
    for run_id in done:
        records.drop_checkpoint(run_id)
    return Outcome(
        records=done,
        absent=[run for run_id, run in wanted.items() if run_id not in done],
        failed=[run for run_id, run in wanted.items() if run_id in done and done[run_id].status in BROKEN],
        unwritten=tracking.unwritten,
        hindered=hindered,
        limit=limit_reached(study.sweep, records, wanted, _of(wanted, done)),
    )


def _teller(console: Console) -> Callable[[str], None]:
    """A function that tells a line, above the board where one is drawn."""
    return lambda text: console.print(text, markup=False, highlight=False, soft_wrap=True)


def _set_aside(records: Records, done: dict[str, Record], statuses: Collection[str]) -> None:
    """Take what ended so out of `done`, and its record out of the way, so that it is tried again."""
    for run_id in [run_id for run_id, record in done.items() if record.status in statuses]:
        _begin_anew(records, run_id)
        del done[run_id]


def _begin_anew(records: Records, run_id: str) -> None:
    """Its attempts, and a word to stop, were those of the record set aside; the next ones are the next record's."""
    records.set_aside(run_id)
    records.drop_checkpoint(run_id)


def _place(study: Study) -> dict[str, str]:
    """Where a worker reads the plan, and its digest: a plan that has grown is read again."""
    return {"study": str(study.folder), "plan": content_id((study.folder / "study.json").read_text(encoding="utf-8"))}


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


def _tune(
    study: Study,
    asked: list[str] | FoldRunSearcher,
    watcher: _Watcher,
    workers: int,
    *,
    alone: bool = False,
) -> None:
    """Train fold runs, given by id or by a searcher, side by side; or one after the other with a fresh process and
    whole GPUs each."""
    resources = study.sweep.resources
    storage = study.out / "ray"
    gpus = math.ceil(resources.gpus) if alone else resources.gpus
    told = tune.TuneConfig(max_concurrent_trials=1 if alone else workers, reuse_actors=not alone)
    if isinstance(asked, list):
        space = {"fold_run": tune.grid_search(asked), **_place(study)}
    else:
        space = {}
        told = replace(told, search_alg=asked, num_samples=-1)
    tuner = tune.Tuner(
        tune.with_resources(LoneFoldRunTrial if alone else FoldRunTrial, {"cpu": resources.cpus, "gpu": gpus}),
        param_space=space,
        tune_config=told,
        run_config=tune.RunConfig(
            name=study.folder.name,
            storage_path=str(storage),
            callbacks=[watcher],
            stop=_Limits(watcher),
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


@dataclass(frozen=True)
class Searched:
    """How a search ended: the study with every variant asked, the state of its decisions, and how its fold runs went.

    Fold runs that the search gave up are neither absent nor failed.
    """

    study: Study
    search: Search
    outcome: Outcome


def run_search(
    study: Study, plan: SearchPlan, uri: str | None, console: Console, *, retry_failed: bool = False
) -> Searched:
    """Let a search train what it asks for, project every record into MLflow. Running it again goes on where it
    stopped: its log and the records give the same state, and what is recorded is not trained again.

    `study` holds no variant of its own or some that are recorded beside the search's. Raises StudyLocked where another
    driver runs it, ValueError for a log that is damaged or of another search.
    """
    with driver_lock(study.folder):
        _check_writable(study)
        run = _SearchRun(study, plan, retry_failed)
        for source, count in Counter(run.warm.values()).items():
            told = "1 variant competes" if count == 1 else f"{count} variants compete"
            console.print(f"{told} as recorded by {source}", highlight=False, markup=False)
        tracking = TrackingThread(run.study, uri, _teller(console))
        try:
            if not run.search.done and run.limit is None:
                run.train(tracking, uri, console)
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
        self.hindered: dict[str, str] = {}
        self._objectives = [objective.metric for objective in plan.settings.objectives]
        self.warm: dict[str, str] = {}  # variants recorded by other studies, by config id, and which
        log = read_log(study.folder / ASKED)
        for decision in log:
            if decision["event"] in ("ask", "warm") and decision["config"]:
                self._grow(self._resolve(decision["values"]))
            if decision["event"] == "warm":
                self.warm[decision["config"]] = decision["source"]
        self.study.write()
        done = self._records.read_all([run.id for run in self._runs.values()])
        if retry_failed:
            _set_aside(self._records, done, BROKEN)
        for run_id in self._stopped_elsewhere(log, done):
            _begin_anew(self._records, run_id)
            del done[run_id]
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
        if not self.search.begun:
            self._warm_start()

    def _stopped_elsewhere(self, log: Iterable[Decision], done: Mapping[str, Record]) -> list[str]:
        """Fold runs that another search stopped and this one has not: here they are trained to their end."""
        ours = {decision["number"] for decision in log if decision["event"] == "told" and decision["end"] == "stopped"}
        configs = {decision["config"] for decision in log if decision["event"] == "ask" and decision["number"] in ours}
        stopped = {run_id for run_id, record in done.items() if record.status == "stopped"}
        return [run.id for key, run in self._runs.items() if run.id in stopped and key[0] not in configs]

    def recorded(self, job: Job) -> Record | None:
        """The record that a fold run about to start has already; one that another search stopped is set aside."""
        run = self._runs[job.key]
        record = self._records.read(run.id)
        if record is not None and record.status == "stopped" and self.search.halted(job.key) is None:
            _begin_anew(self._records, run.id)
            return None
        return record

    def _warm_start(self) -> None:
        """Let what other studies have recorded compete. The first driver may have been killed on the way."""
        for one in recorded_variants(self.study, self._plan):
            if self.search.knows(one.variant.config.id):
                continue
            self._grow(self._resolve(one.values))
            self.study.write()
            records = self._records.read_all([run.id for run in one.runs])
            self.done |= records
            keys = {(run.config.id, run.partition, run.fold, run.seed): run.id for run in one.runs}
            ends = {key: end_of(records[run_id], self._objectives) for key, run_id in keys.items()}
            self.search.warm_start(one.values, one.source, ends)
            self.warm[one.variant.config.id] = one.source

    @property
    def charged(self) -> dict[str, FoldRun]:
        """The fold runs that the search had trained, by id: what its budget is for."""
        return {self._runs[key].id: self._runs[key] for key in self.search.started()}

    @property
    def limit(self) -> str | None:
        """Which limit of the sweep is reached, or None."""
        runs = self.charged
        return limit_reached(self.study.sweep, self._records, runs, _of(runs, self.done))

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

    def train(self, tracking: TrackingThread, uri: str | None, console: Console) -> None:
        """Until the search is done, its budget spent, or interrupted."""
        workers = start_ray(self.study, uri).workers
        tracking.start()
        with Board(self.study, self.done, workers, console) as board:
            runs = {run.id: run for run in self._runs.values()}
            watcher = _Watcher(self.study.sweep, runs, _of(self.charged, self.done), self._records, board, tracking)

            def launch(job: Job) -> dict[str, Any] | End:
                if job.key not in self._runs:
                    self._grow(job.variant)
                    self.study.write()
                    board.grow(self.study)
                    tracking.grow(self.study)
                    watcher.grow({run.id: run for run in self._runs.values()})
                run, record = self._runs[job.key], self.recorded(job)
                if record is not None:
                    watcher.ended(run.id)  # by another sweep of this OUT; it counts here too
                    return end_of(record, self._objectives)
                return {"fold_run": run.id, **_place(self.study)}

            def halt(key: Key, reason: str) -> None:
                self._records.ask_stop(self._runs[key].id, reason)

            while True:
                allowed = self.study.sweep.budget.fold_runs
                most = None if allowed is None else allowed - watcher.recorded
                searcher = FoldRunSearcher(self.search, launch, self._end_of, halt, most)
                _tune(self.study, searcher, watcher, workers)
                self.hindered = watcher.hindered
                if not watcher.alone or watcher.limit is not None or watcher.hindered:
                    return
                # The search waits for what ran out of memory.
                _tune(self.study, watcher.alone, watcher, workers, alone=True)
                if watcher.alone:
                    return
                searcher.catch_up()

    def _end_of(self, key: Key) -> End | None:
        record = self._records.read(self._runs[key].id)
        return None if record is None else end_of(record, self._objectives)

    def close(self, tracking: TrackingThread) -> Outcome:
        """Bring MLflow up to the records and tell how the fold runs of the search went."""
        done = self._records.read_all([run.id for run in self._runs.values()])
        tracking.finish(
            done, {standing.variant.label for standing in self.search.ranking() if standing.end in GIVEN_UP}
        )
        if self.search.done:
            shutil.rmtree(self.study.warmups, ignore_errors=True)
        return _outcome(self.study, self.charged, done, tracking, self.hindered)


def _blocks(study: Study) -> list[Block]:
    """What a variant is trained on, in order: all folds of a partition, then the next, then the next seed."""
    sweep = study.sweep
    folds = range(sweep.variants[0].config.folds.number)
    return [(partition, fold, seed) for seed in sweep.seeds for partition in sweep.partitions for fold in folds]
