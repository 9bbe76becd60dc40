"""`python -m guided guide …` and `data check` as they are typed: what they print, write and refuse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from guided.__main__ import main
from guided.guide import SHIPPED, read_guide

few = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Commands run in a folder of their own, wide enough that no line is wrapped."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "400")
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    """Exit code, output and errors. Whatever is not meant for the user is raised here, and fails the test."""
    code = main([str(argument) for argument in arguments])
    told = capsys.readouterr()
    return code, told.out, told.err


def make_set(folder: Path) -> Path:
    for number in range(12):
        path = folder / ["basophil", "mystery", "monocyte"][number % 3] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((20, 20), 60 + number).convert("RGB").save(path)
    return folder


def test_from_images_to_a_checked_guide(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cells = make_set(here / "cells")
    code, out, _ = run(capsys, "guide", "new", cells)
    assert code == 0 and "wrote guides/cells.yaml: 3 classes" in out
    assert "1 of 3 classes are known to no guide of the package" in out
    drawn = read_guide(here / "guides" / "cells.yaml")
    assert dict(zip(drawn.classes, drawn.lineages, strict=True)) == {
        "basophil": "basophilic",
        "monocyte": "monocytic",
        "mystery": "mystery",
    }
    # The file is found by its name, as sweeps find it.
    assert run(capsys, "guide", "check", "cells", "--data", cells)[:2] == (
        0,
        "cells: 3 classes, against the 3 classes of the data; nothing is wrong with it\n",
    )
    code, _, err = run(capsys, "guide", "new", cells)
    assert (
        code == 2
        and err == "error: guides/cells.yaml is there already; give another --out, or --force to overwrite it\n"
    )
    assert run(capsys, "guide", "new", cells, "--force")[0] == 0


def test_from_tree_plot_and_compare(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "tree.nwk").write_text("((b,c:2)a:1,d:2,e:3)root;")
    assert run(capsys, "guide", "from-tree", "tree.nwk", "--out", "mine.yaml")[0] == 0
    assert (
        (here / "mine.yaml")
        .read_text()
        .startswith("# Laid out from tree.nwk: angles by lineage, radius by stage.\nname: mine\n")
    )
    assert run(capsys, "guide", "plot", "mine.yaml", "--out", "deep/mine.svg")[0] == 0
    assert ">root</text>" in (here / "deep" / "mine.svg").read_text()
    code, out, _ = run(capsys, "guide", "compare", "marrow", "bone_marrow")
    assert code == 0 and "most changed pairs" in out and "only in marrow: basophilic_erythroblast" in out
    code, out, _ = run(capsys, "guide", "compare", "marrow", "marrow", "--json")
    assert json.loads(out)["disparity"] == pytest.approx(0, abs=1e-12)


def test_check_tells_what_is_wrong_and_its_exit_code_whether_training_would_start(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "close.yaml").write_text(
        "classes:\n  a: {x: 0, y: 0.01}\n  b: {x: 0.01, y: 0}\n  c: {x: 1, y: 1}\n  d: {x: -1, y: 1}\n"
    )
    code, out, _ = run(capsys, "guide", "check", "close.yaml")
    assert code == 0 and out.startswith("doubtful ") and "too close: a and b are" in out
    (here / "line.yaml").write_text("classes:\n  a: {x: 0, y: 1}\n  b: {x: 1, y: 1}\n")
    code, out, _ = run(capsys, "guide", "check", "line.yaml", "--json")
    assert code == 2 and json.loads(out)[0]["rule"] == "constant axis"
    make_set(here / "cells")
    code, out, _ = run(capsys, "guide", "check", "pbc", "--data", "cells")
    assert code == 2 and "refused missing: mystery has no point" in out


def test_data_check_prints_a_report_json_and_a_page(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_set(here / "cells")
    code, out, _ = run(capsys, "data", "check", "cells", "--page", "out/page.html")
    assert code == 0 and "12 cells of 3 classes, a folder per class" in out and "single cell" in out
    assert (here / "out" / "page.html").read_text().startswith("<!doctype html>")
    (here / "cells" / "mystery" / "1.png").write_bytes(b"broken")
    code, out, _ = run(capsys, "data", "check", "cells", "--json")
    told = json.loads(out)
    assert code == 2 and told["cells"] == 11 and told["unreadable"][0][1] == "mystery/1.png"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("guide check absent", "there is no guide 'absent'; give the path of a guide file or one of: marrow, pbc"),
        ("guide new absent", "data: no file or folder absent"),
        ("guide plot marrow --out plot.gif", "plot.gif cannot be drawn: a figure is .png, .svg, .pdf"),
        ("guide from-tree absent.csv", "absent.csv cannot be read: "),
        ("guide edit absent", "there is no guide 'absent'"),
        ("guide edit marrow --port 99999", "--port is 99999"),
        ("data check absent", "data: no file or folder absent"),
        ("data check . --page page.txt", "page.txt is no name for a page"),
        ("data check .", "data: the folder . has no image in a subfolder"),
    ],
)
def test_refusals_are_one_line(capsys: pytest.CaptureFixture[str], arguments: str, told: str) -> None:
    code, _, err = run(capsys, *arguments.split())
    assert code == 2 and err.startswith(f"error: {told}") and err.count("\n") == 1


def test_debug_shows_the_traceback() -> None:
    with pytest.raises(ValueError, match="there is no guide"):
        main(["guide", "check", "absent", "--debug"])


# --- no input gives a traceback

scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | st.sampled_from(["a", "b", 10**400])
)
anything = st.recursive(
    scalars, lambda below: st.lists(below, max_size=3) | st.dictionaries(st.text(max_size=4), below, max_size=4)
)
entry = st.fixed_dictionaries(
    {"x": st.floats(-2, 2) | st.sampled_from([10**400, "1e3", float("nan")]), "y": st.floats(-2, 2)},
    optional={"stage": st.integers(0, 4), "lineage": st.text(max_size=3)},
)
guides = st.fixed_dictionaries(
    {"classes": st.dictionaries(st.text(max_size=5), entry | anything, max_size=6)}, optional={"name": anything}
)


def refused_or_fine(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    code, out, err = run(capsys, *arguments)
    assert code in (0, 2) and "Traceback" not in out + err
    told = out.replace("nothing is wrong with it", "")
    assert (code == 2) == (err.startswith("error: ") or "refused" in told or "wrong" in told), (code, out, err)
    return out + err


def test_a_class_without_a_name_is_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "g.yaml").write_text("classes: {'': {x: 1, y: 0}, a: {x: 0, y: 1}}")
    code, _, err = run(capsys, "guide", "check", "g.yaml")
    assert code == 2 and "g.yaml: class '' has no name" in err


@few
@given(guides)
@example({"classes": {"": {"x": 1.0, "y": 0.0}, "0": {"x": 0.0, "y": 1.0}}})
@example({"classes": {"a": {"x": 1.0, "y": 0.0}, "0": {"x": 0.0, "y": 1.0}}})
def test_any_guide_is_checked_drawn_or_refused_with_the_class(
    here: Path, capsys: pytest.CaptureFixture[str], content: dict
) -> None:
    (here / "g.yaml").write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    told = refused_or_fine(capsys, "guide", "check", "g.yaml")
    wrong = [
        label
        for label, each in content["classes"].items()
        if not isinstance(each, dict)
        or not {"x", "y"} <= each.keys()
        or not each.keys() <= {"x", "y", "lineage", "stage"}
    ]
    if wrong:
        assert any(f"class {label!r}" in told for label in content["classes"])  # the first at fault


@few
@given(
    st.text(max_size=60)
    | st.binary(max_size=40)
    | anything.map(lambda value: yaml.safe_dump(value, allow_unicode=True))
)
def test_any_bytes_are_no_guide_tree_or_manifest_without_saying_so(
    here: Path, capsys: pytest.CaptureFixture[str], content: str | bytes
) -> None:
    raw = content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass")
    for name in ("g.yaml", "t.csv", "t.nwk", "t.yaml", "c.npz", "c.parquet"):
        (here / name).write_bytes(raw)
    assert "g.yaml" in refused_or_fine(capsys, "guide", "check", "g.yaml") or b"classes" in raw
    for name in ("t.csv", "t.nwk", "t.yaml"):
        assert name in refused_or_fine(capsys, "guide", "from-tree", name, "--force")
    for name in ("t.csv", "c.npz", "c.parquet"):
        assert name in refused_or_fine(capsys, "data", "check", name)
        refused_or_fine(capsys, "guide", "new", name, "--force")


cells = st.sampled_from(["good.png", "broken.png", "absent.png", "../outside.png", "", "<b>.png", "good.png\x00"])
manifest_rows = st.lists(
    st.tuples(cells, st.sampled_from(["a", "b", "", "ü"]), st.sampled_from(["r", "s", ""])), max_size=5
)


@few
@given(manifest_rows)
def test_every_row_of_a_manifest_is_used_or_named(here: Path, capsys: pytest.CaptureFixture[str], rows: list) -> None:
    Image.effect_noise((12, 12), 50).convert("RGB").save(here / "good.png")
    (here / "broken.png").write_bytes(b"broken")
    text = "path,label,region\n" + "".join(",".join(row) + "\n" for row in rows)
    (here / "manifest.csv").write_text(text, encoding="utf-8")
    code, out, err = run(capsys, "data", "check", "manifest.csv")
    good = [row for row in rows if row[0] == "good.png" and all(row)]
    bad = [number for number, row in enumerate(rows, 2) if row[0] != "good.png" or not all(row)]
    if not rows:
        assert code == 2 and "manifest.csv has no rows" in err
    elif len(set(good)) != 1:  # none, or rows that contradict each other
        assert code == 2 and ("line " in err or "line " in out)
    else:
        assert "1 cells of 1 classes" in out and code == 2
        assert all(f"line {number}: " in out for number in bad)


def test_shipped_guides_are_copied_before_they_are_edited(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    served: list[Path] = []
    monkeypatch.setattr("guided.app.editor.serve_editor", lambda path, data, **rest: served.append(path) or 0)
    before = (SHIPPED / "pbc.yaml").read_bytes()
    assert run(capsys, "guide", "edit", "pbc")[0] == 0
    assert served == [Path("guides/pbc.yaml")] and (here / "guides" / "pbc.yaml").read_bytes() == before
