"""The report's files: they stand alone, say what the table says, and are the same for the same numbers."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
from matplotlib.collections import PathCollection
from recorded import SCORES, Recorded, write_study

from analysis.__main__ import main
from analysis.figures import comparison_figure, save
from analysis.report import write_report
from analysis.runs import load_study
from analysis.tables import caption, compare, render, sentence

FILES = {"report.html", "report.md", "comparison.csv", "comparison.tex", "comparison.svg", "comparison.pdf"}


def test_the_report_says_what_the_table_says(whole: Recorded, tmp_path: Path) -> None:
    comparison = compare(load_study(whole.uri, "radius"))
    page = write_report(comparison, tmp_path / "reports" / "radius")
    assert page == tmp_path / "reports" / "radius" / "report.html"
    assert {path.name for path in page.parent.iterdir()} == FILES
    html = page.read_text(encoding="utf-8")
    for told in (sentence(comparison), caption(comparison), "Which radius?", "radius on marrow", "0123456789ab"):
        assert told in html
    assert render(comparison, "html") in html
    assert "15 finished of 15 planned" in html and "Missing fold runs" not in html
    assert "class blast has no test cell (radius=2 fold 0, radius=5 fold 0, radius=8 fold 0)" in html
    assert "data needed to detect a difference of 0.01: 9.0 times these" in html
    markdown = (page.parent / "report.md").read_text(encoding="utf-8")
    assert sentence(comparison) in markdown and render(comparison, "markdown").rstrip() in markdown
    assert (page.parent / "comparison.csv").read_text(encoding="utf-8") == render(comparison, "csv")
    assert (page.parent / "comparison.tex").read_text(encoding="utf-8") == render(comparison, "latex")


def test_the_page_needs_no_network(whole: Recorded, tmp_path: Path) -> None:
    html = write_report(compare(load_study(whole.uri, "radius")), tmp_path).read_text(encoding="utf-8")
    assert not re.search(r"<script|<link|@import|src=\"?http|url\(\"?http", html)
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
