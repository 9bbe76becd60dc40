from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guided.config import Folds
from guided.data import Dataset
from guided.folds import Fold, make_folds


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
