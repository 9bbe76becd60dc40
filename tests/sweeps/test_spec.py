from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guided.config import Config
from sweeps.spec import (
    PRESETS,
    SpecError,
    config_keys,
    find_sweep,
    flat,
    load_sweep,
    loss_names,
    nested,
    shipped_sweeps,
)

PLAIN = """
question: Which radius?
kind: ablation
base: {loss.name: guide2d}
vary: {guide.radius: [1, 2, 5]}
baseline: {guide.radius: 5}
"""


def sweep_file(tmp_path: Path, text: str = PLAIN, name: str = "mine") -> str:
    path = tmp_path / f"{name}.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def problems(tmp_path: Path, text: str = PLAIN, **options: object) -> str:
    with pytest.raises(SpecError) as caught:
        load_sweep(sweep_file(tmp_path, text), preset="laptop", **options)  # type: ignore[arg-type]
    return str(caught.value)


def test_a_sweep_by_path_becomes_variants(tmp_path: Path) -> None:
    sweep = load_sweep(sweep_file(tmp_path), preset="laptop")
    assert sweep.name == "mine"
    assert [variant.label for variant in sweep.variants] == ["radius=1", "radius=2", "radius=5"]
    assert [variant.baseline for variant in sweep.variants] == [False, False, True]
    assert len({variant.config.id for variant in sweep.variants}) == 3


def test_several_keys_make_the_full_grid(tmp_path: Path) -> None:
    text = PLAIN.replace("vary: {", "vary: {norm.weight: [0, 0.001], ").replace(
        "baseline: {", "baseline: {norm.weight: 0.001, "
    )
    sweep = load_sweep(sweep_file(tmp_path, text), preset="laptop")
    assert [variant.label for variant in sweep.variants][:2] == ["weight=0, radius=1", "weight=0, radius=2"]
    assert len(sweep.variants) == 6 and sum(variant.baseline for variant in sweep.variants) == 1


NAMED = """
question: Which?
kind: ablation
base: {embedding.length: 8}
variants:
  plain: {loss.name: guide2d}
  lifted: {loss.name: guide_umap, loss.lowpass: 0.5}
baseline: plain
"""


def test_named_variants_have_keys_of_their_own(tmp_path: Path) -> None:
    sweep = load_sweep(sweep_file(tmp_path, NAMED), preset="laptop")
    assert [(variant.label, variant.baseline) for variant in sweep.variants] == [("plain", True), ("lifted", False)]
    plain, lifted = (variant.config for variant in sweep.variants)
    assert plain.loss.name == "guide2d" and plain.embedding.length == lifted.embedding.length == 8
    assert lifted.loss.name == "guide_umap" and lifted.loss.lowpass == 0.5


def test_another_baseline_of_the_same_named_variants_keeps_the_study(tmp_path: Path) -> None:
    first = load_sweep(sweep_file(tmp_path, NAMED), preset="laptop")
    second = load_sweep(sweep_file(tmp_path, NAMED.replace("baseline: plain", "baseline: lifted")), preset="laptop")
    assert first.base_id == second.base_id


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (
            "baseline: plain",
            "baseline: plane",
            "'plane' is not among the variants: plain, lifted; did you mean 'plain'",
        ),
        ("lifted: {loss.name: guide_umap, loss.lowpass: 0.5}", "lifted: {loss.name: guide2d}", "differ in nothing"),
        ("loss.lowpass: 0.5", "loss.lowpas: 0.5", "did you mean 'loss.lowpass'"),
        ("loss.lowpass: 0.5", "folds.count: 3", "'folds.count' would give variants different folds"),
        ("variants:", "vary: {guide.radius: [1, 2]}\nvariants:", "needs either `vary`"),
    ],
)
def test_impossible_named_variants_are_refused(tmp_path: Path, old: str, new: str, told: str) -> None:
    assert old in NAMED
    assert told in problems(tmp_path, NAMED.replace(old, new))


def test_a_setting_does_not_fall_over_a_named_variant(tmp_path: Path) -> None:
    told = problems(tmp_path, NAMED, settings="loss.lowpass=0.9")
    assert "SET gives 'loss.lowpass', which variant 'lifted' sets" in told


def test_later_wins_preset_file_settings(tmp_path: Path) -> None:
    text = PLAIN.replace("guide2d}", "guide2d, train.epochs: 7}")
    path = sweep_file(tmp_path, text)
    assert load_sweep(path, preset="laptop").variants[0].config.train.epochs == 7
    sweep = load_sweep(path, preset="laptop", settings="train.epochs=9 data.size=20 resources.cpus=2")
    assert sweep.variants[0].config.train.epochs == 9
    assert (sweep.data.size, sweep.resources.cpus) == (20, 2)
    assert sweep.variants[0].config.backbone.name == "densenet_small"  # untouched from the preset


@pytest.mark.parametrize("preset", sorted(path.stem for path in PRESETS.glob("*.yaml")))
@pytest.mark.parametrize("name", sorted(shipped_sweeps()))
def test_every_sweep_resolves_under_every_preset(name: str, preset: str) -> None:
    sweep = load_sweep(name, preset=preset)
    assert sum(variant.baseline for variant in sweep.variants) == 1
    text = find_sweep(name).read_text(encoding="utf-8").splitlines()
    assert text[0].endswith("?") and text[0].startswith("# "), "a sweep file starts with its question"
    assert f"make sweep SWEEP={name}" in text[1], "and its command"


def test_the_paper_preset_is_the_papers_protocol() -> None:
    config = load_sweep("ablation_lowpass", preset="paper").variants[0].config
    assert config.backbone.name == "densenet121" and config.train.patience == 256
    assert config.embedding.factor == "paper" and config.validation.classifier == "grid"
    assert config.loss.name == "guide_umap" and config.loss.frame == "raw"
    assert config.loss.engine == "reference" and config.loss.fit_epochs == 500
    assert config.train.learning_rate == 1e-3 and config.train.balance == "none"


def test_all_problems_are_told_at_once_with_did_you_mean(tmp_path: Path) -> None:
    text = PLAIN + "seedz: [1]\n"
    told = problems(tmp_path, text, settings="train.epoch=4 guide.radius=2 embedding.length=1.5 data.sise=9 loose")
    for part in (
        "unknown key 'seedz'; did you mean 'seeds'?",
        "unknown key 'train.epoch'; did you mean 'train.epochs'?",
        "SET gives 'guide.radius', which the sweep varies",
        "embedding.length",
        "unknown key 'data.sise'; did you mean 'data.size'?",
        "SET 'loose' is not of the form key=value",
    ):
        assert part in told


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("[1, 2, 5]", "[1, -2, 5]", "guide.radius: input should be greater than 0 (given: -2)"),
        ("[1, 2, 5]", "[1, .inf, 5]", "numbers"),
        ("[1, 2, 5]", "[1, 'two', 5]", "guide.radius"),
        ("[1, 2, 5]", "[1, 5, 5]", "lists 5 twice"),
        ("[1, 2, 5]", "[]", "vary"),
        ("vary: {guide.radius: [1, 2, 5]}\n", "", "needs either `vary`"),
        ("radius: 5", "radius: 4", "baseline {'guide.radius': 4} is not among the variants"),
        ("guide2d", "guide3d", f"'guide3d' is not one of {', '.join(loss_names())}; did you mean 'guide2d'?"),
        ("guide2d", "guide2d, loss.distance: l3", "loss.distance: input should be 'l1', 'l2' or 'squared'"),
        ("loss.name: guide2d", "loss.name: guide2d, loss.lowpass: 0.5", "an option of loss guide_umap, not of guide2d"),
        ("vary: {guide.radius: [1, 2, 5]}", "vary: {folds.count: [3, 5]}", "nothing could be compared"),
        ("kind: ablation", "kind: abblation", "kind: input should be 'ablation'"),
        ("question: Which radius?\n", "", "question: field required"),
        ("question: Which radius?", "question: a\nquestion: b", "key 'question' stands twice"),
        ("kind:", "seeds: [0, 0]\nkind:", "seeds: [0, 0] has a value twice"),
        ("kind:", "seeds: [-1]\nkind:", "seeds"),
    ],
)
def test_impossible_sweeps_are_refused_by_name(tmp_path: Path, old: str, new: str, told: str) -> None:
    assert old in PLAIN
    assert told in problems(tmp_path, PLAIN.replace(old, new))


def test_variants_that_differ_in_nothing_are_told(tmp_path: Path) -> None:
    text = PLAIN.replace("[1, 2, 5]", "[1, 1.0000, 5.0]")
    assert "lists 1.0 twice" in problems(tmp_path, text)


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [", "", "just text"])
def test_files_that_are_no_sweep_are_refused(tmp_path: Path, text: str) -> None:
    assert "mine.yaml" in problems(tmp_path, text)


def test_unknown_names_come_with_the_nearest() -> None:
    with pytest.raises(SpecError, match="did you mean 'ablation_lowpass'"):
        load_sweep("ablation_lowpas", preset="laptop")
    with pytest.raises(SpecError, match="did you mean 'laptop'"):
        load_sweep("ablation_lowpass", preset="labtop")


def test_a_longer_list_keeps_the_study_and_its_variants(tmp_path: Path) -> None:
    short = load_sweep(sweep_file(tmp_path), preset="laptop")
    longer = load_sweep(sweep_file(tmp_path, PLAIN.replace("[1, 2, 5]", "[1, 2, 3, 5]")), preset="laptop")
    other = load_sweep(sweep_file(tmp_path), preset="laptop", settings="train.epochs=3")
    assert short.base_id == longer.base_id != other.base_id
    assert {v.config.id for v in short.variants} < {v.config.id for v in longer.variants}


def test_weights_become_an_absolute_path(tmp_path: Path) -> None:
    sweep = load_sweep(sweep_file(tmp_path), preset="laptop", settings="backbone.weights=some/file.pt")
    assert Path(sweep.variants[0].config.backbone.weights).is_absolute()


@pytest.mark.parametrize("loss", loss_names())
def test_config_keys_are_those_of_a_configuration(loss: str) -> None:
    config = Config.model_validate({"loss": {"name": loss}})
    said = set(flat(config.model_dump())) | {"classifier.components"}  # left out where it says nothing
    assert set(config_keys(loss)) == said


@given(
    st.dictionaries(st.tuples(st.sampled_from("abc"), st.sampled_from("xyz")), st.integers(), min_size=1, max_size=6)
)
def test_flat_and_nested_are_inverse(values: dict[tuple[str, str], int]) -> None:
    dotted = {".".join(key): value for key, value in values.items()}
    assert flat(nested(dotted)) == dotted
