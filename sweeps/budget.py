"""What a sweep may cost, and what it has cost: pure functions of its records, so that a restart counts the same."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, model_validator

from guided.config import Positive, Strict

if TYPE_CHECKING:
    from sweeps.records import Record


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


@dataclass(frozen=True)
class Spent:
    """What recorded fold runs took, whatever their end."""

    fold_runs: int
    failures: int
    hours: float
    worker_hours: float  # summed over fold runs
    gpu_hours: float
    money: float | None  # None: no price


def spent(records: Iterable[Record], gpus: float, price_per_hour: float | None) -> Spent:
    """The cost of these records with so many GPUs a fold run."""
    records = list(records)
    spans = sorted((record.details["began"], record.details["ended"]) for record in records)
    wall, until = 0.0, float("-inf")
    for began, ended in spans:
        wall += max(0.0, ended - max(began, until))
        until = max(until, ended)
    work = sum(ended - began for began, ended in spans) / 3600
    return Spent(
        fold_runs=len(records),
        failures=sum(record.status in ("failed", "diverged") for record in records),
        hours=wall / 3600,
        worker_hours=work,
        gpu_hours=work * gpus,
        money=None if price_per_hour is None else work * price_per_hour,
    )


def exhausted(budget: Budget, max_failures: int | None, cost: Spent) -> str | None:
    """Which limit is reached and how to go on, or None."""
    for name, limit, used in (
        ("fold_runs", budget.fold_runs, float(cost.fold_runs)),
        ("hours", budget.hours, cost.hours),
        ("gpu_hours", budget.gpu_hours, cost.gpu_hours),
        ("money", budget.money, cost.money),
    ):
        if limit is not None and used is not None and used >= limit:
            return f"budget.{name} is spent ({used:.4g} of {limit:g}); SET='budget.{name}=…' with more goes on"
    if max_failures is not None and cost.failures >= max_failures:
        return (
            f"{cost.failures} fold runs have failed, and max_failures is {max_failures}; mend the cause, then RETRY=1"
        )
    return None
