"""Ray Tune's side of a search: hands its fold runs to Tune and tells `sweeps.strategy.Search` how they go.

Tune knows trials, the search knows fold runs by (config id, partition, fold, seed); a trial id is never more than the
name of a fold run under way. Nothing of Tune's state is kept: a restart makes a new Searcher from the log of decisions
and the records.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ray.tune.search import Searcher

from sweeps.strategy import End, Job, Key, Search


class FoldRunSearcher(Searcher):
    """`launch` gives the configuration of a job's trial, or its end where it has been recorded already; `end_of` the
    end of a fold run that Tune says is over (None: it left no record); `halt` leaves word that a fold run shall stop.
    No more than `most` fold runs are begun: what a budget leaves.
    """

    def __init__(
        self,
        search: Search,
        launch: Callable[[Job], dict[str, Any] | End],
        end_of: Callable[[Key], End | None],
        halt: Callable[[Key, str], None],
        most: int | None = None,
    ) -> None:
        super().__init__()
        self._search, self._launch, self._end_of, self._halt = search, launch, end_of, halt
        self._left = most
        self._jobs: dict[str, Job] = {}  # by trial id: fold runs under way
        self._waiting: set[Key] = set()  # over for Tune, without a record so far
        self._out: set[int] = set()  # variants whose fold runs have been told to stop

    def __reduce__(self) -> tuple[type[Searcher], tuple[()]]:
        # Tune pickles its searcher for a restore that never happens here.
        return Searcher, ()

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save for Tune: the log and the records are the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore from Tune."""

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Configuration of the next trial; FINISHED at the end; None while the next depends on what is under way.

        Never None while nothing is under way: Tune would block for ten minutes.
        """
        while self._left != 0 and (job := self._search.next()) is not None:
            self._left = None if self._left is None else self._left - 1
            launched = self._launch(job)
            if not isinstance(launched, End):
                self._jobs[trial_id] = job
                reason = self._search.halted(job.key)
                if reason is not None:
                    self._halt(job.key, reason)
                return launched
            self._search.ended(job.key, launched)
        if self._search.done or (self._left == 0 and not self._jobs):
            return Searcher.FINISHED
        if not self._jobs and self._waiting:
            return Searcher.FINISHED if not self.catch_up() else self.suggest(trial_id)
        if not self._jobs:
            raise RuntimeError("the search has nothing to do and is not done: please report this with asked.jsonl")
        return None

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """A fold run has ended an epoch; the last line of one, which says that it is done, is no epoch."""
        job = self._jobs.get(trial_id)
        if job is None or result.get("done"):
            return
        reason = self._search.epoch(job.key, int(result["epoch"]), float(result["val_f1"]))
        if reason is not None and job.number not in self._out:
            self._out.add(job.number)  # once: later a fold run may have ended that Tune has not told of yet
            for other in self._jobs.values():
                if other.number == job.number:
                    self._halt(other.key, reason)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """A trial is over. One without a record waits: the driver may write the record of a failed one a moment later
        or try it again alone, and an interrupted one goes on with the next driver."""
        job = self._jobs.pop(trial_id, None)
        if job is not None:
            self._waiting.add(job.key)
            self.catch_up()

    def catch_up(self) -> bool:
        """Tell the search the ends of fold runs that have a record by now; returns whether there were any."""
        found = False
        for key in sorted(self._waiting):
            end = self._end_of(key)
            if end is not None:
                self._waiting.remove(key)
                self._search.ended(key, end)
                found = True
        return found
