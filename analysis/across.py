"""Answers beyond one study: over all data sets of a sweep, and for the next patient."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.runs import FINISHED, StudyRuns, load_predictions, load_study, newest_studies
from analysis.stats import ALPHA, cluster_bootstrap, friedman, holm, wilcoxon
from analysis.tables import compare, interval, rendered
from sweeps import schema


@dataclass(frozen=True)
class Across:
    """A sweep over D data sets. `frame` has a row per variant: variant, data_sets (of those where it and the baseline
    are whole), difference (mean over data sets of its mean less the baseline's), better_on, p (Wilcoxon over data
    sets, Holm over the variants; NaN where refused), note (why). `scores` are the means, data sets x variants."""

    sweep: str
    baseline: str
    frame: pd.DataFrame
    scores: pd.DataFrame
    friedman: float | None  # p that all variants are alike
    refused: str  # why there is no Friedman test


def across(uri: str, sweep: str, cache: Path | None = None, alpha: float = ALPHA) -> Across:
    """Compare the variants of a sweep over the newest study of each data set (Demšar 2006).

    Raises ValueError where the studies differ in their baseline, and as load_study.
    """
    studies = [load_study(uri, sweep, study, cache) for study in newest_studies(uri, sweep)]
    baselines = sorted({study.baseline.label for study in studies})
    if len(baselines) != 1:
        raise ValueError(f"the studies of {sweep} have different baselines: {', '.join(baselines)}")
    baseline = baselines[0]
    columns = list(dict.fromkeys(variant.label for study in studies for variant in study.variants))
    names = [study.data for study in studies]
    if len(set(names)) < len(names):  # two data sets of one name
        names = [f"{study.data} ({study.fingerprint})" for study in studies]
    means = [compare(study).frame.set_index("variant")["mean"] for study in studies]
    scores = pd.DataFrame(means, index=pd.Index(names, name="data")).reindex(columns=columns)
    rows: list[dict[str, object]] = []
    p_values: list[float] = []
    for label in columns:
        if label == baseline:
            continue
        differences = (scores[label] - scores[baseline]).dropna()
        row: dict[str, object] = {"variant": label, "data_sets": len(differences), "note": ""}
        row |= {"difference": differences.mean(), "better_on": int((differences > 0).sum())}
        try:
            row["p"] = p = wilcoxon(differences.tolist(), alpha)
        except ValueError as refusal:
            row["note"], p = str(refusal), 1.0
        p_values.append(p)
        rows.append(row)
    for row, p in zip(rows, holm(p_values), strict=True):
        if "p" in row:
            row["p"] = p
    frame = pd.DataFrame(rows, columns=["variant", "data_sets", "difference", "better_on", "p", "note"])
    try:
        return Across(sweep, baseline, frame, scores, friedman(scores.dropna().to_numpy(), alpha), "")
    except ValueError as refusal:
        return Across(sweep, baseline, frame, scores, None, str(refusal))


def render_across(found: Across, form: str) -> str:
    """`Across` in one of analysis.tables.FORMATS; csv is the frame at full precision."""
    if form == "csv":
        return found.frame.to_csv(index=False)
    text = found.scores.T.map(lambda value: "–" if pd.isna(value) else f"{value:.3f}")
    own = found.frame.set_index("variant").reindex(text.index)
    text["difference"] = ["–" if pd.isna(value) else f"{value:+.3f}" for value in own["difference"]]
    text["p"] = ["–" if pd.isna(value) else f"{value:.3f}" for value in own["p"].astype(float)]
    notes = "; ".join(dict.fromkeys(note for note in found.frame["note"] if note))
    together = (
        f"Friedman p = {found.friedman:.3f}." if found.friedman is not None else f"No Friedman test: {found.refused}."
    )
    told = (
        f"{found.sweep} over {len(found.scores)} data sets: means, their difference to {found.baseline}, and p of "
        f"Wilcoxon's signed-rank test over data sets after Holm over {len(found.frame)}. {together}"
    )
    told += f" No Wilcoxon test: {notes}." if notes else ""
    return rendered(text.reset_index(names="variant"), told, form)


def next_patient(study: StudyRuns, uri: str) -> pd.DataFrame:
    """How the trained networks of each variant compare with the baseline's on the next patient, a row per variant:
    variant, grouped_by (patient, or region where patients are not known), groups, difference in macro-F1 of the pooled
    test predictions, low, high (cluster bootstrap), note (why there is none).

    Of the first partition and seed. Records that hold no region or patient are told so: whose a cell is is not guessed.
    """
    base = _pooled(study, uri, study.baseline.label)
    rows = []
    for variant in study.variants:
        if variant.baseline:
            continue
        row: dict[str, object] = {"variant": variant.label, "grouped_by": "", "note": ""}
        rows.append(row)
        own = _pooled(study, uri, variant.label)
        if isinstance(base, str) or isinstance(own, str):
            row["note"] = base if isinstance(base, str) else str(own)
            continue
        by = next(
            (name for name in (schema.PATIENT, schema.REGION) if name in base.columns and name in own.columns), ""
        )
        if not by:
            row["note"] = "the predictions were recorded without region and patient; fold runs trained anew have them"
            continue
        if not base.index.equals(own.index):
            row["note"] = f"{variant.label} and {study.baseline.label} were not tested on the same cells"
            continue
        names = sorted({*base["true"], *base["predicted"], *own["predicted"]})
        number = {name: place for place, name in enumerate(names)}
        true, first, second = (
            each.map(number).to_numpy(np.int64) for each in (base["true"], own["predicted"], base["predicted"])
        )
        try:
            found = cluster_bootstrap(true, first, second, base[by].to_numpy(dtype=str), len(names))
        except ValueError as refusal:
            row |= {"grouped_by": by, "groups": base[by].nunique(), "note": str(refusal)}
            continue
        row |= {
            "grouped_by": by,
            "groups": found.groups,
            "difference": found.mean,
            "low": found.low,
            "high": found.high,
        }
    return pd.DataFrame(rows, columns=["variant", "grouped_by", "groups", "difference", "low", "high", "note"])


def render_patients(study: StudyRuns, frame: pd.DataFrame, form: str) -> str:
    """`next_patient` in one of analysis.tables.FORMATS; csv at full precision."""
    if form == "csv":
        return frame.to_csv(index=False)
    text = frame[["variant"]].copy()
    text["groups"] = [
        f"{row['groups']:.0f} by {row['grouped_by']}" if row["grouped_by"] else "–" for row in frame.to_dict("records")
    ]
    text["difference [95 %]"] = [interval(row) for _, row in frame.iterrows()]
    text["note"] = frame["note"]
    told = (
        f"Macro-F1 of the pooled test predictions on {study.data} less that of {study.baseline.label}, with a 95 % "
        "interval over patients or regions drawn with replacement: how these trained networks compare on the next "
        "patient. With a handful of patients read the interval as too short."
    )
    return rendered(text, told, form)


def _pooled(study: StudyRuns, uri: str, label: str) -> pd.DataFrame | str:
    """The predictions of all folds by id, in its order; why there are none."""
    rows = study.frame[study.frame["variant"] == label]
    rows = rows[(rows["partition"] == rows["partition"].min()) & (rows["seed"] == rows["seed"].min())]
    if (rows["status"] != FINISHED).any():
        return f"{label} lacks fold runs"
    pooled = pd.concat([load_predictions(uri, run) for run in rows["run"]])
    return pooled.set_index("id").sort_index()
