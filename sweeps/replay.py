"""What a strategy would have cost and chosen: a search re-played over the recorded curves of a finished full grid.

The grid is an ablation study with every fold run recorded. The strategy (`sweeps.strategy.Search`, the code that also
drives Ray) asks among its variants; each fold run takes the recorded seconds of its epochs on one of N simulated
workers and tells the recorded scores of the seeds given to the strategy. Its choice is judged on other seeds of the
same grid, which it has not seen. Nothing is trained, so a study for 1,000 workers is planned on a laptop.

A strategy that was tuned on a grid and is judged on the same grid looks better than it is: tune on one seed, judge on
another, or keep one grid for the verdict.
"""

from __future__ import annotations

import heapq
import itertools
import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from optuna.distributions import CategoricalDistribution
from optuna.trial import BaseTrial
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sweeps import schema
from sweeps.board import duration
from sweeps.records import Record, Records
from sweeps.rules import Block
from sweeps.spec import SearchSettings, SpecError, Variant
from sweeps.strategy import End, Key, Search, end_of
from sweeps.study import Study, read_study

PARTS = ("time/train", "time/embed", "time/validate", "time/refresh")


class ListedSpace:
    """The variants of a grid as a categorical space over the keys they vary.

    A key that only some variants have (an option of one loss) is asked where a variant with the choices made so far
    has it. Values that fit no variant are refused by `resolve`, so a grid may have holes; what the sampler cannot
    reach comes from `listed`.
    """

    def __init__(self, variants: Sequence[Variant]) -> None:
        self._variants = {_frozen(variant.varied): variant for variant in variants}
        if len(self._variants) < len(variants):
            raise ValueError("two variants of the recorded grid have the same varied keys and values")
        counts: dict[str, int] = {}
        for key in (key for variant in variants for key in variant.varied):
            counts[key] = counts.get(key, 0) + 1
        # What all variants have comes first: it decides which of the other keys apply.
        self._keys = sorted(counts, key=lambda key: -counts[key])
        self._choices = {
            key: list(dict.fromkeys(_plain(v.varied[key]) for v in variants if key in v.varied)) for key in self._keys
        }

    def suggest(self, trial: BaseTrial) -> dict[str, Any]:
        """Values of one variant, or of none where the choices made by the sampler meet in a hole of the grid."""
        values: dict[str, Any] = {}
        left = list(self._variants)
        for key in self._keys:
            has = [row for row in left if key in dict(row)]
            if not has:
                continue
            values[key] = trial.suggest_categorical(key, self._choices[key])
            left = [row for row in has if dict(row)[key] == values[key]]
        return values

    def as_trial(self, values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Optuna's parameters and distributions of these values."""
        return dict(values), {key: CategoricalDistribution(self._choices[key]) for key in values}

    def listed(self) -> list[dict[str, Any]]:
        """The varied keys of every variant."""
        return [dict(row) for row in self._variants]

    def resolve(self, values: Mapping[str, Any]) -> Variant:
        """The recorded variant of these values. Raises SpecError where the grid has none."""
        found = self._variants.get(_frozen(values))
        if found is None:
            raise SpecError("recorded grid", [f"no variant has {dict(values)}"])
        return found


def _frozen(values: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple(sorted((key, _plain(value)) for key, value in values.items()))


def _plain(value: Any) -> Any:
    # Optuna's choices are texts and numbers; a list (of classifier families, say) is one choice all the same.
    return value if value is None or isinstance(value, bool | int | float | str) else repr(value)


@dataclass(frozen=True)
class Course:
    """How a recorded fold run went: its end, seconds of each epoch, and seconds from the last one to the record."""

    end: End
    epochs: tuple[float, ...]
    final: float

    @property
    def seconds(self) -> float:
        """Of the whole fold run."""
        return sum(self.epochs) + self.final


@dataclass(frozen=True)
class Grid:
    """A recorded full grid: the courses its strategy is told of, and the scores its choice is judged by."""

    variants: tuple[Variant, ...]
    blocks: tuple[Block, ...]  # of the seeds given to the strategy
    courses: Mapping[Key, Course]
    judged: Mapping[str, Sequence[float]]  # config id: scores by fold, seeds averaged

    @cached_property
    def seconds(self) -> float:
        """Of the whole grid, one fold run after the other."""
        return sum(course.seconds for course in self.courses.values())

    @cached_property
    def epochs(self) -> int:
        """Trained in the whole grid. A cost in epochs does not hang on how busy the machine was while it recorded."""
        return sum(len(course.epochs) for course in self.courses.values())

    @cached_property
    def best(self) -> str:
        """Config id with the best mean among the judged scores."""
        return max(self.judged, key=lambda config: float(np.mean(self.judged[config])))

    def regret(self, config: str) -> float:
        """How far a variant's judged mean lies below the best one's."""
        return float(np.mean(self.judged[self.best]) - np.mean(self.judged[config]))

    def within_one_error(self, config: str) -> bool:
        """Whether the judged mean lies within one standard error (sd over folds / √folds) of the best one's."""
        return self.regret(config) <= _error(np.asarray(self.judged[self.best]))

    def within_paired_error(self, config: str) -> bool:
        """The stricter question: within one standard error of the fold-paired differences to the best. Folds differ
        in difficulty, which the first error counts and this one does not."""
        differences = np.asarray(self.judged[self.best]) - np.asarray(self.judged[config])
        return config == self.best or float(differences.mean()) <= _error(differences)


def _error(scores: np.ndarray) -> float:
    return float(scores.std(ddof=1)) / sqrt(len(scores))


def find_grid(out: Path, sweep: str) -> Study:
    """The study of `sweep` under `out`. Raises ValueError where there is none, or more than one."""
    folders = sorted(path.parent for path in (out / "studies").glob(f"{sweep}-*/study.json"))
    if len(folders) != 1:
        found = ", ".join(folder.name for folder in folders) or "none"
        raise ValueError(f"a replay needs one recorded study of {sweep} under {out}; found: {found}")
    return read_study(folders[0])


def read_grid(study: Study, seeds: Sequence[int], judge_seeds: Sequence[int], metric: str) -> Grid:
    """What a study recorded: `seeds` for the strategy, `metric` of `judge_seeds` for the judge.

    Raises ValueError where fold runs of these seeds have no record, or where there is nothing to judge by.
    """
    if not judge_seeds:
        raise ValueError(
            f"study {study.folder.name} has one seed only; name it with --judge-seeds to judge on the seed that the "
            "strategy has seen (by other cells: its validation is not its test)"
        )
    absent = sorted({*seeds, *judge_seeds} - set(study.sweep.seeds))
    if absent:
        raise ValueError(f"study {study.folder.name} has no seed {absent[0]}; its seeds are {list(study.sweep.seeds)}")
    runs = [run for run in study.fold_runs if run.seed in {*seeds, *judge_seeds}]
    records = Records(study.out).read_all([run.id for run in runs])
    missing = [run for run in runs if run.id not in records]
    if missing:
        raise ValueError(
            f"the grid of {study.folder.name} is not complete: {len(missing)} of {len(runs)} fold runs have no record, "
            f"{missing[0].name} for one; finish it with `run`, or name seeds that are complete"
        )
    courses, scores = {}, {}
    for run in runs:
        record = records[run.id]
        if run.seed in seeds:
            courses[(run.config.id, run.partition, run.fold, run.seed)] = _course(record)
        if run.seed in judge_seeds and record.status == "finished":
            scores[(run.config.id, run.partition, run.fold, run.seed)] = record.metrics[metric]
    blocks = list(dict.fromkeys(key[1:] for key in courses))
    folds = list(dict.fromkeys(block[:2] for block in blocks))
    judged = {}
    for variant in study.sweep.variants:
        own = [[scores.get((variant.config.id, *fold, seed)) for seed in judge_seeds] for fold in folds]
        whole = [[score for score in row if score is not None] for row in own]
        if all(len(row) == len(judge_seeds) for row in whole):  # a variant that broke is never the best
            judged[variant.config.id] = [float(np.mean(row)) for row in whole]
    if not judged:
        raise ValueError(
            f"no variant of {study.folder.name} has finished every fold run of the seeds {list(judge_seeds)}"
        )
    return Grid(study.sweep.variants, tuple(blocks), courses, judged)


def _course(record: Record) -> Course:
    epochs = tuple(sum(epoch[part] for part in PARTS) for epoch in record.history)
    return Course(end_of(record, [schema.BEST_VAL_F1]), epochs, record.metrics.get("time/final", 0.0))


@dataclass(frozen=True)
class Replayed:
    """What one replay cost and chose."""

    seconds: float  # of all workers together
    epochs: int  # trained
    makespan: float
    variants: int  # asked
    fold_runs: int  # started
    chosen: str | None  # config id; None: no variant finished


def replay(grid: Grid, settings: SearchSettings, workers: int) -> Replayed:
    """One search over the grid with `workers` simulated workers; the settings' seed decides order and asks."""
    space = ListedSpace(grid.variants)
    search = Search(space, grid.blocks, settings, space.resolve)
    free, now, spent, epochs, started = workers, 0.0, 0.0, 0, 0
    order = itertools.count()  # of two events at the same time the one planned first comes first
    events: list[tuple[float, int, Key, int]] = []
    while True:
        while free and (job := search.next()) is not None:
            free, started = free - 1, started + 1
            heapq.heappush(events, (now + _lasts(grid, job.key, 0), next(order), job.key, 0))
        if not events:
            break
        then, _, key, epoch = heapq.heappop(events)
        course = grid.courses[key]
        spent += _lasts(grid, key, epoch)
        epochs += epoch < len(course.epochs)
        now = then
        end: End | None = None
        if epoch >= len(course.epochs):
            end = course.end
        elif (reason := search.epoch(key, epoch, course.end.curve[epoch])) is not None:
            end = End("stopped", course.end.curve[: epoch + 1], reason=reason)
        if end is None:
            heapq.heappush(events, (now + _lasts(grid, key, epoch + 1), next(order), key, epoch + 1))
        else:
            search.ended(key, end)
            free += 1
    best = search.front()
    return Replayed(spent, epochs, now, len(search.variants()), started, best[0].variant.config.id if best else None)


def _lasts(grid: Grid, key: Key, epoch: int) -> float:
    course = grid.courses[key]
    return course.epochs[epoch] if epoch < len(course.epochs) else course.final


@dataclass(frozen=True)
class Summary:
    """A strategy over many replays. Shares lie between 0 and 1; `cost` and `epochs` are of the full grid's."""

    strategy: str
    replays: int
    cost: float  # seconds of all workers
    cost_worst: float  # 95th percentile
    epochs: float
    makespan: float  # mean, seconds
    grid_makespan: float  # of the full grid on as many workers
    within: float  # choice within one standard error of the best
    within_paired: float
    best: float  # choice is the best one
    regret: float | None  # mean distance to the best; None: no replay chose a variant that the judge knows
    empty: int  # replays in which no variant finished


def summarise(grid: Grid, name: str, runs: Sequence[Replayed], grid_makespan: float) -> Summary:
    """Mean figures of `runs`; a replay without a choice counts as wrong, and its regret is left out."""
    chosen = [run.chosen for run in runs if run.chosen is not None]
    sound = [config for config in chosen if config in grid.judged]
    costs = np.array([run.seconds for run in runs]) / grid.seconds
    return Summary(
        strategy=name,
        replays=len(runs),
        cost=float(costs.mean()),
        cost_worst=float(np.quantile(costs, 0.95)),
        epochs=float(np.mean([run.epochs for run in runs])) / grid.epochs,
        makespan=float(np.mean([run.makespan for run in runs])),
        grid_makespan=grid_makespan,
        within=sum(map(grid.within_one_error, sound)) / len(runs),
        within_paired=sum(map(grid.within_paired_error, sound)) / len(runs),
        best=sum(config == grid.best for config in sound) / len(runs),
        regret=float(np.mean([grid.regret(config) for config in sound])) if sound else None,
        empty=len(runs) - len(chosen),
    )


def strategy_of(text: str) -> SearchSettings:
    """The settings of "sampler=tpe variants=20 stop.rule=racing stop.first=2"; what is not given has its default.

    Raises SpecError for what is no setting of a search.
    """
    values: dict[str, Any] = {}
    for word in shlex.split(text):
        key, equals, value = word.partition("=")
        if not equals or not key or not value:
            raise SpecError(f"strategy {text!r}", [f"{word!r} is not of the form key=value, for example variants=20"])
        section, dot, name = key.partition(".")
        (values.setdefault(section, {}) if dot else values)[name or section] = yaml.safe_load(value)
    try:
        return SearchSettings.model_validate_json(json.dumps(values))
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, entry['loc']))}: {entry['msg'].lower()}" for entry in error.errors()]
        raise SpecError(f"strategy {text!r}", problems) from None


def compare(grid: Grid, strategies: Sequence[str], workers: int, repeats: int) -> list[Summary]:
    """The full grid, then every strategy, each over `repeats` replays."""
    whole = full_grid(grid, workers)
    rows = [summarise(grid, "full grid", [whole], whole.makespan)]
    for text in strategies:
        runs = list(replays(grid, strategy_of(text), workers, repeats))
        rows.append(summarise(grid, text or "default", runs, whole.makespan))
    return rows


def show(rows: Sequence[Summary], workers: int, console: Console) -> None:
    """Print the comparison as a table: cost as a share of the full grid's time (mean and 95th percentile of replays)
    and of its epochs, makespan on so many workers, how often the choice lies within one standard error of the best."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("replays", "cost", "95 %", "epochs", f"on {workers}", "within 1 SE", "paired", "best", "regret"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("strategy", overflow="fold")
    for row in rows:
        table.add_row(
            str(row.replays),
            f"{row.cost:.1%}",
            f"{row.cost_worst:.1%}",
            f"{row.epochs:.1%}",
            duration(row.makespan),
            f"{row.within:.1%}",
            f"{row.within_paired:.1%}",
            f"{row.best:.1%}",
            "–" if row.regret is None else f"{row.regret:.4f}",
            escape(row.strategy),
        )
    console.print(table)


def replays(grid: Grid, settings: SearchSettings, workers: int, repeats: int) -> Iterator[Replayed]:
    """`repeats` replays that differ in their seed."""
    for seed in range(repeats):
        yield replay(grid, settings.model_copy(update={"seed": seed}), workers)


def full_grid(grid: Grid, workers: int) -> Replayed:
    """The grid itself, as an ablation runs it: fold by fold through all variants; chosen by the validation mean."""
    free = [0.0] * workers
    for block in grid.blocks:
        for variant in grid.variants:
            heapq.heappush(free, heapq.heappop(free) + grid.courses[(variant.config.id, *block)].seconds)
    means = {}
    for variant in grid.variants:
        ends = [grid.courses[(variant.config.id, *block)].end for block in grid.blocks]
        if all(end.status == "finished" for end in ends):
            means[variant.config.id] = float(np.mean([end.values[0] for end in ends]))
    chosen = max(means, key=lambda config: means[config]) if means else None
    return Replayed(grid.seconds, grid.epochs, max(free), len(grid.variants), len(grid.courses), chosen)
