from __future__ import annotations

from itertools import pairwise

import oracles
import pytest
from hypothesis import given
from hypothesis import strategies as st

from guided.config import Embedding
from guided.growth import growth_factor, is_warmup, length_at, reaches_length

lengths = st.integers(2, 1024)
factors = st.integers(1, 64)
rules = st.sampled_from(["paper", "literal"])


@given(epoch=st.integers(0, 2000), longest=lengths, rule=rules)
def test_factor_one_is_the_paper_in_both_readings(epoch: int, longest: int, rule: str) -> None:
    config = Embedding(length=longest, factor=1, rule=rule)  # type: ignore[arg-type]
    assert length_at(epoch, config, 1000) == oracles.length_paper(epoch, longest)


@given(longest=lengths, factor=factors)
def test_the_default_reading_keeps_the_first_three_epochs_for_every_factor(longest: int, factor: int) -> None:
    config = Embedding(length=longest, factor=factor)
    assert [length_at(epoch, config, 100) for epoch in range(3)] == [2, 2, 2]
    assert length_at(3, config, 100) == min(2 + factor, longest)


def test_the_literal_reading_multiplies_the_epoch() -> None:
    config = Embedding(length=1024, factor=4, rule="literal")
    assert [length_at(epoch, config, 1000) for epoch in (0, 1, 2, 10, 256, 999)] == [2, 4, 8, 40, 1024, 1024]


@given(longest=lengths, factor=st.one_of(st.just("auto"), factors), rule=rules, epochs=st.integers(1, 300))
def test_growth_never_shrinks_and_is_capped(longest: int, factor: int | str, rule: str, epochs: int) -> None:
    config = Embedding(length=longest, factor=factor, rule=rule)  # type: ignore[arg-type]
    grown = [length_at(epoch, config, epochs) for epoch in range(epochs)]
    assert all(2 <= n <= longest for n in grown)
    assert all(later >= earlier for earlier, later in pairwise(grown))


@given(longest=lengths, rule=rules, epochs=st.integers(5, 400))
def test_auto_reaches_the_length_at_sixty_percent_and_no_smaller_factor_does(
    longest: int, rule: str, epochs: int
) -> None:
    config = Embedding(length=longest, rule=rule)  # type: ignore[arg-type]
    at = max(int(0.6 * epochs), 3)
    assert length_at(at, config, epochs) == longest
    factor = growth_factor(config, epochs)
    if factor > 1:
        smaller = Embedding(length=longest, factor=factor - 1, rule=rule)  # type: ignore[arg-type]
        assert length_at(at, smaller, epochs) < longest


@pytest.mark.parametrize(
    ("warmup", "growing", "expected"),
    [
        (True, True, [2, 2, 2, 3, 4]),
        (True, False, [2, 2, 2, 9, 9]),
        (False, True, [2, 2, 2, 3, 4]),
        (False, False, [9, 9, 9, 9, 9]),
    ],
)
def test_warmup_and_growth_are_two_switches(warmup: bool, growing: bool, expected: list[int]) -> None:
    config = Embedding(length=9, factor=1, warmup=warmup, growing=growing)
    assert [length_at(epoch, config, 50) for epoch in range(5)] == expected
    assert [is_warmup(epoch, config) for epoch in range(5)] == [warmup] * 3 + [False] * 2


def test_a_budget_too_short_for_the_paper_is_told() -> None:
    assert not reaches_length(Embedding(length=64, factor=1), 10)
    assert reaches_length(Embedding(length=64), 10)
