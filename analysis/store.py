"""Runs out of MLflow: from a server through its client, from a database by one query a table.

The client builds an object of every parameter, tag and metric: of 10,000 fold runs a minute's work, a cache of which
would have to know what was deleted, retried or changed by hand since. Four queries take seconds and are never stale.
Tables and columns are those of the installed MLflow's own models.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import nan
from typing import Any

# Short patience, as for the writer: a report that waits four minutes for a dead server helps nobody.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")

from mlflow import MlflowClient
from mlflow.store.db.db_types import DATABASE_ENGINES
from sqlalchemy import Select, create_engine, select
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.orm import aliased

MOST_NAMED = 500  # runs named in one query: databases limit its parameters


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
    if uri.split("://")[0].split("+")[0] in DATABASE_ENGINES:
        return _from_database(uri, experiments, tags, params)
    return _from_server(client, experiments, tags)


def without_password(uri: str) -> str:
    """A URI that may be shown."""
    try:
        return make_url(uri).render_as_string(hide_password=True)
    except ArgumentError:
        return uri


def _from_server(client: MlflowClient, experiments: Sequence[str], tags: Mapping[str, str]) -> list[Run]:
    where = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
    runs: list[Run] = []
    token = None
    while True:
        page = client.search_runs(list(experiments), where, max_results=1000, page_token=token)
        runs += [Run(r.info.run_id, r.info.status, dict(r.data.tags), r.data.params, r.data.metrics) for r in page]
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

    try:
        engine = create_engine(uri)
        try:
            # One transaction: what another process writes meanwhile is seen in all tables or in none.
            with engine.connect() as database:
                runs = {run: Run(run, status) for run, status in database.execute(of_chosen(SqlRun, SqlRun.status))}
                for run, key, value in database.execute(of_chosen(SqlTag, SqlTag.key, SqlTag.value)):
                    runs[run].tags[key] = value
                if params:
                    for run, key, value in database.execute(of_chosen(SqlParam, SqlParam.key, SqlParam.value)):
                        runs[run].params[key] = value
                latest = (SqlLatestMetric.key, SqlLatestMetric.value, SqlLatestMetric.is_nan)
                for run, key, value, is_nan in database.execute(of_chosen(SqlLatestMetric, *latest)):
                    runs[run].metrics[key] = nan if is_nan else value
        finally:
            engine.dispose()
    except SQLAlchemyError as error:
        told = str(error).strip().splitlines()[0]
        raise ValueError(f"the store {without_password(uri)} cannot be read ({told})") from None
    return list(runs.values())


def histories(uri: str, runs: Sequence[str], metrics: Sequence[str]) -> dict[str, dict[str, list[float]]]:
    """Every value of some metrics of some runs by step; a metric that a run has not recorded is left out.

    Raises ValueError where a database cannot be read, MlflowException where a server cannot.
    """
    found: dict[str, dict[str, list[float]]] = {run: {} for run in runs}
    if uri.split("://")[0].split("+")[0] not in DATABASE_ENGINES:
        client = MlflowClient(tracking_uri=uri)
        for run, told in found.items():
            for key in metrics:
                values = {point.step: point.value for point in client.get_metric_history(run, key)}
                if values:
                    told[key] = [values[step] for step in sorted(values)]
        return found

    from mlflow.store.tracking.dbmodels.models import SqlMetric

    wanted = select(SqlMetric.run_uuid, SqlMetric.key, SqlMetric.value).where(SqlMetric.key.in_(metrics))
    try:
        engine = create_engine(uri)
        try:
            with engine.connect() as database:
                for start in range(0, len(runs), MOST_NAMED):
                    some = wanted.where(SqlMetric.run_uuid.in_(runs[start : start + MOST_NAMED]))
                    for run, key, value in database.execute(some.order_by(SqlMetric.step)):
                        found[run].setdefault(key, []).append(value)
        finally:
            engine.dispose()
    except SQLAlchemyError as error:
        told_line = str(error).strip().splitlines()[0]
        raise ValueError(f"the store {without_password(uri)} cannot be read ({told_line})") from None
    return found
