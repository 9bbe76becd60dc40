"""Do repeats put the classes in the same place? Class positions over the seeds of a study, from its recorded arrays."""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis.runs import FINISHED, LOSS, StudyRuns, VariantInfo, load_arrays
from guided.geometry import Symmetry, class_means, stability

# What a loss cannot see, and so may differ from run to run at no cost (guided.geometry.stability).
SYMMETRIES: dict[str, Symmetry] = {"guide2d": "none", "guide_umap": "none", "distance": "axes"}


def symmetry_of(variant: VariantInfo) -> Symmetry:
    """`none` for losses that name positions, `axes` for L1 distances, else `isometries`."""
    if variant.parameters.get("loss.distance") == "l2" and variant.parameters[LOSS] == "distance":
        return "isometries"
    return SYMMETRIES.get(variant.parameters[LOSS], "isometries")


def repeats(study: StudyRuns, uri: str) -> pd.DataFrame:
    """Stability of the class means of the test cells over seeds, one row per variant with at least two of them.

    Columns: variant, seeds, raw (deviation as it is, in shares of the layout's size), symmetry (what the loss cannot
    see), aligned (deviation once that is removed), distances (correlation of all distances between classes). Within
    each fold over its seeds, then averaged over folds. A variant with missing fold runs has no row.
    """
    rows = []
    for variant in study.variants:
        runs = study.frame[study.frame["variant"] == variant.label]
        if runs["seed"].nunique() < 2 or (runs["status"] != FINISHED).any():
            continue
        symmetry, found = symmetry_of(variant), []
        for _, of_fold in runs.groupby(["partition", "fold"]):
            arrays = [load_arrays(uri, run) for run in of_fold["run"]]
            longest = max(each["test_embedding"].shape[1] for each in arrays)
            means = [
                class_means(_padded(each["test_embedding"], longest), each["test_labels"], len(each["classes"]))
                for each in arrays
            ]
            found.append(stability(np.stack(means), symmetry))
        rows.append(
            {
                "variant": variant.label,
                "seeds": runs["seed"].nunique(),
                "raw": np.mean([each.raw for each in found]),
                "symmetry": symmetry,
                "aligned": np.mean([each.aligned for each in found]),
                "distances": _mean([each.distance_correlation for each in found]),
            }
        )
    return pd.DataFrame(rows, columns=["variant", "seeds", "raw", "symmetry", "aligned", "distances"])


def _mean(values: list[float | None]) -> float:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) else np.nan


def _padded(embedding: np.ndarray, length: int) -> np.ndarray:
    # Best epochs differ, and with them the effective length: what was not open is zero.
    return np.pad(embedding, ((0, 0), (0, length - embedding.shape[1])))
