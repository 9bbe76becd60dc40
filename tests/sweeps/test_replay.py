"""The replay against grids small enough to be worked by hand."""

from __future__ import annotations

import json
from typing import Any

import pytest

from guided.config import Config
from sweeps.replay import Course, Grid, ListedSpace, full_grid, replays, summarise
from sweeps.rules import Block
from sweeps.spec import SearchSettings, SpecError, Variant
from sweeps.strategy import End

A: Block = (0, 0, 0)
B: Block = (0, 1, 0)


def variant(length: int) -> Variant:
    told = {"embedding": {"length": length, "warmup": False}, "train": {"epochs": 2}}
    return Variant(
        f"length={length}", Config.model_validate_json(json.dumps(told)), {"embedding.length": length}, False
    )


SLOW, QUICK = variant(16), variant(4)


def course(curve: tuple[float, float], seconds: tuple[float, float, float]) -> Course:
    return Course(End("finished", curve, (max(curve),)), seconds[:2], seconds[2])


# The slow one takes 10 and 20 s and is the better one on A and on the judge's seed; the quick one takes 5 s, twice.
GRID = Grid(
    variants=(SLOW, QUICK),
    blocks=(A, B),
    courses={
        (SLOW.config.id, *A): course((0.1, 0.6), (4, 4, 2)),
        (SLOW.config.id, *B): course((0.1, 0.6), (8, 8, 4)),
        (QUICK.config.id, *A): course((0.2, 0.5), (2, 2, 1)),
        (QUICK.config.id, *B): course((0.2, 0.9), (2, 2, 1)),
    },
    judged={SLOW.config.id: [0.7, 0.7], QUICK.config.id: [0.5, 0.6]},
)


def of(**told: Any) -> SearchSettings:
    given = {"sampler": "random", "variants": 2, "startup": 1, "seed": 0, "stop": {"rule": "none"}}
    return SearchSettings.model_validate_json(json.dumps(given | told))


def outcomes(settings: SearchSettings, workers: int) -> set[tuple[float, float, int, str | None]]:
    """Seconds, makespan, fold runs and choice, over seeds that ask either variant first."""
    labels = {each.config.id: each.label for each in GRID.variants}
    return {
        (run.seconds, run.makespan, run.fold_runs, labels.get(run.chosen or ""))
        for run in replays(GRID, settings, workers, 12)
    }


def test_the_full_grid_costs_its_seconds() -> None:
    assert GRID.seconds == 40
    run = full_grid(GRID, 1)
    assert (run.seconds, run.epochs, run.makespan, run.fold_runs) == (40, 8, 40, 4)
    # Means of .6 and .7 on the seed the strategy sees: chosen is the one that is worse on the other seed.
    assert run.chosen == QUICK.config.id
    # Two workers, A of both and then B of both: 10 | 5, then B of the slow one from 5 to 25.
    assert full_grid(GRID, 2).makespan == 25


def test_without_a_rule_everything_is_trained() -> None:
    assert outcomes(of(), 1) == {(40, 40, 4, "length=4")}
    # Slow first: 0-10 and 0-20 on the two workers, then quick 10-15 and 15-20. Quick first: 0-5 twice, then 15 and 25.
    assert outcomes(of(), 2) == {(40, 20, 4, "length=4"), (40, 25, 4, "length=4")}
    # More workers than fold runs: the longest one.
    assert outcomes(of(), 1000) == {(40, 20, 4, "length=4")}


def test_racing_saves_the_second_fold_of_what_is_behind() -> None:
    racing = of(stop={"rule": "racing", "first": 1, "margin": 0.0})
    # Slow first: it has no rival and goes on; quick is .1 behind on A and out after 5 s. Quick first: both go on.
    assert outcomes(racing, 1) == {(35, 35, 3, "length=16"), (40, 40, 4, "length=4")}
    assert outcomes(of(stop={"rule": "racing", "first": 1, "margin": 0.11}), 1) == {(40, 40, 4, "length=4")}


def test_asha_saves_the_epochs_of_what_is_behind() -> None:
    asha = of(stop={"rule": "asha", "min_epochs": 1, "eta": 2})
    # Slow first: quick is ahead of it after one epoch, everything is trained. Quick first: slow is behind on A after
    # its first epoch of 4 s, and its second fold is not begun: 5 + 5 + 4.
    assert outcomes(asha, 1) == {(40, 40, 4, "length=4"), (14, 14, 3, "length=4")}


def test_the_summary_counts_what_the_judge_says() -> None:
    racing = of(stop={"rule": "racing", "first": 1, "margin": 0.0})
    runs = list(replays(GRID, racing, 1, 12))
    right = sum(run.chosen == SLOW.config.id for run in runs)
    told = summarise(GRID, "racing", runs, 40.0)
    assert 0 < right < 12
    assert told.within == told.within_paired == told.best == right / 12
    assert told.cost == pytest.approx((35 * right + 40 * (12 - right)) / 12 / 40)
    assert told.epochs == pytest.approx((6 * right + 8 * (12 - right)) / 12 / 8)  # a fold run of two epochs is saved
    assert told.regret == pytest.approx(0.15 * (12 - right) / 12)


def test_standard_errors_worked_by_hand() -> None:
    grid = Grid(
        variants=(SLOW, QUICK),
        blocks=(A, B),
        courses=GRID.courses,
        judged={SLOW.config.id: [0.5, 0.7], QUICK.config.id: [0.49, 0.61]},
    )
    # The best's error is sd(.5, .7) / √2 = .1; the differences .01 and .09 have mean .05 and error .04.
    assert grid.regret(QUICK.config.id) == pytest.approx(0.05)
    assert grid.within_one_error(QUICK.config.id) and not grid.within_paired_error(QUICK.config.id)
    assert grid.within_one_error(SLOW.config.id) and grid.within_paired_error(SLOW.config.id)


def test_a_listed_space_knows_its_variants_only() -> None:
    def other(values: dict[str, Any]) -> Variant:
        loss = {key.partition(".")[2]: value for key, value in values.items() if key.startswith("loss.")}
        told = {"loss": loss, "embedding": {"length": values["embedding.length"]}}
        return Variant(str(values), Config.model_validate_json(json.dumps(told)), values, False)

    rows = [{"loss.name": "ce", "embedding.length": length} for length in (4, 8)]
    rows += [{"loss.name": "guide_umap", "embedding.length": 4, "loss.lowpass": lowpass} for lowpass in (0.2, 0.6)]
    space = ListedSpace([other(row) for row in rows])
    assert sorted(map(str, space.listed())) == sorted(str(dict(sorted(row.items()))) for row in rows)
    for row in rows:
        assert space.resolve(row).varied == row
    with pytest.raises(SpecError, match=r"no variant has {'loss.name': 'guide_umap', 'embedding.length': 8}"):
        space.resolve({"loss.name": "guide_umap", "embedding.length": 8})
