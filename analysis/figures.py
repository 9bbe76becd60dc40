"""Drawing only: numbers come computed. Colours are Okabe and Ito's, told apart by colour-blind readers too."""

from __future__ import annotations

from pathlib import Path
from textwrap import fill

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analysis.runs import FINISHED
from analysis.tables import Comparison
from sweeps import schema

BASELINE, OTHER, CLEAR, ROW = "#0072B2", "#555555", "#D55E00", "#ECECEF"
RC = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "comparison",  # the same numbers, the same file
    "pdf.fonttype": 42,
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def comparison_figure(comparison: Comparison) -> Figure:
    """Left: every fold run's score, folds in a fixed order from top to bottom, and the mean of each complete variant.
    Right: difference to the baseline with its interval, over the band of what is practically no difference, and the
    verdict in words; orange where it is better or worse, hollow where there is no mean or no interval."""
    frame, study = comparison.frame, comparison.study
    count = len(frame)
    metric = "test macro-F1" if study.metric == schema.TEST_F1 else study.metric
    places = [(run["partition"], run["fold"]) for _, run in study.frame.iterrows()]
    # A fold that is hard for all variants shows as the same dent in every row.
    offset = dict(zip(sorted(set(places)), np.linspace(-0.25, 0.25, len(set(places)) + 2)[1:-1], strict=True))
    with plt.rc_context(RC):
        figure, (left, right) = plt.subplots(
            1, 2, figsize=(8.0, 1.1 + 0.36 * count), sharey=True, layout="constrained", width_ratios=(1, 1.25)
        )
        for axis in (left, right):
            axis.hlines(range(count), 0, 1, transform=axis.get_yaxis_transform(), color=ROW, linewidth=0.8, zorder=0)
            axis.tick_params(axis="y", length=0)
            axis.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        right.axvspan(-comparison.rope, comparison.rope, color=BASELINE, alpha=0.12, linewidth=0, zorder=0)
        right.axvline(0, color=BASELINE, linewidth=1, zorder=1)
        for place, (_, row) in enumerate(frame.iterrows()):
            colour = _colour(row["verdict"])
            runs = study.frame[(study.frame["variant"] == row["variant"]) & (study.frame["status"] == FINISHED)]
            if len(runs):
                heights = [place + offset[key] for key in zip(runs["partition"], runs["fold"], strict=True)]
                face = "none" if np.isnan(row["mean"]) else colour
                left.scatter(
                    runs[study.metric], heights, s=14, facecolors=face, edgecolors=colour, linewidths=0.8, alpha=0.55
                )
            if not np.isnan(row["mean"]):
                left.plot(row["mean"], place, "|", color=colour, markersize=17, markeredgewidth=1.6, zorder=3)
            _draw_difference(right, place, row, colour)
        left.set_yticks(range(count), frame["variant"].tolist())
        left.set_ylim(count - 0.4, -0.6)
        left.set_xlabel(metric)
        right.set_xlabel(fill(f"difference to {comparison.baseline}", 45))
    return figure


def figure_caption(comparison: Comparison) -> str:
    """How to read comparison_figure."""
    return (
        "Left: every fold run (dots, folds from top to bottom; hollow where the variant lacks fold runs) and the mean "
        "(bar). Right: difference on the same folds with its 95 % interval; in the band, ± "
        f"{comparison.rope:g}, a difference is practically none."
    )


def _draw_difference(axis: Axes, place: int, row: pd.Series, colour: str) -> None:
    axis.annotate(
        row["verdict"], (1.02, place), xycoords=axis.get_yaxis_transform(), va="center", fontsize=8, color=colour
    )
    if row["verdict"] == "baseline":
        axis.plot(0, place, "D", color=colour, markersize=5)
    if np.isnan(row["difference"]):
        return
    low, high = row["difference"] - row["low"], row["high"] - row["difference"]
    if np.isfinite([low, high]).all():
        axis.errorbar(
            row["difference"], place, xerr=[[low], [high]], fmt="o", color=colour, markersize=4.5, capsize=2.5
        )
    else:
        axis.plot(row["difference"], place, "o", color=colour, fillstyle="none", markersize=5)


def _colour(verdict: str) -> str:
    return {"baseline": BASELINE, "better": CLEAR, "worse": CLEAR}.get(verdict, OTHER)


def save(figure: Figure, path: Path) -> None:
    """Write SVG, PDF or PNG by the suffix of `path`, without a date, so that equal numbers give equal files."""
    metadata = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(path.suffix)
    with plt.rc_context(RC):
        figure.savefig(path, metadata=metadata, dpi=160)
