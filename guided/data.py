"""Cells as arrays: a manifest, a MedMNIST file or the synthetic marrow, decoded once into a memory-mapped cache.

A cache is a folder named by its content, so that equal data share one and a changed image never meets an old one. A
small index beside it, keyed by the manifest and the size and time of every file, finds it again without decoding.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from PIL import Image, UnidentifiedImageError
from rich.progress import Progress

from guided.config import Data, content_id
from guided.synthetic import render_marrow
from guided.where import parse_where

FORMAT = 1  # of the cache on disk
SUFFIXES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp"}
# MedMNIST files carry numbers only.
MEDMNIST_CLASSES = {
    "bloodmnist": (
        "basophil",
        "eosinophil",
        "erythroblast",
        "immature_granulocyte",
        "lymphocyte",
        "monocyte",
        "neutrophil",
        "platelet",
    )
}


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

    @classmethod
    def open(cls, directory: Path) -> Dataset:
        """Memory-map a cache. Raises ValueError naming the file that is missing, truncated or altered."""
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
        table = np.load(table_path, allow_pickle=False)
        return cls(
            name=meta["name"],
            images=np.load(images_path, mmap_mode="r", allow_pickle=False),
            labels=table["labels"],
            classes=tuple(meta["classes"]),
            ids=table["ids"],
            region=table.get("region"),
            patient=table.get("patient"),
            maturity=table.get("maturity"),
            fingerprint=meta["fingerprint"],
            directory=directory,
            notes=tuple(meta["notes"]),
        )


def _remedy(directory: Path) -> str:
    return f"delete the folder {directory} to decode it again"


class BadRows(ValueError):
    """Rows of a manifest that cannot be used: (line, path, reason) each."""

    def __init__(self, manifest: Path, rows: Sequence[tuple[int, str, str]]) -> None:
        self.rows = list(rows)
        shown = [f"  line {line}: {path}: {reason}" for line, path, reason in self.rows[:20]]
        if len(self.rows) > 20:
            shown.append(f"  … and {len(self.rows) - 20} more")
        told = "\n".join(shown)
        super().__init__(
            f"{manifest} has {len(self.rows)} rows that cannot be used:\n{told}\nmend them, or go on without them "
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
    if not path.is_file():
        raise ValueError(f"data: no file {path}; give a manifest (.csv), a MedMNIST file (.npz) or synthetic")
    if path.suffix.lower() == ".csv":
        return _manifest(path, config, cache, workers or len(os.sched_getaffinity(0)), progress)
    if path.suffix.lower() == ".npz":
        return _medmnist(path, config, cache)
    raise ValueError(f"data: {path} is neither a manifest (.csv) nor a MedMNIST file (.npz)")


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
    return Dataset.open(directory) if directory.exists() else None


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
    digest = hashlib.sha256()
    digest.update(content_id([FORMAT, list(images.shape), list(classes)], 64).encode())
    for column in sorted(table):
        values = table[column]
        digest.update(column.encode())
        digest.update("\n".join(values.tolist()).encode() if values.dtype.kind == "U" else values.tobytes())
    for start in range(0, len(images), 256):
        digest.update(images[start : start + 256].tobytes())
    fingerprint = digest.hexdigest()[:16]
    np.savez(scratch / "table.npz", allow_pickle=False, **table)
    meta = {
        "format": FORMAT,
        "name": name,
        "classes": list(classes),
        "fingerprint": fingerprint,
        "notes": list(notes),
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
        if not directory.exists():  # else another process was faster with the same content
            raise
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
    try:
        with np.load(path, allow_pickle=False) as file:
            splits = [split for split in ("train", "val", "test") if f"{split}_images" in file]
            if not splits:
                raise ValueError("it has no train_images, val_images or test_images")
            images = np.concatenate([file[f"{split}_images"] for split in splits])
            numbers = np.concatenate([file[f"{split}_labels"] for split in splits]).reshape(-1)
            ids = np.array([f"{split}-{row:06d}" for split in splits for row in range(len(file[f"{split}_images"]))])
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise ValueError(f"data: {path} is not a MedMNIST file: {error}") from None
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] != 3):
        raise ValueError(f"data: {path} holds images {images.shape} {images.dtype}; needed: uint8 (N, H, W[, 3])")
    if len(numbers) != len(images) or numbers.dtype.kind not in "iu":
        raise ValueError(f"data: {path} needs one whole-number label for each of its {len(images)} images")
    if images.ndim == 3:
        images = np.repeat(images[..., None], 3, axis=3)
    present = np.unique(numbers)
    known = MEDMNIST_CLASSES.get(path.stem.split("_")[0].lower(), ())
    names = [known[n] if 0 <= n < len(known) else str(n) for n in present.tolist()]
    labels = np.searchsorted(present, numbers)
    kept = _limited(labels, ids, config)
    scale = config.size / (config.field or max(images.shape[1:3]))
    _check_space(cache, len(kept) * config.size**2 * 3)
    with _scratch(cache) as scratch:
        out = np.lib.format.open_memmap(
            scratch / "images.npy", mode="w+", dtype=np.uint8, shape=(len(kept), config.size, config.size, 3)
        )
        for row, source in enumerate(kept):
            out[row] = to_square(Image.fromarray(images[source]), scale, config.size)
        out.flush()
        name = path.stem + (f" (at most {config.limit} a class)" if config.limit else "")
        return _store(cache, key, scratch, name=name, labels=labels[kept], classes=names, ids=ids[kept])


@dataclass(frozen=True)
class _Row:
    line: int
    path: Path
    values: dict[str, str]

    @property
    def id(self) -> str:
        return self.values["path"]


def _manifest(path: Path, config: Data, cache: Path, workers: int, progress: bool) -> Dataset:
    rows, columns, bad = _read_rows(path)
    if config.where is not None:
        test = parse_where(config.where, columns)
        kept = [row for row in rows if test(row.values)]
        if not kept and rows:
            raise ValueError(f"where {config.where!r} keeps none of the {len(rows)} rows; {_values(rows, columns)}")
        # A row that is left out cannot spoil the rest.
        bad = [entry for entry in bad if entry[3] is None or test(entry[3])]
        rows = kept
    rows.sort(key=lambda row: row.id)  # the order of the file does not matter
    problems = [(line, told, reason) for line, told, reason, _ in bad]
    if config.limit is not None:
        labels = np.array([row.values["label"] for row in rows])
        rows = [rows[i] for i in _limited(labels, np.array([row.id for row in rows]), config)]
    stats, present = [], []
    for row in rows:
        try:
            stat = row.path.stat()
        except OSError:
            problems.append((row.line, row.id, "there is no such file"))
            continue
        stats.append([row.id, stat.st_size, stat.st_mtime_ns])
        present.append(row)
    if problems and not config.skip_bad:
        # Told together with what only decoding shows.
        problems += _undecodable(present, workers)
        raise BadRows(path, sorted(problems))
    manifest = hashlib.sha256(path.read_bytes()).hexdigest()
    key = content_id([FORMAT, str(path.absolute()), manifest, _options(config), stats])
    found = _find(cache, key)
    if found is not None:
        return found
    return _decode(path, config, cache, key, present, problems, workers, progress)


def _values(rows: Sequence[_Row], columns: Sequence[str]) -> str:
    """What the columns with few values hold: the help for a filter that kept nothing."""
    told = []
    for column in columns:
        values = sorted({row.values[column] for row in rows})
        if len(values) <= 12:
            told.append(f"{column}: {', '.join(values)}")
    return "the columns hold " + "; ".join(told) if told else "see the manifest for its values"


def _read_rows(path: Path) -> tuple[list[_Row], list[str], list[tuple[int, str, str, dict[str, str] | None]]]:
    """Rows, columns, and the rows that the file alone shows to be unusable (line, path, reason, values)."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"manifest {path} is not UTF-8 text; save it as CSV (UTF-8)") from None
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    columns = [column.strip() for column in reader.fieldnames or []]
    for needed in ("path", "label"):
        if needed not in columns:
            near = get_close_matches(needed, columns, n=1, cutoff=0.5)
            hint = f"; is it {near[0]!r}?" if near else ""
            raise ValueError(f"manifest {path} has no column {needed!r} (its first line: {', '.join(columns)}){hint}")
    repeated = [column for column, count in Counter(columns).items() if count > 1]
    if repeated:
        raise ValueError(f"manifest {path} has the column {repeated[0]!r} twice")
    reader.fieldnames = columns
    rows: list[_Row] = []
    bad: list[tuple[int, str, str, dict[str, str] | None]] = []
    first_line: dict[str, int] = {}
    try:
        for raw in reader:
            line = reader.line_num
            if None in raw or None in raw.values():
                bad.append((line, str(raw.get("path")), f"has not {len(columns)} fields", None))
                continue
            values = {column: str(raw[column]).strip() for column in columns}
            reason = None
            if not values["path"]:
                reason = "has no path"
            elif not values["label"]:
                reason = "has no label"
            elif (first := first_line.setdefault(values["path"], line)) != line:
                reason = f"is the same path as line {first}"
            for column in ("region", "patient"):
                if reason is None and column in values and not values[column]:
                    reason = f"has no {column}, which other rows have"
            if reason is not None:
                bad.append((line, values["path"], reason, values))
            else:
                rows.append(_Row(line, path.parent / values["path"], values))
    except csv.Error as error:
        raise ValueError(f"manifest {path}, line {reader.line_num}: {error}") from None
    if not rows and not bad:
        raise ValueError(f"manifest {path} has no rows")
    return rows, columns, bad


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


def read_image(path: Path) -> tuple[Image.Image, bool]:
    """An image as 8-bit RGB, and whether it was grey. Raises ValueError saying why it cannot be used."""
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"is no PNG, JPEG, TIFF or BMP ({path.suffix or 'no suffix'})")
    try:
        with Image.open(path) as image:
            if getattr(image, "n_frames", 1) > 1:
                raise ValueError(f"has {image.n_frames} frames; one is needed")  # type: ignore[attr-defined]
            image.load()
            mode = image.mode
            if mode == "RGB":
                return image.copy(), False
            if mode == "L":
                return image.convert("RGB"), True
            if mode == "P" and "transparency" not in image.info:
                return image.convert("RGB"), False
            if mode == "RGBA" and image.getchannel("A").getextrema() == (255, 255):
                return image.convert("RGB"), False
    except ValueError:
        raise
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"cannot be decoded ({error})") from None
    if mode.startswith(("I", "F")):
        raise ValueError(f"has more than 8 bits a channel (mode {mode}); convert it to 8-bit RGB")
    if mode in ("RGBA", "LA", "PA", "P"):
        raise ValueError(f"has transparent pixels (mode {mode}); flatten it to RGB")
    raise ValueError(f"has mode {mode}; convert it to 8-bit RGB")


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
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    square = np.empty((size, size, 3), np.uint8)
    square[:] = np.median(border, axis=0).astype(np.uint8)
    top, left = (size - pixels.shape[0]) // 2, (size - pixels.shape[1]) // 2
    square[top : top + pixels.shape[0], left : left + pixels.shape[1]] = pixels
    return square


def _image_size(row: _Row) -> tuple[int, int] | None:
    try:
        with Image.open(row.path) as image:
            return image.size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None  # decoding will name the reason


def _undecodable(rows: Sequence[_Row], workers: int) -> list[tuple[int, str, str]]:
    def look(row: _Row) -> tuple[int, str, str] | None:
        try:
            read_image(row.path)
        except ValueError as error:
            return (row.line, row.id, str(error))
        return None

    with ThreadPoolExecutor(workers) as pool:
        return [entry for entry in pool.map(look, rows) if entry is not None]


def _decode(
    path: Path,
    config: Data,
    cache: Path,
    key: str,
    rows: list[_Row],
    problems: list[tuple[int, str, str]],
    workers: int,
    progress: bool,
) -> Dataset:
    """Decode every row (PIL releases the interpreter lock while it does) and store what can be used."""
    notes = []
    _check_space(cache, len(rows) * config.size**2 * 3)
    with ThreadPoolExecutor(workers) as pool, _scratch(cache) as scratch:
        sizes = [size for size in pool.map(_image_size, rows) if size is not None]
        if not sizes:
            raise BadRows(path, sorted(problems + _undecodable(rows, workers)))
        field = config.field or float(np.median([max(size) for size in sizes]))
        scale = config.size / field
        smaller = sum(round(min(size) * scale) < config.size for size in sizes)
        if smaller:
            notes.append(f"{smaller} images are smaller than the field of {field:g} px and were padded")
        out = np.lib.format.open_memmap(
            scratch / "all.npy", mode="w+", dtype=np.uint8, shape=(len(rows), config.size, config.size, 3)
        )

        def decode(number: int) -> str | bool:
            try:
                image, grey = read_image(rows[number].path)
            except ValueError as error:
                return str(error)
            out[number] = to_square(image, scale, config.size)
            return grey

        outcomes: list[str | bool] = []
        with Progress(disable=not progress, transient=True) as bar:
            task = bar.add_task(f"decoding {len(rows):,} images", total=len(rows))
            for outcome in pool.map(decode, range(len(rows))):
                outcomes.append(outcome)
                bar.advance(task)
        problems = problems + [
            (row.line, row.id, told) for row, told in zip(rows, outcomes, strict=True) if isinstance(told, str)
        ]
        if problems and not config.skip_bad:
            raise BadRows(path, sorted(problems))
        grey = sum(outcome is True for outcome in outcomes)
        if grey:
            notes.append(f"{grey} grey images became RGB")
        if problems:
            skipped = ", ".join(f"line {line} {reason}" for line, _, reason in sorted(problems)[:5])
            more = ", …" if len(problems) > 5 else ""
            notes.append(f"{len(problems)} rows were skipped: {skipped}{more}")
            (scratch / "skipped.json").write_text(json.dumps(sorted(problems), ensure_ascii=False), encoding="utf-8")
        good = [number for number, outcome in enumerate(outcomes) if not isinstance(outcome, str)]
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
        name = path.parent.name if path.stem == "manifest" else path.stem
        return _store(
            cache,
            key,
            scratch,
            name=name + (f" ({', '.join(chosen)})" if chosen else ""),
            labels=np.array([number_of[label] for label in labels], dtype=np.int64),
            classes=classes,
            ids=np.array([row.id for row in kept]),
            region=_column(kept, "region"),
            patient=_column(kept, "patient"),
            notes=notes,
        )


def _column(rows: Sequence[_Row], column: str) -> np.ndarray | None:
    return np.array([row.values[column] for row in rows]) if column in rows[0].values else None
