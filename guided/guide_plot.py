"""A guide as a figure."""

from __future__ import annotations

from pathlib import Path

from guided.guide import Drawing, EmbeddingGuide
from guided.guide_check import lineage_lines

FIGURES = (".png", ".svg", ".pdf")
# Okabe and Ito's eight, told apart by colour-blind readers too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#555555", "#B2A300")


def lineage_colours(lineages: tuple[str, ...]) -> dict[str, str]:
    """A colour for each lineage, in the order in which they are named."""
    return {name: COLOURS[number % len(COLOURS)] for number, name in enumerate(dict.fromkeys(lineages))}


def draw_guide(guide: EmbeddingGuide | Drawing, path: Path) -> None:
    """Draw a guide as PNG, SVG or PDF by the suffix of `path`: points with their classes, a line along each lineage
    from immature to mature, the origin as a small cross. Equal guides give equal files.

    Raises ValueError for another suffix.
    """
    if path.suffix.lower() not in FIGURES:
        raise ValueError(f"{path} cannot be drawn: a figure is {', '.join(FIGURES)}")
    import matplotlib as mpl  # slow to import, and only drawing needs it
    from matplotlib.figure import Figure

    style = {"svg.fonttype": "none", "svg.hashsalt": "guide", "pdf.fonttype": 42, "font.size": 9}
    with mpl.rc_context(style):
        figure = Figure(figsize=(8, 8), layout="constrained")
        axes = figure.add_subplot()
        colours = lineage_colours(guide.lineages)
        for lineage, pair in lineage_lines(guide):
            axes.plot(*guide.points[list(pair)].T, color=colours[lineage], linewidth=1.4, zorder=2)
        axes.plot(0, 0, "+", color="#999999", markersize=9, zorder=1)
        for lineage, colour in colours.items():
            rows = [row for row, name in enumerate(guide.lineages) if name == lineage]
            x, y = guide.points[rows].T
            axes.scatter(x, y, s=55, color=colour, edgecolors="white", zorder=3, label=lineage)
        # A name stands on the side that leads away from the origin: there it meets the fewest lines.
        for label, (x, y) in zip(guide.classes, guide.points.tolist(), strict=True):
            right = x >= -1e-9
            axes.annotate(
                label.replace("_", " ").replace("$", r"\$"),
                (x, y),
                (7 if right else -7, 0),
                textcoords="offset points",
                ha="left" if right else "right",
                va="center",
                fontsize=8,
                zorder=4,
            )
        axes.set_aspect("equal", adjustable="datalim")
        axes.margins(0.18)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_title(f"{guide.name.replace('$', chr(92) + '$')}: {len(guide.classes)} classes", loc="left")
        axes.legend(title="lineage", fontsize=8, loc="best", frameon=False)
        metadata = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(path.suffix.lower())
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata=metadata, dpi=150)
