from __future__ import annotations

import dataclasses
import itertools
import re
from pathlib import Path

import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from sklearn.model_selection import StratifiedGroupKFold

from guided.config import Config, Folds
from guided.data import Dataset
from guided.folds import Fold, cuts_of, holdout_rows, imbalance, make_folds


def data_set(labels: np.ndarray, region: np.ndarray | None = None, patient: np.ndarray | None = None) -> Dataset:
    classes = tuple(f"class{c}" for c in range(int(labels.max()) + 1))
    return Dataset(
        name="made",
        images=np.zeros((len(labels), 4, 4, 3), np.uint8),
        labels=labels.astype(np.int64),
        classes=classes,
        ids=np.array([f"cell{i}" for i in range(len(labels))]),
        region=region,
        patient=patient,
        maturity=None,
        fingerprint="0" * 16,
        directory=Path("nowhere"),
        notes=(),
    )


def grouped(seed: int, cells: int = 400, regions: int = 13) -> Dataset:
    rng = np.random.default_rng(seed)
    numbers = rng.integers(0, regions, cells)
    return data_set(
        rng.choice(5, cells, p=[0.5, 0.2, 0.15, 0.1, 0.05]),
        np.array([f"r{n}" for n in numbers]),
        np.array([f"p{n // 2}" for n in numbers]),
    )


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), group=st.sampled_from(["region", "patient", "none"]), partition=st.integers(0, 9))
def test_folds_partition_the_cells_and_keep_groups_together(seed: int, group: str, partition: int) -> None:
    data = grouped(seed)
    folds = make_folds(data, Folds(group=group), partition)  # type: ignore[arg-type]
    tested = np.concatenate([fold.test for fold in folds])
    assert np.array_equal(np.sort(tested), np.arange(len(data.labels)))
    names = {"region": data.region, "patient": data.patient, "none": None}[group]
    for fold in folds:
        together = np.concatenate([fold.train, fold.validation, fold.test])
        assert np.array_equal(np.sort(together), np.arange(len(data.labels)))
        if names is not None:
            rest = np.concatenate([fold.train, fold.validation])
            assert not set(names[fold.test]) & set(names[rest])


def test_validation_is_an_eighth_and_stratified() -> None:
    data = grouped(0, cells=2000)
    for fold in make_folds(data, Folds()):
        rest = np.concatenate([fold.train, fold.validation])
        assert len(fold.validation) == pytest.approx(0.125 * len(rest), abs=1)
        for c in range(5):
            mine, all_of_class = np.sum(data.labels[fold.validation] == c), np.sum(data.labels[rest] == c)
            assert abs(mine - 0.125 * all_of_class) <= 1


def test_auto_takes_regions_then_patients_then_cells() -> None:
    data = grouped(0)
    assert make_folds(data, Folds())[0].grouped_by == "region"
    assert make_folds(dataclasses.replace(data, region=None), Folds())[0].grouped_by == "patient"
    assert make_folds(dataclasses.replace(data, region=None, patient=None), Folds())[0].grouped_by == "none"


def test_patients_on_both_sides_are_told() -> None:
    notes = [note for fold in make_folds(grouped(0), Folds(group="region")) for note in fold.notes]
    assert any(note.startswith("patients in training and test: p") for note in notes)
    notes = [note for fold in make_folds(grouped(0), Folds(group="patient")) for note in fold.notes]
    assert not any("patients" in note for note in notes)


def test_an_absent_class_is_told() -> None:
    labels = np.array([0, 1] * 50 + [2, 2])
    region = np.array([f"r{i % 5}" for i in range(100)] + ["r0", "r0"])
    folds = make_folds(data_set(labels, region), Folds())
    absent_from_test = [fold.index for fold in folds if "no test cell of class2" in fold.notes]
    absent_from_training = [fold.index for fold in folds if "no training cell of class2" in fold.notes]
    assert len(absent_from_test) == 4 and len(absent_from_training) == 1


def test_a_grouping_the_data_do_not_have_is_refused() -> None:
    data = data_set(np.array([0, 1] * 20))
    with pytest.raises(ValueError, match=r"folds\.group is patient, but the data 'made' name no patients"):
        make_folds(data, Folds(group="patient"))


def test_fewer_groups_than_folds_are_refused() -> None:
    with pytest.raises(ValueError, match=r"folds\.count is 5, but the data have 3 regions"):
        make_folds(grouped(0, regions=3), Folds())
    with pytest.raises(ValueError, match="no class has that many cells"):
        make_folds(data_set(np.array([0, 1, 2])), Folds())


@pytest.mark.parametrize(
    ("train", "validation", "test", "told"),
    [
        ([0, 1], [2], [], "no test cells"),
        ([0, 1], [1], [3], "a cell stands in two parts"),
        ([0, 1], [2], [1], "a cell stands in two parts"),
        ([0], [2], [1], "region 'a' stands in the test part"),
    ],
)
def test_a_fold_proves_its_own_disjointness(
    train: list[int], validation: list[int], test: list[int], told: str
) -> None:
    groups = np.array(["a", "a", "b", "c"])
    parts = (np.array(part, dtype=np.int64) for part in (train, validation, test))
    with pytest.raises(ValueError, match=told):
        Fold(0, 0, *parts, grouped_by="region", groups=groups)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"validation_group": "group"}, "region 'a' stands in the training part and in validation"),
        ({"holdout": np.array([3])}, "a cell of the hold-out stands in it"),
    ],
)
def test_a_fold_proves_its_hold_out_and_its_grouped_validation(changed: dict[str, object], told: str) -> None:
    groups = np.array(["a", "a", "b", "c"])
    parts = [np.array(part, dtype=np.int64) for part in ([0], [1], [2, 3])]
    Fold(0, 0, *parts, grouped_by="region", groups=groups)
    with pytest.raises(ValueError, match=told):
        Fold(0, 0, *parts, grouped_by="region", groups=groups, **changed)  # type: ignore[arg-type]


# --- the order of rows


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    group=st.sampled_from(["region", "patient", "none"]),
    validation_group=st.sampled_from(["cell", "group"]),
    partition=st.integers(0, 3),
)
def test_the_order_of_rows_changes_no_fold(seed: int, group: str, validation_group: str, partition: int) -> None:
    if group == "none":
        validation_group = "cell"
    data = grouped(seed)
    order = np.random.default_rng(seed + 1).permutation(len(data.labels))
    assert data.region is not None and data.patient is not None
    other = dataclasses.replace(
        data,
        labels=data.labels[order],
        ids=data.ids[order],
        region=data.region[order],
        patient=data.patient[order],
    )
    config = Folds(group=group, validation_group=validation_group)  # type: ignore[arg-type]
    for one, two in zip(make_folds(data, config, partition), make_folds(other, config, partition), strict=True):
        for part in ("train", "validation", "test"):
            assert set(data.ids[getattr(one, part)]) == set(other.ids[getattr(two, part)])
        assert one.notes == two.notes


# --- balance and repeats


def cut_of(folds: list[Fold], groups: np.ndarray) -> frozenset[frozenset[str]]:
    """The groups tested together."""
    return frozenset(frozenset(groups[fold.test].tolist()) for fold in folds)


def unevenness(data: Dataset, folds: list[Fold]) -> float:
    counts = [[int(np.sum(data.labels[fold.test] == c)) for c in range(len(data.classes))] for fold in folds]
    return oracles.imbalance(counts, [1 / len(folds)] * len(folds))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), parts=st.integers(2, 4))
def test_imbalance_is_the_oracles(seed: int, parts: int) -> None:
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 9, (7, 3)) + np.eye(7, 3, dtype=int)
    counts[:, 2] *= int(rng.integers(0, 2))  # a class that does not occur is no class
    shares = rng.dirichlet(np.ones(parts))
    cuts = rng.integers(0, parts, (5, 7))
    expected = [
        oracles.imbalance([counts[cut == part].sum(0).tolist() for part in range(parts)], shares.tolist())
        for cut in cuts
    ]
    np.testing.assert_allclose(imbalance(cuts, counts, shares), expected, rtol=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_the_first_partition_of_few_groups_is_the_best_there_is(seed: int) -> None:
    data = grouped(seed, regions=7)
    folds = make_folds(data, Folds(count=3))
    assert data.region is not None
    names, member = np.unique(data.region, return_inverse=True)
    best = min(
        oracles.imbalance(
            [
                [int(np.sum((np.array(cut)[member] == part) & (data.labels == c))) for c in range(5)]
                for part in range(3)
            ],
            [1 / 3] * 3,
        )
        for cut in itertools.product(range(3), repeat=len(names))
        if set(cut) == {0, 1, 2} and cut[0] == 0
    )
    assert unevenness(data, folds) == pytest.approx(best)


@pytest.mark.parametrize("seed", range(6))
def test_the_first_partition_is_no_worse_than_scikit_learns(seed: int) -> None:
    data = grouped(seed, cells=1500)
    splits = StratifiedGroupKFold(5, shuffle=True, random_state=0).split(data.labels, data.labels, data.region)
    counts = [[int(np.sum(data.labels[test] == c)) for c in range(5)] for _, test in splits]
    assert unevenness(data, make_folds(data, Folds())) <= oracles.imbalance(counts, [0.2] * 5) + 1e-9


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), partition=st.integers(0, 4))
def test_sizes_and_classes_are_alike_over_the_folds(seed: int, partition: int) -> None:
    data = grouped(seed, cells=2000, regions=25)
    for fold in make_folds(data, Folds(), partition):
        assert len(fold.test) == pytest.approx(400, rel=0.12)
        share = np.bincount(data.labels[fold.test], minlength=5) / len(fold.test)
        np.testing.assert_allclose(share, np.bincount(data.labels) / 2000, atol=0.04)


@pytest.mark.parametrize("group", ["region", "none"])
def test_partitions_really_differ(group: str) -> None:
    """Scikit-learn's generator gives one partition over all seeds here: no repeat would be one."""
    data = grouped(0, cells=1500)
    assert data.region is not None
    tested: set[frozenset[str]] = set()
    for partition in range(10):
        folds = make_folds(data, Folds(group=group), partition)  # type: ignore[arg-type]
        blocks = {frozenset(data.ids[fold.test].tolist()) for fold in folds}
        assert not blocks & tested, "a fold tests the very cells of an earlier one"
        assert not any("earlier partition" in note for fold in folds for note in fold.notes)
        tested |= blocks
    assert len(tested) == 50


def test_a_partition_is_the_same_whichever_were_asked_for_before() -> None:
    from guided.folds import _nth_cut

    data = grouped(3)
    later = make_folds(data, Folds(), 4)
    for partition in range(6):
        make_folds(data, Folds(), partition)
    _nth_cut.cache_clear()
    again = make_folds(data, Folds(), 4)
    for one, two in zip(later, again, strict=True):
        assert np.array_equal(one.test, two.test) and np.array_equal(one.validation, two.validation)


@pytest.mark.parametrize(("regions", "count", "ways"), [(6, 5, 15), (5, 5, 1), (5, 2, 15), (6, 3, 90)])
def test_every_partition_there_is_comes_once_and_no_more(regions: int, count: int, ways: int) -> None:
    data = grouped(1, regions=regions)
    assert data.region is not None
    seen = {cut_of(make_folds(data, Folds(count=count), n), data.region) for n in range(ways)}
    assert len(seen) == ways == cuts_of(regions, count)
    told = rf"partition {ways} is asked for, but {regions} regions can be cut into {count} folds in {ways} ways? only"
    with pytest.raises(ValueError, match=told):
        make_folds(data, Folds(count=count), ways)


def test_too_few_groups_for_new_folds_are_told() -> None:
    data = grouped(1, regions=6)
    assert not any("earlier" in note for fold in make_folds(data, Folds(), 0) for note in fold.notes)
    notes = [note for fold in make_folds(data, Folds(), 1) for note in fold.notes]
    assert "the same regions are tested in an earlier partition" in notes


@settings(deadline=None)
@given(groups=st.integers(1, 7), folds=st.integers(1, 7))
def test_ways_are_counted_as_by_listing_them(groups: int, folds: int) -> None:
    listed = {
        frozenset(frozenset(g for g in range(groups) if cut[g] == part) for part in set(cut))
        for cut in itertools.product(range(min(folds, groups)), repeat=groups)
        if len(set(cut)) == folds
    }
    assert cuts_of(groups, folds) == len(listed)


def test_partitions_of_many_groups_are_found_fast_and_even() -> None:
    data = grouped(0, cells=4000, regions=150)
    folds = make_folds(data, Folds())
    assert max(len(fold.test) for fold in folds) - min(len(fold.test) for fold in folds) <= 20


# --- validation by group


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), group=st.sampled_from(["region", "patient"]), partition=st.integers(0, 2))
def test_whole_groups_validate(seed: int, group: str, partition: int) -> None:
    data = grouped(seed)
    folds = make_folds(data, Folds(group=group, validation_group="group"), partition)  # type: ignore[arg-type]
    cells = make_folds(data, Folds(group=group), partition)  # type: ignore[arg-type]
    names = {"region": data.region, "patient": data.patient}[group]
    assert names is not None
    for fold, by_cell in zip(folds, cells, strict=True):
        assert np.array_equal(fold.test, by_cell.test), "the test cells do not depend on how validation is drawn"
        together = np.concatenate([fold.train, fold.validation, fold.test])
        assert np.array_equal(np.sort(together), np.arange(len(data.labels)))
        assert not set(names[fold.train]) & set(names[fold.validation])


def test_groups_that_validate_hold_about_an_eighth() -> None:
    data = grouped(0, cells=3000, regions=40)
    for fold in make_folds(data, Folds(validation_group="group")):
        rest = np.concatenate([fold.train, fold.validation])
        assert len(fold.validation) == pytest.approx(0.125 * len(rest), rel=0.1)
        share = np.bincount(data.labels[fold.validation], minlength=5) / len(fold.validation)
        np.testing.assert_allclose(share, np.bincount(data.labels[rest]) / len(rest), atol=0.05)


def test_groups_cannot_validate_where_there_are_none_to_spare() -> None:
    data = grouped(0, regions=2)
    with pytest.raises(ValueError, match="fold 0, by region, trains on one group only; none can validate"):
        make_folds(data, Folds(count=2, validation_group="group"))
    with pytest.raises(ValueError, match=r"folds\.validation_group is group, but these folds are by single cell"):
        make_folds(data, Folds(group="none", validation_group="group"))


# --- the hold-out


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    group=st.sampled_from(["region", "patient", "none"]),
    locked=st.sets(st.sampled_from(["p0", "p3", "r4", "r5", "r9"]), min_size=1, max_size=2),
    partition=st.integers(0, 2),
)
def test_what_is_locked_away_stands_in_no_fold(seed: int, group: str, locked: set[str], partition: int) -> None:
    data = grouped(seed)
    assert data.region is not None and data.patient is not None
    config = Folds(count=4, group=group, holdout=tuple(locked))  # type: ignore[arg-type]
    rows = holdout_rows(data, config)
    expected = [k for k in range(len(data.labels)) if {str(data.region[k]), str(data.patient[k])} & locked]
    assert rows.tolist() == expected
    folds = make_folds(data, config, partition)
    free = np.setdiff1d(np.arange(len(data.labels)), rows)
    assert np.array_equal(np.sort(np.concatenate([fold.test for fold in folds])), free)
    for fold in folds:
        together = np.concatenate([fold.train, fold.validation, fold.test])
        assert np.array_equal(np.sort(together), free)
        assert np.array_equal(fold.holdout, rows)


def test_a_patient_on_both_sides_of_the_lock_is_told() -> None:
    notes = {note for fold in make_folds(grouped(0), Folds(holdout=("r4",))) for note in fold.notes}
    assert "patients in the hold-out and in the folds: p2" in notes
    notes = {note for fold in make_folds(grouped(0), Folds(holdout=("p2",))) for note in fold.notes}
    assert not any("hold-out" in note for note in notes)
    assert any(re.fullmatch(r"\d+ cells are locked away: p2", note) for note in notes)


def test_nothing_is_locked_by_default() -> None:
    data = grouped(0)
    assert holdout_rows(data, Folds()).tolist() == []
    assert all(len(fold.holdout) == 0 for fold in make_folds(data, Folds()))


def test_a_name_of_both_must_say_which() -> None:
    data = grouped(0)
    assert data.region is not None and data.patient is not None
    both = dataclasses.replace(data, region=np.char.lstrip(data.region, "r"), patient=np.char.lstrip(data.patient, "p"))
    with pytest.raises(ValueError, match="'3' is a region and a patient; say 'region=3' or 'patient=3'"):
        holdout_rows(both, Folds(holdout=("3",)))
    assert set(data.region[holdout_rows(both, Folds(holdout=("region=3",)))]) == {"r3"}
    assert set(data.patient[holdout_rows(both, Folds(holdout=("patient=3",)))]) == {"p3"}


@pytest.mark.parametrize(
    ("holdout", "told"),
    [
        (("region1",), r"the data 'made' have no region or patient 'region1' \(there are: r0, "),
        (("patient=p1x",), r"have no patient 'patient=p1x'; did you mean 'p1'"),
        (("patient=r1",), r"have no patient 'patient=r1'"),
        (tuple(f"p{k}" for k in range(7)), r"locks every cell away"),
        (tuple(f"p{k}" for k in range(5)), r"folds\.count is 5, but the data have 3 regions"),
    ],
)
def test_an_impossible_hold_out_is_refused(holdout: tuple[str, ...], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        make_folds(grouped(0), Folds(holdout=holdout))


def test_data_without_groups_have_nothing_to_lock() -> None:
    data = dataclasses.replace(grouped(0), region=None, patient=None)
    with pytest.raises(ValueError, match=r"have no region or patient 'p1' \(there are: none\)"):
        make_folds(data, Folds(holdout=("p1",)))


def test_the_order_of_locked_names_is_no_other_variant() -> None:
    one, two = (Config(folds=Folds(holdout=names)) for names in (("b", "a"), ("a", "b", "a")))
    assert one.id == two.id != Config().id
    with pytest.raises(ValidationError):
        Folds(validation_group="region")  # type: ignore[arg-type]
