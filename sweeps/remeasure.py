"""Metrics that did not exist when a fold run was recorded, computed from the embedding it kept, without training."""

from __future__ import annotations

from collections.abc import Iterator
from math import isclose

from guided.kept import read_kept
from guided.result import result_of
from sweeps.records import FoldRun, Records
from sweeps.study import Study

SAME = 1e-6  # relative; another processor rounds otherwise


def remeasure(study: Study) -> Iterator[tuple[FoldRun, dict[str, float] | None]]:
    """Each finished fold run and the metrics that its record did not have, which are now beside it; None where its
    embedding was not kept. The record stays as it is.

    Raises ValueError where a recorded metric comes out otherwise: the embedding is then not that of the record.
    """
    records = Records(study.out)
    for run in study.fold_runs:
        record = records.read(run.id)
        if record is None or record.status != "finished":
            continue
        embedded = read_kept(study.embedding_of(run))
        if embedded is None:
            yield run, None
            continue
        fold, guide = study.folds[run.partition][run.fold], study.guides[run.config.id]
        result = result_of(embedded, study.data, fold, guide, run.config, seed=run.seed)
        found = {key: value for key, value in result.metrics.items() if not key.startswith("time/")}
        for key in sorted(found.keys() & record.metrics.keys()):
            was, now = record.metrics[key], found[key]
            if not isclose(was, now, rel_tol=SAME, abs_tol=SAME):
                raise ValueError(
                    f"fold run {run.name}: {key} is recorded as {was:g} and comes out as {now:g} from "
                    f"{study.embedding_of(run)}, which is therefore not what was recorded; delete that file"
                )
        yield run, records.add(record, found)
