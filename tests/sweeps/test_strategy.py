"""The decisions of a search: the rules against hand-worked examples, the state machine against random courses."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import BaseTrial, TrialState

from guided.config import Config
from sweeps.replay import ListedSpace
from sweeps.rules import Block, adjusted, behind, goes_on, rungs, why_not_cmaes
from sweeps.spec import SearchSettings, SpecError, Variant
from sweeps.strategy import Decision, End, Key, Search

EPOCHS = 8
BLOCKS: tuple[Block, ...] = ((0, 0, 0), (0, 1, 0), (0, 2, 0), (0, 3, 0))
NONE = {"rule": "none"}
RACING = {"rule": "racing", "first": 2, "margin": 0.0}
HALVING = {"rule": "halving", "first": 1, "eta": 2}
ASHA = {"rule": "asha", "min_epochs": 1, "eta": 2}


@cache
def variant(loss: str, length: int) -> Variant:
    told = {"loss": {"name": loss}, "embedding": {"length": length}, "train": {"epochs": EPOCHS}}
    config = Config.model_validate_json(json.dumps(told))
    return Variant(f"{loss} {length}", config, {"loss.name": loss, "embedding.length": length}, False)


GRID = [variant(loss, length) for loss in ("guide2d", "triplet") for length in (4, 8, 16)]


def of(**told: Any) -> SearchSettings:
    given = {"sampler": "random", "variants": 6, "startup": 2, "seed": 0, "stop": NONE}
    return SearchSettings.model_validate_json(json.dumps(given | told))


def searching(
    told: SearchSettings,
    log: list[Decision] | None = None,
    ended: Mapping[Key, End] | None = None,
    curves: Mapping[Key, list[float]] | None = None,
) -> tuple[Search, list[Decision]]:
    """A search over the small grid and the log it writes to, which begins with `log`."""
    space, kept = ListedSpace(GRID), list(log or [])
    search = Search(space, BLOCKS, told, space.resolve, log=list(kept), ended=ended, curves=curves, record=kept.append)
    return search, kept


def trials(search: Search) -> list[Any]:
    return search._study.trials


# --- rules, worked by hand ------------------------------------------------------------------------------------------

A, B, C, D = BLOCKS


def test_the_fold_adjusted_estimate() -> None:
    # The field does .5 and .7 on average on A and B, .9 on C, .3 on D: .6 in all. Ours is .1 and .2 better on A and B.
    field = [{A: 0.4, B: 0.6, C: 0.8, D: 0.2}, {A: 0.6, B: 0.8, C: 1.0, D: 0.4}]
    assert adjusted({A: 0.6, B: 0.9}, field, BLOCKS) == pytest.approx(0.6 + 0.15)
    # A variant that has not every block is no part of the field while others have.
    assert adjusted({A: 0.6, B: 0.9}, [*field, {A: 0.0, B: 0.0}], BLOCKS) == pytest.approx(0.75)
    # Nobody has every block: the estimate is over the blocks both have, which gives its own mean back.
    assert adjusted({A: 0.6, B: 0.9}, [{A: 0.0, B: 0.1}], BLOCKS) == pytest.approx(0.75)
    assert adjusted({A: 0.6}, [], BLOCKS) == 0.6


def test_how_far_a_variant_is_behind() -> None:
    own = {A: 0.5, B: 0.6}
    assert behind(own, [{A: 0.6, B: 0.6, C: 0.0}, {A: 0.4, B: 0.5}], "maximize") == pytest.approx(0.05)
    assert behind(own, [{A: 0.4, B: 0.5}], "maximize") == pytest.approx(-0.1)
    assert behind(own, [{A: 0.4, B: 0.5}], "minimize") == pytest.approx(0.1)
    assert behind(own, [{A: 1.0}], "maximize") == 0.0  # it has not the same blocks


def test_the_best_share_goes_on_and_a_tie_with_it() -> None:
    assert goes_on(0.1, [], 3)
    assert not goes_on(0.1, [0.2], 3)  # of two, one
    assert goes_on(0.2, [0.2], 3)
    assert goes_on(0.3, [0.4, 0.2, 0.1], 3)  # of four, two
    assert not goes_on(0.2, [0.4, 0.3, 0.1], 3)


def test_rungs_lie_beyond_the_warm_up_and_before_the_end() -> None:
    assert rungs(variant("guide2d", 4), 1, 2) == [4, 5, 7]  # 3 + 1, 3 + 2, 3 + 4; 3 + 8 is past the budget of 8
    assert rungs(variant("guide2d", 4), 5, 2) == []
    assert rungs(variant("guide2d", 4), "auto", 2) == [5, 7]  # 60 % of 8 epochs, rounded up; then 3 + 2 · 2
    told = json.dumps({"embedding": {"warmup": False}, "train": {"epochs": EPOCHS}})
    bare = Variant("bare", Config.model_validate_json(told), {}, False)
    assert rungs(bare, 1, 2) == [1, 2, 4]


def played(search: Search, scores: Mapping[int, Mapping[Block, float]]) -> list[tuple[int, Block]]:
    """Every fold run that the search starts ends at once, with the score of its variant, counted from 0; in order."""
    done: list[tuple[int, Block]] = []
    numbers: dict[int, int] = {}
    while (job := search.next()) is not None:
        place = numbers.setdefault(job.number, len(numbers))
        done.append((place, job.block))
        search.ended(job.key, End("finished", (), (scores[place][job.block],)))
    return done


def test_racing_lets_the_best_on_and_tells_the_others_an_estimate() -> None:
    search, log = searching(of(variants=3, stop=RACING))
    by_number: dict[int, dict[Block, float]] = {
        0: {A: 0.4, B: 0.6, C: 0.5, D: 0.5},
        1: {A: 0.3, B: 0.6},  # .05 behind 0 on A and B
        2: {A: 0.5, B: 0.6, C: 0.2},  # ahead after two blocks, behind after three
    }
    done = played(search, by_number)
    assert done == [(0, A), (0, B), (0, C), (0, D), (1, A), (1, B), (2, A), (2, B), (2, C)]
    assert search.done
    ranked = search.ranking()
    assert [standing.end for standing in ranked] == ["finished", "raced out", "raced out"]
    assert ranked[0].told == (0.5,) and ranked[0].blocks == 4
    # 1: differences to the field (0 alone) on A and B are -.1 and 0, the field's mean is .5. 2: .1, 0, -.3.
    assert ranked[1].told == pytest.approx((0.45,)) and ranked[1].why == "0.050 behind the best on the same 2 folds"
    assert ranked[2].told == pytest.approx((0.5 - 0.2 / 3,))
    told = [trial.value for trial in trials(search) if trial.state == TrialState.COMPLETE]
    assert told == pytest.approx([0.5, 0.45, 0.5 - 0.2 / 3])
    assert [line["event"] for line in log if line["event"] not in ("ask", "start")] == [
        "cleared", "cleared", "told", "told", "cleared", "told",
    ]  # fmt: skip


def test_halving_judges_after_one_two_and_four_blocks_in_an_order_of_its_own() -> None:
    search, log = searching(of(variants=3, stop=HALVING))
    p, q, r, s = (BLOCKS[place] for place in np.random.default_rng(0).permutation(4))
    assert (p, q, r, s) != BLOCKS
    by_number: dict[int, dict[Block, float]] = {
        0: {p: 0.4, q: 0.6, r: 0.5, s: 0.5},  # nobody has come as far: it goes on each time
        1: {p: 0.3},  # the second of two
        2: {p: 0.5, q: 0.4},  # the first of three, then .45 against .5
    }
    done = played(search, by_number)
    assert done == [(0, p), (0, q), (0, r), (0, s), (1, p), (2, p), (2, q)]
    assert search.done
    ranked = search.ranking()
    assert [standing.end for standing in ranked] == ["finished", "raced out", "raced out"]
    # Differences to the only finished one, .5 in the mean: 2 is .1 ahead on p and .2 behind on q, 1 is .1 behind on p.
    assert [standing.told[0] for standing in ranked] == pytest.approx([0.5, 0.45, 0.4])
    assert ranked[1].why == "not among the best 1/2 of 2 variants after 2 fold runs"
    assert [line["blocks"] for line in log if line["event"] == "cleared"] == [2, 4, 2]


def test_halving_keeps_the_lowest_where_less_is_better() -> None:
    objective = [{"metric": "time/total", "direction": "minimize"}]
    search, _ = searching(of(variants=2, stop=HALVING, objectives=objective))
    while (job := search.next()) is not None:
        search.ended(job.key, End("finished", (), (3.0 - len(search.variants()),)))
    assert [standing.end for standing in search.ranking()] == ["finished", "finished"]  # 2 s, then 1 s


def test_a_margin_lets_more_on() -> None:
    search, _ = searching(of(variants=2, stop={**RACING, "margin": 0.06}))
    scores = iter([0.4, 0.6, 0.5, 0.5, 0.3, 0.6])
    for _ in range(6):
        job = search.next()
        assert job is not None
        search.ended(job.key, End("finished", (), (next(scores),)))
    job = search.next()
    assert job is not None and job.block == C


def test_an_estimate_never_wins() -> None:
    search, _ = searching(of(variants=3, stop={**RACING, "first": 1}))
    scores = iter([0.5, 0.5, 0.5, 0.5, 0.9, 0.9, -1.0, 0.8])
    while (job := search.next()) is not None:
        search.ended(job.key, End("finished", (), (next(scores),)))
    # The second variant is ahead on two folds and out after the third; the third one is behind it on the first fold,
    # and is told the finished one's mean and .3 more.
    ranked = search.ranking()
    assert [standing.end for standing in ranked] == ["finished", "raced out", "raced out"]
    assert max(standing.told[0] for standing in ranked) == pytest.approx(0.8)
    assert search.front() == ranked[:1] and ranked[0].told == (0.5,)


def test_asha_halts_within_a_loss_and_a_block_and_tells_the_curve() -> None:
    search, _ = searching(of(variants=6, stop=ASHA))
    running: dict[Key, Any] = {}
    for _ in range(24):  # every fold run of every variant
        job = search.next()
        assert job is not None
        running[job.key] = job
    first = [job for job in running.values() if job.block == A]
    guided = [job for job in first if job.variant.config.loss.name == "guide2d"]
    others = [job for job in first if job.variant.config.loss.name == "triplet"]

    def told(job: Any, scores: list[float]) -> list[bool]:
        return [search.epoch(job.key, epoch, score) is not None for epoch, score in enumerate(scores)]

    assert told(guided[0], [0.1, 0.2, 0.3, 0.4]) == [False] * 4  # alone at the rung of four epochs
    assert told(others[0], [0.0, 0.0, 0.0, 0.1]) == [False] * 4  # another loss has its own rung
    # The best so far counts, not the last epoch: .5 at the third.
    assert told(guided[1], [0.1, 0.2, 0.5, 0.2]) == [False] * 4
    assert told(guided[2], [0.1, 0.2, 0.3, 0.45]) == [False] * 4  # second of three: two go on
    assert told(others[1], [0.0, 0.0, 0.05, 0.05]) == [False] * 3 + [True]  # second of two: one goes on
    halted = others[1]
    sibling = next(job for job in running.values() if job.number == halted.number and job.block == B)
    assert search.epoch(sibling.key, 0, 0.9), "the other fold runs of a stopped variant cannot help it"
    assert search.halted(halted.key) == "partition 0, fold 0, seed 0: not among the best of its loss after 4 epochs"
    trial = trials(search)[halted.number]
    assert trial.state == TrialState.PRUNED
    assert trial.intermediate_values == {0: 0.0, 1: 0.0, 2: 0.05, 3: 0.05}
    with pytest.raises(ValueError, match="tells epoch 7 after 4 epochs"):
        search.epoch(guided[0].key, 7, 0.5)
    assert not search.epoch(guided[0].key, 2, 0.9), "an epoch heard before changes nothing"


# --- every end ------------------------------------------------------------------------------------------------------


def finish(search: Search, end_of: Callable[[int, Block], End]) -> None:
    while (job := search.next()) is not None:
        search.ended(job.key, end_of(job.number, job.block))
    assert search.done


@pytest.mark.parametrize(
    ("end", "state", "told"),
    [
        (End("finished", (), (0.8,)), TrialState.COMPLETE, 0.5 * 3 / 4 + 0.8 / 4),
        (End("failed", reason="no memory"), TrialState.FAIL, None),
        (End("diverged", (0.1,), reason="epoch 1"), TrialState.COMPLETE, 0.0),
    ],
)
def test_what_optuna_hears(end: End, state: TrialState, told: float | None) -> None:
    search, _ = searching(of(variants=1))
    finish(search, lambda number, block: end if block == C else End("finished", (), (0.5,)))
    (standing,) = search.ranking()
    trial = trials(search)[standing.number]
    assert standing.end == end.status and trial.state == state
    assert trial.value is None if told is None else trial.value == pytest.approx(told)
    assert len(search.front()) == (end.status == "finished")


def test_after_a_failed_fold_run_the_variant_gets_no_more() -> None:
    search, _ = searching(of(variants=2))
    job = search.next()
    assert job is not None
    search.ended(job.key, End("failed", reason="lost"))
    after = search.next()
    assert after is not None and after.number != job.number


def test_several_objectives() -> None:
    objectives = [
        {"metric": "best/val_f1_macro", "direction": "maximize"},
        {"metric": "best/length", "direction": "minimize"},
    ]
    search, _ = searching(of(variants=6, sampler="tpe", objectives=objectives))

    def end(number: int, block: Block) -> End:
        chosen = next(standing.variant for standing in search.ranking() if standing.number == number)
        length = chosen.config.embedding.length
        return End(
            "finished", (), (0.5 - (0.1 if chosen.config.loss.name == "triplet" else 0.01 * (length == 16)), length)
        )

    finish(search, end)
    front = search.front()
    assert [standing.variant.label for standing in front] == ["guide2d 4"]
    with pytest.raises(ValueError, match="stop rule 'racing' compares one score and the search has 2 objectives"):
        searching(of(objectives=objectives, stop=RACING))


def test_a_listed_space_is_asked_whole_and_then_is_spent() -> None:
    for sampler in ("random", "tpe", "qmc"):
        search, log = searching(of(variants=50, sampler=sampler))
        finish(search, lambda number, block: End("finished", (), (0.5 + number / 1000,)))
        assert sorted(v.label for v in search.variants()) == sorted(v.label for v in GRID)
        assert log[-1] == {"event": "spent"}
        refused = [line for line in log if line["event"] == "ask" and line["refused"]]
        assert all("asked before" in line["refused"] for line in refused)
        assert all(trials(search)[line["number"]].state == TrialState.FAIL for line in refused)


def test_values_that_make_no_variant_are_told_fail_and_another_is_asked() -> None:
    space = ListedSpace(GRID)

    def resolve(values: dict[str, Any]) -> Variant:
        if values["loss.name"] == "triplet":
            raise SpecError("search", ["triplet is not wanted"])
        return space.resolve(values)

    log: list[Decision] = []
    search = Search(space, BLOCKS, of(), resolve, record=log.append)
    finish(search, lambda number, block: End("finished", (), (0.5,)))
    assert {v.config.loss.name for v in search.variants()} == {"guide2d"} and len(search.variants()) == 3
    assert any(line.get("refused") == "triplet is not wanted" for line in log)


def test_failed_fold_runs_set_aside_open_their_variant_again() -> None:
    search, log = searching(of(variants=1))
    ends: dict[Key, End] = {}
    for status in ("finished", "finished", "failed"):
        job = search.next()
        assert job is not None
        ends[job.key] = End(status, (), (0.5,) if status == "finished" else ())  # type: ignore[arg-type]
        search.ended(job.key, ends[job.key])
    assert search.next() is None and search.done
    kept = {key: end for key, end in ends.items() if end.status == "finished"}
    again, log = searching(of(variants=1), log, kept)
    job = again.next()
    assert job is not None and job.block == C and not again.done
    again.ended(job.key, End("finished", (), (0.7,)))
    job = again.next()
    assert job is not None
    again.ended(job.key, End("finished", (), (0.7,)))
    assert again.next() is None and again.done
    assert again.ranking()[0].told == pytest.approx((0.6,))
    # And once more from that log, in which the variant has failed and finished.
    once_more, _ = searching(of(variants=1), log, {**kept, **again._ends})
    assert once_more.ranking()[0].end == "finished"


# --- samplers -------------------------------------------------------------------------------------------------------


class Numbers:
    """Two numbers, or one with another under a condition."""

    def __init__(self, conditional: bool) -> None:
        self._conditional = conditional

    def suggest(self, trial: BaseTrial) -> dict[str, Any]:
        values = {"embedding.length": trial.suggest_int("embedding.length", 2, 64)}
        if not self._conditional or values["embedding.length"] > 16:
            values["norm.weight"] = trial.suggest_float("norm.weight", 0.0, 1.0)
        return values

    def as_trial(self, values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        all_of = {
            "embedding.length": optuna.distributions.IntDistribution(2, 64),
            "norm.weight": optuna.distributions.FloatDistribution(0.0, 1.0),
        }
        return dict(values), {key: all_of[key] for key in values}

    def listed(self) -> None:
        return None


def numeric(values: dict[str, Any]) -> Variant:
    told = {
        "embedding": {"length": values["embedding.length"]},
        "norm": {"weight": values.get("norm.weight", 0.0)},
        "train": {"epochs": EPOCHS},
    }
    return Variant(str(values), Config.model_validate_json(json.dumps(told)), values, False)


def test_cma_es_is_refused_with_the_reason() -> None:
    assert "'loss.name' is a choice" in str(why_not_cmaes(ListedSpace(GRID), 1))
    assert why_not_cmaes(Numbers(conditional=True), 1) == "'norm.weight' exists under a condition only"
    assert why_not_cmaes(Numbers(conditional=False), 2) == "it has one objective only"
    with pytest.raises(ValueError, match=r"sampler cmaes does not fit this search: 'loss.name' is a choice.*use tpe"):
        searching(of(sampler="cmaes"))


@pytest.mark.parametrize("sampler", ["random", "tpe", "qmc", "cmaes"])
@pytest.mark.parametrize("conditional", [False, True])
def test_every_sampler_goes_on_after_a_restart_as_it_would_have(sampler: str, conditional: bool) -> None:
    if sampler == "cmaes" and conditional:
        return  # refused, see above
    space, told = Numbers(conditional), of(sampler=sampler, variants=14)

    def run(stop_after: int, log: list[Decision], ends: dict[Key, End]) -> None:
        search = Search(space, BLOCKS[:1], told, numeric, log=list(log), ended=ends, record=log.append)
        for _ in range(stop_after):
            job = search.next()
            if job is None:
                return
            score = -abs(job.variant.config.embedding.length - 30) - float(job.variant.config.norm.weight)
            ends[job.key] = End("finished", (), (score,))
            search.ended(job.key, ends[job.key])

    straight: list[Decision] = []
    run(100, straight, {})
    broken: list[Decision] = []
    ends: dict[Key, End] = {}
    for _ in range(20):
        run(3, broken, ends)
    assert broken == straight
    assert len({line["config"] for line in straight if line["event"] == "ask" and line["config"]}) == 14


def test_a_recorded_variant_competes_teaches_and_is_none_of_those_asked() -> None:
    known, values = GRID[4], {"loss.name": "triplet", "embedding.length": 8}
    ends = {(known.config.id, *block): End("finished", (), (0.8 + fold / 10,)) for fold, block in enumerate(BLOCKS)}
    search, log = searching(of(variants=2, stop=RACING))
    search.warm_start(values, "earlier-1", ends)
    assert [line["event"] for line in log] == ["warm", "told"] and search.knows(known.config.id) and not search.begun
    assert trials(search)[0].value == pytest.approx(0.95) and trials(search)[0].params["embedding.length"] == 8
    with pytest.raises(ValueError, match=r"earlier-1 cannot start the search with .*asked before, as 0"):
        search.warm_start(values, "earlier-1", ends)
    seen = dict(ends)
    while (job := search.next()) is not None:
        assert job.variant is not known
        seen[job.key] = End("finished", (), (0.5,))
        search.ended(job.key, seen[job.key])
    best, *others = search.ranking()
    assert search.done and best.variant is known and best.source == "earlier-1" and search.front() == [best]
    assert [(standing.end, standing.blocks) for standing in others] == [("raced out", 2)] * 2, "it races with them"
    with pytest.raises(ValueError, match="it has begun"):
        search.warm_start({"loss.name": "triplet", "embedding.length": 16}, "earlier-1", {})
    # Killed between the two lines of the warm start, or at the end: the same state and the same log.
    for cut, known_then, whole in ((1, ends, log[:2]), (2, ends, log[:2]), (len(log), seen, log)):
        again, relog = searching(of(variants=2, stop=RACING), log[:cut], known_then)
        assert relog == whole and again.ranking()[0].source == "earlier-1"
    assert again.next() is None and again.done


def test_a_baseline_that_is_recorded_is_not_asked_again() -> None:
    space, first = ListedSpace(GRID), GRID[0].varied
    search = Search(space, BLOCKS, of(variants=1), space.resolve, first=first)
    search.warm_start(dict(first), "earlier-1", {(GRID[0].config.id, *b): End("finished", (), (0.5,)) for b in BLOCKS})
    job = search.next()
    assert job is not None and job.number >= 1 and job.variant is not GRID[0]


# --- any course -----------------------------------------------------------------------------------------------------


def score(job: Any, epoch: int) -> float:
    rng = np.random.default_rng([GRID.index(job.variant), *job.block])
    return float(np.round(rng.uniform(0.2, 0.8) * (1 - 0.5 ** (epoch + 1)), 3))


def course(
    told: SearchSettings, picks: list[int], workers: int, breaks: dict[int, str], restart_at: int | None
) -> tuple[Search, list[Decision], list[Key]]:
    """A search driven by `picks` (which of the running fold runs ends an epoch next), killed before one of them.

    The fold runs numbered in `breaks` (in the order of variants and blocks) end so at their second epoch.
    """
    search, log = searching(told)
    ends: dict[Key, End] = {}
    running: dict[Key, tuple[Any, list[float]]] = {}
    asked: list[Key] = []
    for step in range(10_000):
        if step == restart_at:
            log = json.loads(json.dumps(log))
            search, log = searching(told, log, ends, {key: curve for key, (_, curve) in running.items()})
            again = [search.next() for _ in running]
            assert {job.key for job in again if job is not None} == set(running), "what was under way goes on first"
        while len(running) < workers and (job := search.next()) is not None:
            running[job.key] = (job, [])
            asked.append(job.key)
        if not running:
            break
        key = list(running)[picks[step % len(picks)] % len(running)]
        job, curve = running[key]
        place = GRID.index(job.variant) * len(BLOCKS) + BLOCKS.index(job.block)
        end: End | None = None
        curve.append(score(job, len(curve)))
        if search.epoch(key, len(curve) - 1, curve[-1]) is not None:
            end = End("stopped", tuple(curve))
        elif len(curve) == 2 and place in breaks:
            end = End(breaks[place], tuple(curve))  # type: ignore[arg-type]
        elif len(curve) == EPOCHS:
            end = End("finished", tuple(curve), (max(curve),))
        if end is not None:
            del running[key]
            ends[key] = end
            search.ended(key, end)
    return search, log, asked


STATE = {
    "finished": TrialState.COMPLETE,
    "raced out": TrialState.COMPLETE,
    "diverged": TrialState.COMPLETE,
    "failed": TrialState.FAIL,
    "stopped": TrialState.PRUNED,
}


@settings(max_examples=40, deadline=None)
@given(
    stop=st.sampled_from([NONE, RACING, {**RACING, "first": 1, "margin": 0.05}, HALVING, ASHA]),
    sampler=st.sampled_from(["random", "tpe", "qmc"]),
    variants=st.integers(1, 6),
    workers=st.integers(1, 5),
    picks=st.lists(st.integers(0, 59), min_size=1, max_size=30),
    breaks=st.dictionaries(st.integers(0, 23), st.sampled_from(["failed", "diverged"]), max_size=3),
    restart_at=st.integers(0, 150),
)
def test_any_course_ends_told_asks_nothing_twice_and_survives_a_restart(
    stop: dict[str, Any],
    sampler: str,
    variants: int,
    workers: int,
    picks: list[int],
    breaks: dict[int, str],
    restart_at: int,
) -> None:
    told = of(stop=stop, sampler=sampler, variants=variants)
    search, log, asked = course(told, picks, workers, breaks, None)
    assert search.done and search.next() is None
    assert len(set(asked)) == len(asked)
    for standing in search.ranking():
        assert standing.end is not None
        assert trials(search)[standing.number].state == STATE[standing.end]
        if standing.end == "finished":
            assert standing.blocks == len(BLOCKS) and standing.told == pytest.approx((standing.score,))
    assert not any(trial.state == TrialState.RUNNING for trial in trials(search))
    again, log_again, asked_again = course(told, picks, workers, breaks, restart_at)
    assert log_again == log and asked_again == asked
    assert [trial.state for trial in trials(again)] == [trial.state for trial in trials(search)]
    assert [trial.values for trial in trials(again)] == [trial.values for trial in trials(search)]


# --- a log that is not of this search -------------------------------------------------------------------------------


def test_a_log_of_another_search_is_refused() -> None:
    search, log = searching(of())
    assert search.next() is not None
    with pytest.raises(ValueError, match=r"'event': 'leap'.* is no decision"):
        searching(of(), [{"event": "leap"}])
    with pytest.raises(ValueError, match="the log of the search goes from ask 0 to 1"):
        searching(of(), [{**log[0], "number": 1}])
    with pytest.raises(ValueError, match="made configuration 000000000000 and now makes configuration"):
        searching(of(), [{**log[0], "config": "000000000000"}])
    with pytest.raises(ValueError, match="racing starts with 4 fold runs of a variant, and there are only 4"):
        searching(of(stop={**RACING, "first": 4}))
    with pytest.raises(ValueError, match="never asked for fold run"):
        search.ended(("none", 0, 0, 0), End("failed"))


def test_a_fold_run_ends_once() -> None:
    search, _ = searching(of())
    job = search.next()
    assert job is not None
    search.ended(job.key, End("failed"))
    with pytest.raises(ValueError, match="has ended twice"):
        search.ended(job.key, End("failed"))
