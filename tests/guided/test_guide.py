from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from guided.config import GuidePoints
from guided.guide import SHIPPED, load_guide, read_guide, shipped_guides
from guided.synthetic import CLASSES

NAMES = [cell.name for cell in CLASSES]


def write(path: Path, body: str) -> Path:
    path.write_text(f"name: test\nclasses:\n{body}", encoding="utf-8")
    return path


@pytest.mark.parametrize("name", shipped_guides())
def test_shipped_guides_load_and_lie_in_a_disc_of_the_asked_radius(name: str) -> None:
    guide = read_guide(SHIPPED / f"{name}.yaml").scaled(7.0)
    assert np.linalg.norm(guide.points, axis=1).max() == pytest.approx(7.0)


def test_the_marrow_guide_has_the_marrow_classes_and_mature_cells_outward() -> None:
    guide = load_guide(GuidePoints(), NAMES)
    assert guide.name == "marrow" and guide.classes == tuple(NAMES)
    for lineage in ("erythroid", "neutrophilic", "monocytic"):
        members = [i for i, name in enumerate(guide.lineages) if name == lineage]
        radius = np.linalg.norm(guide.points[members], axis=1)
        assert np.array_equal(np.argsort(radius), np.argsort([guide.stages[i] for i in members]))


def test_lineage_and_stage_agree_with_the_synthetic_marrow() -> None:
    guide = load_guide(GuidePoints(), NAMES)
    assert guide.lineages == tuple(cell.lineage for cell in CLASSES)
    for lineage in set(guide.lineages):
        members = [i for i, name in enumerate(guide.lineages) if name == lineage]
        ours = np.argsort([guide.stages[i] for i in members])
        assert np.array_equal(ours, np.argsort([CLASSES[i].stage for i in members]))


def test_points_follow_the_order_of_the_classes() -> None:
    plain, turned = load_guide(GuidePoints(), NAMES), load_guide(GuidePoints(), NAMES[::-1])
    assert np.array_equal(plain.points, turned.points[::-1])


def test_extra_points_are_dropped_and_the_scale_is_that_of_the_rest() -> None:
    guide = load_guide(GuidePoints(file="pbc", radius=3.0), ["promyelocyte", "erythroblast"])
    assert guide.classes == ("promyelocyte", "erythroblast")
    assert np.linalg.norm(guide.points, axis=1).max() == pytest.approx(3.0)


def test_a_moved_point_changes_the_hash(tmp_path: Path) -> None:
    body = "  a: {x: 0, y: 0}\n  b: {x: 1, y: %s}\n"
    one = read_guide(write(tmp_path / "1.yaml", body % 1))
    two = read_guide(write(tmp_path / "2.yaml", body % 1.001))
    assert one.hash != two.hash
    assert one.hash == read_guide(write(tmp_path / "3.yaml", body % 1.0)).hash


def test_a_misspelt_class_is_told_with_its_neighbour() -> None:
    with pytest.raises(ValueError, match=r"'eosinophyl' \(did you mean 'eosinophil'\?\)"):
        load_guide(GuidePoints(file="pbc"), ["basophil", "eosinophyl"])


def test_auto_tells_what_each_guide_lacks() -> None:
    with pytest.raises(ValueError, match=r"'marrow' lacks platelet, zebra; 'pbc' lacks zebra.*guide\.file"):
        load_guide(GuidePoints(), ["platelet", "monocyte", "zebra"])


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("  a: {x: 0, y: 0}\n  b: {x: 0, y: 0}\n", "'a' and 'b' share the point"),
        ("  a: {x: 0, y: 1}\n  b: {x: 0, y: 2}\n", "every point has the same x"),
        ("  a: {x: 0, y: 1}\n  b: {x: .nan, y: 2}\n", "the point of 'b'"),
        ("  a: {x: 0, y: 1}\n  b: {x: one, y: 2}\n", "class 'b' has x = 'one'"),
        ("  a: {x: 0, y: 1}\n  b: {x: 1}\n", "class 'b' needs x and y"),
        ("  a: {x: 0, y: 1}\n  b: {x: 1, y: 2, z: 3}\n", "class 'b' needs x and y"),
        ("  a: {x: 0, y: 1}\n", "at least two"),
    ],
)
def test_useless_guides_are_refused_with_the_class(tmp_path: Path, body: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        read_guide(write(tmp_path / "guide.yaml", body))


@pytest.mark.parametrize("content", ["classes: [a, b]", "nothing: here", "a: [", "\x00"])
def test_files_that_are_no_guide_are_refused_by_name(tmp_path: Path, content: str) -> None:
    path = tmp_path / "odd guide.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"odd guide\.yaml"):
        read_guide(path)


def test_an_absent_file_is_told_with_the_shipped_names() -> None:
    with pytest.raises(ValueError, match="shipped guides: marrow, pbc"):
        load_guide(GuidePoints(file="marow"), NAMES)
