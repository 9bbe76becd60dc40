"""What is wrong with a drawing, and what that would do to training; how two drawings of the same classes differ."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import combinations, pairwise
from typing import Literal

import numpy as np
from scipy.linalg import orthogonal_procrustes, svdvals
from scipy.spatial.distance import pdist
from scipy.stats import spearmanr

from guided.guide import Drawing, EmbeddingGuide

# In shares of an even spacing, 1/√C of the outermost radius (guided.guide.scatter keeps its points that far apart).
CLOSE = 0.25
FLAT = 0.05  # narrowest over widest direction: below, a drawing is a line
FAR = 2.5  # outermost over second outermost radius
ASIDE = 0.4  # distance of the mean point from the origin over the outermost radius
SCALES = (0.5, 2.0)  # outermost radius of a drawing that is meant in shares of it
SAME = 9  # decimals to which EmbeddingGuide compares points


@dataclass(frozen=True)
class Finding:
    """One thing wrong with a drawing. `refused`: training does not start with it; `doubtful`: it does, and suffers."""

    level: Literal["refused", "doubtful"]
    rule: str
    classes: tuple[str, ...]
    told: str
    consequence: str

    def __str__(self) -> str:
        return f"{self.told}; {self.consequence}"


def check_drawing(drawing: Drawing | EmbeddingGuide, wanted: Sequence[str] | None = None) -> list[Finding]:
    """Everything wrong with a drawing, what training refuses first; `wanted` are the classes of the data.

    Refused are classes of the data without a point, a class named twice, fewer than two classes, points that are not
    finite or that two classes share, and an axis on which all points agree. Doubtful are classes too close, points on
    an oblique line, a far point, a drawing beside the origin or in another unit than the outermost radius, maturity
    that runs inwards, lineage lines that cross, and points of classes that the data do not have.
    """
    drawing = Drawing(drawing.name, drawing.classes, drawing.points, drawing.lineages, drawing.stages)
    found = [*_names(drawing, wanted)]
    finite = np.isfinite(drawing.points).all(1)
    for label in np.array(drawing.classes, dtype=object)[~finite]:
        found.append(
            Finding("refused", "not finite", (label,), f"the point of {label} is no pair of finite numbers", REFUSED)
        )
    used = finite if wanted is None else finite & np.isin(drawing.classes, list(wanted))
    if used.sum() >= 2:
        rows = np.flatnonzero(used)
        found += _places(
            Drawing(
                drawing.name,
                tuple(drawing.classes[row] for row in rows),
                drawing.points[rows],
                tuple(drawing.lineages[row] for row in rows),
                tuple(drawing.stages[row] for row in rows),
            )
        )
    return sorted(found, key=lambda finding: finding.level != "refused")


REFUSED = "training does not start"


def _names(drawing: Drawing, wanted: Sequence[str] | None) -> Iterator[Finding]:
    twice = sorted({label for label in drawing.classes if drawing.classes.count(label) > 1})
    for label in twice:
        yield Finding("refused", "named twice", (label,), f"{label} stands twice", f"which point counts? {REFUSED}")
    if len(drawing.classes) < 2:
        told = f"there are {len(drawing.classes)} classes"
        yield Finding("refused", "too few", drawing.classes, told, "classification needs at least two")
    if wanted is None:
        return
    for label in wanted:
        if label not in drawing.classes:
            near = get_close_matches(label, drawing.classes, n=1)
            hint = f" (is it {near[0]}?)" if near else ""
            told = f"{label} has no point{hint}"
            yield Finding("refused", "missing", (label,), told, f"its cells would have no target; {REFUSED}")
    extra = tuple(label for label in drawing.classes if label not in set(wanted))
    if extra:
        reach = np.linalg.norm(drawing.points, axis=1)
        kept = [row for row, label in enumerate(drawing.classes) if label not in extra]
        outermost = bool(kept) and reach[kept].max() < reach.max()
        grown = ", and the others scaled up, as the outermost is among them" if outermost else ""
        yield Finding(
            "doubtful",
            "extra",
            extra,
            f"the data have no cells of {', '.join(extra)}",
            f"these points are dropped{grown}",
        )


def _places(drawing: Drawing) -> Iterator[Finding]:
    classes, points = drawing.classes, drawing.points
    reach = np.linalg.norm(points, axis=1)
    radius = reach.max()
    if radius == 0:
        told = "every point is the origin"
        yield Finding("refused", "same point", classes, told, f"the drawing tells nothing; {REFUSED}")
        return
    shared = yield from _pairs(classes, points, radius)
    constant = [letter for axis, letter in enumerate("xy") if np.ptp(points[:, axis].round(SAME)) == 0]
    for letter in constant:
        told = f"every point has the same {letter}"
        consequence = f"UMAP divides by the width of each axis and would return no numbers; {REFUSED}"
        yield Finding("refused", "constant axis", classes, told, consequence)
    widths = svdvals(points - points.mean(0))
    if len(classes) > 2 and not constant and not shared and widths[1] < FLAT * widths[0]:
        yield Finding(
            "doubtful",
            "collinear",
            classes,
            "the points lie on a line",
            "one of two dimensions is unused, and lineages can only be told apart by how far along it they lie",
        )
    order = np.argsort(reach)
    second = reach[order[-2]]
    if len(classes) > 2 and second > 0 and radius > FAR * second:
        label = classes[order[-1]]
        yield Finding(
            "doubtful",
            "far point",
            (label,),
            f"{label} lies {radius / second:.1f} times as far out as any other",
            "the farthest point is scaled to guide.radius, so all others huddle in the middle",
        )
    elif len(classes) > 2 and np.linalg.norm(points.mean(0)) > ASIDE * radius:
        yield Finding(
            "doubtful",
            "beside the origin",
            classes,
            f"the drawing lies beside the origin, about ({points.mean(0)[0]:.3g}, {points.mean(0)[1]:.3g})",
            "it is scaled from the origin, so the classes end close together, and the norm term pulls all to one side; "
            "subtract the middle from all points",
        )
    if not SCALES[0] <= radius <= SCALES[1]:
        yield Finding(
            "doubtful",
            "scale",
            (classes[order[-1]],),
            f"the outermost point, {classes[order[-1]]}, lies {radius:.3g} from the origin instead of 1",
            "training scales it to guide.radius, so distances read off this file are not those it trains with",
        )
    yield from _lineages(drawing)


def _pairs(classes: Sequence[str], points: np.ndarray, radius: float) -> Generator[Finding, None, bool]:
    """Classes on one point or too close; the generator returns whether two share a point."""
    spacing = radius / np.sqrt(len(classes))
    shared = False
    for i, j in combinations(range(len(classes)), 2):
        apart = float(np.linalg.norm(points[i] - points[j]))
        pair = (classes[i], classes[j])
        if (points[i].round(SAME) == points[j].round(SAME)).all():
            shared = True
            told = f"{pair[0]} and {pair[1]} share a point"
            yield Finding("refused", "same point", pair, told, f"nothing could tell them apart; {REFUSED}")
        elif apart < CLOSE * spacing:
            yield Finding(
                "doubtful",
                "too close",
                pair,
                f"{pair[0]} and {pair[1]} are {apart / radius:.3f} of the radius apart "
                f"({len(classes)} classes in even spacing: {spacing / radius:.2f})",
                "a cell is hardly corrected for lying on the wrong one, so they will be confused",
            )
    return shared


def _lineages(drawing: Drawing) -> Iterator[Finding]:
    classes, points, stages = drawing.classes, drawing.points, drawing.stages
    reach = np.linalg.norm(points, axis=1)
    for rows in lineage_rows(drawing).values():
        for i, j in pairwise(rows):
            if stages[i] < stages[j] and reach[j] <= reach[i]:
                yield Finding(
                    "doubtful",
                    "maturity inwards",
                    (classes[i], classes[j]),
                    f"{classes[j]} (stage {stages[j]:g}) lies no farther out than {classes[i]} (stage {stages[i]:g})",
                    "cells between the two stages then turn back towards the immature cells of all lineages",
                )
    lines = lineage_lines(drawing)
    for (one, first), (other, second) in combinations(lines, 2):
        if one != other and segments_cross(points[list(first)], points[list(second)]):
            named = tuple(classes[row] for row in (*first, *second))
            yield Finding(
                "doubtful",
                "lines cross",
                named,
                f"the line of {one} ({named[0]} to {named[1]}) crosses that of {other} ({named[2]} to {named[3]})",
                "cells between stages of both lineages are asked to lie in one place",
            )


def lineage_rows(drawing: Drawing | EmbeddingGuide) -> dict[str, list[int]]:
    """Rows of the classes of each lineage, from immature to mature."""
    rows: dict[str, list[int]] = {}
    for row in sorted(range(len(drawing.classes)), key=drawing.stages.__getitem__):
        rows.setdefault(drawing.lineages[row], []).append(row)
    return rows


def lineage_lines(drawing: Drawing | EmbeddingGuide) -> list[tuple[str, tuple[int, int]]]:
    """Lineage and the two rows of each line from a stage to the next; the first class of a stage stands for all."""
    lines = []
    for lineage, rows in lineage_rows(drawing).items():
        nodes = list({drawing.stages[row]: row for row in reversed(rows)}.values())[::-1]
        lines += [(lineage, pair) for pair in pairwise(nodes)]
    return lines


def segments_cross(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether two segments (2, 2) cross at a point inside both."""

    def side(segment: np.ndarray, point: np.ndarray) -> float:
        (ax, ay), (bx, by) = segment
        return float((bx - ax) * (point[1] - ay) - (by - ay) * (point[0] - ax))

    def parted(segment: np.ndarray, other: np.ndarray) -> bool:
        return side(segment, other[0]) * side(segment, other[1]) < 0

    return parted(first, second) and parted(second, first)


# --- two drawings ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Change:
    """A pair of classes whose distance changed: its share of the mean distance of all pairs, before and after."""

    classes: tuple[str, str]
    before: float
    after: float


@dataclass(frozen=True)
class Comparison:
    """How the second of two guides differs from the first, over the classes that both have."""

    classes: tuple[str, ...]
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]
    disparity: float  # share of the first drawing's spread that no turning, mirroring, moving and scaling explains
    turned: float  # degrees counter-clockwise that lay the second on the first, after mirroring where `mirrored`
    mirrored: bool
    scale: float  # size of the second over that of the first
    rank_correlation: float  # Spearman's, of the distances of all pairs (Euclidean)
    rank_correlation_l1: float  # of the L1 distances, which the losses see: turning changes those
    changes: tuple[Change, ...]  # all pairs, most changed first


def compare_guides(first: EmbeddingGuide, second: EmbeddingGuide) -> Comparison:
    """Compare two guides by Procrustes analysis (Gower 1975) and by the ranks of their distances.

    Both are centred and scaled to a root mean square radius of 1 before the second is laid on the first. Raises
    ValueError where they share fewer than three classes: two points always match.
    """
    classes = tuple(label for label in first.classes if label in second.classes)
    if len(classes) < 3:
        shared = ", ".join(classes) or "none"
        raise ValueError(
            f"guides {first.name!r} and {second.name!r} share {len(classes)} classes ({shared}); three are needed"
        )
    one, two = first.restricted(classes).points, second.restricted(classes).points
    one, two = one - one.mean(0), two - two.mean(0)
    sizes = [float(np.sqrt((points**2).sum(1).mean())) for points in (one, two)]
    one, two = one / sizes[0], two / sizes[1]
    # two @ rotation lies on one. A reflection is told as "mirror left and right, then turn".
    rotation, _ = orthogonal_procrustes(two, one)
    mirrored = bool(np.linalg.det(rotation) < 0)
    turn = np.diag([-1.0, 1.0]) @ rotation if mirrored else rotation
    fitted = two @ rotation
    fitted *= (fitted * one).sum() / (fitted**2).sum()
    distances = [pdist(points) / pdist(points).mean() for points in (one, two)]
    pairs = list(combinations(classes, 2))
    order = np.argsort(-np.abs(distances[1] - distances[0]), kind="stable")
    return Comparison(
        classes=classes,
        only_first=tuple(label for label in first.classes if label not in classes),
        only_second=tuple(label for label in second.classes if label not in classes),
        disparity=float(((one - fitted) ** 2).sum() / (one**2).sum()),
        turned=float(np.degrees(np.arctan2(turn[0, 1], turn[0, 0]))),
        mirrored=mirrored,
        scale=sizes[1] / sizes[0],
        rank_correlation=_ranks(*distances),
        rank_correlation_l1=_ranks(*(pdist(points, "cityblock") for points in (one, two))),
        changes=tuple(Change(pairs[i], float(distances[0][i]), float(distances[1][i])) for i in order),
    )


def _ranks(one: np.ndarray, two: np.ndarray) -> float:
    return float(spearmanr(one.round(SAME), two.round(SAME)).statistic)
