from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from recorded import Recorded, write_study

from analysis.repeats import repeats, symmetry_of
from analysis.report import write_report
from analysis.runs import load_study
from analysis.tables import compare
from sweeps import schema

POINTS = np.array([[0.0, 0.0], [4.0, 1.0], [-1.0, 3.0]])
SCORES = {"named": (0.7, 0.6), "turned": (0.7, 0.6), "axes": (0.7, 0.6)}
LOSSES = {"named": "guide2d", "turned": "triplet", "axes": "distance"}


def embedding(variant: str, seed: int) -> np.ndarray:
    """Three classes of four cells, on their points; seed 1 turns them by what the loss cannot see."""
    angle = 0.8
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    moved = {"named": POINTS, "turned": POINTS @ turn.T + 2.0, "axes": POINTS[:, ::-1] * [-1.0, 1.0]}[variant]
    return np.repeat(moved if seed else POINTS, 4, axis=0)


def write_arrays(recorded: Recorded, folder: Path) -> None:
    for (variant, _, _, seed), run in recorded.fold_runs.items():
        path = folder / schema.ARRAYS
        cells = embedding(variant, seed)
        if seed:  # a longer embedding whose third component is open and zero
            cells = np.pad(cells, ((0, 0), (0, 1)))
        labels, classes = np.repeat(np.arange(3), 4), np.array(["a", "b", "c"])
        np.savez(path, test_embedding=cells.astype(np.float16), test_labels=labels, classes=classes)
        recorded.client.log_artifact(run, str(path))


@pytest.fixture
def recorded(uri: str, tmp_path: Path) -> Recorded:
    made = write_study(
        uri,
        SCORES,
        baseline="named",
        seeds=(0, 1),
        parameters={name: {"loss.name": loss} for name, loss in LOSSES.items()},
    )
    write_arrays(made, tmp_path)
    return made


def test_what_a_loss_cannot_see_is_removed(recorded: Recorded) -> None:
    table = repeats(load_study(recorded.uri, "radius"), recorded.uri).set_index("variant")
    assert table["seeds"].tolist() == [2, 2, 2]
    assert table["symmetry"].to_dict() == {"named": "none", "turned": "isometries", "axes": "axes"}
    assert table.loc["named", "raw"] == 0
    assert table.loc["turned", "raw"] > 0.5 and table.loc["axes", "raw"] > 0.5
    assert table["aligned"].to_numpy() == pytest.approx(0, abs=1e-2)  # half precision
    assert table["distances"].to_numpy() == pytest.approx(1, abs=1e-3)


def test_the_report_shows_it(recorded: Recorded, tmp_path: Path) -> None:
    study = load_study(recorded.uri, "radius")
    page = write_report(compare(study), tmp_path / "report", repeats(study, recorded.uri)).read_text(encoding="utf-8")
    assert "Stability over repeats" in page and "<td>isometries</td>" in page
    assert "## Stability over repeats" in (tmp_path / "report" / "report.md").read_text(encoding="utf-8")


def test_a_collapsed_repeat_is_told_and_costs_only_its_variant(recorded: Recorded, tmp_path: Path) -> None:
    flat, labels = np.ones((12, 2), dtype=np.float16), np.repeat(np.arange(3), 4)
    np.savez(tmp_path / schema.ARRAYS, test_embedding=flat, test_labels=labels, classes=np.array(["a", "b", "c"]))
    recorded.client.log_artifact(recorded.fold_runs["turned", 0, 1, 1], str(tmp_path / schema.ARRAYS))
    study = load_study(recorded.uri, "radius")
    table = repeats(study, recorded.uri).set_index("variant")
    assert table["note"].tolist() == ["", "partition 0 fold 1: every class has the same position in run 1", ""]
    assert np.isnan(table.loc["turned", "aligned"]) and table.loc["named", "raw"] == 0
    page = write_report(compare(study), tmp_path / "report", repeats(study, recorded.uri)).read_text(encoding="utf-8")
    assert "every class has the same position in run 1" in page


def test_only_so_many_arrays_are_read_the_baseline_first(recorded: Recorded) -> None:
    study = load_study(recorded.uri, "radius")
    table = repeats(study, recorded.uri, most=8)
    assert table["variant"].tolist() == ["named", "turned", "axes"]
    assert table["note"].tolist() == ["", "", "not read: only 8 fold runs are"] and table["aligned"].isna().sum() == 1


def test_one_seed_repeats_nothing(whole: Recorded) -> None:
    assert repeats(load_study(whole.uri, "radius"), whole.uri).empty


def test_a_variant_with_missing_fold_runs_has_no_row(uri: str, tmp_path: Path) -> None:
    made = write_study(uri, SCORES, baseline="named", seeds=(0, 1), bad={("axes", 1): ("failed", "out of memory")})
    write_arrays(made, tmp_path)
    assert repeats(load_study(uri, "radius"), uri)["variant"].tolist() == ["named", "turned"]


def test_euclidean_distances_survive_a_rotation(uri: str) -> None:
    options = {"l1": {"loss.name": "distance", "loss.distance": "l1"}, "l2": {"loss.name": "distance"}}
    options["l2"] = options["l2"] | {"loss.distance": "l2"}
    write_study(uri, {"l1": (0.5, 0.6), "l2": (0.5, 0.6)}, baseline="l1", parameters=options)
    assert [symmetry_of(variant) for variant in load_study(uri, "radius").variants] == ["axes", "isometries"]
