"""Manifests, MedMNIST files and the cache, on small real files."""

from __future__ import annotations

import json
import os
import re
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from guided import data as module
from guided.config import Data
from guided.data import BadRows, Dataset, cut_square, load_dataset, read_image, to_square

PALE, DARK = (230, 220, 225), (60, 20, 90)


def disc(width: int, height: int, radius: float, centre: tuple[float, float] | None = None) -> Image.Image:
    """A dark disc on a pale ground, about the middle unless told otherwise."""
    x, y = centre or ((width - 1) / 2, (height - 1) / 2)
    inside = np.hypot(np.arange(width)[None, :] - x, np.arange(height)[:, None] - y) <= radius
    return Image.fromarray(np.where(inside[..., None], DARK, PALE).astype(np.uint8))


def dark_area(square: np.ndarray) -> int:
    return int((square[..., 1] < 120).sum())


def speckled(seed: int, width: int = 20, height: int = 20) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def write_manifest(folder: Path, lines: Iterable[str], header: str = "path,label") -> Path:
    path = folder / "manifest.csv"
    path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return path


def load(path: Path, cache: Path, **options: Any) -> Dataset:
    return load_dataset(Data(source=str(path), **{"size": 16, **options}), cache, workers=2, progress=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "set").mkdir()
    return tmp_path / "set"


@pytest.fixture
def sound(folder: Path) -> Path:
    """A manifest of 24 good cells: 12 of class a, 8 of b, 4 of c, in two regions of one patient each."""
    lines = []
    for number in range(24):
        label = "aaaaaabbbbcc"[number // 2]
        speckled(number).save(folder / f"{number}.png")
        lines.append(f"{number}.png,{label},r{number % 2},p{number % 2},{number}")
    return write_manifest(folder, lines, "path,label,region,patient,order")


# --- images to squares


@pytest.mark.parametrize("suffix", ["png", "jpg", "jpeg", "tif", "tiff", "bmp", "PNG"])
def test_every_format_is_read(tmp_path: Path, suffix: str) -> None:
    disc(21, 17, 5).save(tmp_path / f"cell.{suffix}", **({"quality": 95} if "j" in suffix else {}))
    image, grey = read_image(tmp_path / f"cell.{suffix}")
    assert image.mode == "RGB" and image.size == (21, 17) and not grey
    apart = np.abs(np.asarray(image).astype(int) - np.asarray(disc(21, 17, 5)).astype(int))
    assert apart.mean() < (6 if "j" in suffix.lower() else 1e-9)


@pytest.mark.parametrize("size", [16, 40, 64])
def test_one_scale_keeps_the_size_of_cells(folder: Path, tmp_path: Path, size: int) -> None:
    """A disc of radius 10 covers the same pixels whatever image it came in: narrow, wide, small or large."""
    shapes = [(60, 60), (60, 40), (40, 60), (30, 30), (90, 90), (61, 61), (120, 50)]
    for number, (width, height) in enumerate(shapes):
        disc(width, height, 10).save(folder / f"{number}.png")
    disc(60, 60, 20).save(folder / "large.png")
    lines = [*(f"{number}.png,small" for number in range(len(shapes))), "large.png,large"]
    data = load(write_manifest(folder, lines), tmp_path / "cache", size=size)
    areas = {name: dark_area(square) for name, square in zip(data.ids.tolist(), data.images, strict=True)}
    expected = np.pi * (10 * size / 60) ** 2  # 60 px is the median of the longer sides
    for number in range(len(shapes)):
        assert areas[f"{number}.png"] == pytest.approx(expected, rel=0.1, abs=3), shapes[number]
    assert areas["large.png"] == pytest.approx(4 * expected, rel=0.1, abs=6)
    assert data.notes == ("4 images are smaller than the field of 60 px and were padded",)


def test_field_sets_the_scale(folder: Path, tmp_path: Path) -> None:
    disc(60, 60, 10).save(folder / "0.png")
    disc(60, 60, 5).save(folder / "1.png")
    path = write_manifest(folder, ["0.png,a", "1.png,b"])
    near, far = (load(path, tmp_path / "cache", size=40, field=field) for field in (30.0, 60.0))
    assert dark_area(near.images[0]) == pytest.approx(4 * dark_area(far.images[0]), rel=0.1)
    assert near.fingerprint != far.fingerprint


def test_an_image_of_the_right_size_is_not_touched(tmp_path: Path) -> None:
    image = speckled(0, 24, 24)
    assert np.array_equal(to_square(image, 1.0, 24), np.asarray(image))


def test_crop_takes_the_centre_and_padding_the_colour_of_the_border() -> None:
    image = speckled(0, 30, 20)
    square = to_square(image, 1.0, 20)
    assert np.array_equal(square, np.asarray(image)[:, 5:25])
    square = to_square(image, 1.0, 24)
    assert np.array_equal(square[2:22], np.asarray(image)[:, 3:27])
    assert (square[:2] == square[0, 0]).all() and (square[22:] == square[0, 0]).all()
    padded = to_square(disc(10, 10, 3), 1.0, 20)
    assert (padded[0, 0] == PALE).all() and dark_area(padded) == dark_area(np.asarray(disc(10, 10, 3)))


@settings(max_examples=60, deadline=None)
@given(width=st.integers(1, 60), height=st.integers(1, 60), size=st.integers(1, 50), scale=st.floats(0.02, 4))
def test_a_square_comes_of_every_size(width: int, height: int, size: int, scale: float) -> None:
    square = to_square(Image.new("RGB", (width, height), (7, 8, 9)), scale, size)
    assert square.shape == (size, size, 3) and square.dtype == np.uint8 and (square == (7, 8, 9)).all()


def test_grey_images_become_rgb_and_are_told(folder: Path, tmp_path: Path) -> None:
    speckled(0).convert("L").save(folder / "grey.png")
    speckled(1).save(folder / "colour.png")
    data = load(write_manifest(folder, ["grey.png,a", "colour.png,b"]), tmp_path / "cache", field=20.0)
    assert (data.images[1] == data.images[1][..., :1]).all() and data.ids[1] == "grey.png"
    assert data.notes == ("1 grey images became RGB",)


# --- what cannot be read


def png(depth: int, colour: int, channels: int, side: int = 4) -> bytes:
    """A PNG by hand: PIL writes no 16-bit colour."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    row = b"\0" + b"\xff" * (side * channels * depth // 8)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(row * side)) + chunk(b"IEND", b"")


def saved(image: Image.Image, name: str, **options: Any) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        image.save(folder / name, **options)
        return folder / name

    return write


def raw(body: bytes, name: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / name).write_bytes(body)
        return folder / name

    return write


see_through = speckled(0).convert("RGBA")
see_through.putpixel((3, 3), (0, 0, 0, 0))
deep = Image.fromarray(np.full((4, 4), 40000, np.uint16))
UNUSABLE = {
    "text": (raw(b"no image", "x.png"), "cannot be decoded (cannot identify image file"),
    "empty": (raw(b"", "x.jpg"), "cannot be decoded (cannot identify image file"),
    "suffix": (raw(png(8, 2, 3), "x.gif"), "is no PNG, JPEG, TIFF or BMP (.gif)"),
    "no suffix": (raw(png(8, 2, 3), "x"), "is no PNG, JPEG, TIFF or BMP (no suffix)"),
    "16-bit grey PNG": (saved(deep, "x.png"), "has more than 8 bits a channel (mode I;16)"),
    "16-bit grey TIFF": (saved(deep, "x.tif"), "has more than 8 bits a channel (mode I;16)"),
    "16-bit colour PNG": (raw(png(16, 2, 3), "x.png"), "has more than 8 bits a channel (mode RGB)"),
    "16-bit colour PNG with alpha": (raw(png(16, 6, 4), "x.png"), "has more than 8 bits a channel (mode RGBA)"),
    "32-bit TIFF": (saved(Image.new("I", (4, 4)), "x.tif"), "has more than 8 bits a channel (mode I)"),
    "float TIFF": (saved(Image.new("F", (4, 4)), "x.tif"), "has more than 8 bits a channel (mode F)"),
    "transparent": (saved(see_through, "x.png"), "has transparent pixels (mode RGBA)"),
    "transparent grey": (saved(see_through.convert("LA"), "x.png"), "has transparent pixels (mode LA)"),
    "CMYK": (saved(speckled(0).convert("CMYK"), "x.jpg"), "has mode CMYK; convert it to 8-bit RGB"),
    "black and white": (saved(speckled(0).convert("1"), "x.png"), "has mode 1; convert it to 8-bit RGB"),
    "pages": (
        saved(speckled(0), "x.tif", save_all=True, append_images=[speckled(1)]),
        "has 2 frames; one is needed",
    ),
}


@pytest.mark.parametrize("case", UNUSABLE)
def test_unusable_images_are_refused_with_the_reason(tmp_path: Path, case: str) -> None:
    write, told = UNUSABLE[case]
    with pytest.raises(ValueError, match=re.escape(told)):
        read_image(write(tmp_path))


@pytest.mark.parametrize(
    "image",
    [speckled(0).convert("P"), speckled(0).convert("RGBA"), speckled(0).convert("L").convert("LA")],
    ids=["palette", "opaque alpha", "opaque grey alpha"],
)
def test_other_modes_without_transparency_are_read(tmp_path: Path, image: Image.Image) -> None:
    image.save(tmp_path / "x.png")
    assert np.array_equal(np.asarray(read_image(tmp_path / "x.png")[0]), np.asarray(image.convert("RGB")))


@pytest.mark.filterwarnings("ignore")  # PIL has much to say about damaged tags
@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "tif"])
def test_a_truncated_image_is_refused_or_has_lost_no_pixel(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x.{suffix}"
    speckled(0).save(path)
    whole, body = np.asarray(read_image(path)[0]), path.read_bytes()
    for kept in np.unique(np.linspace(0, len(body) - 1, 40).astype(int)):
        path.write_bytes(body[:kept])
        if kept < len(body) - 30:  # behind that there are check sums and end marks
            with pytest.raises(ValueError, match="cannot be decoded"):
                read_image(path)
            continue
        try:
            found = np.asarray(read_image(path)[0])
        except ValueError:
            continue
        assert np.array_equal(found, whole)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "tif"])
def test_damaged_bytes_give_an_image_or_a_value_error(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x.{suffix}"
    speckled(0).save(path)
    body, rng = path.read_bytes(), np.random.default_rng(0)
    outcomes = set()
    for _ in range(60):
        damaged = bytearray(body)
        for place in rng.integers(0, min(len(body), 300), 4):
            damaged[place] = rng.integers(0, 256)
        path.write_bytes(damaged)
        try:
            outcomes.add(read_image(path)[0].mode)
        except ValueError:
            outcomes.add("refused")
    assert "refused" in outcomes


# --- rows of a manifest


def bad_manifest(folder: Path) -> Path:
    """Two good rows and one of every bad kind."""
    for name in ("good1.png", "good2.png", "twice.png", "unsure.png"):
        speckled(0).save(folder / name)
    (folder / "text.png").write_bytes(b"no image")
    speckled(0).save(folder / "cut.png")
    (folder / "cut.png").write_bytes((folder / "cut.png").read_bytes()[:300])
    (folder / "deep.png").write_bytes(png(16, 2, 3))
    speckled(0).convert("CMYK").save(folder / "cmyk.jpg")
    (folder / "folder.png").mkdir()
    return write_manifest(
        folder,
        [
            "good1.png,a,r1",  # line 2
            "good2.png,b,r1",
            "gone.png,a,r1",
            "text.png,a,r1",
            "cut.png,a,r1",
            "deep.png,a,r1",
            "cmyk.jpg,a,r1",
            "good1.png, ,r1",  # line 9
            ",a,r1",
            "twice.png,a,r1",
            "twice.png,a,r1",
            "unsure.png,a,r1",  # line 13
            "./unsure.png,b,r1",
            "good2.png,b,",
            "short.png,a",
            "long.png,a,r1,more",
            "folder.png,a,r1",
            "nul\0.png,a,r1",
        ],
        "path,label,region",
    )


BAD = {
    4: "gone.png: there is no such file",
    5: "text.png: cannot be decoded (cannot identify",
    6: "cut.png: cannot be decoded (",
    7: "deep.png: has more than 8 bits a channel",
    8: "cmyk.jpg: has mode CMYK",
    9: "good1.png: has no label",
    10: ": has no path",
    12: "twice.png: is the same path as line 11",
    13: "unsure.png: is the same path as line 14, but differs from it",
    14: "./unsure.png: is the same path as line 13, but differs from it",
    15: "good2.png: has no region, which other rows have",
    16: "short.png: has not 3 fields",
    17: "long.png: has not 3 fields",
    18: "folder.png: cannot be decoded (",
    19: "has a path with a null character",
}


def test_every_bad_row_is_told_at_once_with_its_line(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BadRows, match=r"(?s)has 15 rows that cannot be used.*--skip-bad") as caught:
        load(bad_manifest(folder), tmp_path / "cache")
    assert [line for line, _, _ in caught.value.rows] == sorted(BAD)
    told = str(caught.value)
    for line, reason in BAD.items():
        assert f"  line {line}: " in told and reason in told
    assert not list((tmp_path / "cache").glob("*-*")), "nothing is stored"


def test_what_only_decoding_shows_is_told_with_its_line_too(folder: Path, tmp_path: Path) -> None:
    speckled(0).save(folder / "good.png")
    (folder / "bad.png").write_bytes(png(16, 2, 3))
    with pytest.raises(BadRows, match=r"has 1 rows.*\n  line 3: bad\.png: has more than 8 bits"):
        load(write_manifest(folder, ["good.png,a", "bad.png,b"]), tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir()), "no scratch is left behind"


def test_skip_bad_goes_on_and_records_which(folder: Path, tmp_path: Path) -> None:
    data = load(bad_manifest(folder), tmp_path / "cache", skip_bad=True)
    assert data.ids.tolist() == ["good1.png", "good2.png", "twice.png"]
    assert [data.classes[label] for label in data.labels] == ["a", "b", "a"]
    assert any(note.startswith("15 rows were skipped: line 4 there is no such file, line 5 ") for note in data.notes)
    recorded = json.loads((data.directory / "skipped.json").read_text(encoding="utf-8"))
    assert [line for line, _, _ in recorded] == sorted(BAD)
    again = load(folder / "manifest.csv", tmp_path / "cache", skip_bad=True)
    assert again.directory == data.directory and again.notes == data.notes


def test_more_than_twenty_bad_rows_are_counted(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BadRows, match=r"(?s)has 30 rows.*… and 10 more") as caught:
        load(write_manifest(folder, [f"{k}.png,a" for k in range(30)]), tmp_path / "cache")
    assert len(caught.value.rows) == 30


@pytest.mark.parametrize("field", [None, 20.0])
@pytest.mark.parametrize("there", [True, False])
def test_nothing_but_bad_rows_is_refused_even_with_skip_bad(
    folder: Path, tmp_path: Path, there: bool, field: float | None
) -> None:
    if there:
        speckled(0).save(folder / "0.png")
        (folder / "0.png").write_bytes((folder / "0.png").read_bytes()[:300])
    with pytest.raises(BadRows, match="has 1 rows that cannot be used"):
        load(write_manifest(folder, ["0.png,a"]), tmp_path / "cache", skip_bad=True, field=field)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"", "has no column 'path' (its first line: )"),
        (b"path,label\n", "has no rows"),
        (b"file,label\nx,y\n", "has no column 'path' (its first line: file, label)"),
        (b"path,lable\nx,y\n", "has no column 'label' (its first line: path, lable); is it 'lable'?"),
        (b"image,label\nx,y\n", "has no column 'x' (its first line: image, label); a column image goes with"),
        (b"path,label,label\nx,y,z\n", "has the column 'label' twice"),
        (b"path,label\n\xff\xfe,a\n", "is not UTF-8 text"),
        (b'path,label\nx,"a\n', "line 2: unexpected end of data"),
        (b'"path,label\n', "line 1: unexpected end of data"),
    ],
)
def test_a_file_that_is_no_manifest_is_refused(folder: Path, tmp_path: Path, body: bytes, told: str) -> None:
    (folder / "manifest.csv").write_bytes(body)
    with pytest.raises(ValueError, match=re.escape(told)):
        load(folder / "manifest.csv", tmp_path / "cache")


def test_sources_of_no_known_kind_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no file .*gone\.csv; give a manifest"):
        load(tmp_path / "gone.csv", tmp_path / "cache")
    (tmp_path / "x.txt").write_text("")
    with pytest.raises(ValueError, match="is neither a manifest"):
        load(tmp_path / "x.txt", tmp_path / "cache")
    with pytest.raises(ValueError, match=r"data\.where has no meaning for the synthetic marrow"):
        load_dataset(Data(where="a == 1"), tmp_path / "cache")


def test_one_class_is_refused(folder: Path, tmp_path: Path) -> None:
    for k in range(2):
        speckled(k).save(folder / f"{k}.png")
    with pytest.raises(ValueError, match="set: every cell is 'a'; classification needs two classes"):
        load(write_manifest(folder, ["0.png,a", "1.png,a"]), tmp_path / "cache")


def test_unicode_spaces_quotes_and_a_byte_order_mark(tmp_path: Path) -> None:
    folder = tmp_path / "Färbung nach Pappenheim, 細胞"
    (folder / "a b").mkdir(parents=True)
    names = ["a b/zelle ä.png", "細胞.png", 'mit "Zeichen", Komma.png']
    for k, name in enumerate(names):
        speckled(k).save(folder / name)
    quoted = ['"' + name.replace('"', '""') + '"' for name in names]
    text = "\r\n".join(
        ["path,label, region", f"{quoted[0]},Blast,größer", f"{quoted[1]},細胞,1", f"{quoted[2]},Blast,1"]
    )
    (folder / "manifest.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    data = load(folder / "manifest.csv", tmp_path / "cache", field=16.0)
    assert set(data.ids) == set(names) and data.classes == ("Blast", "細胞")
    assert data.region is not None and set(data.region) == {"größer", "1"}
    for name, square in zip(data.ids.tolist(), data.images, strict=True):
        assert np.array_equal(square, to_square(speckled(names.index(name)), 1.0, 16))
    assert data.name == folder.name


def test_absolute_paths_are_taken_as_they_are(folder: Path, tmp_path: Path) -> None:
    for k in range(2):
        speckled(k).save(folder / f"{k}.png")
    lines = [f"{folder / '0.png'},a", f"{folder / '1.png'},b"]
    (tmp_path / "elsewhere").mkdir()
    assert len(load(write_manifest(tmp_path / "elsewhere", lines), tmp_path / "cache").labels) == 2


# --- choosing rows


def test_columns_reach_the_data_set(sound: Path, tmp_path: Path) -> None:
    data = load(sound, tmp_path / "cache", field=20.0)
    assert data.classes == ("a", "b", "c") and np.bincount(data.labels).tolist() == [12, 8, 4]
    assert data.region is not None and data.patient is not None and data.maturity is None
    for name, region, patient in zip(data.ids, data.region, data.patient, strict=True):
        parity = int(name.removesuffix(".png")) % 2
        assert (region, patient) == (f"r{parity}", f"p{parity}")
    assert isinstance(data.images, np.memmap) and not data.images.flags.writeable


def shuffled(path: Path, seed: int) -> None:
    header, *lines = path.read_text(encoding="utf-8").splitlines()
    np.random.default_rng(seed).shuffle(lines)
    path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")


@pytest.mark.parametrize("options", [{}, {"limit": 3}, {"where": "order > 3 and label != 'c'"}])
def test_the_order_of_rows_changes_nothing(sound: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    first = load(sound, tmp_path / "cache", **options)
    shuffled(sound, 1)
    second = load(sound, tmp_path / "cache", **options)
    assert second.fingerprint == first.fingerprint and second.directory == first.directory


def test_the_order_of_contradicting_rows_changes_nothing_either(folder: Path, tmp_path: Path) -> None:
    path = bad_manifest(folder)
    first = load(path, tmp_path / "cache", skip_bad=True)
    shuffled(path, 1)
    assert load(path, tmp_path / "cache", skip_bad=True).fingerprint == first.fingerprint


def test_limit_is_a_seeded_sample_of_each_class(sound: Path, tmp_path: Path) -> None:
    def chosen(**options: Any) -> set[str]:
        return set(load(sound, tmp_path / "cache", **options).ids.tolist())

    five = load(sound, tmp_path / "cache", limit=5)
    assert np.bincount(five.labels).tolist() == [5, 5, 4]
    assert five.name == "set (at most 5 a class)"
    assert chosen(limit=3) < chosen(limit=5) < chosen(limit=100) == chosen()
    assert chosen(limit=5) != chosen(limit=5, seed=1)
    # Leaving other classes out leaves the sample of this one as it is.
    assert chosen(limit=3, where="label in ('a', 'b')") == {
        name for name in chosen(limit=3) if int(name.removesuffix(".png")) < 20
    }


def test_limit_draws_every_cell_equally_often() -> None:
    ids = np.array([f"cell{k}" for k in range(20)])
    counts = np.zeros(20)
    for seed in range(400):
        counts[module._limited(np.zeros(20, int), ids, Data(limit=5, seed=seed))] += 1
    assert counts.sum() == 2000 and np.abs(counts - 100).max() < 4.5 * np.sqrt(400 * 0.25 * 0.75)


def test_where_keeps_rows_by_their_columns(sound: Path, tmp_path: Path) -> None:
    data = load(sound, tmp_path / "cache", where="region == 'r1' and order < 20")
    assert sorted(int(name.removesuffix(".png")) for name in data.ids) == list(range(1, 20, 2))
    assert data.classes == ("a", "b") and data.name == "set (region == 'r1' and order < 20)"


def test_where_that_keeps_nothing_tells_what_there_is(sound: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"keeps none of the 24 rows; the columns hold label: a, b, c; region: r0, r1"):
        load(sound, tmp_path / "cache", where="region == 'R1'")


def test_where_that_meets_a_text_names_the_line(sound: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="line 2: where: column 'label' holds 'a', which is no number"):
        load(sound, tmp_path / "cache", where="label > 1")


def test_rows_that_where_leaves_out_cannot_spoil_the_rest(folder: Path, tmp_path: Path) -> None:
    for k in range(2):
        speckled(k).save(folder / f"{k}.png")
    lines = ["0.png,a,1", "1.png,b,1", "gone.png,a,2", ",a,2", "0.png,b,2"]
    path = write_manifest(folder, lines, "path,label,batch")
    assert len(load(path, tmp_path / "cache", where="batch == 1").labels) == 2
    with pytest.raises(BadRows, match="has 4 rows"):
        load(path, tmp_path / "cache")


# --- the cache


def test_a_second_call_decodes_nothing(sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load(sound, tmp_path / "cache")

    def never(path: Path) -> None:
        raise AssertionError(f"{path} is decoded again")

    monkeypatch.setattr(module, "read_image", never)
    second = load(sound, tmp_path / "cache")
    assert second.directory == first.directory and np.array_equal(second.images, first.images)


def test_equal_content_shares_a_cache_and_other_content_never_does(sound: Path, tmp_path: Path) -> None:
    first = load(sound, tmp_path / "cache")
    os.utime(sound.parent / "3.png", ns=(1, 1))
    touched = load(sound, tmp_path / "cache")
    assert touched.directory == first.directory, "the same pixels are the same data"
    speckled(99).save(sound.parent / "3.png")
    changed = load(sound, tmp_path / "cache")
    assert changed.fingerprint != first.fingerprint and changed.directory != first.directory
    assert Dataset.open(first.directory, verify=True).fingerprint == first.fingerprint


def test_a_changed_label_or_region_is_other_data(sound: Path, tmp_path: Path) -> None:
    seen = {load(sound, tmp_path / "cache").fingerprint}
    text = sound.read_text(encoding="utf-8")
    for old, new in (("0.png,a,r0", "0.png,b,r0"), ("0.png,a,r0", "0.png,a,r1"), (",c,", ",d,")):
        sound.write_text(text.replace(old, new), encoding="utf-8")
        seen.add(load(sound, tmp_path / "cache").fingerprint)
    assert len(seen) == 4


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip(path: Path) -> None:
    body = bytearray(path.read_bytes())
    body[-9] ^= 1
    path.write_bytes(body)


@pytest.mark.parametrize("damage", [cut, empty, flip, Path.unlink])
@pytest.mark.parametrize("name", ["meta.json", "images.npy", "table.npz"])
def test_a_damaged_cache_is_refused_by_the_name_of_the_file(
    sound: Path, tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    data = load(sound, tmp_path / "cache")
    damage(data.directory / name)
    with pytest.raises(ValueError, match=rf"cache file .*{name} .*delete the folder .*{data.directory.name}"):
        load(sound, tmp_path / "cache")


def test_altered_meta_data_are_refused(sound: Path, tmp_path: Path) -> None:
    data = load(sound, tmp_path / "cache")
    path = data.directory / "meta.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"a"', '"z"'), encoding="utf-8")
    with pytest.raises(ValueError, match=r"meta\.json has been altered"):
        Dataset.open(data.directory)


def test_a_damaged_cache_of_the_same_content_is_not_taken_over(sound: Path, tmp_path: Path) -> None:
    data = load(sound, tmp_path / "cache")
    flip(data.directory / "images.npy")
    os.utime(sound.parent / "3.png", ns=(1, 1))  # the index finds nothing, so everything is decoded again
    with pytest.raises(ValueError, match=r"images\.npy has been altered"):
        load(sound, tmp_path / "cache")


@pytest.mark.parametrize("body", ["", "{", "[]", '{"directory": "gone"}'])
def test_a_lost_or_damaged_index_only_costs_time(sound: Path, tmp_path: Path, body: str) -> None:
    data = load(sound, tmp_path / "cache")
    for entry in (tmp_path / "cache" / "index").iterdir():
        entry.write_text(body)
    assert load(sound, tmp_path / "cache").directory == data.directory


def test_two_processes_at_once_share_one_cache(sound: Path, tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from guided.config import Data\n"
        "from guided.data import load_dataset\n"
        "sys.stdin.readline()\n"
        "data = load_dataset(Data(source=sys.argv[1], size=16), Path(sys.argv[2]), workers=1, progress=False)\n"
        "print(data.directory.name, data.images.sum())\n"
    )
    command = [sys.executable, "-c", code, str(sound), str(tmp_path / "cache")]
    pipe = subprocess.PIPE
    running = [subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) for _ in range(2)]
    told = [process.communicate("go\n", timeout=120)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0]
    assert told[0] == told[1] != ""
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == sorted(["index", told[0].split()[0]])


def test_too_little_room_is_told_before_decoding(sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: SimpleNamespace(free=5))
    with pytest.raises(ValueError, match=r"need 0\.00 GB and .* has 0\.00 GB free; give another OUT"):
        load(sound, tmp_path / "cache")


def test_the_marrow_is_rendered_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = Data(size=16, cells=150)
    first = load_dataset(config, tmp_path, progress=False)
    assert first.maturity is not None and first.region is not None and len(set(first.ids.tolist())) == 150
    monkeypatch.setattr(module, "render_marrow", None)
    assert load_dataset(config, tmp_path, progress=False).fingerprint == first.fingerprint


# --- MedMNIST


def medmnist(path: Path, side: int = 28, grey: bool = False, **replaced: Any) -> Path:
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for split, count in (("train", 12), ("val", 4), ("test", 6)):
        shape = (count, side, side) if grey else (count, side, side, 3)
        arrays[f"{split}_images"] = rng.integers(0, 256, shape, dtype=np.uint8)
        arrays[f"{split}_labels"] = (np.arange(count) % 3)[:, None].astype(np.uint8)
    arrays |= replaced
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


def test_medmnist_splits_are_joined_and_classes_named(tmp_path: Path) -> None:
    path = medmnist(tmp_path / "bloodmnist.npz")
    data = load(path, tmp_path / "cache", size=28)
    with np.load(path) as file:
        images = np.concatenate([file[f"{split}_images"] for split in ("train", "val", "test")])
        labels = np.concatenate([file[f"{split}_labels"] for split in ("train", "val", "test")]).reshape(-1)
    assert np.array_equal(data.images, images) and np.array_equal(data.labels, labels)
    assert data.classes == ("basophil", "eosinophil", "erythroblast")
    assert data.ids[[0, 12, 16]].tolist() == ["train-000000", "val-000000", "test-000000"]
    assert data.region is None and data.patient is None and data.name == "bloodmnist"


def test_other_medmnist_files_keep_their_numbers_and_grey_becomes_rgb(tmp_path: Path) -> None:
    data = load(medmnist(tmp_path / "pneumoniamnist_64.npz", grey=True), tmp_path / "cache", size=20)
    assert data.classes == ("0", "1", "2") and data.images.shape == (22, 20, 20, 3)
    assert (data.images == data.images[..., :1]).all()


def test_medmnist_is_found_again_and_takes_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = medmnist(tmp_path / "bloodmnist_128.npz", side=40)
    limited = load(path, tmp_path / "cache", limit=2)
    assert np.bincount(limited.labels).tolist() == [2, 2, 2] and limited.classes[0] == "basophil"
    monkeypatch.setattr(module, "to_square", None)
    assert load(path, tmp_path / "cache", limit=2).fingerprint == limited.fingerprint


WRONG_SHAPE = {f"{split}_images": np.zeros((4, 8, 8, 4), np.uint8) for split in ("train", "val", "test")}


@pytest.mark.parametrize(
    ("replaced", "told"),
    [
        ({f"{split}_images": None for split in ("train", "val", "test")}, "it has no train_images"),
        (WRONG_SHAPE, r"holds images \(4, 8, 8, 4\) uint8; needed: uint8 \(N, H, W\[, 3\]\)"),
        ({"val_images": np.zeros((4, 28, 28, 3), np.float32)}, r"float32; needed: uint8"),
        ({"val_images": np.zeros((4, 20, 20, 3), np.uint8)}, r"holds images of \(20, 20, 3\) and of \(28, 28, 3\)"),
        ({"val_labels": None}, "is not a MedMNIST file"),
        ({"val_labels": np.zeros((3, 1), np.uint8)}, "needs one whole-number label for each of its 22 images"),
        ({"val_labels": np.zeros((4, 2), np.uint8)}, "is not a MedMNIST file|one whole-number label"),
        ({"val_labels": np.zeros((4, 1))}, "one whole-number label"),
    ],
)
def test_a_file_that_is_no_medmnist_is_refused(tmp_path: Path, replaced: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        load(medmnist(tmp_path / "x.npz", **replaced), tmp_path / "cache")


def test_damaged_medmnist_files_are_refused(tmp_path: Path) -> None:
    path = medmnist(tmp_path / "x.npz")
    body = path.read_bytes()
    middle = bytearray(body)
    middle[len(body) // 3] ^= 255
    for damaged in (b"", body[:-50], body[: len(body) // 2], b"PK" + body[2:300], bytes(middle)):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"x\.npz is not a MedMNIST file"):
            load(path, tmp_path / "cache")
    np.save(tmp_path / "x.npy", np.zeros(3))
    os.replace(tmp_path / "x.npy", path)
    with pytest.raises(ValueError, match="it is a single array"):
        load(path, tmp_path / "cache")
    with pytest.raises(ValueError, match=r"data\.where chooses rows of a manifest"):
        load(path, tmp_path / "cache", where="a == 1")


# --- cells given by their centres in larger images


def slide(folder: Path, name: str, cells: list[tuple[int, int, float]], width: int = 120, height: int = 90) -> None:
    """A pale image with dark discs (x, y, radius), and a little noise so that a shift by one pixel shows."""
    pixels = np.asarray(speckled(len(name), width, height)) // 16 + 200
    for x, y, radius in cells:
        pixels[np.hypot(np.arange(width)[None, :] - x, np.arange(height)[:, None] - y) <= radius] -= 150
    Image.fromarray(pixels.astype(np.uint8)).save(folder / name)


CELLS = {"one.png": [(30, 30, 5.0), (80, 50, 9.0)], "two.tif": [(60, 40, 5.0), (119, 89, 5.0), (3, 45, 5.0)]}


@pytest.fixture
def slides(folder: Path) -> Path:
    lines = []
    for name, cells in CELLS.items():
        slide(folder, name, cells)
        lines += [f"{name},{x},{y},{'large' if radius > 6 else 'small'},r-{name}" for x, y, radius in cells]
    return write_manifest(folder, lines, "image,x,y,label,region")


def test_patches_are_cut_exactly_where_the_scale_is_one(slides: Path, tmp_path: Path) -> None:
    data = load(slides, tmp_path / "cache", size=24, field=24.0)
    assert data.ids.tolist() == ["one.png#30,30", "one.png#80,50", "two.tif#119,89", "two.tif#3,45", "two.tif#60,40"]
    assert data.region is not None and data.region.tolist() == ["r-one.png"] * 2 + ["r-two.tif"] * 3
    assert [data.classes[label] for label in data.labels] == ["small", "large", "small", "small", "small"]
    for name, square in zip(data.ids.tolist(), data.images, strict=True):
        image, centre = name.split("#")
        x, y = map(int, centre.split(","))
        pixels = np.asarray(Image.open(slides.parent / image))
        rows, columns = (np.arange(c - 12, c + 12) for c in (y, x))
        there = (rows >= 0) & (rows < 90), (columns >= 0) & (columns < 120)
        expected = pixels[rows[there[0]][:, None], columns[there[1]][None, :]]
        assert np.array_equal(square[np.ix_(*there)], expected), name
        outside = square[~(there[0][:, None] & there[1][None, :])]
        if len(outside):
            border = np.concatenate([expected[0], expected[-1], expected[:, 0], expected[:, -1]])
            assert (outside == np.median(border, axis=0).astype(np.uint8)).all()
    assert data.notes == ("2 cells lie within half the field of 24 px of an edge and were padded",)


def test_a_patch_is_the_whole_image_of_a_manifest_of_paths(folder: Path, tmp_path: Path) -> None:
    """The same scale rule: cutting 40 px around a centre, or giving images of 40 px, is the same data."""
    slide(folder, "all.png", [(40, 40, 6.0), (75, 45, 9.0)])
    whole = Image.open(folder / "all.png")
    for name, (x, y) in {"a": (40, 40), "b": (75, 45)}.items():
        whole.crop((x - 20, y - 20, x + 20, y + 20)).save(folder / f"{name}.png")
    centres = load(
        write_manifest(folder, ["all.png,40,40,a", "all.png,75,45,b"], "image,x,y,label"), tmp_path, field=40.0
    )
    paths = load(write_manifest(folder, ["a.png,a", "b.png,b"]), tmp_path)
    inner = (slice(None), slice(2, -2), slice(2, -2))  # at the rim one filter sees what lies beyond it
    apart = np.abs(centres.images[inner].astype(int) - paths.images[inner].astype(int))
    assert apart.max() <= 1


@settings(max_examples=80, deadline=None)
@given(
    width=st.integers(1, 50),
    height=st.integers(1, 50),
    across=st.floats(0, 1, exclude_max=True),
    down=st.floats(0, 1, exclude_max=True),
    field=st.floats(1, 200),
    size=st.integers(16, 40),
)
def test_every_centre_gives_a_square(
    width: int, height: int, across: float, down: float, field: float, size: int
) -> None:
    image = Image.new("RGB", (width, height), (7, 8, 9))
    square, _ = cut_square(image, (across * width, down * height), field, size)
    assert square.shape == (size, size, 3) and (square == (7, 8, 9)).all()


@pytest.mark.parametrize(("field", "size"), [(20.0, 40), (40.0, 20), (30.0, 24)])
def test_the_size_of_a_cell_follows_the_scale_also_at_the_edge(field: float, size: int) -> None:
    image = disc(100, 100, 8, (50, 50))
    middle, reached = cut_square(image, (50, 50), field, size)
    assert not reached
    assert dark_area(middle) == pytest.approx(np.pi * (8 * size / field) ** 2, rel=0.1)
    corner, reached = cut_square(disc(100, 100, 8, (0, 99)), (0, 99), field, size)
    assert reached
    assert dark_area(corner[size // 2 :]) < dark_area(corner[: size // 2 + 1, size // 2 :]), (
        "the image lies upper right"
    )


def test_an_image_is_decoded_once_for_all_its_cells(
    slides: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def spy(path: Path) -> tuple[Image.Image, bool]:
        seen.append(path.name)
        return read_image(path)

    monkeypatch.setattr(module, "read_image", spy)
    first = load(slides, tmp_path / "cache", field=24.0)
    assert sorted(seen) == ["one.png", "two.tif"]
    shuffled(slides, 3)
    assert load(slides, tmp_path / "cache", field=24.0).fingerprint == first.fingerprint


def test_ids_may_be_given_and_centres_need_not_be_whole(folder: Path, tmp_path: Path) -> None:
    slide(folder, "one.png", CELLS["one.png"])
    lines = ["one.png,30,30.25,a,cell 1", "one.png, 8e1 ,50.0,b,cell 2"]
    named = load(write_manifest(folder, lines, "image,x,y,label,id"), tmp_path / "cache", field=20.0)
    assert named.ids.tolist() == ["cell 1", "cell 2"]
    plain = load(
        write_manifest(folder, [line.rsplit(",", 1)[0] for line in lines], "image,x,y,label"), tmp_path, field=20.0
    )
    assert plain.ids.tolist() == ["one.png#30,30.25", "one.png#80,50"]


def test_every_bad_centre_is_told_with_its_line(folder: Path, tmp_path: Path) -> None:
    slide(folder, "one.png", CELLS["one.png"])
    (folder / "text.png").write_bytes(b"no image")
    lines = [
        "one.png,30,30,a,1",  # line 2
        "one.png,80,50,b,2",
        "one.png,120,50,b,3",
        "one.png,50,-0.5,b,4",
        "one.png,left,50,b,5",
        "one.png,nan,50,b,6",
        "one.png,5,,b,7",  # line 8
        ",5,5,b,8",
        "one.png,40,40,,9",
        "gone.png,5,5,b,10",
        "text.png,5,5,b,11",
        "text.png,6,6,b,12",
        "one.png,30.0,30,a,13",
        "one.png,70,70,a,2",  # line 15
        "one.png,20,20,a,",
        "one.png,1e400,20,a,14",
    ]
    path = write_manifest(folder, lines, "image,x,y,label,id")
    expected = {
        3: "has the same id as line 15, but differs from it",
        2: "is the same path as line 14, but differs from it",
        4: "has its centre (120, 50) outside the image of 120 x 90 px",
        5: "has its centre (50, -0.5) outside the image of 120 x 90 px",
        6: "has the x 'left', which is no number",
        7: "has the x 'nan', which is no number",
        8: "has the y '', which is no number",
        9: "has no image",
        10: "has no label",
        11: "there is no such file",
        12: "cannot be decoded",
        13: "cannot be decoded",
        14: "is the same path as line 2, but differs from it",
        15: "has the same id as line 3, but differs from it",
        16: "has no id, which other rows have",
        17: "has the x '1e400', which is no number",
    }
    with pytest.raises(BadRows) as caught:
        load(path, tmp_path / "cache", field=20.0)
    told = {line: reason for line, _, reason in caught.value.rows}
    assert sorted(told) == sorted(expected)
    for line, reason in expected.items():
        assert told[line].startswith(reason), line


def test_skipped_centres_leave_the_others_of_their_image(folder: Path, tmp_path: Path) -> None:
    slide(folder, "one.png", CELLS["one.png"])
    lines = ["one.png,30,30,a", "one.png,500,30,a", "one.png,80,50,b"]
    data = load(write_manifest(folder, lines, "image,x,y,label"), tmp_path / "cache", field=20.0, skip_bad=True)
    assert data.ids.tolist() == ["one.png#30,30", "one.png#80,50"]
    assert data.notes == ("1 rows were skipped: line 3 has its centre (500, 30) outside the image of 120 x 90 px",)


def test_centres_need_a_field(slides: Path, tmp_path: Path) -> None:
    for field in (None, 0.5):
        with pytest.raises(
            ValueError, match=rf"data\.field is {field}, but .*manifest\.csv gives centres: it must say"
        ):
            load(slides, tmp_path / "cache", field=field)


def test_a_manifest_of_paths_may_have_columns_x_and_y(sound: Path, tmp_path: Path) -> None:
    text = sound.read_text(encoding="utf-8").replace("region,patient,order", "image,x,y")
    sound.write_text(text, encoding="utf-8")
    data = load(sound, tmp_path / "cache")
    assert len(data.labels) == 24 and data.region is None
