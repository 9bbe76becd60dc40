"""What records cost, and when a sweep must end, against sums done by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from sweeps.budget import Budget, exhausted, spent
from sweeps.records import Record, Status


def record(began: float, ended: float, status: Status = "finished") -> Record:
    details = {"began": began, "ended": ended}
    return Record("0" * 16, status, "", {}, {}, [], details, Path("nowhere"))


def test_cost_is_summed_and_pauses_do_not_count() -> None:
    # Two at a time for an hour, a pause of an hour, half an hour more; one of them failed.
    records = [record(0, 3600), record(1800, 3600), record(7200, 9000, "failed")]
    cost = spent(records, gpus=0.5, price_per_hour=2.0)
    assert (cost.fold_runs, cost.failures) == (3, 1)
    assert cost.hours == pytest.approx(1.5)
    assert cost.worker_hours == pytest.approx(2.0)
    assert cost.gpu_hours == pytest.approx(1.0)
    assert cost.money == pytest.approx(4.0)
    assert spent([], gpus=1, price_per_hour=None).money is None


def test_a_pause_within_a_fold_run_does_not_count() -> None:
    # Broken off after 10 minutes, the last epoch told after 6; a night later 20 minutes more.
    first = {"attempt": 1, "began": 0.0, "until": 360.0, "first_epoch": 0, "last_epoch": 1}
    lost = {"attempt": 2, "began": 600.0}  # told no epoch
    last = {"attempt": 4, "began": 40_000.0, "until": 41_000.0}
    broken = record(0, 41_200)
    broken.details["attempts"] = [first, lost, {"attempt": 3}, last]
    cost = spent([broken], 1, 3.0)
    assert cost.hours == cost.worker_hours == cost.gpu_hours == pytest.approx((360 + 1200) / 3600)
    assert cost.money == pytest.approx(3 * 1560 / 3600)
    broken.details["attempts"] = [{"attempt": 1}]  # its file was damaged
    assert spent([broken], 1, None).worker_hours == pytest.approx(41_200 / 3600)


@pytest.mark.parametrize(
    ("limits", "told"),
    [
        ({"fold_runs": 3}, "budget.fold_runs is spent (3 of 3)"),
        ({"hours": 1.5}, "budget.hours is spent"),
        ({"gpu_hours": 0.9}, "budget.gpu_hours is spent"),
        ({"money": 4.0, "price_per_hour": 2.0}, "budget.money is spent"),
        ({"fold_runs": 4, "hours": 1.6, "gpu_hours": 1.1}, None),
    ],
)
def test_a_limit_is_told_when_it_is_reached(limits: dict[str, float], told: str | None) -> None:
    budget = Budget(**limits)  # type: ignore[arg-type]
    records = [record(0, 3600), record(1800, 3600), record(7200, 9000, "failed")]
    reason = exhausted(budget, None, spent(records, 0.5, budget.price_per_hour))
    assert reason is None if told is None else reason is not None and told in reason


def test_failures_have_a_limit_of_their_own() -> None:
    cost = spent([record(0, 1, "failed"), record(0, 1, "diverged"), record(0, 1)], 0, None)
    assert exhausted(Budget(), 3, cost) is None
    assert "2 fold runs have failed, and max_failures is 2" in str(exhausted(Budget(), 2, cost))


def test_money_needs_a_price() -> None:
    with pytest.raises(ValidationError, match="money needs price_per_hour"):
        Budget(money=10.0)
