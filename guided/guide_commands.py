"""`python -m guided guide …`: new, from-tree, check, plot, compare, edit."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from guided.cli import OK, WRONG
from guided.guide import (
    SHIPPED,
    Drawing,
    EmbeddingGuide,
    from_tree,
    own_guides,
    read_drawing,
    read_guide,
    shipped_guides,
)
from guided.guide_check import check_drawing, compare_guides
from guided.guide_file import guide_text, write_text
from guided.guide_plot import draw_guide
from guided.lineage import lay_out, read_lineages
from guided.sources import read_classes

SHOWN = 8  # pairs of classes that `compare` names


def add_guide_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> list[argparse.ArgumentParser]:
    """Add `guide` to the commands of `python -m guided`; returns the parsers below it."""
    told = "draw an embedding guide, look at it, check it"
    below = commands.add_parser("guide", help=told, description=told).add_subparsers(
        dest="guide_command", required=True, metavar="COMMAND"
    )

    def command(name: str, told: str, run: Callable[[argparse.Namespace, Console], int]) -> argparse.ArgumentParser:
        parser = below.add_parser(name, help=told, description=told)
        parser.set_defaults(run=run)
        return parser

    data = "manifest (.csv), folder per class, .parquet or MedMNIST file (.npz)"
    guide = "name of a guide in ./guides or of the package, or the path of a guide file"

    new = command("new", "a guide for the classes of a data set, to be moved into place", _new)
    new.add_argument("data", type=Path, help=data)
    _add_target(new, "the data set")

    tree = command("from-tree", "lay a guide out: angles by lineage, radius by maturity", _from_tree)
    tree.add_argument(
        "tree", type=Path, help="table (.csv: class, lineage, stage, parent), Newick (.nwk) or YAML tree (.yaml)"
    )
    _add_target(tree, "the tree")

    check = command("check", "what is wrong with a guide, and what that would do to training", _check)
    check.add_argument("guide", help=guide)
    check.add_argument("--data", type=Path, help=f"compare with the classes of a {data}")
    check.add_argument("--json", action="store_true", help="print the findings as JSON")

    plot = command("plot", "draw a guide", _plot)
    plot.add_argument("guide", help=guide)
    plot.add_argument("--out", type=Path, metavar="FILE", help=".png, .svg or .pdf (default: GUIDE.png)")

    compare = command("compare", "how two guides of the same classes differ", _compare)
    compare.add_argument("first", help=guide)
    compare.add_argument("second", help=guide)
    compare.add_argument("--json", action="store_true", help="print the comparison as JSON")

    edit = command("edit", "drag the points on a page in the browser, served on this machine only", _edit)
    edit.add_argument("guide", help=f"{guide}; one of the package is copied to ./guides first")
    edit.add_argument("--data", type=Path, help=f"show thumbnails of a {data}")
    edit.add_argument("--port", type=int, default=0, help="default: a free one")
    edit.add_argument("--no-browser", action="store_true", help="only print the address")
    return list(below.choices.values())


def _add_target(command: argparse.ArgumentParser, called: str) -> None:
    command.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help=f"default: guides/NAME.yaml, where sweeps find it; called like {called}",
    )
    command.add_argument("--force", action="store_true", help="overwrite a file that is there")


def find_guide(named: str) -> Path:
    """The file of a guide: by its name in ./guides or in the package, or by its path. Raises ValueError if none is."""
    if named in own_guides():
        return own_guides()[named]
    if named in shipped_guides():
        return SHIPPED / f"{named}.yaml"
    if not Path(named).is_file():
        known = ", ".join(dict.fromkeys([*own_guides(), *shipped_guides()]))
        raise ValueError(f"there is no guide {named!r}; give the path of a guide file or one of: {known}")
    return Path(named)


def new_guide(classes: list[str], name: str) -> EmbeddingGuide:
    """A first drawing of some classes: lineage and stage as a guide of the package has them, else a lineage of its own
    as mature as the most mature."""
    known: dict[str, tuple[str, float]] = {}
    for shipped in shipped_guides():
        guide = read_guide(SHIPPED / f"{shipped}.yaml")
        for label, lineage, stage in zip(guide.classes, guide.lineages, guide.stages, strict=True):
            known.setdefault(label, (lineage, stage))
    highest = max((known[label][1] for label in classes if label in known), default=1.0) or 1.0
    rows = [known.get(label, (label, highest)) for label in classes]
    return from_tree(classes, [lineage for lineage, _ in rows], [stage for _, stage in rows], name=name)


def _new(given: argparse.Namespace, console: Console) -> int:
    classes = read_classes(given.data)
    name = given.data.absolute().parent.name if given.data.stem == "manifest" else given.data.absolute().stem
    guide = new_guide(classes, given.out.stem if given.out else name)
    known = [label for label, lineage in zip(guide.classes, guide.lineages, strict=True) if lineage != label]
    comment = (
        f"A first drawing for the classes of {given.data.name}. Move the points: related lineages side by side,\n"
        "mature cells outward (`python -m guided guide edit`), and mend lineage and stage (0: immature)."
    )
    _write(given, guide, comment, console)
    if len(known) < len(classes):
        console.print(
            f"{len(classes) - len(known)} of {len(classes)} classes are known to no guide of the package and stand as "
            "lineages of their own; give them a lineage and a stage in the file",
            soft_wrap=True,
        )
    return OK


def _from_tree(given: argparse.Namespace, console: Console) -> int:
    guide = lay_out(read_lineages(given.tree), given.out.stem if given.out else given.tree.stem)
    _write(given, guide, f"Laid out from {given.tree.name}: angles by lineage, radius by stage.", console)
    return OK


def _write(given: argparse.Namespace, guide: EmbeddingGuide, comment: str, console: Console) -> None:
    path = given.out or Path("guides") / f"{guide.name}.yaml"
    if path.suffix.lower() not in (".yaml", ".yml"):
        raise ValueError(f"{path} is no name for a guide file; it must end in .yaml")
    if path.exists() and not given.force:
        raise ValueError(f"{path} is there already; give another --out, or --force to overwrite it")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, guide_text(guide, comment))
    console.print(f"wrote {escape(str(path))}: {len(guide.classes)} classes", soft_wrap=True)
    _tell(guide, console)


def _tell(drawing: EmbeddingGuide | Drawing, console: Console, wanted: list[str] | None = None) -> bool:
    """Print the findings on a drawing; returns whether training would refuse it."""
    findings = check_drawing(drawing, wanted)
    for finding in findings:
        mark = "[red]refused[/red]" if finding.level == "refused" else "[yellow]doubtful[/yellow]"
        console.print(f"{mark} {escape(finding.rule)}: {escape(str(finding))}", soft_wrap=True)
    return any(finding.level == "refused" for finding in findings)


def _check(given: argparse.Namespace, console: Console) -> int:
    drawing = read_drawing(find_guide(given.guide))
    wanted = None if given.data is None else read_classes(given.data)
    if given.json:
        findings = check_drawing(drawing, wanted)
        console.print_json(json.dumps([asdict(finding) for finding in findings]))
        return WRONG if any(finding.level == "refused" for finding in findings) else OK
    refused = _tell(drawing, console, wanted)
    if not check_drawing(drawing, wanted):
        against = "" if wanted is None else f", against the {len(wanted)} classes of the data"
        console.print(f"{escape(drawing.name)}: {len(drawing.classes)} classes{against}; nothing is wrong with it")
    return WRONG if refused else OK


def _plot(given: argparse.Namespace, console: Console) -> int:
    source = find_guide(given.guide)
    path = given.out or Path(f"{source.stem}.png")
    draw_guide(read_guide(source), path)
    console.print(f"wrote {escape(str(path))}", soft_wrap=True)
    return OK


def _compare(given: argparse.Namespace, console: Console) -> int:
    first, second = (read_guide(find_guide(named)) for named in (given.first, given.second))
    told = compare_guides(first, second)
    if given.json:
        console.print_json(json.dumps(asdict(told)))
        return OK
    console.print(f"{len(told.classes)} classes in both", soft_wrap=True)
    for name, only in ((first.name, told.only_first), (second.name, told.only_second)):
        if only:
            console.print(f"only in {escape(name)}: {escape(', '.join(only))}", soft_wrap=True)
    turned = ("mirrored, " if told.mirrored else "") + f"turned by {round(told.turned)}° "
    console.print(
        f"{escape(second.name)} {turned}and scaled by {1 / told.scale:.2f} lies on {escape(first.name)} but for "
        f"{told.disparity:.1%} of its spread (Procrustes)",
        soft_wrap=True,
    )
    console.print(
        f"rank correlation of the distances {told.rank_correlation:.3f}; of the L1 distances, which the losses see, "
        f"{told.rank_correlation_l1:.3f}",
        soft_wrap=True,
    )
    changes = [change for change in told.changes[:SHOWN] if abs(change.after - change.before) >= 0.005]
    if not changes:
        console.print("no distance between two classes differs")
        return OK
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("most changed pairs")
    for name in (first.name, second.name):
        table.add_column(f"in {escape(name)}", justify="right")
    for change in changes:
        table.add_row(escape(" – ".join(change.classes)), f"{change.before:.2f}", f"{change.after:.2f}")
    console.print(table)
    console.print("distances in units of the mean distance of each guide")
    return OK


def _edit(given: argparse.Namespace, console: Console) -> int:
    from guided.app.editor import serve_editor

    path = find_guide(given.guide)
    if path.parent == SHIPPED:
        copy = Path("guides") / path.name
        copy.parent.mkdir(exist_ok=True)
        write_text(copy, path.read_text(encoding="utf-8"))
        console.print(f"copied {escape(path.stem)} of the package to {escape(str(copy))}", soft_wrap=True)
        path = copy
    return serve_editor(path, given.data, port=given.port, show=not given.no_browser, console=console)
