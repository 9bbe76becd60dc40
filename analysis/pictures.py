"""Figures of cells and classes: the guide, the cells upon it, embeddings, confusion, stability, risk-coverage."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from math import ceil

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from matplotlib.patches import Ellipse as EllipsePatch
from PIL import Image
from scipy.linalg import orthogonal_procrustes
from scipy.optimize import linear_sum_assignment

from analysis.artifacts import FoldFiles, Thumbnails
from analysis.figures import MARKERS, RC, ROW, SERIES, short
from analysis.lineages import Classes
from analysis.views import View, ellipse, fit_similarity, regions
from guided.geometry import Symmetry, class_means

EDGE = "#333333"


def guide_figure(classes: Classes) -> Figure:
    """The embedding guide (Fig. 2): a point per class, classes of one lineage joined from immature to mature. Raises
    ValueError where no guide is recorded."""
    points = _drawn(classes)
    with plt.rc_context(RC):
        figure, axis = plt.subplots(figsize=(5.6, 5.0), layout="constrained")
        _lineage_paths(axis, classes, points)
        for name, point in zip(classes.names, points, strict=True):
            axis.plot(*point, "o", color=classes.colours[name], markeredgecolor=EDGE, markersize=9, zorder=3)
        for name, point in zip(classes.names, points, strict=True):
            _label(axis, name, point, 9)
        _square(axis, points, 0.06)
        axis.set_axis_off()
    return figure


def samples_figure(classes: Classes, thumbnails: Thumbnails) -> Figure:
    """One cell of each class where the guide has its point (Fig. 1), framed in the colour of the class. The cell is the
    first of its class among the thumbnails. Raises ValueError where no guide is recorded or no cell has a picture."""
    points = _drawn(classes)
    first = {label: place for place, label in reversed(list(enumerate(thumbnails.labels)))}
    if not first:
        raise ValueError("the study has no thumbnails")
    sprite = np.asarray(Image.open(io.BytesIO(thumbnails.webp)).convert("RGB"))
    side, columns = thumbnails.side, thumbnails.columns
    inches = 7.4
    span = max(float(np.ptp(points, axis=0).max()), 1e-9) * 1.16
    apart = [np.linalg.norm(points - point, axis=1) for point in points]
    nearest = min(float(distance[distance > 0].min()) for distance in apart) if len(points) > 1 else span
    # As large as the closest neighbours allow, within reason: the guide may hold two classes nearly at one point.
    width = float(np.clip(0.64 * nearest / span * inches * 72, 20, 60))
    with plt.rc_context(RC):
        figure, axis = plt.subplots(figsize=(inches, inches * 0.95), layout="constrained")
        _square(axis, points, 0.08)
        _lineage_paths(axis, classes, points)
        for name, point in zip(classes.names, points, strict=True):
            if name not in first:
                axis.plot(*point, "x", color=classes.colours[name])
                continue
            row, column = divmod(first[name], columns)
            cell = sprite[row * side : (row + 1) * side, column * side : (column + 1) * side]
            box = AnnotationBbox(
                OffsetImage(cell, zoom=width / side, interpolation="lanczos"),
                point,
                pad=0.1,
                bboxprops={"edgecolor": classes.colours[name], "linewidth": 2.5},
            )
            axis.add_artist(box)
            _label(axis, name, point, width / 2 + 6)
        axis.set_axis_off()
    return figure


def embeddings_figure(classes: Classes, panels: Mapping[str, tuple[FoldFiles, View]]) -> Figure:
    """Test embeddings of one fold (Fig. 4), a panel per variant: cells as dots in the colours of their true classes,
    the regions of the predicted classes behind them, an ellipse for 90 % of each class, and the guide's points as
    crosses. Raises ValueError for no panel."""
    if not panels:
        raise ValueError("no fold run has left an embedding")
    columns = min(3, len(panels))
    rows = ceil(len(panels) / columns)
    palette = np.array([to_rgb(classes.colours[name]) for name in classes.names])
    with plt.rc_context(RC):
        figure, axes = plt.subplots(
            rows, columns, figsize=(3.3 * columns, 3.3 * rows + 0.9), layout="constrained", squeeze=False
        )
        for axis, (label, (files, view)) in zip(axes.flat, panels.items(), strict=False):
            _embedding(axis, classes, palette, files, view)
            axis.set_title(f"{short(label, 40)}\n{view.how}", fontsize=8)
        for axis in axes.flat[len(panels) :]:
            axis.set_visible(False)
        handles = [
            plt.Line2D(
                [], [], marker="o", linestyle="", color=classes.colours[name], markeredgecolor=EDGE, markersize=5
            )
            for name in classes.names
        ]
        figure.legend(
            handles,
            [_words(name) for name in classes.names],
            loc="outside lower center",
            ncols=5,
            frameon=False,
            fontsize=7,
        )
    return figure


def _embedding(axis: Axes, classes: Classes, palette: np.ndarray, files: FoldFiles, view: View) -> None:
    points = view.points
    # A few cells far out must not press the others together: the window holds 98 % of each axis and the guide.
    low, high = np.quantile(points, 0.01, axis=0), np.quantile(points, 0.99, axis=0)
    if view.guide is not None:
        low, high = np.fmin(low, np.nanmin(view.guide, axis=0)), np.fmax(high, np.nanmax(view.guide, axis=0))
    middle, half = (low + high) / 2, max(float((high - low).max()) / 2 * 1.12, 1e-6)
    box = (middle[0] - half, middle[0] + half, middle[1] - half, middle[1] + half)
    ground = regions(points, files.predicted, box, 120)
    axis.imshow(0.78 + 0.22 * palette[ground], extent=box, origin="lower", interpolation="nearest", zorder=0)
    axis.scatter(
        points[:, 0],
        points[:, 1],
        s=12,
        c=palette[files.true],
        edgecolors=EDGE,
        linewidths=0.25,
        zorder=2,
        rasterized=len(points) > 800,
    )
    for number, name in enumerate(classes.names):
        found = ellipse(points[files.true == number])
        if found is not None:
            shape = ((float(found.centre[0]), float(found.centre[1])), found.width, found.height)
            for colour, width, alpha in ((EDGE, 1.5, 0.35), (classes.colours[name], 0.9, 0.9)):
                outline = EllipsePatch(
                    *shape, angle=found.angle, fill=False, edgecolor=colour, linewidth=width, alpha=alpha, zorder=1
                )
                axis.add_patch(outline)
    if view.guide is not None:
        axis.scatter(
            view.guide[:, 0],
            view.guide[:, 1],
            s=34,
            marker="P",
            c=palette,
            edgecolors="black",
            linewidths=0.8,
            zorder=4,
        )
    axis.set_xlim(box[:2])
    axis.set_ylim(box[2:])
    axis.set_xticks([])
    axis.set_yticks([])
    axis.spines[:].set_visible(False)


def confusion_figure(classes: Classes, panels: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Figure:
    """Confusion matrices, rows true and columns predicted, in the order of lineage and maturity, each row in shares of
    its cells. `panels` holds (true (N,), predicted (N,)) per variant; a class without cells has an empty row. Raises
    ValueError for no panel."""
    if not panels:
        raise ValueError("no variant has predictions")
    count = len(classes.names)
    edges = [place for place in range(1, count) if classes.lineages[place] != classes.lineages[place - 1]]
    with plt.rc_context(RC):
        figure, axes = plt.subplots(
            1,
            len(panels),
            figsize=(1.7 + (0.15 + 0.25 * count) * len(panels), 2.5 + 0.25 * count),
            layout="constrained",
            squeeze=False,
            sharey=True,
        )
        for axis, (label, (true, predicted)) in zip(axes[0], panels.items(), strict=True):
            cells = np.bincount(true * count + predicted, minlength=count * count).reshape(count, count)
            with np.errstate(invalid="ignore"):
                shares = cells / cells.sum(1, keepdims=True)
            axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
            for row, column in zip(*np.nonzero(np.nan_to_num(shares) >= 0.005), strict=True):
                share = shares[row, column]
                colour = "white" if share > 0.55 else "black"
                axis.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=6, color=colour)
            for edge in edges:
                axis.axhline(edge - 0.5, color="#999999", linewidth=0.6)
                axis.axvline(edge - 0.5, color="#999999", linewidth=0.6)
            names = [_words(name) for name in classes.names]
            axis.set_xticks(range(count), names, rotation=90, fontsize=7)
            axis.set_yticks(range(count), names, fontsize=7)
            axis.tick_params(length=0)
            axis.spines[:].set_visible(False)
            axis.set_title(short(label, 40), fontsize=9)
            axis.set_xlabel("predicted")
        axes[0][0].set_ylabel("true")
    return figure


def risk_coverage(margin: np.ndarray, right: np.ndarray, coverage: np.ndarray) -> np.ndarray:
    """Share of mistakes among the most confident cells, by the share of cells that are kept: `margin` (N,) says how
    sure, `right` (N,) whether rightly, at `coverage` (K,) in (0, 1]. Cells of equal margin count as their mean."""
    _, place, counts = np.unique(-margin, return_inverse=True, return_counts=True)
    wrong = (np.bincount(place, ~right) / counts).repeat(counts)
    kept = np.maximum(1, np.ceil(coverage * len(margin)).astype(np.int64))
    return np.asarray(np.cumsum(wrong)[kept - 1] / kept)


def risk_coverage_figure(panels: Mapping[str, Sequence[FoldFiles]]) -> Figure:
    """Risk-coverage curves by variant, averaged over folds at equal coverage: who is left alone with the unsure cells
    pays for it with this share of mistakes among the others. Raises ValueError for no fold run."""
    if not any(panels.values()):
        raise ValueError("no variant has predictions")
    coverage = np.linspace(0.05, 1, 39)
    with plt.rc_context(RC):
        figure, axis = plt.subplots(figsize=(5.8, 3.6), layout="constrained")
        axis.grid(color=ROW, linewidth=0.8)
        for number, (label, folds) in enumerate(panels.items()):
            curves = [risk_coverage(each.margin, each.true == each.predicted, coverage) for each in folds]
            if curves:
                style = {"color": SERIES[number % len(SERIES)], "marker": MARKERS[number % len(MARKERS)]}
                axis.plot(coverage, np.mean(curves, axis=0), **style, markevery=7, markersize=4, label=short(label))
        axis.set_xlabel("share of cells decided, the surest first")
        axis.set_ylabel("share of mistakes among them")
        axis.set_xlim(0, 1)
        axis.set_ylim(0, None)
        figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    return figure


def aligned_means(means: np.ndarray, symmetry: Symmetry) -> np.ndarray:
    """Class means (R, C, n) of R runs, the later ones brought onto the first by what the loss cannot see: nothing
    (`none`), a shift and a signed permutation of the axes (`axes`), or a shift and any rotation (`isometries`). Classes
    that a run lacks (NaN) stay NaN there and help to align nothing. Raises ValueError for classes that coincide."""
    if symmetry == "none":
        return means
    known = ~np.isnan(means).any((0, 2))
    centres = means[:, known].mean(1, keepdims=True)
    centred = means - centres
    if known.sum() < 2 or not np.sum(centred[:, known] ** 2, axis=(1, 2)).all():
        raise ValueError("all classes coincide in a run: its layout cannot be aligned")
    found = [centred[0]]
    for run in centred[1:]:
        if symmetry == "isometries":
            turn = orthogonal_procrustes(run[known], centred[0][known])[0]
        else:
            cross = run[known].T @ centred[0][known]
            own, theirs = linear_sum_assignment(np.abs(cross), maximize=True)
            turn = np.zeros_like(cross)
            turn[own, theirs] = np.where(cross[own, theirs] < 0, -1.0, 1.0)
        found.append(run @ turn)
    return np.stack(found) + centres[0]


def stability_figure(classes: Classes, panels: Mapping[str, tuple[np.ndarray, Symmetry, np.ndarray]]) -> Figure:
    """Where the classes land over repeats of one fold, a panel per variant: the class means of every run, brought onto
    the first run (see aligned_means), joined to their common mean. `panels` holds (means (R, C, n), symmetry, guide
    (C, 2)). Embeddings longer than 2 are shown by the two directions in which the classes of the first run differ
    most, those of guide losses by the first two components; all but the latter turned towards the guide. A variant
    whose classes coincide in a run is told instead of drawn. Raises ValueError for no panel."""
    if not panels:
        raise ValueError("no variant was run with several seeds")
    columns = min(3, len(panels))
    rows = ceil(len(panels) / columns)
    with plt.rc_context(RC):
        figure, axes = plt.subplots(
            rows, columns, figsize=(3.2 * columns, 3.4 * rows), layout="constrained", squeeze=False
        )
        for axis, (label, (means, symmetry, guide)) in zip(axes.flat, panels.items(), strict=False):
            axis.set_title(f"{short(label, 40)}\n{len(means)} seeds, {ALIGNED[symmetry]}", fontsize=8)
            axis.set_axis_off()
            try:
                flat = _flat(aligned_means(means, symmetry), symmetry, guide)
            except ValueError as error:
                axis.text(0.5, 0.5, str(error), transform=axis.transAxes, ha="center", wrap=True, fontsize=8)
                continue
            for number, name in enumerate(classes.names):
                own = flat[:, number]
                own = own[~np.isnan(own).any(1)]
                for point in own:
                    axis.plot(*np.stack([own.mean(0), point]).T, color=classes.colours[name], linewidth=1.2)
                axis.scatter(*own.T, s=22, color=classes.colours[name], edgecolors=EDGE, linewidths=0.5, zorder=3)
            axis.set_aspect("equal", adjustable="datalim")
        for axis in axes.flat[len(panels) :]:
            axis.set_visible(False)
    return figure


ALIGNED = {"none": "as they are", "axes": "axes matched", "isometries": "rotated to match"}


def _flat(means: np.ndarray, symmetry: Symmetry, guide: np.ndarray) -> np.ndarray:
    """Means (R, C, n) in two dimensions (R, C, 2)."""
    if symmetry == "none" or means.shape[2] <= 2:
        flat = means[..., :2]
    else:
        first = means[0][~np.isnan(means[0]).any(1)]
        axes = np.linalg.svd(first - first.mean(0), full_matrices=False)[2][:2]
        flat = means @ axes.T
    if symmetry == "none":
        return np.asarray(flat)
    fitted = fit_similarity(flat[0], guide)
    if fitted is None:
        return np.asarray(flat)
    scale, rotation, shift = fitted
    return np.asarray(scale * flat @ rotation + shift)


def of_repeats(folds: Sequence[FoldFiles], count: int) -> np.ndarray:
    """Class means (R, C, n) of the runs of one fold; shorter embeddings padded with zeros, as what was not open is."""
    longest = max(each.embedding.shape[1] for each in folds)
    padded = [np.pad(each.embedding, ((0, 0), (0, longest - each.embedding.shape[1]))) for each in folds]
    return np.stack([class_means(each, own.true, count) for each, own in zip(padded, folds, strict=True)])


def _drawn(classes: Classes) -> np.ndarray:
    if classes.points is None:
        raise ValueError("the study records no guide")
    return classes.points


def _lineage_paths(axis: Axes, classes: Classes, points: np.ndarray) -> None:
    for lineage in dict.fromkeys(classes.lineages):
        own = [place for place, each in enumerate(classes.lineages) if each == lineage]
        axis.plot(*points[own].T, color="#BBBBBB", linewidth=1.2, zorder=1)


def _label(axis: Axes, name: str, point: np.ndarray, aside: float) -> None:
    """The name of a class, `aside` points to the right of its place: branches that run upwards stay free."""
    box = {"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 0.5}
    axis.annotate(
        _words(name),
        (point[0], point[1]),
        (aside, 0),
        textcoords="offset points",
        fontsize=7.5,
        va="center",
        bbox=box,
        zorder=4,
    )


def _square(axis: Axes, points: np.ndarray, margin: float) -> None:
    """Equal scales, room for labels around the points."""
    low, high = points.min(0), points.max(0)
    half = max(float((high - low).max()) / 2, 1e-6) * (1 + 2 * margin)
    middle = (low + high) / 2
    axis.set_xlim(middle[0] - half, middle[0] + half)
    axis.set_ylim(middle[1] - half, middle[1] + half)
    axis.set_aspect("equal")


def _words(name: str) -> str:
    return short(name.replace("_", " "), 32)
