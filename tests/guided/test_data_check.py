"""Duplicates, leakage, stain and folds, on data sets in which they were put."""

from __future__ import annotations

import io
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from guided.app.data_page import data_page
from guided.data import Dataset
from guided.data_check import DataReport, check_data, class_tiles
from guided.duplicates import digest, equal_pairs, fingerprints, near_pairs, thumbnail, twins


def cell(seed: int, side: int = 48, tint: tuple[int, int, int] = (0, 0, 0)) -> Image.Image:
    """A blurred, blob-like picture: as alike as different cells of one stain are."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] / side - 0.5
    blob = np.hypot(x, y) < 0.28 + 0.05 * rng.uniform(-1, 1)
    texture = gaussian_filter(rng.normal(size=(side, side)), 3) * 250
    grey = 225 - 130 * blob + texture
    return Image.fromarray(np.clip(grey[..., None] + np.array([0, -25, 5]) + tint, 0, 255).astype(np.uint8))


def again_as_jpeg(image: Image.Image) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=60)
    return Image.open(file).convert("RGB")


SAME_CELL: dict[str, Callable[[Image.Image], Image.Image]] = {
    "jpeg": again_as_jpeg,
    "smaller": lambda image: image.resize((32, 32), Image.Resampling.LANCZOS),
    "brighter": lambda image: image.point(lambda value: min(255, round(1.06 * value))),
    "turned": lambda image: image.transpose(Image.Transpose.ROTATE_90),
    "mirrored": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "both": lambda image: image.transpose(Image.Transpose.TRANSVERSE),
}


def pairs_of(images: list[Image.Image]) -> list[list[int]]:
    colours = np.array([np.asarray(image).mean((0, 1)) for image in images])
    return near_pairs(np.array([thumbnail(image) for image in images]), colours).tolist()


@pytest.mark.parametrize("how", SAME_CELL)
def test_the_same_cell_is_found_however_it_was_saved(how: str) -> None:
    images = [cell(seed) for seed in range(30)]
    assert pairs_of(images) == []
    assert pairs_of([*images, SAME_CELL[how](images[7])]) == [[7, 30]]


def test_another_colour_is_another_cell_and_blank_pictures_are_like_none() -> None:
    blank = Image.new("RGB", (20, 20), (200, 190, 195))
    assert pairs_of([cell(1), cell(1, tint=(0, -60, 0))]) == []
    assert pairs_of([blank, blank.copy(), blank.resize((30, 30))]) == []
    assert pairs_of([blank]) == []


def test_fingerprints_do_not_change_with_the_orientation() -> None:
    picture = thumbnail(cell(3))
    turned = [np.rot90(side, quarter) for quarter in range(4) for side in (picture, picture[:, ::-1])]
    assert np.allclose(fingerprints(np.array(turned)), fingerprints(picture[None]), atol=1e-6)


def test_equal_pictures_are_equal_whatever_their_file() -> None:
    file = io.BytesIO()
    cell(1).save(file, "BMP")
    rows = [digest(cell(0)), digest(cell(1)), digest(Image.open(file)), digest(cell(0)), digest(cell(0))]
    assert equal_pairs(rows).tolist() == [[1, 2], [0, 3], [0, 4]]
    flat = Image.new("RGB", (4, 2))
    assert digest(flat) != digest(flat.resize((2, 4)))
    assert [rows.tolist() for rows in twins(np.array([[1, 2], [5, 1], [3, 4]]), 7)] == [[1, 2, 5], [3, 4]]


# --- whole sets


def write_set(folder: Path, rows: list[dict[str, Any]]) -> Path:
    """A manifest of {image, **columns}; the name of an image is its number."""
    folder.mkdir(parents=True, exist_ok=True)
    columns = [column for column in rows[0] if column != "image"]
    lines = [",".join(["path", *columns])]
    for number, row in enumerate(rows):
        row["image"].save(folder / f"{number}.png")
        lines.append(",".join([f"{number}.png", *(str(row[column]) for column in columns)]))
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / "manifest.csv"


def sound(count: int = 60) -> list[dict[str, Any]]:
    """Three classes, six regions of three patients, nothing wrong."""
    return [
        {"image": cell(n), "label": "abc"[n % 3], "region": f"r{n // 3 % 6}", "patient": f"p{n // 3 % 6 // 2}"}
        for n in range(count)
    ]


def remarks(report: DataReport, level: str = "") -> str:
    return "\n".join(str(remark) for remark in report.remarks if remark.level == level or not level)


def test_nothing_is_said_of_a_sound_set_but_what_its_folds_leak(tmp_path: Path) -> None:
    report = check_data(write_set(tmp_path / "set", sound()), progress=False)
    assert report.cells == 60 and report.classes == {"a": 20, "b": 20, "c": 20}
    assert report.twins == () and report.unreadable == ()
    ways = {way.group: way for way in report.folds}
    assert ways["region"].most == 6 and ways["region"].region == 0 and ways["region"].patient > 0
    assert ways["patient"].most == 3 and ways["patient"].folds == 3 and ways["patient"].patient == 0
    assert ways["none"].patient == ways["none"].region == 1
    assert [str(remark) for remark in report.remarks] == [
        "there are 3 patients; at most 3 folds by patient: set folds.count"
    ]


def test_leakage_is_that_of_the_folds_that_would_be_made(tmp_path: Path) -> None:
    """Every cell of region 0 has a twin in region 1; five regions in five folds: each is tested against its twin."""
    rows = [{"image": cell(n), "label": "ab"[n % 2], "region": f"r{n % 5}"} for n in range(50)]
    rows += [{"image": rows[n]["image"], "label": rows[n]["label"], "region": "r1"} for n in range(0, 50, 5)]
    report = check_data(write_set(tmp_path / "set", rows), progress=False)
    by_region = report.folds[0]
    assert by_region.group == "region" and by_region.folds == 5
    assert by_region.twin == pytest.approx(20 / 60)
    assert len(report.twins) == 10 and all(each.exact and each.columns == ("region",) for each in report.twins)
    assert "sets of duplicates in more than one region: 10; folds by region would test" in remarks(report, "wrong")


def test_contradictory_labels_are_named(tmp_path: Path) -> None:
    rows = sound()
    rows.append({**rows[0], "label": "c", "image": again_as_jpeg(rows[0]["image"])})
    report = check_data(write_set(tmp_path / "set", rows), progress=False)
    (found,) = report.twins
    assert found.ids == ("0.png", "60.png") and found.labels == ("a", "c") and not found.exact
    assert "sets of duplicates with more than one label: 1, e.g. 0.png (a) and 60.png (c)" in remarks(report, "wrong")


def test_a_stain_shift_is_told_and_a_rare_class_is_not_one(tmp_path: Path) -> None:
    rows = [
        {"image": cell(n, tint=(0, 0, 40 * new)), "label": "ab"[n % 3 == 0], "scanner": "new" if new else "old"}
        for n, new in enumerate([True, False, False, False] * 12)
    ]
    report = check_data(write_set(tmp_path / "set", rows), progress=False)
    assert "1 of 2 scanners differ in colour from the rest, most new" in remarks(report, "doubtful")
    shift = {group.name: group.shift for group in report.groups}
    assert shift["new"] > 1.5
    # Classes of different colours, unevenly spread over the groups: no shift.
    rows = [
        {"image": cell(n, tint=(0, 0, 40 * b)), "label": "ab"[b], "scanner": "ik"[n < 16 and n % 4 > 1]}
        for n, b in enumerate([1, 0, 0, 0] * 12)
    ]
    assert "differ in colour" not in remarks(check_data(write_set(tmp_path / "other", rows), progress=False))


def test_imbalance_few_cells_sizes_and_missing_groups_are_told(tmp_path: Path) -> None:
    rows = [{"image": cell(n, 48 if n < 30 else 40), "label": "common" if n < 40 else "rare"} for n in range(43)]
    report = check_data(write_set(tmp_path / "set", rows), progress=False)
    told = remarks(report)
    assert "fewer cells than 5 folds: rare (3)" in told
    assert "common has 13 times the cells of rare (3)" in told
    assert "neither region nor patient is named" in told
    assert "the images have 2 sizes, most often 48 x 48 (70%)" in told


def test_a_class_of_one_group_is_told(tmp_path: Path) -> None:
    rows = [{**row, "label": "alone"} if row["region"] == "r0" else row for row in sound()]
    told = remarks(check_data(write_set(tmp_path / "set", rows), progress=False))
    assert "only one region has cells of alone (r0); folds by region never test them after training on them" in told


def test_what_cannot_be_read_is_listed(tmp_path: Path) -> None:
    path = write_set(tmp_path / "set", sound())
    (tmp_path / "set" / "3.png").write_bytes(b"nothing")
    with path.open("a") as file:
        file.write("absent.png,a,r0,p0\n0.png,a,r0,p0\n")
    report = check_data(path, progress=False)
    assert [(line, name) for line, name, _ in report.unreadable] == [(5, "3.png"), (62, "absent.png"), (63, "0.png")]
    assert report.cells == 59 and "lines that cannot be used: 3; training stops at them" in remarks(report, "wrong")


def test_sets_without_a_picture_or_a_field_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("path,label\nabsent.png,a\n")
    with pytest.raises(ValueError, match=r"has no image that can be read \(line 2: "):
        check_data(tmp_path / "a.csv", progress=False)
    (tmp_path / "b.csv").write_text("image,x,y,label\nslide.png,3,3,a\nslide.png,30,30,b\nslide.png,99,3,b\n")
    with pytest.raises(ValueError, match="gives centres; say with --field"):
        check_data(tmp_path / "b.csv", progress=False)
    cell(0, 60).save(tmp_path / "slide.png")
    report = check_data(tmp_path / "b.csv", field=20, progress=False)
    assert report.sizes == {"20 x 20": 2} and len(report.unreadable) == 1
    assert class_tiles(tmp_path / "b.csv") == {"a": [], "b": []}


def test_a_medmnist_file_and_a_folder_are_checked(tmp_path: Path, marrow: Dataset) -> None:
    pictures = np.asarray(marrow.images[:40])
    splits = {f"{s}_images": pictures[part] for s, part in (("train", slice(0, 30)), ("test", slice(20, 40)))}
    labels = {"train_labels": marrow.labels[:30], "test_labels": marrow.labels[20:40]}
    np.savez(tmp_path / "cells.npz", **splits, **labels)
    report = check_data(tmp_path / "cells.npz", progress=False)
    assert len(report.twins) == 10 and all(each.columns == ("split",) for each in report.twins)
    for number in range(12):
        (tmp_path / "set" / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        cell(number).save(tmp_path / "set" / "ab"[number % 2] / f"{number}.png")
    report = check_data(tmp_path / "set", progress=False)
    assert report.kind == "folder per class" and report.classes == {"a": 6, "b": 6}
    assert {label: len(tiles) for label, tiles in report.montage.items()} == {"a": 6, "b": 6}


HOSTILE = "<img src=x onerror=alert(1)>"


def hostile() -> list[dict[str, Any]]:
    """The sound set under names that would be markup."""
    names = {"a": HOSTILE}
    return [{**row, "label": names.get(row["label"], row["label"]), "region": f"<b>{row['region']}"} for row in sound()]


def test_the_page_holds_all_and_no_name_becomes_markup(tmp_path: Path) -> None:
    rows = [
        {**row, "label": HOSTILE if row["label"] == "a" else row["label"], "region": f"<b>{row['region']}"}
        for row in sound()
    ]
    rows.append({**rows[0], "label": "b"})
    report = check_data(write_set(tmp_path / "set", rows), progress=False)
    page = data_page(report)
    assert "<img src=x" not in page and "<b>r0" not in page and "&lt;img src=x onerror=alert(1)&gt;" in page
    assert all(str(remark.told) in unescape(page) for remark in report.remarks)
    assert "://" not in page and "<script" not in page


@pytest.mark.browser
def test_the_page_shows_its_pictures_and_fits_a_phone(browser: Any, tmp_path: Path) -> None:
    rows = hostile()
    rows.append({**rows[0], "label": "b"})
    path = tmp_path / "page.html"
    path.write_text(data_page(check_data(write_set(tmp_path / "set", rows), progress=False)), encoding="utf-8")
    page = browser.open(path.as_uri(), width=390)
    page.wait("[...document.images].every(each => each.complete && each.naturalWidth > 0)")
    assert page.evaluate("document.images.length") == 61
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.errors == [] and [url for url in page.requests if not url.startswith(("file:", "data:"))] == []
    page.close()
