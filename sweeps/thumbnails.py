"""Small pictures of a study's cells, so that a report can show them without the data."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from sweeps import schema
from sweeps.study import Study

MOST = 1500  # cells
SIDE = 36  # px of a thumbnail; smaller cells keep their size


def sample(labels: np.ndarray, most: int) -> np.ndarray:
    """Ascending rows of at most `most` cells with labels (N,): as many of each class, or all of a class that has
    fewer. The same for the same labels."""
    order = np.random.default_rng(0).permutation(len(labels))
    place = np.empty(len(labels), dtype=np.int64)  # among the cells of its class
    for label in np.unique(labels):
        own = order[labels[order] == label]
        place[own] = np.arange(len(own))
    return np.sort(np.lexsort((order, labels, place))[:most])


def write_thumbnails(study: Study, folder: Path) -> None:
    """Write the sprite, the table of its cells and the classes with lineage, stage and point on the baseline's guide
    into `folder`, by the names of sweeps.schema."""
    data = study.data
    rows = sample(data.labels, MOST)
    side = min(SIDE, data.images.shape[1])
    columns = int(np.ceil(np.sqrt(len(rows))))
    sprite = Image.new("RGB", (columns * side, -(-len(rows) // columns) * side))
    for place, row in enumerate(rows):
        cell = Image.fromarray(data.images[row]).resize((side, side), Image.Resampling.LANCZOS)
        sprite.paste(cell, (place % columns * side, place // columns * side))
    sprite.save(folder / schema.SPRITE, quality=88, method=4)
    classes = np.array(data.classes)
    cells = pd.DataFrame({"id": data.ids[rows], "class": classes[data.labels[rows]]})
    cells.to_parquet(folder / schema.CELLS, index=False)
    baseline = next(variant for variant in study.sweep.variants if variant.baseline)
    guide = study.guides[baseline.config.id]
    told = {
        "thumbnail": side,
        "columns": columns,
        "classes": list(guide.classes),
        "lineages": list(guide.lineages),
        "stages": [float(stage) for stage in guide.stages],
        "points": guide.points.tolist(),
    }
    (folder / schema.CLASSES).write_text(json.dumps(told, ensure_ascii=False), encoding="utf-8")
