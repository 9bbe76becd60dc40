"""Figures of scores: variants, folds, settings and epochs. Drawing only: numbers come computed. Colours are Okabe and
Ito's, told apart by colour-blind readers too. Figures of cells stand in analysis.pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from analysis.runs import FINISHED, StudyRuns, VariantInfo
from analysis.stats import average_seeds, corrected_t
from analysis.tables import Comparison, by_method, is_by_method
from sweeps import schema

BASELINE, OTHER, CLEAR, ROW = "#0072B2", "#555555", "#D55E00", "#ECECEF"
SERIES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C8C8C", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
MOST_ROWS = 30  # variants in one figure
RC = {
    "svg.fonttype": "none",  # text stays text
    "text.parse_math": False,  # a dollar in a name is a dollar
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
    frame, study = shown_rows(comparison), comparison.study
    count = len(frame)
    metric = metric_name(study)
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
        left.set_yticks(range(count), frame["variant"].map(short).tolist())
        left.set_ylim(count - 0.4, -0.6)
        left.set_xlabel(metric)
        right.set_xlabel(fill(f"difference to {comparison.baseline}", 45))
    return figure


def metric_name(study: StudyRuns) -> str:
    """The study's metric in words."""
    words = {schema.TEST_F1: "test macro-F1", schema.BEST_VAL_F1: "validation macro-F1"}
    return words.get(study.metric, study.metric)


def shown_rows(comparison: Comparison, most: int = MOST_ROWS) -> pd.DataFrame:
    """Rows of the comparison that a figure has room for, in the order of the sweep file: all, or the baseline and
    those with the highest means (rows without a mean come last)."""
    frame = comparison.frame
    if len(frame) <= most:
        return frame
    ranked = frame.assign(first=frame["variant"] == comparison.baseline)
    kept = ranked.sort_values(["first", "mean"], ascending=False, kind="stable").index[:most]
    return frame.loc[sorted(kept)]


def selection(comparison: Comparison, most: int = MOST_ROWS) -> str:
    """A sentence for captions where shown_rows leaves variants out, else nothing."""
    count = len(comparison.frame)
    if count <= most:
        return ""
    return (
        f" Of {count} variants the baseline and the {most - 1} with the highest means are shown: being chosen by their "
        "scores, they are flattered by them."
    )


def figure_caption(comparison: Comparison) -> str:
    """How to read comparison_figure."""
    return (
        "Left: every fold run (dots, folds from top to bottom; hollow where the variant lacks fold runs) and the mean "
        "(bar). Right: difference on the same folds with its 95 % interval; in the band, ± "
        f"{comparison.rope:g}, a difference is practically none." + selection(comparison)
    )


def short(label: str, most: int = 44) -> str:
    """A label that leaves room for the figure."""
    return label if len(label) <= most else f"{label[: most - 1]}…"


def bars_figure(comparison: Comparison) -> Figure:
    """Mean score of each variant as a bar with its 95 % interval (corrected resampled t), as the paper's Fig. 3: by
    method and length where variants differ in both, one colour a length; else a bar per variant. The grey line is the
    baseline. A variant without a mean has a hatched place and no bar. Raises ValueError where none has a mean."""
    study, frame = comparison.study, shown_rows(comparison)
    if frame["mean"].isna().all():
        raise ValueError("no variant has all its fold runs")
    groups, lengths = frame["variant"].tolist(), None
    if is_by_method(study):
        methods = by_method(comparison).set_index("variant").loc[frame["variant"]]
        lengths, groups = methods["length"].tolist(), methods["method"].tolist()
    places, ticks = _bar_places(groups)
    order = sorted(set(lengths or []))
    with plt.rc_context(RC):
        figure, axis = plt.subplots(figsize=(max(4.0, min(10.0, 1.5 + 0.42 * len(frame))), 3.6), layout="constrained")
        axis.set_axisbelow(True)
        axis.grid(axis="y", color=ROW, linewidth=0.8)
        for place, (index, (_, row)) in zip(places, enumerate(frame.iterrows()), strict=True):
            colour = SERIES[order.index(lengths[index]) % len(SERIES)] if lengths else _colour(row["verdict"])
            if np.isnan(row["mean"]):
                axis.axvspan(place - 0.4, place + 0.4, facecolor="none", edgecolor=ROW, hatch="///", linewidth=0)
                continue
            axis.bar(place, row["mean"], 0.8, color=colour, alpha=0.75)
            low, high = mean_interval(comparison, row["variant"])
            if np.isfinite([low, high]).all():
                error = [[row["mean"] - low], [high - row["mean"]]]
                axis.errorbar(place, row["mean"], yerr=error, color="black", capsize=2, linewidth=0.9)
        base = frame.loc[frame["variant"] == comparison.baseline, "mean"]
        if len(base) and not np.isnan(base.iloc[0]):
            axis.axhline(base.iloc[0], color="#777777", linewidth=1, linestyle="--")
        axis.set_xticks(list(ticks.values()), [fill(short(name), 24) for name in ticks])
        if max(map(len, ticks)) * len(ticks) > 60:
            plt.setp(axis.get_xticklabels(), rotation=35, ha="right", rotation_mode="anchor")
        axis.tick_params(axis="x", length=0)
        axis.set_ylabel(metric_name(study))
        axis.set_ylim(0, None)
        if lengths:
            handles = [
                Patch(color=SERIES[place % len(SERIES)], alpha=0.75, label=f"{n}") for place, n in enumerate(order)
            ]
            figure.legend(handles=handles, title="length", loc="outside right upper", frameon=False)
    return figure


def bars_caption(comparison: Comparison) -> str:
    """How to read bars_figure."""
    return (
        f"Mean {metric_name(comparison.study)} over folds with its 95 % interval (corrected resampled t). Dashed: the "
        f"baseline {comparison.baseline}. Intervals of two bars may overlap although "
        "their difference, fold by fold, is clear: read differences off the comparison." + selection(comparison)
    )


def mean_interval(comparison: Comparison, variant: str) -> tuple[float, float]:
    """95 % interval of a variant's mean over folds by the corrected resampled t; NaN where it cannot be had."""
    scores = fold_scores(comparison.study, variant)
    if scores is None or len(scores) < 2 or comparison.ratio is None:
        return np.nan, np.nan
    found = corrected_t(list(scores.values()), comparison.ratio)
    return found.low, found.high


def fold_scores(study: StudyRuns, variant: str) -> dict[tuple[int, int], float] | None:
    """Score per (partition, fold) with seeds averaged; None where a fold run is missing."""
    runs = study.frame[study.frame["variant"] == variant]
    if len(runs) == 0 or (runs["status"] != FINISHED).any():
        return None
    places = zip(runs["partition"], runs["fold"], runs["seed"], strict=True)
    return average_seeds(dict(zip(places, runs[study.metric], strict=True)))


def _bar_places(groups: list[str]) -> tuple[list[float], dict[str, float]]:
    """Places of bars, those of a group side by side, and the middle of each group."""
    places, by_group, at = [], {}, 0.0  # type: ignore[var-annotated]
    for index, group in enumerate(groups):
        at += 1.0 if index and group == groups[index - 1] else 1.5
        places.append(at)
        by_group.setdefault(group, []).append(at)
    return places, {group: float(np.mean(own)) for group, own in by_group.items()}


def pairs_figure(comparison: Comparison) -> Figure:
    """Difference to the baseline on every fold, and the mean over folds. A variant without a mean is told as such.
    Raises ValueError where the baseline lacks fold runs."""
    study = comparison.study
    frame = shown_rows(comparison)
    base = fold_scores(study, comparison.baseline)
    if base is None:
        raise ValueError(f"the baseline {comparison.baseline} lacks fold runs")
    others = [label for label in frame["variant"] if label != comparison.baseline]
    scores = {label: fold_scores(study, label) for label in others}
    folds = sorted(base)
    shades = plt.get_cmap("cividis")(np.linspace(0.05, 0.9, max(2, len(folds))))
    with plt.rc_context(RC):
        figure, axis = plt.subplots(figsize=(6.4, 1.2 + 0.34 * len(others)), layout="constrained")
        axis.axvspan(-comparison.rope, comparison.rope, color=BASELINE, alpha=0.12, linewidth=0)
        axis.axvline(0, color=BASELINE, linewidth=1)
        axis.hlines(range(len(others)), 0, 1, transform=axis.get_yaxis_transform(), color=ROW, linewidth=0.8, zorder=0)
        for place, label in enumerate(others):
            own = scores[label]
            if own is None or own.keys() != base.keys():
                axis.annotate("incomplete", (0.99, place), xycoords=axis.get_yaxis_transform(), ha="right", va="center")
                continue
            differences = [own[fold] - base[fold] for fold in folds]
            heights = place + np.linspace(-0.22, 0.22, len(folds)) if len(folds) > 1 else [place]
            axis.scatter(
                differences, heights, s=20, c=shades[: len(folds)], edgecolors="white", linewidths=0.4, zorder=3
            )
            axis.plot(float(np.mean(differences)), place, "|", color="black", markersize=15, markeredgewidth=1.5)
        axis.set_yticks(range(len(others)), [short(label) for label in others])
        axis.set_ylim(max(0, len(others) - 1) + 0.6, -0.6)
        axis.tick_params(axis="y", length=0)
        axis.set_xlabel(fill(f"difference to {comparison.baseline} on the same fold, {metric_name(study)}", 45))
    return figure


def pairs_caption(comparison: Comparison) -> str:
    """How to read pairs_figure."""
    return (
        "Each dot is one fold (dark to light: the first to the last, from top to bottom), the bar their mean; in the "
        f"band, ± {comparison.rope:g}, a difference is practically none." + selection(comparison)
    )


def axis_of(study: StudyRuns) -> str | None:
    """The setting that an ablation curve is drawn over: the one with most values of those that are numbers throughout
    and have at least three, at most 24; None where there is none."""
    counts = {}
    for key in dict.fromkeys(key for variant in study.variants for key in variant.varied):
        values = [variant.varied.get(key) for variant in study.variants]
        numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
        if len(numbers) == len(values) and 3 <= len(set(numbers)) <= 24:
            counts[key] = len(set(numbers))
    return max(counts, key=lambda key: counts[key]) if counts else None


def curve_figure(comparison: Comparison, key: str) -> Figure:
    """Score over a numeric setting `key`: mean with its 95 % interval (corrected resampled t), and every fold as a thin
    line. Variants that differ in other settings too make lines of their own, at most eight."""
    study = comparison.study
    lines: dict[str, list[VariantInfo]] = {}
    for variant in study.variants:
        rest = [f"{name.rsplit('.', 1)[-1]}={value}" for name, value in variant.varied.items() if name != key]
        lines.setdefault(", ".join(rest), []).append(variant)
    with plt.rc_context(RC):
        figure, axis = plt.subplots(figsize=(6.0, 3.8), layout="constrained")
        axis.grid(color=ROW, linewidth=0.8)
        for number, (name, variants) in enumerate(list(lines.items())[: len(SERIES)]):
            found = [(float(each.varied[key]), each.label, fold_scores(study, each.label)) for each in variants]
            known = sorted((x, label, scores) for x, label, scores in found if scores is not None)
            if not known:
                continue
            x = [each[0] for each in known]
            means = np.array([np.mean(list(scores.values())) for _, _, scores in known])
            bounds = np.array([mean_interval(comparison, label) for _, label, _ in known])
            colour = SERIES[number]
            if len(lines) == 1:
                for fold in known[0][2]:
                    axis.plot(
                        x, [scores.get(fold, np.nan) for *_, scores in known], color=OTHER, alpha=0.3, linewidth=0.8
                    )
            if np.isfinite(bounds).all():
                axis.fill_between(x, bounds[:, 0], bounds[:, 1], color=colour, alpha=0.15, linewidth=0)
            axis.plot(x, means, color=colour, marker=MARKERS[number], markersize=5, label=name or None)
        base = study.baseline
        axis.axvline(float(base.varied[key]), color="#777777", linewidth=1, linestyle=":")
        values = sorted({float(variant.varied[key]) for variant in study.variants})
        if _by_logarithm(pd.Series(values)):
            axis.set_xscale("log")
        if len(values) <= 10:
            axis.set_xticks(values, [f"{value:g}" for value in values])
            axis.minorticks_off()
        axis.set_xlabel(key)
        axis.set_ylabel(metric_name(study))
        if len(lines) > 1:
            figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    return figure


def curve_caption(comparison: Comparison, key: str) -> str:
    """How to read curve_figure."""
    several = len(
        {tuple(sorted((k, str(v)) for k, v in each.varied.items() if k != key)) for each in comparison.study.variants}
    )
    told = f"Mean over folds by {key} with its 95 % interval (corrected resampled t, band)"
    told += "; thin lines are single folds" if several == 1 else ""
    told += f"; of {several} lines the first {len(SERIES)} are drawn" if several > len(SERIES) else ""
    return (
        f"{told}. Dotted: the baseline's value. Neighbouring points share folds, so that they rise and fall together."
    )


def learning_figure(curves: Mapping[str, Sequence[pd.DataFrame]]) -> Figure:
    """Validation score, embedding length and guide shift over epochs, by variant: the mean over its fold runs that
    reached the epoch, and their range. `curves` holds a frame of epochs per fold run. Raises ValueError without any."""
    if not any(len(frame) for frames in curves.values() for frame in frames):
        raise ValueError("no epochs are recorded, so there are no learning curves")
    wanted = {
        schema.VAL_F1: "validation macro-F1",
        schema.LENGTH: "embedding length",
        schema.GUIDE_SHIFT: "guide shift",
    }
    recorded = {name for frames in curves.values() for frame in frames for name in frame.columns}
    rows = [key for key in wanted if key in recorded]
    with plt.rc_context(RC):
        figure, axes = plt.subplots(
            len(rows),
            1,
            figsize=(6.4, 1.0 + 1.5 * len(rows)),
            sharex=True,
            layout="constrained",
            height_ratios=[1.8 if key == schema.VAL_F1 else 1 for key in rows],
            squeeze=False,
        )
        for number, (label, frames) in enumerate(curves.items()):
            colour = SERIES[number % len(SERIES)]
            for axis, key in zip(axes[:, 0], rows, strict=True):
                own = [frame.set_index("epoch")[key] for frame in frames if key in frame.columns]
                if not own:
                    continue
                table = pd.concat(own, axis=1).sort_index()
                mean, low, high = table.mean(axis=1), table.min(axis=1), table.max(axis=1)
                if key != schema.LENGTH:
                    axis.fill_between(table.index, low, high, color=colour, alpha=0.1, linewidth=0)
                axis.plot(
                    table.index,
                    mean,
                    color=colour,
                    linewidth=1.3,
                    marker=MARKERS[number % len(MARKERS)],
                    markersize=3,
                    markevery=max(1, len(table) // 12),
                    label=short(label) if key == rows[0] else None,
                    drawstyle="steps-post" if key == schema.LENGTH else "default",
                )
        for axis, key in zip(axes[:, 0], rows, strict=True):
            axis.set_ylabel(wanted[key].replace(" ", "\n", 1))
            axis.grid(color=ROW, linewidth=0.8)
        axes[-1, 0].set_xlabel("epoch (from 0)")
        axes[-1, 0].xaxis.set_major_locator(MaxNLocator(integer=True))
        figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    return figure


def settings_frame(comparison: Comparison) -> pd.DataFrame:
    """One row per variant with a mean: a column per varied setting (numbers as floats, others as text) and `score`.
    A setting that a variant does not have is NaN or empty."""
    keys = list(dict.fromkeys(key for variant in comparison.study.variants for key in variant.varied))
    means = comparison.frame.set_index("variant")["mean"]
    rows = [
        {key: variant.varied.get(key) for key in keys} | {"score": means[variant.label]}
        for variant in comparison.study.variants
        if not np.isnan(means[variant.label])
    ]
    frame = pd.DataFrame(rows, columns=[*keys, "score"])
    for key in keys:
        values = [value for value in frame[key] if value is not None]
        numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
        frame[key] = (
            frame[key].astype(float)
            if numeric
            else ["" if v is None else v if isinstance(v, str) else json.dumps(v) for v in frame[key]]
        )
    return frame.loc[:, [key for key in keys if frame[key].nunique() > 1] + ["score"]]


FEWEST_VARIANTS = 8  # for an importance: fewer points fit anything


def importances(settings: pd.DataFrame) -> dict[str, float]:
    """Share of each setting in what makes variants good, by PED-ANOVA (Watanabe et al. 2023, Optuna's): how far the
    best tenth's distribution over a setting is from that of all. Highest first. Raises ValueError for fewer than
    FEWEST_VARIANTS rows, fewer than two settings, or scores that are all one."""
    names = [column for column in settings.columns if column != "score"]
    if len(settings) < FEWEST_VARIANTS or len(names) < 2 or settings["score"].nunique() < 2:
        raise ValueError(
            f"importances need {FEWEST_VARIANTS} variants, two settings and different scores; there are "
            f"{len(settings)} variants, {len(names)} settings and {settings['score'].nunique()} scores"
        )
    import optuna  # for searches only; analysis imports it nowhere else

    spaces: dict[str, Any] = {}
    for name in names:
        column = settings[name]
        if column.dtype == float and not column.isna().any():
            log = _by_logarithm(column)
            spaces[name] = optuna.distributions.FloatDistribution(column.min(), column.max(), log=log)
        else:
            settings = settings.assign(**{name: _levels(column)})
            spaces[name] = optuna.distributions.CategoricalDistribution(sorted(settings[name].unique()))
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study(direction="maximize")
        for row in settings.to_dict("records"):
            values = {
                name: float(row[name]) if isinstance(space, optuna.distributions.FloatDistribution) else str(row[name])
                for name, space in spaces.items()
            }
            study.add_trial(optuna.trial.create_trial(params=values, distributions=spaces, value=row["score"]))
        found = optuna.importance.get_param_importances(study)
    finally:
        optuna.logging.set_verbosity(verbosity)
    return {name: float(value) for name, value in found.items()}


def importance_figure(found: Mapping[str, float]) -> Figure:
    """Bars of `importances`."""
    with plt.rc_context(RC):
        figure, axis = plt.subplots(figsize=(5.6, 0.9 + 0.3 * len(found)), layout="constrained")
        axis.barh(range(len(found)), list(found.values()), color=BASELINE, alpha=0.8)
        axis.set_yticks(range(len(found)), [short(name) for name in found])
        axis.invert_yaxis()
        axis.tick_params(axis="y", length=0)
        axis.set_xlabel("importance (shares, PED-ANOVA)")
        axis.set_xlim(0, 1)
    return figure


def parallel_figure(settings: pd.DataFrame, metric: str, most: int = 400) -> Figure:
    """Parallel coordinates: an upright axis per setting and one for the score, a line per variant, the best on top.
    Of more than `most` variants, evenly spaced ones in the order of their scores. Raises ValueError for no variant."""
    if settings.empty:
        raise ValueError("no variant has a mean, so that there is nothing to draw over the settings")
    settings = settings.sort_values("score", kind="stable").reset_index(drop=True)
    if len(settings) > most:
        settings = settings.iloc[np.linspace(0, len(settings) - 1, most).astype(int)]
    heights, ticks = {}, {}
    for name in settings.columns:
        heights[name], ticks[name] = _upright(settings[name])
    colours = plt.get_cmap("cividis_r")(0.1 + 0.9 * heights["score"])  # the best dark: what is pale fades on white
    with plt.rc_context(RC):
        figure, axis = plt.subplots(figsize=(max(4.5, 1.5 * len(settings.columns)), 3.6), layout="constrained")
        places = np.arange(len(settings.columns))
        for number in range(len(settings)):
            line = [heights[name][number] for name in settings.columns]
            axis.plot(places, line, color=colours[number], linewidth=1.1, alpha=0.65)
        for place, name in zip(places, settings.columns, strict=True):
            axis.axvline(place, color="black", linewidth=0.8)
            for height, label in ticks[name]:
                text = axis.annotate(
                    label, (place, height), (3, 0), textcoords="offset points", fontsize=7.5, va="center"
                )
                text.set_bbox({"facecolor": "white", "alpha": 0.75, "linewidth": 0, "pad": 0.6})
        names = [metric if name == "score" else name for name in settings.columns]
        axis.set_xticks(places, [short(name).replace(".", ".\n") for name in names])
        axis.set_yticks([])
        axis.spines[["left", "bottom"]].set_visible(False)
        axis.tick_params(axis="x", length=0)
        axis.set_xlim(-0.1, places[-1] + 0.5)
    return figure


def _levels(column: pd.Series) -> pd.Series:
    """A setting that is text, or a number that some variants do not have, as few words: every number a level of its own
    would look decisive wherever the best ones differ in it."""
    if column.dtype != float:
        return column.astype(str)
    thirds = pd.cut(column.rank(pct=True), [0, 1 / 3, 2 / 3, 1], labels=["low", "middle", "high"])
    return thirds.astype(object).where(column.notna(), "absent").astype(str)


def _by_logarithm(values: pd.Series) -> bool:
    """Whether values are spread over powers: positive, over a range of 50, most of them low in it."""
    return bool(values.min() > 0 and values.max() / values.min() >= 50 and values.median() < values.max() / 5)


ABSENT_HEIGHT = -0.14  # below the axis: a variant without the setting, whose line must not break there


def _upright(column: pd.Series) -> tuple[np.ndarray, list[tuple[float, str]]]:
    """Heights in 0..1 of a column's values, and labelled heights; values of a wide positive range go by logarithm. What
    is NaN or empty stands at ABSENT_HEIGHT."""
    absent = column.isna() if column.dtype == float else column == ""
    given = column[~absent]
    ticks: list[tuple[float, str]] = [(ABSENT_HEIGHT, "absent")] if absent.any() else []
    heights = np.full(len(column), ABSENT_HEIGHT)
    if column.dtype != float:
        labels = sorted(given.astype(str).unique())
        spread = np.linspace(0, 1, len(labels)) if len(labels) > 1 else np.array([0.5])
        at = dict(zip(labels, spread, strict=True))
        heights[~absent] = given.astype(str).map(at).to_numpy(dtype=float)
        return heights, ticks + [(float(at[label]), short(label, 18)) for label in labels]
    low, high = float(given.min()), float(given.max())
    if given.empty or low == high:
        heights[~absent] = 0.5
        return heights, ticks + [(0.5, f"{low:g}")] * (not given.empty)
    log = _by_logarithm(given)
    change = np.log if log else np.asarray

    def place(values: Any) -> Any:
        return (change(values) - change(low)) / (change(high) - change(low))

    heights[~absent] = place(given.to_numpy())
    # Where there are few values these are labelled, but for those too close to the last one.
    shown = np.sort(given.unique())
    if len(shown) > 6:
        shown = np.geomspace(low, high, 4) if log else np.linspace(low, high, 4)
    for value in shown:
        if not ticks or place(value) - ticks[-1][0] >= 0.07:
            ticks.append((float(place(value)), f"{value:.3g}"))
    return heights, ticks


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
