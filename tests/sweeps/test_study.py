from __future__ import annotations

from pathlib import Path

import pytest

from guided.data import Dataset
from guided.guide import load_guide
from sweeps.spec import SpecError, load_sweep
from sweeps.study import Study


def write(path: Path, base: str, vary: str, baseline: str) -> str:
    path.write_text(f"question: Does it?\nkind: ablation\nbase: {base}\nvary: {vary}\nbaseline: {baseline}\n")
    return str(path)


def about_length(study: Study) -> list[str]:
    return [told for told in study.warnings() if told.startswith("variant")]


@pytest.mark.parametrize(
    ("base", "told"),
    [
        ("{embedding.factor: 1}", "never reaches length 64 in 10 epochs; raise train.epochs or embedding.factor"),
        ("{embedding.rule: staged, train.epochs: 3}", "never reaches length 64 in 3 epochs; raise train.epochs"),
        ("{embedding.growing: false, train.epochs: 2}", "never reaches length 64 in 2 epochs; raise train.epochs"),
        (
            "{embedding.rule: plateau}",
            "never reaches length 64 in 10 epochs; raise train.epochs or embedding.step, or lower embedding.patience",
        ),
        (
            "{embedding.rule: plateau, embedding.step: 8}",
            "grows when its validation score stalls: length 64 in 10 epochs is possible, not guaranteed; "
            "see best/length of its fold runs",
        ),
    ],
)
def test_a_length_that_may_not_be_reached_is_told(tmp_path: Path, marrow: Dataset, base: str, told: str) -> None:
    path = write(tmp_path / "one.yaml", base, "{guide.radius: [5]}", "{guide.radius: 5}")
    study = Study(load_sweep(path, preset="laptop"), marrow, {}, tmp_path)
    assert about_length(study) == [f"variant 'radius=5' {told}"]


def test_a_length_that_is_reached_is_not_told(tmp_path: Path, marrow: Dataset) -> None:
    path = write(tmp_path / "rules.yaml", "{}", "{embedding.rule: [paper, literal, staged]}", "{embedding.rule: paper}")
    assert about_length(Study(load_sweep(path, preset="laptop"), marrow, {}, tmp_path)) == []


def test_a_seed_in_the_base_of_a_sweep_over_guides_means_nothing_to_the_expert_drawing(tmp_path: Path) -> None:
    vary, baseline = "{guide.transform: [none, shuffled, polygon, random, tree]}", "{guide.transform: none}"
    one, other = (
        load_sweep(write(tmp_path / f"{seed}.yaml", f"{{guide.seed: {seed}}}", vary, baseline), preset="laptop")
        for seed in (0, 1)
    )
    shared = {variant.config.id for variant in one.variants} & {variant.config.id for variant in other.variants}
    assert {v.varied["guide.transform"] for v in one.variants if v.config.id in shared} == {"none", "polygon", "tree"}
    assert one.base_id != other.base_id, "two drawings called transform=random would meet in one table"


def test_a_grid_over_seeds_that_nothing_draws_from_is_refused(tmp_path: Path) -> None:
    path = write(
        tmp_path / "twins.yaml",
        "{}",
        "{guide.transform: [none, random], guide.seed: [0, 1]}",
        "{guide.transform: none, guide.seed: 0}",
    )
    with pytest.raises(SpecError) as caught:
        load_sweep(path, preset="laptop")
    assert caught.value.problems == ["variants 'transform=none, seed=0' and 'transform=none, seed=1' differ in nothing"]


def test_who_trains_and_who_takes_an_embedding(tmp_path: Path, marrow: Dataset) -> None:
    """Of variants that differ in nothing before the classifier, the first trains each fold, or none where all is
    kept; the whole grid in every epoch chooses the epoch, and then each has an embedding of its own."""
    vary = "{classifier.families: [[knn], [svm]], guide.radius: [2, 5]}"
    baseline = "{classifier.families: [knn], guide.radius: 5}"

    def study(base: str) -> Study:
        sweep = load_sweep(write(tmp_path / "grids.yaml", base, vary, baseline), preset="laptop")
        guides = {each.config.id: load_guide(each.config.guide, marrow.classes) for each in sweep.variants}
        return Study(sweep, marrow, guides, tmp_path)

    cheap = study("{validation.classifier: centroid}")
    train, take = cheap.in_turns(cheap.fold_runs)
    for turn, family in ((train, "knn"), (take, "svm")):
        assert [(run.config.classifier.families, run.fold) for run in turn] == [((family,), n // 2) for n in range(10)]
    assert all(cheap.keeps(run.config) for run in train) and len({cheap.embedding_of(run) for run in train}) == 10
    cheap.embeddings.mkdir()
    cheap.embedding_of(train[0]).touch()
    assert cheap.in_turns(cheap.fold_runs)[1] == [train[0], *take]
    grid = study("{validation.classifier: grid}")
    assert grid.in_turns(grid.fold_runs) == (grid.fold_runs, [])
    assert not any(grid.keeps(variant.config) for variant in grid.sweep.variants)
