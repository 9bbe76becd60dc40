"""Drawing only: numbers come computed. Colours are Okabe and Ito's, told apart by colour-blind readers too."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from analysis.runs import FINISHED
from analysis.tables import Comparison
from sweeps import schema

BASELINE, OTHER, CLEAR = "#0072B2", "#555555", "#D55E00"
RC = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "comparison",  # the same numbers, the same file
    "pdf.fonttype": 42,
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def comparison_figure(comparison: Comparison) -> Figure:
    """Left: every fold's score and the mean of each variant. Right: difference to the baseline with its interval;
    orange where it is clear after correction."""
    frame, study = comparison.frame, comparison.study
    count = len(frame)
    metric = "test macro-F1" if study.metric == schema.TEST_F1 else study.metric
    with plt.rc_context(RC):
        figure, (left, right) = plt.subplots(
            1, 2, figsize=(8.0, 1.2 + 0.34 * count), sharey=True, layout="constrained", width_ratios=(1, 1.2)
        )
        for place, (_, row) in enumerate(frame.iterrows()):
            runs = study.frame[(study.frame["variant"] == row["variant"]) & (study.frame["status"] == FINISHED)]
            colour = _colour(row["verdict"])
            if len(runs):
                scores = runs[study.metric].to_numpy()
                # Folds side by side in a fixed order, so that a fold that is hard for all shows as a slant.
                offsets = np.linspace(-0.18, 0.18, len(scores)) if len(scores) > 1 else np.zeros(1)
                left.plot(scores, place + offsets, "o", color=colour, alpha=0.45, markersize=3.5, markeredgewidth=0)
            if not np.isnan(row["mean"]):
                left.plot(row["mean"], place, "|", color=colour, markersize=16, markeredgewidth=2)
            if not np.isnan(row["difference"]):
                low, high = row["difference"] - row["low"], row["high"] - row["difference"]
                if np.isfinite([low, high]).all():
                    right.errorbar(
                        row["difference"], place, xerr=[[low], [high]], fmt="o", color=colour, markersize=5, capsize=3
                    )
                else:
                    right.plot(row["difference"], place, "o", color=colour, fillstyle="none", markersize=5)
            elif row["verdict"] == "baseline":
                right.plot(0, place, "D", color=BASELINE, markersize=5)
            else:
                right.annotate(row["verdict"], (0, place), ha="left", va="center", fontsize=8, color=OTHER)
        right.axvline(0, color=BASELINE, linewidth=1)
        left.set_yticks(range(count), frame["variant"].tolist())
        left.set_ylim(count - 0.4, -0.6)
        left.set_xlabel(f"{metric}, folds (dots) and mean (bar)")
        right.set_xlabel(f"difference to {comparison.baseline}, 95 % interval")
    return figure


def _colour(verdict: str) -> str:
    return {"baseline": BASELINE, "better": CLEAR, "worse": CLEAR}.get(verdict, OTHER)


def save(figure: Figure, path: Path) -> None:
    """Write SVG, PDF or PNG by the suffix of `path`, without a date, so that equal numbers give equal files."""
    metadata = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(path.suffix)
    with plt.rc_context(RC):
        figure.savefig(path, metadata=metadata, dpi=160)
