"""Classifiers: the fast grid against scikit-learn's, and what real embeddings bring along."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score, make_scorer
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from guided.classify import fit, grid_search, predict, standardiser
from guided.config import Classifier


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


@pytest.mark.parametrize("seed", range(3))
def test_the_knn_grid_is_scikit_learns(seed: int) -> None:
    x, y = clouds(seed=seed)
    config = Classifier(families=("knn",))
    theirs = sklearn_grid(
        KNeighborsClassifier(algorithm="brute"),
        {"kneighborsclassifier__n_neighbors": config.knn_k, "kneighborsclassifier__weights": config.knn_weights},
        x,
        y,
        4,
        seed,
    )
    ours = grid_search(x, y, 4, config, seed=seed)
    wanted = {
        (p["kneighborsclassifier__n_neighbors"], p["kneighborsclassifier__weights"]): score
        for p, score in zip(theirs.cv_results_["params"], theirs.cv_results_["mean_test_score"], strict=True)
    }
    got = {label: score for label, score in ours.grid}
    assert got.keys() == {f"knn k={k} weights={weights}" for k, weights in wanted}
    for (k, weights), score in wanted.items():
        assert got[f"knn k={k} weights={weights}"] == pytest.approx(score, abs=1e-12)
    assert ours.inner_f1 == pytest.approx(theirs.best_score_, abs=1e-12)
    fresh = clouds(seed=seed + 100)[0]
    same = KNeighborsClassifier(ours.values["k"], weights=ours.values["weights"], algorithm="brute")
    pipeline = make_pipeline(StandardScaler(), same).fit(x, y)
    np.testing.assert_array_equal(ours.predict(fresh), pipeline.predict(fresh))
    np.testing.assert_allclose(ours.scores(fresh), pipeline.predict_proba(fresh), atol=1e-6)


def test_the_svm_grid_is_scikit_learns() -> None:
    x, y = clouds()
    config = Classifier(families=("svm",))
    theirs = sklearn_grid(SVC(kernel="linear", break_ties=True), {"svc__C": config.svm_c}, x, y, 4, 1)
    ours = grid_search(x, y, 4, config, seed=1)
    np.testing.assert_allclose([score for _, score in ours.grid], theirs.cv_results_["mean_test_score"], atol=1e-12)
    np.testing.assert_array_equal(ours.predict(x), theirs.predict(x))


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
    naive = GridSearchCV(KNeighborsClassifier(), {"n_neighbors": [5]}, scoring=scorer, cv=folds).fit(leaked, y)
    proper = GridSearchCV(
        make_pipeline(StandardScaler(), KNeighborsClassifier(algorithm="brute")),
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
    theirs = make_pipeline(StandardScaler(), KNeighborsClassifier(5, algorithm="brute")).fit(x, y)
    np.testing.assert_array_equal(fit("knn", x, y, 4).predict(x), theirs.predict(x))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000))
def test_permuted_classes_permute_the_predictions(seed: int) -> None:
    x, y = clouds(60, 3, seed=seed)
    order = np.random.default_rng(seed).permutation(3)
    config = Classifier(families=("knn",), knn_k=(1,), knn_weights=("uniform",))
    plain = grid_search(x, y, 3, config, seed=0)
    permuted = grid_search(x, order[y], 3, config, seed=0)
    np.testing.assert_array_equal(order[plain.predict(x)], permuted.predict(x))
    np.testing.assert_array_equal(
        order[predict(fit("centroid", x, y, 3), x)], fit("centroid", x, order[y], 3).predict(x)
    )


def test_a_component_constant_but_for_rounding_stays_at_zero() -> None:
    x = np.full((50, 2), 0.1, dtype=np.float32)
    x[:, 1] = np.linspace(0, 1, 50)
    x[::2, 0] = np.nextafter(np.float32(0.1), np.float32(1))
    mean, sd = standardiser(x)
    assert np.abs((x - mean) / sd)[:, 0].max() < 1e-6
