"""Finished fold runs of a tracking server, kept beside OUT: a server gives whole runs only, 10,000 of them in a minute.

A fold run that has finished is never written again: a retried one is deleted and made anew under another id. So what is
kept holds as long as the ids of the runs that are not deleted are known, and these are asked of the server each time:
which runs it has that are not kept, which of those kept are no longer finished, and how many runs there are in all. If
the numbers differ, a kept run is gone, and all are read again. What somebody edits by hand inside a finished fold run
is not seen; the folder may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import pandas as pd
from mlflow import MlflowClient
from mlflow.utils.search_utils import SearchUtils

from analysis.store import Run, from_server, where
from sweeps import schema

FINISHED = ("FINISHED", "finished")  # MLflow's state and ours
MOST_IDS = 1500  # in one query: MLflow's parser of filters gives up at 10,000 tokens


def search_cached(
    client: MlflowClient, uri: str, experiments: Sequence[str], tags: Mapping[str, str], folder: Path
) -> list[Run]:
    """What `analysis.store.search` gives for a server, without parameters; finished fold runs come out of `folder`
    where they are known to stand. Raises MlflowException where the server cannot be read."""
    named = json.dumps([schema.without_credentials(uri), sorted(experiments), sorted(tags.items())])
    path = folder / f"runs-{hashlib.sha256(named.encode()).hexdigest()[:16]}.parquet"
    kept = _read(path)
    runs = _completed(client, experiments, tags, kept) if kept else None
    if runs is None:
        runs = from_server(client, experiments, where(tags), params=False)
    finished = {run.id: run for run in runs if (run.status, run.tags.get(schema.STATUS)) == FINISHED}
    if finished.keys() != kept.keys():
        with suppress(OSError):  # of a folder that cannot be written: reading does not hang on it
            _write(path, list(finished.values()))
    return runs


def _completed(
    client: MlflowClient, experiments: Sequence[str], tags: Mapping[str, str], kept: Mapping[str, Run]
) -> list[Run] | None:
    """The kept runs and those that the server has beside them; None where a kept one is gone."""
    told = where(tags)
    fresh: dict[str, Run] = {}
    for no_longer in ("attributes.status != 'FINISHED'", f"tags.`{schema.STATUS}` != 'finished'"):
        for run in from_server(client, experiments, f"{told} and {no_longer}", params=False):
            fresh[run.id] = run
    digits = 1 if len(kept) <= 16 * MOST_IDS * 0.8 else 2
    known: dict[str, list[str]] = {f"{number:0{digits}x}": [] for number in range(16**digits)}
    for run_id in kept:
        known[run_id[:digits]].append(run_id)
    for prefix, ids in known.items():
        beside = f"{told} and attributes.run_id LIKE '{prefix}%'"
        if ids:
            beside += f" and attributes.run_id NOT IN ({', '.join(map(repr, ids))})"
        for run in from_server(client, experiments, beside, params=False):
            fresh[run.id] = run
    runs = {**kept, **fresh}
    last = SearchUtils.create_page_token(len(runs) - 1)
    page = client.search_runs(list(experiments), told, max_results=1, page_token=last)
    return list(runs.values()) if len(page) == 1 and not page.token else None


def _read(path: Path) -> dict[str, Run]:
    """Kept runs by id; none where the file is not there or cannot be read: it can always be made again."""
    try:
        table = pd.read_parquet(path)
        rows = zip(table["id"], table["tags"], table["metrics"], strict=True)
        return {run: Run(run, FINISHED[0], json.loads(tags), {}, json.loads(metrics)) for run, tags, metrics in rows}
    except (OSError, ValueError, KeyError):
        return {}


def _write(path: Path, runs: Sequence[Run]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame(
        {
            "id": [run.id for run in runs],
            "tags": [json.dumps(run.tags) for run in runs],
            "metrics": [json.dumps(run.metrics) for run in runs],
        },
        dtype=str,
    )
    temporary = path.with_name(f".writing-{uuid4().hex[:12]}")
    try:
        table.to_parquet(temporary, index=False)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
