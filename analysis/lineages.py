"""The classes as a reader wants them: in the order of lineage and maturity, in the colours of their lineages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from matplotlib.colors import LinearSegmentedColormap, to_hex

# Okabe and Ito's hues. A lineage keeps its colour from figure to figure and from study to study; one that is not named
# here takes the next free hue.
HUES = {
    "undifferentiated": "#555555",
    "erythroid": "#D55E00",
    "neutrophilic": "#CC79A7",
    "eosinophilic": "#E69F00",
    "basophilic": "#0072B2",
    "monocytic": "#009E73",
    "lymphoid": "#56B4E9",
    "megakaryocytic": "#F0E442",
}


@dataclass(frozen=True)
class Classes:
    """The classes of a study, ordered: the root of the tree first, then lineage by lineage, immature to mature.

    `points` (C, 2) is the drawn guide, None where none is recorded.
    """

    names: tuple[str, ...]
    lineages: tuple[str, ...]
    stages: tuple[float, ...]
    points: np.ndarray | None

    @cached_property
    def colours(self) -> dict[str, str]:
        """A colour per class: the hue of its lineage, pale for the immature, dark for the mature."""
        free = [hue for name, hue in HUES.items() if name not in self.lineages]
        found: dict[str, str] = {}
        unknown = [name for name in dict.fromkeys(self.lineages) if name not in HUES]
        hues = HUES | {name: free[place % len(free)] if free else "#8C8C8C" for place, name in enumerate(unknown)}
        for lineage in dict.fromkeys(self.lineages):
            own = [index for index, each in enumerate(self.lineages) if each == lineage]
            ramp = LinearSegmentedColormap.from_list(lineage, ["#FFFFFF", hues[lineage], "#1A1A1A"])
            shades = np.linspace(0.2, 0.78, len(own)) if len(own) > 1 else [0.5]
            found |= {self.names[index]: to_hex(ramp(shade)) for index, shade in zip(own, shades, strict=True)}
        return found

    def index(self, labels: Sequence[str] | np.ndarray) -> np.ndarray:
        """Numbers (N,) of class names (N,). Raises ValueError for a name that is no class of the study."""
        known = {name: place for place, name in enumerate(self.names)}
        odd = sorted({str(label) for label in labels} - known.keys())
        if odd:
            raise ValueError(f"the study has no class {odd[0]!r}; it has: {', '.join(self.names)}")
        return np.array([known[str(label)] for label in labels], dtype=np.int64)


def ordered(
    names: Sequence[str],
    lineages: Sequence[str] | None = None,
    stages: Sequence[float] | None = None,
    points: np.ndarray | None = None,
) -> Classes:
    """Classes in order. Lineages follow each other by the direction of their outermost point on the guide, as on a
    clock; without a guide as first named. Without lineages every class is one of its own, which claims no kinship."""
    lineages = list(names) if lineages is None else list(lineages)
    stages = [0.0] * len(names) if stages is None else [float(stage) for stage in stages]
    groups: dict[str, list[int]] = {}
    for place, lineage in enumerate(lineages):
        groups.setdefault(lineage, []).append(place)
    for own in groups.values():
        own.sort(key=lambda place: stages[place])

    def key(item: tuple[int, list[int]]) -> tuple[bool, float]:
        place, own = item
        root = max(stages[each] for each in own) == 0 < max(stages)
        if points is None:
            return not root, float(place)
        x, y = points[max(own, key=lambda each: float(np.linalg.norm(points[each])))]
        return not root, float(np.arctan2(x, y) % (2 * np.pi))

    order = [place for _, own in sorted(enumerate(groups.values()), key=key) for place in own]
    return Classes(
        tuple(str(names[place]) for place in order),
        tuple(str(lineages[place]) for place in order),
        tuple(stages[place] for place in order),
        None if points is None else np.asarray(points, dtype=np.float64)[order],
    )
