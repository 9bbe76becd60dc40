"""What a report shows of the cells: the right picture behind every id."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient
from PIL import Image

from guided.data import Dataset
from sweeps import schema, thumbnails
from sweeps.spec import load_sweep
from sweeps.study import Study, make_study
from sweeps.thumbnails import sample, write_thumbnails
from sweeps.tracking import Tracker


@pytest.fixture
def study(tmp_path: Path, marrow: Dataset) -> Study:
    path = tmp_path / "one.yaml"
    path.write_text("question: Does it?\nkind: ablation\nvary: {guide.radius: [2, 5]}\nbaseline: {guide.radius: 5}\n")
    made = make_study(load_sweep(str(path), preset="laptop", settings="data.cells=300 data.size=16"), tmp_path)
    made.write()
    return made


def test_every_class_gives_as_many_cells_as_it_can() -> None:
    labels = np.repeat([0, 1, 2], [50, 3, 20])
    rows = sample(labels, 15)
    assert np.bincount(labels[rows]).tolist() == [6, 3, 6] and (np.diff(rows) > 0).all()
    assert sample(labels, 15).tolist() == rows.tolist()
    assert sample(labels, 1000).tolist() == list(range(73))


def test_the_thumbnail_behind_an_id_is_its_cell(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thumbnails, "MOST", 40)
    write_thumbnails(study, tmp_path)
    cells = pd.read_parquet(tmp_path / schema.CELLS)
    told = json.loads((tmp_path / schema.CLASSES).read_text(encoding="utf-8"))
    sprite = np.asarray(Image.open(tmp_path / schema.SPRITE), dtype=np.float64)
    data, side, columns = study.data, told["thumbnail"], told["columns"]
    assert len(cells) == 40 and side == 16 and set(cells["class"]) == set(data.classes)
    for place, (name, label) in enumerate(zip(cells["id"], cells["class"], strict=True)):
        (row,) = np.flatnonzero(data.ids == name)
        assert data.classes[data.labels[row]] == label
        y, x = place // columns * side, place % columns * side
        off = [np.abs(sprite[y : y + side, x : x + side] - data.images[other]).mean() for other in range(60)]
        if row < 60:
            assert int(np.argmin(off)) == row  # nearer to its own picture than to any other
    guide = next(iter(study.guides.values()))
    assert told["lineages"] == list(guide.lineages) and told["classes"] == list(data.classes)


def test_a_study_has_one_run_of_its_own(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sweeps.tracking._uncommitted", str)  # whatever the state of this checkout
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    for _ in range(2):
        Tracker(study, uri).sync({})
    client = MlflowClient(tracking_uri=uri)
    found = client.search_runs(
        [e.experiment_id for e in client.search_experiments()], f"tags.`{schema.ROLE}` = '{schema.STUDY_ROLE}'"
    )
    assert [run.data.tags[schema.STUDY] for run in found] == [study.id]
    names = {file.path for file in client.list_artifacts(found[0].info.run_id)}
    assert names == {schema.SPRITE, schema.CELLS, schema.CLASSES}


def test_large_cells_are_made_small(study: Study, tmp_path: Path) -> None:
    large = np.random.default_rng(1).integers(0, 255, (300, 80, 80, 3), dtype=np.uint8)
    write_thumbnails(replace(study, data=replace(study.data, images=large)), tmp_path)
    assert json.loads((tmp_path / schema.CLASSES).read_text(encoding="utf-8"))["thumbnail"] == 36
