"""What records cost, and when a sweep must end, against sums done by hand."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from guided.config import Config
from sweeps.budget import Budget, Ledger, attempt_spans, exhausted, spent
from sweeps.records import FoldRun, Record, Records, Status

numbers = itertools.count()


def record(began: float, ended: float, status: Status = "finished") -> Record:
    details = {"began": began, "ended": ended}
    return Record(f"{next(numbers):016x}", status, "", {}, {}, [], details, Path("nowhere"))


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


def test_work_without_a_record_counts_as_far_as_it_told() -> None:
    # One recorded in the first hour; one under way beside it and an hour longer, broken off for a while in between.
    attempts = [
        {"attempt": 1, "began": 1800.0, "until": 3000.0},
        {"attempt": 2, "began": 3100.0},  # told no epoch
        {"attempt": 3, "began": 5400.0, "until": 7200.0},
    ]
    beside = {"1" * 16: attempt_spans(attempts)}
    assert beside["1" * 16] == [(1800.0, 3000.0), (5400.0, 7200.0)]
    cost = spent([record(0, 3600)], 0.5, 2.0, beside)
    assert (cost.fold_runs, cost.failures) == (1, 0)
    assert cost.hours == pytest.approx(1.5) and cost.worker_hours == pytest.approx(1 + (1200 + 1800) / 3600)
    assert cost.gpu_hours == pytest.approx(cost.worker_hours / 2) and cost.money == pytest.approx(2 * cost.worker_hours)


spans_of = st.tuples(st.integers(0, 40), st.integers(0, 20)).map(lambda pair: (float(pair[0]), float(sum(pair))))


@given(st.lists(st.tuples(st.integers(0, 5), st.lists(spans_of, max_size=3)), max_size=12))
def test_a_ledger_kept_up_tells_what_the_spans_at_the_end_tell(
    entries: list[tuple[int, list[tuple[float, float]]]],
) -> None:
    # As fold runs go on their spans only grow: each entry holds what the earlier ones of its fold run held.
    ledger, latest = Ledger(), dict[int, list[tuple[float, float]]]()
    for run, spans in entries:
        latest[run] = [*latest.get(run, []), *spans]
        ledger.beside(str(run), latest[run])
    cost = ledger.spent(1, None)
    assert cost.gpu_hours * 3600 == pytest.approx(sum(e - b for spans in latest.values() for b, e in spans))
    busy = {second for spans in latest.values() for b, e in spans for second in range(int(b), int(e))}
    assert cost.hours * 3600 == pytest.approx(len(busy))


def test_what_was_broken_off_or_set_aside_is_read_from_disk(tmp_path: Path) -> None:
    config = Config()
    under_way, retried, waiting = (FoldRun("v", config, "d" * 12, "g" * 12, 0, fold, 0) for fold in range(3))
    records = Records(tmp_path)
    for run, attempts in ((under_way, [(0.0, 60.0), (100.0, 130.0)]), (retried, [(500.0, 520.0)])):
        for number, (began, until) in enumerate(attempts, 1):
            path = records.checkpoint(run.id) / f"attempt-{number}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"began": began, "until": until}))
    records.write(retried, "failed", reason="no such disk", details={"began": 200.0, "ended": 240.0})
    assert records.beside([under_way.id, retried.id, waiting.id]) == {under_way.id: [(0.0, 60.0), (100.0, 130.0)]}
    records.set_aside(retried.id)
    assert records.beside_of(retried.id) == [(500.0, 520.0), (200.0, 240.0)]
    records.write(retried, "finished", details={"began": 500.0, "ended": 560.0})
    assert records.beside([retried.id]) == {retried.id: [(200.0, 240.0)]}


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
