"""What a sweep may cost, and what it has cost: pure functions of what its fold runs left on disk, so that a restart
counts the same.

Work counts whether or not it ended well: fold runs with a record, those under way, those broken off, and those that
were set aside to be tried again. What has no record counts from the beginning of each attempt to the last epoch that
it told; an attempt that told none counts nothing, because nobody knows when it ended. A limit of time or money is
looked at after every epoch of every fold run, so it is overshot at most by the epoch that each fold run is in, its
start and its test included, and by what an attempt that died had done of its next epoch.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, model_validator

from guided.config import Positive, Strict

if TYPE_CHECKING:
    from sweeps.records import Record

Span = tuple[float, float]  # seconds of the epoch: when work began and ended


class Budget(Strict):
    """Limits of a sweep; what is not given is not limited."""

    fold_runs: Annotated[int, Field(ge=1)] | None = None
    hours: Positive | None = None  # during which at least one fold run was under way: pauses do not count
    gpu_hours: Positive | None = None
    money: Positive | None = None  # in the currency of the price
    price_per_hour: Positive | None = None  # of one fold run's resources

    @model_validator(mode="after")
    def _priced(self) -> Budget:
        if self.money is not None and self.price_per_hour is None:
            raise ValueError("money needs price_per_hour, the price of an hour of one fold run's resources")
        return self

    @property
    def timed(self) -> bool:
        """Whether a limit grows with every epoch."""
        return any(limit is not None for limit in (self.hours, self.gpu_hours, self.money))


@dataclass(frozen=True)
class Spent:
    """What the fold runs of a sweep took, whatever their end."""

    fold_runs: int  # with a record
    failures: int
    hours: float
    worker_hours: float  # summed over fold runs
    gpu_hours: float
    money: float | None  # None: no price


class Ledger:
    """The cost of fold runs, kept up while they run: each entry costs little, however many there are."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}  # by id of the fold run
        self._beside: dict[str, float] = {}
        self._failed: set[str] = set()
        self._busy: list[Span] = []  # apart from each other, in order

    def record(self, record: Record) -> None:
        """A fold run has its record."""
        self._seconds[record.id] = self._add(record_spans(record))
        if record.status in ("failed", "diverged"):
            self._failed.add(record.id)

    def beside(self, run_id: str, spans: Iterable[Span]) -> None:
        """All work on a fold run that its record does not tell of: while it has none, or before it was set aside."""
        self._beside[run_id] = self._add(spans)

    def spent(self, gpus: float, price_per_hour: float | None) -> Spent:
        """The cost so far with so many GPUs a fold run."""
        work = (sum(self._seconds.values()) + sum(self._beside.values())) / 3600
        return Spent(
            fold_runs=len(self._seconds),
            failures=len(self._failed),
            hours=sum(ended - began for began, ended in self._busy) / 3600,
            worker_hours=work,
            gpu_hours=work * gpus,
            money=None if price_per_hour is None else work * price_per_hour,
        )

    @property
    def recorded(self) -> int:
        """How many fold runs have a record."""
        return len(self._seconds)

    def _add(self, spans: Iterable[Span]) -> float:
        """Seconds of the spans, which are united with the times at which anything was under way."""
        seconds = 0.0
        for began, ended in spans:
            seconds += ended - began
            first = bisect_left(self._busy, began, key=lambda span: span[1])
            behind = bisect_right(self._busy, ended, key=lambda span: span[0])
            for met in self._busy[first:behind]:
                began, ended = min(began, met[0]), max(ended, met[1])
            self._busy[first:behind] = [(began, ended)]
        return seconds


def spent(
    records: Iterable[Record],
    gpus: float,
    price_per_hour: float | None,
    beside: Mapping[str, Iterable[Span]] | None = None,
) -> Spent:
    """The cost of these records with so many GPUs a fold run, and of the work `beside` them, by fold run."""
    ledger = Ledger()
    for record in records:
        ledger.record(record)
    for run_id, spans in (beside or {}).items():
        ledger.beside(run_id, spans)
    return ledger.spent(gpus, price_per_hour)


def record_spans(record: Record) -> list[Span]:
    """When a fold run was under way. What lies between two attempts is a pause."""
    began, ended = record.details["began"], record.details["ended"]
    told = [attempt for attempt in record.details.get("attempts", []) if "began" in attempt]
    return [*attempt_spans(told[:-1]), (told[-1]["began"], ended)] if told else [(began, ended)]


def attempt_spans(attempts: Sequence[Mapping[str, Any]]) -> list[Span]:
    """When attempts that left no record were at work, as far as they told: until their last epoch."""
    return [(attempt["began"], attempt["until"]) for attempt in attempts if {"began", "until"} <= attempt.keys()]


def exhausted(budget: Budget, max_failures: int | None, cost: Spent) -> str | None:
    """Which limit is reached and how to go on, or None."""
    for name, limit, used in (
        ("fold_runs", budget.fold_runs, float(cost.fold_runs)),
        ("hours", budget.hours, cost.hours),
        ("gpu_hours", budget.gpu_hours, cost.gpu_hours),
        ("money", budget.money, cost.money),
    ):
        if limit is not None and used is not None and used >= limit:
            more = f"--set 'budget.{name}=…' (make: SET=) with more goes on"
            return f"budget.{name} is spent ({used:.4g} of {limit:g}); {more}"
    if max_failures is not None and cost.failures >= max_failures:
        return (
            f"{cost.failures} fold runs have failed, and max_failures is {max_failures}; mend the cause, then "
            "--retry-failed (make: RETRY=1)"
        )
    return None
