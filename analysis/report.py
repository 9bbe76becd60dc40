"""A study's report: one page that stands alone, and the same numbers as Markdown, CSV and LaTeX."""

from __future__ import annotations

import io
import os
from html import escape
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from analysis.figures import comparison_figure, figure_caption, save
from analysis.runs import FINISHED
from analysis.tables import (
    Comparison,
    beyond_f1,
    caption,
    is_by_method,
    methods_caption,
    per_class,
    render,
    render_by_method,
    rendered,
    sentence,
    shown,
)

STYLE = """
:root { color-scheme: light; --ink: #1d1d1f; --faint: #6b6b70; --line: #d8d8dc; --accent: #0072B2; }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: #fff; max-width: 62rem; margin: 2.5rem auto;
  padding: 0 1.2rem; }
h1 { font-size: 1.5rem; margin: 0 0 .2rem; } h2 { font-size: 1.1rem; margin: 2.2rem 0 .6rem; }
.question { color: var(--faint); margin: 0 0 1.4rem; } .verdict { border-left: 4px solid var(--accent);
  padding: .3rem 0 .3rem 1rem; font-size: 1.08rem; margin: 0 0 1.6rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { font-weight: 600; white-space: normal; vertical-align: bottom; }
.caption, footer { color: var(--faint); font-size: .85rem; }
svg { max-width: 100%; min-width: 36rem; height: auto; } footer { margin-top: 3rem; }
.bad { color: #b3261e; }
"""


def write_report(comparison: Comparison, folder: Path, stability: pd.DataFrame | None = None) -> Path:
    """Write report.html, report.md, comparison.csv, comparison.tex, comparison.svg and comparison.pdf into `folder`,
    and methods.tex where variants differ in loss and length; returns the page. Files are replaced one by one, each
    whole. `stability` is the table of `analysis.repeats`, if it was made."""
    folder.mkdir(parents=True, exist_ok=True)
    figure = comparison_figure(comparison)
    try:
        drawing = io.StringIO()
        save_svg = folder / "comparison.svg"
        save(figure, save_svg)
        save(figure, folder / "comparison.pdf")
        drawing.write(save_svg.read_text(encoding="utf-8"))
    finally:
        plt.close(figure)
    svg = drawing.getvalue()
    texts = {
        "report.html": _page(comparison, svg[svg.index("<svg") :], stability),
        "report.md": _markdown(comparison, stability),
        "comparison.csv": render(comparison, "csv"),
        "comparison.tex": render(comparison, "latex"),
    }
    if is_by_method(comparison.study):
        texts["methods.tex"] = render_by_method(comparison, "latex")
    for name, text in texts.items():
        temporary = folder / f".writing-{os.getpid()}"
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, folder / name)
    return folder / "report.html"


def _facts(comparison: Comparison) -> list[tuple[str, str]]:
    study = comparison.study
    finished = int((study.frame["status"] == FINISHED).sum())
    commit = study.git_commit[:12] + (" with uncommitted changes" if study.git_dirty else "")
    facts = [
        ("data", f"{study.data} ({study.fingerprint})"),
        ("fold runs", f"{finished} finished of {len(study.frame)} planned"),
        ("study", f"{study.id}, first started {study.started}"),
        ("code", commit or "not in a git checkout"),
        ("MLflow experiment", study.experiment),
    ]
    if comparison.detectable is not None:
        told = f"{comparison.detectable:.3f} at the 5 % level with 80 % power, from the differences seen here"
        facts.append(("smallest difference this design detects", told))
    if comparison.needed is not None:
        told = f"{comparison.needed:.1f} times these, patients and regions as well as cells"
        facts.append((f"data needed to detect a difference of {comparison.rope:g}", told))
    return facts


def _notes(comparison: Comparison) -> list[str]:
    """Everything a reader must know of single fold runs; what holds for several is told once."""
    frame = comparison.study.frame
    told: dict[str, list[str]] = {}
    for _, row in frame.iterrows():
        notes = row["notes"] if isinstance(row.get("notes"), tuple) else ()
        for note in notes:
            told.setdefault(note, []).append(f"{row['variant']} fold {row['fold']}")
    lines = []
    for note, places in told.items():
        where = ", ".join(places) if len(places) <= 3 else f"{len(places)} fold runs"
        lines.append(f"{note} ({where})")
    return lines


def _missing(comparison: Comparison) -> list[str]:
    frame = comparison.frame
    return [f"{row['variant']}: {row['missing']}" for _, row in frame.iterrows() if row["missing"]]


def _class_table(comparison: Comparison) -> pd.DataFrame:
    table = per_class(comparison.study)
    return table.map(lambda value: "–" if pd.isna(value) else f"{value:.2f}").reset_index()


BEYOND_CAPTION = (
    "Means over fold runs, of test cells. Lineage right: share whose predicted class is of the right lineage. "
    "Mistakes: mean distance along the lineage tree, in stages, of cells that are wrong. Calibration error and "
    "risk-coverage area are of the confidence by distance to the class means of the training cells. Spread within a "
    "class in shares of the distance between classes. Straightness and stage order (Kendall) of the lineages' paths "
    "through their class means, 1 at best. True maturity: rank correlation, within lineages, of the maturity read off "
    "the embedding."
)
STABILITY_CAPTION = (
    "How far the class means of one fold's test cells move between seeds, in shares of the layout's size: as they are, "
    "and once what the loss cannot see is removed (none: it names positions; axes: shift, permutation and sign of the "
    "axes; isometries: shift, rotation, reflection). Unrelated layouts come near 1.4 before they are aligned. "
    "Distances: correlation of all distances between classes."
)


def _further(comparison: Comparison, stability: pd.DataFrame | None) -> list[tuple[str, pd.DataFrame, str]]:
    """Heading, table as text and caption of what stands beside F1."""
    found = []
    beyond = beyond_f1(comparison.study)
    if len(beyond) and len(beyond.columns):
        found.append(("Beyond F1", _texts(beyond.reset_index()), BEYOND_CAPTION))
    if stability is not None and len(stability):
        found.append(("Stability over repeats", _texts(stability), STABILITY_CAPTION))
    return found


def _texts(table: pd.DataFrame) -> pd.DataFrame:
    return table.map(
        lambda value: ("–" if pd.isna(value) else f"{value:.3f}") if isinstance(value, float) else str(value)
    )


def _html(comparison: Comparison) -> str:
    """The table without the reasons for what is missing: the page lists them below, where there is room."""
    table = shown(comparison).drop(columns="missing", errors="ignore")
    return str(table.to_html(index=False, border=0, classes="comparison"))


def _page(comparison: Comparison, svg: str, stability: pd.DataFrame | None) -> str:
    study = comparison.study
    parts = [
        "<!doctype html>",
        f'<html lang="en"><head><meta charset="utf-8"><title>{escape(study.sweep)}</title>',
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head><body>',
        f"<h1>{escape(study.sweep)} on {escape(study.data)}</h1>",
        f'<p class="question">{escape(study.question)}</p>',
        f'<p class="verdict">{escape(sentence(comparison))}</p>',
        f'<div class="wide">{_html(comparison)}</div>',
        f'<p class="caption">{escape(caption(comparison))}</p>',
        f'<div class="wide">{svg}</div>',
        f'<p class="caption">{escape(figure_caption(comparison))}</p>',
    ]
    if is_by_method(study):
        parts.append("<h2>Methods by embedding length</h2>")
        parts.append(f'<div class="wide">{render_by_method(comparison, "html")}</div>')
        parts.append(f'<p class="caption">{escape(methods_caption(comparison))}</p>')
    for heading, table, told in _further(comparison, stability):
        parts.append(f"<h2>{heading}</h2>")
        parts.append(f'<div class="wide">{table.to_html(index=False, border=0)}</div>')
        parts.append(f'<p class="caption">{escape(told)}</p>')
    missing, notes = _missing(comparison), _notes(comparison)
    if missing:
        parts.append('<h2 class="bad">Missing fold runs</h2>')
        parts += ["<ul>", *(f"<li>{escape(line)}</li>" for line in missing), "</ul>"]
    classes = _class_table(comparison)
    if len(classes):
        parts.append("<h2>F1 of each class</h2>")
        parts.append(f'<div class="wide">{classes.to_html(index=False, border=0)}</div>')
        parts.append('<p class="caption">Mean over the folds whose test cells have the class.</p>')
    if notes:
        parts.append("<h2>Notes</h2>")
        parts += ["<ul>", *(f"<li>{escape(line)}</li>" for line in notes), "</ul>"]
    facts = "<br>".join(f"{escape(name)}: {escape(value)}" for name, value in _facts(comparison))
    parts.append(f"<footer>{facts}</footer></body></html>\n")
    return "\n".join(parts)


def _markdown(comparison: Comparison, stability: pd.DataFrame | None) -> str:
    study = comparison.study
    parts = [
        f"# {study.sweep} on {study.data}",
        study.question,
        f"**{sentence(comparison)}**",
        render(comparison, "markdown").rstrip(),
        "![comparison](comparison.svg)",
        figure_caption(comparison),
    ]
    if is_by_method(study):
        parts.append("## Methods by embedding length\n\n" + render_by_method(comparison, "markdown").rstrip())
    for heading, table, told in _further(comparison, stability):
        parts.append(f"## {heading}\n\n" + rendered(table, told, "markdown").rstrip())
    missing, notes = _missing(comparison), _notes(comparison)
    if missing:
        parts.append("## Missing fold runs\n\n" + "\n".join(f"- {line}" for line in missing))
    if notes:
        parts.append("## Notes\n\n" + "\n".join(f"- {line}" for line in notes))
    parts.append("\n".join(f"- {name}: {value}" for name, value in _facts(comparison)))
    return "\n\n".join(parts) + "\n"
