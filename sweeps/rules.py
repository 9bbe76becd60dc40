"""The rules of a search as pure functions of scores: who goes on, what is told of one that was raced out, where rungs
of ASHA lie, which sampler asks, and which settings fit together. `sweeps.strategy` says when each of them is applied.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from math import ceil
from typing import Literal

import numpy as np
import optuna

from guided.growth import REACHED_AT, WARMUP_EPOCHS, is_warmup
from sweeps.spec import Halving, NoStop, Racing, SearchSettings, SearchSpace, Variant

Block = tuple[int, int, int]  # partition, fold, seed


def adjusted(own: Mapping[Block, float], others: Sequence[Mapping[Block, float]], blocks: Sequence[Block]) -> float:
    """Estimate of a variant's mean over all `blocks` from the ones it did.

    Mean of its paired differences to the field on the blocks it did, plus the field's mean over all blocks. The field
    are the other variants that have every block; while there are none, those that have the same blocks, and then the
    mean is over those blocks alone.
    """
    rivals = [other for other in others if all(block in other for block in blocks)]
    over: Sequence[Block] = blocks
    if not rivals:
        over = [block for block in blocks if block in own]
        rivals = [other for other in others if all(block in other for block in over)]
    if not rivals:
        return float(np.mean(list(own.values())))
    level = {block: float(np.mean([other[block] for other in rivals])) for block in over}
    difference = np.mean([own[block] - level[block] for block in over if block in own])
    return float(difference + np.mean(list(level.values())))


def behind(own: Mapping[Block, float], others: Iterable[Mapping[Block, float]], direction: str) -> float:
    """How far a variant is behind the best of the others that have its blocks: the mean of the fold-paired differences,
    negative where it is ahead; 0 without a rival."""
    sign = 1.0 if direction == "maximize" else -1.0
    lags = [
        sign * np.mean([other[block] - score for block, score in own.items()])
        for other in others
        if own.keys() <= other.keys()
    ]
    return float(max(lags, default=0.0))


def rungs(variant: Variant, min_epochs: int | Literal["auto"], eta: int) -> list[int]:
    """Epoch counts at which a fold run of `variant` is judged: warm-up + min_epochs · eta^k, before its last epoch.

    With `auto` the first is at 60 % of its epochs: there embeddings that grow by the default rule have their length,
    and are compared with those that had it from the start.
    """
    config = variant.config
    warmup = WARMUP_EPOCHS if is_warmup(0, config.embedding) else 0
    step = max(ceil(REACHED_AT * config.train.epochs) - warmup, 1) if min_epochs == "auto" else min_epochs
    found = []
    while warmup + step < config.train.epochs:
        found.append(warmup + step)
        step *= eta
    return found


def goes_on(score: float, rivals: Sequence[float], eta: int) -> bool:
    """Whether `score` is among the best 1/eta (at least one) of itself and its `rivals`; a tie goes on."""
    better = sum(rival > score for rival in rivals)
    return better < ceil((len(rivals) + 1) / eta)


def make_sampler(settings: SearchSettings, number: int) -> optuna.samplers.BaseSampler:
    """The sampler of ask `number`."""
    seed = int(np.random.SeedSequence([settings.seed, number]).generate_state(1)[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if settings.sampler == "random":
            return optuna.samplers.RandomSampler(seed=seed)
        if settings.sampler == "tpe":
            return optuna.samplers.TPESampler(
                n_startup_trials=settings.startup, multivariate=True, group=True, constant_liar=True, seed=seed
            )
        alone = optuna.samplers.RandomSampler(seed=seed)
        if settings.sampler == "qmc":
            # One scrambled sequence for all asks; Optuna counts its points in the study.
            return optuna.samplers.QMCSampler(
                qmc_type="sobol",
                scramble=True,
                seed=settings.seed,
                independent_sampler=alone,
                warn_independent_sampling=False,
                warn_asynchronous_seeding=False,
            )
        return optuna.samplers.CmaEsSampler(
            seed=settings.seed, independent_sampler=alone, warn_independent_sampling=False
        )


def why_not_cmaes(space: SearchSpace, objectives: int, tries: int = 16) -> str | None:
    """Why CMA-ES cannot search this space, or None where it can: every axis numeric and without a condition."""
    if objectives > 1:
        return "it has one objective only"
    seen: set[frozenset[str]] = set()
    for seed in range(tries):
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
        trial = study.ask()
        space.suggest(trial)
        for name, distribution in trial.distributions.items():
            if isinstance(distribution, optuna.distributions.CategoricalDistribution):
                return f"{name!r} is a choice, and it moves along numbers only"
        seen.add(frozenset(trial.distributions))
    if len(seen) > 1:
        return f"{sorted(max(seen, key=len) - min(seen, key=len))[0]!r} exists under a condition only"
    return None


def check_settings(space: SearchSpace, blocks: int, settings: SearchSettings) -> None:
    """Raises ValueError for settings that cannot work together, or not with that space and so many blocks."""
    count, stop = len(settings.objectives), settings.stop
    if count > 1 and not isinstance(stop, NoStop):
        raise ValueError(
            f"stop rule {stop.rule!r} compares one score and the search has {count} objectives; use rule none"
        )
    if isinstance(stop, Racing | Halving) and stop.first >= blocks:
        raise ValueError(
            f"{stop.rule} starts with {stop.first} fold runs of a variant, and there are only {blocks}; "
            "lower stop.first or use rule none"
        )
    if settings.sampler == "cmaes":
        reason = why_not_cmaes(space, count)
        if reason:
            raise ValueError(f"sampler cmaes does not fit this search: {reason}; use tpe")
