"""Do repeats put the classes in the same place? Class positions over the seeds of a study, from its recorded arrays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from analysis.runs import FINISHED, LOSS, StudyRuns, VariantInfo, load_arrays
from guided.geometry import Stability, Symmetry, class_means, stability

# What a loss cannot see, and so may differ from run to run at no cost (guided.geometry.stability).
SYMMETRIES: dict[str, Symmetry] = {"guide2d": "none", "guide_umap": "none", "distance": "axes"}


def symmetry_of(variant: VariantInfo) -> Symmetry:
    """`none` for losses that name positions, `axes` for L1 distances, else `isometries`."""
    if variant.parameters.get("loss.distance") == "l2" and variant.parameters[LOSS] == "distance":
        return "isometries"
    return SYMMETRIES.get(variant.parameters[LOSS], "isometries")


MOST_RUNS = 400  # whose arrays are read: a tenth of a second each

COLUMNS = ("variant", "seeds", "raw", "symmetry", "aligned", "distances", "note")


def repeats(study: StudyRuns, uri: str, most: int = MOST_RUNS) -> pd.DataFrame:
    """Stability of the class means of the test cells over seeds, one row per variant with at least two of them.

    Columns: variant, seeds, raw (deviation as it is, in shares of the layout's size), symmetry (what the loss cannot
    see), aligned (deviation once that is removed), distances (correlation of all distances between classes), note.
    Within each fold over its seeds, then averaged over folds. A variant with missing fold runs has no row. A variant
    has NaN and a note that says why where a repeat has no layout to compare (its classes all coincide), and where the
    arrays of `most` fold runs have been read for the variants before it, the baseline first.
    """
    rows, read = {}, 0
    for variant in sorted(study.variants, key=lambda each: not each.baseline):
        runs = study.frame[study.frame["variant"] == variant.label]
        seeds = runs["seed"].nunique()
        if seeds < 2 or (runs["status"] != FINISHED).any():
            continue
        symmetry = symmetry_of(variant)
        row: dict[str, object] = {"variant": variant.label, "seeds": seeds, "symmetry": symmetry, "note": ""}
        rows[variant.label] = row
        if read + len(runs) > most:
            row["note"] = f"not read: only {most} fold runs are"
            continue
        read += len(runs)
        try:
            found = [
                over_seeds(uri, of_fold["run"].tolist(), symmetry, f"partition {partition} fold {fold}")
                for (partition, fold), of_fold in runs.groupby(["partition", "fold"])
            ]
        except ValueError as error:
            row["note"] = str(error)
            continue
        row["raw"] = float(np.mean([each.raw for each in found]))
        row["aligned"] = float(np.mean([each.aligned for each in found]))
        row["distances"] = _mean([each.distance_correlation for each in found])
    table = pd.DataFrame([rows[each.label] for each in study.variants if each.label in rows], columns=list(COLUMNS))
    return table.astype({name: float for name in ("raw", "aligned", "distances")})


def over_seeds(uri: str, runs: Sequence[str], symmetry: Symmetry, where: str) -> Stability:
    """Stability over the runs of one fold, by their MLflow ids. Raises ValueError naming the fold where a layout has
    collapsed."""
    arrays = [load_arrays(uri, run) for run in runs]
    longest = max(each["test_embedding"].shape[1] for each in arrays)
    means = [
        class_means(_padded(each["test_embedding"], longest), each["test_labels"], len(each["classes"]))
        for each in arrays
    ]
    try:
        return stability(np.stack(means), symmetry)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _mean(values: list[float | None]) -> float:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) else np.nan


def _padded(embedding: np.ndarray, length: int) -> np.ndarray:
    # Best epochs differ, and with them the effective length: what was not open is zero.
    return np.pad(embedding, ((0, 0), (0, length - embedding.shape[1])))
