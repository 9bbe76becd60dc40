"""What a patience would have cost and changed: worked by hand, and against the rule of training."""

from __future__ import annotations

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow.entities import Metric
from recorded import Recorded

from analysis.__main__ import main
from analysis.patience import curves_of, patience_table, stopped_after
from analysis.runs import load_study
from sweeps import schema

# Best epochs 4 and 1; a patience of 2 stops the first after epoch 3, a patience of 3 sees its recovery.
LATE, EARLY = (0.5, 0.6, 0.4, 0.6, 0.9, 0.1), (0.3, 0.8, 0.8, 0.7, 0.7, 0.7)


def curve(variant: str, scores: tuple[float, ...], patience: int = 4, test: float = 0.5) -> pd.DataFrame:
    place = {"variant": variant, "partition": 0, "fold": 0, "seed": 0}
    epochs = {"epoch": range(len(scores)), "val": scores, "seconds": 10.0}
    return pd.DataFrame({**place, **epochs, "patience": patience, "test": test})


def test_the_table_is_that_worked_by_hand() -> None:
    curves = pd.concat([curve("late", LATE, test=0.7), curve("early", EARLY, test=0.5)])
    one, two, three, four = patience_table(curves).to_dict("records")
    assert [row["patience"] for row in (one, two, three, four)] == [1, 2, 3, 4]
    assert one["epochs"] == 3 + 3 and two["epochs"] == 4 + 4 and three["epochs"] == 6 + 5 and four["epochs"] == 12
    assert two["seconds"] == 80 and two["seconds_saved"] == two["epochs_saved"] == pytest.approx(1 / 3)
    assert (
        two["changed"] == 0.5 and two["val_lost"] == pytest.approx(0.15) and two["val_lost_worst"] == pytest.approx(0.3)
    )
    assert two["test_known"] == 0.5 and three["test_known"] == 0.6, "only of those whose best epoch stays"
    assert two["winner"] == "early" and three["winner"] == four["winner"] == "late"
    assert three["changed"] == three["val_lost"] == 0


def test_a_patience_that_no_curve_can_tell_is_refused() -> None:
    curves = pd.concat([curve("a", EARLY, patience=4), curve("b", EARLY, patience=3)])
    for asked in (4, 0):
        with pytest.raises(ValueError, match=f"patience {asked}: fold runs were trained with 3, so that 1 to 3 can be"):
            patience_table(curves, [asked])


@given(st.lists(st.integers(0, 4), min_size=1, max_size=12), st.integers(1, 6))
def test_a_curve_ends_where_training_would(scores: list[int], patience: int) -> None:
    done: list[int] = []
    while len(done) < len(scores):
        done.append(scores[len(done)])
        if len(done) - 1 - done.index(max(done)) >= patience:
            break
    assert stopped_after(scores, patience) == len(done)


def test_curves_come_from_the_record(own: Recorded, capsys: pytest.CaptureFixture[str]) -> None:
    for run in own.variants.values():
        own.client.log_param(run, "train.patience", "4")
    for run in own.fold_runs.values():
        metrics = [Metric(schema.VAL_F1, score, 0, epoch) for epoch, score in enumerate(LATE)]
        metrics += [Metric(key, 0.25, 0, epoch) for key in schema.EPOCH_SECONDS for epoch in range(len(LATE))]
        own.client.log_batch(run, metrics=metrics)
    curves = curves_of(load_study(own.uri, "radius"), own.uri)
    assert len(curves) == 15 * len(LATE) and (curves["seconds"] == 1).all() and (curves["patience"] == 4).all()
    first = curves[(curves["variant"] == "radius=2") & (curves["fold"] == 0)]
    assert tuple(first["val"]) == LATE and (first["test"] == 0.75).all()
    assert main(["patience", "radius", "--uri", own.uri, "--format", "csv"]) == 0
    assert capsys.readouterr().out.splitlines()[2].startswith("2,60,60.0,")
