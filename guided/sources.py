"""What stands on disk, as rows: a manifest, a folder per class, a parquet file of images, a MedMNIST file.

Nothing is decoded here. Every kind ends in the same rows, so that filters, limits and refusals are the same for all.
"""

from __future__ import annotations

import csv
import io
import json
import os
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from math import isfinite, nan
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from guided.where import parse_where

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
class Row:
    """A cell: a whole image, or what lies around a centre."""

    line: int  # of the manifest; of a folder the number of the file, of a parquet file that of the row
    path: Path
    id: str
    values: dict[str, str]
    centre: tuple[float, float] | None = None  # x, y in px of the image
    content: bytes | None = None  # the file itself, where it stands in a table; `path` then only names it

    @property
    def image(self) -> Path | bytes:
        """What `guided.data.read_image` reads."""
        return self.path if self.content is None else self.content


Problem = tuple[int, str, str]  # line, id, reason


def size_and_time(row: Row) -> list[int] | str:
    """Bytes and time of change of the file of a row, or why it cannot be opened."""
    if row.content is not None:
        return [len(row.content)]
    try:
        stat = row.path.stat()
    except FileNotFoundError:
        return "there is no such file"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return [stat.st_size, stat.st_mtime_ns]


BadRow = tuple[int, str, str, dict[str, str] | None]  # line, id, reason, values where they could be read


class Table(NamedTuple):
    """The rows of a source, the columns that they have, and the rows that cannot be used whatever the others are."""

    rows: list[Row]
    columns: list[str]
    bad: list[BadRow]
    unit: str  # what `line` counts: line, file or row


def read_table(path: Path) -> Table:
    """The cells of a manifest (.csv), of a folder per class or of a parquet file of images.

    Raises ValueError for what is none of these, has no cells, or is damaged as a whole.
    """
    if path.is_dir():
        return _folder(path)
    if not path.is_file():
        raise ValueError(
            f"data: no file or folder {path}; give a manifest (.csv), a folder per class, a parquet file of images, a "
            "MedMNIST file (.npz) or synthetic"
        )
    if path.suffix.lower() == ".csv":
        return Table(*_manifest_rows(path), "line")
    if path.suffix.lower() == ".parquet":
        return _parquet(path)
    raise ValueError(
        f"data: {path} is neither a manifest (.csv), a folder per class, a parquet file of images nor a MedMNIST file "
        "(.npz)"
    )


def chosen(path: Path, where: str, table: Table) -> tuple[list[Row], list[BadRow]]:
    """The rows that `where` keeps, and the bad rows that it does not leave out: those cannot spoil the rest."""
    rows, columns, bad, unit = table
    test = parse_where(where, columns)

    def keeps(row: Row) -> bool:
        try:
            return test(row.values)
        except ValueError as error:
            raise ValueError(f"{'manifest ' if unit == 'line' else ''}{path}, {unit} {row.line}: {error}") from None

    def left_out(values: dict[str, str] | None) -> bool:
        try:
            return values is not None and not test(values)
        except ValueError:
            return False  # it cannot be told, so the row stays a bad one

    kept = [row for row in rows if keeps(row)]
    if not kept and rows:
        raise ValueError(f"where {where!r} keeps none of the {len(rows)} rows; {_values(rows, columns)}")
    return kept, [entry for entry in bad if not left_out(entry[3])]


def without_repeats(rows: Sequence[Row], unit: str) -> tuple[list[Row], list[Problem]]:
    """The rows without those that name a cell again, and what is wrong with these.

    Of equal rows one is kept. Of rows that contradict each other none is: which came first says nothing.
    """
    problems: dict[int, Problem] = {}
    for same, told in (
        (lambda row: (os.path.normpath(row.path), row.centre), "is the same path as"),
        (lambda row: row.id, "has the same id as"),
    ):
        groups: dict[Any, list[Row]] = {}
        for row in rows:
            groups.setdefault(same(row), []).append(row)
        for first, *others in groups.values():
            equal = all(row.values == first.values for row in others)
            for row in others:
                reason = f"{told} {unit} {first.line}" + ("" if equal else ", but differs from it")
                problems.setdefault(row.line, (row.line, row.id, reason))
            if not equal:
                reason = f"{told} {unit} {others[0].line}, but differs from it"
                problems.setdefault(first.line, (first.line, first.id, reason))
    return [row for row in rows if row.line not in problems], list(problems.values())


def _values(rows: Sequence[Row], columns: Sequence[str]) -> str:
    """What the columns with few values hold: the help for a filter that kept nothing."""
    told = []
    for column in columns:
        values = sorted({row.values[column] for row in rows})
        if len(values) <= 12:
            told.append(f"{column}: {', '.join(values)}")
    return "the columns hold " + "; ".join(told) if told else "see the manifest for its values"


def _manifest_rows(path: Path) -> tuple[list[Row], list[str], list[BadRow]]:
    """Rows, columns, and the rows that cannot be used whatever the others are."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"manifest {path} is not UTF-8 text; save it as CSV (UTF-8)") from None
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    rows: list[Row] = []
    bad: list[BadRow] = []
    try:
        columns = [column.strip() for column in reader.fieldnames or []]
        file = _check_columns(path, columns)
        reader.fieldnames = columns
        for raw in reader:
            line = reader.line_num
            if None in raw or None in raw.values():
                bad.append((line, str(raw.get(file)), f"has not {len(columns)} fields", None))
                continue
            values = {column: str(raw[column]).strip() for column in columns}
            try:
                rows.append(_row(path.parent, line, values, file))
            except ValueError as error:
                bad.append((line, values[file], str(error), values))
    except csv.Error as error:
        raise ValueError(f"manifest {path}, line {reader.reader.line_num}: {error}") from None
    if not rows and not bad:
        raise ValueError(f"manifest {path} has no rows")
    return rows, columns, bad


def _check_columns(path: Path, columns: list[str]) -> str:
    """The column that names the files: `path`, or `image` where centres stand beside it."""
    file = "image" if "image" in columns and "path" not in columns else "path"
    for needed in (file, "label", *(("x", "y") if file == "image" else ())):
        if needed not in columns:
            near = get_close_matches(needed, columns, n=1, cutoff=0.5)
            hint = f"; is it {near[0]!r}?" if near else ""
            if needed in ("x", "y"):
                hint = "; a column image goes with the cells' centres x and y, a column path with one image a cell"
            raise ValueError(f"manifest {path} has no column {needed!r} (its first line: {', '.join(columns)}){hint}")
    repeated = [column for column, count in Counter(columns).items() if count > 1]
    if repeated:
        raise ValueError(f"manifest {path} has the column {repeated[0]!r} twice")
    return file


def _row(folder: Path, line: int, values: dict[str, str], file: str) -> Row:
    """The cell of one line. Raises ValueError saying what is missing or wrong."""
    name = values[file]
    if not name:
        raise ValueError(f"has no {file}")
    if "\0" in name:
        raise ValueError(f"has a {file} with a null character")
    if reason := _lacking(values):
        raise ValueError(reason)
    if file == "path":
        return Row(line, folder / name, name, values)
    x, y = (_coordinate(values, column) for column in ("x", "y"))
    if "id" in values and not values["id"]:
        raise ValueError("has no id, which other rows have")
    return Row(line, folder / name, values.get("id") or f"{name}#{x:.10g},{y:.10g}", values, (x, y))


def _lacking(values: dict[str, str]) -> str | None:
    """What a row lacks that every row must have."""
    for column in ("label", "region", "patient"):
        if column in values and not values[column]:
            return f"has no {column}" + ("" if column == "label" else ", which other rows have")
    return None


def _coordinate(values: dict[str, str], column: str) -> float:
    try:
        number = float(values[column])
    except ValueError:
        number = nan
    if not isfinite(number):
        raise ValueError(f"has the {column} {values[column]!r}, which is no number")
    return number


def read_npz(path: Path) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Images (uint8 (n, H, W) or (n, H, W, 3)) of each split, labels (N,) and ids (N,) of a MedMNIST file."""
    try:
        file = np.load(path, allow_pickle=False)
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise ValueError("it is a single array")
        with file:
            splits = [split for split in ("train", "val", "test") if f"{split}_images" in file]
            if not splits:
                raise ValueError("it has no train_images, val_images or test_images")
            parts = [file[f"{split}_images"] for split in splits]
            numbers = np.concatenate([file[f"{split}_labels"] for split in splits]).reshape(-1)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"data: {path} is not a MedMNIST file: {error}") from None
    for part in parts:
        if part.dtype != np.uint8 or part.ndim not in (3, 4) or (part.ndim == 4 and part.shape[3] != 3):
            raise ValueError(f"data: {path} holds images {part.shape} {part.dtype}; needed: uint8 (N, H, W[, 3])")
        if part.shape[1:] != parts[0].shape[1:]:
            raise ValueError(f"data: {path} holds images of {part.shape[1:]} and of {parts[0].shape[1:]}")
    cells = sum(map(len, parts))
    if len(numbers) != cells or numbers.dtype.kind not in "iu":
        raise ValueError(f"data: {path} needs one whole-number label for each of its {cells} images")
    names = [f"{split}-{row:06d}" for split, part in zip(splits, parts, strict=True) for row in range(len(part))]
    return parts, numbers, np.array(names)


# --- a folder per class ---------------------------------------------------------------------------------------------

SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing"}

# Acevedo et al. 2020, doi:10.17632/snkd93bnjr.1: eight folders; the prefix of a file's name tells the stage. IG and
# NEUTROPHIL are cells of the second acquisition, whose stage nobody named.
PBC_FOLDERS = {
    "basophil",
    "eosinophil",
    "erythroblast",
    "ig",
    "lymphocyte",
    "monocyte",
    "neutrophil",
    "platelet",
}
PBC_CLASSES = {
    "BA": "basophil",
    "EO": "eosinophil",
    "ERB": "erythroblast",
    "LY": "lymphocyte",
    "MO": "monocyte",
    "PLATELET": "platelet",
    "PMY": "promyelocyte",
    "MY": "myelocyte",
    "MMY": "metamyelocyte",
    "BNE": "band_neutrophil",
    "SNE": "segmented_neutrophil",
    "IG": "immature_granulocyte_unspecified",
    "NEUTROPHIL": "neutrophil_unspecified",
}
# Matek et al. 2019, doi:10.7937/tcia.2019.36f5o9ld, abbreviations.txt.
MUNICH_AML_CLASSES = {
    "BAS": "basophil",
    "EBO": "erythroblast",
    "EOS": "eosinophil",
    "KSC": "smudge_cell",
    "LYA": "atypical_lymphocyte",
    "LYT": "lymphocyte",
    "MMZ": "metamyelocyte",
    "MOB": "monoblast",
    "MON": "monocyte",
    "MYB": "myelocyte",
    "MYO": "myeloblast",
    "NGB": "band_neutrophil",
    "NGS": "segmented_neutrophil",
    "PMB": "bilobed_promyelocyte",
    "PMO": "promyelocyte",
}
# Matek et al. 2021, doi:10.7937/TCIA.AXH3-T579, abbreviations.csv.
BONE_MARROW_CLASSES = {
    "ABE": "abnormal_eosinophil",
    "ART": "artefact",
    "BAS": "basophil",
    "BLA": "blast",
    "EBO": "erythroblast",
    "EOS": "eosinophil",
    "FGC": "faggott_cell",
    "HAC": "hairy_cell",
    "KSC": "smudge_cell",
    "LYI": "immature_lymphocyte",
    "LYT": "lymphocyte",
    "MMZ": "metamyelocyte",
    "MON": "monocyte",
    "MYB": "myelocyte",
    "NGB": "band_neutrophil",
    "NGS": "segmented_neutrophil",
    "NIF": "not_identifiable",
    "OTH": "other_cell",
    "PEB": "proerythroblast",
    "PLM": "plasma_cell",
    "PMO": "promyelocyte",
}


def _folder(path: Path) -> Table:
    """The images below the subfolders of a folder, each subfolder a class; hidden files are left out.

    train/, val/, test/ with the classes below them become one set with a column `split`. Three public layouts are known
    by their folders, and their classes get the names of the shipped guides: PBC (with the stages that the files' names
    tell), the Munich AML set (with the re-annotations of annotations.dat as columns) and the bone marrow set.
    """
    files = _images(path)
    if not any(len(parts) > 1 for parts in files):
        told = f"its {len(files)} images lie in no class: make a subfolder for each" if files else "nor below any"
        raise ValueError(f"data: the folder {path} has no image in a subfolder ({told}), or give a manifest (.csv)")
    split = all(len(parts) > 2 and parts[0].lower() in SPLITS for parts in files)
    placed = {parts: parts[int(split)] for parts in files if len(parts) > 1}
    values_of, added = _layout(path, placed)
    rows: list[Row] = []
    bad: list[BadRow] = []
    for number, parts in enumerate(files, 1):
        name = "/".join(parts)
        try:
            name.encode()
            if parts not in placed:
                raise ValueError("lies in no class; move it into the subfolder of its class")
            values = {"path": name, **({"split": parts[0]} if split else {}), **values_of(placed[parts], parts)}
        except UnicodeEncodeError:
            bad.append((number, ascii(name), "has a name that is not UTF-8", None))
        except ValueError as error:
            bad.append((number, name, str(error), None))
        else:
            rows.append(Row(number, path / name, name, values))
    return Table(rows, ["path", *(["split"] if split else []), *added], bad, "file")


Parts = tuple[str, ...]  # of the path of a file below the folder


def _images(path: Path) -> list[Parts]:
    """Every image below a folder, sorted. Raises ValueError where a folder cannot be entered."""

    def stop(error: OSError) -> None:
        raise ValueError(f"data: the folder {error.filename} cannot be read ({error.strerror})") from None

    found = []
    for folder, below, files in os.walk(path, onerror=stop):
        below[:] = [name for name in below if not name.startswith(".")]
        parts = Path(folder).relative_to(path).parts
        found += [
            (*parts, name) for name in files if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES
        ]
    return sorted(found)


def _layout(path: Path, placed: dict[Parts, str]) -> tuple[Callable[[str, Parts], dict[str, str]], list[str]]:
    """Label and further values of a file by its class's folder, and the names of these columns."""
    folders = set(placed.values())
    prefixes = {parts: parts[-1].split("_")[0].upper() for parts in placed}
    if folders == PBC_FOLDERS and all(prefix in PBC_CLASSES for prefix in prefixes.values()):
        return lambda folder, parts: {"label": PBC_CLASSES[prefixes[parts]], "coarse": folder}, ["label", "coarse"]
    coded = len(folders) > 1 and all(prefixes[parts] == folder for parts, folder in placed.items())
    for classes in (MUNICH_AML_CLASSES, BONE_MARROW_CLASSES):
        if coded and folders <= classes.keys():
            annotations = _annotations(path) if classes is MUNICH_AML_CLASSES else {}
            return _coded(classes, annotations), ["label", "code", *(REANNOTATIONS if annotations else ())]
    return lambda folder, parts: {"label": folder}, ["label"]


REANNOTATIONS = ("reannotation_1", "reannotation_2")


def _coded(classes: dict[str, str], annotations: dict[str, tuple[str, ...]]) -> Callable[[str, Parts], dict[str, str]]:
    def values(folder: str, parts: Parts) -> dict[str, str]:
        if not annotations:
            return {"label": classes[folder], "code": folder}
        name = f"{folder}/{parts[-1]}"
        if name not in annotations:
            raise ValueError("stands in no line of annotations.dat")
        label, *again = annotations[name]
        if label != folder:
            raise ValueError(f"lies in the folder {folder}, but annotations.dat says {label}")
        return {"label": classes[folder], "code": folder, **dict(zip(REANNOTATIONS, again, strict=True))}

    return values


def _annotations(path: Path) -> dict[str, tuple[str, ...]]:
    """Annotation and two re-annotations (empty where there is none) of each CODE/FILE of the Munich AML set."""
    files = [folder / "annotations.dat" for folder in (path, path.parent)]  # unpacked it lies in either place
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        return {}
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"data: {file} cannot be read: {error}") from None
    found = {}
    for number, line in enumerate(lines, 1):
        fields = line.split()
        if not fields:
            continue
        if len(fields) != 4:
            raise ValueError(
                f"data: {file}, line {number} has {len(fields)} fields; 4 are needed: file and annotations"
            )
        found["/".join(fields[0].split("/")[-2:])] = tuple("" if field == "nan" else field for field in fields[1:])
    return found


# --- a parquet file of images ---------------------------------------------------------------------------------------


def _parquet(path: Path) -> Table:
    """The rows of a parquet file with a column of encoded images (bytes, or a struct with `bytes` as Hugging Face
    writes it) and a column `label`; all of the file is held in memory. Class names are taken from its metadata."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"data: {path} is not a parquet file: {error}") from None
    kinds = {field.name: field.type for field in table.schema}
    nested = {name for name, kind in kinds.items() if pa.types.is_struct(kind) and "bytes" in {f.name for f in kind}}
    binary = {name for name, kind in kinds.items() if pa.types.is_binary(kind) or pa.types.is_large_binary(kind)}
    if len(nested | binary) != 1 or "label" not in kinds:
        has = ", ".join(f"{name} ({kind})" for name, kind in kinds.items())
        raise ValueError(f"data: {path} needs one column of encoded images (binary) and a column label; it has {has}")
    if table.num_rows == 0:
        raise ValueError(f"data: {path} has no rows")
    (image,) = nested | binary
    names = _class_names(table.schema.metadata or {})
    columns = {name: table.column(name).to_pylist() for name in kinds if name != image}
    contents = table.column(image).to_pylist()
    rows: list[Row] = []
    bad: list[BadRow] = []
    for number, content in enumerate(contents, 1):
        inside = content if image in nested else {"bytes": content}
        cells = {name: column[number - 1] for name, column in columns.items()}
        values = {name: "" if value is None else str(value) for name, value in cells.items()}
        known = str((inside or {}).get("path") or values.get("path") or f"row-{number:06d}")
        label = cells["label"]
        if isinstance(label, int) and 0 <= label < len(names):
            values["label"] = names[label]
        identity = values.get("id") or known
        if not inside or not inside.get("bytes"):
            bad.append((number, identity, "has no image", values))
        elif reason := _lacking(values):
            bad.append((number, identity, reason, values))
        else:
            rows.append(Row(number, path / str(number), identity, values, content=inside["bytes"]))
    return Table(rows, list(columns), bad, "row")


def _class_names(metadata: dict[bytes, bytes]) -> list[str]:
    """Names of the classes of `label` in the order of their numbers, where Hugging Face's metadata tell them."""
    try:
        return [str(name) for name in json.loads(metadata[b"huggingface"])["info"]["features"]["label"]["names"]]
    except (KeyError, TypeError, ValueError):
        return []


def read_classes(path: Path) -> list[str]:
    """The classes of a data set, sorted, without decoding an image. Raises ValueError where it names fewer than two."""
    if path.suffix.lower() == ".npz" and path.is_file():
        _, numbers, _ = read_npz(path)
        classes = medmnist_names(path, np.unique(numbers))
    else:
        classes = sorted({row.values["label"] for row in read_table(path).rows})
    if len(classes) < 2:
        raise ValueError(f"data: {path} has {len(classes)} class(es) ({', '.join(classes)}); two are needed")
    return classes


def medmnist_names(path: Path, numbers: np.ndarray) -> list[str]:
    """Names of the classes with these numbers in a MedMNIST file, known by the name of the file."""
    known = MEDMNIST_CLASSES.get(path.stem.split("_")[0].lower(), ())
    return [known[n] if 0 <= n < len(known) else str(n) for n in numbers.tolist()]
