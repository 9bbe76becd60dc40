"""What stands in MLflow is read whole, named where it is missing, and refused where it cannot be trusted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from mlflow.entities import Metric
from recorded import SCORES, Recorded, copy_run, write_study

from analysis.runs import default_uri, load_study
from sweeps import schema

FEW = {"radius=5": (0.7, 0.6)}


def test_every_planned_fold_run_is_a_row(whole: Recorded) -> None:
    study = load_study(whole.uri, "radius")
    assert [variant.label for variant in study.variants] == ["radius=2", "radius=5", "radius=8"]
    assert study.baseline.label == "radius=5" and study.complete
    assert study.variants[0].varied == {"guide.radius": "2"}
    assert study.variants[0].parameters["embedding.length"] == "64"
    assert (study.question, study.metric, study.data) == ("Which radius?", "test/f1_macro", "marrow")
    assert (study.git_commit, study.git_dirty, study.experiment) == ("0123456789abcdef", False, "radius on marrow")
    frame = study.frame
    assert len(frame) == 15 and set(frame["status"]) == {"finished"} and set(frame["grouped_by"]) == {"region"}
    for variant, scores in SCORES.items():
        assert tuple(frame.loc[frame["variant"] == variant, schema.TEST_F1]) == scores
    assert frame.loc[0, "notes"] == ("class blast has no test cell",) and frame.loc[1, "notes"] == ()


def test_a_deleted_run_is_absent_and_has_no_number(own: Recorded) -> None:
    own.client.delete_run(own.fold_runs["radius=8", 0, 3, 0])
    study = load_study(own.uri, "radius")
    (row,) = study.frame[study.frame["status"] != "finished"].to_dict("records")
    assert (row["variant"], row["fold"], row["status"]) == ("radius=8", 3, "absent")
    assert row["reason"] == "has not been run, or is still running"
    assert np.isnan(row[schema.TEST_F1]) and not study.complete


@pytest.mark.parametrize("status", ["failed", "diverged"])
def test_a_fold_run_that_did_not_end_has_its_reason(uri: str, status: str) -> None:
    write_study(uri, FEW, baseline="radius=5", bad={("radius=5", 1): (status, "the loss is nan in epoch 3")})
    (row,) = load_study(uri, "radius").frame.query("status != 'finished'").to_dict("records")
    assert (row["status"], row["reason"]) == (status, "the loss is nan in epoch 3")
    assert np.isnan(row[schema.TEST_F1])


def test_a_fold_run_that_is_only_partly_written_is_absent(own: Recorded) -> None:
    own.client.update_run(own.fold_runs["radius=2", 0, 0, 0], status="RUNNING")
    (row,) = load_study(own.uri, "radius").frame.query("status != 'finished'").to_dict("records")
    assert row["status"] == "absent" and row["reason"].startswith("is only partly in MLflow")


def test_a_doubled_fold_run_is_refused(own: Recorded) -> None:
    again = copy_run(own, own.fold_runs["radius=2", 0, 4, 0])
    with pytest.raises(ValueError, match=r"fold run 'radius=2 · partition 0 · fold 4 · seed 0' stands twice") as told:
        load_study(own.uri, "radius")
    assert again in str(told.value) and own.fold_runs["radius=2", 0, 4, 0] in str(told.value)
    own.client.delete_run(again)
    assert load_study(own.uri, "radius").complete


def test_a_doubled_variant_is_refused(own: Recorded) -> None:
    copy_run(own, own.variants["radius=8"])
    with pytest.raises(ValueError, match="variant 'radius=8' stands twice in MLflow"):
        load_study(own.uri, "radius")


@pytest.mark.parametrize(("stored", "shown"), [(float("inf"), "1.797"), (-1.797e308, "-1.797e"), (float("nan"), "nan")])
def test_a_metric_that_is_not_finite_is_refused(own: Recorded, stored: float, shown: str) -> None:
    later = Metric(schema.TEST_F1, stored, 1, 0)
    own.client.log_batch(own.fold_runs["radius=5", 0, 2, 0], metrics=[later])
    with pytest.raises(ValueError, match=rf"fold 2 · seed 0': metric 'test/f1_macro' is {shown}.*; that is no result"):
        load_study(own.uri, "radius")


def test_a_finished_fold_run_without_its_metric_is_refused(own: Recorded) -> None:
    for run_id in own.variants.values():
        own.client.set_tag(run_id, schema.METRIC, schema.TEST_ACCURACY)
    with pytest.raises(ValueError, match="is finished but lacks test/accuracy"):
        load_study(own.uri, "radius")


def test_a_variant_whose_run_was_deleted_does_not_leave_unseen(own: Recorded) -> None:
    own.client.delete_run(own.variants["radius=8"])
    with pytest.raises(ValueError, match="the run of variant radius=8 is not in MLflow; run the sweep again"):
        load_study(own.uri, "radius")


def test_a_variant_that_was_deleted_with_its_fold_runs_leaves_a_gap_in_the_order(own: Recorded) -> None:
    for run_id in [own.variants["radius=2"], *(own.fold_runs["radius=2", 0, fold, 0] for fold in range(5))]:
        own.client.delete_run(run_id)
    with pytest.raises(ValueError, match="the run of variant number 1 is not in MLflow"):
        load_study(own.uri, "radius")


@pytest.mark.parametrize(("variant", "value", "count"), [("radius=5", "false", 0), ("radius=2", "true", 2)])
def test_one_baseline_is_needed(own: Recorded, variant: str, value: str, count: int) -> None:
    own.client.set_tag(own.variants[variant], schema.BASELINE, value)
    with pytest.raises(ValueError, match=rf"study 5eed of sweep 'radius' has {count} baselines .*; one is needed"):
        load_study(own.uri, "radius")


def test_two_studies_never_mix_and_the_later_one_is_the_default(own: Recorded) -> None:
    newer = {variant: tuple(score + 0.1 for score in scores[:2]) for variant, scores in SCORES.items()}
    write_study(own.uri, newer, baseline="radius=5", study="new", started="2026-02-01T00:00:00+00:00")
    write_study(own.uri, FEW, baseline="radius=5", study="pbc", data="pbc", started="2025-12-01T00:00:00+00:00")
    assert load_study(own.uri, "radius").id == "new"
    for study, expected in (("5eed", SCORES), ("new", newer), ("pbc", FEW)):
        frame = load_study(own.uri, "radius", study).frame
        assert frame[schema.TEST_F1].tolist() == [score for scores in expected.values() for score in scores]
    with pytest.raises(
        ValueError, match=r"has no study 'older'; it has: pbc \(2025.*, 5eed \(2026-01.*, new \(2026-02"
    ):
        load_study(own.uri, "radius", "older")


def test_sweeps_whose_names_begin_alike_do_not_mix(own: Recorded) -> None:
    later = "2027-01-01T00:00:00+00:00"
    write_study(own.uri, FEW, baseline="radius=5", sweep="radius on marrow", study="other", started=later)
    assert load_study(own.uri, "radius").id == "5eed"


def test_a_wrong_name_is_answered_with_the_nearest(whole: Recorded) -> None:
    with pytest.raises(ValueError, match=r"no runs of sweep 'raduis' in .*; did you mean 'radius'\?"):
        load_study(whole.uri, "raduis")
    with pytest.raises(ValueError, match=r"no runs of sweep 'zzz' in .*; it has radius"):
        load_study(whole.uri, "zzz")


def test_an_empty_store_says_so(uri: str) -> None:
    with pytest.raises(ValueError, match="it holds no sweep yet"):
        load_study(uri, "radius")


def test_no_store_is_made_by_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(ValueError, match=r"there is no store .*mlflow\.db; run a sweep first, or name its OUT"):
        load_study(default_uri(tmp_path), "radius")
    assert not list(tmp_path.iterdir())


def test_the_environment_names_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking:5000")
    assert default_uri(Path("runs")) == "http://tracking:5000"
