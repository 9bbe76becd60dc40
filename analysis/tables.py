"""The comparison table: every variant against the baseline, with a valid interval or the reason why there is none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.paper import TABLE_1
from analysis.runs import FINISHED, GROWING, LENGTH_LIMIT, LOSS, WARM_UP, StudyRuns, VariantInfo
from analysis.stats import (
    ROPE,
    Difference,
    Posterior,
    average_seeds,
    corrected_t,
    data_needed,
    holm,
    posterior,
    smallest_detectable_difference,
    verdict,
)
from sweeps import schema

COLUMNS = (
    "variant",
    "mean",
    "sd",
    "folds",
    "difference",
    "low",
    "high",
    "p",
    "p_equal",
    "verdict",
    "best_epoch",
    "best_length",
    "seconds",
    "missing",
)
FORMATS = ("text", "markdown", "csv", "latex", "html")


@dataclass(frozen=True)
class Comparison:
    """A study's table.

    `frame` has one row per variant, in the order of the sweep file: variant, mean and sd (ddof 1) of the metric over
    folds with seeds averaged first, folds, difference to the baseline with its 95 % interval low..high (corrected
    resampled t), p (two-sided, Holm over all comparisons with the baseline), p_equal (posterior probability that the
    difference is practically none), verdict (baseline, one of analysis.stats.verdict, incomplete, not comparable),
    best_epoch (median, from 0), best_length (median of the effective length at the best epoch), seconds (mean of a
    fold run), missing (which fold runs there are not, and why). What is not known is NaN.
    """

    study: StudyRuns
    frame: pd.DataFrame
    rope: float  # differences within ± rope are practically none
    ratio: float | None  # n_test / n_train, averaged over fold runs
    detectable: float | None  # smallest difference that this design finds in 80 % of cases
    needed: float | None  # how many times the data a difference of rope would need

    @property
    def baseline(self) -> str:
        return self.study.baseline.label


def compare(study: StudyRuns, rope: float = ROPE) -> Comparison:
    """Compare every variant of a study with its baseline; differences within ± `rope` are practically none."""
    ratio = study.ratio
    scores = {variant.label: _scores(study, variant) for variant in study.variants}
    base = scores[study.baseline.label]
    found: dict[str, tuple[Difference, Posterior]] = {}
    for variant in study.variants:
        own = scores[variant.label]
        if study.stage == schema.SEARCH:
            break  # the folds that choose a winner flatter it: no difference there is a result
        if variant.baseline or own is None or base is None or own.keys() != base.keys() or len(own) < 2:
            continue
        assert ratio is not None  # there are scores, hence finished fold runs
        paired = [own[fold] - base[fold] for fold in base]
        found[variant.label] = corrected_t(paired, ratio), posterior(paired, ratio, rope)
    # The family is every comparison that was planned: one that could not be made counts as inconclusive.
    others = [variant.label for variant in study.variants if not variant.baseline]
    corrected = holm([found[label][0].p if label in found else 1.0 for label in others])
    p_values = dict(zip(others, corrected, strict=True))
    rows = [_row(study, variant, scores[variant.label], found, p_values) for variant in study.variants]
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    sd = _typical_sd(scores, base)
    if base is None or ratio is None or sd is None or study.stage == schema.SEARCH:
        return Comparison(study, frame, rope, ratio, None, None)
    design = (len(base), ratio, sd)
    return Comparison(study, frame, rope, ratio, smallest_detectable_difference(*design), data_needed(rope, *design))


def _of(study: StudyRuns, variant: VariantInfo) -> pd.DataFrame:
    return study.frame[study.frame["variant"] == variant.label]


def _scores(study: StudyRuns, variant: VariantInfo) -> dict[tuple[int, int], float] | None:
    """Score per (partition, fold), or None where a fold run is missing: a mean over the rest would be another thing."""
    rows = _of(study, variant)
    if (rows["status"] != FINISHED).any():
        return None
    places = zip(rows["partition"], rows["fold"], rows["seed"], strict=True)
    return average_seeds(dict(zip(places, rows[study.metric], strict=True)))


def _typical_sd(
    scores: dict[str, dict[tuple[int, int], float] | None], base: dict[tuple[int, int], float] | None
) -> float | None:
    """Median sd of the paired differences that were seen; variants that differ alike in every fold say nothing."""
    if base is None or len(base) < 2:
        return None
    seen = [
        float(np.std([own[fold] - base[fold] for fold in base], ddof=1))
        for own in scores.values()
        if own is not None and own is not base and own.keys() == base.keys()
    ]
    seen = [sd for sd in seen if sd > 1e-12]
    return float(np.median(seen)) if seen else None


def _row(
    study: StudyRuns,
    variant: VariantInfo,
    scores: dict[tuple[int, int], float] | None,
    found: dict[str, tuple[Difference, Posterior]],
    p_values: dict[str, float],
) -> dict[str, object]:
    rows = _of(study, variant)
    done = rows[rows["status"] == FINISHED]
    row: dict[str, object] = {"variant": variant.label, "folds": rows.groupby(["partition", "fold"]).ngroups}
    row["missing"] = "; ".join(missing_runs(rows))
    if scores is None:
        row["folds"] = done.groupby(["partition", "fold"]).ngroups
        row["verdict"] = "incomplete"
    else:
        values = list(scores.values())
        row["mean"] = float(np.mean(values))
        row["sd"] = float(np.std(values, ddof=1)) if len(values) > 1 else np.nan
        unjudged = "no result" if study.stage == schema.SEARCH else "not comparable"
        row["verdict"] = "baseline" if variant.baseline else unjudged
    if variant.label in found:
        (difference, equal), p = found[variant.label], p_values[variant.label]
        row |= {"difference": difference.mean, "low": difference.low, "high": difference.high, "p": p}
        row |= {"p_equal": equal.inside, "verdict": verdict(difference, p, equal)}
    if len(done):
        row["best_epoch"] = float(done[schema.BEST_EPOCH].median())
        row["best_length"] = float(done[schema.BEST_LENGTH].median())
        row["seconds"] = float(done[schema.SECONDS].mean())
    return row


def missing_runs(rows: pd.DataFrame) -> list[str]:
    """Fold runs that have no result, those of one kind and reason together."""
    grouped: dict[tuple[str, str], list[str]] = {}
    several = {column: rows[column].nunique() > 1 for column in ("partition", "seed")}
    for _, row in rows[rows["status"] != FINISHED].iterrows():
        place = f"fold {row['fold']}"
        place += f" partition {row['partition']}" if several["partition"] else ""
        place += f" seed {row['seed']}" if several["seed"] else ""
        grouped.setdefault((row["status"], row["reason"]), []).append(place)
    return [f"{', '.join(places)} {status}: {reason}" for (status, reason), places in grouped.items()]


def sentence(comparison: Comparison) -> str:
    """What the study says about its question, in a sentence or two: never more than the intervals carry."""
    frame, base = comparison.frame, comparison.baseline
    metric = "test macro-F1" if comparison.study.metric == schema.TEST_F1 else comparison.study.metric
    others = frame[frame["variant"] != base]
    if comparison.study.stage == schema.SEARCH:
        return _sentence_of_search(comparison)
    if (frame.loc[frame["variant"] == base, "verdict"] == "incomplete").any():
        return f"Not decided: the baseline {base} lacks fold runs, so nothing can be compared with it."
    told = []
    for word in ("better", "worse"):
        rows = others[others["verdict"] == word].sort_values("difference", ascending=word == "worse")
        if len(rows):
            listed = ", ".join(f"{row['variant']} ({interval(row)})" for _, row in rows.iterrows())
            verb = "is" if len(rows) == 1 else "are"
            told.append(f"{listed} {verb} {word} than the baseline {base} in {metric}.")
    equal = others[others["verdict"] == "practically equal"]["variant"].tolist()
    if equal:
        told.append(f"Practically equal to {base}, within ± {comparison.rope:g}: {', '.join(equal)}.")
    open_ones = others[others["verdict"] == "inconclusive"]["variant"].tolist()
    if open_ones:
        which = ", ".join(open_ones) if len(open_ones) <= 3 else f"{len(open_ones)} variants"
        which = "no variant can" if len(open_ones) == len(others) else f"{which} cannot"
        over = "locked groups" if comparison.study.locked else "folds"
        told.append(f"Inconclusive: over {_folds(frame)} {over} {which} be told from the baseline {base} in {metric}.")
        if comparison.detectable is not None:
            told.append(
                f"One comparison of this design finds a true difference of {comparison.detectable:.3f} in 80 % of "
                "cases, a smaller one less often: more data, not more folds, would decide."
            )
    unable = others[others["verdict"].isin(["incomplete", "not comparable"])]["variant"].tolist()
    if unable and len(comparison.study.locked) == 1 and (frame["verdict"] != "incomplete").all():
        told.append(
            f"Not decided: {', '.join(unable)} and the baseline {base} were judged on a single locked group, "
            f"{comparison.study.locked[0]}; lock two groups or more for an interval."
        )
    elif unable:
        told.append(f"Not compared, for lack of fold runs: {', '.join(unable)}.")
    same = others[others["verdict"] == "identical"]["variant"].tolist()
    if same:
        told.append(f"The same as the baseline in every fold: {', '.join(same)}.")
    if comparison.study.stage == schema.JUDGE and len(frame) == 1:
        return f"The search found nothing better than its baseline, {base}, which was judged alone."
    return " ".join(told) or f"There is only the baseline {base}."


def _sentence_of_search(comparison: Comparison) -> str:
    means = comparison.frame.set_index("variant")["mean"].dropna()
    if means.empty:
        return "Chosen by validation, no result: no variant of the search has been trained on every fold."
    return (
        f"Chosen by validation, no result: of {len(means)} variants trained on every fold {means.idxmax()} has the "
        f"highest mean validation macro-F1, {means.max():.3f}. The folds that chose it flatter it; the result is its "
        "judgement on groups that the search never saw (this table without --study)."
    )


def _folds(frame: pd.DataFrame) -> int:
    return int(frame["folds"].max())


def caption(comparison: Comparison) -> str:
    """How to read the table: what was averaged, and what the interval and p are."""
    study, frame = comparison.study, comparison.frame
    grouped = sorted({value for value in study.frame.get("grouped_by", pd.Series(dtype=str)).dropna() if value})
    by = ", ".join("single cell" if value == "none" else value for value in grouped)
    over = f"{_folds(frame)} folds" + (f" by {by}" if by else "")
    told = [f"{study.metric} on {study.data}: mean ± sd over {over}."]
    if study.stage == schema.SEARCH:
        told = [
            f"Chosen by validation, no result: {study.metric} on {study.data}, mean ± sd over {over}. The search chose "
            "by these scores; differences between them have no interval."
        ]
    if study.stage == schema.JUDGE:
        told = [_judged_on(comparison)]
    if comparison.ratio is not None and study.stage != schema.SEARCH and len(study.locked) != 1:
        told.append(
            f"Difference to {comparison.baseline}, fold by fold, with its 95 % interval by the corrected resampled t "
            f"(n_test/n_train = {comparison.ratio:.3f}), not widened for the number of comparisons; p after Holm over "
            f"{len(frame) - 1}; practically equal: within ± {comparison.rope:g} with 95 % posterior probability "
            "(correlated t)."
        )
    told.append("Best epoch, and effective length there of the length allowed: medians; epochs count from 0.")
    return " ".join(told)


def _judged_on(comparison: Comparison) -> str:
    study = comparison.study
    seeds = study.frame["seed"].nunique()
    told = (
        f"{study.metric} on {study.data}: the winner of a search, chosen by validation on other groups, and its "
        "baseline, each trained anew on all cells but those of one locked group and tested on that group, which the "
        f"search never saw: {', '.join(study.locked)} ({seeds} {'seed' if seeds == 1 else 'seeds'}, averaged first)."
    )
    if len(study.locked) == 1:
        return (
            f"{told} With a single locked group there is no interval: several seeds tell the luck of training, not "
            "how groups differ."
        )
    return f"{told} Mean ± sd and the interval are over these {len(study.locked)} groups, each of them a fold."


# --- numbers as a person reads them ---------------------------------------------------------------------------------


def score(row: pd.Series) -> str:
    """0.612 ± 0.021"""
    if pd.isna(row["mean"]):
        return "–"
    return f"{row['mean']:.3f}" + ("" if pd.isna(row["sd"]) else f" ± {row['sd']:.3f}")


def interval(row: pd.Series) -> str:
    """+0.012 [-0.020, +0.044]"""
    if pd.isna(row["difference"]):
        return "–"
    return f"{row['difference']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]"


def shown(comparison: Comparison) -> pd.DataFrame:
    """The table as text, a column for each thing a reader looks for."""
    frame, metric = comparison.frame, comparison.study.metric

    def number(value: float, form: str) -> str:
        return "–" if pd.isna(value) else format(value, form)

    columns = {
        "variant": frame["variant"].tolist(),
        "test macro-F1" if metric == schema.TEST_F1 else metric: [score(row) for _, row in frame.iterrows()],
        "folds": [str(folds) for folds in frame["folds"]],
        "difference [95 %]": [interval(row) for _, row in frame.iterrows()],
        "p": [number(p, ".3f") for p in frame["p"]],
        "verdict": frame["verdict"].tolist(),
        "best epoch": [number(value, "g") for value in frame["best_epoch"]],
        "length": [
            _length(best, variant)
            for best, variant in zip(frame["best_length"], comparison.study.variants, strict=True)
        ],
        "s/fold run": [number(value, ".1f") for value in frame["seconds"]],
    }
    if (frame["missing"] != "").any():
        columns["missing"] = frame["missing"].tolist()
    return pd.DataFrame(columns)


def _length(best: float, variant: VariantInfo) -> str:
    """14/64: effective at the best epoch, and allowed."""
    return "–" if pd.isna(best) else f"{best:g}/{variant.parameters[LENGTH_LIMIT]}"


# --- method by length, the shape of the paper's Table 1 --------------------------------------------------------------

MARKS = {"better": " ↑", "worse": " ↓", "practically equal": " ≈", "identical": " =", "baseline": " (baseline)"}


def is_by_method(study: StudyRuns) -> bool:
    """Whether the variants differ in loss and in embedding length, so that they make a table of methods."""
    return all(len({variant.parameters[key] for variant in study.variants}) > 1 for key in (LOSS, LENGTH_LIMIT))


def by_method(comparison: Comparison) -> pd.DataFrame:
    """A row per variant: method, length, mean, sd, verdict as in `comparison.frame`, paper_mean and paper_sd of the
    paper's Table 1 (NaN where the paper has no such cell).

    A method is a loss with what else sets variants apart beside the length. Raises ValueError where the variants do
    not differ in loss and length.
    """
    study = comparison.study
    if not is_by_method(study):
        raise ValueError(f"the variants of {study.sweep} do not differ in both {LOSS} and {LENGTH_LIMIT}")
    rows: list[dict[str, object]] = []
    for variant, (_, row) in zip(study.variants, comparison.frame.iterrows(), strict=True):
        length = int(variant.parameters[LENGTH_LIMIT])
        mean, sd = _in_paper(variant).get(length, (np.nan, np.nan))
        rows.append(
            {"method": _method(variant), "length": length}
            | {key: row[key] for key in ("variant", "mean", "sd", "verdict")}
            | {"paper_mean": mean, "paper_sd": sd}
        )
    return pd.DataFrame(rows)


def _method(variant: VariantInfo) -> str:
    """ce, ce growing, triplet growing without warm-up, guide_umap growing lowpass=0.6."""
    growing, warm_up = (variant.parameters[key] == "true" for key in (GROWING, WARM_UP))
    words = [variant.parameters[LOSS]]
    if GROWING in variant.varied or WARM_UP in variant.varied:
        words += ["growing"] * growing
        words += ["without warm-up"] * (growing and not warm_up) + ["with warm-up"] * (warm_up and not growing)
    told = (LOSS, LENGTH_LIMIT, GROWING, WARM_UP)
    words += [f"{key.rsplit('.', 1)[-1]}={value}" for key, value in variant.varied.items() if key not in told]
    return " ".join(words)


def _in_paper(variant: VariantInfo) -> dict[int, tuple[float, float]]:
    """The paper's row of a variant's method. There growing and warm-up go together; guide2D knows no warm-up."""
    loss, growing, warm_up = variant.parameters[LOSS], variant.parameters[GROWING], variant.parameters[WARM_UP]
    if growing != warm_up and loss != "guide2d":
        return {}
    return TABLE_1.get((loss, growing == "true"), {})


def shown_by_method(comparison: Comparison) -> pd.DataFrame:
    """`by_method` as text: methods down, lengths across, ours above the paper's, marked by verdict."""
    frame = by_method(comparison)
    lengths = sorted(frame["length"].unique())
    rows: list[dict[str, str]] = []
    for method, cells in frame.groupby("method", sort=False):
        doubled = cells[cells["length"].duplicated()]
        if len(doubled):
            raise ValueError(f"two variants are {method} at length {doubled.iloc[0]['length']}; tell them apart")
        here, paper = {"method": str(method), "from": "here"}, {"method": "", "from": "paper"}
        for length in lengths:
            here[str(length)] = paper[str(length)] = ""
        for _, cell in cells.iterrows():
            label = str(cell["length"])
            mark = MARKS.get(cell["verdict"], "")
            here[label] = "incomplete" if pd.isna(cell["mean"]) else score(cell) + mark
            if not pd.isna(cell["paper_mean"]):
                paper[label] = f"{cell['paper_mean']:.3f} ± {cell['paper_sd']:.3f}"
        rows += [here, paper] if any(paper[str(length)] for length in lengths) else [here]
    return pd.DataFrame(rows)


def methods_caption(comparison: Comparison) -> str:
    """How to read the table of methods."""
    return (
        f"{comparison.study.metric} by embedding length: mean ± sd over {_folds(comparison.frame)} folds on "
        f"{comparison.study.data}; ↑ better, ↓ worse than the baseline, ≈ practically equal, = identical to "
        "it, no mark: not decided. Paper: Table 1 of Gräbel et al., on their data and folds: the order can be "
        "compared, the values cannot."
    )


def per_class(study: StudyRuns) -> pd.DataFrame:
    """Mean over finished fold runs of the F1 of each class (rows), per variant (columns). A class that a fold's test
    cells lack is left out of that fold's mean; a variant with missing fold runs has no column."""
    prefix = schema.TEST_F1_CLASS
    names = [column for column in study.frame.columns if column.startswith(prefix)]
    complete = [variant for variant in study.variants if _scores(study, variant) is not None]
    means = {variant.label: _of(study, variant)[names].mean() for variant in complete}
    table = pd.DataFrame(means, index=names)
    table.index = pd.Index([name.removeprefix(prefix) for name in names], name="class")
    return table.sort_index()


# What a fold run records beyond F1 (guided.metrics, guided.geometry), as columns of `beyond_f1`.
BEYOND_F1 = {
    schema.TEST_ACCURACY: "accuracy",
    schema.TEST_F1_HEAD: "F1 of the head",
    schema.TEST_LINEAGE_ACCURACY: "lineage right",
    schema.TEST_MISTAKE_SEVERITY: "mistakes, stages",
    schema.TEST_ECE: "calibration error",
    schema.TEST_AURC: "risk-coverage",
    schema.SPREAD: "spread",
    schema.EFFECTIVE_RANK: "effective rank",
    schema.SILHOUETTE: "silhouette",
    schema.STRAIGHTNESS: "straightness",
    schema.STAGE_ORDER: "stage order",
    schema.TRUE_MATURITY_CORRELATION: "true maturity",
}


def beyond_f1(study: StudyRuns) -> pd.DataFrame:
    """Means over fold runs of what is recorded beyond F1 (columns, named as a reader would), per variant (rows).

    A fold run in which a metric is undefined is left out of its mean; a variant with missing fold runs has no row.
    """
    known = [key for key in BEYOND_F1 if key in study.frame.columns]
    complete = [variant.label for variant in study.variants if _scores(study, variant) is not None]
    table = study.frame.groupby("variant")[known].mean().reindex(complete).rename(columns=BEYOND_F1)
    return table.dropna(axis=1, how="all")


def render(comparison: Comparison, form: str) -> str:
    """The table in one of FORMATS; csv has full precision and one row per variant."""
    if form == "csv":
        return comparison.frame.to_csv(index=False)
    return rendered(shown(comparison), caption(comparison), form)


def render_by_method(comparison: Comparison, form: str) -> str:
    """The table of methods in one of FORMATS; csv is `by_method` at full precision."""
    if form == "csv":
        return by_method(comparison).to_csv(index=False)
    return rendered(shown_by_method(comparison), methods_caption(comparison), form)


def rendered(table: pd.DataFrame, told: str, form: str) -> str:
    """A table of texts and its caption in one of FORMATS but csv."""
    if form == "text":
        return f"{_aligned(table)}\n\n{told}\n"
    if form == "markdown":
        lines = [_markdown(list(table.columns)), _markdown(["---"] * len(table.columns))]
        lines += [_markdown(row) for row in table.itertuples(index=False)]
        return "\n".join(lines) + f"\n\n{told}\n"
    if form == "latex":
        return _latex(table, told)
    if form == "html":
        return table.to_html(index=False, border=0, classes="comparison")
    raise ValueError(f"no table format {form!r}; there are {', '.join(FORMATS)}")


def _aligned(table: pd.DataFrame) -> str:
    rows = [list(table.columns), *table.astype(str).values.tolist()]
    widths = [max(len(row[column]) for row in rows) for column in range(len(table.columns))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _markdown(cells: Sequence[object]) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


LATEX = str.maketrans(
    {
        "%": r"\%",
        "_": r"\_",
        "&": r"\&",
        "#": r"\#",
        "$": r"\$",
        "{": r"\{",
        "}": r"\}",
        "\\": r"\textbackslash{}",
        "±": r"$\pm$",
        "↑": r"$\uparrow$",
        "↓": r"$\downarrow$",
        "≈": r"$\approx$",
        "–": "--",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
    }
)


def _latex(table: pd.DataFrame, told: str) -> str:
    """A table for the package booktabs."""
    body = [" & ".join(str(cell).translate(LATEX) for cell in row) + r" \\" for row in table.itertuples(index=False)]
    return "\n".join(
        [
            r"\begin{table}",
            rf"\caption{{{told.translate(LATEX)}}}",
            rf"\begin{{tabular}}{{{'l' * len(table.columns)}}}",
            r"\toprule",
            " & ".join(column.translate(LATEX) for column in table.columns) + r" \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )
