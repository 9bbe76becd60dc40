"""Warm start of a search: variants of its space that other studies of the same OUT have trained on the very fold runs
that the search would train. They compete from the start, and nothing is trained twice.

Which fold runs are the same is decided by their ids alone, that is by configuration (the locked groups included), data,
guide, partition, fold, seed and method version: what was trained or tested on a locked group, on other data or by
another version of the method has another id and is never taken.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from guided.config import Config
from guided.guide import load_guide
from sweeps.records import FoldRun, Records
from sweeps.space import Space
from sweeps.spec import WARM_EVERYTHING, WARM_NONE, SearchPlan, SpecError, Variant, did_you_mean, flat
from sweeps.study import Study


@dataclass(frozen=True)
class Recorded:
    """A variant with a record of every fold run that a search needs of it."""

    source: str  # folder of the study that planned it
    values: dict[str, Any]
    variant: Variant
    runs: tuple[FoldRun, ...]


def recorded_variants(study: Study, plan: SearchPlan) -> list[Recorded]:
    """The variants that `search.warm_start` names, by study and in the order of its plan, each once.

    `none` names no study, `everything` each one under OUT; any other word is the name of a sweep or the folder of one
    of its studies. Raises ValueError for a word that names none, and for a plan that is damaged.
    """
    source = plan.settings.warm_start
    space = plan.space
    if source == WARM_NONE or not isinstance(space, Space):
        return []
    found: dict[str, Recorded] = {}
    for folder, config in _planned(study, source):
        flatted = flat(config.model_dump(mode="json"))
        values = {key: flatted[key] for key in space.axes if key in flatted}
        values = {key: value for key, value in values.items() if space.active(key, values)}
        if config.id in found or not space.contains(values):
            continue
        try:
            variant = plan.resolve(values)
            guide = load_guide(variant.config.guide, study.data.classes)
        except (SpecError, ValueError):
            continue  # it breaks a constraint of the search, or its guide is not of these data
        if variant.config.id != config.id:
            continue  # it differs in what the search does not vary, e.g. the groups that it locks
        alone = replace(study, sweep=replace(study.sweep, variants=(variant,)), guides={config.id: guide})
        records = Records(study.out).read_all([run.id for run in alone.fold_runs])
        if all(run.id in records and records[run.id].status == "finished" for run in alone.fold_runs):
            found[config.id] = Recorded(folder, values, variant, tuple(alone.fold_runs))
    return list(found.values())


def _planned(study: Study, source: str) -> Iterator[tuple[str, Config]]:
    """Folder and configuration of every variant in the plans that `source` names, but for those on other data."""
    names, met = set[str](), False
    for path in sorted((study.out / "studies").glob("*/study.json")):
        if path.parent == study.folder:
            continue
        try:
            plan = json.loads(path.read_text(encoding="utf-8"))
            sweep, fingerprint, variants = plan["sweep"], plan["fingerprint"], plan["variants"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"the plan {path} cannot be read ({error}); restore or delete it") from None
        names |= {sweep, path.parent.name}
        if source not in (WARM_EVERYTHING, sweep, path.parent.name):
            continue
        met = True
        if fingerprint != study.data.fingerprint:
            continue
        for variant in variants:
            try:
                config = Config.model_validate_json(json.dumps(variant["config"]))
            except ValidationError:
                continue  # of another version of the method
            yield path.parent.name, config
    if not met and source != WARM_EVERYTHING:
        known = f"; there are {', '.join(sorted(names))}{did_you_mean(source, names)}" if names else ""
        raise ValueError(f"search.warm_start: no study of {source!r} under {study.out}{known}")
