"""A data set looked at before training: what is in it, what is wrong with it, and what that costs."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from rich.progress import Progress

from guided.config import Folds
from guided.data import Dataset, cut_square, read_image
from guided.duplicates import digest, equal_pairs, near_pairs, thumbnail, twins
from guided.folds import cuts_of, make_folds
from guided.sources import Problem, Row, medmnist_names, read_npz, read_table, without_repeats

FOLDS = 5  # the paper's
MONTAGE = 24  # cells of a class that are shown
TILE = 64  # px of each
MOST_GROUPS = 60  # values of a column that still make groups
RARE = 10.0  # largest over smallest class, from which on imbalance is told
SHIFT = 1.0  # sd of the cells' mean colours, from which on a group counts as shifted
SAME_SIZE = 0.02  # share of cells with another size than the most frequent, from which on it is told


@dataclass(frozen=True)
class Remark:
    """Something about the data that a reader of results must know, with its consequence. `wrong`: training refuses it
    or its results would be untrue."""

    level: Literal["wrong", "doubtful", "note"]
    told: str
    consequence: str

    def __str__(self) -> str:
        return f"{self.told}; {self.consequence}"


@dataclass(frozen=True)
class Group:
    """Cells of one value of a column: how many, how large, how coloured."""

    column: str
    name: str
    cells: int
    classes: int
    width: float  # median, px
    height: float
    colour: tuple[float, float, float]  # mean of R, G, B, of 255
    contrast: float  # mean over cells of the sd of grey, of 255
    shift: float  # of the mean colour from that of all other cells of the same classes, in sd of single cells


@dataclass(frozen=True)
class FoldWay:
    """One way to cut the data into folds, and what leaks through it."""

    group: Literal["region", "patient", "none"]
    groups: int  # regions, patients or cells
    most: int  # folds that can be made at most
    ways: int | None  # different cuts into `folds`; None: beyond counting
    folds: int  # for which the rest is told
    lacking: int  # folds whose test part lacks a class
    patient: float | None  # share of test cells whose patient stands in training too; None: unknown
    region: float | None
    twin: float  # share of test cells with a duplicate in training
    refused: str = ""  # why it cannot be made


@dataclass(frozen=True)
class Twins:
    """One set of cells whose pictures are alike."""

    ids: tuple[str, ...]
    labels: tuple[str, ...]
    exact: bool  # equal pixel by pixel, all of them
    columns: tuple[str, ...]  # in which they differ


@dataclass(frozen=True)
class DataReport:
    """What `check_data` found. All but `montage` is plain and goes into JSON."""

    name: str
    kind: str
    cells: int  # that can be used
    classes: dict[str, int]
    groups: tuple[Group, ...]
    twins: tuple[Twins, ...]
    unreadable: tuple[Problem, ...]
    unit: str
    sizes: dict[str, int]  # "width x height": cells
    folds: tuple[FoldWay, ...]
    remarks: tuple[Remark, ...]
    montage: dict[str, list[Image.Image]]  # class: RGB tiles


@dataclass(frozen=True)
class _Cells:
    """Every cell that can be read, in the order of the source."""

    ids: np.ndarray  # (N,) str
    labels: np.ndarray  # (N,) str
    columns: dict[str, np.ndarray]  # (N,) str each
    sizes: np.ndarray  # (N, 2) px
    colours: np.ndarray  # (N, 3) mean of R, G, B
    contrasts: np.ndarray  # (N,)
    thumbnails: np.ndarray  # (N, SIDE, SIDE)
    digests: list[bytes]
    tiles: dict[int, Image.Image]


Loaded = list[tuple[str, dict[str, str], Callable[[], Image.Image], int]]  # id, values, image, line


def check_data(path: Path, *, field: float | None = None, progress: bool = True) -> DataReport:
    """Read every image of a manifest, a folder per class, a parquet file or a MedMNIST file, and report on them.

    Cells given by their centres are cut out as squares of `field` px. Raises ValueError for a source that is none, for
    centres without a field, and where no image can be read.
    """
    cells, problems, unit, kind = _loaded(path, field)
    read, unreadable = _read(cells, progress)
    problems = sorted(problems + unreadable)
    if not len(read.ids):
        told = f" ({unit} {problems[0][0]}: {problems[0][2]})" if problems else ""
        raise ValueError(f"data: {path} has no image that can be read{told}")
    equal, near = equal_pairs(read.digests), near_pairs(read.thumbnails, read.colours)
    exact = {row for pair in equal.tolist() for row in pair}
    sets = twins(np.concatenate([equal, near]), len(read.ids))
    groups = _groups(read)
    told_twins = tuple(_twins(read, rows, all(row in exact for row in rows.tolist())) for rows in sets)
    report = DataReport(
        name=path.absolute().parent.name if path.stem == "manifest" else path.absolute().stem,
        kind=kind,
        cells=len(read.ids),
        classes=dict(sorted(Counter(read.labels.tolist()).items())),
        groups=groups,
        twins=told_twins,
        unreadable=tuple(problems),
        unit=unit,
        sizes={f"{w} x {h}": n for (w, h), n in Counter(map(tuple, read.sizes.tolist())).most_common()},
        folds=_folds(read, sets),
        remarks=(),
        montage=_montage(read),
    )
    return replace(report, remarks=tuple(sorted(_remarks(report, read), key=lambda remark: _LEVELS[remark.level])))


_LEVELS = {"wrong": 0, "doubtful": 1, "note": 2}


# --- reading --------------------------------------------------------------------------------------------------------


def _loaded(path: Path, field: float | None) -> tuple[Loaded, list[Problem], str, str]:
    cells: Loaded
    if path.suffix.lower() == ".npz" and path.is_file():
        parts, numbers, ids = read_npz(path)
        images = [image for part in parts for image in part]
        names = dict(zip(np.unique(numbers).tolist(), medmnist_names(path, np.unique(numbers)), strict=True))
        cells = [
            (name, {"label": names[number], "split": name.split("-")[0]}, _from_array(image), row)
            for row, (name, number, image) in enumerate(zip(ids.tolist(), numbers.tolist(), images, strict=True), 1)
        ]
        return cells, [], "image", "MedMNIST file"
    table = read_table(path)
    rows, repeated = without_repeats(table.rows, table.unit)
    problems = [(line, name, reason) for line, name, reason, _ in table.bad] + repeated
    if rows and rows[0].centre is not None and (field is None or field < 1):
        raise ValueError(f"data: {path} gives centres; say with --field how many px around one make a patch")
    kinds = {"line": "manifest", "file": "folder per class", "row": "parquet file"}
    return (
        [(row.id, row.values, _from_row(row, field), row.line) for row in rows],
        problems,
        table.unit,
        kinds[table.unit],
    )


def _from_array(image: np.ndarray) -> Callable[[], Image.Image]:
    return lambda: Image.fromarray(image).convert("RGB")


def _from_row(row: Row, field: float | None) -> Callable[[], Image.Image]:
    def read() -> Image.Image:
        image, _ = read_image(row.image)
        if row.centre is None or field is None:
            return image
        if not (0 <= row.centre[0] < image.width and 0 <= row.centre[1] < image.height):
            raise ValueError(f"has its centre outside the image of {image.width} x {image.height} px")
        return Image.fromarray(cut_square(image, row.centre, field, max(1, round(field)))[0])

    return read


def _read(cells: Loaded, progress: bool) -> tuple[_Cells, list[Problem]]:
    shown = _shown([name for name, *_ in cells], [values["label"] for _, values, *_ in cells])

    def look(number: int) -> tuple[Any, ...] | str:
        try:
            image = cells[number][2]()
        except ValueError as error:
            return str(error)
        pixels = np.asarray(image, dtype=np.float32)
        tile = image.copy() if number in shown else None
        if tile is not None:
            tile.thumbnail((TILE, TILE), Image.Resampling.LANCZOS)
        return image.size, pixels.mean((0, 1)), float(pixels.mean(2).std()), thumbnail(image), digest(image), tile

    kept: list[int] = []
    seen: list[tuple[Any, ...]] = []
    problems: list[Problem] = []
    with (
        ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool,
        Progress(disable=not progress, transient=True) as bar,
    ):
        task = bar.add_task(f"reading {len(cells):,} images", total=len(cells))
        for number, told in enumerate(pool.map(look, range(len(cells)))):
            bar.advance(task)
            if isinstance(told, str):
                problems.append((cells[number][3], cells[number][0], told))
            else:
                kept.append(number)
                seen.append(told)
    names = list(cells[0][1]) if cells else []
    values = {name: np.array([cells[number][1][name] for number in kept], dtype=str) for name in names}
    sizes, colours, contrasts, thumbnails, digests, tiles = zip(*seen, strict=True) if seen else [()] * 6
    return _Cells(
        ids=np.array([cells[number][0] for number in kept], dtype=str),
        labels=values.get("label", np.empty(0, dtype=str)),
        columns=values,
        sizes=np.array(sizes, dtype=np.int64).reshape(-1, 2),
        colours=np.array(colours).reshape(-1, 3),
        contrasts=np.array(contrasts),
        thumbnails=np.array(thumbnails),
        digests=list(digests),
        tiles={row: tile for row, tile in enumerate(tiles) if tile is not None},
    ), problems


def _shown(ids: Sequence[str], labels: Sequence[str]) -> set[int]:
    """Rows of the cells that stand for their class, by the hash of their ids: no order of the rows decides."""
    taken: Counter[str] = Counter()
    shown = set()
    for row in sorted(range(len(ids)), key=lambda row: hashlib.sha256(os.fsencode(ids[row])).digest()):
        if taken[labels[row]] < MONTAGE:
            taken[labels[row]] += 1
            shown.add(row)
    return shown


def _montage(read: _Cells) -> dict[str, list[Image.Image]]:
    found: dict[str, list[Image.Image]] = {str(label): [] for label in np.unique(read.labels)}
    for row, tile in read.tiles.items():
        found[str(read.labels[row])].append(tile)
    return found


# --- groups and duplicates ------------------------------------------------------------------------------------------


def _group_columns(read: _Cells) -> list[str]:
    """Region, patient, and every other column of a few values that the label does not decide."""
    found = []
    for column, values in read.columns.items():
        if column in ("label", "path", "image", "id", "x", "y"):
            continue
        several = 1 < len(np.unique(values)) <= MOST_GROUPS
        decided = len(set(zip(read.labels.tolist(), values.tolist(), strict=True))) == len(np.unique(read.labels))
        if column in ("region", "patient") or (several and not decided):
            found.append(column)
    return found


def _groups(read: _Cells) -> tuple[Group, ...]:
    # What a class looks like is no shift: each cell is measured against the mean of its class.
    _, label = np.unique(read.labels, return_inverse=True)
    counts = np.bincount(label)
    means = np.stack([np.bincount(label, read.colours[:, c]) / counts for c in range(3)], 1)
    apart = read.colours - means[label]
    spread = np.sqrt((apart**2).mean(0)) + 1e-9
    groups = []
    for column in _group_columns(read):
        values = read.columns[column]
        for name in np.unique(values)[: MOST_GROUPS + 1]:
            inside = values == name
            red, green, blue = read.colours[inside].mean(0)
            other = apart[~inside].mean(0) if (~inside).any() else np.zeros(3)
            groups.append(
                Group(
                    column,
                    str(name),
                    int(inside.sum()),
                    len(np.unique(read.labels[inside])),
                    float(np.median(read.sizes[inside, 0])),
                    float(np.median(read.sizes[inside, 1])),
                    (float(red), float(green), float(blue)),
                    float(read.contrasts[inside].mean()),
                    float(np.abs((apart[inside].mean(0) - other) / spread).max()),
                )
            )
    return tuple(groups)


def _twins(read: _Cells, rows: np.ndarray, exact: bool) -> Twins:
    differ = [column for column in ("label", *_group_columns(read)) if len(np.unique(read.columns[column][rows])) > 1]
    return Twins(tuple(read.ids[rows].tolist()), tuple(read.labels[rows].tolist()), exact, tuple(differ))


# --- folds ----------------------------------------------------------------------------------------------------------


def _folds(read: _Cells, sets: list[np.ndarray]) -> tuple[FoldWay, ...]:
    twin = np.full(len(read.ids), -1)
    for number, rows in enumerate(sets):
        twin[rows] = number
    classes, labels = np.unique(read.labels, return_inverse=True)
    data = Dataset(
        name="",
        images=np.empty((0, 1, 1, 3), dtype=np.uint8),
        labels=labels,
        classes=tuple(classes.tolist()),
        ids=read.ids,
        region=read.columns.get("region"),
        patient=read.columns.get("patient"),
        maturity=None,
        fingerprint="",
        directory=Path(),
        notes=(),
    )
    groupings: tuple[Literal["region", "patient", "none"], ...] = ("region", "patient", "none")
    return tuple(_way(data, group, twin) for group in groupings if group == "none" or getattr(data, group) is not None)


def _way(data: Dataset, group: Literal["region", "patient", "none"], twin: np.ndarray) -> FoldWay:
    values = data.ids if group == "none" else getattr(data, group)
    groups = len(np.unique(values))
    most = int(np.bincount(data.labels).max()) if group == "none" else groups
    count = min(FOLDS, most)
    ways = cuts_of(groups, count) if group != "none" and groups <= MOST_GROUPS else None
    known = FoldWay(group, groups, most, ways, count, 0, None, None, 0.0)
    if count < 2:
        told = f"there is one {group}" if group != "none" else "no class has two cells"
        return replace(known, folds=0, refused=f"{told}: nothing can be kept apart")
    try:
        folds = make_folds(data, Folds(count=count, group=group))
    except ValueError as error:
        return replace(known, refused=str(error))
    leaks: dict[str, int] = {"twin": 0, "patient": 0, "region": 0}
    lacking = 0
    for fold in folds:
        rest = np.concatenate([fold.train, fold.validation])
        lacking += len(np.unique(data.labels[fold.test])) < len(data.classes)
        leaks["twin"] += int(np.isin(twin[fold.test], twin[rest][twin[rest] >= 0]).sum())
        for column in ("patient", "region"):
            if (owner := getattr(data, column)) is not None:
                leaks[column] += int(np.isin(owner[fold.test], owner[rest]).sum())
    share = {column: number / len(data.labels) for column, number in leaks.items()}
    return replace(
        known,
        lacking=lacking,
        patient=None if data.patient is None else share["patient"],
        region=None if data.region is None else share["region"],
        twin=share["twin"],
    )


# --- remarks --------------------------------------------------------------------------------------------------------


def _remarks(report: DataReport, read: _Cells) -> list[Remark]:
    found = []
    if report.unreadable:
        told = f"{report.unit}s that cannot be used: {len(report.unreadable)}"
        found.append(Remark("wrong", told, "training stops at them, or leaves them out with --skip-bad"))
    found += _about_classes(report)
    found += _about_twins(report)
    found += _about_groups(report, read)
    (size, most), *_ = report.sizes.items()
    if report.cells - most > SAME_SIZE * report.cells:
        told = f"the images have {len(report.sizes)} sizes, most often {size} ({most / report.cells:.0%})"
        consequence = (
            "one scale holds for all (data.field), so a smaller image is padded and a larger one cropped; if the sizes "
            "are magnifications instead, bring them to one before"
        )
        found.append(Remark("note", told, consequence))
    return found


def _about_classes(report: DataReport) -> list[Remark]:
    found = []
    least, most = (extreme(report.classes, key=report.classes.__getitem__) for extreme in (min, max))
    few = report.classes[least]
    if len(report.classes) < 2:
        found.append(Remark("wrong", f"every cell is {least}", "classification needs two classes"))
    elif few < FOLDS:
        scarce = [f"{label} ({count})" for label, count in report.classes.items() if count < FOLDS]
        told = f"fewer cells than {FOLDS} folds: {', '.join(scarce)}"
        found.append(Remark("doubtful", told, "some folds test no cell of them; drop or merge these classes"))
    if report.classes[most] >= RARE * few:
        told = f"{most} has {report.classes[most] / few:.0f} times the cells of {least} ({few})"
        tested = max(1.0, few / FOLDS)
        consequence = (
            f"macro-F1 counts both alike, and a fold tests {tested:.0f} or so of {least}, each of which moves its "
            f"recall by {100 / tested:.0f} %; try train.balance=sampler"
        )
        found.append(Remark("doubtful", told, consequence))
    return found


def _about_twins(report: DataReport) -> list[Remark]:
    found = []
    contradictory = [each for each in report.twins if "label" in each.columns]
    if contradictory:
        first = contradictory[0]
        told = (
            f"{len(contradictory)} sets of duplicates have more than one label, e.g. {first.ids[0]} ({first.labels[0]})"
        )
        other = next(row for row, label in enumerate(first.labels) if label != first.labels[0])
        told = (
            f"sets of duplicates with more than one label: {len(contradictory)}, e.g. {first.ids[0]} "
            f"({first.labels[0]}) and {first.ids[other]} ({first.labels[other]})"
        )
        found.append(Remark("wrong", told, "one of the labels is wrong, and no classifier can satisfy both"))
    for column in dict.fromkeys(group.column for group in report.groups):
        across = sum(column in each.columns for each in report.twins)
        if across:
            told = f"sets of duplicates in more than one {column}: {across}"
            found.append(Remark("wrong", told, f"folds by {column} would test on cells that were trained on"))
    if report.twins:
        cells = sum(len(each.ids) for each in report.twins)
        exact = sum(each.exact for each in report.twins)
        told = f"{cells} cells are duplicates of each other (sets: {len(report.twins)}, equal pixel by pixel: {exact})"
        found.append(
            Remark("doubtful", told, "folds by single cell test on cells that were trained on; keep one of each")
        )
    return found


def _about_groups(report: DataReport, read: _Cells) -> list[Remark]:
    found = []
    columns = dict.fromkeys(group.column for group in report.groups)
    if "region" not in columns and "patient" not in columns:
        told = "neither region nor patient is named"
        consequence = (
            "folds can only be by single cell, so cells of one smear stand in training and test, and scores are better "
            "than on new patients; name them in a manifest if they are known"
        )
        found.append(Remark("doubtful", told, consequence))
    elif "patient" not in columns:
        told = "no patient is named"
        found.append(Remark("doubtful", told, "one patient's regions may stand in training and test"))
    for column in columns:
        members = [group for group in report.groups if group.column == column]
        shifted = [group for group in members if group.shift > SHIFT]
        if shifted:
            # Of two groups each differs from the other; the smaller one is the odd one.
            odd = max(shifted, key=lambda group: (round(group.shift, 6), -group.cells))
            count = 1 if len(members) == 2 else len(shifted)
            told = (
                f"{count} of {len(members)} {column}s differ in colour from the rest, most {odd.name} "
                f"(by {odd.shift:.1f} sd of single cells)"
            )
            consequence = f"a stain shift: a score over folds that mix {column}s does not hold for a new {column}"
            found.append(Remark("doubtful", told, consequence))
        values = read.columns[column]
        if len(np.unique(values)) > 1:
            where = {str(label): np.unique(values[read.labels == label]) for label in np.unique(read.labels)}
            alone = [f"{label} ({names[0]})" for label, names in where.items() if len(names) == 1]
            if alone:
                told = f"only one {column} has cells of {', '.join(alone)}"
                consequence = (
                    f"folds by {column} never test them after training on them, and elsewhere the stain of the "
                    f"{column} may give them away"
                )
                found.append(Remark("doubtful", told, consequence))
    for way in report.folds:
        if way.refused:
            found.append(Remark("doubtful", f"no folds by {way.group}", way.refused))
        elif way.group != "none" and way.most < FOLDS:
            told = f"there are {way.most} {way.group}s"
            found.append(Remark("doubtful", told, f"at most {way.most} folds by {way.group}: set folds.count"))
    return found


def class_tiles(path: Path) -> dict[str, list[Image.Image]]:
    """A few RGB tiles of each class of a data set, at most TILE px wide, and an empty list for a class none of whose
    chosen cells can be read. Of a manifest with centres none are shown: it does not say how large a cell is."""
    if path.suffix.lower() == ".csv" and (rows := read_table(path).rows) and rows[0].centre is not None:
        return {label: [] for label in sorted({row.values["label"] for row in rows})}
    cells, *_ = _loaded(path, None)
    shown = sorted(_shown([name for name, *_ in cells], [values["label"] for _, values, *_ in cells]))
    found: dict[str, list[Image.Image]] = {label: [] for label in sorted({values["label"] for _, values, *_ in cells})}
    for row in shown:
        _, values, image, _ = cells[row]
        try:
            tile = image().copy()
        except ValueError:
            continue
        tile.thumbnail((TILE, TILE), Image.Resampling.LANCZOS)
        found[values["label"]].append(tile)
    return found
