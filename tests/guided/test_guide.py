from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from guided.config import Config, GuidePoints, Transform
from guided.guide import (
    SHIPPED,
    EmbeddingGuide,
    from_tree,
    load_guide,
    read_guide,
    scatter,
    shipped_guides,
    transformed,
)
from guided.synthetic import CLASSES

NAMES = [cell.name for cell in CLASSES]
TRANSFORMS = get_args(Transform)
seeds = st.integers(0, 2**32)


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
        ("  a: {x: 0, y: 1}\n  b: {x: 1.0e-12, y: 2}\n", "every point has the same x"),
        ("  a: {x: 0, y: 1}\n  b: {x: .nan, y: 2}\n", "the point of 'b'"),
        ("  a: {x: 0, y: 1}\n  b: {x: one, y: 2}\n", "class 'b' has x = 'one'"),
        ("  a: {x: 0, y: 1}\n  b: {x: 1}\n", "class 'b' needs x and y"),
        ("  a: {x: 0, y: 1}\n  b: {x: 1, y: 2, z: 3}\n", "class 'b' needs x and y"),
        ("  a: {x: 0, y: 1}\n", "at least two"),
        ("  1: {x: 0, y: 1}\n  '1': {x: 1, y: 2}\n", "has class '1' twice"),
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


@st.composite
def guides(draw: st.DrawFn) -> EmbeddingGuide:
    """Guides of 2-20 classes on distinct points of a lattice, with lineages and stages where the tree can use them."""
    lattice = st.tuples(st.integers(-9, 9), st.integers(-9, 9))
    points = draw(st.lists(lattice, min_size=2, max_size=20, unique=True))
    if len({x for x, _ in points}) == 1 or len({y for _, y in points}) == 1:
        points += [(10, 10)]
    count = len(points)
    lineages = draw(st.lists(st.sampled_from("abcdef"), min_size=count, max_size=count))
    stages = draw(st.lists(st.integers(0, 5), min_size=count, max_size=count).filter(any))
    classes = draw(st.permutations([f"class {i}" for i in range(count)]))
    return EmbeddingGuide("drawn", tuple(classes), np.array(points, float), tuple(lineages), tuple(map(float, stages)))


def distances(points: np.ndarray) -> list[float]:
    return [float(np.linalg.norm(one - other)) for one, other in combinations(points, 2)]


class TestTransforms:
    @given(guide=guides(), transform=st.sampled_from(TRANSFORMS), seed=seeds)
    def test_every_transform_is_a_sound_guide_of_the_same_classes_and_radius(
        self, guide: EmbeddingGuide, transform: Transform, seed: int
    ) -> None:
        other = transformed(guide, transform, seed).scaled(5.0)
        assert (other.classes, other.lineages, other.stages) == (guide.classes, guide.lineages, guide.stages)
        assert other.points.shape == guide.points.shape
        assert min(distances(other.points)) > 1e-6
        assert np.linalg.norm(other.points, axis=1).max() == pytest.approx(5.0)
        assert transformed(guide, transform, seed).hash == transformed(guide, transform, seed).hash

    @given(guide=guides(), seed=seeds)
    def test_shuffled_deals_the_same_points_and_no_class_keeps_its_own(self, guide: EmbeddingGuide, seed: int) -> None:
        points = transformed(guide, "shuffled", seed).points
        assert sorted(points.tolist()) == sorted(guide.points.tolist())
        assert (points != guide.points).any(axis=1).all()

    @given(guide=guides())
    def test_a_polygon_has_equal_sides_on_one_circle_in_the_order_of_the_guide(self, guide: EmbeddingGuide) -> None:
        points = transformed(guide, "polygon").points
        assert np.allclose(np.linalg.norm(points, axis=1), 1)
        sides = np.linalg.norm(points - np.roll(points, -1, axis=0), axis=1)
        assert np.allclose(sides, 2 * np.sin(np.pi / len(points)))

    @given(count=st.integers(2, 60), seed=seeds)
    def test_random_points_lie_in_the_disc_and_keep_their_distance(self, count: int, seed: int) -> None:
        points = scatter(count, np.random.default_rng(seed))
        assert points.shape == (count, 2) and np.linalg.norm(points, axis=1).max() <= 1
        assert min(distances(points)) >= count**-0.5

    def test_random_points_fill_the_disc_evenly(self) -> None:
        points = np.concatenate([scatter(15, np.random.default_rng(seed)) for seed in range(200)])
        inner = np.linalg.norm(points, axis=1) < 0.5
        # A quarter of the area. Keeping distance favours the rim, where part of a closed disc lies outside.
        assert 0.15 < inner.mean() < 0.3
        assert np.abs(points.mean(0)).max() < 0.05

    @pytest.mark.parametrize("transform", TRANSFORMS)
    def test_the_order_of_the_data_moves_no_class(self, transform: Transform) -> None:
        order = np.random.default_rng(0).permutation(len(NAMES))
        config = GuidePoints(transform=transform, radius=3.0)
        plain, turned = load_guide(config, NAMES), load_guide(config, [NAMES[i] for i in order])
        assert np.array_equal(plain.points[order], turned.points)
        assert np.linalg.norm(turned.points, axis=1).max() == pytest.approx(3.0)

    @pytest.mark.parametrize("transform", TRANSFORMS)
    def test_the_radius_only_scales(self, transform: Transform) -> None:
        small = load_guide(GuidePoints(transform=transform, radius=1.0), NAMES)
        large = load_guide(GuidePoints(transform=transform, radius=7.0), NAMES)
        assert np.allclose(7.0 * small.points, large.points)

    def test_transforms_and_seeds_differ_in_hash_and_name(self) -> None:
        configs = [GuidePoints(transform=transform, seed=seed) for transform in TRANSFORMS for seed in (0, 1)]
        made = [load_guide(config, NAMES) for config in configs]
        assert len({guide.hash for guide in made}) == len({guide.name for guide in made}) == 3 + 2 * 2

    def test_only_classes_that_are_there_are_dealt_and_placed(self) -> None:
        some = ["monocyte", "blast", "segmented_neutrophil", "basophil"]
        drawn = load_guide(GuidePoints(), some)
        shuffled = load_guide(GuidePoints(transform="shuffled"), some)
        assert sorted(shuffled.points.tolist()) == sorted(drawn.points.tolist())
        assert np.allclose(np.linalg.norm(load_guide(GuidePoints(transform="polygon"), some).points, axis=1), 5.0)

    @pytest.mark.parametrize("transform", TRANSFORMS)
    def test_a_class_without_a_point_is_told_whatever_the_transform(self, transform: Transform) -> None:
        with pytest.raises(ValueError, match="has no point for 'zebra'"):
            load_guide(GuidePoints(file="pbc", transform=transform), ["basophil", "zebra"])

    def test_the_tree_of_a_guide_without_stages_is_refused_by_name(self, tmp_path: Path) -> None:
        path = write(tmp_path / "flat.yaml", "  a: {x: 0, y: 0}\n  b: {x: 1, y: 1}\n")
        with pytest.raises(ValueError, match="guide 'test-tree': no class has a stage above 0"):
            load_guide(GuidePoints(file=str(path), transform="tree"), ["a", "b"])


class TestGuideOptions:
    @staticmethod
    def id_of(**values: Any) -> str:
        return Config(guide=GuidePoints(**values)).id

    def test_a_seed_makes_another_variant_only_where_it_is_drawn_from(self) -> None:
        for transform in ("none", "polygon", "tree"):
            assert self.id_of(transform=transform, seed=3) == self.id_of(transform=transform)
        for transform in ("shuffled", "random"):
            assert self.id_of(transform=transform, seed=3) != self.id_of(transform=transform)

    def test_transforms_are_different_variants(self) -> None:
        assert len({self.id_of(transform=transform) for transform in TRANSFORMS}) == 5

    @pytest.mark.parametrize(
        ("values", "told"), [({"seed": -1}, "greater than or equal to 0"), ({"transform": "tre"}, "'none', 'shuffled'")]
    )
    def test_impossible_values_are_refused(self, values: dict[str, Any], told: str) -> None:
        with pytest.raises(ValueError, match=told):
            GuidePoints(**values)


def polar(guide: EmbeddingGuide) -> tuple[np.ndarray, np.ndarray]:
    """Radius and angle in [0, 2π) of each point."""
    x, y = guide.points.T
    return np.hypot(x, y), np.arctan2(y, x) % (2 * np.pi)


class TestFromTree:
    @given(guide=guides())
    def test_radius_follows_maturity_and_lineages_have_sectors_of_their_own(self, guide: EmbeddingGuide) -> None:
        tree = from_tree(guide.classes, guide.lineages, guide.stages)
        assert min(distances(tree.points)) > 1e-6
        radius, angle = polar(tree)
        stages, lineages = np.array(guide.stages), np.array(guide.lineages)
        mature = stages > 0
        assert np.allclose(radius[mature], stages[mature] / stages.max())
        assert radius[~mature].max(initial=0.0) < radius[mature].min()
        directed = list(dict.fromkeys(lineages[np.isin(lineages, lineages[mature])]))
        gap = 2 * np.pi / len(directed)
        for place, lineage in enumerate(directed):
            off = angle[lineages == lineage] - np.pi / 4 - place * gap
            off = (off + np.pi) % (2 * np.pi) - np.pi  # to (-π, π]
            assert np.abs(off).max() < gap / 4

    def test_one_class_per_stage_lies_on_a_straight_line_from_the_root(self) -> None:
        tree = load_guide(GuidePoints(transform="tree"), NAMES)
        assert np.array_equal(tree.points[NAMES.index("blast")], [0.0, 0.0])
        members = [i for i, lineage in enumerate(tree.lineages) if lineage == "neutrophilic"]
        radius, angle = polar(tree)
        assert np.allclose(angle[members], angle[members[0]])
        assert np.allclose(radius[members], [1, 2, 3, 4, 5])

    def test_lineages_stand_as_the_order_says_and_branches_side_by_side(self) -> None:
        """Four lineages in steps of 90 degrees from 45 on; the two granulocyte lineages are neighbours."""
        classes, lineages = ["m", "b", "e", "n"], ["mono", "baso", "ery", "neutro"]
        order = ["ery", [["neutro", "baso"], ["mono"]]]
        _, angle = polar(from_tree(classes, lineages, [1, 1, 1, 1], order=order))
        assert np.allclose(np.degrees(angle), [315, 225, 45, 135])
        _, flat = polar(from_tree(classes, lineages, [1, 1, 1, 1], order=["ery", "neutro", "baso", "mono"]))
        assert np.array_equal(angle, flat)

    def test_without_an_order_lineages_follow_as_first_named(self) -> None:
        _, angle = polar(from_tree("abcd", ["x", "y", "x", "z"], [1, 1, 2, 1]))
        assert np.allclose(np.degrees(angle), [45, 165, 45, 285])

    def test_several_roots_stand_in_a_ring_inside_everything_else(self) -> None:
        tree = from_tree("abcde", ["root", "root", "x", "y", "y"], [0, 0, 2, 0, 4], order=["y", "x"])
        radius, _ = polar(tree)
        # Lowest stage 2 of 4: a class of stage 0 on the way to it stands at half of that, the roots at a quarter.
        assert np.allclose(radius, [0.125, 0.125, 0.5, 0.25, 1.0])

    @given(guide=guides(), data=st.data())
    def test_the_order_of_the_classes_moves_no_lineage(self, guide: EmbeddingGuide, data: st.DataObject) -> None:
        order = sorted(set(guide.lineages))
        turn = data.draw(st.permutations(range(len(guide.classes))))
        plain = from_tree(guide.classes, guide.lineages, guide.stages, order=order)
        turned = from_tree(
            *([column[i] for i in turn] for column in (guide.classes, guide.lineages, guide.stages)), order=order
        )
        # Classes of one lineage and stage share its places in the order given, so compare the places.
        for lineage, stage in set(zip(guide.lineages, guide.stages, strict=True)):
            here, there = (
                sorted(
                    point.tolist()
                    for point, *key in zip(made.points, made.lineages, made.stages, strict=True)
                    if key == [lineage, stage] and stage > 0
                )
                for made in (plain, turned)
            )
            assert here == there

    @pytest.mark.parametrize(
        ("stages", "order", "told"),
        [
            ([0, 1, -1], None, "class 'c' has stage -1; it must be 0"),
            ([0, 1, float("nan")], None, "class 'c' has stage nan"),
            ([0, 1, float("inf")], None, "class 'c' has stage inf"),
            ([0, 0, 0], None, "no class has a stage above 0"),
            ([0, 1], None, "3 classes, 3 lineages and 2 stages are no table"),
            ([0, 1, 2], ["root", "erythroid"], "the order lacks lineage lymphoid"),
            ([0, 1, 2], ["erythroid", ["lymphoid", "erythroid"]], "names lineage 'erythroid' twice"),
            (
                [0, 1, 2],
                ["erythroid", "lymphoid", "rot"],
                "names lineage 'rot', which no class has; did you mean 'root'",
            ),
        ],
    )
    def test_a_table_that_gives_no_guide_is_refused(self, stages: list[float], order: Any, told: str) -> None:
        with pytest.raises(ValueError, match=told):
            from_tree("abc", ["root", "erythroid", "lymphoid"], stages, order=order)


def test_a_class_named_twice_is_no_class_lost(tmp_path: Path) -> None:
    path = tmp_path / "twice.yaml"
    path.write_text("classes: {a: {x: 0, y: 0}, b: {x: 1, y: 2}, a: {x: 3, y: 1}}", encoding="utf-8")
    with pytest.raises(ValueError, match=r"twice\.yaml cannot be read: .*\n?.*key 'a' stands twice"):
        read_guide(path)
