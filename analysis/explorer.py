"""The interactive embedding explorer of the report: its data as JSON, its markup, its script. No network, no framework.

What the data hold (names of classes, ids, labels) enters the page as JSON and leaves it as text, never as markup.
"""

from __future__ import annotations

import json
from importlib.resources import files as package_files
from typing import Any

import numpy as np

from analysis.artifacts import FoldFiles
from analysis.evidence import MOST_CELLS, Evidence
from guided.geometry import class_means


def script() -> str:
    """The explorer's JavaScript."""
    return (package_files("analysis") / "page" / "explorer.js").read_text(encoding="utf-8")


def payload(evidence: Evidence, baseline: str) -> dict[str, Any]:
    """Everything the explorer shows: classes, cells (id, class, thumbnail or -1), and per variant and fold the cells'
    places, predicted classes and distances; at most MOST_CELLS cells a variant, those with thumbnails first."""
    classes, thumbnails = evidence.classes, evidence.thumbnails
    at = {name: place for place, name in enumerate(thumbnails.ids)} if thumbnails else {}
    cells: dict[str, int] = {}
    labels: list[int] = []
    variants = []
    for label, folds in evidence.laid.items():
        shown = []
        for fold, laid in folds.items():
            files = laid.files
            room = MOST_CELLS // len(folds)
            order = np.argsort([name not in at for name in files.ids], kind="stable")[:room]
            numbers = []
            for row in np.sort(order):
                name = str(files.ids[row])
                if name not in cells:
                    cells[name] = len(cells)
                    labels.append(int(files.true[row]))
                numbers.append(cells[name])
            rows = np.sort(order)
            distance = distances(files)[rows]
            shown.append(
                {
                    "fold": fold,
                    "how": laid.view.how,
                    "guide": None if laid.view.guide is None else _numbers(laid.view.guide),
                    "cell": numbers,
                    "x": _numbers(laid.view.points[rows, 0]),
                    "y": _numbers(laid.view.points[rows, 1]),
                    "predicted": files.predicted[rows].tolist(),
                    "distance": _numbers(distance),
                }
            )
        drawn_to_points = all(laid.files.guide is not None for laid in folds.values())
        to = "to its guide point" if drawn_to_points else "to the mean of its class (this loss draws to no point)"
        variants.append({"label": label, "baseline": label == baseline, "to": to, "folds": shown})
    sprite: dict[str, Any] = {"url": "", "side": 1, "columns": 1}
    if thumbnails is not None:
        sprite = {"url": thumbnails.url, "side": thumbnails.side, "columns": thumbnails.columns}
    return {
        "classes": [
            {"name": name.replace("_", " "), "lineage": lineage, "colour": classes.colours[name]}
            for name, lineage in zip(classes.names, classes.lineages, strict=True)
        ],
        "cells": {"id": list(cells), "label": labels, "thumbnail": [at.get(name, -1) for name in cells]},
        "variants": variants,
        "sprite": sprite,
    }


def distances(files: FoldFiles) -> np.ndarray:
    """Euclidean distance (T,) of each cell to the point of its true class, over all components; to the mean of the
    class's test cells where the loss draws to no point. NaN where there is neither."""
    targets = files.guide
    if targets is None:
        targets = class_means(files.embedding, files.true, len(files.guide_2d))
    return np.asarray(np.linalg.norm(files.embedding - targets[files.true], axis=1))


def _numbers(values: np.ndarray) -> list[Any]:
    """Four significant digits; what is no number is null."""
    if values.ndim > 1:
        return [_numbers(row) for row in values]
    return [float(f"{value:.4g}") if np.isfinite(value) else None for value in values]


def as_json(content: dict[str, Any]) -> str:
    """JSON that may stand in a script element: nothing in it can end the element or begin a comment."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


MARKUP = """<div class="explorer">
<div class="controls">
<label>variant <select id="variant"></select></label>
<label>fold <select id="fold"></select></label>
<label><input type="checkbox" id="mistakes"> only mistakes</label>
<span><button type="button" id="in" aria-label="closer">+</button>
<button type="button" id="out" aria-label="farther">−</button>
<button type="button" id="reset">whole</button></span>
</div>
<div>
<canvas id="plot" tabindex="0" role="application" aria-describedby="hint how"
aria-label="Test cells in the plane; arrow keys go from cell to cell"></canvas>
<p class="caption"><span id="count" role="status"></span>. <span id="how"></span>.</p>
</div>
<div class="side">
<p id="hint" class="caption">Point at a cell, or tap it; with the keyboard: the arrow keys, + and −. Crosses are the
guide's points. Zoomed in, drag to move.</p>
<div id="card" aria-live="polite" hidden>
<canvas id="picture" width="144" height="144" role="img" aria-label="picture of the cell"></canvas>
<dl><dt>class</dt><dd id="truth"></dd><dt>predicted</dt><dd id="predicted"></dd>
<dt>distance</dt><dd><span id="distance"></span> <span id="to"></span></dd>
<dt>from</dt><dd id="where"></dd><dt>id</dt><dd id="id"></dd></dl>
</div>
</div>
<fieldset class="legend" id="legend"><legend>Classes shown:
<button type="button" id="all">all</button> <button type="button" id="none">none</button></legend></fieldset>
</div>"""
