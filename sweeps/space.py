"""The space of a search: which values each key may take, and when it applies. The vocabulary is closed.

    loss.lowpass: {uniform: [0.0, 1.0], when: {loss.name: [guide_umap]}}

`choice` lists values, `uniform` and `log_uniform` give the ends of a range, `int` those of a range of whole numbers
(`log: true` for a logarithmic one). `when` names other keys of the space, which must list their values, and for which
of these the key applies.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations_with_replacement
from typing import Annotated, Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import BaseTrial
from pydantic import Field, StrictBool, StrictFloat, StrictInt, StrictStr, model_validator

from guided.config import Strict

Value = StrictBool | StrictInt | StrictFloat | StrictStr
Bounds = tuple[float, float]

# Significant digits of a number that a search tries: what a person reads in the label is then what was trained.
DIGITS = 3


class Axis(Strict):
    """What one key may be: exactly one of `choice`, `uniform`, `log_uniform`, `int`."""

    choice: Annotated[tuple[Value, ...], Field(min_length=1)] | None = None
    uniform: Bounds | None = None
    log_uniform: Bounds | None = None
    int_: Annotated[tuple[StrictInt, StrictInt] | None, Field(alias="int")] = None
    log: StrictBool = False
    when: dict[str, Annotated[tuple[Value, ...], Field(min_length=1)]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_kind(self) -> Axis:
        kinds = {"choice": self.choice, "uniform": self.uniform, "log_uniform": self.log_uniform, "int": self.int_}
        given = [name for name, value in kinds.items() if value is not None]
        if len(given) != 1:
            raise ValueError(f"needs one of choice, uniform, log_uniform, int; it has {' and '.join(given) or 'none'}")
        if self.log and self.int_ is None:
            raise ValueError("log belongs to int; a logarithmic range of numbers is log_uniform")
        if self.choice is not None:
            repeated = [value for at, value in enumerate(self.choice) if _among(value, self.choice[:at])]
            if repeated:
                raise ValueError(f"lists {repeated[0]!r} twice")
        else:
            low, high = self.ends
            if not low < high:
                raise ValueError(f"{given[0]} needs two ends, the lower first; got [{low}, {high}]")
            if low <= 0 and (self.log_uniform is not None or self.log):
                raise ValueError(f"a logarithmic range begins above 0; got [{low}, {high}]")
        return self

    @property
    def ends(self) -> tuple[float, float]:
        """Both ends of a range. Raises ValueError for a list."""
        ends = self.uniform or self.log_uniform or self.int_
        if ends is None:
            raise ValueError("a list of choices has no ends")
        return ends

    @property
    def examples(self) -> tuple[Any, ...]:
        """Every listed value, or both ends: what is tried when a sweep file is checked."""
        return self.ends if self.choice is None else self.choice

    def distribution(self) -> BaseDistribution:
        """Optuna's."""
        if self.choice is not None:
            return CategoricalDistribution(self.choice)
        if self.int_ is not None:
            return IntDistribution(*self.int_, log=self.log)
        return FloatDistribution(*self.ends, log=self.log_uniform is not None)

    def suggest(self, trial: BaseTrial, key: str) -> Any:
        """A value; numbers of a range are rounded to DIGITS significant digits, inside the range."""
        if self.choice is not None:
            return trial.suggest_categorical(key, self.choice)
        if self.int_ is not None:
            return trial.suggest_int(key, *self.int_, log=self.log)
        low, high = self.ends
        value = trial.suggest_float(key, low, high, log=self.log_uniform is not None)
        return min(max(float(f"{value:.{DIGITS}g}"), low), high)

    def holds(self, value: Any) -> bool:
        """Whether the axis can give that value."""
        if self.choice is not None:
            return _among(value, self.choice)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        low, high = self.ends
        return low <= value <= high and (self.int_ is None or isinstance(value, int))

    def told(self) -> str:
        """What a person reads of it."""
        if self.choice is not None:
            text = ", ".join(str(value) for value in self.choice)
        else:
            low, high = self.ends
            text = f"{low:g} to {high:g}" + (", whole" if self.int_ is not None else "")
            text += ", logarithmic" if self.log or self.log_uniform is not None else ""
        conditions = (f"{key} is {' or '.join(map(str, values))}" for key, values in self.when.items())
        return text + (f", when {' and '.join(conditions)}" if self.when else "")


def _among(value: Any, values: Iterable[Any]) -> bool:
    """Membership that keeps true and 1 apart."""
    return any(value == other and isinstance(value, bool) == isinstance(other, bool) for other in values)


@dataclass(frozen=True)
class Space:
    """The axes of a search, conditions before what depends on them. Made by `make_space`."""

    axes: Mapping[str, Axis]

    def active(self, key: str, values: Mapping[str, Any]) -> bool:
        """Whether `key` applies beside these values."""
        return all(on in values and _among(values[on], allowed) for on, allowed in self.axes[key].when.items())

    def suggest(self, trial: BaseTrial) -> dict[str, Any]:
        """Values for the keys that apply."""
        values: dict[str, Any] = {}
        for key, axis in self.axes.items():
            if self.active(key, values):
                values[key] = axis.suggest(trial, key)
        return values

    def wrong(self, values: Mapping[str, Any]) -> list[str]:
        """Why the space cannot give these values; empty where it can."""
        problems = [f"{key!r} is not in the space" for key in values if key not in self.axes]
        for key, axis in self.axes.items():
            if not self.active(key, values):
                if key in values:
                    problems.append(f"{key!r} does not apply ({axis.told()})")
            elif key not in values:
                problems.append(f"{key!r} is missing")
            elif not axis.holds(values[key]):
                problems.append(f"{key!r}: {values[key]!r} is not in {axis.told()}")
        return problems

    def contains(self, values: Mapping[str, Any]) -> bool:
        """Whether the space can give exactly these values."""
        return not self.wrong(values)

    def as_trial(self, values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Optuna's parameters and distributions of these values. Raises ValueError where the space cannot give them."""
        if problems := self.wrong(values):
            raise ValueError(f"{dict(values)}: {'; '.join(problems)}")
        keys = [key for key in self.axes if key in values]
        return {key: values[key] for key in keys}, {key: self.axes[key].distribution() for key in keys}

    def listed(self) -> list[dict[str, Any]] | None:
        """Every choice where all axes list their values, else None."""
        rows: list[dict[str, Any]] = [{}]
        for key, axis in self.axes.items():
            if axis.choice is None:
                return None
            rows = [
                row | {key: value} if applies else row
                for row in rows
                for applies in [self.active(key, row)]
                for value in (axis.choice if applies else (None,))
            ]
        return rows

    def corners(self, most: int) -> list[dict[str, Any]] | None:
        """Every reachable combination of the listed values and the ends of each range; None for more than `most`."""
        rows: list[dict[str, Any]] = [{}]
        for key, axis in self.axes.items():
            rows = [
                row | values
                for row in rows
                for values in ([{key: value} for value in axis.examples] if self.active(key, row) else [{}])
            ]
            if len(rows) > most:
                return None
        return rows

    def pairs(self, around: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Values of the space that bring any two listed values or ends together where that can be, the other keys as
        in `around`. For a space with too many corners: what is wrong is mostly so for one value, or for two together.
        """
        tried = [(key, value) for key, axis in self.axes.items() for value in axis.examples]
        rows: dict[str, dict[str, Any]] = {}
        for (one, first), (other, second) in combinations_with_replacement(tried, 2):
            wanted = {**around, **self._needs(one), **self._needs(other), one: first, other: second}
            row: dict[str, Any] = {}
            for key, axis in self.axes.items():
                if self.active(key, row):
                    row[key] = wanted[key] if key in wanted else axis.examples[0]
            rows.setdefault(repr(row), row)
        return list(rows.values())

    def _needs(self, key: str) -> dict[str, Any]:
        needs: dict[str, Any] = {}
        for on, allowed in self.axes[key].when.items():
            needs |= {on: allowed[0], **self._needs(on)}
        return needs


def space_problems(axes: Mapping[str, Axis]) -> list[str]:
    """What is wrong with the conditions of a space."""
    problems = []
    for key, axis in axes.items():
        for on, allowed in axis.when.items():
            if on not in axes:
                problems.append(f"space: {key!r} depends on {on!r}, which is not in the space")
            elif (choice := axes[on].choice) is None:
                problems.append(f"space: {key!r} depends on {on!r}, which does not list its values (choice)")
            else:
                problems += [
                    f"space: {key!r} depends on {on}={value!r}, which {on!r} never is"
                    for value in allowed
                    if not _among(value, choice)
                ]
    if not problems and len(_ordered(axes)) < len(axes):
        circle = ", ".join(repr(key) for key in axes if key not in _ordered(axes))
        problems.append(f"space: the conditions of {circle} go in a circle")
    return problems


def make_space(axes: Mapping[str, Axis]) -> Space:
    """A space, its axes ordered so that conditions are decided first. Raises ValueError naming every problem."""
    if problems := space_problems(axes):
        raise ValueError("; ".join(problems))
    return Space(_ordered(axes))


def _ordered(axes: Mapping[str, Axis]) -> dict[str, Axis]:
    """Axes whose conditions stand before them; those in a circle are left out."""
    done: dict[str, Axis] = {}
    for _ in axes:
        ready = {key: axis for key, axis in axes.items() if key not in done and all(on in done for on in axis.when)}
        done |= ready
    return done
