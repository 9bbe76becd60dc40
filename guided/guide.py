"""The embedding guide (3.1): one 2-D point per class, drawn by an expert."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from guided.config import GuidePoints, content_id

SHIPPED = Path(__file__).parent / "guides"


@dataclass(frozen=True)
class EmbeddingGuide:
    """Points (C, 2) with the lineage and the stage of maturity of each class.

    Raises ValueError for what would make guided training meaningless: a coordinate that is not finite, two classes on
    one point, or all points on a line parallel to an axis (UMAP rescales each axis of its start, so a constant axis
    would become NaN).
    """

    name: str
    classes: tuple[str, ...]
    points: np.ndarray  # (C, 2) float64
    lineages: tuple[str, ...]
    stages: tuple[float, ...]

    def __post_init__(self) -> None:
        where = f"guide {self.name!r}"
        if len(self.classes) < 2:
            raise ValueError(f"{where} has {len(self.classes)} class(es); classification needs at least two")
        for label, point in zip(self.classes, self.points, strict=True):
            if not np.isfinite(point).all():
                raise ValueError(f"{where}: the point of {label!r} is {tuple(point)}; both coordinates must be finite")
        seen: dict[tuple[float, ...], str] = {}
        for label, point in zip(self.classes, self.points, strict=True):
            other = seen.setdefault(tuple(np.round(point, 9)), label)
            if other != label:
                raise ValueError(f"{where}: {other!r} and {label!r} share the point {tuple(point)}; move one of them")
        for axis, letter in enumerate("xy"):
            if np.ptp(self.points[:, axis]) == 0:
                raise ValueError(f"{where}: every point has the same {letter}; spread the points in both directions")

    @cached_property
    def hash(self) -> str:
        """Content of the guide: a moved point makes a different guide."""
        rows = zip(self.classes, self.points.round(9).tolist(), self.lineages, self.stages, strict=True)
        return content_id([list(row) for row in rows])

    def scaled(self, radius: float) -> EmbeddingGuide:
        """The same drawing with its farthest point at `radius` from the origin."""
        points = self.points * (radius / np.linalg.norm(self.points, axis=1).max())
        return EmbeddingGuide(self.name, self.classes, points, self.lineages, self.stages)

    def restricted(self, classes: Sequence[str]) -> EmbeddingGuide:
        """The points of `classes`, in that order; points of other classes are dropped.

        Raises ValueError naming each class without a point, with the nearest spelling the guide has.
        """
        missing = [label for label in classes if label not in self.classes]
        if missing:
            hints = []
            for label in missing:
                near = get_close_matches(label, self.classes, n=1)
                hints.append(f"{label!r}" + (f" (did you mean {near[0]!r}?)" if near else ""))
            raise ValueError(
                f"guide {self.name!r} has no point for {', '.join(hints)}; it has: {', '.join(self.classes)}"
            )
        order = [self.classes.index(label) for label in classes]
        return EmbeddingGuide(
            self.name,
            tuple(classes),
            self.points[order],
            tuple(self.lineages[i] for i in order),
            tuple(self.stages[i] for i in order),
        )


def read_guide(path: Path) -> EmbeddingGuide:
    """Read a guide file: `name` and `classes: {label: {x, y, lineage, stage}}`; lineage and stage may be left out.

    Raises ValueError naming the file and the class for anything else.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"no guide file {path}; shipped guides: {', '.join(shipped_guides())}") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"guide file {path} cannot be read: {error}") from None
    if not isinstance(content, dict) or not isinstance(content.get("classes"), dict):
        raise ValueError(f"guide file {path} needs a mapping `classes: {{label: {{x: …, y: …}}}}`")
    labels, points, lineages, stages = [], [], [], []
    for label, entry in content["classes"].items():
        x, y, lineage, stage = _entry(path, label, entry)
        labels.append(str(label))
        points.append((x, y))
        lineages.append(lineage)
        stages.append(stage)
    name = str(content.get("name", path.stem))
    return EmbeddingGuide(name, tuple(labels), np.array(points, dtype=np.float64), tuple(lineages), tuple(stages))


def _entry(path: Path, label: Any, entry: Any) -> tuple[float, float, str, float]:
    known = {"x", "y", "lineage", "stage"}
    if not isinstance(entry, dict) or not {"x", "y"} <= entry.keys() or not entry.keys() <= known:
        raise ValueError(
            f"guide file {path}: class {label!r} needs x and y and may have lineage and stage, got {entry!r}"
        )
    numbers = {key: entry.get(key, 0.0) for key in ("x", "y", "stage")}
    for key, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"guide file {path}: class {label!r} has {key} = {value!r}; it must be a number")
    return float(numbers["x"]), float(numbers["y"]), str(entry.get("lineage", label)), float(numbers["stage"])


def shipped_guides() -> list[str]:
    """Names of the guides that come with the package."""
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def load_guide(config: GuidePoints, classes: Sequence[str]) -> EmbeddingGuide:
    """The guide of a variant: found, restricted to `classes` in their order, scaled to its radius.

    `auto` takes the shipped guide that covers all classes, and raises ValueError naming what each one lacks otherwise.
    """
    if config.file != "auto":
        path = SHIPPED / f"{config.file}.yaml" if config.file in shipped_guides() else Path(config.file)
        return read_guide(path).restricted(classes).scaled(config.radius)
    lacking = {}
    for name in shipped_guides():
        guide = read_guide(SHIPPED / f"{name}.yaml")
        absent = [label for label in classes if label not in guide.classes]
        if not absent:
            return guide.restricted(classes).scaled(config.radius)
        lacking[name] = absent
    told = "; ".join(f"{name!r} lacks {', '.join(absent)}" for name, absent in lacking.items())
    raise ValueError(
        f"no shipped guide has a point for every class: {told}. Draw one (a YAML file with "
        "`classes: {label: {x: …, y: …}}`) and name it with guide.file"
    )
