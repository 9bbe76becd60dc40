"""Tables beside the comparison: F1 of each class, best epochs, cost, one axis of an ablation. A data frame each; what
is missing is named in it, and a fold run that did not finish enters no mean."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd

from analysis.runs import FINISHED, WARM_UP, StudyRuns, VariantInfo
from analysis.tables import Comparison, interval, missing_runs, per_class, rendered, score
from sweeps import schema

WARM_UP_ENDS = 2  # the last epoch of the warm-up (3.3: "the first three epochs")


def best_epochs(study: StudyRuns) -> pd.DataFrame:
    """Where the best epochs lie, a row per variant: fold_runs finished, first, median and last best epoch (from 0),
    in_warm_up (how many lie in the warm-up), length (median of the effective length there), epochs (median of those
    run), missing. NaN where no fold run has finished."""
    rows = []
    for variant, finished, missing in _of_variants(study):
        epochs = finished[schema.BEST_EPOCH] if len(finished) else pd.Series(dtype=float)
        warm = variant.parameters[WARM_UP] == "true"
        rows.append(
            {
                "variant": variant.label,
                "fold_runs": len(finished),
                "first": epochs.min(),
                "median": epochs.median(),
                "last": epochs.max(),
                "in_warm_up": int((epochs <= WARM_UP_ENDS).sum()) if warm else 0,
                "length": _median(finished, schema.BEST_LENGTH),
                "epochs": _median(finished, schema.EPOCHS_RUN),
                "missing": missing,
            }
        )
    return pd.DataFrame(rows)


def cost(study: StudyRuns) -> pd.DataFrame:
    """What a variant took, a row each: fold_runs finished, hours of all of them together, seconds of one (mean), epochs
    of one (mean), seconds_per_epoch (of all that a fold run does), missing. NaN where no fold run has finished."""
    rows = []
    for variant, finished, missing in _of_variants(study):
        seconds = finished[schema.SECONDS] if len(finished) else pd.Series(dtype=float)
        known = len(finished) and schema.EPOCHS_RUN in finished.columns
        epochs = finished[schema.EPOCHS_RUN] if known else pd.Series(dtype=float)
        rows.append(
            {
                "variant": variant.label,
                "fold_runs": len(finished),
                "hours": seconds.sum() / 3600 if len(finished) else np.nan,
                "seconds": seconds.mean(),
                "epochs": epochs.mean(),
                "seconds_per_epoch": seconds.sum() / epochs.sum() if epochs.sum() > 0 else np.nan,
                "missing": missing,
            }
        )
    return pd.DataFrame(rows)


def by_axis(comparison: Comparison, axis: str) -> pd.DataFrame:
    """An ablation along one option, a row per variant that sets it: others (what else sets variants apart), value, and
    the columns of `comparison.frame`. Values of one choice of the others stand together, numbers in their order.

    Raises ValueError for an option that sets no variants apart.
    """
    variants = comparison.study.variants
    known = list(dict.fromkeys(key for variant in variants for key in variant.varied))
    if axis not in known:
        raise ValueError(f"{comparison.study.sweep} does not vary {axis!r}; it varies {', '.join(known) or 'nothing'}")
    rows = []
    for variant, (_, row) in zip(variants, comparison.frame.iterrows(), strict=True):
        if axis in variant.varied:
            others = ", ".join(f"{key}={value}" for key, value in variant.varied.items() if key != axis)
            rows.append({"others": others, "value": variant.varied[axis], **row.to_dict()})
    rows.sort(key=lambda row: (row["others"], *_order(row["value"])))
    return pd.DataFrame(rows)


def _order(value: object) -> tuple[bool, float, str]:
    try:
        return False, float(str(value)), ""
    except ValueError:
        return True, 0.0, str(value)


def _of_variants(study: StudyRuns) -> Iterator[tuple[VariantInfo, pd.DataFrame, str]]:
    """Each variant with its finished fold runs and what is missing."""
    for variant in study.variants:
        rows = study.frame[study.frame["variant"] == variant.label]
        yield variant, rows[rows["status"] == FINISHED], "; ".join(missing_runs(rows))


def _median(finished: pd.DataFrame, key: str) -> float:
    return float(finished[key].median()) if len(finished) and key in finished.columns else float("nan")


# --- as text --------------------------------------------------------------------------------------------------------

CLASSES_TOLD = "F1 of each class: means over the folds whose test cells have the class."
EPOCHS_TOLD = (
    "Best epochs by validation, counted from 0, with how many lie in the warm-up, the effective length there and the "
    "epochs run (medians)."
)
COST_TOLD = "Cost of the fold runs that finished: hours of all together, means of one."


def render_details(comparison: Comparison, table: str, form: str, axis: str = "") -> str:
    """One of DETAILS in one of analysis.tables.FORMATS; csv at full precision. Raises ValueError as `by_axis`."""
    study = comparison.study
    if table == "axis":
        frame = by_axis(comparison, axis)
        told = (
            f"{study.metric} on {study.data} along {axis}; differences to {comparison.baseline} as in the comparison."
        )
        text = pd.DataFrame(
            {
                "others": frame["others"],
                axis: frame["value"].astype(str),
                study.metric: [score(row) for _, row in frame.iterrows()],
                "difference [95 %]": [interval(row) for _, row in frame.iterrows()],
                "verdict": frame["verdict"],
                "missing": frame["missing"],
            }
        )
        text = text.loc[:, (text != "").any()]
    else:
        make, told = DETAILS[table]
        frame = make(study)
        text = frame.map(_text)
        text.columns = [name.replace("_", " ") for name in text.columns]
    lacking = [f"{variant.label}: {missing}" for variant, _, missing in _of_variants(study) if missing]
    if lacking:
        told += f" Missing: {'; '.join(lacking)}."
    if form == "csv":
        return frame.to_csv(index=False)
    text = text.loc[:, [name for name in text.columns if name != "missing" or (text[name] != "").any()]]
    return rendered(text, told, form)


def _text(value: object) -> str:
    if isinstance(value, float):
        return "–" if np.isnan(value) else f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return str(value)


DETAILS: dict[str, tuple[Callable[[StudyRuns], pd.DataFrame], str]] = {
    "classes": (lambda study: per_class(study).reset_index(), CLASSES_TOLD),
    "epochs": (best_epochs, EPOCHS_TOLD),
    "cost": (cost, COST_TOLD),
}
