"""New cells through a model: which images, batch by batch, and where they lie in the guide."""

from __future__ import annotations

import argparse
import csv
import glob
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress

from guided.cli import OK
from guided.data import SUFFIXES, cut_square, read_image, to_square
from guided.model import FALSE_ALARMS, GuidedModel, load_model
from guided.train import EMBED_BATCH

CHUNK = 4 * EMBED_BATCH  # cells that are decoded while those before them are embedded


@dataclass(frozen=True)
class Cell:
    """A cell to look at: a whole image, or what lies around a centre (x, y) in px."""

    id: str
    path: Path
    centre: tuple[float, float] | None = None


TABLES = (".csv", ".parquet")
FIGURES = (".png", ".svg", ".pdf")

Bad = tuple[str, str]  # id, reason


class BadImages(ValueError):
    """Images that cannot be used, (id, reason) each."""

    def __init__(self, bad: Sequence[Bad]) -> None:
        self.bad = list(bad)
        shown = [f"  {name}: {reason}" for name, reason in self.bad[:20]]
        if len(self.bad) > 20:
            shown.append(f"  … and {len(self.bad) - 20} more")
        told = "\n".join(shown)
        super().__init__(
            f"{len(self.bad)} images cannot be used:\n{told}\nmend them, or go on without them with --skip-bad"
        )


def find_cells(arguments: Sequence[str]) -> list[Cell]:
    """The cells that files, folders (with those below them), patterns and manifests (.csv) name, each once.

    A manifest needs the column path, or image, x and y for cells given by their centres (id if they have names); its
    other columns are not read. Raises ValueError naming what is not there or holds no image.
    """
    found: dict[tuple[str, tuple[float, float] | None], Cell] = {}
    for argument in arguments:
        for cell in _cells_of(argument):
            found.setdefault((os.path.normpath(cell.path), cell.centre), cell)
    return list(found.values())


def _cells_of(argument: str) -> list[Cell]:
    path = Path(argument)
    if path.is_dir():
        inside = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
        if not inside:
            raise ValueError(f"the folder {path} holds no image ({', '.join(sorted(SUFFIXES))})")
        return [Cell(str(file), file) for file in inside]
    if path.is_file():
        return _manifest_cells(path) if path.suffix.lower() == ".csv" else [Cell(argument, path)]
    matches = sorted(glob.glob(argument, recursive=True)) if glob.has_magic(argument) else []
    if not matches:
        raise ValueError(f"there is no file, folder or pattern with matches {argument!r}")
    return [cell for match in matches for cell in _cells_of(match)]


def _manifest_cells(path: Path) -> list[Cell]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            columns = [column.strip() for column in reader.fieldnames or []]
            reader.fieldnames = columns
            rows = [(reader.line_num, row) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"manifest {path} cannot be read: {error}") from None
    if "path" not in columns and not {"image", "x", "y"} <= set(columns):
        raise ValueError(
            f"manifest {path} needs a column path, or image, x and y (its first line: {', '.join(columns)})"
        )
    if not rows:
        raise ValueError(f"manifest {path} has no rows")
    return [_manifest_cell(path, line, row) for line, row in rows]


def _manifest_cell(manifest: Path, line: int, row: dict[str, Any]) -> Cell:
    name = str(row.get("path") or row.get("image") or "").strip()
    if not name or "\0" in name:
        raise ValueError(f"manifest {manifest}, line {line}: names no image")
    if "path" in row:
        return Cell(name, manifest.parent / name)
    try:
        centre = (float(row["x"]), float(row["y"]))
    except (TypeError, ValueError):
        centre = (np.nan, np.nan)
    if not all(map(isfinite, centre)):
        raise ValueError(f"manifest {manifest}, line {line}: its centre ({row['x']}, {row['y']}) is no pair of numbers")
    identity = str(row.get("id") or f"{name}#{centre[0]:.10g},{centre[1]:.10g}").strip()
    return Cell(identity, manifest.parent / name, centre)


def squares(cells: Sequence[Cell], size: int, field: float, pool: ThreadPoolExecutor) -> Callable[[], Decoded]:
    """Begin to decode `cells` into squares of `size` px that show `field` px of their images; the call that is
    returned waits for the end. An image with several cells is decoded once."""
    pixels = np.empty((len(cells), size, size, 3), dtype=np.uint8)
    by_image: dict[Path, list[int]] = {}
    for number, cell in enumerate(cells):
        by_image.setdefault(cell.path, []).append(number)

    def decode(numbers: list[int]) -> list[tuple[int, str]]:
        try:
            image, _ = read_image(cells[numbers[0]].path)
        except ValueError as error:
            return [(number, str(error)) for number in numbers]
        bad = []
        for number in numbers:
            centre = cells[number].centre
            if centre is None:
                pixels[number] = to_square(image, size / field, size)
            elif 0 <= centre[0] < image.width and 0 <= centre[1] < image.height:
                pixels[number], _ = cut_square(image, centre, field, size)
            else:
                bad.append((number, f"has its centre outside the image of {image.width} x {image.height} px"))
        return bad

    jobs: list[Future[list[tuple[int, str]]]] = [pool.submit(decode, numbers) for numbers in by_image.values()]

    def wait() -> Decoded:
        reasons = dict(entry for job in jobs for entry in job.result())
        good = [number for number in range(len(cells)) if number not in reasons]
        bad = [(cells[number].id, reason) for number, reason in sorted(reasons.items())]
        return Decoded([cells[number] for number in good], pixels[good], bad)

    return wait


@dataclass(frozen=True)
class Decoded:
    """The cells of a chunk that could be decoded, their squares uint8 (B, size, size, 3), and the others."""

    cells: list[Cell]
    pixels: np.ndarray
    bad: list[Bad]


def embedded(
    model: GuidedModel, cells: Sequence[Cell], *, skip_bad: bool, advance: Callable[[int], None]
) -> Iterator[tuple[list[Cell], np.ndarray, list[Bad]]]:
    """Chunk by chunk the cells, their embedding (B, n), and those that were skipped; images are decoded while the
    network looks at those before them. `advance` hears how many cells are done.

    Raises BadImages with every unusable one at once unless `skip_bad`: then all are decoded before the first is told.
    """
    bad: list[Bad] = []
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        chunks = [cells[start : start + CHUNK] for start in range(0, len(cells), CHUNK)]
        coming = squares(chunks[0], model.size, model.field, pool)
        for number in range(len(chunks)):
            decoded = coming()
            if number + 1 < len(chunks):
                coming = squares(chunks[number + 1], model.size, model.field, pool)
            bad += decoded.bad
            advance(len(chunks[number]))
            if bad and not skip_bad:
                continue  # nothing will be told but what is bad
            parts = [
                model.embed(decoded.pixels[start : start + EMBED_BATCH])
                for start in range(0, len(decoded.pixels), EMBED_BATCH)
            ]
            empty = np.empty((0, model.anchors.shape[1]), dtype=np.float32)
            yield decoded.cells, np.concatenate([empty, *parts]), decoded.bad
    if bad and (not skip_bad or len(bad) == len(cells)):
        raise BadImages(bad)


def predict_cells(
    model: GuidedModel,
    cells: Sequence[Cell],
    *,
    skip_bad: bool = False,
    false_alarms: float = FALSE_ALARMS,
    advance: Callable[[int], None] = lambda cells: None,
) -> tuple[pd.DataFrame, list[Bad]]:
    """What `GuidedModel.predict` says of each cell, behind its id, and what was skipped."""
    model.calibration.threshold(false_alarms)  # refused before the first image, not after the last
    tables, skipped = [], []
    for chunk, embedding, bad in embedded(model, cells, skip_bad=skip_bad, advance=advance):
        skipped += bad
        if chunk:
            table = model.predict(embedding, false_alarms=false_alarms)
            table.insert(0, "id", [cell.id for cell in chunk])
            tables.append(table)
    return pd.concat(tables, ignore_index=True), skipped


def embed_cells(
    model: GuidedModel,
    cells: Sequence[Cell],
    *,
    skip_bad: bool = False,
    advance: Callable[[int], None] = lambda cells: None,
) -> tuple[pd.DataFrame, list[Bad]]:
    """The embedding of each cell, a column a component, behind its id, and what was skipped."""
    tables, skipped = [], []
    for chunk, embedding, bad in embedded(model, cells, skip_bad=skip_bad, advance=advance):
        table = pd.DataFrame(embedding, columns=[f"p{component}" for component in range(embedding.shape[1])])
        table.insert(0, "id", [cell.id for cell in chunk])
        tables.append(table)
        skipped += bad
    return pd.concat(tables, ignore_index=True), skipped


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Write a table as CSV or parquet, by the name of the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.lower() == ".parquet":
        table.to_parquet(path, index=False)
    else:
        table.to_csv(path, index=False, float_format="%.6g")


def draw_cells(table: pd.DataFrame, model: GuidedModel, path: Path) -> None:
    """The cells of `predict_cells` in the plane of the guide: coloured by lineage, fainter the less sure, a cross where
    they are unlike anything seen; the guide's points with their classes, joined along each lineage that has stages."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import, and only drawing needs it
    from matplotlib.figure import Figure

    guide = model.guide
    figure = Figure(figsize=(8, 8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    lineages = list(dict.fromkeys(guide.lineages))
    colours = {name: COLOURS[number % len(COLOURS)] for number, name in enumerate(lineages)}
    for name in lineages:
        cells = table[table["lineage"] == name]
        for unlike, marker in ((False, "o"), (True, "x")):
            some = cells[cells["unlike"] == unlike]
            if len(some):
                alpha = np.clip(some["confidence"], 0.15, 0.9)
                axes.scatter(
                    some["x"], some["y"], s=14, marker=marker, color=colours[name], alpha=alpha, linewidths=0.8
                )
        rows = [row for row, lineage in enumerate(guide.lineages) if lineage == name]
        rows.sort(key=lambda row: guide.stages[row])
        x, y = guide.points[rows].T
        if len({guide.stages[row] for row in rows}) > 1:  # without stages a line would join them in no order
            axes.plot(x, y, color=colours[name], linewidth=1.2, zorder=3)
        axes.scatter(x, y, s=60, color=colours[name], edgecolors="black", zorder=4, label=name)
    for label, point in zip(guide.classes, guide.points, strict=True):
        told = axes.annotate(label.replace("_", " "), point, (6, 6), textcoords="offset points", fontsize=8, zorder=5)
        told.set_bbox({"facecolor": "white", "alpha": 0.7, "edgecolor": "none", "pad": 1})
    axes.margins(0.2)  # room for the names
    axes.set_aspect("equal", adjustable="datalim")
    outside = int(table["unlike"].sum())
    axes.set_title(f"{len(table):,} cells in the guide {guide.name!r}; {outside:,} unlike anything seen (crosses)")
    axes.legend(title="lineage", fontsize=8, loc="best")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


# --- on the command line --------------------------------------------------------------------------------------------


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `embed` and `predict` to the commands of `python -m guided`."""
    for name, told in (
        ("predict", "class, confidence, place in the guide, lineage and maturity of new cells, by a refitted model"),
        ("embed", "the embedding of new cells by a refitted model"),
    ):
        command = commands.add_parser(name, help=told, description=told)
        command.add_argument(
            "images", nargs="+", metavar="IMAGES", help="images, folders, patterns, or manifests (.csv with path)"
        )
        command.add_argument(
            "--model", required=True, type=Path, metavar="FILE", help="written by `sweeps refit … --export FILE`"
        )
        command.add_argument("--out", type=Path, metavar="FILE", help=".csv or .parquet (default: CSV to the terminal)")
        command.add_argument("--skip-bad", action="store_true", help="go on without images that cannot be read")
        command.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: cpu")
        if name == "predict":
            command.add_argument("--figure", type=Path, metavar="FILE", help="draw where they lie (.png, .svg or .pdf)")
            command.add_argument(
                "--false-alarms",
                type=float,
                default=FALSE_ALARMS,
                metavar="SHARE",
                help="share of cells like those seen that may be called unlike them (default: %(default)s)",
            )


def run_command(given: argparse.Namespace, console: Console) -> int:
    """Run `embed` or `predict`. Tables go to the file or the standard output, everything said to `console`."""
    figure = given.figure if given.command == "predict" else None
    if given.out is not None and given.out.suffix.lower() not in TABLES:
        raise ValueError(f"{given.out} cannot be written: a table is {' or '.join(TABLES)}")
    if figure is not None and figure.suffix.lower() not in FIGURES:
        raise ValueError(f"{figure} cannot be drawn: a figure is {', '.join(FIGURES)}")
    if given.device == "cuda" and not torch.cuda.is_available():
        raise RuntimeError("device cuda was asked for, but this process sees no CUDA device; leave out --device")
    model = load_model(given.model, given.device)
    cells = find_cells(given.images)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(given.command, total=len(cells))
        advance = partial(bar.advance, task)
        if given.command == "embed":
            table, skipped = embed_cells(model, cells, skip_bad=given.skip_bad, advance=advance)
        else:
            alarms = given.false_alarms
            table, skipped = predict_cells(model, cells, skip_bad=given.skip_bad, false_alarms=alarms, advance=advance)
    for name, reason in skipped:
        console.print(f"[yellow]skipped[/yellow] {escape(name)}: {escape(reason)}", soft_wrap=True)
    if given.out is None:
        sys.stdout.write(table.to_csv(index=False, float_format="%.6g"))
    else:
        write_table(table, given.out)
        console.print(f"[dim]wrote {escape(str(given.out))}[/dim]", soft_wrap=True)
    if figure is not None:
        draw_cells(table, model, figure)
        console.print(f"[dim]wrote {escape(str(figure))}[/dim]", soft_wrap=True)
    told = f"{len(table):,} cells" + (f", {len(skipped):,} skipped" if skipped else "")
    if given.command == "predict":
        told += f"; {int(table['unlike'].sum()):,} unlike anything seen"
    console.print(told)
    return OK


# Wong (2011), told apart by colour-blind eyes too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999", "#000000")
