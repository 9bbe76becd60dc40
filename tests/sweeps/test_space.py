"""Spaces: what they give always fits their conditions, and Optuna's form of a choice leads back to it."""

from __future__ import annotations

import itertools
import json
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from sweeps.space import Axis, Space, make_space, space_problems


def axis(**values: Any) -> Axis:
    return Axis.model_validate_json(json.dumps(values))


@st.composite
def spaces(draw: st.DrawFn) -> Space:
    axes: dict[str, Axis] = {}
    for at in range(draw(st.integers(1, 6))):
        kind = draw(st.sampled_from(["choice", "uniform", "log_uniform", "int"]))
        value: Any
        if kind == "choice":
            value = draw(st.lists(st.sampled_from([True, False, "a", "b", 3]), min_size=1, max_size=4, unique_by=repr))
        elif kind == "int":
            low = draw(st.integers(1, 50))
            value = [low, low + draw(st.integers(1, 50))]
        else:
            low = draw(st.floats(1e-6, 10))
            value = [low, low * draw(st.floats(1.5, 1e4))]
        on = [key for key, one in axes.items() if one.choice is not None]
        when = {}
        if on and draw(st.booleans()):
            key = draw(st.sampled_from(on))
            when[key] = [draw(st.sampled_from(list(axes[key].choice or ())))]
        axes[f"k{at}"] = axis(**{kind: value}, when=when)
    shuffled = draw(st.permutations(list(axes)))
    return make_space({key: axes[key] for key in shuffled})


@given(spaces(), st.integers(0, 5))
def test_a_space_contains_what_it_suggests(space: Space, seed: int) -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    values = space.suggest(study.ask())
    assert space.wrong(values) == []
    params, distributions = space.as_trial(values)
    assert space.suggest(optuna.trial.FixedTrial(params)) == values
    optuna.create_trial(params=params, distributions=distributions, values=[0.0])  # Optuna finds them consistent


@settings(max_examples=30)
@given(spaces())
def test_examples_and_lists_lie_in_the_space(space: Space) -> None:
    around = space.suggest(optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1)).ask())
    corners = space.corners(10**6)
    assert corners is not None
    told = {repr(row) for row in corners}
    assert len(told) == len(corners) and space.corners(len(corners) - 1) is None
    for rows in (corners, space.pairs(around)):
        assert all(space.contains(values) for values in rows)
        for key, one in space.axes.items():
            assert all(any(key in row and row[key] == value for row in rows) for value in one.examples)
    # Whatever values of two keys can meet do so in a pair.
    pairs = space.pairs(around)
    for (one, first), (two, second) in itertools.combinations(
        [(key, value) for key, axis in space.axes.items() for value in axis.examples], 2
    ):

        def meet(row: dict[str, Any], at: Any = (one, first, two, second)) -> bool:
            return repr(row.get(at[0])) == repr(at[1]) and repr(row.get(at[2])) == repr(at[3])

        if any(map(meet, corners)) and not (space.axes[one].when and space.axes[two].when):
            assert any(map(meet, pairs))
    listed = space.listed()
    assert listed is None or {repr(row) for row in listed} == told
    if listed is not None:
        assert all(space.contains(values) for values in listed)
        assert len({repr(values) for values in listed}) == len(listed)


def test_a_listed_space_is_listed_whole() -> None:
    space = make_space(
        {
            "loss.lowpass": axis(choice=[0.2, 0.6], when={"loss.name": ["guide_umap"]}),
            "loss.name": axis(choice=["ce", "guide_umap"]),
        }
    )
    assert space.listed() == [
        {"loss.name": "ce"},
        {"loss.name": "guide_umap", "loss.lowpass": 0.2},
        {"loss.name": "guide_umap", "loss.lowpass": 0.6},
    ]
    assert space.wrong({"loss.name": "ce", "loss.lowpass": 0.2})[0].startswith("'loss.lowpass' does not apply")
    assert space.wrong({"loss.name": "guide_umap"}) == ["'loss.lowpass' is missing"]
    with pytest.raises(ValueError, match=r"'norm' is not in the space"):
        space.as_trial({"loss.name": "ce", "norm": 1})


def test_numbers_are_what_a_person_reads() -> None:
    space = make_space({"norm.weight": axis(log_uniform=[1e-5, 0.1])})
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=3))
    for _ in range(20):
        value = space.suggest(study.ask())["norm.weight"]
        assert float(f"{value:.3g}") == value and 1e-5 <= value <= 0.1


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({}, "needs one of choice, uniform, log_uniform, int; it has none"),
        ({"choice": [1], "uniform": [0, 1]}, "it has choice and uniform"),
        ({"choice": [1, 2, 1]}, "lists 1 twice"),
        ({"uniform": [1.0, 0.5]}, "the lower first"),
        ({"log_uniform": [0.0, 1.0]}, "begins above 0"),
        ({"int": [0, 4], "log": True}, "begins above 0"),
        ({"uniform": [0.0, 1.0], "log": True}, "a logarithmic range of numbers is log_uniform"),
        ({"int": [1, 2.5]}, "valid integer"),
        ({"normal": [0, 1]}, "Extra inputs"),
    ],
)
def test_a_wrong_axis_is_refused(values: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        axis(**values)


def test_wrong_conditions_are_all_told() -> None:
    problems = space_problems(
        {
            "a": axis(choice=[1], when={"nowhere": [1]}),
            "b": axis(choice=[1], when={"c": [1]}),
            "c": axis(uniform=[0.0, 1.0]),
            "d": axis(choice=[1], when={"a": [2]}),
        }
    )
    assert len(problems) == 3
    assert "'nowhere', which is not in the space" in problems[0]
    assert "'c', which does not list its values" in problems[1]
    assert "a=2, which 'a' never is" in problems[2]
    circle = {"a": axis(choice=[1], when={"b": [1]}), "b": axis(choice=[1], when={"a": [1]})}
    assert space_problems(circle) == ["space: the conditions of 'a', 'b' go in a circle"]
    with pytest.raises(ValueError, match="go in a circle"):
        make_space(circle)
