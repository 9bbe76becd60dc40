"""Searches in tables and reports: only the judgement is a result, and what it was chosen from is marked as such."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from recorded import Recorded, write_study

from analysis.__main__ import main
from analysis.runs import load_study
from analysis.tables import caption, compare, render, sentence
from sweeps import schema

LENGTHS = {f"length={4 + at}": (0.50 + at / 100, 0.55 + at / 200, 0.45 + at / 100) for at in range(9)}
KEYS = {
    label: {"embedding.length": str(4 + at), "norm.weight": str(0.001 * (at % 4 + 1))}
    for at, label in enumerate(LENGTHS)
}
JUDGED = {"length=4": (0.40, 0.44), "winner: length=12": (0.46, 0.47)}


def searched(uri: str, *, groups: int = 2, dropped: bool = True) -> Recorded:
    """A search of nine variants, one of them dropped after two folds, and the judgement of its winner."""
    bad = {("length=9", 2): ("stopped", "partition 0, fold 2, seed 0: not among the best")} if dropped else {}
    tags = {schema.STAGE: schema.SEARCH}
    write_study(uri, LENGTHS, baseline="length=4", study="5ea7c4", bad=bad, parameters=KEYS, tags=tags)
    tags = {schema.STAGE: schema.JUDGE, schema.JUDGES: "5ea7c4"}
    locked = {"folds.holdout": json.dumps(["patient=P3", "patient=P5"][:groups])}
    return write_study(
        uri,
        {label: folds[:groups] for label, folds in JUDGED.items()},
        baseline="length=4",
        study="1ud9ed",
        started="2026-01-02T04:00:00+00:00",
        seeds=(0, 1, 2),
        parameters=dict.fromkeys(JUDGED, locked),
        tags=tags,
    )


def test_the_table_of_a_search_is_its_judgement_and_says_over_what(uri: str) -> None:
    searched(uri)
    comparison = compare(load_study(uri, "radius"))
    assert comparison.study.id == "1ud9ed" and comparison.study.locked == ("patient=P3", "patient=P5")
    told = caption(comparison)
    assert "which the search never saw: patient=P3, patient=P5 (3 seeds, averaged first)" in told
    assert "the interval are over these 2 groups" in told and "corrected resampled t" in told
    row = comparison.frame.set_index("variant").loc["winner: length=12"]
    assert row["difference"] == pytest.approx(0.045) and row["low"] < 0.045 < row["high"]
    assert "over 2 locked groups no variant can be told from the baseline length=4" in sentence(comparison)


def test_a_single_locked_group_gives_no_interval_and_says_why(uri: str) -> None:
    searched(uri, groups=1)
    comparison = compare(load_study(uri, "radius"))
    told = caption(comparison)
    assert "With a single locked group there is no interval" in told and "corrected resampled t" not in told
    row = comparison.frame.set_index("variant").loc["winner: length=12"]
    assert row[["difference", "low", "high", "p"]].isna().all() and row["verdict"] == "not comparable"
    assert sentence(comparison) == (
        "Not decided: winner: length=12 and the baseline length=4 were judged on a single locked group, patient=P3; "
        "lock two groups or more for an interval."
    )


def test_what_a_search_chose_from_is_no_result(uri: str, capsys: pytest.CaptureFixture[str]) -> None:
    searched(uri)
    comparison = compare(load_study(uri, "radius", "5ea7c4"))
    frame = comparison.frame.set_index("variant")
    assert comparison.study.metric == schema.BEST_VAL_F1 and frame.loc["length=4", "mean"] == pytest.approx(0.6)
    assert frame[["difference", "low", "high", "p", "p_equal"]].isna().all(axis=None)
    assert set(frame["verdict"]) == {"baseline", "no result", "incomplete"}
    for told in (caption(comparison), sentence(comparison), render(comparison, "text")):
        assert "Chosen by validation, no result" in told
    assert "of 8 variants trained on every fold length=12 has the highest" in sentence(comparison)
    assert "corrected resampled t" not in caption(comparison) and comparison.detectable is None
    assert main(["table", "radius", "--uri", uri, "--study", "5ea7c4"]) == 1
    assert "Chosen by validation, no result" in capsys.readouterr().out


def test_a_winner_that_is_the_baseline_is_told(uri: str) -> None:
    tags = {schema.STAGE: schema.JUDGE, schema.JUDGES: "5ea7c4"}
    locked = {"length=4": {"folds.holdout": json.dumps(["P3", "P5"])}}
    write_study(uri, {"length=4": (0.4, 0.5)}, baseline="length=4", parameters=locked, tags=tags)
    told = sentence(compare(load_study(uri, "radius")))
    assert told == "The search found nothing better than its baseline, length=4, which was judged alone."


def test_the_report_of_a_judgement_shows_the_search_as_validation(uri: str, tmp_path: Path) -> None:
    searched(uri)
    assert main(["report", "radius", "--uri", uri, "--out", str(tmp_path)]) == 0
    page = tmp_path / "reports" / "radius"
    html = (page / "report.html").read_text(encoding="utf-8")
    for name, title in (("importance", "Which settings matter"), ("parallel", "Settings and scores")):
        assert f"{title} in the search, by validation" in html
        assert (page / "figures" / f"{name}.svg").exists()
    assert "Validation scores, no result: 8 of the 9 variants that the search asked for" in html
    assert "validation macro-F1" in (page / "figures" / "parallel.svg").read_text(encoding="utf-8")
    assert "They were judged on patient=P3, patient=P5" in html


def test_the_report_of_a_search_alone_shows_no_test_cells(uri: str, tmp_path: Path) -> None:
    searched(uri, dropped=False)
    assert main(["report", "radius", "--uri", uri, "--out", str(tmp_path), "--study", "5ea7c4"]) == 0
    html = (tmp_path / "reports" / "radius" / "report.html").read_text(encoding="utf-8")
    assert "Chosen by validation, no result" in html and "F1 of each class" not in html
    assert "test macro-F1" not in html and "in the search, by validation" in html
