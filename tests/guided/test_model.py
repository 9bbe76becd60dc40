"""The model file and what it says of a cell: against hand-made embeddings and naive loops."""

from __future__ import annotations

import io
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guided import classify
from guided.backbone import EmbeddingNet
from guided.config import Backbone, Classifier
from guided.guide import EmbeddingGuide
from guided.metrics import calibration_error
from guided.model import (
    Calibration,
    GuidedModel,
    HeldOut,
    _relative,
    calibrate,
    load_model,
    make_model,
    map_to_guide,
    save_model,
    unit,
)
from guided.train import Fitted

POINTS = np.array([[0.0, 0.0], [0.0, 2.0], [0.0, 4.0], [3.0, 1.0]])
GUIDE = EmbeddingGuide("drawn", ("blast", "young", "old", "other"), POINTS, ("root", "arm", "arm", "leg"), (0, 1, 3, 2))


def cells(spread: float, each: int = 30, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Cells (N, 3) around the guide's points, and their classes."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(4), each)
    return np.pad(POINTS[labels], ((0, 0), (0, 1))) + spread * rng.standard_normal((len(labels), 3)), labels


def held_out(seed: int, scale: float = 1.0, each: int = 30) -> HeldOut:
    embedding, labels = cells(1.0, each, seed)
    anchors = np.pad(POINTS, ((0, 0), (0, 1)))
    predicted = np.array([int(np.argmin([np.linalg.norm(p - a) for a in anchors])) for p in embedding])
    return HeldOut(scale * embedding, labels, predicted, scale * anchors)


def made(family: str = "knn", on_drawing: bool = True) -> GuidedModel:
    """A model whose network is not trained, and whose cells lie where `cells` puts them."""
    embedding, labels = cells(0.1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = EmbeddingNet(Backbone(name="densenet_small"), 3).eval()
    fitted = Fitted(net, np.full(3, 120.0), np.full(3, 40.0), embedding.astype(np.float32), on_drawing, [])
    chosen = classify.grid_search(
        fitted.embedding, labels, 4, Classifier.model_validate_json(json.dumps({"families": [family]})), seed=0
    )
    calibration = calibrate([held_out(1), held_out(2)])
    about = {"sweep": "made by hand"}
    return make_model(
        fitted, labels, GUIDE, chosen, calibration, trunk="densenet_small", size=16, field=20.0, about=about
    )


@pytest.fixture(scope="module")
def model() -> GuidedModel:
    return made()


# --- what it says ---------------------------------------------------------------------------------------------------


def test_a_cell_on_a_class_mean_is_that_class(model: GuidedModel) -> None:
    told = model.predict(model.anchors.astype(np.float32))
    assert told["class"].tolist() == list(GUIDE.classes) and told["lineage"].tolist() == list(GUIDE.lineages)
    assert (told["confidence"] > 0.5).all() and not told["unlike"].any()
    assert told["distance"].to_numpy() == pytest.approx(np.zeros(4), abs=1e-6)
    assert told[["x", "y"]].to_numpy() == pytest.approx(POINTS, abs=0.1)


def test_maturity_runs_on_between_two_stages_and_only_where_a_lineage_has_two(model: GuidedModel) -> None:
    young, old = model.anchors[1], model.anchors[2]
    between = np.array([young + share * (old - young) for share in (0.0, 0.25, 0.5, 0.75, 1.0)], dtype=np.float32)
    told = model.predict(between)
    assert told["lineage"].eq("arm").all()
    assert told["maturity"].to_numpy() == pytest.approx([1.0, 1.5, 2.0, 2.5, 3.0], abs=1e-5)
    alone = model.predict(model.anchors[[0, 3]].astype(np.float32))
    assert alone["maturity"].isna().all()


def test_maturity_ends_half_a_step_beyond_the_ends_of_a_lineage(model: GuidedModel) -> None:
    young, old = model.anchors[1], model.anchors[2]
    beyond = np.array([young - 0.1 * (old - young), old + 3 * (old - young)], dtype=np.float32)
    told = model.predict(beyond)
    assert told["lineage"].tolist() == ["arm", "arm"]
    assert told["maturity"].to_numpy() == pytest.approx([0.8, 4.0], abs=1e-5)  # one step is 2 stages


def test_a_cell_far_from_all_classes_is_unlike_anything_seen(model: GuidedModel) -> None:
    far = np.array([[40.0, 40.0, 40.0], [0.0, 0.0, 0.1]], dtype=np.float32)
    assert model.predict(far)["unlike"].tolist() == [True, False]


def test_pixels_of_another_size_are_refused(model: GuidedModel) -> None:
    with pytest.raises(ValueError, match=r"takes uint8 \(B, 16, 16, 3\)"):
        model.embed(np.zeros((2, 24, 24, 3), np.uint8))
    with pytest.raises(ValueError, match="type float64"):
        model.embed(np.zeros((2, 16, 16, 3)))


# --- the map to the guide -------------------------------------------------------------------------------------------


def test_a_network_drawn_to_the_guide_is_there_itself() -> None:
    embedding, labels = cells(1.0)
    to_guide = map_to_guide(embedding, labels, POINTS, on_drawing=True)
    assert (embedding @ to_guide[:-1] + to_guide[-1] == embedding[:, :2]).all()


def test_the_map_finds_a_drawing_that_was_turned_and_moved() -> None:
    embedding, labels = cells(0.01)
    turn, _ = np.linalg.qr(np.random.default_rng(3).standard_normal((3, 3)))
    moved = 7 * embedding @ turn + [1.0, -20.0, 5.0]
    to_guide = map_to_guide(moved, labels, POINTS, on_drawing=False)
    assert moved @ to_guide[:-1] + to_guide[-1] == pytest.approx(POINTS[labels], abs=0.1)


def test_the_map_gives_a_rare_class_the_weight_of_a_frequent_one() -> None:
    embedding, labels = cells(0.5)
    repeated = np.concatenate([np.arange(len(labels)), *[np.flatnonzero(labels == 0)] * 9])
    once = map_to_guide(embedding, labels, POINTS, on_drawing=False)
    often = map_to_guide(embedding[repeated], labels[repeated], POINTS, on_drawing=False)
    assert often == pytest.approx(once)


# --- calibration ----------------------------------------------------------------------------------------------------


def test_the_unit_is_the_root_mean_square_distance_of_two_classes() -> None:
    squares = [np.sum((POINTS[a] - POINTS[b]) ** 2) for a in range(4) for b in range(a)]
    assert unit(POINTS) == pytest.approx(np.sqrt(np.mean(squares)))
    with_absent = np.vstack([POINTS, [[np.nan, np.nan]]])
    assert unit(with_absent) == unit(POINTS)
    with pytest.raises(ValueError, match="the class means coincide"):
        unit(np.ones((3, 2)))


def test_temperature_and_distances_are_those_of_the_held_out_cells() -> None:
    folds = [held_out(1), held_out(2)]
    calibration = calibrate(folds)
    scale = unit(folds[0].anchors)
    rows = [(p, y) for fold in folds for p, y in zip(fold.embedding, fold.labels, strict=True)]

    def cost(temperature: float) -> float:
        total = 0.0
        for p, y in rows:
            squared = [np.sum((p - a) ** 2) / scale**2 for a in folds[0].anchors]
            total -= np.log(np.exp(-squared[y] / temperature) / np.sum(np.exp(-np.array(squared) / temperature)))
        return total

    best = cost(calibration.temperature)
    assert best <= cost(calibration.temperature * 1.05) and best <= cost(calibration.temperature / 1.05)
    nearest = sorted(min(np.linalg.norm(p - a) / scale for a in folds[0].anchors) for p, _ in rows)
    assert calibration.distances[0] == pytest.approx(nearest[0])
    assert calibration.distances[-1] == pytest.approx(nearest[-1])
    assert calibration.cells == 240 and 0 <= calibration.error < 0.2
    for rate in (0.05, 0.3):
        beyond = np.mean([value > calibration.threshold(rate) for value in nearest])
        assert beyond == pytest.approx(rate, abs=1 / 240)


def test_confidence_is_as_often_right_as_it_says() -> None:
    calibration = calibrate([held_out(1, each=300), held_out(2, each=300)])
    fresh = [held_out(3, each=1000)]
    confidence = np.concatenate(
        [calibration.confidence(_relative(fold.embedding, fold.anchors), fold.predicted) for fold in fresh]
    )
    right = np.concatenate([fold.labels == fold.predicted for fold in fresh])
    assert calibration_error(confidence, right) < 0.05
    assert confidence.mean() == pytest.approx(right.mean(), abs=0.03)


def test_cells_that_are_all_right_leave_the_confidence_finite() -> None:
    embedding, labels = cells(0.01)
    sure = HeldOut(embedding, labels, labels, np.pad(POINTS, ((0, 0), (0, 1))))
    calibration = calibrate([sure, sure])
    confidence = calibration.confidence(_relative(sure.embedding, sure.anchors), sure.predicted)
    assert np.isfinite([calibration.slope, calibration.offset]).all() and (confidence > 0.9).all()


@settings(max_examples=20, deadline=None)
@given(st.floats(1e-3, 1e3))
def test_the_scale_of_a_fold_means_nothing(scale: float) -> None:
    plain, scaled = calibrate([held_out(1), held_out(2)]), calibrate([held_out(1), held_out(2, scale)])
    assert scaled.temperature == pytest.approx(plain.temperature, rel=1e-3)
    assert scaled.distances == pytest.approx(plain.distances, rel=1e-6)


def test_rates_that_the_cells_cannot_tell_are_refused() -> None:
    calibration = Calibration(1.0, 1.0, 0.0, np.linspace(0, 1, 5), 100, 0.0)
    with pytest.raises(ValueError, match=r"100 held-out cells can tell rates from 0\.01"):
        calibration.threshold(0.001)
    with pytest.raises(ValueError, match="a false-alarm rate of 1 "):
        calibration.threshold(1.0)
    with pytest.raises(ValueError, match="of two or more"):
        calibrate([held_out(1)])


# --- the file -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["svm", "knn", "mlp"])
def test_a_file_gives_the_model_back(family: str, tmp_path: Path) -> None:
    model, path = made(family, on_drawing=False), tmp_path / "a model.npz"
    digest = save_model(model, path)
    again = load_model(path)
    assert save_model(again, tmp_path / "again.npz") == digest and len(digest) == 16
    pixels = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
    assert again.embed(pixels) == pytest.approx(model.embed(pixels), rel=1e-4, abs=1e-5)
    asked = cells(2.0, seed=9)[0].astype(np.float32)
    assert again.predict(asked).equals(model.predict(asked))
    assert (again.size, again.field, again.about) == (16, 20.0, {"sweep": "made by hand"})
    assert [file.name for file in tmp_path.glob(".*")] == []


class _Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.path), "w")


def _as_pickle(trap: _Trap) -> bytes:
    return pickle.dumps(trap)


def _as_torch(trap: _Trap) -> bytes:
    buffer = io.BytesIO()
    torch.save({"net": trap}, buffer)
    return buffer.getvalue()


def _as_array(trap: _Trap) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([trap], dtype=object), allow_pickle=True)
    return buffer.getvalue()


def _as_archive(trap: _Trap) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, told=np.array([trap], dtype=object), digest=np.array("0"), allow_pickle=True)
    return buffer.getvalue()


@pytest.mark.parametrize("disguise", [_as_pickle, _as_torch, _as_array, _as_archive])
def test_a_malicious_file_is_refused_and_does_not_run(disguise: object, tmp_path: Path) -> None:
    sprung, path = tmp_path / "sprung", tmp_path / "model.npz"
    path.write_bytes(disguise(_Trap(sprung)))  # type: ignore[operator]
    with pytest.raises(ValueError, match=r"model\.npz is no model file, or damaged"):
        load_model(path)
    assert not sprung.exists()
    pickle.loads(_as_pickle(_Trap(sprung))).close()
    assert sprung.exists(), "the trap works where it is unpickled"


def test_damage_and_change_are_refused(model: GuidedModel, tmp_path: Path) -> None:
    path = tmp_path / "model.npz"
    save_model(model, path)
    sound = path.read_bytes()
    for damaged in (b"", sound[: len(sound) // 2], b"\0" * 100, sound[:-30]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="is no model file, or damaged"):
            load_model(path)
    path.write_bytes(sound)
    with np.load(path) as file:
        arrays = dict(file)
    np.savez(path, **arrays | {"anchors": arrays["anchors"] + 1})
    with pytest.raises(ValueError, match="has been altered"):
        load_model(path)
    with pytest.raises(ValueError, match=r"no model file .*absent"):
        load_model(tmp_path / "absent.npz")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"version": 2}, "it has version 2; this package reads version 1"),
        ({"format": "another"}, "it is a 'another'"),
        ({"trunk": "os.system"}, "unknown trunk 'os.system'"),
        ({"trunk": "resnet10"}, "the weights are not those of resnet10"),
    ],
)
def test_a_sound_file_of_another_kind_is_refused(
    change: dict[str, object], told: str, model: GuidedModel, tmp_path: Path
) -> None:
    from guided.model import _digest

    path = tmp_path / "model.npz"
    save_model(model, path)
    with np.load(path) as file:
        arrays = dict(file)
    del arrays["digest"]
    arrays["told"] = np.array(json.dumps(json.loads(str(arrays["told"])) | change))
    np.savez(path, **arrays, digest=np.array(_digest(arrays)))
    with pytest.raises(ValueError, match=told):
        load_model(path)
