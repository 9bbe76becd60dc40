"""Runs out of MLflow: from a server through its client, from a database by one query a table.

The client builds an object of every parameter, tag and metric, a minute of 10,000 fold runs: analysis.cache keeps them.
Of a database four queries take seconds and are never stale. Tables and columns are those of the installed
MLflow's own models.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import nan
from typing import Any

# A report that waits four minutes for a dead server helps nobody; a busy one may take its time over a page of runs.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")

from mlflow import MlflowClient
from mlflow.store.db.db_types import DATABASE_ENGINES
from sqlalchemy import Connection, Select, create_engine, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import aliased

from sweeps.schema import without_credentials

MOST_NAMED = 500  # runs named in one query: databases limit its parameters
PAGE = 250  # runs a request: 1,000 of 80 metrics can take a busy server longer than our patience


@dataclass(frozen=True)
class Run:
    """A run that is not deleted."""

    id: str
    status: str  # MLflow's: FINISHED, FAILED, RUNNING, …
    tags: dict[str, str] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)  # the last value of each


def search(
    client: MlflowClient, uri: str, experiments: Sequence[str], tags: Mapping[str, str], *, params: bool
) -> list[Run]:
    """The runs of some experiments that have all of `tags`; their parameters only if asked for.

    Raises ValueError where a database cannot be read, MlflowException where a server cannot.
    """
    if is_database(uri):
        return _from_database(uri, experiments, tags, params)
    return from_server(client, experiments, where(tags), params=params)


def is_database(uri: str) -> bool:
    """Whether a URI names a database, which is read directly, and no server."""
    return uri.split("://")[0].split("+")[0] in DATABASE_ENGINES


def where(tags: Mapping[str, str]) -> str:
    """MLflow's filter for runs that have all of `tags`."""
    return " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())


def from_server(client: MlflowClient, experiments: Sequence[str], filtered: str, *, params: bool) -> list[Run]:
    """The runs that pass an MLflow filter, page by page."""
    runs: list[Run] = []
    token = None
    while True:
        page = client.search_runs(list(experiments), filtered, max_results=PAGE, page_token=token)
        for run in page:
            data = run.data
            runs.append(
                Run(run.info.run_id, run.info.status, dict(data.tags), data.params if params else {}, data.metrics)
            )
        token = page.token
        if not token:
            return runs


def _from_database(uri: str, experiments: Sequence[str], tags: Mapping[str, str], params: bool) -> list[Run]:
    from mlflow.store.tracking.dbmodels.models import SqlLatestMetric, SqlParam, SqlRun, SqlTag

    chosen = select(SqlRun.run_uuid).where(
        SqlRun.experiment_id.in_([int(each) for each in experiments]), SqlRun.lifecycle_stage == "active"
    )
    for key, value in tags.items():
        tag = aliased(SqlTag)
        chosen = chosen.join(tag, tag.run_uuid == SqlRun.run_uuid).where(tag.key == key, tag.value == value)

    def of_chosen(table: Any, *columns: Any) -> Select[Any]:
        return select(table.run_uuid, *columns).where(table.run_uuid.in_(chosen))

    # One transaction: what another process writes meanwhile is seen in all tables or in none.
    with _connected(uri) as database:
        runs = {run: Run(run, status) for run, status in database.execute(of_chosen(SqlRun, SqlRun.status))}
        for run, key, value in database.execute(of_chosen(SqlTag, SqlTag.key, SqlTag.value)):
            runs[run].tags[key] = value
        if params:
            for run, key, value in database.execute(of_chosen(SqlParam, SqlParam.key, SqlParam.value)):
                runs[run].params[key] = value
        latest = (SqlLatestMetric.key, SqlLatestMetric.value, SqlLatestMetric.is_nan)
        for run, key, value, is_nan in database.execute(of_chosen(SqlLatestMetric, *latest)):
            runs[run].metrics[key] = nan if is_nan else value
    return list(runs.values())


@contextmanager
def _connected(uri: str) -> Iterator[Connection]:
    """A connection to a database. Raises ValueError where it cannot be read."""
    try:
        engine = create_engine(uri)
        try:
            with engine.connect() as database:
                yield database
        finally:
            engine.dispose()
    except SQLAlchemyError as error:
        told = str(error).strip().splitlines()[0]
        raise ValueError(f"the store {without_credentials(uri)} cannot be read ({told})") from None


def histories(uri: str, runs: Sequence[str], metrics: Sequence[str]) -> dict[str, dict[str, list[float]]]:
    """Every value of some metrics of some runs by step; a metric that a run has not recorded is left out.

    Raises ValueError where a database cannot be read, MlflowException where a server cannot.
    """
    found: dict[str, dict[str, list[float]]] = {run: {} for run in runs}
    if not is_database(uri):
        client = MlflowClient(tracking_uri=uri)
        for run, told in found.items():
            for key in metrics:
                values = {point.step: point.value for point in client.get_metric_history(run, key)}
                if values:
                    told[key] = [values[step] for step in sorted(values)]
        return found

    from mlflow.store.tracking.dbmodels.models import SqlMetric

    wanted = select(SqlMetric.run_uuid, SqlMetric.key, SqlMetric.value).where(SqlMetric.key.in_(metrics))
    with _connected(uri) as database:
        for start in range(0, len(runs), MOST_NAMED):
            some = wanted.where(SqlMetric.run_uuid.in_(runs[start : start + MOST_NAMED]))
            for run, key, value in database.execute(some.order_by(SqlMetric.step)):
                found[run].setdefault(key, []).append(value)
    return found
