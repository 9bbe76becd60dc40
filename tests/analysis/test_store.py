"""A database read by one query a table gives what MLflow's client gives, and what has changed since is seen."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric
from recorded import Recorded, write_study

from analysis import store
from analysis.runs import load_study
from analysis.store import search
from analysis.tables import compare, render
from sweeps import schema

CHILDREN = {schema.ROLE: schema.FOLD_RUN_ROLE, schema.STUDY: "5eed"}


def both(recorded: Recorded, tags: dict[str, str]) -> list[dict[str, store.Run]]:
    client = recorded.client
    ids = [each.experiment_id for each in client.search_experiments()]
    found = (
        store.from_server(client, ids, store.where(tags), params=True),
        search(client, recorded.uri, ids, tags, params=True),
    )
    return [{run.id: run for run in runs} for runs in found]


def test_a_database_gives_what_the_client_gives(own: Recorded) -> None:
    own.client.delete_run(own.fold_runs["radius=8", 0, 1, 0])
    own.client.update_run(own.fold_runs["radius=2", 0, 1, 0], status="RUNNING")
    for value, step in ((np.nan, 0), (0.25, 3)):
        own.client.log_metric(
            own.fold_runs["radius=8", 0, 2, 0], "odd" if step == 0 else schema.TEST_F1, value, step=step
        )
    for tags, count in ((CHILDREN, 14), ({schema.ROLE: schema.VARIANT_ROLE}, 3), ({schema.ROLE: "nobody"}, 0)):
        by_client, by_query = both(own, tags)
        assert by_client.keys() == by_query.keys() and len(by_query) == count
        for run, there in by_client.items():
            here = by_query[run]
            assert (here.status, here.tags, here.params) == (there.status, there.tags, there.params)
            assert here.metrics.keys() == there.metrics.keys()
            np.testing.assert_equal(list(here.metrics.values()), [there.metrics[key] for key in here.metrics])


def test_what_has_changed_since_is_seen(own: Recorded) -> None:
    run = own.fold_runs["radius=2", 0, 3, 0]
    assert load_study(own.uri, "radius").frame[schema.TEST_F1][3] == 0.77
    own.client.log_batch(run, metrics=[Metric(schema.TEST_F1, 0.5, 1, 0)])  # tried again
    assert load_study(own.uri, "radius").frame[schema.TEST_F1][3] == 0.5
    own.client.set_tag(run, schema.STATUS, "diverged")
    assert load_study(own.uri, "radius").frame["status"][3] == "diverged"
    own.client.delete_run(run)
    assert load_study(own.uri, "radius").frame["status"][3] == "absent"
    own.client.restore_run(run)
    own.client.set_tag(run, schema.STATUS, "finished")
    assert load_study(own.uri, "radius").complete


def test_a_stopped_fold_run_is_told_and_in_no_mean(uri: str) -> None:
    reason = "raced out after 2 folds"
    scores = {"radius=5": (0.7, 0.6, 0.65), "radius=2": (0.9, 0.9, 0.9)}
    write_study(uri, scores, baseline="radius=5", bad={("radius=2", 2): ("stopped", reason)})
    study = load_study(uri, "radius")
    (row,) = study.frame[study.frame["status"] != "finished"].to_dict("records")
    assert (row["status"], row["reason"]) == ("stopped", reason) and np.isnan(row[schema.TEST_F1])
    comparison = compare(study)
    told = comparison.frame.iloc[1]
    assert told["verdict"] == "incomplete" and np.isnan(told["mean"])
    assert f"fold 2 stopped: {reason}" in render(comparison, "text")


def test_a_database_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    path.write_bytes(b"this is no database, whatever its name says" * 50)
    with pytest.raises(ValueError, match=r"the store sqlite:///.*mlflow\.db cannot be read"):
        search(None, f"sqlite:///{path}", ["1"], {}, params=False)  # type: ignore[arg-type]


def test_reading_goes_on_beside_a_writer(own: Recorded) -> None:
    """A transaction that has begun to write does not hold readers up."""
    writer = sqlite3.connect(own.uri.removeprefix("sqlite:///"), isolation_level=None)
    try:
        writer.execute("begin immediate")
        writer.execute("update runs set status = 'FAILED'")
        study = load_study(own.uri, "radius")
    finally:
        writer.close()
    assert study.complete and isinstance(own.client, MlflowClient)
