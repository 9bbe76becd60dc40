"""The command line of the analysis: table and report."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from mlflow.exceptions import MlflowException
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from analysis.across import across, next_patient, render_across, render_patients
from analysis.details import DETAILS, render_details
from analysis.runs import FINISHED, default_uri, load_study
from analysis.stats import ROPE
from analysis.tables import FORMATS, Comparison, caption, compare, render, render_by_method, sentence, shown
from guided.cli import INCOMPLETE, OK, add_common, guarded, program
from sweeps import schema

if TYPE_CHECKING:
    from analysis.evidence import Evidence

COMMAND = "guided-analysis"


def parser() -> argparse.ArgumentParser:
    """The arguments of `python -m analysis`."""
    top = argparse.ArgumentParser(
        prog=program("analysis", COMMAND),
        description="From recorded fold runs to a comparison that can be trusted. Changes nothing in MLflow but the "
        "report attached to a study.",
        epilog="Exit code 0: complete; 1: fold runs are missing (the table names them); 2: nothing could be read.",
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, told in (
        ("table", "print a study's comparison with its baseline"),
        (
            "claims",
            "print which of the paper's claims a study supports or contradicts, and what would decide the others",
        ),
        ("across", "print the variants of a sweep over all data sets on which it was run"),
        ("patience", "print what each patience of early stopping would have cost and changed in a study"),
        ("patients", "print how the trained networks compare on the next patient (bootstrap over patients)"),
        (
            "report",
            "print it, write page, figures and tables to OUT/reports/NAME and attach them to the study in MLflow",
        ),
    ):
        command = commands.add_parser(name, help=told, description=told)
        command.add_argument("name", help="name of a sweep, or the path of its file")
        command.add_argument("--out", default="runs", type=Path, help="folder the sweep wrote to (default: runs)")
        command.add_argument("--uri", help="MLflow tracking URI (default: MLFLOW_TRACKING_URI, else OUT/mlflow.db)")
        command.add_argument("--study", help="id of a study (default: the one started last)")
        command.add_argument(
            "--rope",
            type=float,
            default=ROPE,
            help="differences within ± ROPE are practically none (default: %(default)s)",
        )
        if name == "claims":
            command.add_argument("--format", choices=(*FORMATS, "json"), default="text", help="default: text")
        if name in ("table", "across", "patience", "patients"):
            command.add_argument("--format", choices=FORMATS, default="text", help="default: text")
        if name == "table":
            command.add_argument(
                "--of", choices=("comparison", *DETAILS), default="comparison", help="default: comparison"
            )
            command.add_argument("--axis", metavar="OPTION", help="along one option, e.g. embedding.length")
            command.add_argument(
                "--by-method", action="store_true", help="methods by length, beside the paper's Table 1"
            )
    return add_common(top, COMMAND, commands.choices.values())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    given = parser().parse_args(arguments)
    return guarded(lambda: _answer(given), debug=given.debug, also=(MlflowException,))


def _answer(given: argparse.Namespace) -> int:
    name = Path(given.name).stem if given.name.endswith((".yaml", ".yml")) else given.name
    uri = given.uri or default_uri(given.out)
    cache = given.out.absolute() / "cache" / "mlflow"
    if given.command == "across":
        sys.stdout.write(render_across(across(uri, name, cache), given.format))
        return OK
    study = load_study(uri, name, given.study, cache)
    if given.command == "claims":
        from analysis.claims import render_claims, verdicts  # with scikit-learn, slow to import

        sys.stdout.write(render_claims(study, verdicts(study, uri, given.rope), given.format, given.rope))
    elif given.command == "patience":
        from analysis.patience import curves_of, patience_table, render_patience

        sys.stdout.write(render_patience(study, patience_table(curves_of(study, uri)), given.format))
    elif given.command == "patients":
        sys.stdout.write(render_patients(study, next_patient(study, uri), given.format))
    else:
        comparison = compare(study, given.rope)
        if given.command == "report":
            _report(comparison, uri, given.out.absolute() / "reports" / name, cache)
        elif given.axis or given.of != "comparison":
            table = "axis" if given.axis else given.of
            sys.stdout.write(render_details(comparison, table, given.format, given.axis or ""))
        else:
            sys.stdout.write((render_by_method if given.by_method else render)(comparison, given.format))
    return OK if study.complete else INCOMPLETE


def _report(comparison: Comparison, uri: str, folder: Path, cache: Path) -> None:
    """Print the table, write the report into `folder` and attach it to the study."""
    console, study = Console(highlight=False), comparison.study
    _print(comparison, console)
    # With matplotlib and scikit-learn, slow to import.
    from analysis.artifacts import attach
    from analysis.report import write_report

    stability, evidence, claims, lacking = _cells(comparison, uri)
    # A judgement's report shows what the choice was made from, too.
    searched = compare(load_study(uri, study.sweep, study.judges, cache), comparison.rope) if study.judges else None
    page = write_report(comparison, folder, stability, evidence, claims, searched=searched)
    if lacking is not None:
        told = f"the report has no figures of cells ({escape(lacking)})"
        console.print(f"[yellow]note[/yellow] {told}", soft_wrap=True)
    problem = attach(uri, study, folder)
    console.print(f"[dim]report  {page}[/dim]", soft_wrap=True)
    if problem is not None:
        told = f"the report is not attached to the study in MLflow ({escape(problem)})"
        console.print(f"[yellow]note[/yellow] {told}", soft_wrap=True)


Cells = tuple[pd.DataFrame | None, "Evidence | None", pd.DataFrame | None, str | None]


def _cells(comparison: Comparison, uri: str) -> Cells:
    """What the report reads from the files of fold runs: stability over seeds, figures of cells, and the claims of the
    paper that this study tests; where files cannot be read, why: the comparison does not hang on them."""
    from analysis.claims import verdicts
    from analysis.evidence import gather
    from analysis.repeats import repeats

    if not (comparison.study.frame["status"] == FINISHED).any():
        return None, None, None, None
    if comparison.study.stage == schema.SEARCH:
        return None, None, None, "a choice is not made by test cells"
    claims = verdicts(comparison.study, uri, comparison.rope)  # which says itself what it could not read
    tested = claims[claims["verdict"] != "not tested"]
    try:
        return repeats(comparison.study, uri), gather(uri, comparison), tested, None
    except (ValueError, OSError, MlflowException) as error:
        return None, None, tested, str(error).strip().splitlines()[0]


# Left out one after the other where the terminal is too narrow; the page and the files have them all.
DISPENSABLE = ("s/fold run", "p", "folds")


def _print(comparison: Comparison, console: Console) -> None:
    """The table for a terminal: what is missing goes below it, for want of width."""
    frame = shown(comparison).drop(columns="missing", errors="ignore").rename(columns={"best epoch": "best\nepoch"})
    if console.is_terminal:
        for column in DISPENSABLE:
            if _width(frame) > console.width:
                frame = frame.drop(columns=column)
        if _width(frame) > console.width:
            frame["verdict"] = frame["verdict"].str.replace(" ", "\n")
    else:
        console.width = max(console.width, _width(frame))
    table = Table(box=None, header_style="bold", pad_edge=False, collapse_padding=True)
    for column in frame.columns:
        table.add_column(column, no_wrap=column != "variant", overflow="fold")
    styles = {
        "better": "green",
        "worse": "red",
        "incomplete": "yellow",
        "baseline": "bold",
        "practically equal": "cyan",
    }
    for entry in frame.to_dict("records"):
        table.add_row(
            *(escape(str(value)) for value in entry.values()), style=styles.get(entry["verdict"].replace("\n", " "), "")
        )
    console.print()
    console.print(table)
    for _, row in comparison.frame.iterrows():
        if row["missing"]:
            console.print(
                f"[yellow]missing[/yellow] {escape(row['variant'])}: {escape(row['missing'])}", soft_wrap=True
            )
    console.print(f"[dim]{escape(caption(comparison))}[/dim]")
    console.print(f"\n[bold]{escape(sentence(comparison))}[/bold]\n")


def _width(frame: pd.DataFrame) -> int:
    """Characters of a printed line, one between columns."""
    widest = [max(len(line) for text in (name, *frame[name]) for line in text.split("\n")) for name in frame.columns]
    return sum(widest) + len(widest) - 1


if __name__ == "__main__":
    sys.exit(main())
