"""Figures of cells and classes on good and on degenerate input, and the colours that run through all of them."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.patches import Ellipse

from analysis.artifacts import FoldFiles
from analysis.figures import save
from analysis.lineages import Classes, ordered
from analysis.pictures import (
    aligned_means,
    confusion_figure,
    embeddings_figure,
    guide_figure,
    risk_coverage,
    risk_coverage_figure,
    stability_figure,
)
from analysis.views import view

NAMES = ["segmented", "blast", "myelocyte", "lymphocyte"]
LINEAGES = ["neutrophilic", "undifferentiated", "neutrophilic", "lymphoid"]
POINTS = np.array([[0.0, 5.0], [0.0, 0.0], [0.0, 2.0], [1.0, -4.5]])


@pytest.fixture
def classes() -> Classes:
    return ordered(NAMES, LINEAGES, [5, 0, 2, 4], POINTS)


def fold(embedding: np.ndarray, true: np.ndarray, predicted: np.ndarray, classes: Classes) -> FoldFiles:
    assert classes.points is not None
    scores = np.eye(len(classes.names))[predicted]
    ids = np.array([f"cell-{number}" for number in range(len(true))])
    return FoldFiles(ids, true, predicted, scores, embedding, None, classes.points)


def test_classes_come_by_lineage_and_maturity(classes: Classes) -> None:
    assert classes.names == ("blast", "myelocyte", "segmented", "lymphocyte")
    assert classes.points is not None and classes.points[2].tolist() == [0.0, 5.0]
    assert classes.index(np.array(["lymphocyte", "blast"])).tolist() == [3, 0]
    with pytest.raises(ValueError, match="the study has no class 'band'; it has: blast, myelocyte"):
        classes.index(["band"])


def test_a_class_keeps_its_colour_from_study_to_study(classes: Classes) -> None:
    fewer = ordered(["lymphocyte", "eosinophil"], ["lymphoid", "eosinophilic"], [4, 4])
    assert fewer.colours["lymphocyte"] == classes.colours["lymphocyte"]
    brightness = {name: sum(to_rgb(colour)) for name, colour in classes.colours.items()}
    assert brightness["myelocyte"] > brightness["segmented"]  # pale is immature


def test_unknown_lineages_have_colours_of_their_own() -> None:
    many = ordered([f"class {number}" for number in range(12)])
    assert len(set(list(many.colours.values())[:8])) == 8 and len(many.colours) == 12


def test_all_colours_differ_for_colour_blind_readers(classes: Classes) -> None:
    """Lineages of the marrow, seen by a deuteranope (Machado et al. 2009, severity 1), are apart in colour or light."""
    lineages = ["undifferentiated", "erythroid", "neutrophilic", "eosinophilic", "basophilic", "monocytic", "lymphoid"]
    one_each = ordered(lineages, lineages, [0, 4, 4, 4, 4, 4, 4])
    seen = np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]])
    colours = np.array([to_rgb(colour) for colour in one_each.colours.values()])
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    turned = np.clip(linear @ seen.T, 0, 1) ** (1 / 2.2)
    apart = np.linalg.norm(turned[:, None] - turned, axis=2)
    assert apart[np.triu_indices(len(lineages), 1)].min() > 0.1


def test_embeddings_show_cells_ellipses_and_the_guide(classes: Classes, tmp_path: Path) -> None:
    assert classes.points is not None
    true = np.arange(80) % 4
    embedding = classes.points[true] + np.random.default_rng(0).normal(0, 0.3, (80, 2))
    files = fold(embedding, true, true, classes)
    panel = (files, view(embedding, true, classes.points, named=True, guide2d=True))
    figure = embeddings_figure(classes, {"guide2d": panel, "again": panel})
    first = figure.axes[0]
    assert len([part for part in first.patches if isinstance(part, Ellipse)]) == 8  # outlined twice
    assert np.allclose(first.collections[0].get_offsets(), embedding)
    assert np.allclose(first.collections[1].get_offsets(), classes.points)
    save(figure, tmp_path / "e.svg")
    plt.close(figure)


@pytest.mark.parametrize("kind", ["one class", "collapsed", "one cell", "no guide"])
def test_degenerate_cells_are_drawn(classes: Classes, kind: str, tmp_path: Path) -> None:
    count = 1 if kind == "one cell" else 20
    true = np.zeros(count, np.int64) if kind == "one class" else np.arange(count) % 4
    embedding = np.random.default_rng(0).normal(size=(count, 5))
    if kind == "collapsed":
        embedding[:] = 1.0
    files = fold(embedding, true, true, classes)
    found = view(embedding, true, files.guide_2d, named=False, guide2d=kind == "no guide")
    for name, figure in {
        "embeddings": embeddings_figure(classes, {"a $b_ variant": (files, found)}),
        "confusion": confusion_figure(classes, {"a": (true, true)}),
        "risk": risk_coverage_figure({"a": [files], "none": []}),
        "stability": stability_figure(classes, {"a": (np.ones((2, 4, 5)), "isometries", files.guide_2d)}),
    }.items():
        save(figure, tmp_path / f"{name}.svg")
        plt.close(figure)
    assert "all classes coincide in a run" in (tmp_path / "stability.svg").read_text(encoding="utf-8").replace(
        "\n", " "
    )


def test_what_is_not_there_is_refused(classes: Classes) -> None:
    for draw in (embeddings_figure, confusion_figure, stability_figure):
        with pytest.raises(ValueError, match=r"^no "):
            draw(classes, {})
    with pytest.raises(ValueError, match="no variant has predictions"):
        risk_coverage_figure({"a": []})
    with pytest.raises(ValueError, match="the study records no guide"):
        guide_figure(ordered(NAMES))


def test_the_confusion_matrix_counts(classes: Classes) -> None:
    true, predicted = np.array([0, 0, 0, 0, 2]), np.array([0, 0, 0, 1, 3])
    figure = confusion_figure(classes, {"a": (true, predicted)})
    shares = np.asarray(figure.axes[0].images[0].get_array())
    assert shares[0].tolist() == [0.75, 0.25, 0, 0] and shares[2, 3] == 1 and np.isnan(shares[1]).all()
    assert [text.get_text() for text in figure.axes[0].texts] == ["75", "25", "100"]
    plt.close(figure)


def test_risk_by_coverage() -> None:
    margin, right = np.array([0.9, 0.5, 0.7, 0.1]), np.array([True, False, True, False])
    found = risk_coverage(margin, right, np.array([0.25, 0.5, 0.75, 1.0]))
    assert found == pytest.approx([0, 0, 1 / 3, 1 / 2])
    assert risk_coverage(np.ones(4), right, np.array([0.25, 1.0])) == pytest.approx([0.5, 0.5])  # ties as their mean


@pytest.mark.parametrize("symmetry", ["axes", "isometries"])
def test_runs_are_brought_onto_the_first(symmetry: str) -> None:
    rng = np.random.default_rng(0)
    first = rng.normal(size=(6, 3))
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0] if symmetry == "isometries" else np.eye(3)[[2, 0, 1]] * [1, -1, 1]
    means = np.stack([first, first @ turn + 3.0])
    means[1, 4] = np.nan
    found = aligned_means(means, symmetry)  # type: ignore[arg-type]
    known = [0, 1, 2, 3, 5]
    centre = first[known].mean(0)
    assert found[1][known] - centre == pytest.approx(first[known] - centre, abs=1e-9) and np.isnan(found[1, 4]).all()
