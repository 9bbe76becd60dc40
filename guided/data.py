"""Cells as arrays: whatever guided.sources reads, or the synthetic marrow, decoded once into a memory-mapped cache.

A cache is a folder named by its content, so that equal data share one and a changed image never meets an old one. A
small index beside it, keyed by the manifest and the size and time of every file, finds it again without decoding.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import struct
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil, floor
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from PIL import Image, ImageFile
from rich.progress import Progress

from guided.config import Data, content_id
from guided.sources import (
    SUFFIXES,
    Problem,
    Row,
    chosen,
    medmnist_names,
    read_npz,
    read_table,
    size_and_time,
    without_repeats,
)
from guided.synthetic import render_marrow

FORMATS = ("PNG", "JPEG", "TIFF", "BMP")
FORMAT = 1  # of the cache on disk


@dataclass(frozen=True)
class Dataset:
    """N cells of C classes as squares of equal size."""

    name: str
    images: np.ndarray  # uint8 (N, size, size, 3), memory-mapped
    labels: np.ndarray  # int64 (N,), index into classes
    classes: tuple[str, ...]
    ids: np.ndarray  # (N,) str, unique
    region: np.ndarray | None  # (N,) str
    patient: np.ndarray | None  # (N,) str
    maturity: np.ndarray | None  # float32 (N,), the true continuous maturity; synthetic only
    fingerprint: str  # 16 hex digits of everything above that may change a result
    directory: Path  # of the cache
    notes: tuple[str, ...]  # what a reader of results must know
    field: float | None = None  # source px that became `size` px; None: a cache written before it was kept

    @classmethod
    def open(cls, directory: Path, *, verify: bool = False) -> Dataset:
        """Memory-map a cache. Raises ValueError naming the file that is missing, truncated or altered.

        The pixels are read only with `verify` (about a second per GB): the driver does so once, its workers need not.
        """
        meta_path, images_path, table_path = (directory / name for name in ("meta.json", "images.npy", "table.npz"))
        try:
            sealed = json.loads(meta_path.read_text(encoding="utf-8"))
            meta, seal = sealed["meta"], sealed["seal"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"cache file {meta_path} cannot be read ({error}); {_remedy(directory)}") from None
        if content_id(meta) != seal:
            raise ValueError(f"cache file {meta_path} has been altered; {_remedy(directory)}")
        for path, size in ((images_path, meta["images_bytes"]), (table_path, meta["table_bytes"])):
            if not path.exists() or path.stat().st_size != size:
                raise ValueError(f"cache file {path} is missing or truncated; {_remedy(directory)}")
        if hashlib.sha256(table_path.read_bytes()).hexdigest() != meta["table"]:
            raise ValueError(f"cache file {table_path} has been altered; {_remedy(directory)}")
        with np.load(table_path, allow_pickle=False) as file:
            table = dict(file)
        images = np.load(images_path, mmap_mode="r", allow_pickle=False)
        if verify and _fingerprint(images, meta["classes"], table) != meta["fingerprint"]:
            raise ValueError(f"cache file {images_path} has been altered; {_remedy(directory)}")
        return cls(
            name=meta["name"],
            images=images,
            labels=table["labels"],
            classes=tuple(meta["classes"]),
            ids=table["ids"],
            region=table.get("region"),
            patient=table.get("patient"),
            maturity=table.get("maturity"),
            fingerprint=meta["fingerprint"],
            directory=directory,
            notes=tuple(meta["notes"]),
            field=meta.get("field"),
        )


def _fingerprint(images: np.ndarray, classes: Sequence[str], table: dict[str, np.ndarray]) -> str:
    """16 hex digits of the SHA-256 of pixels, classes and columns."""
    digest = hashlib.sha256()
    digest.update(content_id([FORMAT, list(images.shape), list(classes)], 64).encode())
    for column in sorted(table):
        values = table[column]
        digest.update(column.encode())
        digest.update(content_id(values.tolist(), 64).encode() if values.dtype.kind == "U" else values.tobytes())
    for start in range(0, len(images), 256):
        digest.update(np.ascontiguousarray(images[start : start + 256]).data)
    return digest.hexdigest()[:16]


def _remedy(directory: Path) -> str:
    return f"delete the folder {directory} to decode it again"


class BadRows(ValueError):
    """Rows of a source that cannot be used: (line, path, reason) each; `unit` is what a line is called there."""

    def __init__(self, source: Path, rows: Sequence[Problem], unit: str = "line") -> None:
        self.rows = list(rows)
        shown = [f"  {unit} {line}: {path}: {reason}" for line, path, reason in self.rows[:20]]
        if len(self.rows) > 20:
            shown.append(f"  … and {len(self.rows) - 20} more")
        told = "\n".join(shown)
        super().__init__(
            f"{source} has {len(self.rows)} rows that cannot be used:\n{told}\nmend them, or go on without them "
            "with --skip-bad (make: SKIP_BAD=1)"
        )


def load_dataset(config: Data, cache: Path, *, workers: int | None = None, progress: bool = True) -> Dataset:
    """The data set of a configuration, decoded into `cache` at the first call and memory-mapped from then on.

    Raises ValueError for what cannot be a classification problem (no cells, one class), for a file that is none of
    the known kinds, and BadRows with every unusable row at once.
    """
    source = config.source
    if source == "synthetic":
        return _synthetic(config, cache)
    path = Path(source)
    if path.suffix.lower() == ".npz" and path.is_file():
        return _medmnist(path, config, cache)
    return _images(path, config, cache, workers or len(os.sched_getaffinity(0)), progress)


# --- the cache ------------------------------------------------------------------------------------------------------


def _find(cache: Path, key: str) -> Dataset | None:
    """The cache an index entry points to, where both exist."""
    index = cache / "index" / f"{key}.json"
    if not index.exists():
        return None
    try:
        directory = cache / str(json.loads(index.read_text())["directory"])
    except (ValueError, KeyError, TypeError):
        return None  # an index is only a short cut
    return Dataset.open(directory, verify=True) if directory.exists() else None


def _check_space(cache: Path, bytes_needed: int) -> None:
    cache.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(cache).free
    if bytes_needed > free:
        raise ValueError(
            f"the decoded images need {bytes_needed / 1e9:.2f} GB and {cache} has {free / 1e9:.2f} GB free; "
            "give another OUT, a smaller data.size or a LIMIT"
        )


@contextmanager
def _scratch(cache: Path) -> Iterator[Path]:
    """A folder of this process that is gone afterwards, unless it was renamed to its place."""
    folder = cache / f".writing-{uuid4().hex[:12]}"
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _store(
    cache: Path,
    key: str,
    scratch: Path,
    *,
    name: str,
    labels: np.ndarray,
    classes: Sequence[str],
    ids: np.ndarray,
    field: float,
    region: np.ndarray | None = None,
    patient: np.ndarray | None = None,
    maturity: np.ndarray | None = None,
    notes: Sequence[str] = (),
) -> Dataset:
    """Complete the cache whose images.npy lies in `scratch`, and move it to the place its content names."""
    counts = np.bincount(labels, minlength=len(classes))
    if len(labels) == 0:
        raise ValueError(f"{name}: there are no cells")
    if np.count_nonzero(counts) < 2:
        raise ValueError(f"{name}: every cell is {classes[int(counts.argmax())]!r}; classification needs two classes")
    table = {"labels": labels.astype(np.int64), "ids": ids.astype(str)}
    optional = {"region": region, "patient": patient, "maturity": maturity}
    table |= {column: values for column, values in optional.items() if values is not None}
    images = np.load(scratch / "images.npy", mmap_mode="r", allow_pickle=False)
    fingerprint = _fingerprint(images, classes, table)
    np.savez(scratch / "table.npz", allow_pickle=False, **table)
    meta = {
        "format": FORMAT,
        "name": name,
        "classes": list(classes),
        "fingerprint": fingerprint,
        "notes": list(notes),
        "field": field,
        "images_bytes": (scratch / "images.npy").stat().st_size,
        "table_bytes": (scratch / "table.npz").stat().st_size,
        "table": hashlib.sha256((scratch / "table.npz").read_bytes()).hexdigest(),
    }
    text = json.dumps({"meta": meta, "seal": content_id(meta)}, indent=1, ensure_ascii=False)
    (scratch / "meta.json").write_text(text, encoding="utf-8")
    # Name and notes are no content, but they belong to what is shown: they take part in the folder's name.
    directory = cache / f"{fingerprint}-{content_id([name, list(notes)], 6)}"
    try:
        os.rename(scratch, directory)
    except OSError:
        if not directory.exists():
            raise
        Dataset.open(directory, verify=True)  # the same content was there already; it must still be whole
    index = cache / "index" / f"{key}.json"
    index.parent.mkdir(exist_ok=True)
    temporary = index.with_name(f".{uuid4().hex[:12]}")
    temporary.write_text(json.dumps({"directory": directory.name}))
    os.replace(temporary, index)
    return Dataset.open(directory)


# --- sources --------------------------------------------------------------------------------------------------------


def _synthetic(config: Data, cache: Path) -> Dataset:
    for option in ("where", "limit", "field"):
        if getattr(config, option) is not None:
            raise ValueError(f"data.{option} has no meaning for the synthetic marrow; give a manifest or leave it out")
    source = hashlib.sha256((Path(__file__).parent / "synthetic.py").read_bytes()).hexdigest()
    key = content_id([FORMAT, "synthetic", source, config.cells, config.size, config.seed])
    found = _find(cache, key)
    if found is not None:
        return found
    _check_space(cache, config.cells * config.size**2 * 3)
    marrow = render_marrow(config.cells, config.size, seed=config.seed)
    with _scratch(cache) as scratch:
        np.save(scratch / "images.npy", marrow.images)
        return _store(
            cache,
            key,
            scratch,
            name="synthetic marrow",
            labels=marrow.labels,
            classes=marrow.classes,
            ids=np.array([f"cell-{number:06d}" for number in range(config.cells)]),
            field=float(config.size),
            region=marrow.region,
            patient=marrow.patient,
            maturity=marrow.maturity,
        )


def _medmnist(path: Path, config: Data, cache: Path) -> Dataset:
    if config.where is not None:
        raise ValueError(f"data.where chooses rows of a manifest; {path.name} has none")
    stat = path.stat()
    key = content_id([FORMAT, str(path.absolute()), stat.st_size, stat.st_mtime_ns, _options(config)])
    found = _find(cache, key)
    if found is not None:
        return found
    parts, numbers, ids = read_npz(path)
    images = [image for part in parts for image in part]  # views: the parts are never copied into one
    present = np.unique(numbers)
    names = medmnist_names(path, present)
    labels = np.searchsorted(present, numbers)
    kept = _limited(labels, ids, config)
    field = float(config.field or max(images[0].shape[:2]))
    scale = config.size / field
    _check_space(cache, len(kept) * config.size**2 * 3)
    with _scratch(cache) as scratch:
        out = np.lib.format.open_memmap(
            scratch / "images.npy", mode="w+", dtype=np.uint8, shape=(len(kept), config.size, config.size, 3)
        )
        for row, source in enumerate(kept):
            out[row] = to_square(Image.fromarray(images[source]).convert("RGB"), scale, config.size)
        out.flush()
        name = path.stem + (f" (at most {config.limit} a class)" if config.limit else "")
        return _store(cache, key, scratch, name=name, labels=labels[kept], classes=names, ids=ids[kept], field=field)


def _images(path: Path, config: Data, cache: Path, workers: int, progress: bool) -> Dataset:
    table = read_table(path)
    rows, _, bad, unit = table
    if rows and rows[0].centre is not None and (config.field is None or config.field < 1):
        raise ValueError(
            f"data.field is {config.field}, but {path} gives centres: it must say how many px around one make a patch"
        )
    if config.where is not None:
        rows, bad = chosen(path, config.where, table)
    problems = [(line, told, reason) for line, told, reason, _ in bad]
    rows, repeated = without_repeats(rows, unit)
    problems += repeated
    rows.sort(key=lambda row: row.id)  # the order of the file does not matter
    if config.limit is not None:
        labels = np.array([row.values["label"] for row in rows])
        rows = [rows[i] for i in _limited(labels, np.array([row.id for row in rows]), config)]
    stats: dict[Path, list[int] | str] = {}
    for row in rows:
        if row.path not in stats:
            stats[row.path] = size_and_time(row)
    present = []
    for row in rows:
        stat = stats[row.path]
        if isinstance(stat, str):
            problems.append((row.line, row.id, stat))
        else:
            present.append(row)
    if problems and not config.skip_bad:
        # Told together with what only decoding shows.
        problems += _undecodable(present, workers)
        raise BadRows(path, sorted(problems), unit)
    seen = [[row.id, stats[row.path]] for row in present]
    key = content_id([FORMAT, str(path.absolute()), _digest(path, present), _options(config), seen])
    found = _find(cache, key)
    if found is not None:
        return found
    return _decode(path, config, cache, key, present, problems, unit, workers, progress)


def _digest(path: Path, rows: Sequence[Row]) -> str:
    """What a file says, or a folder: the values of its rows."""
    if path.is_dir():
        return content_id([row.values for row in rows], 64)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _options(config: Data) -> list[Any]:
    return [config.size, config.field, config.where, config.limit, config.seed, config.skip_bad]


def _limited(labels: np.ndarray, ids: np.ndarray, config: Data) -> list[int]:
    """Rows of at most `limit` cells a class. A cell is chosen by the hash of seed and id, not by its place, so that
    another order of rows, or other classes, leave the sample as it is."""
    if config.limit is None:
        return list(range(len(labels)))
    drawn = [hashlib.sha256(f"{config.seed}:{name}".encode()).digest() for name in ids.tolist()]
    taken: Counter[Any] = Counter()
    kept = []
    for row in sorted(range(len(drawn)), key=drawn.__getitem__):
        if taken[labels[row]] < config.limit:
            taken[labels[row]] += 1
            kept.append(row)
    return sorted(kept)


# --- decoding -------------------------------------------------------------------------------------------------------


# What PIL's decoders raise for damaged files: each format has its own way to fail.
_UNDECODABLE = (
    OSError,
    SyntaxError,
    TypeError,
    ValueError,
    LookupError,
    EOFError,
    struct.error,
    Image.DecompressionBombError,
)


def _opened(file: Path | bytes) -> ImageFile.ImageFile:
    # A file is chosen by its suffix; of bytes only the format tells, and PIL has decoders that run other programs.
    return Image.open(io.BytesIO(file), formats=FORMATS) if isinstance(file, bytes) else Image.open(file)


def read_image(file: Path | bytes) -> tuple[Image.Image, bool]:
    """The image in a file, or in its content, as 8-bit RGB, and whether it was grey. Raises ValueError saying why it
    cannot be used."""
    if isinstance(file, Path) and file.suffix.lower() not in SUFFIXES:
        raise ValueError(f"is no PNG, JPEG, TIFF or BMP ({file.suffix or 'no suffix'})")
    try:
        with _opened(file) as image:
            frames = getattr(image, "n_frames", 1)
            # PIL reads 16-bit colour as 8-bit RGB without a word; only the raw mode tells.
            deep = any(";16" in str(tile[3]) for tile in image.tile)
            image.load()
            mode = image.mode
            transparent = image.has_transparency_data and image.convert("RGBA").getchannel("A").getextrema()[0] != 255
            rgb = image.convert("RGB") if mode in ("RGB", "L", "P", "RGBA", "LA", "PA") else None
    except _UNDECODABLE as error:
        raise ValueError(f"cannot be decoded ({error})") from None
    if frames > 1:
        raise ValueError(f"has {frames} frames; one is needed")
    if deep or mode.startswith(("I", "F")):
        raise ValueError(f"has more than 8 bits a channel (mode {mode}); convert it to 8-bit RGB")
    if transparent:
        raise ValueError(f"has transparent pixels (mode {mode}); flatten it to RGB")
    if rgb is None:
        raise ValueError(f"has mode {mode}; convert it to 8-bit RGB")
    return rgb, mode in ("L", "LA")


def to_square(image: Image.Image, scale: float, size: int) -> np.ndarray:
    """The centre `size` x `size` of an RGB image scaled by `scale`, uint8 (size, size, 3).

    Where the scaled image is smaller it is padded with the median colour of its border, never stretched.
    """
    width, height = (max(1, round(side * scale)) for side in image.size)
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    pixels = np.asarray(image)
    top, left = max(0, (height - size) // 2), max(0, (width - size) // 2)
    pixels = pixels[top : top + size, left : left + size]
    if pixels.shape[:2] == (size, size):
        return pixels
    return _padded(pixels, size, (size - pixels.shape[0]) // 2, (size - pixels.shape[1]) // 2)


def cut_square(image: Image.Image, centre: tuple[float, float], field: float, size: int) -> tuple[np.ndarray, bool]:
    """The `field` x `field` px of an RGB image around `centre` (x, y) as uint8 (size, size, 3), and whether they reach
    over its edge: there they are padded with the median colour of their border.

    Pixels are counted from the top left one, (0, 0); the centre lies in the image and `field` is at least 1. The
    square begins at a whole pixel, so that a field of `size` px is cut out exactly.
    """
    left, top = (floor(c - field / 2 + 0.5) for c in centre)
    (first, last), (upper, lower) = (
        _inside(left, image.width, field, size),
        _inside(top, image.height, field, size),
    )
    box = (
        max(0.0, left + first * field / size),
        max(0.0, top + upper * field / size),
        min(float(image.width), left + last * field / size),
        min(float(image.height), top + lower * field / size),
    )
    pixels = np.asarray(image.resize((last - first, lower - upper), Image.Resampling.LANCZOS, box=box))
    if pixels.shape[:2] == (size, size):
        return pixels, False
    return _padded(pixels, size, upper, first), True


def _inside(start: int, length: int, field: float, size: int) -> tuple[int, int]:
    """First and last (exclusive) of `size` pixels over [start, start + field) whose source lies in [0, length)."""
    edge = max(0.0, -start * size / field)
    first, last = ceil(edge), min(size, floor((length - start) * size / field))
    if first < last:
        return first, last
    return floor(edge), floor(edge) + 1  # the image is smaller than this one pixel


def _padded(pixels: np.ndarray, size: int, top: int, left: int) -> np.ndarray:
    """Pixels (h, w, 3) at (top, left) of a square that has the median colour of their border."""
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    square = np.empty((size, size, 3), np.uint8)
    square[:] = np.median(border, axis=0).astype(np.uint8)
    square[top : top + pixels.shape[0], left : left + pixels.shape[1]] = pixels
    return square


def _image_size(file: Path | bytes) -> tuple[int, int] | None:
    try:
        with _opened(file) as image:
            return image.size
    except _UNDECODABLE:
        return None  # decoding will name the reason


def _outside(image: Image.Image, row: Row) -> str | None:
    """What is wrong with a centre, if it lies outside its image."""
    if row.centre is None or (0 <= row.centre[0] < image.width and 0 <= row.centre[1] < image.height):
        return None
    x, y = row.centre
    return f"has its centre ({x:.10g}, {y:.10g}) outside the image of {image.width} x {image.height} px"


def _by_image(rows: Sequence[Row]) -> list[list[int]]:
    """Numbers of the rows of each image: it is decoded once for all its cells."""
    numbers: dict[Path, list[int]] = {}
    for number, row in enumerate(rows):
        numbers.setdefault(row.path, []).append(number)
    return list(numbers.values())


def _undecodable(rows: Sequence[Row], workers: int) -> list[Problem]:
    def look(numbers: list[int]) -> list[Problem]:
        cells = [rows[number] for number in numbers]
        try:
            image, _ = read_image(cells[0].image)
        except ValueError as error:
            return [(row.line, row.id, str(error)) for row in cells]
        return [(row.line, row.id, told) for row in cells if (told := _outside(image, row)) is not None]

    with ThreadPoolExecutor(workers) as pool:
        return [entry for told in pool.map(look, _by_image(rows)) for entry in told]


def _decode(
    path: Path,
    config: Data,
    cache: Path,
    key: str,
    rows: list[Row],
    problems: list[Problem],
    unit: str,
    workers: int,
    progress: bool,
) -> Dataset:
    """Decode every image (PIL releases the interpreter lock while it does) and store the cells that can be used."""
    if not rows:
        raise BadRows(path, sorted(problems), unit)
    size = config.size
    _check_space(cache, len(rows) * size**2 * 3)
    with ThreadPoolExecutor(workers) as pool, _scratch(cache) as scratch:
        field = config.field
        if field is None:
            sizes = [shape for shape in pool.map(_image_size, [row.image for row in rows]) if shape is not None]
            if not sizes:
                raise BadRows(path, sorted(problems + _undecodable(rows, workers)), unit)
            field = float(np.median([max(shape) for shape in sizes]))
        out = np.lib.format.open_memmap(
            scratch / "all.npy", mode="w+", dtype=np.uint8, shape=(len(rows), size, size, 3)
        )
        grey = np.zeros(len(rows), dtype=bool)
        padded = np.zeros(len(rows), dtype=bool)
        scale = size / field

        def decode(numbers: list[int]) -> list[Problem]:
            unusable: list[Problem] = []
            try:
                image, grey[numbers] = read_image(rows[numbers[0]].image)
            except ValueError as error:
                return [(rows[number].line, rows[number].id, str(error)) for number in numbers]
            for number in numbers:
                row = rows[number]
                if (told := _outside(image, row)) is not None:
                    unusable.append((row.line, row.id, told))
                elif row.centre is None:
                    padded[number] = round(min(image.size) * scale) < size
                    out[number] = to_square(image, scale, size)
                else:
                    out[number], padded[number] = cut_square(image, row.centre, field, size)
            return unusable

        unusable: list[Problem] = []
        jobs = _by_image(rows)
        with Progress(disable=not progress, transient=True) as bar:
            task = bar.add_task(f"decoding {len(jobs):,} images", total=len(jobs))
            for told in pool.map(decode, jobs):
                unusable += told
                bar.advance(task)
        bad = {line for line, _, _ in unusable}
        good = [number for number, row in enumerate(rows) if row.line not in bad]
        problems = sorted(problems + unusable)
        if problems and not (config.skip_bad and good):
            raise BadRows(path, problems, unit)
        notes = []
        if padded[good].any():
            count = np.count_nonzero(padded[good])
            notes.append(
                f"{count} images are smaller than the field of {field:g} px and were padded"
                if rows[0].centre is None
                else f"{count} cells lie within half the field of {field:g} px of an edge and were padded"
            )
        if grey[good].any():
            notes.append(f"{len({rows[n].path for n in good if grey[n]})} grey images became RGB")
        if problems:
            skipped = ", ".join(f"{unit} {line} {reason}" for line, _, reason in problems[:5])
            more = ", …" if len(problems) > 5 else ""
            notes.append(f"{len(problems)} rows were skipped: {skipped}{more}")
            (scratch / "skipped.json").write_text(json.dumps(problems, ensure_ascii=False), encoding="utf-8")
        if len(good) == len(rows):
            out.flush()
            del out
            os.rename(scratch / "all.npy", scratch / "images.npy")
        else:
            np.save(scratch / "images.npy", out[good])
            del out
            (scratch / "all.npy").unlink()
        kept = [rows[number] for number in good]
        labels = [row.values["label"] for row in kept]
        classes = sorted(set(labels))
        number_of = {label: number for number, label in enumerate(classes)}
        chosen = [told for told in (config.where, f"at most {config.limit} a class" if config.limit else "") if told]
        name = path.absolute().parent.name if path.stem == "manifest" else path.stem
        return _store(
            cache,
            key,
            scratch,
            name=name + (f" ({', '.join(chosen)})" if chosen else ""),
            labels=np.array([number_of[label] for label in labels], dtype=np.int64),
            classes=classes,
            ids=np.array([row.id for row in kept]),
            field=field,
            region=_column(kept, "region"),
            patient=_column(kept, "patient"),
            notes=notes,
        )


def _column(rows: Sequence[Row], column: str) -> np.ndarray | None:
    return np.array([row.values[column] for row in rows]) if column in rows[0].values else None
