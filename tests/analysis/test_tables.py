"""Tables and sentences: exact where the numbers are worked by hand, never claiming more than the verdicts."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from dataclasses import replace
from math import nan
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from recorded import SCORES, Recorded, copy_run, write_study

from analysis.__main__ import main
from analysis.paper import TABLE_1
from analysis.report import write_report
from analysis.runs import StudyRuns, VariantInfo, load_study
from analysis.tables import (
    COLUMNS,
    FORMATS,
    Comparison,
    by_method,
    caption,
    compare,
    per_class,
    render,
    render_by_method,
    sentence,
)
from sweeps import schema

Captured = pytest.CaptureFixture[str]

# radius=2: corrected t of +.05 +.06 +.04 +.05 +.05 as worked in test_stats.py; p = .000532, times 2 by Holm.
TEXT = """\
variant   test macro-F1  folds  difference [95 %]        p      verdict       best epoch  length  s/fold run
radius=2  0.750 ± 0.020  5      +0.050 [+0.036, +0.064]  0.001  better        8           14/64   12.5
radius=5  0.700 ± 0.016  5      –                        –      baseline      8           14/64   12.5
radius=8  0.700 ± 0.030  5      +0.000 [-0.031, +0.031]  1.000  inconclusive  8           14/64   12.5

test/f1_macro on marrow: mean ± sd over 5 folds by region. Difference to radius=5, fold by fold, with its 95 % \
interval by the corrected resampled t (n_test/n_train = 0.286), not widened for the number of comparisons; p after \
Holm over 2; practically equal: within ± 0.01 with 95 % posterior probability (correlated t). Best epoch, and \
effective length there of the length allowed: medians; epochs count from 0.
"""

SENTENCE = (
    "radius=2 (+0.050 [+0.036, +0.064]) is better than the baseline radius=5 in test macro-F1. Inconclusive: over 5 "
    "folds radius=8 cannot be told from the baseline radius=5 in test macro-F1. One comparison of this design finds a "
    "true difference of 0.030 in 80 % of cases, a smaller one less often: more data, not more folds, would decide."
)


@pytest.fixture(scope="module")
def comparison(whole: Recorded) -> Comparison:
    return compare(load_study(whole.uri, "radius"))


def test_the_table_of_a_whole_study(comparison: Comparison) -> None:
    assert render(comparison, "text") == TEXT
    assert sentence(comparison) == SENTENCE


def test_csv_has_a_row_per_variant_at_full_precision(comparison: Comparison) -> None:
    frame = pd.read_csv(io.StringIO(render(comparison, "csv")))
    assert tuple(frame.columns) == COLUMNS
    assert {"variant", "mean", "sd", "folds", "difference", "low", "high"} <= set(frame.columns)
    assert frame["variant"].tolist() == list(SCORES) and frame["folds"].tolist() == [5, 5, 5]
    assert frame["mean"].tolist() == pytest.approx([0.75, 0.70, 0.70])
    assert frame["sd"].tolist() == pytest.approx([0.02, 0.000250**0.5, 0.03])
    better = frame.loc[0]
    assert better[["difference", "low", "high"]].tolist() == pytest.approx([0.05, 0.0363175, 0.0636825], abs=1e-7)
    assert better["p"] == pytest.approx(2 * 0.000532, abs=2e-6)
    assert frame.loc[1, ["difference", "low", "high", "p", "p_equal"]].isna().all()


def test_the_other_formats_hold_the_same_cells(comparison: Comparison) -> None:
    cells = re.split(r"  +|\n", TEXT.split("\n\n")[0])
    markdown = render(comparison, "markdown").split("\n\n")[0].splitlines()
    assert len({line.count("|") for line in markdown}) == 1
    assert [cell.strip() for line in markdown for cell in line.strip("|").split("|") if "---" not in cell] == cells
    assert re.findall(r"<t[hd]>(.*)</t[hd]>", render(comparison, "html")) == cells
    latex = render(comparison, "latex")
    assert r"radius=2 & 0.750 $\pm$ 0.020 & 5 & +0.050 [+0.036, +0.064] & 0.001 & better & 8 & 14/64 & 12.5 \\" in latex
    assert r"difference [95 \%]" in latex and r"n\_test/n\_train" in latex
    assert latex.count("rule\n") == 3 and latex.count("{") == latex.count("}")
    with pytest.raises(ValueError, match="no table format 'pdf'; there are text, markdown, csv, latex, html"):
        render(comparison, "pdf")


def test_latex_escapes_what_a_label_may_hold(comparison: Comparison) -> None:
    frame = comparison.frame.replace({"variant": {"radius=2": "norm_weight=50%, file=a\\b & {c}"}})
    latex = render(replace(comparison, frame=frame), "latex")
    assert r"norm\_weight=50\%, file=a\textbackslash{}b \& \{c\} & 0.750" in latex


def test_a_bar_in_a_label_does_not_split_a_markdown_row(comparison: Comparison) -> None:
    frame = comparison.frame.replace({"variant": {"radius=2": "where=a|b"}})
    assert r"| where=a\|b | 0.750" in render(replace(comparison, frame=frame), "markdown")


# --- what is missing ------------------------------------------------------------------------------------------------


def test_a_deleted_run_is_named_and_its_variant_has_no_mean(own: Recorded) -> None:
    for fold in (1, 3):
        own.client.delete_run(own.fold_runs["radius=2", 0, fold, 0])
    comparison = compare(load_study(own.uri, "radius"))
    row = comparison.frame.iloc[0]
    assert row["verdict"] == "incomplete" and row["folds"] == 3
    assert row[["mean", "sd", "difference", "low", "high", "p", "p_equal"]].isna().all()
    assert row["missing"] == "fold 1, fold 3 absent: has not been run, or is still running"
    text = render(comparison, "text")
    assert re.search(r"^radius=2 +– +3 +– +– +incomplete .* fold 1, fold 3 absent: has not been run", text, re.M)
    assert "Not compared, for lack of fold runs: radius=2." in sentence(comparison)
    assert "better" not in sentence(comparison)
    # The family stays as it was planned: p of the comparison that was not made counts as 1.
    assert comparison.frame["p"].tolist()[2] == 1.0 and "Holm over 2" in caption(comparison)


def test_without_a_whole_baseline_nothing_is_compared(own: Recorded) -> None:
    own.client.delete_run(own.fold_runs["radius=5", 0, 0, 0])
    comparison = compare(load_study(own.uri, "radius"))
    assert comparison.frame["difference"].isna().all() and comparison.detectable is None
    assert comparison.frame["verdict"].tolist() == ["not comparable", "incomplete", "not comparable"]
    assert sentence(comparison) == (
        "Not decided: the baseline radius=5 lacks fold runs, so nothing can be compared with it."
    )


def test_a_diverged_and_a_failed_fold_run_are_named_with_their_reasons(uri: str) -> None:
    scores = {"radius=5": (0.7, 0.6, 0.65), "radius=2": (0.7, 0.6, 0.65)}
    bad = {
        ("radius=2", 0): ("diverged", "the loss is nan in epoch 3"),
        ("radius=2", 2): ("failed", "OSError: disk full"),
    }
    write_study(uri, scores, baseline="radius=5", bad=bad)
    (_, row) = compare(load_study(uri, "radius")).frame.to_dict("records")
    assert row["missing"] == "fold 0 diverged: the loss is nan in epoch 3; fold 2 failed: OSError: disk full"
    assert row["verdict"] == "incomplete" and pd.isna(row["mean"])


def test_nothing_has_been_run_yet(uri: str) -> None:
    scores = {"radius=5": (0.7, 0.6), "radius=2": (0.7, 0.6)}
    bad = {(variant, fold): ("failed", "no space") for variant in scores for fold in (0, 1)}
    write_study(uri, scores, baseline="radius=5", bad=bad)
    comparison = compare(load_study(uri, "radius"))
    assert comparison.frame["folds"].tolist() == [0, 0] and comparison.ratio is None
    assert all(render(comparison, form) for form in FORMATS) and "Not decided" in sentence(comparison)


def test_seeds_are_averaged_before_anything_is_compared(uri: str) -> None:
    """Seed 1 adds .01 to both variants of every fold: means move by half of it, differences and folds stay."""
    scores = {"radius=5": (0.70, 0.71, 0.69), "radius=2": (0.75, 0.77, 0.73)}
    write_study(uri, scores, baseline="radius=5", seeds=(0, 1))
    frame = compare(load_study(uri, "radius")).frame
    assert frame["folds"].tolist() == [3, 3]
    assert frame["mean"].tolist() == pytest.approx([0.705, 0.755])
    assert frame.loc[1, "difference"] == pytest.approx(0.05)


def test_f1_of_each_class(own: Recorded) -> None:
    table = per_class(load_study(own.uri, "radius"))
    assert table.index.tolist() == ["blast", "segmented"] and table.columns.tolist() == list(SCORES)
    assert table.loc["segmented"].tolist() == pytest.approx([0.9] * 3)
    own.client.delete_run(own.fold_runs["radius=2", 0, 0, 0])
    assert per_class(load_study(own.uri, "radius")).columns.tolist() == ["radius=5", "radius=8"]


def test_a_wider_rope_makes_more_variants_practically_equal(whole: Recorded) -> None:
    study = load_study(whole.uri, "radius")
    assert compare(study, rope=0.031).frame["verdict"].tolist() == ["better", "baseline", "practically equal"]
    wide = compare(study, rope=0.07)
    assert wide.frame["verdict"].tolist() == ["practically equal", "baseline", "practically equal"]
    assert sentence(wide) == "Practically equal to radius=5, within ± 0.07: radius=2, radius=8."


# --- methods by length ----------------------------------------------------------------------------------------------

# mean and sd by hand: (.50 + .54) / 2 ± .0283; the paper has no growing at length 2 and no CTL.
BY_METHOD = """\
method       from   2              64
ce           here   0.520 ± 0.028  0.600 ± 0.141 (baseline)
             paper  0.597 ± 0.012  0.716 ± 0.016
ce growing   here                  0.600 ± 0.141 ≈
             paper                 0.722 ± 0.017
ctl growing  here                  incomplete

test/f1_macro by embedding length: mean ± sd over 2 folds on marrow; ↑ better, ↓ worse than the baseline, ≈ \
practically equal, = identical to it, no mark: not decided. Paper: Table 1 of Gräbel et al., on their data and folds: \
the order can be compared, the values cannot.
"""


def test_methods_stand_beside_the_papers(uri: str, capsys: Captured, tmp_path: Path) -> None:
    def method(loss: str, length: int, growing: bool) -> dict[str, str]:
        grows = str(growing).lower()
        return {
            "loss.name": loss,
            "embedding.length": str(length),
            "embedding.growing": grows,
            "embedding.warmup": grows,
        }

    parameters = {
        "CE 2": method("ce", 2, False),
        "CE 64": method("ce", 64, False),
        "CE growing 64": method("ce", 64, True),
        "CTL growing 64": method("ctl", 64, True),
    }
    scores = {"CE 2": (0.5, 0.54), "CE 64": (0.5, 0.7), "CE growing 64": (0.5001, 0.6999), "CTL growing 64": (0.4, 0.5)}
    bad = {("CTL growing 64", 1): ("failed", "no space")}
    write_study(uri, scores, baseline="CE 64", bad=bad, parameters=parameters)
    assert main(["table", "radius", "--uri", uri, "--by-method"]) == 1
    assert capsys.readouterr().out == BY_METHOD
    comparison = compare(load_study(uri, "radius"))
    frame = by_method(comparison)
    assert frame["paper_mean"].tolist()[:3] == [0.597, 0.716, 0.722] and pd.isna(frame["paper_mean"][3])
    assert pd.isna(frame["mean"][3]) and frame["length"].tolist() == [2, 64, 64, 64]
    page = write_report(comparison, tmp_path)
    assert render_by_method(comparison, "html") in page.read_text(encoding="utf-8")
    assert r"0.600 $\pm$ 0.141 $\approx$" in (tmp_path / "tables" / "methods.tex").read_text(encoding="utf-8")


def test_variants_of_one_method_and_length_are_refused_a_table(whole: Recorded, capsys: Captured) -> None:
    assert main(["table", "radius", "--uri", whole.uri, "--by-method"]) == 2
    assert "the variants of radius do not differ in both loss.name and embedding.length" in capsys.readouterr().err


def test_the_papers_table_is_method_mds() -> None:
    """The best gains that the paper tells: growing CE +.021 at 1024, distance +.013 at 1024 (4.2)."""
    gain = {key: TABLE_1["ce", True][key][0] - TABLE_1["ce", False][key][0] for key in (64, 256, 1024)}
    assert max(gain.values()) == pytest.approx(0.021)
    gain = {key: TABLE_1["distance", True][key][0] - TABLE_1["triplet", False][key][0] for key in (64, 256, 1024)}
    assert max(gain.values()) == pytest.approx(0.013) and gain[256] < 0
    assert sum(map(len, TABLE_1.values())) == 24


# --- the command line -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMATS)
def test_the_command_prints_each_format(whole: Recorded, comparison: Comparison, form: str, capsys: Captured) -> None:
    assert main(["table", "radius", "--uri", whole.uri, "--format", form]) == 0
    assert capsys.readouterr().out == render(comparison, form)


def test_a_missing_fold_run_makes_the_exit_code_1(own: Recorded, capsys: Captured) -> None:
    own.client.delete_run(own.fold_runs["radius=8", 0, 2, 0])
    assert main(["table", "radius", "--uri", own.uri]) == 1
    assert "fold 2 absent: has not been run" in capsys.readouterr().out


def test_what_cannot_be_read_makes_the_exit_code_2(own: Recorded, capsys: Captured, tmp_path: Path) -> None:
    assert main(["table", "raduis", "--uri", own.uri]) == 2
    told = capsys.readouterr()
    assert told.out == "" and "did you mean 'radius'?" in told.err
    assert main(["table", "radius", "--out", str(tmp_path / "nothing")]) == 2
    assert "run a sweep first" in capsys.readouterr().err
    assert main(["table", "radius", "--uri", own.uri, "--rope", "0"]) == 2
    assert "positive half-width, got 0" in capsys.readouterr().err
    copy_run(own, own.fold_runs["radius=8", 0, 2, 0])
    assert main(["report", "radius", "--uri", own.uri, "--out", str(tmp_path)]) == 2
    assert "stands twice in MLflow" in capsys.readouterr().err and not (tmp_path / "reports").exists()


def test_the_path_of_a_sweep_file_names_its_sweep(whole: Recorded, capsys: Captured) -> None:
    assert main(["table", "some/where/radius.yaml", "--uri", whole.uri, "--study", "5eed"]) == 0
    assert capsys.readouterr().out == TEXT


def test_the_module_is_a_command(whole: Recorded) -> None:
    told = subprocess.run(
        [sys.executable, "-m", "analysis", "table", "radius", "--uri", whole.uri],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (told.returncode, told.stdout) == (0, TEXT)


# --- the sentence ---------------------------------------------------------------------------------------------------

VERDICTS = ("better", "worse", "practically equal", "identical", "inconclusive", "incomplete", "not comparable")
CLAIMS = {
    "better": r"(.*) (?:is|are) better than the baseline base",
    "worse": r"(.*) (?:is|are) worse than the baseline base",
    "practically equal": r"Practically equal to base, within ± 0.01: (.*)",
    "identical": r"The same as the baseline in every fold: (.*)",
}


@given(st.lists(st.sampled_from(VERDICTS), min_size=1, max_size=9), st.booleans())
def test_a_sentence_claims_exactly_what_the_verdicts_do(verdicts: list[str], known: bool) -> None:
    comparison = judged(verdicts, detectable=0.5 if known else None)
    told = sentence(comparison)
    parts = re.split(r"\.(?: |$)", told)
    for verdict, pattern in CLAIMS.items():
        expected = {f"v{place}" for place, given in enumerate(verdicts) if given == verdict}
        found = [match[1] for part in parts if (match := re.fullmatch(pattern + ".*", part))]
        claimed = {name for names in found for name in re.findall(r"v\d", names)}
        assert claimed == expected, told
    doubts = verdicts.count("inconclusive")
    assert ("Inconclusive" in told) == (doubts > 0)
    assert ("no variant can be told" in told) == (doubts == len(verdicts))
    assert ("more data, not more folds" in told) == (doubts > 0 and known)
    unable = [f"v{place}" for place, one in enumerate(verdicts) if one in ("incomplete", "not comparable")]
    assert not unable or f"for lack of fold runs: {', '.join(unable)}." in told


def judged(verdicts: list[str], detectable: float | None) -> Comparison:
    """A comparison of variants v0, v1, … with `base`, as these verdicts would leave it."""
    rows = [("base", nan, nan, nan, "baseline")]
    for place, verdict in enumerate(verdicts):
        sign = {"better": 1.0, "worse": -1.0}.get(verdict, 0.0)
        rows.append((f"v{place}", sign, sign, sign, verdict))
    frame = pd.DataFrame(rows, columns=["variant", "difference", "low", "high", "verdict"]).assign(folds=5)
    baseline = VariantInfo("base", "id", {}, {}, True, ())
    study = StudyRuns(
        *("sweep", "id", "started", "question?", schema.TEST_F1, "data", "fingerprint", "commit", False, "experiment"),
        (baseline,),
        pd.DataFrame(),
    )
    return Comparison(study, frame, 0.01, 0.286, detectable, None)
