"""Tables and trees of lineages, and the guides laid out from them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guided.guide import EmbeddingGuide
from guided.guide_check import check_drawing
from guided.lineage import Lineages, lay_out, read_lineages


def read(tmp_path: Path, name: str, text: str) -> Lineages:
    (tmp_path / name).write_text(text, encoding="utf-8")
    return read_lineages(tmp_path / name)


def angle(guide: EmbeddingGuide, label: str) -> float:
    x, y = guide.points[guide.classes.index(label)]
    return float(np.degrees(np.arctan2(y, x)) % 360)


def radius(guide: EmbeddingGuide, label: str) -> float:
    return float(np.linalg.norm(guide.points[guide.classes.index(label)]))


def apart(guide: EmbeddingGuide, one: str, other: str) -> float:
    between = abs(angle(guide, one) - angle(guide, other))
    return min(between, 360 - between)


TABLE = """class,lineage,stage,parent
blast,root,0,
erythroblast,erythroid,3,blast
lymphocyte,lymphoid,5,blast
promyelocyte,neutrophilic,1,blast
myelocyte,neutrophilic,2,promyelocyte
segmented,neutrophilic,5,myelocyte
monocyte,monocytic,5,promyelocyte
basophil,basophilic,5,myelocyte
eosinophil,eosinophilic,5,myelocyte
"""


def test_a_table_becomes_angles_by_lineage_and_radii_by_stage(tmp_path: Path) -> None:
    guide = lay_out(read(tmp_path, "marrow.csv", TABLE), "marrow")
    assert radius(guide, "blast") == 0 and radius(guide, "myelocyte") == pytest.approx(0.4)
    assert angle(guide, "promyelocyte") == pytest.approx(angle(guide, "segmented"))
    # Six lineages: what branches off stands beside its lineage, the later the nearer.
    assert apart(guide, "segmented", "basophil") == pytest.approx(60)
    assert apart(guide, "segmented", "eosinophil") == pytest.approx(60)
    assert apart(guide, "segmented", "monocyte") == pytest.approx(120)
    assert check_drawing(guide) == []


def test_the_order_of_the_rows_crosses_no_lines(tmp_path: Path) -> None:
    head, *rows = TABLE.splitlines()
    for seed in range(6):
        order = np.random.default_rng(seed).permutation(len(rows))
        guide = lay_out(read(tmp_path, "t.csv", "\n".join([head, *(rows[i] for i in order)])), "t")
        assert "lines cross" not in {finding.rule for finding in check_drawing(guide)}
        assert apart(guide, "segmented", "basophil") == pytest.approx(60)


NEWICK = "(((segmented)band)'myelo''cyte',(eosinophil:3,basophil:3):1,[a note] (ortho:2)pro:1.5,lymphocyte:4)blast;"


def test_a_newick_tree(tmp_path: Path) -> None:
    found = read(tmp_path, "marrow.nwk", NEWICK + "\n")
    stage = dict(zip(found.classes, found.stages, strict=True))
    assert stage == {
        "blast": 0, "myelo'cyte": 1, "band": 2, "segmented": 3, "eosinophil": 4, "basophil": 4, "pro": 1.5,
        "ortho": 3.5, "lymphocyte": 4,
    }  # fmt: skip
    lineage = dict(zip(found.classes, found.lineages, strict=True))
    assert lineage["myelo'cyte"] == lineage["band"] == "segmented" and lineage["pro"] == "ortho"
    guide = lay_out(found, "marrow")
    assert apart(guide, "eosinophil", "basophil") == pytest.approx(72)
    assert angle(guide, "pro") == pytest.approx(angle(guide, "ortho"))


def test_a_branch_that_splits_stands_between_its_parts(tmp_path: Path) -> None:
    guide = lay_out(
        read(tmp_path, "t.nwk", "(((neutrophil:2,eosinophil:2,basophil:2)myelocyte)promyelocyte,other:3)blast;"), "t"
    )
    assert angle(guide, "promyelocyte") == pytest.approx(angle(guide, "myelocyte"))
    assert angle(guide, "myelocyte") == pytest.approx(angle(guide, "eosinophil"))
    assert apart(guide, "neutrophil", "eosinophil") == pytest.approx(90)
    assert check_drawing(guide) == []


def test_a_yaml_tree(tmp_path: Path) -> None:
    text = (
        "root: [{blast: 0}]\nerythroid: [early, mid, late]\ngranulocytes:\n  eos: [eosinophil]\n  neu: [{my: 1}, seg]\n"
    )
    found = read(tmp_path, "tree.yaml", text)
    assert dict(zip(found.classes, found.stages, strict=True)) == {
        "blast": 0, "early": 1, "mid": 2, "late": 3, "eosinophil": 3, "my": 1, "seg": 3,
    }  # fmt: skip
    guide = lay_out(found, "tree")
    assert radius(guide, "late") == radius(guide, "eosinophil") == pytest.approx(1) and radius(guide, "blast") == 0


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("t.csv", "class,lineage\na,b\n", r"needs one column 'stage' \(its first line: class, lineage\)"),
        ("t.csv", "class,lineage,stage\na,b\n", "line 2 has not 3 fields"),
        ("t.csv", "class,lineage,stage\na,,1\n", "line 2 has no lineage"),
        ("t.csv", "class,lineage,stage\na,b,early\n", "line 2: class 'a' has stage 'early'; it must be a number"),
        ("t.csv", "class,lineage,stage\na,b,-1\n", "class 'a' has stage -1; it must be 0"),
        ("t.csv", "class,lineage,stage\na,b,nan\n", "class 'a' has stage nan"),
        ("t.csv", "class,lineage,stage\na,b,1\na,c,2\n", "names class 'a' twice"),
        ("t.csv", "class,lineage,stage\n", "has no rows"),
        ("t.csv", "class,lineage,stage,parent\na,b,1,z\n", "class 'a' comes from 'z', which is no class"),
        ("t.csv", "class,lineage,stage,parent\na,b,1,c\nc,b,1,\n", r"class 'a' \(stage 1\) comes from 'c' \(stage 1\)"),
        ("t.nwk", "(a,b", "a bracket of the tree is not closed"),
        ("t.nwk", "a;", "it has no branches"),
        ("t.nwk", "(a,b)r;(c,d)", r"character 8: '\(c,d\)' is not expected"),
        ("t.nwk", "(a,)r;", "has a leaf without a name"),
        ("t.nwk", "(a b,c)r;", "character 3: 'b' is not expected there"),
        ("t.nwk", "(a:one,c)r;", "the branch length is 'one'; it must be a number"),
        ("t.nwk", "(a:0,c)r;", "the branch length is 0; it must be above 0"),
        ("t.nwk", "(a,a)r;", "names class 'a' twice"),
        ("t.nwk", "(a,b))r;", r"character 6: '\)' is not expected there"),
        ("t.yaml", "[a, b]", "needs a mapping of lineages to their classes"),
        ("t.yaml", "ery: late\n", "lineage 'ery' needs a list"),
        ("t.yaml", "ery: [[a]]\n", r"lineage 'ery' has \['a'\]; a class is its name"),
        ("t.yaml", "ery: [{a: old}]\n", "class 'a' has stage 'old'"),
        ("t.yaml", "ery: [a]\nx:\n  ery: [b]\n", "names lineage 'ery' twice"),
        ("t.yaml", "ery: [a", "cannot be read"),
        ("t.txt", "", "is no lineage table"),
    ],
)  # fmt: skip
def test_faults_are_named(tmp_path: Path, name: str, text: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        read(tmp_path, name, text)


def test_a_deep_tree_is_no_recursion(tmp_path: Path) -> None:
    depth = 3000
    found = read(tmp_path, "deep.nwk", "(" * depth + "leaf" + ")inner" * 1 + ")" * (depth - 1) + "root;")
    assert found.classes == ["root", "inner", "leaf"] and found.stages[-1] == depth


trees = st.recursive(
    st.just(None), lambda below: st.lists(below, min_size=1, max_size=4), max_leaves=12
).filter(lambda tree: tree is not None)  # fmt: skip


@settings(max_examples=50, deadline=None)
@given(trees, st.randoms(use_true_random=False))
def test_every_tree_is_laid_out_with_its_stages_outwards(
    tmp_path_factory: pytest.TempPathFactory, tree: object, random: object
) -> None:
    names = iter(range(1000))

    def newick(node: object) -> str:
        below = f"({','.join(newick(each) for each in node)})" if isinstance(node, list) else ""
        named = not below or random.random() < 0.6
        return below + (f"c{next(names)}" if named else "")

    folder = tmp_path_factory.getbasetemp() / "trees"
    folder.mkdir(exist_ok=True)
    found = read(folder, "tree.nwk", newick(tree) + ";")
    try:
        guide = lay_out(found, "tree")
    except ValueError as refused:
        assert "guide 'tree'" in str(refused)  # too few classes, or all on one axis
        return
    reach = np.linalg.norm(guide.points, axis=1)
    for row, parent in enumerate(found.parents):
        if parent is not None:
            assert reach[row] > reach[found.classes.index(parent)]
