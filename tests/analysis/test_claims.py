"""Every claim of the registry comes out each way on studies made for it, and only on those."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from math import exp

import numpy as np
import pandas as pd
import pytest
from recorded import CELLS, Recorded, write_study

from analysis import measured, repeats
from analysis.__main__ import main
from analysis.claims import CLAIMS, COLUMNS, STATED, Claim, at, render_claims, verdicts
from analysis.measured import AS_IN_PAPER, OF_PARTS, OF_SEEDS, RARE_F1, RARE_SPREAD, Side, neighbours_say
from analysis.runs import StudyRuns, VariantInfo
from analysis.stats import corrected_t, smallest_detectable_difference
from sweeps import schema

WOBBLE = np.array([1.0, -1.0, 0.5, -0.5, 0.0])  # over five folds; adds nothing to a mean
RECORDED = [claim for claim in CLAIMS if claim.measure not in (*OF_SEEDS, *OF_PARTS)]
names = [claim.name for claim in RECORDED]


def schedule_of(side: Side, loss: str) -> tuple[bool, bool]:
    return (side.schedules or AS_IN_PAPER[loss])[0]


def lengths_of(claim: Claim) -> tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]:
    return claim.where or at(64)


def study_of(values: dict[str, dict[str, np.ndarray]], variants: dict[str, tuple[str, int, bool, bool]]) -> StudyRuns:
    """A study in memory: of each variant its (loss, length, growing, warm-up) and its metrics over five folds."""
    infos, rows = [], []
    for place, (label, (loss, length, growing, warm_up)) in enumerate(variants.items()):
        parameters = {
            "loss.name": loss,
            "embedding.length": str(length),
            "embedding.growing": str(growing).lower(),
            "embedding.warmup": str(warm_up).lower(),
        }
        infos.append(VariantInfo(label, f"id-{label}", {}, parameters, place == 0, ()))
        for fold in range(5):
            run = {"variant": label, "partition": 0, "fold": fold, "seed": 0, "run": f"{label}/{fold}"}
            own = {key: float(numbers[fold]) for key, numbers in values[label].items()}
            rows.append(run | {"status": "finished"} | CELLS | own)
    told = ("made", "5eed", "then", "question?", schema.TEST_F1, "marrow", "f1n9e5", "0123", False, "made on marrow")
    return StudyRuns(*told, tuple(infos), pd.DataFrame(rows))


def columns(claim: Claim, number: np.ndarray) -> dict[str, np.ndarray]:
    """What a fold run has recorded where its measure is `number`; the class c is rare."""
    if claim.measure == RARE_F1:
        return {schema.TEST_F1_CLASS + "c": number} | {schema.TEST_F1_CLASS + name: 0 * number for name in "ab"}
    if claim.measure == RARE_SPREAD:
        return {schema.CLASS_SPREAD + "c": number} | {schema.CLASS_SPREAD + name: 1 + 0 * number for name in "ab"}
    if claim.measure.key == schema.BEST_EPOCH:
        return {claim.measure.key: number - 1}  # epochs count from 0
    return {claim.measure.key: number}


def made_for(claim: Claim, difference: float, wobble: float, only_first: bool = False) -> StudyRuns:
    """A study with a claim's variants, whose left differ from its right by `difference` in every comparison (in the
    first alone if asked) and by as much as `wobble` more or less in single folds."""
    variants: dict[str, tuple[str, int, bool, bool]] = {}
    values: dict[str, dict[str, np.ndarray]] = {}
    for place, (left, right) in enumerate(lengths_of(claim)):
        apart = 0.0 if only_first and place else difference
        for side, lengths, shift in ((claim.right, right, 0.0 * WOBBLE), (claim.left, left, apart + wobble * WOBBLE)):
            for loss in side.losses:
                for length in lengths:
                    label = f"{loss} {length} {schedule_of(side, loss)}"
                    variants[label] = (loss, length, *schedule_of(side, loss))
                    values[label] = columns(claim, 20 * np.exp(shift) if claim.measure.ratio else 0.5 + shift)
    return study_of(values, variants)


@pytest.fixture(autouse=True)
def counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Test cells of three classes; c is the rarest."""
    labels, classes = np.array([0] * 6 + [1] * 5 + [2]), np.array(["a", "b", "c"])
    arrays = {"test_embedding": np.zeros((12, 2)), "test_labels": labels, "classes": classes}
    monkeypatch.setattr(measured, "load_arrays", lambda uri, run: arrays)


def judged(claim: Claim, study: StudyRuns) -> pd.Series:
    frame = verdicts(study, "sqlite:///nowhere")
    return frame.iloc[[one.name for one in CLAIMS].index(claim.name)]


def apart(claim: Claim) -> float:
    """A large difference the claimed way."""
    size = 0.5 if claim.measure.ratio else 0.1
    return size if claim.expects in ("greater", "not less") else -size


def test_the_sixteen_claims_are_there_in_order() -> None:
    assert sorted({claim.number for claim in CLAIMS}) == list(range(1, 17))
    assert [claim.name for claim in CLAIMS] == list(STATED)


@pytest.mark.parametrize("claim", RECORDED, ids=names)
def test_a_claim_that_holds_is_supported_and_one_that_is_reversed_contradicted(claim: Claim) -> None:
    study = made_for(claim, apart(claim), 0.01)
    row = judged(claim, study)
    assert (row["verdict"], row["n_folds"], row["study"], row["decides"]) == ("supported", 5, "5eed", "")
    expected = exp(apart(claim)) if claim.measure.ratio else apart(claim)
    assert row["effect"] == pytest.approx(expected) and row["low"] < expected < row["high"]
    assert judged(claim, made_for(claim, -apart(claim), 0.01))["verdict"] == "contradicted"


@pytest.mark.parametrize("claim", RECORDED, ids=names)
def test_a_claim_of_what_differs_by_nothing_or_hardly(claim: Claim) -> None:
    """None of it is chosen by the data: with all differences near 0 the direction of the claim decides nothing."""
    expected = "supported" if claim.expects in ("not less", "not greater") else "practically equal"
    for difference, wobble in ((0.0, 0.0), (0.001, 0.001), (-0.001, 0.001)):
        assert judged(claim, made_for(claim, difference, wobble))["verdict"] == expected


@pytest.mark.parametrize("claim", RECORDED, ids=names)
def test_a_claim_that_the_folds_cannot_decide(claim: Claim) -> None:
    size = 0.5 if claim.measure.ratio else 0.1
    row = judged(claim, made_for(claim, apart(claim) / 10, 2 * size))
    assert row["verdict"] == "inconclusive" and row["low"] < (1 if claim.measure.ratio else 0) < row["high"]
    assert row["decides"].startswith("made on ") and "times the data (patients and regions" in row["decides"]


@pytest.mark.parametrize("claim", RECORDED, ids=names)
def test_a_claim_without_its_variants_is_not_tested_but_told_its_sweep(claim: Claim) -> None:
    study = made_for(claim, apart(claim), 0.01)
    gone = study.variants[-1]
    frame = study.frame[study.frame["variant"] != gone.label].reset_index(drop=True)
    row = judged(claim, StudyRuns(**(study.__dict__ | {"variants": study.variants[:-1], "frame": frame})))
    assert row["verdict"] == "not tested" and row[["effect", "low", "high", "p"]].isna().all()
    assert row["decides"].endswith(f"; run {claim.sweeps.replace(', ', ' or ')}") and row["n_folds"] == 0


@pytest.mark.parametrize("claim", [claim for claim in RECORDED if claim.held == "each"], ids=lambda claim: claim.name)
def test_a_claim_of_each_length_needs_all_and_falls_with_one(claim: Claim) -> None:
    if claim.expects not in ("not less", "not greater"):  # for those the others, equal, support it
        row = judged(claim, made_for(claim, apart(claim), 0.001, only_first=True))
        assert row["verdict"] == "inconclusive" and row["effect"] == pytest.approx(0, abs=1e-9)
    row = judged(claim, made_for(claim, -apart(claim), 0.001, only_first=True))
    assert row["verdict"] == "contradicted" and row["effect"] == pytest.approx(-apart(claim))


def test_few_partitions_more_are_proposed_where_they_would_do() -> None:
    claim = CLAIMS[0]
    row = judged(claim, made_for(claim, 0.0, 0.0066))
    assert row["verdict"] == "inconclusive"
    needed = [smallest_detectable_difference(folds, 60 / 210, 0.0066 * WOBBLE.std(ddof=1)) for folds in (10, 15)]
    assert needed[1] < 0.01 < needed[0] and row["decides"] == "made with partitions: [0, 1, 2]"


def test_p_is_corrected_over_the_claims_tested_together() -> None:
    """Claims 1 and 6 in one study: Holm doubles the smaller p and leaves the other."""
    first, sixth = (made_for(claim, 0.03, wobble) for claim, wobble in ((CLAIMS[0], 0.01), (CLAIMS[6], 0.02)))
    both = StudyRuns(
        **(
            first.__dict__
            | {"variants": (*first.variants, *sixth.variants), "frame": pd.concat([first.frame, sixth.frame])}
        )
    )
    alone = corrected_t((0.03 + 0.01 * WOBBLE).tolist(), 60 / 210).p
    assert judged(CLAIMS[0], first)["p"] == pytest.approx(alone)
    assert judged(CLAIMS[0], both)["p"] == pytest.approx(2 * alone)
    assert judged(CLAIMS[6], both)["p"] == pytest.approx(judged(CLAIMS[6], sixth)["p"])


def test_missing_fold_runs_and_doubtful_variants_leave_a_claim_untested() -> None:
    claim = CLAIMS[0]
    study = made_for(claim, 0.1, 0.01)
    study.frame.loc[7, "status"] = "stopped"
    row = judged(claim, study)
    assert row["verdict"] == "not tested" and "lacks 1 of 5 fold runs; run table1" in row["decides"]
    study = made_for(claim, 0.1, 0.01)
    twice = [VariantInfo("other", "o", {}, study.variants[0].parameters, False, ())]
    row = judged(claim, StudyRuns(**(study.__dict__ | {"variants": (*study.variants, *twice)})))
    assert row["verdict"] == "not tested" and row["decides"].startswith("several variants are ce at length 64 (ce 64")


# --- claims of the recorded embeddings --------------------------------------------------------------------------------

POINTS = np.array([[0.0, 0.0], [4.0, 1.0], [-1.0, 3.0], [2.0, -3.0]])


def repeated(turned: Sequence[str]) -> tuple[StudyRuns, Callable[[str, str], dict[str, np.ndarray]]]:
    """Four losses at length 2, five folds, two seeds: those of `turned` lie elsewhere with the second seed."""
    losses = ("guide2d", "distance", "triplet", "ce")
    once = study_of(
        {loss: {schema.TEST_F1: WOBBLE} for loss in losses}, {loss: (loss, 2, False, False) for loss in losses}
    )
    again = once.frame.assign(seed=1, run=once.frame["run"] + "/1")
    study = StudyRuns(**(once.__dict__ | {"frame": pd.concat([once.frame, again], ignore_index=True)}))

    def arrays(uri: str, run: str) -> dict[str, np.ndarray]:
        loss, fold, *second = run.split("/")
        rng = np.random.default_rng([int(fold), len(second), losses.index(loss)])
        cells = np.repeat(rng.normal(0, 3, POINTS.shape) if second and loss in turned else POINTS, 3, axis=0)
        cells = cells + rng.normal(0, 0.02, cells.shape)
        return {"test_embedding": cells, "test_labels": np.repeat(np.arange(4), 3), "classes": np.array(list("abcd"))}

    return study, arrays


@pytest.mark.parametrize(
    ("turned", "expected"),
    [(("triplet", "ce"), ["supported"] * 3), (("guide2d", "distance"), ["contradicted"] * 3)],
    ids=["guides repeat", "guides do not"],
)
def test_repeats_of_guided_embeddings(
    turned: Sequence[str], expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    study, arrays = repeated(turned)
    monkeypatch.setattr(repeats, "load_arrays", arrays)
    frame = verdicts(study, "nowhere")
    told = frame[frame["claim"] == 8]
    assert told["verdict"].tolist()[:2] == expected[:2]
    assert told["verdict"].tolist()[2] in (expected[2], "inconclusive")
    assert (told["effect"].iloc[0] < 0.2) == (expected[0] == "supported")


def test_repeats_need_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    study, _ = repeated(())
    once = StudyRuns(**(study.__dict__ | {"frame": study.frame[study.frame["seed"] == 0]}))
    frame = verdicts(once, "nowhere")
    assert set(frame.loc[frame["claim"] == 8, "verdict"]) == {"not tested"}
    assert "was not repeated with other seeds; run stability" in frame.loc[frame["claim"] == 8, "decides"].iloc[0]


@pytest.mark.parametrize("first_two_tell", [True, False])
def test_truncated_embeddings(first_two_tell: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    study = study_of({"guide2D": {schema.TEST_F1: WOBBLE}}, {"guide2D": ("guide2d", 64, False, False)})

    def arrays(uri: str, run: str) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(int(run[-1]))
        labels = np.repeat(np.arange(4), 30)
        telling = 0.2 * POINTS[labels] + rng.normal(0, 0.2, (120, 2))
        hinting = 0.01 * (0.07 * POINTS[labels] + rng.normal(0, 0.2, (120, 2)))  # of no weight beside the others
        parts = (telling, hinting) if first_two_tell else (hinting, telling)
        return {"test_embedding": np.hstack(parts), "test_labels": labels, "classes": np.array(list("abcd"))}

    monkeypatch.setattr(measured, "load_arrays", arrays)
    frame = verdicts(study, "nowhere")
    cut, others = frame[frame["claim"] == 15].to_dict("records")
    assert cut["verdict"] == ("supported" if first_two_tell else "contradicted")
    assert others["verdict"] == "supported" and (others["effect"] > 0.6) != first_two_tell


def test_neighbours_leave_the_cell_itself_out() -> None:
    line = np.array([[0.0], [1.0], [1.1], [1.2], [9.0], [9.1], [9.2], [9.3]])
    labels = np.array([1, 0, 0, 0, 1, 1, 1, 1])
    assert neighbours_say(line, labels, 2)[3] == 1  # 0 0 1 1 1; with itself 0 0 0 1 1


def test_embeddings_that_cannot_be_read_are_a_reason(whole: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    study = study_of({"guide2D": {schema.TEST_F1: WOBBLE}}, {"guide2D": ("guide2d", 64, False, False)})
    frame = verdicts(study, whole.uri)
    (row, _) = frame[frame["claim"] == 15].to_dict("records")
    assert row["verdict"] == "not tested" and "the embeddings of run guide2D/0 cannot be read (" in row["decides"]


def test_too_many_embeddings_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured, "MOST_RUNS", 3)
    study = made_for(next(claim for claim in CLAIMS if claim.measure == RARE_F1), 0.1, 0.01)
    row = judged(next(claim for claim in CLAIMS if claim.measure == RARE_F1), study)
    assert row["verdict"] == "not tested" and "more than 3 fold runs" in row["decides"]


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_prints_the_verdicts(uri: str, capsys: pytest.CaptureFixture[str]) -> None:
    plain = {"embedding.growing": "false", "embedding.warmup": "false"}
    parameters = {"CE": {"loss.name": "ce", **plain}, "CE growing": {"loss.name": "ce", "embedding.length": "64"}}
    scores = {"CE": (0.70, 0.71, 0.69, 0.72, 0.68), "CE growing": (0.75, 0.77, 0.73, 0.77, 0.73)}
    recorded = write_study(uri, scores, baseline="CE", parameters=parameters)
    assert main(["claims", "radius", "--uri", uri]) == 0
    text = capsys.readouterr().out
    assert "1      a growing embedding improves CE " in text and "CE growing against CE" in text
    assert "+0.050 [+0.036, +0.064]" in text and "over the 1 claims tested" in text
    assert main(["claims", "radius", "--uri", uri, "--format", "csv"]) == 0
    frame = pd.read_csv(io.StringIO(capsys.readouterr().out))
    assert tuple(frame.columns) == COLUMNS and len(frame) == len(CLAIMS)
    assert frame.loc[0, "verdict"] == "supported" and (frame["verdict"][1:] == "not tested").all()
    assert main(["claims", "radius", "--uri", uri, "--format", "json"]) == 0
    entries = json.loads(capsys.readouterr().out)
    assert entries[0]["effect"] == pytest.approx(0.05) and entries[1]["effect"] is None
    assert main(["claims", "radius", "--uri", uri, "--format", "markdown"]) == 0
    assert capsys.readouterr().out.count("\n| ") == len(CLAIMS) + 1
    recorded.client.delete_run(recorded.fold_runs["CE", 0, 0, 0])
    assert main(["claims", "radius", "--uri", uri]) == 1
    assert "CE lacks 1 of 5 fold runs; run table1 or ablation_growth" in capsys.readouterr().out


def test_quotients_are_shown_as_such() -> None:
    claim = next(claim for claim in CLAIMS if claim.name == "7a")
    study = made_for(claim, -0.5, 0.01)
    assert "×0.61 [0.60, 0.62]" in render_claims(study, verdicts(study, "nowhere"), "text")
