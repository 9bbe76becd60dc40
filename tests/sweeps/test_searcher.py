"""Tune's side of a search: its contract with Tune, the log, and a fold run that is stopped on its way."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from ray.tune.search import Searcher

from guided.config import Config
from sweeps import schema
from sweeps.asked import append_to, read_log
from sweeps.engine import _place
from sweeps.records import Records
from sweeps.replay import ListedSpace
from sweeps.rules import Block
from sweeps.searcher import FoldRunSearcher
from sweeps.spec import SearchSettings, Variant, load_sweep
from sweeps.strategy import Decision, End, Job, Key, Search
from sweeps.study import Study, make_study
from sweeps.trainable import FoldRunTrial

BLOCKS: tuple[Block, ...] = ((0, 0, 0), (0, 1, 0))


def variant(length: int) -> Variant:
    told = {"embedding": {"length": length, "warmup": False}, "train": {"epochs": 4}}
    return Variant(str(length), Config.model_validate_json(json.dumps(told)), {"embedding.length": length}, False)


GRID = [variant(length) for length in (4, 8, 16)]


END = End("finished", (), (0.5,))


class World:
    """A searcher over the small grid, with ends given by hand."""

    def __init__(self, most: int | None = None, **stop: Any) -> None:
        settings = {"sampler": "random", "variants": 3, "startup": 1, "seed": 0, "stop": {"rule": "none"} | stop}
        space = ListedSpace(GRID)
        told = SearchSettings.model_validate_json(json.dumps(settings))
        self.search = Search(space, BLOCKS, told, space.resolve)
        self.ends: dict[Key, End] = {}
        self.launched: list[Key] = []
        self.halted: list[tuple[Key, str]] = []
        self.searcher = FoldRunSearcher(
            self.search, self.launch, self.ends.get, lambda key, reason: self.halted.append((key, reason)), most
        )

    def launch(self, job: Job) -> dict[str, Any] | End:
        if job.key in self.ends:
            return self.ends[job.key]
        self.launched.append(job.key)
        return {"fold_run": str(job.key)}


def test_the_searcher_waits_only_while_something_is_under_way_and_then_says_it_has_finished() -> None:
    world = World(rule="racing", first=1, margin=0.0)
    trials, number = [], 0
    while True:
        told = world.searcher.suggest(f"trial {number}")
        if told == Searcher.FINISHED:
            break
        if told is None:
            assert trials, "None while nothing is under way would block Tune"
        else:
            trials.append((f"trial {number}", world.launched[-1]))
            number += 1
        if told is None or len(trials) == 2:
            trial, key = trials.pop(0)
            world.ends[key] = End("finished", (), (0.5,))
            world.searcher.on_trial_complete(trial, {"done": True})
    assert not trials and world.search.done
    assert len(set(world.launched)) == len(world.launched) == 6  # ties go on


def test_what_is_recorded_is_not_launched() -> None:
    world = World()
    for each in GRID:
        for block in BLOCKS:
            world.ends[(each.config.id, *block)] = End("finished", (), (0.5,))
    assert world.searcher.suggest("trial") == Searcher.FINISHED
    assert not world.launched and world.search.done


def test_no_more_fold_runs_are_begun_than_a_budget_leaves() -> None:
    world = World(most=3)
    world.ends[(GRID[0].config.id, *BLOCKS[0])] = world.ends[(GRID[1].config.id, *BLOCKS[0])] = END  # count as well
    told = [world.searcher.suggest(str(trial)) for trial in range(8)]
    assert 1 <= len(world.launched) <= 3 and told[-1] is None, "the others wait for what is under way"
    for trial, key in enumerate(list(world.launched)):
        world.ends[key] = END
        world.searcher.on_trial_complete(str(trial), {"done": True})
    assert world.searcher.suggest("one more") == Searcher.FINISHED and not world.search.done
    assert len([key for key in world.search.started()]) == 3


def test_a_trial_without_a_record_waits_until_it_has_one() -> None:
    world = World()
    first, second = (world.launched[-1] for trial in "ab" if world.searcher.suggest(trial))
    world.searcher.on_trial_complete("a", {"epoch": 1})
    world.searcher.on_trial_complete("b", error=True)  # the driver writes its record a moment later
    assert world.search.ranking()[0].end is None and not world.searcher.catch_up()
    world.ends[second] = End("failed", reason="ran out of luck")
    assert world.searcher.catch_up() and world.search.ranking()[0].end == "failed"
    # What ran out of memory is tried again alone; the search ends for Tune when nothing else is left to do.
    number = 0
    while (told := world.searcher.suggest(f"more {number}")) != Searcher.FINISHED:
        assert told is not None
        world.ends[world.launched[-1]] = End("finished", (), (0.5,))
        world.searcher.on_trial_complete(f"more {number}", {"done": True})
        number += 1
    assert first not in world.ends


def test_a_variant_behind_is_halted_on_every_fold_before_its_next_epoch() -> None:
    world = World(rule="asha", min_epochs=1, eta=2)
    for trial in range(6):
        world.searcher.suggest(str(trial))
    first = [key for key in world.launched if key[1:] == BLOCKS[0]]
    for place, score in ((0, 0.5), (2, 0.4)):
        world.searcher.on_trial_result(str(place), {"epoch": 0, "val_f1": score})
    # Its other fold, which is under way too, does not wait for its own next epoch to hear of it.
    assert [key for key, _ in world.halted] == [(first[1][0], *block) for block in BLOCKS]
    assert {why for _, why in world.halted} == {
        "partition 0, fold 0, seed 0: not among the best of its loss after 1 epochs"
    }
    world.searcher.on_trial_result("2", {"epoch": 1, "done": True})  # the line that says it is over is no epoch


def test_the_searcher_can_be_pickled_for_tune() -> None:
    searcher = World().searcher
    assert type(pickle.loads(pickle.dumps(searcher))) is Searcher


# --- the log --------------------------------------------------------------------------------------------------------


def test_the_log_keeps_whole_lines_and_drops_one_that_was_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "asked.jsonl"
    assert read_log(path) == []
    ask = {"event": "ask", "number": 0, "values": {"norm.weight": 0.1 + 0.2}, "config": "", "refused": "no"}
    decisions: list[Decision] = [ask, {"event": "spent"}]
    record = append_to(path)
    for decision in decisions:
        record(decision)
    assert read_log(path) == decisions
    whole = path.read_bytes()
    for cut in range(1, len('{"event": "spent"}') + 1):
        path.write_bytes(whole[:-cut])
        assert read_log(path) == decisions[:1]
        append_to(path)(decisions[1])
        assert path.read_bytes() == whole
    path.write_bytes(whole[:3])
    assert read_log(path) == [] and path.read_bytes() == whole[:3], "reading changes nothing"
    append_to(path)
    assert path.read_bytes() == b""
    for wrong in (b"{", b"[]", b"{}", b"3", b'{"event": 1}', b'{"event": "won"}', b'{"event": "start", "number": 0}'):
        path.write_bytes(wrong + b"\n" + whole)
        with pytest.raises(ValueError, match=r"line 1 of .*asked.jsonl is damaged; restore the file, or delete it"):
            read_log(path)


# --- a fold run that is stopped -------------------------------------------------------------------------------------

SETTINGS = (
    "data.cells=400 data.size=16 train.epochs=4 train.batch_size=32 folds.count=3 "
    "classifier.families=[knn] validation.classifier=centroid"
)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    folder = tmp_path_factory.mktemp("stopped")
    path = folder / "lengths.yaml"
    path.write_text(
        "question: Which length?\nkind: ablation\nbase: {loss.name: guide2d}\n"
        "vary: {embedding.length: [4, 8]}\nbaseline: {embedding.length: 4}\n"
    )
    made = make_study(load_sweep(str(path), preset="laptop", settings=SETTINGS), folder / "out", progress=False)
    made.write()
    return made


def trial_of(study: Study, run_id: str) -> FoldRunTrial:
    return FoldRunTrial({"fold_run": run_id, **_place(study)})


def test_a_stopped_fold_run_leaves_its_curve_and_no_test_score(study: Study) -> None:
    records, run = Records(study.out), study.fold_runs[0]
    trial = trial_of(study, run.id)
    told = [trial.step() for _ in range(2)]
    records.ask_stop(run.id, "it is behind")
    # The worker is lost; another goes on from the checkpoint and reads the word that was left.
    trial.cleanup()
    trial = trial_of(study, run.id)
    assert trial.step() == {"epoch": 2, "done": True}
    record = records.read(run.id)
    assert record is not None and record.status == "stopped" and record.reason == "it is behind"
    assert [epoch[schema.VAL_F1] for epoch in record.history] == [line["val_f1"] for line in told]
    assert record.metrics == {} and record.artifacts() == []
    assert not records.checkpoint(run.id).exists()


def test_a_fold_run_stopped_before_its_first_epoch_has_an_empty_curve(study: Study) -> None:
    records, run = Records(study.out), study.fold_runs[1]
    records.ask_stop(run.id, "its variant is out")
    trial = trial_of(study, run.id)
    assert trial.step()["done"]
    record = records.read(run.id)
    assert record is not None and record.status == "stopped" and record.history == []
