"""New cells from files: what is found, what is told, and that batches and skipped images change nothing."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from test_model import made

from guided import predict
from guided.__main__ import main
from guided.data import Dataset, cut_square, read_image, to_square
from guided.model import GuidedModel, save_model
from guided.predict import BadImages, Cell, draw_cells, embed_cells, find_cells, predict_cells


@pytest.fixture(scope="module")
def model() -> GuidedModel:
    return made()


@pytest.fixture(scope="module")
def folder(marrow: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty cells as files, in a folder with a space and folders below it."""
    root = tmp_path_factory.mktemp("new cells")
    for row in range(30):
        path = root / f"group {row % 3}" / f"cell ü{row:02d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(marrow.images[row]).save(path)
    return root


def test_files_folders_patterns_and_manifests_name_the_same_cells(folder: Path) -> None:
    files = sorted(str(path) for path in folder.rglob("*.png"))
    by_folder = find_cells([str(folder)])
    assert [cell.id for cell in by_folder] == files
    assert find_cells([str(folder / "**" / "*.png")]) == by_folder
    assert find_cells([str(folder / "group *")]) == by_folder
    assert find_cells([files[3], str(folder), files[3]]) == [by_folder[3], *by_folder[:3], *by_folder[4:]]
    manifest = folder / "new.csv"
    manifest.write_text("path,who\n" + "".join(f"{Path(file).relative_to(folder)},me\n" for file in files))
    assert [cell.path for cell in find_cells([str(manifest)])] == [cell.path for cell in by_folder]
    manifest.unlink()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("file\na.png\n", r"needs a column path, or image, x and y \(its first line: file\)"),
        ("path\n", "has no rows"),
        ("path,label\n,a\n", "line 2: names no image"),
        ("image,x,y\na.png,1,\n", r"line 2: its centre \(1, \) is no pair of numbers"),
        ("image,x,y\na.png,1\n", r"line 2: its centre \(1, None\) is no pair of numbers"),
        ("image,x,y\na.png,inf,1\n", "line 2: its centre"),
        ('path\n"a.png\n', "cannot be read"),
    ],
)
def test_a_manifest_that_names_no_cells_is_refused(text: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / "new.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=told):
        find_cells([str(path)])


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no file, folder or pattern with matches '.*\*\.png'"):
        find_cells([str(tmp_path / "*.png")])
    with pytest.raises(ValueError, match="holds no image"):
        find_cells([str(tmp_path)])


def test_each_cell_is_told_what_the_model_says_of_its_own_square(
    model: GuidedModel, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predict, "CHUNK", 7)
    monkeypatch.setattr(predict, "EMBED_BATCH", 3)
    cells = find_cells([str(folder)])
    done: list[int] = []
    table, skipped = predict_cells(model, cells, advance=done.append)
    assert table["id"].tolist() == [cell.id for cell in cells] and skipped == [] and sum(done) == 30
    one_by_one = np.concatenate(
        [model.embed(to_square(read_image(cell.path)[0], model.size / model.field, model.size)[None]) for cell in cells]
    )
    embedding, _ = embed_cells(model, cells)
    assert embedding.columns.tolist() == ["id", "p0", "p1", "p2"]
    assert embedding[["p0", "p1", "p2"]].to_numpy() == pytest.approx(one_by_one, rel=1e-4, abs=1e-4)
    alone = model.predict(one_by_one)
    assert table["class"].tolist() == alone["class"].tolist()
    assert table["confidence"].to_numpy() == pytest.approx(alone["confidence"].to_numpy(), rel=1e-3)


def test_centres_are_cut_out_as_in_training(model: GuidedModel, tmp_path: Path) -> None:
    smear = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    Image.fromarray(smear).save(tmp_path / "smear.png")
    (tmp_path / "new.csv").write_text(
        "image,x,y,id\nsmear.png,30,20,first\nsmear.png,89,59,corner\nsmear.png,91,5,out\n"
    )
    cells = find_cells([str(tmp_path / "new.csv")])
    with pytest.raises(BadImages, match=r"out: has its centre outside the image of 90 x 60 px"):
        embed_cells(model, cells)
    table, skipped = embed_cells(model, cells, skip_bad=True)
    assert table["id"].tolist() == ["first", "corner"] and [name for name, _ in skipped] == ["out"]
    square, _ = cut_square(Image.fromarray(smear), (30, 20), model.field, model.size)
    assert table.iloc[0, 1:].to_numpy(dtype=float) == pytest.approx(model.embed(square[None])[0], rel=1e-4, abs=1e-4)


def test_every_bad_image_is_told_at_once_and_skipped_when_asked(
    model: GuidedModel, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predict, "CHUNK", 4)
    sound = find_cells([str(folder)])
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "notes.txt").write_text("no image either")
    bad = [Cell(name, tmp_path / name) for name in ("text.png", "notes.txt", "absent.png")]
    mixed = [bad[0], *sound[:9], bad[1], *sound[9:], bad[2]]
    with pytest.raises(BadImages, match="3 images cannot be used") as caught:
        predict_cells(model, mixed)
    assert [name for name, _ in caught.value.bad] == ["text.png", "notes.txt", "absent.png"]
    table, skipped = predict_cells(model, mixed, skip_bad=True)
    assert skipped == caught.value.bad
    expected = predict_cells(model, sound)[0]
    assert table["id"].tolist() == expected["id"].tolist() and table["class"].equals(expected["class"])
    with pytest.raises(BadImages, match="2 images cannot be used"):
        predict_cells(model, bad[:2], skip_bad=True)


def test_the_figure_has_every_class_and_names_what_is_unlike(model: GuidedModel, tmp_path: Path) -> None:
    embedding = np.vstack([model.anchors, [[50.0, 50.0, 0.0]]]).astype(np.float32)
    path = tmp_path / "new" / "where.svg"
    draw_cells(model.predict(embedding), model, path)
    text = path.read_text()
    assert "<svg" in text
    for name in (*model.classes, "1 unlike anything seen"):
        assert f"<!-- {name}" in text or name in text


def test_the_commands_from_a_file_to_a_table(
    model: GuidedModel, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = tmp_path / "model.npz", tmp_path / "told.parquet"
    save_model(model, file)
    common = ["--model", str(file), str(folder)]
    code = main(["predict", *common, "--out", str(out), "--figure", str(tmp_path / "f.png")])
    told = capsys.readouterr()
    assert code == 0, told.err
    table = pd.read_parquet(out)
    assert len(table) == 30 and "30 cells" in told.err and told.out == ""
    assert (tmp_path / "f.png").stat().st_size > 10_000
    (folder / "zero.png").write_bytes(b"")
    try:
        assert main(["embed", *common]) == 2
        told = capsys.readouterr()
        assert told.out == "" and "--skip-bad" in told.err.splitlines()[-1]
        assert main(["embed", *common, "--skip-bad"]) == 0
        told = capsys.readouterr()
        assert len(told.out.splitlines()) == 31 and "1 skipped" in told.err
    finally:
        (folder / "zero.png").unlink()


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["--out", "told.xlsx"], "told.xlsx cannot be written: a table is .csv or .parquet"),
        (["--figure", "f.exe"], "f.exe cannot be drawn: a figure is .png, .svg, .pdf"),
        (["--false-alarms", "0.0001"], "240 held-out cells can tell rates"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    words: list[str], hint: str, model: GuidedModel, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "model.npz"
    save_model(model, file)
    assert main(["predict", "--model", str(file), str(folder), *words]) == 2
    told = capsys.readouterr()
    assert hint in told.err and len(told.err.splitlines()) == 1
    with pytest.raises(ValueError, match=re.escape(hint)):
        main(["--debug", "predict", "--model", str(file), str(folder), *words])
