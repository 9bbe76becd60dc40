"""`python -m guided data …`: check."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from guided.cli import OK, WRONG
from guided.data_check import DataReport, check_data
from guided.guide_file import write_text

MARKS = {"wrong": "[red]wrong[/red]", "doubtful": "[yellow]doubtful[/yellow]", "note": "[dim]note[/dim]"}
SHOWN = 10  # rows that cannot be used, and groups of a column


def add_data_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> list[argparse.ArgumentParser]:
    """Add `data` to the commands of `python -m guided`; returns the parsers below it."""
    told = "look at a data set before training on it"
    below = commands.add_parser("data", help=told, description=told).add_subparsers(
        dest="data_command", required=True, metavar="COMMAND"
    )
    told = "counts, duplicates and leakage, unreadable files, stain shift, possible folds"
    check = below.add_parser("check", help=told, description=told)
    check.add_argument("data", type=Path, help="manifest (.csv), folder per class, .parquet or MedMNIST file (.npz)")
    check.add_argument("--page", type=Path, metavar="FILE", help="write a page (.html) with a montage of each class")
    check.add_argument("--json", action="store_true", help="print the report as JSON")
    check.add_argument("--field", type=float, help="px around a centre that make a patch (manifests with x and y)")
    check.set_defaults(run=_check)
    return list(below.choices.values())


def _check(given: argparse.Namespace, console: Console) -> int:
    if given.page is not None and given.page.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"{given.page} is no name for a page; it must end in .html")
    report = check_data(given.data, field=given.field, progress=console.is_terminal and not given.json)
    if given.page is not None:
        from guided.app.data_page import data_page

        given.page.parent.mkdir(parents=True, exist_ok=True)
        write_text(given.page, data_page(report))
    if given.json:
        print(json.dumps(asdict(replace(report, montage={})), indent=1))
    else:
        _tell(report, console)
        if given.page is not None:
            console.print(f"[dim]page[/dim] {escape(str(given.page))}", soft_wrap=True)
    return WRONG if any(remark.level == "wrong" for remark in report.remarks) else OK


def _tell(report: DataReport, console: Console) -> None:
    console.print(
        f"[bold]{escape(report.name)}[/bold]  {report.cells:,} cells of {len(report.classes)} classes, a {report.kind}",
        soft_wrap=True,
    )
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name, justify in (("class", "left"), ("cells", "right"), ("share", "right")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for label, count in sorted(report.classes.items(), key=lambda item: -item[1]):
        table.add_row(escape(label), f"{count:,}", f"{count / report.cells:.1%}")
    console.print(table)
    _tell_groups(report, console)
    _tell_folds(report, console)
    for line, name, reason in report.unreadable[:SHOWN]:
        console.print(f"  {report.unit} {line}: {escape(name)}: {escape(reason)}", soft_wrap=True)
    if len(report.unreadable) > SHOWN:
        console.print(f"  … and {len(report.unreadable) - SHOWN} more")
    for remark in report.remarks:
        console.print(f"{MARKS[remark.level]} {escape(str(remark))}", soft_wrap=True)


def _tell_groups(report: DataReport, console: Console) -> None:
    if not report.groups:
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("group", "cells", "classes", "median size", "mean R G B", "shift"):
        table.add_column(name, justify="left" if name == "group" else "right")
    for column in dict.fromkeys(group.column for group in report.groups):
        members = [group for group in report.groups if group.column == column]
        for group in members[:SHOWN]:
            colour = " ".join(f"{value:.0f}" for value in group.colour)
            table.add_row(
                f"{escape(column)} {escape(group.name)}",
                f"{group.cells:,}",
                str(group.classes),
                f"{group.width:g} x {group.height:g}",
                colour,
                f"{group.shift:.1f}",
            )
        if len(members) > SHOWN:
            table.add_row(f"… and {len(members) - SHOWN} more")
    console.print(table)


def _tell_folds(report: DataReport, console: Console) -> None:
    def share(value: float | None) -> str:
        return "unknown" if value is None else f"{value:.1%}"

    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("folds by", no_wrap=True)
    for name in ("groups", "at most", "told for", "lack a class", "leaks: patient", "region", "duplicate"):
        table.add_column(name, justify="right")
    for way in report.folds:
        by = "single cell" if way.group == "none" else way.group
        if way.refused:
            table.add_row(by, f"{way.groups:,}", f"{way.most:,}", "none")
        else:
            shares = (share(value) for value in (way.patient, way.region, way.twin))
            table.add_row(by, f"{way.groups:,}", f"{way.most:,}", str(way.folds), str(way.lacking), *shares)
    console.print(table)
