"""The synthetic marrow: its structure, its determinism, and a difficulty that is fixed without any network."""

from __future__ import annotations

import hashlib
import math
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.metrics import confusion_matrix, f1_score
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict

from guided.guide import SHIPPED, read_guide
from guided.synthetic import (
    CLASSES,
    FEATURES,
    PARAMETERS,
    TRAJECTORIES,
    Marrow,
    apportion,
    class_log_density,
    render_marrow,
    simple_features,
    typical_parameters,
)

NAMES = [c.name for c in CLASSES]
SHARES = np.array([c.share for c in CLASSES], dtype=float)


@pytest.fixture(scope="module")
def smear() -> Marrow:
    return render_marrow(4000, 48)


@pytest.fixture(scope="module")
def bayes(smear: Marrow) -> np.ndarray:
    """Posterior (N, C) of each class given the true parameters."""
    joint = class_log_density(smear.parameters) + np.log(SHARES / SHARES.sum())
    joint -= joint.max(1, keepdims=True)
    return np.exp(joint) / np.exp(joint).sum(1, keepdims=True)


# --- structure


def test_classes_are_those_of_the_marrow_guide() -> None:
    guide = read_guide(SHIPPED / "marrow.yaml")
    assert [(c.name, c.lineage, float(c.stage)) for c in CLASSES] == list(
        zip(guide.classes, guide.lineages, map(float, guide.stages), strict=True)
    )


def test_shapes_and_types(smear: Marrow) -> None:
    assert smear.images.shape == (4000, 48, 48, 3)
    assert smear.images.dtype == np.uint8
    assert smear.labels.dtype == np.int64
    assert smear.classes == tuple(NAMES)
    assert smear.maturity.dtype == smear.parameters.dtype == np.float32
    assert smear.parameters.shape == (4000, len(PARAMETERS)) == (4000, len(smear.parameter_names))
    assert smear.patient.shape == smear.region.shape == (4000,)
    assert np.isfinite(smear.parameters).all()


@pytest.mark.parametrize("cells", [3000, 4000, 7020])
def test_imbalance_is_30_to_1(cells: int) -> None:
    counts = dict(zip(NAMES, apportion(cells, SHARES).tolist(), strict=True))
    rare, common = counts["proerythroblast"], counts["segmented_neutrophil"]
    assert min(counts.values()) == rare
    assert max(counts.values()) == common
    assert 30 * (rare - 0.5) - 0.5 <= common <= 30 * (rare + 0.5) + 0.5
    assert sorted(counts.values())[1] >= 3.5 * rare


def test_labels_have_the_apportioned_counts(smear: Marrow) -> None:
    np.testing.assert_array_equal(np.bincount(smear.labels), apportion(4000, SHARES))


def test_regions_belong_to_one_patient(smear: Marrow) -> None:
    pairs = sorted(set(zip(smear.patient.tolist(), smear.region.tolist(), strict=True)))
    assert len({region for _, region in pairs}) == len(pairs) == 13
    per_patient = [sum(p == patient for p, _ in pairs) for patient in sorted({p for p, _ in pairs})]
    assert per_patient == [3, 2, 2, 2, 2, 2]


def test_regions_have_similar_sizes_but_differ(smear: Marrow) -> None:
    sizes = np.unique(smear.region, return_counts=True)[1]
    assert len(set(sizes.tolist())) > 1
    assert sizes.min() * 13 / 4000 > 0.5
    assert sizes.max() * 13 / 4000 < 2


@pytest.mark.parametrize("seed", range(5))
def test_five_folds_by_region_have_every_class_on_both_sides(seed: int) -> None:
    marrow = render_marrow(3000, 16, seed=seed)
    splitter = StratifiedGroupKFold(5, shuffle=True, random_state=0)
    for train, test in splitter.split(marrow.labels, marrow.labels, marrow.region):
        assert set(marrow.labels[train]) == set(marrow.labels[test]) == set(range(len(CLASSES)))


def test_a_class_is_spread_over_its_share_of_regions(smear: Marrow) -> None:
    for label, count in enumerate(np.bincount(smear.labels)):
        in_region = np.unique(smear.region[smear.labels == label], return_counts=True)[1]
        assert len(in_region) >= min(count, 13) * 0.7
        assert in_region.max() <= max(3, 3 * count / 13)


def test_maturity_scatters_around_the_stage(smear: Marrow) -> None:
    for label, cell_class in enumerate(CLASSES):
        maturity = smear.maturity[smear.labels == label]
        error = cell_class.spread / math.sqrt(len(maturity))
        assert abs(maturity.mean() - cell_class.stage) < 4 * error, cell_class.name
        assert 0.5 * cell_class.spread < maturity.std() < 1.5 * cell_class.spread, cell_class.name


@given(
    total=st.integers(1, 3000),
    shares=st.lists(st.floats(0.01, 100), min_size=1, max_size=20),
)
def test_apportioned_counts_are_near_the_quota(total: int, shares: list[float]) -> None:
    weights = np.array(shares)
    if total < len(shares):
        with pytest.raises(ValueError, match="cannot give each"):
            apportion(total, weights)
        return
    counts = apportion(total, weights)
    quota = total * weights / weights.sum()
    assert counts.sum() == total
    assert counts.min() >= 1
    if quota.min() >= 1:
        assert (np.abs(counts - quota) < 1 + 1e-9).all()
    larger = weights[:, None] > weights[None, :]
    assert (counts[:, None] >= counts[None, :])[larger].all()


# --- determinism


def _digest(marrow: Marrow) -> str:
    digest = hashlib.sha256()
    for values in (marrow.images, marrow.labels, marrow.maturity, marrow.parameters):
        digest.update(values.tobytes())
    digest.update("".join([*marrow.patient, *marrow.region]).encode())
    return digest.hexdigest()


def test_same_seed_same_bytes_in_another_process_whatever_the_global_random_state() -> None:
    program = (
        "import numpy as np; np.random.seed(7); np.random.rand(3)\n"
        "import hashlib; from guided.synthetic import render_marrow; m = render_marrow(60, 20, seed=3)\n"
        "d = hashlib.sha256()\n"
        "for v in (m.images, m.labels, m.maturity, m.parameters): d.update(v.tobytes())\n"
        "d.update(''.join([*m.patient, *m.region]).encode()); print(d.hexdigest())"
    )
    other = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == _digest(render_marrow(60, 20, seed=3))


def test_another_seed_is_another_marrow() -> None:
    one, other = render_marrow(60, 20, seed=3), render_marrow(60, 20, seed=4)
    assert not np.array_equal(one.labels, other.labels)
    assert not np.array_equal(one.images, other.images)


@settings(max_examples=8, deadline=None)
@given(cells=st.integers(15, 60), sizes=st.tuples(st.integers(16, 40), st.integers(16, 90)), seed=st.integers(0, 99))
def test_another_size_shows_the_same_cells(cells: int, sizes: tuple[int, int], seed: int) -> None:
    one, other = (render_marrow(cells, size, seed=seed) for size in sizes)
    for field in ("labels", "patient", "region", "maturity", "parameters"):
        np.testing.assert_array_equal(getattr(one, field), getattr(other, field))
    assert set(one.labels) == set(range(len(CLASSES)))
    assert one.images.shape == (cells, sizes[0], sizes[0], 3)


def test_a_fine_patch_averaged_is_the_coarse_patch() -> None:
    fine = render_marrow(60, 128).images.astype(float).reshape(60, 32, 4, 32, 4, 3).mean((2, 4))
    coarse = render_marrow(60, 32).images.astype(float)
    difference = np.abs(fine - coarse).mean((1, 2, 3))
    contrast = fine.std((1, 2)).mean(1)
    assert (difference < 0.25 * contrast).all()
    # Another cell in its place is no such match.
    assert (np.abs(fine - np.roll(coarse, 1, axis=0)).mean((1, 2, 3)) > difference).all()


def test_a_cell_does_not_depend_on_its_place_in_a_batch() -> None:
    # 180 px leaves one cell to a batch, 90 px eight: each second pixel pair of the former must look like the latter.
    fine = render_marrow(20, 180).images.astype(float).reshape(20, 90, 2, 90, 2, 3).mean((2, 4))
    coarse = render_marrow(20, 90).images.astype(float)
    assert np.abs(fine - coarse).mean() < 4


# --- what is drawn


def test_trajectories_have_every_parameter_and_their_classes_stages() -> None:
    for cell_class in CLASSES:
        assert cell_class.stage in TRAJECTORIES[cell_class.lineage]
    for knots in TRAJECTORIES.values():
        assert list(knots) == sorted(knots)
        assert {len(values) for values in knots.values()} == {len(PARAMETERS)}


def test_typical_parameters_at_the_stage_are_the_knots_and_halfway_their_middle_on_the_link_scale() -> None:
    myelocyte = NAMES.index("myelocyte")
    typical = typical_parameters(np.full(3, myelocyte), np.array([2.0, 2.5, 3.0]))
    knots = TRAJECTORIES["neutrophilic"]
    for p, parameter in enumerate(PARAMETERS):
        before, after = knots[2][p], knots[3][p]
        if parameter.link == "log":
            ends = [math.log(before), math.log(after)]
        else:
            ends = [math.log(before / (1 - before)), math.log(after / (1 - after))]
        np.testing.assert_allclose(typical[:, p], [ends[0], sum(ends) / 2, ends[1]], atol=1e-12)


def test_pictures_show_what_an_expert_would_look_for(smear: Marrow) -> None:
    """Nuclei shrink with erythroid maturity; eosinophils are the reddest cells, basophils darker than neutrophils."""
    middle = smear.images[:, 12:36, 12:36].astype(float)
    nuclear = (middle[..., 1] < 0.42 * 255).mean((1, 2))

    def mean_of(values: np.ndarray, name: str) -> float:
        return float(values[smear.labels == NAMES.index(name)].mean())

    erythroid = [mean_of(nuclear, c.name) for c in CLASSES if c.lineage == "erythroid"]
    assert erythroid == sorted(erythroid, reverse=True)
    redness = (middle[..., 0] - middle[..., 2]).mean((1, 2))
    assert max(NAMES, key=lambda name: mean_of(redness, name)) == "eosinophil"
    red = middle[..., 0].mean((1, 2))
    assert mean_of(red, "basophil") < mean_of(red, "segmented_neutrophil")


def test_stain_is_the_patients_and_light_the_regions(smear: Marrow) -> None:
    """The background varies between regions, and the colour of nuclei between patients, by more than chance."""
    palest = np.percentile(smear.images[..., 1].reshape(4000, -1), 95, axis=1)
    for values, groups in (
        (palest, smear.region),
        (simple_features(smear.images)[:, FEATURES.index("nuclear_red")], smear.patient),
    ):
        names = np.unique(groups)
        between = np.std([values[groups == name].mean() for name in names])
        shuffled = np.random.default_rng(0).permutation(groups)
        by_chance = np.std([values[shuffled == name].mean() for name in names])
        assert between > 3 * by_chance


# --- difficulty


def test_class_log_density_is_the_integral_over_maturity() -> None:
    parameters = render_marrow(15, 16).parameters.astype(float)
    density = class_log_density(parameters, nodes=201)
    steps = np.linspace(-4, 4, 201)
    prior = np.exp(-0.5 * steps**2)
    prior /= prior.sum()
    for n in (0, 5, 9):
        for label, cell_class in enumerate(CLASSES):
            total = 0.0
            for z, weight in zip(steps, prior, strict=True):
                mean = typical_parameters(np.array([label]), np.array([cell_class.stage + cell_class.spread * z]))[0]
                log = 0.0
                for p, parameter in enumerate(PARAMETERS):
                    x = parameters[n, p]
                    link = math.log(x) if parameter.link == "log" else math.log(x / (1 - x))
                    log -= 0.5 * ((link - mean[p]) / parameter.spread) ** 2
                    log -= math.log(parameter.spread * math.sqrt(2 * math.pi))
                total += weight * math.exp(log)
            if total > 1e-250:
                assert density[n, label] == pytest.approx(math.log(total), abs=1e-6)
            else:
                assert density[n, label] < -500


def test_class_log_density_has_enough_nodes(smear: Marrow) -> None:
    own = np.arange(400), smear.labels[:400]
    few, many = class_log_density(smear.parameters[:400]), class_log_density(smear.parameters[:400], nodes=3001)
    np.testing.assert_allclose(few[own], many[own], atol=0.01)


def test_class_log_density_refuses_other_columns() -> None:
    with pytest.raises(ValueError, match=r"shape \(2, 3\)"):
        class_log_density(np.ones((2, 3)))


def test_bayes_posterior_is_calibrated(smear: Marrow, bayes: np.ndarray) -> None:
    """Density and sampler agree: among cells given probability p, a share p is of that class."""
    truth = np.eye(len(CLASSES))[smear.labels]
    edges = np.linspace(0, 1, 6)
    for low, high in pairwise(edges):
        inside = (bayes > max(low, 1e-6)) & (bayes <= high)
        error = 4 * math.sqrt((bayes[inside] * (1 - bayes[inside])).sum()) / inside.sum()
        assert abs(truth[inside].mean() - bayes[inside].mean()) < error + 1e-4


def test_bayes_classifier_on_the_true_parameters_reaches_075_to_090(smear: Marrow, bayes: np.ndarray) -> None:
    assert 0.75 <= f1_score(smear.labels, bayes.argmax(1), average="macro") <= 0.90


def test_bayes_classifier_confuses_neighbouring_stages_not_lineages(smear: Marrow, bayes: np.ndarray) -> None:
    confusion = confusion_matrix(smear.labels, bayes.argmax(1), labels=range(len(CLASSES)))
    lineage = np.array([c.lineage for c in CLASSES])
    neighbour = sum(
        confusion[a, b] + confusion[b, a]
        for a, b in zip(range(len(CLASSES) - 1), range(1, len(CLASSES)), strict=True)
        if lineage[a] == lineage[b]
    )
    other = confusion[lineage[:, None] != lineage].sum()
    assert other > 0
    assert neighbour >= 3 * other


@pytest.mark.parametrize("size", [32, 48, 64])
def test_linear_discriminant_on_simple_features_reaches_025_to_045(smear: Marrow, size: int) -> None:
    images = smear.images if size == 48 else render_marrow(4000, size).images
    features = simple_features(images)
    assert features.shape == (4000, len(FEATURES))
    folds = StratifiedGroupKFold(5, shuffle=True, random_state=0)
    predicted = cross_val_predict(LinearDiscriminantAnalysis(), features, smear.labels, groups=smear.region, cv=folds)
    assert 0.25 <= f1_score(smear.labels, predicted, average="macro") <= 0.45


def test_simple_features_of_known_patches() -> None:
    white, half = np.full((16, 16, 3), 255, dtype=np.uint8), np.full((16, 16, 3), 255, dtype=np.uint8)
    half[:, :8] = (51, 0, 102)
    plain, split = (dict(zip(FEATURES, row, strict=True)) for row in simple_features(np.stack([white, half])))
    assert plain["mean_green"] == 1
    assert plain["sd_red"] == plain["nuclear_area"] == plain["nuclear_red"] == plain["middle_saturation"] == 0
    assert split["nuclear_area"] == pytest.approx(0.5)
    assert split["nuclear_red"] == pytest.approx(0.2)
    assert split["nuclear_blue"] == pytest.approx(0.4)
    assert split["mean_green"] == pytest.approx(0.5)
    assert split["sd_green"] == pytest.approx(0.5)
    assert split["middle_saturation"] == pytest.approx(0.2)


# --- bad arguments


@given(cells=st.integers(-5, 14))
def test_fewer_cells_than_classes_are_refused(cells: int) -> None:
    with pytest.raises(ValueError, match=f"cells is {cells}, but the marrow has 15 classes"):
        render_marrow(cells, 32)


@given(size=st.integers(-5, 15))
def test_tiny_patches_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"size is {size} px"):
        render_marrow(100, size)


@given(patients=st.integers(-3, 20), fewer=st.integers(1, 5))
def test_fewer_regions_than_patients_are_refused(patients: int, fewer: int) -> None:
    offender = "patients is" if patients < 1 else "regions is"
    with pytest.raises(ValueError, match=offender):
        render_marrow(100, 32, patients=patients, regions=patients - fewer)


@pytest.mark.parametrize(("patients", "regions"), [(1, 1), (1, 4), (3, 3), (20, 40)])
def test_other_numbers_of_patients_and_regions(patients: int, regions: int) -> None:
    marrow = render_marrow(400, 16, patients=patients, regions=regions)
    assert len(set(marrow.patient)) == patients
    assert len(set(marrow.region)) == regions
