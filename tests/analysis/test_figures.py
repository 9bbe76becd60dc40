"""Figures of scores: what they draw is what the frame holds, and degenerate studies are drawn or refused."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from recorded import SCORES, Recorded, write_study

from analysis.figures import (
    axis_of,
    bars_figure,
    curve_figure,
    importance_figure,
    importances,
    learning_figure,
    mean_interval,
    pairs_figure,
    parallel_figure,
    save,
    selection,
    settings_frame,
    shown_rows,
)
from analysis.runs import load_study
from analysis.tables import Comparison, compare
from sweeps import schema


def numeric(recorded: Recorded) -> Comparison:
    """The study with its radius as a number, as sweeps record it."""
    for run in recorded.client.search_runs(["1"], f"tags.`{schema.ROLE}` = '{schema.VARIANT_ROLE}'"):
        varied = {key: float(value) for key, value in json.loads(run.data.tags[schema.VARIED]).items()}
        recorded.client.set_tag(run.info.run_id, schema.VARIED, json.dumps(varied))
    return compare(load_study(recorded.uri, "radius"))


def test_bars_are_the_means_with_the_corrected_interval(whole: Recorded) -> None:
    comparison = compare(load_study(whole.uri, "radius"))
    figure = bars_figure(comparison)
    (axis,) = figure.axes
    assert [patch.get_height() for patch in axis.patches] == pytest.approx([0.75, 0.7, 0.7])
    assert axis.get_ylim()[0] == 0
    # sd .0158 of radius=5, sqrt(1/5 + 60/210), t(4) = 2.776: half-width .0306
    assert mean_interval(comparison, "radius=5") == pytest.approx((0.7 - 0.0306, 0.7 + 0.0306), abs=1e-4)
    plt.close(figure)


def test_pairs_are_the_differences_on_each_fold(whole: Recorded) -> None:
    figure = pairs_figure(compare(load_study(whole.uri, "radius")))
    dots = figure.axes[0].collections[1].get_offsets()[:, 0]
    assert np.allclose(dots, np.subtract(SCORES["radius=2"], SCORES["radius=5"]))
    plt.close(figure)


def test_a_curve_goes_over_the_numeric_setting(own: Recorded) -> None:
    comparison = numeric(own)
    key = axis_of(comparison.study)
    assert key == "guide.radius"
    figure = curve_figure(comparison, key)
    mean = next(line for line in figure.axes[0].lines if line.get_marker() == "o")
    assert mean.get_xdata() == pytest.approx([2, 5, 8]) and mean.get_ydata() == pytest.approx([0.75, 0.7, 0.7])
    plt.close(figure)


def test_a_study_of_words_has_no_axis(whole: Recorded) -> None:
    assert axis_of(load_study(whole.uri, "radius")) is None  # recorded as text there


def test_of_many_variants_the_best_are_shown_and_it_is_said(uri: str, tmp_path: Path) -> None:
    write_study(uri, {f"v={number:02d}": (number / 100, number / 100 + 0.01) for number in range(12)}, baseline="v=00")
    comparison = compare(load_study(uri, "radius"))
    assert shown_rows(comparison, 4)["variant"].tolist() == ["v=00", "v=09", "v=10", "v=11"]
    assert "Of 12 variants the baseline and the 3 with the highest means are shown" in selection(comparison, 4)
    assert selection(comparison, 12) == ""


def test_incomplete_studies_are_drawn(uri: str, tmp_path: Path) -> None:
    bad = {("b", 1): ("diverged", "the loss is nan"), ("c", 0): ("failed", "out of memory")}
    write_study(uri, {"a": (0.5, 0.6), "b": (0.5, 0.6), "c": (0.4, 0.5)}, baseline="a", bad=bad)
    comparison = compare(load_study(uri, "radius"))
    for draw in (bars_figure, pairs_figure):
        figure = draw(comparison)
        save(figure, tmp_path / "drawn.svg")
        plt.close(figure)
    assert settings_frame(comparison)["score"].tolist() == [0.55]


def test_what_cannot_be_compared_is_refused(uri: str) -> None:
    bad = {(name, 0): ("failed", "out of memory") for name in ("a", "b")}
    write_study(uri, {"a": (0.5, 0.6), "b": (0.5, 0.6)}, baseline="b", bad=bad)
    comparison = compare(load_study(uri, "radius"))
    with pytest.raises(ValueError, match="no variant has all its fold runs"):
        bars_figure(comparison)
    with pytest.raises(ValueError, match="the baseline b lacks fold runs"):
        pairs_figure(comparison)


def test_importance_finds_the_setting_that_matters() -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"a": rng.uniform(0, 1, 80), "b": rng.uniform(0, 1, 80), "c": rng.choice(["x", "y"], 80)})
    frame["score"] = frame["a"]
    found = importances(frame)
    assert next(iter(found)) == "a" and found["a"] > 0.7 and sum(found.values()) == pytest.approx(1)
    for figure in (importance_figure(found), parallel_figure(frame, "macro-F1", most=20)):
        plt.close(figure)
    with pytest.raises(ValueError, match="there are 5 variants, 3 settings and 5 scores"):
        importances(frame.head(5))
    with pytest.raises(ValueError, match="no variant has a mean"):
        parallel_figure(frame.head(0), "macro-F1")


def test_a_setting_that_some_variants_do_not_have_is_neither_decisive_nor_a_gap() -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"a": rng.uniform(0, 1, 60), "c": rng.uniform(0, 1, 60), "n": rng.choice([8.0, 16, 32], 60)})
    frame.loc[rng.uniform(size=60) < 0.5, "c"] = np.nan
    frame["t"] = np.where(frame["c"].isna(), "", "x")
    frame["score"] = frame["a"]
    found = importances(frame)
    assert next(iter(found)) == "a" and found["c"] < 0.25
    figure = parallel_figure(frame, "macro-F1")
    (axis,) = figure.axes
    lines = [line for line in axis.lines if len(line.get_xdata()) == 5]
    assert len(lines) == 60 and all(np.isfinite(line.get_ydata()).all() for line in lines)
    told = [text.get_text() for text in axis.texts]
    assert told.count("absent") == 2 and {"8", "16", "32"} <= set(told) and "24" not in told
    plt.close(figure)


def test_learning_curves_are_means_over_those_that_got_there() -> None:
    first = pd.DataFrame({"epoch": [0.0, 1.0], schema.VAL_F1: [0.2, 0.4], schema.LENGTH: [2.0, 3.0]})
    second = pd.DataFrame({"epoch": [0.0], schema.VAL_F1: [0.4], schema.LENGTH: [2.0]})
    figure = learning_figure({"a": [first, second]})
    assert figure.axes[0].lines[0].get_ydata() == pytest.approx([0.3, 0.4]) and len(figure.axes) == 2
    plt.close(figure)
    with pytest.raises(ValueError, match="no epochs are recorded"):
        learning_figure({"a": [first.head(0)], "b": []})
