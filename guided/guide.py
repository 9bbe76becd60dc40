"""The embedding guide (3.1): one 2-D point per class, drawn by an expert."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from guided.config import GuidePoints, Transform, content_id
from guided.strict_yaml import parse_yaml

SHIPPED = Path(__file__).parent / "guides"


@dataclass(frozen=True)
class EmbeddingGuide:
    """Points (C, 2) with the lineage and the stage of maturity of each class.

    Raises ValueError for what would make guided training meaningless: a class named twice, a coordinate that is not
    finite, two classes on one point, or all points on a line parallel to an axis (UMAP rescales each axis of its
    start, so a constant axis would become NaN).
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
        if len(set(self.classes)) < len(self.classes):
            twice = next(label for label in self.classes if self.classes.count(label) > 1)
            raise ValueError(f"{where} has class {twice!r} twice")
        for label, point in zip(self.classes, self.points, strict=True):
            if not np.isfinite(point).all():
                raise ValueError(f"{where}: the point of {label!r} is {tuple(point)}; both coordinates must be finite")
        seen: dict[tuple[float, ...], str] = {}
        for label, point in zip(self.classes, self.points, strict=True):
            other = seen.setdefault(tuple(np.round(point, 9)), label)
            if other != label:
                raise ValueError(f"{where}: {other!r} and {label!r} share the point {tuple(point)}; move one of them")
        for axis, letter in enumerate("xy"):
            if np.ptp(self.points[:, axis].round(9)) == 0:
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


class Drawing(NamedTuple):
    """The entries of a guide file as they stand there: points that EmbeddingGuide refuses can still be looked at."""

    name: str
    classes: tuple[str, ...]
    points: np.ndarray  # (C, 2) float64
    lineages: tuple[str, ...]
    stages: tuple[float, ...]


def read_guide(path: Path) -> EmbeddingGuide:
    """Read a guide file: `name` and `classes: {label: {x, y, lineage, stage}}`; lineage and stage may be left out.

    Raises ValueError naming the file and the class for anything else.
    """
    return EmbeddingGuide(*read_drawing(path))


def read_drawing(path: Path) -> Drawing:
    """The entries of a guide file, its points unjudged. Raises ValueError as `read_guide` does for what is no guide."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ValueError(f"no guide file {path}; shipped guides: {', '.join(shipped_guides())}") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"guide file {path} cannot be read: {error}") from None
    return _drawing(path, text)


@lru_cache(maxsize=64)  # a sweep of 2,000 variants asks 2,000 times for the same few files: 13 ms each
def _drawing(path: Path, text: str) -> Drawing:
    try:
        content = parse_yaml(text)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise ValueError(f"guide file {path} cannot be read: {error}") from None
    if not isinstance(content, dict) or not isinstance(content.get("classes"), dict):
        raise ValueError(f"guide file {path} needs a mapping `classes: {{label: {{x: …, y: …}}}}`")
    labels, points, lineages, stages = [], [], [], []
    for label, entry in content["classes"].items():
        if not str(label).strip():
            raise ValueError(f"guide file {path}: class {label!r} has no name; give the label of its cells")
        x, y, lineage, stage = _entry(path, label, entry)
        labels.append(str(label))
        points.append((x, y))
        lineages.append(lineage)
        stages.append(stage)
    name = str(content.get("name", path.stem))
    drawn = np.array(points, dtype=np.float64).reshape(-1, 2)
    drawn.flags.writeable = False  # shared by all who read this file
    return Drawing(name, tuple(labels), drawn, tuple(lineages), tuple(stages))


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
        if abs(value) > 1e100:
            raise ValueError(f"guide file {path}: class {label!r} has a {key} beyond 1e100")
    return float(numbers["x"]), float(numbers["y"]), str(entry.get("lineage", label)), float(numbers["stage"])


def shipped_guides() -> list[str]:
    """Names of the guides that come with the package, in the order in which `auto` tries them.

    The oldest come first: what `auto` has chosen for a set of classes must not change with a new guide.
    """
    names = sorted(path.stem for path in SHIPPED.glob("*.yaml"))
    return sorted(names, key=lambda name: name not in ("marrow", "pbc"))


def own_guides() -> dict[str, Path]:
    """Name and file of every guide in ./guides, the working directory's."""
    return {path.stem: path for path in sorted(Path("guides").glob("*.yaml"))}


def load_guide(config: GuidePoints, classes: Sequence[str]) -> EmbeddingGuide:
    """The guide of a variant: found, restricted to `classes`, transformed, in the order of `classes`, at its radius.

    `auto` takes the first guide that covers all classes, those in ./guides before the shipped ones, and raises
    ValueError naming what each one lacks otherwise. The transform sees the classes in the order of the guide file: the
    order of the data moves no class.
    """
    found = _found(config.file, classes)
    present = found.restricted(classes).restricted([label for label in found.classes if label in classes])
    return transformed(present, config.transform, config.seed).restricted(classes).scaled(config.radius)


def _found(file: str, classes: Sequence[str]) -> EmbeddingGuide:
    # Yours before one of the same name in the package, and before a path.
    known = own_guides() | {name: SHIPPED / f"{name}.yaml" for name in shipped_guides() if name not in own_guides()}
    if file != "auto":
        return read_guide(known.get(file, Path(file)))
    lacking = {}
    for name, path in known.items():
        guide = read_guide(path)
        absent = [label for label in classes if label not in guide.classes]
        if not absent:
            return guide
        lacking[name] = absent
    told = "; ".join(f"{name!r} lacks {', '.join(absent)}" for name, absent in lacking.items())
    raise ValueError(
        f"no guide at hand has a point for every class: {told}. Draw one (a YAML file with "
        "`classes: {label: {x: …, y: …}}`), put it into ./guides, or name it with guide.file"
    )


# --- other drawings of the same classes -----------------------------------------------------------------------------


def transformed(guide: EmbeddingGuide, transform: Transform, seed: int = 0) -> EmbeddingGuide:
    """Another drawing of the classes of `guide`, to ask what the expert's drawing is worth.

    none: as drawn. shuffled: the same points, dealt out so that no class keeps its own. polygon: a regular polygon,
    the classes in the order of the guide. random: see `scatter`. tree: see `from_tree`, with the lineages in the order
    in which the guide first names them. Lineage and stage stay with the class: they are facts, not drawing.
    """
    if transform == "none":
        return guide
    if transform == "tree":
        return from_tree(guide.classes, guide.lineages, guide.stages, name=f"{guide.name}-tree")
    count, rng, name = len(guide.classes), np.random.default_rng(seed), f"{guide.name}-{transform}"
    if transform == "shuffled":
        points, name = guide.points[_derangement(count, rng)], f"{name}-{seed}"
    elif transform == "random":
        points, name = scatter(count, rng), f"{name}-{seed}"
    else:
        points = _polygon(count)
    return EmbeddingGuide(name, guide.classes, points, guide.lineages, guide.stages)


def _derangement(count: int, rng: np.random.Generator) -> np.ndarray:
    # A random order is one with probability 1/e or more, so few draws are thrown away.
    while True:
        order = rng.permutation(count)
        if (order != np.arange(count)).all():
            return order


def _polygon(count: int) -> np.ndarray:
    # Turned by a quarter of a corner: two opposite corners must not share a coordinate.
    angles = 2 * np.pi * (np.arange(count) + 0.25) / count
    return np.column_stack([np.cos(angles), np.sin(angles)])


def scatter(count: int, rng: np.random.Generator) -> np.ndarray:
    """Points (count, 2) drawn one by one, uniformly in the unit disc but at least 1/√count from those before.

    The discs that are closed to a new point then never cover the unit disc, so a place is always found.
    """
    points = np.empty((0, 2))
    while len(points) < count:
        point = rng.uniform(-1, 1, 2)
        if np.linalg.norm(point) <= 1 and (np.linalg.norm(points - point, axis=1) >= count**-0.5).all():
            points = np.vstack([points, point])
    return points


Kin = str | Sequence["Kin"]  # a lineage, or lineages that belong together


def from_tree(
    classes: Sequence[str],
    lineages: Sequence[str],
    stages: Sequence[float],
    *,
    order: Sequence[Kin] | None = None,
    between: Mapping[str, Sequence[str]] | None = None,
    name: str = "tree",
) -> EmbeddingGuide:
    """Lay a guide out from the lineage and the stage of maturity of each class, as 3.1 describes the paper's drawing.

    Each lineage has a direction, in equal angles; the radius is stage / highest stage. `order` names the lineages as
    they follow each other around the centre; it may be nested, e.g. ["erythroid", [["neutrophilic", "eosinophilic"],
    "basophilic"]], and the lineages of one branch then stand side by side. Without it they follow each other as first
    named. A lineage that splits up has no direction of its own: `between` names those it splits into, and it stands in
    their middle. A lineage of stage 0 alone is the root: it lies in the centre, several such classes in a small ring
    around it. A class of stage 0 in any other lineage stands at half the lowest stage. Classes of one lineage and one
    stage stand side by side within a quarter of the angle to the next lineage, in the order given.

    Raises ValueError for a stage that is negative or not finite, where no stage is above 0, for an `order` that lacks
    a lineage (the root needs no place), names one twice or names one that no class has, and for what EmbeddingGuide
    refuses.
    """
    if not len(classes) == len(lineages) == len(stages):
        raise ValueError(f"{len(classes)} classes, {len(lineages)} lineages and {len(stages)} stages are no table")
    for label, stage in zip(classes, stages, strict=True):
        if not 0 <= stage < np.inf:
            raise ValueError(f"guide {name!r}: class {label!r} has stage {stage}; it must be 0 (immature) or more")
    highest = max(stages, default=0.0)
    if highest == 0:
        raise ValueError(f"guide {name!r}: no class has a stage above 0; give the mature classes higher stages")
    with_direction = {lineage for lineage, stage in zip(lineages, stages, strict=True) if stage > 0}
    split = between or {}
    own = with_direction - split.keys()
    around = [lineage for lineage in _around(lineages, own, order, name) if lineage in own]
    place = {lineage: float(number) for number, lineage in enumerate(around)}
    for lineage, parts in split.items():
        place[lineage] = (place[parts[0]] + place[parts[-1]]) / 2
    lowest = min(stage for stage in stages if stage > 0)
    roots = [i for i, lineage in enumerate(lineages) if lineage not in with_direction]
    places: dict[tuple[str, float], list[int]] = {}
    for i, (lineage, stage) in enumerate(zip(lineages, stages, strict=True)):
        if lineage in with_direction:
            places.setdefault((lineage, stage), []).append(i)
    points = np.zeros((len(classes), 2))
    gap = 2 * np.pi / len(around)
    for (lineage, stage), members in places.items():
        aside = (np.arange(len(members)) + 0.5) / len(members) - 0.5
        # From 45 degrees on: one lineage, or two opposite ones, must not lie along an axis.
        angles = np.pi / 4 + gap * (place[lineage] + aside / 2)
        radius = max(stage, lowest / 2) / highest
        points[members] = radius * np.column_stack([np.cos(angles), np.sin(angles)])
    if len(roots) > 1:
        points[roots] = lowest / highest / 4 * _polygon(len(roots))
    return EmbeddingGuide(name, tuple(classes), points, tuple(lineages), tuple(float(stage) for stage in stages))


def _around(lineages: Sequence[str], needed: set[str], order: Sequence[Kin] | None, name: str) -> list[str]:
    known = list(dict.fromkeys(lineages))
    if order is None:
        return known
    given = list(_leaves(order))
    twice = [lineage for lineage in given if given.count(lineage) > 1]
    if twice:
        raise ValueError(f"guide {name!r}: the order names lineage {twice[0]!r} twice")
    lacking = [lineage for lineage in known if lineage in needed and lineage not in given]
    if lacking:
        raise ValueError(f"guide {name!r}: the order lacks lineage {', '.join(lacking)}")
    odd = [lineage for lineage in given if lineage not in known]
    if odd:
        near = get_close_matches(odd[0], known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"guide {name!r}: the order names lineage {odd[0]!r}, which no class has{hint}")
    return given


def _leaves(kin: Kin) -> Iterator[str]:
    if isinstance(kin, str):
        yield kin
    else:
        for part in kin:
            yield from _leaves(part)
