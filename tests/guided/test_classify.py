"""Classifiers: the fast grid against scikit-learn's, and what real embeddings bring along."""

from __future__ import annotations

import json
import warnings

import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import f1_score, make_scorer
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from guided import classify, train
from guided.classify import fit, from_arrays, grid_search, portable, predict, standardiser, to_arrays
from guided.config import Classifier, Config
from guided.data import Dataset
from guided.folds import make_folds
from guided.guide import load_guide


def clouds(count: int = 240, classes: int = 4, length: int = 5, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Overlapping classes, the last one rare, components of very different size."""
    rng = np.random.default_rng(seed)
    share = np.r_[np.ones(classes - 1), 0.2]
    y = rng.choice(classes, count, p=share / share.sum())
    y[: 3 * classes] = np.tile(np.arange(classes), 3)
    means = rng.normal(0, 1.2, (classes, length))
    return ((means[y] + rng.normal(size=(count, length))) * np.geomspace(0.01, 100, length)).astype(np.float64), y


def sklearn_grid(model, grid: dict, x: np.ndarray, y: np.ndarray, classes: int, seed: int) -> GridSearchCV:  # type: ignore
    scorer = make_scorer(f1_score, average="macro", labels=np.arange(classes), zero_division=0.0)
    folds = StratifiedKFold(3, shuffle=True, random_state=seed)
    return GridSearchCV(make_pipeline(StandardScaler(), model), grid, scoring=scorer, cv=folds).fit(x, y)


def nearest_decides(distances: np.ndarray) -> np.ndarray:
    """Equal votes for scikit-learn but for a trifle: of tied classes the one with the nearest cell wins."""
    return np.tile(1 + 1e-3 * 0.5 ** np.arange(distances.shape[1]), (len(distances), 1))


SKLEARN_WEIGHTS = {"uniform": nearest_decides, "distance": "distance"}


@pytest.mark.parametrize("seed", range(3))
def test_the_knn_grid_is_scikit_learns(seed: int) -> None:
    x, y = clouds(seed=seed)
    config = Classifier(families=("knn",))
    theirs = sklearn_grid(
        KNeighborsClassifier(algorithm="brute"),
        {
            "kneighborsclassifier__n_neighbors": config.knn_k,
            "kneighborsclassifier__weights": [SKLEARN_WEIGHTS[weights] for weights in config.knn_weights],
        },
        x,
        y,
        4,
        seed,
    )
    ours = grid_search(x, y, 4, config, seed=seed)
    names = {weights: name for name, weights in SKLEARN_WEIGHTS.items()}
    wanted = {
        (p["kneighborsclassifier__n_neighbors"], names[p["kneighborsclassifier__weights"]]): score
        for p, score in zip(theirs.cv_results_["params"], theirs.cv_results_["mean_test_score"], strict=True)
    }
    got = {label: score for label, score in ours.grid}
    assert got.keys() == {f"knn k={k} weights={weights}" for k, weights in wanted}
    for (k, weights), score in wanted.items():
        assert got[f"knn k={k} weights={weights}"] == pytest.approx(score, abs=1e-12)
    assert ours.inner_f1 == pytest.approx(theirs.best_score_, abs=1e-12)
    fresh = clouds(seed=seed + 100)[0]
    k, weights = ours.values["k"], ours.values["weights"]
    same = KNeighborsClassifier(k, weights=SKLEARN_WEIGHTS[weights], algorithm="brute")
    np.testing.assert_array_equal(ours.predict(fresh), make_pipeline(StandardScaler(), same).fit(x, y).predict(fresh))
    plain = make_pipeline(StandardScaler(), KNeighborsClassifier(k, weights=weights, algorithm="brute")).fit(x, y)
    np.testing.assert_allclose(ours.scores(fresh), plain.predict_proba(fresh), atol=1e-6)


def test_a_tied_vote_goes_to_the_nearest_cell_and_not_to_the_first_class() -> None:
    """Neighbours of 0: class 2 at 1, class 0 at 2, then class 1; scikit-learn takes class 0 of three equal votes."""
    x, y = np.array([[1.0], [2.0], [3.0], [-9.0], [-9.5]]), np.array([2, 0, 1, 1, 0])
    config = Classifier(families=("knn",), knn_k=(3,), knn_weights=("uniform",))
    ours = grid_search(x, y, 3, config, seed=0)
    theirs = make_pipeline(StandardScaler(), KNeighborsClassifier(3, algorithm="brute")).fit(x, y)
    asked = np.array([[0.0]])
    assert (ours.predict(asked)[0], theirs.predict(asked)[0]) == (2, 0)
    np.testing.assert_allclose(ours.scores(asked), theirs.predict_proba(asked), atol=1e-6)


def test_more_neighbours_than_cells_means_all_of_them() -> None:
    x, y = clouds(14, 3)
    many = Classifier(families=("knn",), knn_k=(1000,), knn_weights=("distance",))
    chosen = grid_search(x, y, 3, many, seed=0)
    everyone = KNeighborsClassifier(len(x), weights="distance", algorithm="brute")
    fresh = clouds(50, 3, seed=5)[0]
    wanted = make_pipeline(StandardScaler(), everyone).fit(x, y).predict_proba(fresh)
    np.testing.assert_allclose(chosen.scores(fresh), wanted, atol=1e-6)
    with pytest.raises(ValueError, match="n_neighbors <= n_samples"):
        make_pipeline(StandardScaler(), KNeighborsClassifier(1000)).fit(x, y).predict(fresh)


def test_a_class_absent_from_an_inner_test_part_is_left_out_of_its_macro_f1() -> None:
    """A class of one cell and one of two are missing from most inner test parts; a zero for them would cost a third."""
    x, y = clouds(90, 3, seed=2)
    x, y = np.vstack([x, x[:3] + 1]), np.r_[y, 3, 4, 4]
    config = Classifier(families=("knn",), knn_k=(5,), knn_weights=("distance",))
    got = grid_search(x, y, 6, config, seed=0).inner_f1
    scores, with_zeros = [], []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        parts = list(StratifiedKFold(3, shuffle=True, random_state=0).split(x, y))
    for inner, test in parts:
        model = make_pipeline(StandardScaler(), KNeighborsClassifier(5, weights="distance", algorithm="brute"))
        predicted = model.fit(x[inner], y[inner]).predict(x[test])
        scores.append(oracles.macro_f1(y[test].tolist(), predicted.tolist(), 6))
        with_zeros.append(f1_score(y[test], predicted, average="macro", labels=range(6), zero_division=0.0))
    assert any(len(np.unique(y[test])) < 5 for _, test in parts)
    assert got == pytest.approx(np.mean(scores), abs=1e-12)
    assert got > np.mean(with_zeros) + 0.1


def test_the_svm_grid_is_scikit_learns() -> None:
    x, y = clouds()
    config = Classifier(families=("svm",))
    theirs = sklearn_grid(SVC(kernel="linear", break_ties=True), {"svc__C": config.svm_c}, x, y, 4, 1)
    ours = grid_search(x, y, 4, config, seed=1)
    np.testing.assert_allclose([score for _, score in ours.grid], theirs.cv_results_["mean_test_score"], atol=1e-12)
    np.testing.assert_array_equal(ours.predict(x), theirs.predict(x))
    assert ours.values == {"C": theirs.best_params_["svc__C"]}


def test_the_mlp_grid_scores_as_scikit_learns() -> None:
    """Where scikit-learn's 200 passes come near the end of the descent."""
    x, y = clouds(400, 3)
    config = Classifier(families=("mlp",), mlp_hidden=((32,), (16, 16)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        grid = {"mlpclassifier__hidden_layer_sizes": config.mlp_hidden}
        theirs = sklearn_grid(MLPClassifier(random_state=2, max_iter=200), grid, x, y, 3, 2)
    ours = grid_search(x, y, 3, config, seed=2)
    np.testing.assert_allclose([score for _, score in ours.grid], theirs.cv_results_["mean_test_score"], atol=0.05)
    assert (ours.predict(x) == theirs.predict(x)).mean() > 0.9


def test_the_families_compete_and_the_winner_is_named() -> None:
    x, y = clouds()
    config = Classifier(svm_c=(0.1, 1.0), knn_k=(1, 5), mlp_hidden=((8,),))
    chosen = grid_search(x, y, 4, config, seed=0)
    assert len(chosen.grid) == 2 + 4 + 1
    assert chosen.inner_f1 == max(score for _, score in chosen.grid)
    assert (chosen.label, chosen.inner_f1) in chosen.grid
    assert chosen.scores(x).shape == (len(x), 4)
    assert chosen.scores(x).dtype == np.float32
    np.testing.assert_array_equal(chosen.predict(x), chosen.scores(x).argmax(1))


def test_the_grid_repeats_and_the_mlp_listens_to_the_seed() -> None:
    x, y = clouds()
    config = Classifier(families=("mlp",), mlp_hidden=((8,),))
    one, again, other = (grid_search(x, y, 4, config, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.scores(x), again.scores(x))
    assert np.abs(one.scores(x) - other.scores(x)).max() > 0


@pytest.mark.parametrize("family", ["svm", "knn", "mlp"])
def test_rare_absent_and_constant_are_harmless(family: str) -> None:
    """A class of one cell, one of none, a constant component; nothing warns, every score is finite."""
    x, y = clouds(90, 4)
    keep = y != 3
    keep[np.flatnonzero(y == 3)[0]] = True
    x, y = x[keep].astype(np.float32), y[keep]
    x[:, 2] = 3.3
    config = Classifier(families=(family,), mlp_hidden=((8,),))  # type: ignore[arg-type]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        chosen = grid_search(x, y, 6, config, seed=0)
    assert chosen.scores(x).shape == (len(x), 6)
    assert np.isfinite(chosen.scores(x)).all()
    assert not np.isin(chosen.predict(x), (4, 5)).any()
    assert (chosen.predict(x) == y).mean() > 0.6


def test_no_class_fills_the_inner_folds() -> None:
    x, y = np.eye(4) + np.arange(4)[:, None], np.array([0, 0, 1, 1])
    chosen = grid_search(x, y, 2, Classifier(families=("knn",), knn_k=(1, 31)), seed=0)
    np.testing.assert_array_equal(grid_search(x, y, 2, Classifier(families=("svm",)), seed=0).predict(x), y)
    assert chosen.scores(x).shape == (4, 2)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.array([[0.0, np.inf], [1, 1], [2, 2]]), np.array([0, 1, 1]), "not finite"),
        (np.ones((5, 2)), np.zeros(5, dtype=int), "all of one class"),
        (np.ones((3, 2)), np.array([0, 1, -1]), "labels reach from -1 to 1; 3 classes go from 0 to 2"),
        (np.ones((3, 2)), np.array([0, 1, 3]), "labels reach from 0 to 3; 3 classes go from 0 to 2"),
        (np.ones((3, 2)), np.array([0, 1]), "2 labels for 3 cells"),
    ],
)
def test_what_cannot_be_fitted_is_refused(x: np.ndarray, y: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        grid_search(x, y, 3, Classifier(), seed=0)
    with pytest.raises(ValueError, match=message):
        fit("centroid", x, y, 3)


def test_inner_test_cells_do_not_scale_themselves() -> None:
    """With a far outlier, scaling by all cells gives another inner score than scaling inside the fold."""
    x, y = clouds(120, 3)
    x[0] = 1e6
    config = Classifier(families=("knn",), knn_k=(5,), knn_weights=("uniform",))
    inside = grid_search(x, y, 3, config, seed=0).inner_f1
    leaked = (x - x.mean(0)) / x.std(0)
    scorer = make_scorer(f1_score, average="macro", labels=np.arange(3), zero_division=0.0)
    folds = StratifiedKFold(3, shuffle=True, random_state=0)
    naive = GridSearchCV(
        KNeighborsClassifier(weights=nearest_decides), {"n_neighbors": [5]}, scoring=scorer, cv=folds
    ).fit(leaked, y)
    proper = GridSearchCV(
        make_pipeline(StandardScaler(), KNeighborsClassifier(weights=nearest_decides, algorithm="brute")),
        {"kneighborsclassifier__n_neighbors": [5]},
        scoring=scorer,
        cv=folds,
    ).fit(x, y)
    assert inside == pytest.approx(proper.best_score_, abs=1e-12)
    assert inside != pytest.approx(naive.best_score_, abs=1e-3)


def test_nearest_mean_by_hand() -> None:
    """Class means (0, 0) and (4, 2) with sd (2, 1): in units of the sd the point (2.2, 0.4) lies at distance
    hypot(1.1, 0.4) = 1.17 from the first and hypot(0.9, 1.6) = 1.84 from the second; unscaled it is 2.24 and 2.41."""
    x = np.array([[0.0, 0], [0, 0], [4, 2], [4, 2]])
    y = np.array([0, 0, 1, 1])
    model = fit("centroid", x, y, 3)
    scores = model.scores(np.array([[2.2, 0.4]]))
    np.testing.assert_allclose(scores[0, :2], [-np.hypot(1.1, 0.4), -np.hypot(0.9, 1.6)], rtol=1e-6)
    assert scores[0, 2] == -np.inf
    assert model.predict(np.array([[2.2, 0.4]]))[0] == 0


def test_nearest_neighbours_of_an_epoch() -> None:
    x, y = clouds()
    theirs = KNeighborsClassifier(5, weights=nearest_decides, algorithm="brute")
    theirs = make_pipeline(StandardScaler(), theirs).fit(x, y)
    np.testing.assert_array_equal(fit("knn", x, y, 4).predict(x), theirs.predict(x))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000))
def test_permuted_classes_permute_everything_kNN_and_means_say(seed: int) -> None:
    """On a lattice, where votes and distances tie all the time."""
    x, y = clouds(60, 4, seed=seed)
    x = np.round(x / x.std(0))
    order = np.random.default_rng(seed).permutation(4)
    config = Classifier(families=("knn",), knn_k=(1, 2, 4, 5))
    plain, permuted = (grid_search(x, labels, 4, config, seed=0) for labels in (y, order[y]))
    assert plain.label == permuted.label
    np.testing.assert_allclose([f1 for _, f1 in plain.grid], [f1 for _, f1 in permuted.grid], atol=1e-12)
    np.testing.assert_array_equal(order[plain.predict(x)], permuted.predict(x))
    np.testing.assert_array_equal(plain.scores(x), permuted.scores(x)[:, order])
    np.testing.assert_array_equal(order[predict(fit("knn", x, y, 4), x)], fit("knn", x, order[y], 4).predict(x))
    continuous = x + np.random.default_rng(seed).normal(size=x.shape)  # equally near means have no nearest cell
    np.testing.assert_array_equal(
        order[fit("centroid", x, y, 4).predict(continuous)], fit("centroid", x, order[y], 4).predict(continuous)
    )


def test_permuted_classes_permute_what_the_svm_says() -> None:
    """As far as libsvm's tolerance goes: it solves each pair of classes from the other side."""
    x, y = clouds(200, 4)
    order = np.array([2, 3, 1, 0])
    config = Classifier(families=("svm",))
    plain, permuted = (grid_search(x, labels, 4, config, seed=0) for labels in (y, order[y]))
    assert plain.label == permuted.label
    assert np.mean(order[plain.predict(x)] == permuted.predict(x)) > 0.99


@pytest.mark.parametrize("family", ["svm", "knn", "mlp"])
def test_a_cell_is_scored_by_itself(family: str) -> None:
    """Whatever is asked beside it, also for the score of a class that was never seen."""
    x, y = clouds(60, 3)
    config = Classifier(families=(family,), mlp_hidden=((4,),))  # type: ignore[arg-type]
    chosen = grid_search(x, y, 5, config, seed=0)
    alone = np.vstack([chosen.scores(x[row : row + 1]) for row in range(len(x))])
    np.testing.assert_allclose(chosen.scores(x), alone, atol=1e-5)


# --- as the training loop uses them ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["centroid", "knn", "grid"])
def test_an_epoch_is_scored_by_the_named_classifier_on_training_cells_only(
    name: str, marrow: Dataset, quick: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = Config.model_validate_json(
        json.dumps(
            quick.model_dump(mode="json")
            | {"validation": {"classifier": name}, "classifier": {"families": ["svm", "knn"], "svm_c": [0.1]}}
        )
    )
    fold = make_folds(marrow, config.folds)[0]
    fitted: list[tuple[str, np.ndarray, classify.Scaled]] = []

    def spy(kind: str, x: np.ndarray, y: np.ndarray, model: classify.Scaled) -> classify.Scaled:
        assert len(x) == len(fold.train)
        np.testing.assert_array_equal(y, marrow.labels[fold.train])
        fitted.append((kind, x, model))
        return model

    monkeypatch.setattr(classify, "fit", lambda kind, x, y, classes: spy(kind, x, y, fit(kind, x, y, classes)))
    monkeypatch.setattr(
        classify,
        "grid_search",
        lambda x, y, classes, asked, seed: spy("grid", x, y, grid_search(x, y, classes, asked, seed=seed)),
    )
    asked: list[np.ndarray] = []
    embed = train._Run.embed

    def remember(run: train._Run, rows: np.ndarray, length: int) -> np.ndarray:
        asked.append(embed(run, rows, length))
        return asked[-1]

    monkeypatch.setattr(train._Run, "embed", remember)
    guide = load_guide(config.guide, marrow.classes)
    record = next(train.run_fold(marrow, fold, guide, config, seed=0))
    ((kind, x, model),) = fitted
    assert kind == name
    np.testing.assert_array_equal(x, asked[0])
    true = marrow.labels[fold.validation]
    wanted = oracles.macro_f1(true.tolist(), model.predict(asked[1]).tolist(), len(marrow.classes))
    assert record["val/f1_macro"] == pytest.approx(wanted)


def test_a_component_constant_but_for_rounding_stays_at_zero() -> None:
    x = np.full((50, 2), 0.1, dtype=np.float32)
    x[:, 1] = np.linspace(0, 1, 50)
    x[::2, 0] = np.nextafter(np.float32(0.1), np.float32(1))
    mean, sd = standardiser(x)
    assert np.abs((x - mean) / sd)[:, 0].max() < 1e-6


def test_thousands_of_cells_far_from_zero_are_standardised_as_in_double_precision() -> None:
    x = (1000 + np.random.default_rng(0).normal(size=(20_000, 3))).astype(np.float32)
    mean, sd = standardiser(x)
    np.testing.assert_allclose(mean, x.astype(np.float64).mean(0), atol=1e-4)
    np.testing.assert_allclose(sd, x.astype(np.float64).std(0), rtol=1e-5)
    assert mean.dtype == sd.dtype == np.float32
    assert np.abs(x.mean(0) - x.astype(np.float64).mean(0)).max() > 1e-3  # the naive sum


# --- as arrays ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 3, 6])
@pytest.mark.parametrize("family", ["svm", "knn", "mlp"])
def test_arrays_give_the_scores_of_the_fitted_classifier(family: str, count: int) -> None:
    rng = np.random.default_rng(count)
    y = rng.integers(0, count, 120)
    x = (rng.standard_normal((120, 4)) + 0.6 * y[:, None]).astype(np.float32)
    config = Classifier.model_validate_json(f'{{"families": ["{family}"]}}')
    chosen = grid_search(x, y, count + 1, config, seed=0)  # one class more than there are cells of
    kept = to_arrays(portable(chosen))
    assert all(value.dtype.kind in "fiU" for value in kept.values()), "plain numbers and words"
    asked = 3 * rng.standard_normal((300, 4)).astype(np.float32)
    again = from_arrays(kept, count + 1)
    assert again.scores(asked) == pytest.approx(chosen.scores(asked), rel=1e-5, abs=1e-6)
    assert (again.predict(asked) == chosen.predict(asked)).all()


def test_a_perceptron_of_two_classes_with_one_output_is_refused() -> None:
    """As scikit-learn had it; softmax would make every cell one of the first class."""
    x, y = clouds(60, 2)
    kept = to_arrays(portable(grid_search(x, y, 2, Classifier(families=("mlp",), mlp_hidden=((4,),)), seed=0)))
    kept |= {"weight1": kept["weight1"][:, 1:], "offset1": kept["offset1"][1:]}
    with pytest.raises(ValueError, match="its MLP has 1 outputs for 2 classes"):
        from_arrays(kept, 2)
