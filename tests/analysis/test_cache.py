"""Fold runs of a real tracking server are kept, and what has changed since is seen."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow_server import Server
from recorded import Recorded, copy_store

from analysis import cache as cached
from analysis.runs import StudyRuns, load_study
from analysis.store import from_server
from sweeps import schema

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def served(whole: Recorded, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recorded]:
    """A server over a copy of the whole study: three variants, five folds."""
    folder = tmp_path_factory.mktemp("served")
    server = Server(copy_store(Path(whole.uri.removeprefix("sqlite:///")), folder), folder)
    server.start()
    yield replace(whole, uri=server.uri)
    server.kill()


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many runs each query has brought."""
    counts: list[int] = []

    def counting(*given: Any, **options: Any) -> list[Any]:
        found = from_server(*given, **options)
        counts.append(len(found))
        return found

    monkeypatch.setattr(cached, "from_server", counting)
    return counts


def same(served: Recorded, folder: Path) -> StudyRuns:
    """The study by the cache, once it is sure that it is the study without one."""
    plain, kept = load_study(served.uri, "radius"), load_study(served.uri, "radius", cache=folder)
    pd.testing.assert_frame_equal(kept.frame, plain.frame)
    return kept


def test_finished_fold_runs_are_asked_for_once(served: Recorded, tmp_path: Path, asked: list[int]) -> None:
    assert same(served, tmp_path).complete and asked == [15]
    asked.clear()
    same(served, tmp_path)
    assert sum(asked) == 0
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:100])  # truncated: made again
    same(served, tmp_path)
    assert asked[-1] == 15


def test_what_was_deleted_retried_or_changed_is_seen(served: Recorded, tmp_path: Path, asked: list[int]) -> None:
    client = served.client
    same(served, tmp_path)
    run = served.fold_runs["radius=2", 0, 3, 0]
    client.delete_run(run)
    assert same(served, tmp_path).frame["status"].tolist().count("absent") == 1
    again = retried(client, run, 0.5)
    frame = same(served, tmp_path).frame
    assert frame["run"].tolist().count(again) == 1 and frame[schema.TEST_F1].tolist().count(0.5) == 1
    # Deleted and retried between two readings: as many as before, one of them another.
    client.delete_run(again)
    third = retried(client, run, 0.25)
    assert third in same(served, tmp_path).frame["run"].tolist()
    client.set_tag(third, schema.STATUS, "diverged")
    assert same(served, tmp_path).frame["status"].tolist().count("diverged") == 1
    client.set_tag(third, schema.STATUS, "finished")
    client.update_run(third, status="RUNNING")
    assert same(served, tmp_path).frame["status"].tolist().count("absent") == 1
    client.set_terminated(third)
    asked.clear()
    assert same(served, tmp_path).complete
    assert asked and max(asked) == 1  # only what is not kept


def retried(client: MlflowClient, run: str, score: float) -> str:
    """The fold run once more, as the writer makes it."""
    before = client.get_run(run)
    after = client.create_run(before.info.experiment_id, tags=before.data.tags, run_name=before.info.run_name)
    for key, value in before.data.metrics.items():
        client.log_metric(after.info.run_id, key, score if key == schema.TEST_F1 else value, timestamp=0)
    client.set_terminated(after.info.run_id, end_time=int(1000 * time.time()))
    return str(after.info.run_id)


def test_a_folder_that_cannot_be_written_costs_only_time(served: Recorded, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    same(served, tmp_path / "file")
