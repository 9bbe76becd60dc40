"""Best epochs, cost, one axis, all data sets and the next patient: worked by hand, what is missing named."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from recorded import SCORES, Recorded, write_study

from analysis.__main__ import main
from analysis.across import across, next_patient
from analysis.details import best_epochs, by_axis, cost
from analysis.runs import load_study
from analysis.stats import cluster_bootstrap
from analysis.tables import caption, compare
from sweeps import schema

Captured = pytest.CaptureFixture[str]


def test_best_epochs_and_cost_name_what_is_missing(own: Recorded, capsys: Captured) -> None:
    own.client.set_tag(own.fold_runs["radius=2", 0, 4, 0], schema.STATUS, "stopped")
    own.client.set_tag(own.fold_runs["radius=2", 0, 4, 0], schema.REASON, "raced out")
    study = load_study(own.uri, "radius")
    stopped, whole, _ = best_epochs(study).to_dict("records")  # 6, 7, 8, 9 and 10, of all but the last fold run
    assert (stopped["fold_runs"], stopped["first"], stopped["median"], stopped["last"]) == (4, 6, 7.5, 9)
    assert (whole["fold_runs"], whole["median"], whole["length"], whole["in_warm_up"]) == (5, 8, 14, 0)
    assert stopped["missing"] == "fold 4 stopped: raced out" and whole["missing"] == "" and np.isnan(whole["epochs"])
    spent = cost(study)
    assert spent["hours"].tolist() == pytest.approx([4 * 12.5 / 3600] + [5 * 12.5 / 3600] * 2)
    assert spent["seconds_per_epoch"].isna().all()
    for table in ("epochs", "cost", "classes"):
        assert main(["table", "radius", "--uri", own.uri, "--of", table]) == 1
        assert "Missing: radius=2: fold 4 stopped: raced out." in capsys.readouterr().out
    for form, word in (
        ("latex", r"\toprule"),
        ("html", "<table"),
        ("markdown", "| variant |"),
        ("csv", "variant,fold_runs"),
    ):
        assert main(["table", "radius", "--uri", own.uri, "--of", "cost", "--format", form]) == 1
        assert word in capsys.readouterr().out


def test_a_best_epoch_in_the_warm_up_is_counted(uri: str) -> None:
    recorded = write_study(uri, {"radius=5": (0.7, 0.6)}, baseline="radius=5")
    recorded.client.log_metric(recorded.fold_runs["radius=5", 0, 0, 0], schema.BEST_EPOCH, 2.0, timestamp=9)
    assert best_epochs(load_study(uri, "radius"))["in_warm_up"].tolist() == [1]


def test_an_axis_stands_in_the_order_of_its_values(uri: str, capsys: Captured) -> None:
    parameters = {f"alpha={value}": {"loss.lowpass": value} for value in ("1.0", "0.6", "none", "0.05")}
    write_study(uri, dict.fromkeys(parameters, (0.7, 0.6)), baseline="alpha=0.6", parameters=parameters)
    comparison = compare(load_study(uri, "radius"))
    assert by_axis(comparison, "loss.lowpass")["value"].tolist() == ["0.05", "0.6", "1.0", "none"]
    assert main(["table", "radius", "--uri", uri, "--axis", "loss.lowpass"]) == 0
    assert "loss.lowpass" in capsys.readouterr().out
    assert main(["table", "radius", "--uri", uri, "--axis", "loss.name"]) == 2
    assert "radius does not vary 'loss.name'; it varies loss.lowpass" in capsys.readouterr().err


def test_the_judgement_of_a_search_is_told_as_such(own: Recorded) -> None:
    assert "locked away" not in caption(compare(load_study(own.uri, "radius")))
    for run in own.variants.values():
        own.client.set_tag(run, schema.STAGE, schema.JUDGE)
    told = caption(compare(load_study(own.uri, "radius")))
    assert "the winner of a search, chosen by validation on other groups" in told


# --- all data sets ----------------------------------------------------------------------------------------------------


def test_over_data_sets(uri: str, capsys: Captured) -> None:
    """Six data sets, on each of which a is better by .05: p of six signs alike is 2 / 2^6. Of two studies on one the
    newer counts."""
    for place in range(6):
        scores = {"base": (0.6, 0.7), "a": (0.65, 0.75), "b": (0.6 + (-1) ** place / 50, 0.7)}
        write_study(uri, scores, baseline="base", study=f"s{place}", data=f"set {place}")
    older = {"base": (0.9, 0.9), "a": (0.1, 0.1), "b": (0.1, 0.1)}
    write_study(uri, older, baseline="base", study="old", data="set 0", started="2025-01-01T00:00:00+00:00")
    found = across(uri, "radius")
    a, b = found.frame.to_dict("records")
    assert (a["variant"], a["data_sets"], a["better_on"], a["note"]) == ("a", 6, 6, "")
    assert a["difference"] == pytest.approx(0.05) and a["p"] == pytest.approx(2 * 2 / 64) and b["p"] > 0.5
    assert found.friedman is not None and found.friedman < 0.05 and found.scores.shape == (6, 3)
    assert main(["across", "radius", "--uri", uri]) == 0
    assert "radius over 6 data sets: means, their difference to base" in capsys.readouterr().out


def test_too_few_data_sets_are_refused_a_test(whole: Recorded, capsys: Captured) -> None:
    found = across(whole.uri, "radius")
    assert found.frame["p"].isna().all() and found.friedman is None
    assert main(["across", "radius", "--uri", whole.uri]) == 0
    told = capsys.readouterr().out
    assert (
        "No Wilcoxon test: a Wilcoxon test of 1 differences cannot go below p = 1" in told
        and "No Friedman test" in told
    )


# --- the next patient -------------------------------------------------------------------------------------------------


def write_predictions(recorded: Recorded, folder: Path, patients: int | None) -> pd.DataFrame:
    """Sixty cells over the folds; radius=8 errs on every third, the others on every second."""
    cells = pd.DataFrame({"id": [f"c{number:02}" for number in range(60)], "true": ["a", "b", "c"] * 20})
    cells["patient"] = [f"p{number % (patients or 1)}" for number in range(60)]
    for (variant, _, fold, _), run in recorded.fold_runs.items():
        own = cells.iloc[fold::5].copy()
        every = 3 if variant == "radius=8" else 2
        own["predicted"] = [
            "a" if int(name[1:]) % every == 0 else true for name, true in zip(own["id"], own["true"], strict=True)
        ]
        own = own if patients else own.drop(columns="patient")
        own.to_parquet(folder / schema.PREDICTIONS)
        recorded.client.log_artifact(run, str(folder / schema.PREDICTIONS))
    return cells


def test_the_next_patient(uri: str, tmp_path: Path, capsys: Captured) -> None:
    recorded = write_study(uri, SCORES, baseline="radius=5")
    cells = write_predictions(recorded, tmp_path, 7)
    _, better = next_patient(load_study(uri, "radius"), uri).to_dict("records")
    true = cells["true"].map({"a": 0, "b": 1, "c": 2}).to_numpy()
    number = np.arange(60)
    own, base = np.where(number % 3 == 0, 0, true), np.where(number % 2 == 0, 0, true)
    expected = cluster_bootstrap(true, own, base, cells["patient"].to_numpy(), 3)
    assert (better["grouped_by"], better["groups"]) == ("patient", 7)
    assert better["difference"] == pytest.approx(expected.mean) and better["low"] == pytest.approx(expected.low)
    assert main(["patients", "radius", "--uri", uri]) == 0
    assert "7 by patient" in capsys.readouterr().out
    assert main(["patients", "radius", "--uri", uri, "--format", "csv"]) == 0
    assert len(pd.read_csv(io.StringIO(capsys.readouterr().out))) == 2


@pytest.mark.parametrize(
    ("patients", "told"),
    [(None, "were recorded without region and patient"), (3, "a bootstrap over 3 groups says nothing")],
)
def test_who_is_not_known_is_not_guessed(uri: str, tmp_path: Path, patients: int | None, told: str) -> None:
    recorded = write_study(uri, {"radius=5": (0.7, 0.6), "radius=8": (0.7, 0.6)}, baseline="radius=5")
    write_predictions(recorded, tmp_path, patients)
    (row,) = next_patient(load_study(uri, "radius"), uri).to_dict("records")
    assert told in row["note"] and np.isnan(row["difference"])
