"""A study's report: one page that stands alone, and the same numbers as Markdown, CSV, LaTeX, SVG and PDF."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from html import escape
from importlib.resources import files as package_files
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis import explorer, figures, pictures
from analysis.evidence import Evidence
from analysis.methods import methods, settings
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
from sweeps import schema


@dataclass(frozen=True)
class Drawing:
    """A figure to be: its file name, heading and caption, and how to draw it."""

    name: str
    title: str
    caption: str
    draw: Callable[[], Figure]


@dataclass(frozen=True)
class Drawn:
    """A figure that was drawn, as SVG; or why it was not."""

    drawing: Drawing
    svg: str
    problem: str


def write_report(
    comparison: Comparison,
    folder: Path,
    stability: pd.DataFrame | None = None,
    evidence: Evidence | None = None,
    claims: pd.DataFrame | None = None,
    searched: Comparison | None = None,
) -> Path:
    """Write report.html, report.md, figures/NAME.svg and .pdf, tables/NAME.csv and .tex into `folder`; returns the
    page. Files are replaced one by one, each whole.

    `stability` is the table of analysis.repeats, `evidence` what analysis.evidence read of the cells (without it there
    are no figures of cells and no explorer), `claims` the verdicts on the paper's claims (claim, statement, verdict,
    effect, low, high, n_folds, decides), `searched` the search that a judgement is of: its settings and validation
    scores are drawn beside the judgement, as what the choice was made from. A figure that cannot be drawn is told on
    the page with its reason.
    """
    for name in ("figures", "tables"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    drawn = [_draw(drawing, folder / "figures") for drawing in _drawings(comparison, evidence, searched)]
    tables = _tables(comparison, stability, evidence, claims)
    for table in tables:
        _write(folder / "tables" / f"{table.name}.tex", table.latex)
        _write(folder / "tables" / f"{table.name}.csv", table.csv)
    _write(folder / "report.md", _markdown(comparison, evidence, tables, drawn))
    _write(folder / "report.html", _page(comparison, evidence, tables, drawn))
    return folder / "report.html"


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".writing-{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def _draw(drawing: Drawing, folder: Path) -> Drawn:
    try:
        figure = drawing.draw()
    except ValueError as error:
        return Drawn(drawing, "", str(error))
    try:
        figures.save(figure, folder / f"{drawing.name}.svg")
        figures.save(figure, folder / f"{drawing.name}.pdf")
    finally:
        plt.close(figure)
    svg = (folder / f"{drawing.name}.svg").read_text(encoding="utf-8")
    return Drawn(drawing, svg[svg.index("<svg") :], "")


def _drawings(comparison: Comparison, evidence: Evidence | None, searched: Comparison | None) -> Iterator[Drawing]:
    """The figures that this study can have, in the order of the page."""
    study = comparison.study
    yield Drawing(
        "comparison",
        "Every variant against the baseline",
        figures.figure_caption(comparison),
        lambda: figures.comparison_figure(comparison),
    )
    yield Drawing("bars", "Scores", figures.bars_caption(comparison), lambda: figures.bars_figure(comparison))
    if len(study.variants) > 1:
        told = figures.pairs_caption(comparison)
        yield Drawing("folds", "Fold by fold", told, lambda: figures.pairs_figure(comparison))
    key = figures.axis_of(study)
    if key is not None:
        told = figures.curve_caption(comparison, key)
        yield Drawing("ablation", f"Over {key}", told, lambda: figures.curve_figure(comparison, key))
    if searched is not None:
        yield from _drawings_of_settings(searched)
    found = figures.settings_frame(comparison)
    if study.stage == schema.SEARCH or (len(found) >= figures.FEWEST_VARIANTS and len(found.columns) > 2):
        yield from _drawings_of_settings(comparison)
    if evidence is not None:
        yield from _drawings_of_cells(comparison, evidence)


def _drawings_of_settings(comparison: Comparison) -> Iterator[Drawing]:
    """Importance and parallel coordinates over the settings of a study's complete variants."""
    study, found = comparison.study, figures.settings_frame(comparison)
    where, beside = "", ""
    if study.stage == schema.SEARCH:
        where = " in the search, by validation"
        beside = (
            f" Validation scores, no result: {len(found)} of the {len(study.variants)} variants that the search asked "
            "for were trained on every fold and stand here; those that it stopped or dropped have no mean."
        )
    yield Drawing(
        "importance",
        f"Which settings matter{where}",
        f"Importance of each setting for being among the best tenth of {len(found)} variants (PED-ANOVA), by means "
        "over folds. It says where the good ones are, not that a setting causes it, and has no interval: with few "
        "variants it hangs on one or two." + beside,
        lambda: figures.importance_figure(figures.importances(found)),
    )
    yield Drawing(
        "parallel",
        f"Settings and scores{where}",
        "One line a variant, dark where its mean is high; absent: a setting that the variant does not have." + beside,
        lambda: figures.parallel_figure(found, figures.metric_name(study)),
    )


def _drawings_of_cells(comparison: Comparison, evidence: Evidence) -> Iterator[Drawing]:
    classes, thumbnails = evidence.classes, evidence.thumbnails
    some = figures.selection(comparison, len(evidence.folds)) if len(evidence.folds) > 1 else ""
    yield Drawing(
        "learning",
        "Learning curves",
        "Mean over fold runs and their range, by epoch; where fold runs stop early the mean is over the others. Epochs "
        "of the warm-up are the same training for all variants that have it." + some,
        lambda: figures.learning_figure(evidence.curves),
    )
    yield Drawing(
        "guide",
        "The guide",
        "The point of each class, lineages joined from immature (pale) to mature (dark); colours as in all figures.",
        lambda: pictures.guide_figure(classes),
    )
    if thumbnails is not None:
        yield Drawing(
            "samples",
            "Samples",
            "A cell of each class where the guide has its point; the first of its class in a seeded sample.",
            lambda: pictures.samples_figure(classes, thumbnails),
        )
    first = {label: next(iter(folds.values())) for label, folds in evidence.laid.items() if folds}
    panels = {label: (laid.files, laid.view) for label, laid in first.items()}
    yield Drawing(
        "embeddings",
        "Test embeddings",
        "Test cells of one fold in the colours of their true classes, over the regions of the predicted classes (the "
        "15 nearest cells); ellipses hold 90 % of a class if it is normally distributed; crosses are the guide's "
        "points. Each title says how the plane was made: longer embeddings by UMAP started at the guide's point of the "
        "predicted class, without labels, in a frame fitted to the guide." + some,
        lambda: pictures.embeddings_figure(classes, panels),
    )
    pooled = {
        label: tuple(np.concatenate([getattr(each, name) for each in folds.values()]) for name in ("true", "predicted"))
        for label, folds in evidence.folds.items()
        if folds
    }
    two = _two(comparison, list(pooled))
    yield Drawing(
        "confusion",
        "Confusion",
        "Rows are true classes, in per cent of their test cells over all folds, in the order of lineage and maturity; "
        "lines part the lineages. Shown: " + " and ".join(two) + ".",
        lambda: pictures.confusion_figure(classes, {label: pooled[label] for label in two}),  # type: ignore[misc]
    )
    yield Drawing(
        "risk",
        "Risk and coverage",
        "Share of mistakes among the cells the classifier is surest of (highest score less the second), averaged over "
        "folds." + some,
        lambda: pictures.risk_coverage_figure({k: list(folds.values()) for k, folds in evidence.folds.items()}),
    )
    if evidence.repeats:
        yield Drawing(
            "stability",
            "Stability over repeats",
            "Class means of one fold's test cells, a dot per seed, joined to their common mean; later seeds are "
            "brought onto the first by what the loss cannot see.",
            lambda: pictures.stability_figure(classes, evidence.repeats),
        )


def _two(comparison: Comparison, labels: list[str]) -> list[str]:
    """The baseline and the variant of the highest mean beside it, of those at hand."""
    means = comparison.frame.set_index("variant")["mean"].reindex(labels)
    others = means.drop(comparison.baseline, errors="ignore").dropna()
    best = [str(others.idxmax())] if len(others) else []
    return [label for label in (comparison.baseline, *best) if label in labels] or labels[:1]


# --- tables ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Table:
    """A table of the report in every form."""

    name: str
    title: str
    caption: str
    html: str
    markdown: str
    latex: str
    csv: str


def _tables(
    comparison: Comparison, stability: pd.DataFrame | None, evidence: Evidence | None, claims: pd.DataFrame | None
) -> list[Table]:
    study, found = comparison.study, []
    if claims is not None and len(claims):
        found.append(_table("claims", "The paper's claims on these data", _claims(claims), CLAIMS_CAPTION, claims))
    # The page lists the reasons for what is missing below, where there is room.
    narrow = shown(comparison).drop(columns="missing", errors="ignore")
    found.append(
        Table(
            "comparison",
            "Comparison",
            caption(comparison),
            str(narrow.to_html(index=False, border=0, classes="comparison")),
            render(comparison, "markdown"),
            render(comparison, "latex"),
            render(comparison, "csv"),
        )
    )
    if is_by_method(study):
        html, markdown, latex, csv = (
            render_by_method(comparison, form) for form in ("html", "markdown", "latex", "csv")
        )
        told = methods_caption(comparison)
        found.append(Table("methods", "Methods by embedding length", told, html, markdown, latex, csv))
    # Of many variants those that figures show; the files have them all.
    labels, some = figures.shown_rows(comparison)["variant"].tolist(), figures.selection(comparison)
    if study.stage == schema.SEARCH:
        return found  # what follows is of test cells, which a choice must not be made by
    beyond = beyond_f1(study)
    if len(beyond) and len(beyond.columns):
        text = _texts(beyond.loc[[label for label in labels if label in beyond.index]].reset_index())
        found.append(_table("beyond", "Beyond F1", text, BEYOND_CAPTION + some, beyond.reset_index()))
    if stability is not None and len(stability):
        text = _texts(stability)
        if not (stability["note"] != "").any():
            text = text.drop(columns="note")
        found.append(_table("stability", "Stability over repeats", text, STABILITY_CAPTION, stability))
    classes = per_class(study)
    if len(classes) and len(classes.columns):
        if evidence is not None:  # by lineage and maturity
            classes = classes.reindex([name for name in evidence.classes.names if name in classes.index])
        narrow = classes[[label for label in labels if label in classes.columns]]
        text = narrow.map(lambda value: "–" if pd.isna(value) else f"{value:.2f}").reset_index()
        told = "Mean over the folds whose test cells have the class." + some
        found.append(_table("classes", "F1 of each class", text, told, classes.reset_index()))
    return found


def _table(name: str, title: str, text: pd.DataFrame, told: str, numbers: pd.DataFrame) -> Table:
    html, markdown, latex = (rendered(text, told, form) for form in ("html", "markdown", "latex"))
    return Table(name, title, told, html, markdown, latex, numbers.to_csv(index=False))


CLAIMS_CAPTION = (
    "Each claim of Gräbel et al. judged on the recorded fold runs of this study alone. Effect: the difference that the "
    "claim is about, with its 95 % interval where it is a comparison over folds."
)


def _claims(claims: pd.DataFrame) -> pd.DataFrame:
    """The verdicts as a reader looks for them."""

    def effect(row: pd.Series) -> str:
        if pd.isna(row["effect"]):
            return "–"
        bounds = "" if pd.isna(row["low"]) else f" [{row['low']:+.3f}, {row['high']:+.3f}]"
        return f"{row['effect']:+.3f}{bounds}"

    return pd.DataFrame(
        {
            "claim": claims["claim"].astype(str),
            "statement": claims["statement"].astype(str),
            "verdict": claims["verdict"].astype(str),
            "effect [95 %]": [effect(row) for _, row in claims.iterrows()],
            "folds": ["–" if pd.isna(n) or n == 0 else f"{int(n)}" for n in claims["n_folds"]],
            "what would decide": claims["decides"].fillna("").astype(str),
        }
    )


def _facts(comparison: Comparison, evidence: Evidence | None) -> list[tuple[str, str]]:
    study = comparison.study
    finished = int((study.frame["status"] == FINISHED).sum())
    commit = study.git_commit[:12] + (" with uncommitted changes" if study.git_dirty else "")
    facts = [
        ("data", f"{study.data}, digest {study.fingerprint}"),
        ("fold runs", f"{finished} finished of {len(study.frame)} planned"),
        ("study", f"{study.id}, first started {study.started}"),
        ("code", commit or "not in a git checkout"),
        ("MLflow experiment", study.experiment),
    ]
    if evidence is not None and evidence.versions:
        facts.append(("versions", ", ".join(f"{name} {number}" for name, number in evidence.versions.items())))
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


def _texts(table: pd.DataFrame) -> pd.DataFrame:
    return table.map(
        lambda value: ("–" if pd.isna(value) else f"{value:.3f}") if isinstance(value, float) else str(value)
    )


# --- the page -------------------------------------------------------------------------------------------------------


def _page(comparison: Comparison, evidence: Evidence | None, tables: list[Table], drawn: list[Drawn]) -> str:
    study = comparison.study
    code = explorer.script() if evidence is not None else ""
    digest = base64.b64encode(hashlib.sha256(code.encode("utf-8")).digest()).decode("ascii")
    # Nothing is fetched, and no script runs but the one that came with the package, whatever names the data hold.
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    style = (package_files("analysis") / "page" / "report.css").read_text(encoding="utf-8")
    parts = [
        "<!doctype html>",
        f'<html lang="en"><head><meta charset="utf-8"><title>{escape(study.sweep)}</title>',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{style}</style></head><body>',
        f"<h1>{escape(study.sweep)} on {escape(study.data)}</h1>",
        f'<p class="question">{escape(study.question)}</p>',
        f'<p class="verdict">{escape(sentence(comparison))}</p>',
    ]
    missing, notes = _missing(comparison), _notes(comparison)
    if missing:
        parts.append(f'<p class="bad">{_lacking(comparison)}: <a href="#missing">which, and why</a>.</p>')
    links = {"tables": "tables", "figures": "figures"}
    links |= {"explorer": "embedding explorer"} if evidence is not None else {}
    links |= {"methods": "methods", "provenance": "provenance"}
    parts.append("<nav>" + "".join(f'<a href="#{to}">{name}</a>' for to, name in links.items()) + "</nav>")
    parts.append('<div id="tables">')
    for table in tables:
        parts.append(f"<h2>{escape(table.title)}</h2>")
        parts.append(f'<div class="wide" tabindex="0" role="region" aria-label="{escape(table.title)}">')
        parts.append(f"{_wrapping(table.html)}</div>")
        parts.append(f'<p class="caption">{escape(table.caption)}</p>')
    parts.append('</div><div id="figures"><h2>Figures</h2>')
    parts += [_figure(each) for each in drawn]
    parts.append("</div>")
    if evidence is not None:
        parts.append(f'<h2 id="explorer">Embedding explorer</h2>{explorer.MARKUP}')
    if missing:
        parts.append('<h2 class="bad" id="missing">Missing fold runs</h2>')
        parts += ["<ul>", *(f"<li>{escape(line)}</li>" for line in missing), "</ul>"]
    if notes:
        parts.append("<h2>Notes</h2>")
        parts += ["<ul>", *(f"<li>{escape(line)}</li>" for line in notes), "</ul>"]
    parts.append(f'<h2 id="methods">Methods</h2><p>{escape(methods(comparison))}</p>')
    every = settings(study).assign(varied=lambda frame: frame["varied"].map({True: "varied", False: ""}))
    parts.append("<details><summary>every setting</summary>")
    parts.append(f'<div class="wide" tabindex="0">{_wrapping(every.to_html(index=False, border=0))}</div></details>')
    facts = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in _facts(comparison, evidence))
    parts.append(f'<h2 id="provenance">Provenance</h2><dl class="facts">{facts}</dl>')
    if evidence is not None:
        content = explorer.as_json(explorer.payload(evidence, comparison.baseline))
        parts.append(f'<script type="application/json" id="cells">{content}</script><script>{code}</script>')
    parts.append("</body></html>\n")
    return "\n".join(parts)


LONG = 60  # characters of a table cell that may wrap


def _wrapping(html: str) -> str:
    """A table whose long cells wrap."""
    lines = []
    for line in html.split("\n"):
        inner = line.strip()
        long = inner.startswith("<td>") and len(inner) > LONG + len("<td></td>")
        lines.append(line.replace("<td>", '<td class="text">', 1) if long else line)
    return "\n".join(lines)


def _figure(drawn: Drawn) -> str:
    drawing = drawn.drawing
    if drawn.problem:
        return f'<h3>{escape(drawing.title)}</h3><p class="caption">Not drawn: {escape(drawn.problem)}.</p>'
    title = escape(drawing.title)
    return (
        f'<h3>{title}</h3><figure id="figure-{drawing.name}">'
        f'<div class="sheet" tabindex="0" role="img" aria-label="{title}">{drawn.svg}</div>'
        f"<figcaption>{escape(drawing.caption)}</figcaption></figure>"
    )


def _lacking(comparison: Comparison) -> str:
    status = comparison.study.frame["status"]
    counts = status[status != FINISHED].value_counts()
    return f"{len(status)} fold runs were planned; " + ", ".join(f"{count} {name}" for name, count in counts.items())


def _markdown(comparison: Comparison, evidence: Evidence | None, tables: list[Table], drawn: list[Drawn]) -> str:
    study = comparison.study
    parts = [f"# {study.sweep} on {study.data}", study.question, f"**{sentence(comparison)}**"]
    for table in tables:
        parts.append(f"## {table.title}\n\n{table.markdown.rstrip()}")
    for each in drawn:
        drawing = each.drawing
        shown_as = f"![{drawing.title}](figures/{drawing.name}.svg)\n\n{drawing.caption}"
        parts.append(f"## {drawing.title}\n\n" + (f"Not drawn: {each.problem}." if each.problem else shown_as))
    missing, notes = _missing(comparison), _notes(comparison)
    if missing:
        parts.append("## Missing fold runs\n\n" + "\n".join(f"- {line}" for line in missing))
    if notes:
        parts.append("## Notes\n\n" + "\n".join(f"- {line}" for line in notes))
    parts.append(f"## Methods\n\n{methods(comparison)}")
    told = "\n".join(f"- {row.setting}: {row.value}" for row in settings(study).itertuples())
    parts.append(f"### Every setting\n\n{told}")
    parts.append("## Provenance\n\n" + "\n".join(f"- {name}: {value}" for name, value in _facts(comparison, evidence)))
    return "\n\n".join(parts) + "\n"
