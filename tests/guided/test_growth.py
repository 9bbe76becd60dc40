from __future__ import annotations

import json
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import oracles
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from guided.config import Config, Embedding, Train
from guided.data import Dataset
from guided.folds import make_folds
from guided.growth import growth_factor, growth_patience, growths_needed, is_warmup, length_at, reaches_length
from guided.guide import load_guide
from guided.train import Epoch, run_fold

lengths = st.integers(2, 1024)
factors = st.integers(1, 64)
steps = st.integers(2, 8)
by_epoch = st.sampled_from(["paper", "literal", "staged"])
readings = st.sampled_from(["paper", "literal"])
# Few values, so that ties, rises and stalls all come about.
some_scores = st.lists(st.integers(0, 4).map(lambda tenth: tenth / 10), max_size=60)


def embedding(**values: Any) -> Embedding:
    return Embedding(**values)


def grown(scores: list[float], config: Embedding, epochs: int) -> list[int]:
    """Lengths of epochs 0 … len(scores) of a run with these validation scores, as the training loop asks for them."""
    past: list[tuple[int, float]] = []
    for score in scores:
        past.append((length_at(len(past), config, epochs, past), score))
    return [length for length, _ in past] + [length_at(len(past), config, epochs, past)]


class TestOracles:
    @given(epoch=st.integers(0, 2000), longest=lengths, rule=readings)
    def test_factor_one_is_the_paper_in_both_readings(self, epoch: int, longest: int, rule: str) -> None:
        config = embedding(length=longest, factor=1, rule=rule)
        assert length_at(epoch, config, 1000) == oracles.length_paper(epoch, longest)

    @given(epoch=st.integers(0, 120), longest=lengths, factor=factors)
    def test_paper(self, epoch: int, longest: int, factor: int) -> None:
        config = embedding(length=longest, factor=factor)
        assert length_at(epoch, config, 1000) == oracles.length_growing(epoch, longest, factor)

    @given(epoch=st.integers(0, 300), longest=st.integers(3, 1024), factor=factors)
    def test_literal(self, epoch: int, longest: int, factor: int) -> None:
        config = embedding(length=longest, factor=factor, rule="literal")
        assert length_at(epoch, config, 1000) == oracles.length_literal(epoch, longest, factor)

    @given(epoch=st.integers(0, 400), longest=lengths, step=steps, epochs=st.integers(1, 400))
    def test_staged(self, epoch: int, longest: int, step: int, epochs: int) -> None:
        config = embedding(length=longest, step=step, rule="staged")
        full_at = max(int(0.6 * epochs), 3)
        assert length_at(epoch, config, epochs) == oracles.length_staged(epoch, longest, step, full_at)

    @given(scores=some_scores, longest=st.integers(2, 200), step=steps, patience=st.integers(1, 6))
    def test_plateau(self, scores: list[float], longest: int, step: int, patience: int) -> None:
        config = embedding(length=longest, step=step, rule="plateau", patience=patience)
        assert grown(scores, config, 1000) == oracles.lengths_plateau(scores, longest, step, patience)


@given(longest=lengths, factor=factors)
def test_the_default_reading_keeps_the_first_three_epochs_for_every_factor(longest: int, factor: int) -> None:
    config = Embedding(length=longest, factor=factor)
    assert [length_at(epoch, config, 100) for epoch in range(3)] == [2, 2, 2]
    assert length_at(3, config, 100) == min(2 + factor, longest)


def test_the_literal_reading_multiplies_the_epoch() -> None:
    config = Embedding(length=1024, factor=4, rule="literal")
    assert [length_at(epoch, config, 1000) for epoch in (0, 1, 2, 10, 256, 999)] == [2, 4, 8, 40, 1024, 1024]


@given(
    longest=lengths,
    factor=st.one_of(st.just("auto"), factors),
    step=steps,
    rule=by_epoch,
    epochs=st.integers(1, 300),
    warmup=st.booleans(),
    growing=st.booleans(),
)
def test_the_length_never_shrinks_and_is_capped(
    longest: int, factor: int | str, step: int, rule: str, epochs: int, warmup: bool, growing: bool
) -> None:
    config = embedding(length=longest, factor=factor, step=step, rule=rule, warmup=warmup, growing=growing)
    course = [length_at(epoch, config, epochs) for epoch in range(epochs)]
    assert all(2 <= n <= longest for n in course)
    assert all(later >= earlier for earlier, later in pairwise(course))


@given(longest=lengths, rule=readings, epochs=st.integers(5, 400))
def test_auto_reaches_the_length_at_sixty_percent_and_no_smaller_factor_does(
    longest: int, rule: str, epochs: int
) -> None:
    config = embedding(length=longest, rule=rule)
    at = max(int(0.6 * epochs), 3)
    assert length_at(at, config, epochs) == longest
    factor = growth_factor(config, epochs)
    if factor > 1:
        smaller = embedding(length=longest, factor=factor - 1, rule=rule)
        assert length_at(at, smaller, epochs) < longest


class TestStaged:
    def test_doubling_spreads_evenly_over_sixty_percent_of_the_budget(self) -> None:
        """60 % of 105 epochs is epoch 63; from epoch 2 that is 61 epochs for the five doublings of 2 to 64."""
        config = embedding(length=64, rule="staged")
        course = [length_at(epoch, config, 105) for epoch in range(105)]
        opened = [epoch for epoch in range(1, 105) if course[epoch] > course[epoch - 1]]
        assert [course[epoch] for epoch in opened] == [4, 8, 16, 32, 64]
        assert opened == [15, 27, 39, 51, 63]  # 2 + 61 k / 5, rounded up

    @given(longest=lengths, step=steps, epochs=st.integers(5, 400))
    def test_it_is_full_at_sixty_percent_and_not_before(self, longest: int, step: int, epochs: int) -> None:
        assume(longest > 2)
        config = embedding(length=longest, step=step, rule="staged")
        at = max(int(0.6 * epochs), 3)
        assert length_at(at, config, epochs) == longest
        assert length_at(at - 1, config, epochs) < longest

    def test_the_last_stage_ends_at_a_length_that_is_no_power(self) -> None:
        config = embedding(length=100, rule="staged", step=4)
        assert sorted({length_at(epoch, config, 200) for epoch in range(200)}) == [2, 8, 32, 100]


class TestPlateau:
    config = Embedding(length=9, rule="plateau", patience=2)

    def test_it_grows_when_the_best_score_of_its_length_is_as_old_as_the_patience(self) -> None:
        #          warm-up         length 2            length 4       length 8; the stall there leads to the full 9
        scores = [0.9, 0.9, 0.9, 0.1, 0.2, 0.2, 0.1, 0.0, 0.3, 0.2, 0.2, 0.1, 0.1, 0.1, 0.0, 0.0]
        assert grown(scores, self.config, 100) == [2, 2, 2, 2, 2, 2, 2, 4, 4, 4, 4, 8, 8, 8, 9, 9, 9]

    def test_it_does_not_grow_while_scores_rise(self) -> None:
        assert set(grown([k / 100 for k in range(50)], self.config, 100)) == {2}

    def test_a_fall_through_growing_is_no_stall(self) -> None:
        stalled = [0.0, 0.0, 0.0, 0.8, 0.8, 0.8]
        rising = [0.1, 0.2, 0.3, 0.4, 0.5]
        assert grown(stalled + rising, self.config, 100)[6:] == [4] * 6

    @given(scores=some_scores, longest=lengths, step=steps, patience=st.integers(1, 6))
    def test_never_shrinks_is_capped_and_keeps_every_length_longer_than_the_patience(
        self, scores: list[float], longest: int, step: int, patience: int
    ) -> None:
        config = embedding(length=longest, step=step, rule="plateau", patience=patience)
        course = grown(scores, config, 1000)
        assert all(2 <= n <= longest for n in course)
        assert all(later >= earlier for earlier, later in pairwise(course))
        assert longest == 2 or course[:4] == [2] * len(course[:4])
        opened = [0, *(epoch for epoch in range(1, len(course)) if course[epoch] > course[epoch - 1])]
        assert all(later - earlier > patience for earlier, later in pairwise(opened))

    @given(scores=some_scores, stop=st.integers(0, 60))
    def test_the_past_alone_decides_so_that_a_resume_is_exact(self, scores: list[float], stop: int) -> None:
        config = embedding(length=64, rule="plateau", patience=1)
        straight = grown(scores, config, 100)
        past = list(zip(straight, scores, strict=False))[:stop]
        assert length_at(len(past), config, 100, past) == straight[len(past)]

    @given(longest=st.integers(3, 1024), step=steps, epochs=st.integers(1, 400))
    def test_auto_is_the_longest_patience_that_can_still_be_full_at_sixty_percent(
        self, longest: int, step: int, epochs: int
    ) -> None:
        config = embedding(length=longest, step=step, rule="plateau")
        patience = growth_patience(config, epochs)

        def full_at(patience: int) -> int:
            course = oracles.lengths_plateau([0.0] * (4 + 10 * (patience + 1)), longest, step, patience)
            return course.index(longest)

        at = max(int(0.6 * epochs), 3)
        assert patience == 1 or full_at(patience) <= at
        assert full_at(patience + 1) > at

    def test_a_past_of_another_length_is_refused(self) -> None:
        with pytest.raises(ValueError, match="all 5 epochs so far, got 4"):
            length_at(5, self.config, 100, [(2, 0.1)] * 4)

    def test_a_run_that_goes_on_from_a_checkpoint_grows_at_the_stall_it_had_begun(
        self, marrow: Dataset, quick: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("guided.train.macro_f1", lambda *arguments: 0.5)
        values = quick.model_dump(mode="json") | {
            "loss": {"name": "guide2d"},
            "embedding": {"length": 6, "rule": "plateau", "patience": 1},
            "classifier": {"families": ["knn"], "knn_k": [5], "knn_weights": ["uniform"]},
        }
        config = Config.model_validate_json(json.dumps(values))
        inputs = marrow, make_folds(marrow, config.folds)[0], load_guide(config.guide, marrow.classes)
        first = run_fold(*inputs, config, seed=0, checkpoint=tmp_path)
        before: list[Epoch] = [next(first) for _ in range(5)]
        first.close()
        after = list(run_fold(*inputs, config, seed=0, checkpoint=tmp_path))
        assert [epoch["embedding/length"] for epoch in before + after] == [2, 2, 2, 2, 2, 4]


class TestSwitches:
    @pytest.mark.parametrize("warmup", [True, False])
    @pytest.mark.parametrize(
        ("rule", "factor", "expected"),
        [
            ("paper", 1, [2, 2, 2, 3, 4, 5, 6]),
            ("literal", 1, [2, 2, 2, 3, 4, 5, 6]),
            ("paper", 4, [2, 2, 2, 6, 9, 9, 9]),
            ("literal", 4, [2, 4, 8, 9, 9, 9, 9]),
            ("staged", "auto", [2, 2, 2, 2, 4, 4, 8]),  # 60 % of 12 epochs is epoch 7; 3 growths in 5 epochs
            ("plateau", "auto", [2, 2, 2, 2, 2, 4, 4]),
        ],
    )
    def test_growing_the_lengths_are_those_of_the_rule_with_and_without_warmup(
        self, warmup: bool, rule: str, factor: Any, expected: list[int]
    ) -> None:
        config = embedding(length=9, factor=factor, rule=rule, warmup=warmup)
        assert grown([0.5] * 6, config, 12) == expected
        assert [is_warmup(epoch, config) for epoch in range(7)] == [warmup] * 3 + [False] * 4

    @pytest.mark.parametrize(("warmup", "expected"), [(True, [2, 2, 2, 9, 9]), (False, [9, 9, 9, 9, 9])])
    @pytest.mark.parametrize("rule", ["paper", "literal", "staged", "plateau"])
    def test_not_growing_the_rule_means_nothing(self, warmup: bool, rule: str, expected: list[int]) -> None:
        config = embedding(length=9, rule=rule, warmup=warmup, growing=False)
        assert [length_at(epoch, config, 50) for epoch in range(5)] == expected
        assert [is_warmup(epoch, config) for epoch in range(5)] == [warmup] * 3 + [False] * 2


class TestReaches:
    def test_a_budget_too_short_for_the_paper_is_told(self) -> None:
        assert reaches_length(Embedding(length=64, factor=1), Train(epochs=64)) is False
        assert reaches_length(Embedding(length=64, factor=1), Train(epochs=65)) is True
        assert reaches_length(Embedding(length=64), Train(epochs=10)) is True

    def test_a_warmup_alone_keeps_the_length_from_three_epochs(self) -> None:
        assert reaches_length(Embedding(growing=False), Train(epochs=3)) is False
        assert reaches_length(Embedding(growing=False), Train(epochs=4)) is True

    @given(longest=lengths, rule=by_epoch, epochs=st.integers(4, 300))
    def test_auto_and_staged_always_do(self, longest: int, rule: str, epochs: int) -> None:
        assert reaches_length(embedding(length=longest, rule=rule), Train(epochs=epochs)) is True

    @given(longest=st.integers(3, 300), step=steps, patience=st.integers(1, 6), epochs=st.integers(1, 60))
    def test_plateau_is_not_guaranteed_and_impossible_where_even_constant_stalls_are_too_slow(
        self, longest: int, step: int, patience: int, epochs: int
    ) -> None:
        config = embedding(length=longest, step=step, rule="plateau", patience=patience)
        stalling = oracles.lengths_plateau([0.0] * (epochs - 1), longest, step, patience)
        expected = None if stalling[-1] == longest else False
        assert reaches_length(config, Train(epochs=epochs)) is expected

    def test_plateau_never_does_where_the_run_stops_at_its_first_stall(self) -> None:
        config = embedding(length=4, rule="plateau", patience=5)
        assert reaches_length(config, Train(epochs=100, patience=5)) is False
        assert reaches_length(config, Train(epochs=100, patience=6)) is None

    def test_an_embedding_of_length_two_has_nothing_to_grow(self) -> None:
        for rule in ("paper", "literal", "staged", "plateau"):
            assert reaches_length(embedding(length=2, rule=rule), Train(epochs=1)) is True

    def test_growths_are_counted(self) -> None:
        assert [growths_needed(embedding(length=n, rule="staged")) for n in (3, 4, 5, 64, 1024)] == [1, 1, 2, 5, 9]


class TestIds:
    """Variants that train alike share an id; a sweep then says that they differ in nothing."""

    @staticmethod
    def id_of(**values: Any) -> str:
        return Config(embedding=Embedding(**values)).id

    @pytest.mark.parametrize(
        ("one", "other"),
        [
            ({"growing": False, "rule": "staged", "step": 3}, {"growing": False}),
            ({"growing": False, "factor": 1}, {"growing": False}),
            ({"length": 2, "growing": True, "rule": "plateau", "patience": 3}, {"length": 2, "growing": False}),
            ({"rule": "staged", "factor": 4, "patience": 9}, {"rule": "staged"}),
            ({"rule": "plateau", "factor": 4}, {"rule": "plateau"}),
            ({"step": 3, "patience": 7}, {}),
            ({"rule": "literal", "factor": 1}, {"factor": 1}),
        ],
    )
    def test_an_option_without_meaning_does_not_make_another_variant(
        self, one: dict[str, Any], other: dict[str, Any]
    ) -> None:
        assert self.id_of(**one) == self.id_of(**other)

    def test_options_with_meaning_do(self) -> None:
        ids = [
            self.id_of(warmup=warmup, **values)
            for warmup, values in product(
                (True, False),
                (
                    {},
                    {"growing": False},
                    {"factor": 1},
                    {"factor": 4},
                    {"rule": "literal"},
                    {"rule": "literal", "factor": 4},
                    {"rule": "staged"},
                    {"rule": "staged", "step": 4},
                    {"rule": "plateau"},
                    {"rule": "plateau", "step": 4},
                    {"rule": "plateau", "patience": 4},
                ),
            )
        ]
        assert len(set(ids)) == len(ids)


@pytest.mark.parametrize(("length", "factor"), [(2, 1), (64, 1), (256, 1), (1023, 1), (1024, 4)])
def test_the_papers_factor_is_one_and_four_at_1024(length: int, factor: int) -> None:
    config = Embedding(length=length, factor="paper")
    assert growth_factor(config, 1000) == factor
    assert length_at(10, config, 1000) == min(2 + factor * 8, length)
