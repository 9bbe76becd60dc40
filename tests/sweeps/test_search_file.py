"""Sweep files beyond the plain grid: searches, constraints, one key at a time, budgets, files that extend others."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from analysis.stats import smallest_detectable_difference
from guided.config import Config, Data, Folds
from guided.data import load_dataset
from guided.folds import make_folds
from sweeps.__main__ import main
from sweeps.judge import earlier_judgements, judgement, winner_of
from sweeps.plan import plan_of
from sweeps.records import Records
from sweeps.spec import SpecError, load_sweep
from sweeps.strategy import Standing
from sweeps.study import Study, make_study, read_study

SEARCH = """
question: Which loss and filter?
kind: search
space:
  loss.lowpass: {uniform: [0.0, 1.0], when: {loss.name: [guide_umap]}}
  loss.name: {choice: [guide2d, guide_umap, ce]}
  embedding.length: {choice: [8, 16]}
search: {variants: 4, stop: {rule: none}}
constraints: ["not (loss.name == 'ce' and embedding.length > 8)"]
locked: [patient=P3, patient=P5]
baseline: {loss.name: guide2d, embedding.length: 16}
judge_seeds: [0, 1]
"""
GRID = """
question: Which radius and length?
kind: ablation
vary: {guide.radius: [1, 2, 5], embedding.length: [8, 16]}
baseline: {guide.radius: 5, embedding.length: 16}
"""
BY_VALIDATION = "{metric: best/val_f1_macro, direction: maximize}"
BY_TEST = "{metric: test/f1_macro, direction: maximize}"
TINY = "data.cells=300 data.size=16 folds.count=2 train.epochs=2 train.batch_size=16"


def write(folder: Path, text: str, name: str = "mine") -> str:
    path = folder / f"{name}.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def problems(folder: Path, text: str, settings: str = "") -> str:
    with pytest.raises(SpecError) as caught:
        load_sweep(write(folder, text), preset="laptop", settings=settings)
    return str(caught.value)


def test_a_search_begins_with_its_baseline_and_resolves_values(tmp_path: Path) -> None:
    sweep = load_sweep(write(tmp_path, SEARCH), preset="laptop")
    assert sweep.stage == "search" and sweep.search is not None
    (baseline,) = sweep.variants
    assert baseline.baseline and baseline.config.folds.holdout == ("patient=P3", "patient=P5")
    variant = sweep.search.resolve({"loss.name": "guide_umap", "loss.lowpass": 0.25, "embedding.length": 8})
    assert variant.config.loss.model_dump()["lowpass"] == 0.25 and not variant.baseline
    assert sweep.search.resolve(dict(baseline.varied)).baseline
    with pytest.raises(SpecError, match=r"breaks the constraint not .loss.name == 'ce'"):
        sweep.search.resolve({"loss.name": "ce", "embedding.length": 16})


def test_a_search_keeps_its_identity_when_it_is_allowed_more(tmp_path: Path) -> None:
    one = load_sweep(write(tmp_path, SEARCH), preset="laptop")
    more = load_sweep(write(tmp_path, SEARCH), preset="laptop", settings="search.variants=9 budget.fold_runs=3")
    other = load_sweep(write(tmp_path, SEARCH.replace("[8, 16]", "[8, 16, 32]")), preset="laptop")
    assert one.base_id == more.base_id != other.base_id
    assert more.search is not None and more.search.settings.variants == 9 and more.budget.fold_runs == 3


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("locked: [patient=P3, patient=P5]", ""), "a search needs `locked`"),
        (("space:", "vary: {guide.radius: [1]}\nspace:"), "'vary' belongs to kind: ablation"),
        (("loss.name: guide2d, embedding.length: 16}", "loss.name: ce}"), "'embedding.length' is missing"),
        (("baseline: {loss.name: guide2d", "baseline: {loss.name: trip"), "'trip' is not in guide2d, guide_umap"),
        (("choice: [guide2d, guide_umap, ce]", "choice: [guide2d, guide_umap, cee]"), "did you mean 'ce'"),
        (("embedding.length: {choice", "embedding.lenght: {choice"), "did you mean 'embedding.length'"),
        (("uniform: [0.0, 1.0]", "uniform: [0.0, 1.5]"), "loss.lowpass: input should be less than or equal to 1"),
        (("uniform: [0.0, 1.0]", "unifrom: [0.0, 1.0]"), "unifrom"),
        (("loss.name == 'ce'", "loss.nam == 'ce'"), "did you mean 'loss.name'"),
        (("variants: 4", f"variants: 4, objectives: [{BY_TEST}]"), "'test/f1_macro' is not one of"),
        (("variants: 4", f"variants: 4, objectives: [{BY_VALIDATION}, {BY_VALIDATION}]"), "f1_macro' stands twice"),
        (("kind: search", "kind: search\nbudget: {money: 3}"), "budget: value error, money needs price_per_hour"),
        (("kind: search", "kind: search\nbase: {folds.tested: holdout}"), "sets folds.tested, which a search sets by"),
        (("variants: 4", "variants: 0"), "greater than or equal to 1"),
        (("kind: search", "kind: search\nbase: {folds.holdout: [P1]}"), "name the groups under `locked`"),
        (("judge_seeds: [0, 1]", "judge_seeds: [1, 1]"), "judge_seeds: .1, 1. has a value twice"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_search_is_told(tmp_path: Path, change: tuple[str, str], told: str) -> None:
    assert change[0] in SEARCH
    assert re.search(told, problems(tmp_path, SEARCH.replace(*change)))


@pytest.mark.parametrize(
    ("space", "told"),
    [
        # Out of range at one end, under one condition only: growing, with the rule that grows by it.
        ("embedding.growing: {choice: [true, false]}\n"
         "  embedding.factor: {int: [0, 4], when: {embedding.growing: [true]}}",
         "growing=true, factor=0: embedding.factor.*greater than or equal to 1"),
        # Right beside the baseline's loss, unknown beside another that the condition lets in.
        ("loss.margin: {uniform: [0.1, 1.0], when: {loss.name: [triplet, ce]}}",
         "name=ce: 'loss.margin' is an option of loss triplet, ctl, not of ce"),
        ("loss.distance: {choice: [l1, squared], when: {loss.name: [guide2d, triplet]}}",
         "name=triplet: 'loss.distance' is an option of loss guide2d, .*not of triplet"),
        # Of a loss that the option belongs to, and which knows only the other values.
        ("loss.distance: {choice: [l1, squared], when: {loss.name: [guide2d, distance]}}",
         "name=distance, distance=squared: loss.distance: input should be 'l1' or 'l2'"),
        # Two conditions, and the key that the second needs belongs to the other loss.
        ("embedding.warmup: {choice: [true], when: {loss.name: [ce]}}\n"
         "  norm.weight: {uniform: [0.0, 1.0], when: {embedding.warmup: [true], loss.name: [guide2d]}}",
         "space: 'norm.weight' never applies: its conditions .*exclude each other"),
    ],
)  # fmt: skip
def test_an_option_is_tried_under_every_condition(tmp_path: Path, space: str, told: str) -> None:
    text = f"""
question: Which?
kind: search
space:
  loss.name: {{choice: [guide2d, triplet, distance, ce]}}
  {space}
locked: [patient=P3]
baseline: {{loss.name: guide2d, embedding.growing: false}}
"""
    if "growing" not in space:
        text = text.replace(", embedding.growing: false", "")
    if "guide2d, " in space:  # the option applies to the baseline too
        text = text.replace("{loss.name: guide2d", "{loss.distance: l1, loss.name: guide2d")
    with pytest.raises(SpecError, match=told) as caught:
        load_sweep(write(tmp_path, text), preset="laptop")
    causes = {problem.partition(": ")[0] for problem in caught.value.problems}
    assert len(causes) == 1 and len(caught.value.problems) <= 2, "each thing once, whatever the other values"


def test_a_guide_or_batch_that_a_search_may_choose_must_fit(tmp_path: Path, searched: Study) -> None:
    for axis, told in (
        ("guide.file: {choice: [auto, nowhere]}", "file=nowhere, .*: no guide file nowhere"),
        ("train.batch_size: {int: [16, 4096]}", "training cells, less than a batch of 4096"),
    ):
        text = SEARCH.replace("space:", f"space:\n  {axis}").replace(
            "baseline: {", "baseline: {guide.file: auto, " if "guide" in axis else "baseline: {train.batch_size: 16, "
        )
        settings = TINY if "guide" in axis else merged("").replace("train.batch_size=16", "")
        sweep = load_sweep(write(tmp_path, text), preset="laptop", settings=settings)
        with pytest.raises(SpecError, match=told):
            make_study(sweep, searched.out, progress=False)


def test_a_space_too_large_to_try_is_tried_by_pairs_and_the_plan_says_so(tmp_path: Path, searched: Study) -> None:
    many = "\n".join(f"  {key}: {{choice: {values}}}" for key, values in (
        ("augment.light", [0.0, 0.1, 0.2, 0.3, 0.4]), ("augment.stain", [0.0, 0.1, 0.2, 0.3, 0.4]),
        ("norm.weight", [0.0, 0.1, 0.2, 0.3, 0.4]), ("train.learning_rate", [0.001, 0.002, 0.003, 0.004, 0.005]),
    ))  # fmt: skip
    head, tail = SEARCH.split("search: {")
    text = f"{head}{many}\nsearch: {{{tail}".replace(
        "baseline: {",
        "baseline: {augment.light: 0.0, augment.stain: 0.0, norm.weight: 0.0, train.learning_rate: 0.001, ",
    )
    sweep = load_sweep(write(tmp_path, text), preset="laptop", settings=TINY)
    assert sweep.search is not None and sweep.search.corners_left and 100 < len(sweep.search.corners) < 600
    (note,) = [note for note in plan_of(make_study(sweep, searched.out, progress=False))["notes"] if "2000" in note]
    assert "were tried two at a time" in note
    assert "lowpass=1.5: loss.lowpass: input should be less than" in problems(tmp_path, text.replace("1.0]", "1.5]"))


def test_settings_of_a_search_are_checked(tmp_path: Path) -> None:
    assert "SET gives 'embedding.length', which the search varies" in problems(tmp_path, SEARCH, "embedding.length=4")
    assert "SET gives folds.holdout" in problems(tmp_path, SEARCH, "folds.holdout=[P1]")
    assert "budget: value error, money needs price_per_hour" in problems(tmp_path, SEARCH, "budget.money=3")
    assert "unknown key 'search.variant'; did you mean" in problems(tmp_path, SEARCH, "search.variant=4")
    assert "the sweep is no search" in problems(tmp_path, GRID, "search.variants=4")
    sweep = load_sweep(write(tmp_path, SEARCH), preset="laptop", settings="search.stop.rule=racing search.stop.first=3")
    assert sweep.search is not None
    assert sweep.search.settings.stop.model_dump() == {"rule": "racing", "first": 3, "margin": 0.0}


def test_one_at_a_time_and_constraints(tmp_path: Path) -> None:
    single = load_sweep(write(tmp_path, GRID + "design: one_at_a_time\n"), preset="laptop")
    assert [variant.label for variant in single.variants] == [
        "radius=1, length=16", "radius=2, length=16", "radius=5, length=8", "radius=5, length=16",
    ]  # fmt: skip
    barred = load_sweep(
        write(tmp_path, GRID + 'constraints: ["guide.radius > 1 or embedding.length < 16"]\n'), preset="laptop"
    )
    assert barred.left_out == ("radius=1, length=16",) and len(barred.variants) == 5
    # A key that a variant does not have compares false, whatever the comparison.
    absent = load_sweep(
        write(tmp_path, GRID + 'constraints: ["not loss.lowpass < 9 and not loss.lowpass >= 9"]\n'), preset="laptop"
    )
    assert absent.left_out == ()
    told = problems(tmp_path, GRID + 'constraints: ["guide.radius < 5"]\n')
    assert "baseline 'radius=5, length=16' breaks the constraint guide.radius < 5" in told
    assert "'space' belongs to kind: search" in problems(
        tmp_path, GRID + "space: {norm.weight: {uniform: [0.0, 1.0]}}\n"
    )


def test_a_file_extends_another(tmp_path: Path) -> None:
    write(tmp_path, GRID + "base: {train.epochs: 3, norm.weight: 0.5}\nbudget: {fold_runs: 7}\n", "parent")
    child = "extends: parent.yaml\nquestion: Another?\nkind: ablation\nbase: {train: {epochs: 5}}\n"
    sweep = load_sweep(write(tmp_path, child, "child"), preset="laptop")
    assert sweep.question == "Another?" and len(sweep.variants) == 6 and sweep.budget.fold_runs == 7
    assert sweep.variants[0].config.train.epochs == 5 and sweep.variants[0].config.norm.weight == 0.5
    named = child + "variants: {a: {}, b: {guide.radius: 2}}\nbaseline: a\n"
    assert [v.label for v in load_sweep(write(tmp_path, named, "named"), preset="laptop").variants] == ["a", "b"]
    shipped = load_sweep(write(tmp_path, child.replace("parent.yaml", "ablation_lowpass"), "lowpass"), preset="laptop")
    assert len(shipped.variants) == 7
    write(tmp_path, child.replace("parent.yaml", "b.yaml"), "a")
    with pytest.raises(SpecError, match=r"b.yaml -> a.yaml -> b.yaml goes in a circle"):
        load_sweep(write(tmp_path, child.replace("parent.yaml", "a.yaml"), "b"), preset="laptop")
    with pytest.raises(SpecError, match="did you mean 'ablation_norm'"):
        load_sweep(write(tmp_path, child.replace("parent.yaml", "ablation_nrom"), "c"), preset="laptop")


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Study:
    folder = tmp_path_factory.mktemp("search")
    sweep = load_sweep(write(folder, SEARCH), preset="laptop", settings=TINY)
    return make_study(sweep, folder / "out", progress=False)


def standing(study: Study, values: dict[str, object], end: str | None) -> Standing:
    assert study.sweep.search is not None
    variant = study.sweep.search.resolve(values)
    return Standing(0, variant, values, end, 2, 0.5, (0.5,), "")  # type: ignore[arg-type]


def test_the_judgement_tests_what_the_search_never_saw(searched: Study) -> None:
    first = standing(searched, {"loss.name": "ce", "embedding.length": 8}, "raced out")
    second = standing(searched, {"loss.name": "guide_umap", "loss.lowpass": 0.5, "embedding.length": 8}, "finished")
    assert winner_of([first]) is None
    winner = winner_of([first, second])
    assert winner is second
    judged = judgement(searched, winner.variant)
    assert judged.id != searched.id and judged.sweep.stage == "judge"
    assert [variant.baseline for variant in judged.sweep.variants] == [True, False]
    assert len(judged.fold_runs) == 2 * 2 * 2  # variants, locked patients, seeds
    assert not {run.id for run in judged.fold_runs} & {run.id for run in searched.fold_runs}
    seen = np.concatenate([np.r_[f.train, f.validation, f.test] for f in searched.folds[0]])
    patients = searched.data.patient
    assert patients is not None
    for fold, patient in zip(judged.folds[0], ("P3", "P5"), strict=True):
        assert set(patients[fold.test]) == {patient}
        assert not set(fold.test) & set(seen)
        assert patient not in set(patients[np.r_[fold.train, fold.validation]])
        assert len(fold.train) + len(fold.validation) + len(fold.test) == len(patients)
    alone = judgement(searched, searched.sweep.variants[0])
    assert [variant.baseline for variant in alone.sweep.variants] == [True]


def test_a_judgement_is_read_back_from_its_plan(searched: Study) -> None:
    judged = judgement(searched, standing(searched, {"loss.name": "ce", "embedding.length": 8}, "finished").variant)
    judged.write()
    again = read_study(judged.folder)
    assert again.id == judged.id and again.sweep.stage == "judge"
    assert [run.id for run in again.fold_runs] == [run.id for run in judged.fold_runs]


def test_tested_folds_keep_the_ids_of_all_others() -> None:
    assert Config().id == Config(folds=Folds(tested="folds")).id != Config(folds=Folds(holdout=("P1",))).id
    one = Config(folds=Folds(holdout=("P1",), tested="holdout", count=5))
    assert one.id == Config(folds=Folds(holdout=("P1",), tested="holdout", count=4)).id and one.folds.number == 1


@pytest.mark.parametrize(
    ("locked", "settings", "told"),
    [
        ("[patient=P9]", "", r"locked: .patient=P9.: the data 'synthetic marrow' have no patient 'P9'|'patient=P9'"),
        ("[patient=P3, patient=P3-]", "", "have no patient 'P3-'|did you mean 'P3'"),
        ("[P1, P2, P3, P4, P5]", "folds.count=5", "the data have 2 regions.*locked: .*P5. leaves the search no more"),
        ("[P1, P2, P3, P4, P5, P6]", "", "locks every cell away"),
        ("[patient=P3, region=REGION]", "", "two of these groups have cells in common, which would be judged twice"),
        ("[P3]", "folds.validation_group=group", "set folds.validation_group to cell"),
    ],
)
def test_groups_that_cannot_be_locked_are_refused_before_the_search(
    tmp_path: Path, searched: Study, locked: str, settings: str, told: str
) -> None:
    assert searched.data.region is not None and searched.data.patient is not None
    region = str(searched.data.region[searched.data.patient == "P3"][0])
    text = SEARCH.replace("[patient=P3, patient=P5]", locked.replace("REGION", region))
    sweep = load_sweep(write(tmp_path, text), preset="laptop", settings=merged(settings))
    with pytest.raises(SpecError, match=told) as caught:
        make_study(sweep, searched.out, progress=False)
    assert len(caught.value.problems) == 1


def merged(settings: str) -> str:
    """The tiny settings, those of a test in their place."""
    own = {word.partition("=")[0] for word in settings.split()}
    return " ".join([*(word for word in TINY.split() if word.partition("=")[0] not in own), settings])


def test_a_search_needs_data_with_groups(tmp_path: Path, searched: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = replace(searched.data, region=None, patient=None)
    monkeypatch.setattr("sweeps.study.load_dataset", lambda *_, **__: alone)
    sweep = load_sweep(write(tmp_path, SEARCH), preset="laptop", settings=TINY)
    with pytest.raises(SpecError, match="the data name no regions and no patients, so that nothing can be locked"):
        make_study(sweep, tmp_path / "out", progress=False)


def test_a_plan_refuses_what_the_search_would(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for settings, told in (
        (
            "search.stop.rule=racing search.stop.first=2",
            "racing starts with 2 fold runs of a variant, and there are only 2",
        ),
        ("search.sampler=cmaes", "sampler cmaes does not fit this search: 'loss.name' is a choice"),
    ):
        arguments = [write(tmp_path, SEARCH), "--out", str(tmp_path / "out"), "--preset", "laptop"]
        assert main(["plan", *arguments, "--set", f"{TINY} {settings}"]) == 2
        assert told in capsys.readouterr().err


def test_the_precision_of_a_search_is_that_of_its_judgement(searched: Study, tmp_path: Path) -> None:
    plan = plan_of(searched)
    ratio = np.mean(
        [len(fold.test) / len(fold.train) for fold in judgement(searched, searched.sweep.variants[0]).folds[0]]
    )
    assert plan["smallest_difference"] == pytest.approx(smallest_detectable_difference(2, float(ratio), 0.017))
    text = SEARCH.replace("[patient=P3, patient=P5]", "[patient=P3]")
    alone = make_study(load_sweep(write(tmp_path, text), preset="laptop", settings=TINY), searched.out, progress=False)
    assert plan_of(alone)["smallest_difference"] is None


def test_the_plan_counts_what_the_search_has_trained(searched: Study) -> None:
    assert searched.sweep.search is not None
    asked = searched.sweep.search.resolve({"loss.name": "ce", "embedding.length": 8})
    guides = {**searched.guides, asked.config.id: next(iter(searched.guides.values()))}
    grown = replace(searched, sweep=replace(searched.sweep, variants=(*searched.sweep.variants, asked)), guides=guides)
    grown.write()
    for run in grown.runs_of(asked):
        Records(searched.out).write(run, "finished", details={"began": 0.0, "ended": 60.0})
    plan = plan_of(searched)
    assert plan["fold_runs"] == {"planned": 8, "done": 2} and plan["seconds"]["fold_run"] == 60.0


def test_a_damaged_plan_of_an_earlier_judgement_is_named(searched: Study, tmp_path: Path) -> None:
    study = replace(searched, out=tmp_path)
    judged = judgement(study, standing(study, {"loss.name": "ce", "embedding.length": 8}, "finished").variant)
    assert judged.sweep.judges == study.id
    judged.write()
    assert read_study(judged.folder).sweep.judges == study.id
    assert earlier_judgements(judged) == 0
    other = judgement(study, study.sweep.variants[0])
    assert earlier_judgements(other) == 1
    (judged.folder / "study.json").write_text("{")
    with pytest.raises(ValueError, match=r"the plan .*study.json is damaged, so that nobody can say"):
        earlier_judgements(other)


def test_a_judgement_needs_a_hold_out(tmp_path: Path) -> None:
    data = load_dataset(Data(cells=300, size=16), tmp_path, progress=False)
    with pytest.raises(ValueError, match=r"folds.holdout names no region or patient"):
        make_folds(data, Folds(tested="holdout"))


def test_the_plan_of_a_search_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["plan", write(tmp_path, SEARCH), "--out", str(tmp_path / "out"), "--preset", "laptop", "--set", TINY]
    assert main([*arguments, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["fold_runs"] == {"planned": 8, "done": 0}
    assert plan["judgement"] == {"groups": ["patient=P3", "patient=P5"], "seeds": [0, 1], "fold_runs": 8}
    assert plan["seconds"] == {"fold_run": None, "records": 0, "left": None, "worker_hours": None}
    assert plan["combinations"] is None and plan["space"]["loss.lowpass"] == "0 to 1, when loss.name is guide_umap"
    assert not (tmp_path / "out" / "records").exists()
    assert main(arguments) == 0
    told = capsys.readouterr().out
    assert "patient=P3, patient=P5, which the search never sees" in " ".join(told.split())
