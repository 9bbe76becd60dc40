"""What is wrong with a drawing, how drawings differ, and guide files whose points are moved."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from guided.guide import SHIPPED, Drawing, EmbeddingGuide, read_drawing, read_guide, shipped_guides, transformed
from guided.guide_check import check_drawing, compare_guides, segments_cross
from guided.guide_file import guide_text, with_points, write_text
from guided.guide_plot import draw_guide


def drawing(points: list[tuple[float, float]], lineages: str = "", stages: list[float] | None = None) -> Drawing:
    classes = tuple("abcdefghijkl"[: len(points)])
    told = tuple(lineages) or classes
    return Drawing("test", classes, np.array(points, dtype=float), told, tuple(stages or [0.0] * len(points)))


SOUND = [(0.0, 0.0), (1.0, 0.0), (-0.5, 0.8), (-0.5, -0.8)]


def rules(points: list[tuple[float, float]], **rest: object) -> dict[str, str]:
    return {finding.rule: finding.level for finding in check_drawing(drawing(points, **rest))}  # type: ignore[arg-type]


@pytest.mark.parametrize("name", shipped_guides())
def test_nothing_is_wrong_with_the_shipped_guides(name: str) -> None:
    assert check_drawing(read_guide(SHIPPED / f"{name}.yaml")) == []


@pytest.mark.parametrize(
    ("points", "rule", "level"),
    [
        ([*SOUND, (1.0, 0.0)], "same point", "refused"),
        ([(0.0, 0.0), (0.0, 0.0)], "same point", "refused"),
        ([*SOUND, (np.nan, 0.0)], "not finite", "refused"),
        ([(0.0, 1.0), (0.3, 1.0), (-0.9, 1.0)], "constant axis", "refused"),
        ([(0.0, 0.0), (0.5, 0.5), (1.0, 1.0), (-1.0, -1.0)], "collinear", "doubtful"),
        ([*SOUND, (0.97, 0.0)], "too close", "doubtful"),
        ([*SOUND, (4.0, 0.0)], "far point", "doubtful"),
        ([(x + 3, y + 3) for x, y in SOUND], "beside the origin", "doubtful"),
        ([(300 * x, 300 * y) for x, y in SOUND], "scale", "doubtful"),
        ([(0.01 * x, 0.01 * y) for x, y in SOUND], "scale", "doubtful"),
    ],
)
def test_each_fault_is_found(points: list[tuple[float, float]], rule: str, level: str) -> None:
    assert rules(SOUND) == {}
    assert rules(points)[rule] == level


def test_faults_of_lineages_are_found() -> None:
    inwards = rules([(0.0, 0.0), (1.0, 0.1), (0.5, 0.6), (-0.7, -0.7)], lineages="abbc", stages=[0, 1, 2, 1])
    assert inwards == {"maturity inwards": "doubtful"}
    crossing = [(0.2, 0.3), (0.8, 0.9), (0.2, 0.9), (0.95, 0.2), (-1.0, -1.0)]
    assert rules(crossing, lineages="aabbc", stages=[1, 2, 1, 2, 0])["lines cross"] == "doubtful"


def test_missing_and_extra_classes_are_told_with_the_consequence() -> None:
    guide = read_drawing(SHIPPED / "pbc.yaml")
    found = {
        finding.rule: finding for finding in check_drawing(guide, ["basophil", "monocyt", "eosinophil", "platelet"])
    }
    assert found["missing"].told == "monocyt has no point (is it monocyte?)"
    assert found["missing"].level == "refused" and found["extra"].level == "doubtful"
    assert "monocyte" in found["extra"].classes
    outermost = check_drawing(drawing(SOUND), ["a", "c", "d"])
    assert [finding.consequence for finding in outermost] == [
        "these points are dropped, and the others scaled up, as the outermost is among them"
    ]


any_number = st.floats(-2, 2) | st.sampled_from([0.0, 1.0, np.nan, np.inf])
points_of_any_kind = st.lists(st.tuples(any_number, any_number), max_size=8)


@given(points_of_any_kind)
def test_refused_is_exactly_what_the_guide_refuses(points: list[tuple[float, float]]) -> None:
    told = Drawing(
        "any",
        tuple("abcdefgh"[: len(points)]),
        np.array(points, dtype=float).reshape(-1, 2),
        tuple("abcdefgh"[: len(points)]),
        (0.0,) * len(points),
    )
    refused = any(finding.level == "refused" for finding in check_drawing(told))
    try:
        EmbeddingGuide(*told)
    except ValueError:
        assert refused
    else:
        assert not refused


def test_segments_cross_only_inside() -> None:
    cross = np.array([(0.0, 0.0), (1.0, 1.0)]), np.array([(0.0, 1.0), (1.0, 0.0)])
    assert segments_cross(*cross)
    assert not segments_cross(cross[0], np.array([(1.0, 1.0), (2.0, 0.0)]))  # they meet at an end
    assert not segments_cross(cross[0], cross[0] + [0.5, 0.0])


# --- comparison


def test_turning_mirroring_moving_and_scaling_is_no_difference() -> None:
    guide = read_guide(SHIPPED / "marrow.yaml")
    angle = np.radians(40)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])  # rows times it: turned by +40
    for mirror in (False, True):
        points = guide.points * ([-1, 1] if mirror else [1, 1]) @ turn * 3 + [5, 7]
        told = compare_guides(guide, EmbeddingGuide("other", guide.classes, points, guide.lineages, guide.stages))
        assert told.disparity == pytest.approx(0, abs=1e-12) and told.scale == pytest.approx(3)
        assert told.mirrored is mirror and told.rank_correlation == pytest.approx(1)
        assert told.rank_correlation_l1 < 0.999
        # Laying the second on the first undoes it.
        assert told.turned == pytest.approx(40 if mirror else -40)


def test_a_moved_class_stands_in_the_pairs_that_changed_most() -> None:
    guide = read_guide(SHIPPED / "marrow.yaml")
    points = guide.points.copy()
    points[guide.classes.index("lymphocyte")] = (0.1, 0.9)
    told = compare_guides(guide, EmbeddingGuide("moved", guide.classes, points, guide.lineages, guide.stages))
    assert all("lymphocyte" in change.classes for change in told.changes[:8])
    assert 0 < told.disparity < 1 and told.rank_correlation < 0.95
    dealt = compare_guides(guide, transformed(guide, "shuffled", 1))
    assert dealt.disparity > told.disparity


def test_guides_with_two_classes_in_common_cannot_be_compared() -> None:
    first, second = (
        read_guide(SHIPPED / "marrow.yaml"),
        read_guide(SHIPPED / "marrow.yaml").restricted(["blast", "monocyte"]),
    )
    with pytest.raises(ValueError, match=r"share 2 classes \(blast, monocyte\); three are needed"):
        compare_guides(first, second)


# --- files

names = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12)
coordinates = st.floats(-100, 100).map(lambda value: round(value, 3))


@settings(max_examples=40, deadline=None)
@given(st.lists(names, min_size=2, max_size=6, unique=True), st.data())
def test_a_written_guide_is_read_as_it_was(labels: list[str], data: st.DataObject) -> None:
    points = data.draw(st.lists(st.tuples(coordinates, coordinates), min_size=len(labels), max_size=len(labels)))
    stages = tuple(float(number) for number in range(len(labels)))
    told = Drawing("n", tuple(labels), np.array(points), tuple(labels[::-1]), stages)
    content = yaml.safe_load(guide_text(told, "a comment\nof two lines"))
    assert list(content["classes"]) == labels
    for label, (x, y), lineage, stage in zip(labels, points, labels[::-1], stages, strict=True):
        assert content["classes"][label] == {"x": x, "y": y, "lineage": lineage, "stage": stage}


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_moved_points_leave_the_rest_of_the_file_alone(data: st.DataObject) -> None:
    text = (SHIPPED / "pbc.yaml").read_text(encoding="utf-8")
    before = yaml.safe_load(text)["classes"]
    moved = data.draw(st.dictionaries(st.sampled_from(sorted(before)), st.tuples(coordinates, coordinates), max_size=4))
    after = with_points(text, moved)
    assert [line for line in after.splitlines() if line.startswith("#")] == text.splitlines()[:3]
    changed = [a for a, b in zip(after.splitlines(), text.splitlines(), strict=True) if a != b]
    assert all(any(label in line for label in moved) for line in changed)
    for label, entry in yaml.safe_load(after)["classes"].items():
        expected = dict(zip("xy", moved[label], strict=True)) if label in moved else {}
        assert entry == before[label] | expected


def test_a_point_that_stays_keeps_its_spelling() -> None:
    text = "classes:\n  a: {x: +1.50, y: 2.0e+0} # as drawn\n  b:\n    x: 0 # left\n    y: 1\n"
    assert with_points(text, {"a": (1.5, 2.0), "b": (0.25, 1.0)}) == text.replace("x: 0 # left", "x: 0.25 # left")


@pytest.mark.parametrize(
    "text",
    [
        "classes:\n  a: {x: &n 1.0, y: 2.0}\n  b: {x: *n, y: 0.0}\n",
        "classes:\n  a: &a {x: 1.0, y: 2.0}\n  b: {<<: *a, y: 0.0}\n",
    ],
)
def test_numbers_that_two_classes_share_are_not_touched(text: str) -> None:
    with pytest.raises(ValueError, match=r"anchor|does not name its own x"):
        with_points(text, {"a": (1.0, 2.0), "b": (3.0, 0.0)})
    with pytest.raises(ValueError, match="has no class 'z'"):
        with_points(text, {"z": (0.0, 0.0)})


def test_a_file_is_replaced_whole_and_keeps_mode_and_link(tmp_path: Path) -> None:
    target, link = tmp_path / "real.yaml", tmp_path / "link.yaml"
    target.write_text("old")
    target.chmod(0o640)
    link.symlink_to(target)
    write_text(link, "new\n")
    assert link.is_symlink() and target.read_text() == "new\n" and target.stat().st_mode & 0o777 == 0o640
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.yaml", "real.yaml"]


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_a_guide_is_drawn_in_every_format_and_equally_twice(tmp_path: Path, suffix: str) -> None:
    guide = read_guide(SHIPPED / "pbc.yaml")
    odd = EmbeddingGuide("a $x_1$ <b>", ("$\\frac$", *guide.classes[1:]), guide.points, guide.lineages, guide.stages)
    for path in (tmp_path / f"1{suffix}", tmp_path / f"2{suffix}"):
        draw_guide(odd, path)
    assert (tmp_path / f"1{suffix}").read_bytes() == (tmp_path / f"2{suffix}").read_bytes()
    with pytest.raises(ValueError, match=r"cannot be drawn: a figure is \.png, \.svg, \.pdf"):
        draw_guide(guide, tmp_path / "guide.bmp")
