"""What early stopping with another patience would have cost and changed, from recorded validation curves.

Learning rate and length follow the epoch budget, not the patience: a fold run that is cut short goes through the very
epochs that are recorded. What a smaller patience would have done is read off, not estimated.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from analysis.runs import FINISHED, StudyRuns
from analysis.store import histories
from analysis.tables import rendered
from sweeps import schema

PATIENCES = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
PLACE = ["variant", "partition", "fold", "seed"]
PATIENCE = "train.patience"


def curves_of(study: StudyRuns, uri: str) -> pd.DataFrame:
    """A row per epoch of every finished fold run: variant, partition, fold, seed, epoch (from 0), val (macro-F1 on the
    validation cells), seconds (of the whole epoch), patience (with which it was trained), test (macro-F1 at its best
    epoch). Raises ValueError where no fold run has finished."""
    finished = study.frame[study.frame["status"] == FINISHED]
    if finished.empty:
        raise ValueError(f"no fold run of {study.sweep} has finished, so there are no curves")
    trained_with = {variant.label: int(variant.parameters[PATIENCE]) for variant in study.variants}
    found = histories(uri, finished["run"].tolist(), (schema.VAL_F1, *schema.EPOCH_SECONDS))
    frames = []
    for row in finished.to_dict("records"):
        told = found[row["run"]]
        epochs = len(told[schema.VAL_F1])
        frames.append(
            pd.DataFrame(
                {
                    **{name: row[name] for name in PLACE},
                    "epoch": np.arange(epochs),
                    "val": told[schema.VAL_F1],
                    "seconds": np.sum([told[part] for part in schema.EPOCH_SECONDS if part in told], axis=0),
                    "patience": trained_with[row["variant"]],
                    "test": row[schema.TEST_F1],
                }
            )
        )
    return pd.concat(frames, ignore_index=True)


def stopped_after(scores: Sequence[float], patience: int) -> int:
    """How many epochs of a curve of validation scores are trained with `patience`: up to the first epoch that comes
    `patience` epochs after the best one so far (of equal ones the first), or all of them."""
    best = 0
    for epoch, score in enumerate(scores):
        if score > scores[best]:
            best = epoch
        elif epoch - best >= patience:
            return epoch + 1
    return len(scores)


def patience_table(curves: pd.DataFrame, patiences: Sequence[int] | None = None) -> pd.DataFrame:
    """A row per patience, over all fold runs of `curves` (see `curves_of`):

    patience; epochs and seconds, of all fold runs, and epochs_saved and seconds_saved, as shares of what was trained;
    changed, the share of fold runs with another best epoch; val_lost and val_lost_worst, how far the best validation
    macro-F1 falls (mean, worst); test_known, the mean test macro-F1 of the fold runs whose best epoch stays (that of
    the others the curve does not tell; NaN for none); winner, the variant with the best mean validation score.

    Default: PATIENCES below the largest recorded one, and that. Raises ValueError for a patience larger than the one a
    fold run was trained with: its curve ends before it could tell.
    """
    most = int(curves["patience"].min())
    longest = int(curves["epoch"].max()) + 1
    asked = patiences or [*(each for each in PATIENCES if each < min(most, longest)), most]
    beyond = [each for each in asked if each > most or each < 1]
    if beyond:
        raise ValueError(f"patience {beyond[0]}: fold runs were trained with {most}, so that 1 to {most} can be told")
    runs = [frame for _, frame in curves.groupby(PLACE, sort=False)]
    rows = []
    for patience in asked:
        lengths = [stopped_after(frame["val"].tolist(), patience) for frame in runs]
        short = [frame.iloc[:length] for frame, length in zip(runs, lengths, strict=True)]
        lost = np.array([f["val"].max() - s["val"].max() for f, s in zip(runs, short, strict=True)])
        kept = np.array([f["val"].argmax() == s["val"].argmax() for f, s in zip(runs, short, strict=True)])
        test = np.array([frame["test"].iloc[0] for frame in runs])
        seconds = sum(float(frame["seconds"].sum()) for frame in short)
        best = pd.Series([s["val"].max() for s in short]).groupby([s["variant"].iloc[0] for s in short]).mean()
        rows.append(
            {
                "patience": patience,
                "epochs": sum(lengths),
                "seconds": seconds,
                "epochs_saved": 1 - sum(lengths) / len(curves),
                "seconds_saved": 1 - seconds / float(curves["seconds"].sum()),
                "changed": 1 - float(kept.mean()),
                "val_lost": float(lost.mean()),
                "val_lost_worst": float(lost.max()),
                "test_known": float(test[kept].mean()) if kept.any() else np.nan,
                "winner": str(best.idxmax()),
            }
        )
    return pd.DataFrame(rows)


def render_patience(study: StudyRuns, table: pd.DataFrame, form: str) -> str:
    """The table in one of analysis.tables.FORMATS; csv at full precision."""
    if form == "csv":
        return table.to_csv(index=False)
    text = pd.DataFrame(
        {
            "patience": table["patience"].astype(str),
            "epochs": table["epochs"].astype(str),
            "saved": table["epochs_saved"].map("{:.0%}".format),
            "hours": (table["seconds"] / 3600).map("{:.2f}".format),
            "time saved": table["seconds_saved"].map("{:.0%}".format),
            "best epoch changed": table["changed"].map("{:.0%}".format),
            "validation F1 lost": table["val_lost"].map("{:.4f}".format),
            "worst": table["val_lost_worst"].map("{:.3f}".format),
            "winner": table["winner"],
        }
    )
    told = (
        f"What each patience would have cost and changed in {study.sweep} on {study.data}, read off the recorded "
        "validation curves of its finished fold runs. Where the best epoch stays, so does the test score; where it "
        "changes, the curve does not tell it. The winner is that of the validation means."
    )
    return rendered(text, told, form)
