"""The report's files: they stand alone, say what the table says, and are the same for the same numbers."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import PathCollection
from recorded import SCORES, Recorded, write_cells, write_study

from analysis.__main__ import main
from analysis.artifacts import attach
from analysis.figures import comparison_figure, save
from analysis.methods import settings
from analysis.report import write_report
from analysis.runs import load_study
from analysis.tables import caption, compare, render, sentence
from sweeps import schema

FIGURES = {f"figures/{name}.{form}" for name in ("comparison", "bars", "folds") for form in ("svg", "pdf")}
TABLES = {f"tables/{name}.{form}" for name in ("comparison", "classes") for form in ("csv", "tex")}
FILES = {"report.html", "report.md", *FIGURES, *TABLES}

CLAIMS = pd.DataFrame(
    {
        "claim": ["1", "15"],
        "statement": ["growing improves CE", "guide2D may be truncated"],
        "verdict": ["inconclusive", "not tested"],
        "effect": [0.021, np.nan],
        "low": [-0.01, np.nan],
        "high": [0.052, np.nan],
        "n_folds": [5, 0],
        "decides": ["three times the data", "a sweep with guide2D"],
    }
)

# Worked by hand from SCORES: differences of radius=2 are .05 ± .0071 over five folds, n_test/n_train = 60/210.
GOLDEN = """| variant | test macro-F1 | folds | difference [95 %] | p | verdict | best epoch | length | s/fold run |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |
| radius=2 | 0.750 ± 0.020 | 5 | +0.050 [+0.036, +0.064] | 0.001 | better | 8 | 14/64 | 12.5 |
| radius=5 | 0.700 ± 0.016 | 5 | – | – | baseline | 8 | 14/64 | 12.5 |
| radius=8 | 0.700 ± 0.030 | 5 | +0.000 [-0.031, +0.031] | 1.000 | inconclusive | 8 | 14/64 | 12.5 |
"""
TOLD = (
    "radius=2 (+0.050 [+0.036, +0.064]) is better than the baseline radius=5 in test macro-F1. Inconclusive: over 5 "
    "folds radius=8 cannot be told from the baseline radius=5 in test macro-F1. One comparison of this design finds a "
    "true difference of 0.030 in 80 % of cases, a smaller one less often: more data, not more folds, would decide."
)


def written(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_the_report_says_what_the_table_says(whole: Recorded, tmp_path: Path) -> None:
    comparison = compare(load_study(whole.uri, "radius"))
    page = write_report(comparison, tmp_path / "reports" / "radius")
    assert page == tmp_path / "reports" / "radius" / "report.html"
    assert written(page.parent) == FILES
    html = page.read_text(encoding="utf-8")
    for told in (sentence(comparison), caption(comparison), "Which radius?", "radius on marrow", "0123456789ab"):
        assert told in html
    assert render(comparison, "html") in html
    assert "15 finished of 15 planned" in html and "Missing fold runs" not in html
    assert "class blast has no test cell (radius=2 fold 0, radius=5 fold 0, radius=8 fold 0)" in html
    assert "<dt>data needed to detect a difference of 0.01</dt><dd>9.0 times these" in html
    assert "<td>guide.radius</td>" not in html and "<td>loss.name</td>" in html  # settings as they are recorded
    assert "3 variants, which differ in guide.radius, were trained on marrow (digest f1n9e5)" in html
    markdown = (page.parent / "report.md").read_text(encoding="utf-8")
    assert GOLDEN in markdown and f"**{TOLD}**" in markdown
    assert (page.parent / "tables/comparison.csv").read_text(encoding="utf-8") == render(comparison, "csv")
    assert (page.parent / "tables/comparison.tex").read_text(encoding="utf-8") == render(comparison, "latex")


def test_the_page_needs_no_network(whole: Recorded, tmp_path: Path) -> None:
    html = write_report(compare(load_study(whole.uri, "radius")), tmp_path).read_text(encoding="utf-8")
    assert not re.search(r"<script|<link|@import|src=\"?http|url\(\"?http", html)
    assert "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-" in html
    svg = html[html.index("<svg") : html.index("</svg>") + 6]
    assert ElementTree.fromstring(svg).tag.endswith("svg")
    texts = [node.text for node in ElementTree.fromstring(svg).iter() if node.tag.endswith("text")]
    assert {"radius=2", "radius=5", "radius=8"} <= set(texts)  # text stays text


def test_the_same_numbers_give_the_same_files(whole: Recorded, tmp_path: Path) -> None:
    comparison = compare(load_study(whole.uri, "radius"))
    for name in ("one", "other"):
        write_report(comparison, tmp_path / name)
    for name in FILES:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "other" / name).read_bytes(), name


def test_missing_fold_runs_are_on_the_page(own: Recorded, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own.client.delete_run(own.fold_runs["radius=2", 0, 1, 0])
    assert main(["report", "radius", "--uri", own.uri, "--out", str(tmp_path)]) == 1
    told = "radius=2: fold 1 absent: has not been run, or is still running"
    folder = tmp_path / "reports" / "radius"
    html = (folder / "report.html").read_text(encoding="utf-8")
    assert "Missing fold runs" in html and told in html and "14 finished of 15 planned" in html
    assert told in (folder / "report.md").read_text(encoding="utf-8")
    printed = capsys.readouterr().out
    assert "the report has no figures of cells (Failed to download artifacts" in " ".join(printed.split())
    assert f"missing {told}" in printed and f"report  {folder / 'report.html'}" in printed


def test_what_a_label_holds_is_no_markup(uri: str, tmp_path: Path) -> None:
    scores = {"<b>&5": (0.7, 0.6), "[red]2": (0.71, 0.63)}
    write_study(uri, scores, baseline="<b>&5", data="a <script> & co")
    html = write_report(compare(load_study(uri, "radius")), tmp_path).read_text(encoding="utf-8")
    assert "<b>" not in html and "<script>" not in html and "&lt;b&gt;&amp;5" in html
    assert main(["report", "radius", "--uri", uri, "--out", str(tmp_path)]) == 0


def test_the_figure_draws_what_the_frame_holds(whole: Recorded) -> None:
    comparison = compare(load_study(whole.uri, "radius"))
    figure = comparison_figure(comparison)
    left, right = figure.axes
    dots = [part for part in left.collections if isinstance(part, PathCollection)]
    assert [tuple(row.get_offsets()[:, 0]) for row in dots] == list(SCORES.values())
    assert [float(line.get_xdata()[0]) for line in left.lines] == pytest.approx([0.75, 0.7, 0.7])
    ends = [bar.lines[2][0].get_segments()[0][:, 0] for bar in right.containers]
    assert ends[0] == pytest.approx([0.0363175, 0.0636825], abs=1e-7) and len(ends) == 2
    assert [text.get_text() for text in right.texts] == ["better", "baseline", "inconclusive"]
    assert [label.get_text() for label in left.get_yticklabels()] == list(SCORES)
    plt.close(figure)


def test_an_unbounded_interval_and_a_single_fold_can_be_drawn(uri: str, tmp_path: Path) -> None:
    scores = {"radius=5": (0.5, 0.5), "radius=2": (0.75, 0.75)}
    write_study(uri, scores, baseline="radius=5")
    write_study(uri, {"radius=5": (0.5,), "radius=2": (0.6,)}, baseline="radius=5", sweep="one", study="one")
    for sweep in ("radius", "one"):
        comparison = compare(load_study(uri, sweep))
        assert comparison.frame["verdict"].tolist()[1] in ("inconclusive", "not comparable")
        figure = comparison_figure(comparison)
        save(figure, tmp_path / f"{sweep}.png")
        plt.close(figure)
        assert (tmp_path / f"{sweep}.png").stat().st_size > 1000


def test_cells_are_shown_and_the_report_is_attached_once(
    own: Recorded, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_cells(own, tmp_path, cells=100)
    assert main(["report", "radius", "--uri", own.uri, "--out", str(tmp_path)]) == 0
    assert "not attached" not in capsys.readouterr().out
    folder = tmp_path / "reports" / "radius"
    more = ("learning", "guide", "samples", "embeddings", "confusion", "risk")
    assert written(folder) == FILES | {f"figures/{name}.{form}" for name in more for form in ("svg", "pdf")}
    html = (folder / "report.html").read_text(encoding="utf-8")
    assert "Not drawn" not in html and "secret" not in html
    (folder / "report.md").write_text("newer", encoding="utf-8")
    study = load_study(own.uri, "radius")
    assert attach(own.uri, study, folder) is None
    where = f"tags.`{schema.ROLE}` = '{schema.STUDY_ROLE}'"
    (run,) = own.client.search_runs([e.experiment_id for e in own.client.search_experiments()], where)
    attached = Path(own.client.download_artifacts(run.info.run_id, schema.REPORT, str(tmp_path)))
    assert written(attached) == written(folder)
    assert (attached / "report.html").read_text(encoding="utf-8") == html
    assert (attached / "report.md").read_text(encoding="utf-8") == "newer"


def test_a_store_that_takes_no_report_is_told(whole: Recorded, tmp_path: Path) -> None:
    study = load_study(whole.uri, "radius")
    told = "the study has no run of its own in MLflow; run the sweep again to write it"
    assert attach(whole.uri, study, tmp_path) == told
    (tmp_path / "file").touch()
    assert "Error" in str(attach(f"sqlite:///{tmp_path}/file/mlflow.db", study, tmp_path))


@pytest.mark.parametrize("claims", [None, CLAIMS], ids=["none", "two"])
def test_verdicts_on_claims_come_first(whole: Recorded, tmp_path: Path, claims: pd.DataFrame | None) -> None:
    page = write_report(compare(load_study(whole.uri, "radius")), tmp_path, claims=claims)
    html = page.read_text(encoding="utf-8")
    assert ("The paper&#x27;s claims on these data" in html) == (claims is not None)
    if claims is not None:
        assert html.index("growing improves CE") < html.index("<h2>Comparison</h2>")
        assert "+0.021 [-0.010, +0.052]" in html and "<td>–</td>" in html


def test_paths_of_this_machine_stay_here(uri: str, tmp_path: Path) -> None:
    own = {"a": {"data.source": "/home/someone/cells/manifest.csv"}, "b": {"data.source": "/srv/b/other.csv"}}
    write_study(uri, {"a": (0.5, 0.6), "b": (0.6, 0.7)}, baseline="a", parameters=own)
    table = settings(load_study(uri, "radius")).set_index("setting")
    assert table.loc["data.source", "value"] == "manifest.csv, other.csv" and table.loc["data.source", "varied"]
