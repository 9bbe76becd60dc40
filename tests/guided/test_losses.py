"""The losses as functions: against naive loops, against finite differences, by their symmetries, at their edges."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_metric_learning.losses import SupConLoss as LibrarySupCon
from torch import Tensor

from guided.config import GuideUMAP
from guided.guide import SHIPPED, EmbeddingGuide, read_guide
from guided.losses import (
    LOSSES,
    Setting,
    class_centre_triplet_loss,
    class_weights,
    cross_entropy,
    distance_loss,
    guide_loss,
    mine_triplets,
    norm_penalty,
    prototype_loss,
    soften,
    supervised_contrastive_loss,
    triplet_loss,
)
from guided.metrics import lineage_distances

GUIDE = np.array([[0.0, 0.0], [1.0, 2.0], [-3.0, 1.0], [2.0, -2.0]])
DISTANCE_OPTIONS = [
    (distance, difference, form)
    for distance in ("l1", "l2")
    for difference in ("absolute", "squared")
    for form in ("plain", "relative", "scale_free")
]

batches = {"seed": st.integers(0, 10**6), "batch": st.integers(1, 9), "n": st.integers(2, 5), "weighted": st.booleans()}


def drawn(seed: int, batch: int, n: int, weighted: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """p (B, n), labels (B,) of up to four classes, and weights per class (4,) or None."""
    rng = np.random.default_rng(seed)
    weights = rng.uniform(0.2, 3, size=4) if weighted else None
    return rng.normal(size=(batch, n)), rng.integers(0, 4, size=batch), weights


def of_cells(weights: np.ndarray | None, labels: np.ndarray) -> tuple[Tensor | None, list[float] | None]:
    """Class weights as weights of cells: for the function and for the oracle."""
    return (None, None) if weights is None else (torch.from_numpy(weights[labels]), weights[labels].tolist())


# --- against naive loops --------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    batch=st.integers(1, 6),
    m=st.integers(1, 4),
    more=st.integers(0, 3),
    distance=st.sampled_from(["l1", "l2", "squared"]),
    reduction=st.sampled_from(["sum", "mean"]),
)
def test_guide_loss_is_the_equation(seed: int, batch: int, m: int, more: int, distance: str, reduction: str) -> None:
    rng = np.random.default_rng(seed)
    p, target = rng.normal(size=(batch, m + more)), rng.normal(size=(batch, m))
    ours = guide_loss(torch.from_numpy(p), torch.from_numpy(target), distance, reduction)  # type: ignore[arg-type]
    assert ours.item() == pytest.approx(oracles.guide_loss(p, target, distance, reduction), abs=1e-9)


@pytest.mark.parametrize("kind", ["l2", "squared", "l1"])
def test_norm_penalty_is_the_equation(kind: str) -> None:
    p = np.random.default_rng(0).normal(size=(5, 7))
    ours = norm_penalty(torch.from_numpy(p), kind)  # type: ignore[arg-type]
    assert ours.item() == pytest.approx(oracles.norm_penalty(p, kind), abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(**batches, options=st.sampled_from(DISTANCE_OPTIONS))
def test_distance_loss_is_equation_2(
    seed: int, batch: int, n: int, weighted: bool, options: tuple[Any, Any, Any]
) -> None:
    p, labels, weights = drawn(seed, batch, n, weighted)
    tensor, listed = of_cells(weights, labels)
    target = GUIDE[labels]
    ours = distance_loss(torch.from_numpy(p), torch.from_numpy(target), *options, floor=0.7, weights=tensor)
    assert ours.item() == pytest.approx(oracles.distance_loss(p, target, *options, 0.7, listed), abs=1e-6)


@settings(max_examples=60, deadline=None)
@given(**batches, mining=st.sampled_from(["batch_hard", "semi_hard"]), margin=st.sampled_from([0.2, 1.0]))
def test_mining_and_triplet_loss_are_brute_force(
    seed: int, batch: int, n: int, weighted: bool, mining: Any, margin: float
) -> None:
    p, labels, weights = drawn(seed, batch, n, weighted)
    tensor, listed = of_cells(weights, labels)
    given = torch.from_numpy(p), torch.from_numpy(labels)
    mined = set(zip(*(rows.tolist() for rows in mine_triplets(*given, mining, margin)), strict=True))
    assert mined == oracles.triplets(p, labels.tolist(), mining, margin)
    ours = triplet_loss(*given, margin, mining, weights=tensor)
    assert ours.item() == pytest.approx(oracles.triplet_loss(p, labels.tolist(), mining, margin, listed), abs=1e-6)


def test_mining_is_exact_in_float32_where_the_library_is_not() -> None:
    """Near points far from the origin: a matrix product loses their distance, and with it the hardest partner."""
    rng = np.random.default_rng(0)
    p = (100 + 0.01 * rng.normal(size=(40, 3))).astype(np.float32)
    labels = np.arange(40) % 4
    mined = mine_triplets(torch.from_numpy(p), torch.from_numpy(labels))
    triples = set(zip(*(rows.tolist() for rows in mined), strict=True))
    assert triples == oracles.triplets(p.astype(np.float64), labels.tolist(), "batch_hard", 0.2)
    from pytorch_metric_learning.distances import LpDistance
    from pytorch_metric_learning.miners import BatchHardMiner

    theirs = BatchHardMiner(distance=LpDistance(normalize_embeddings=False))(
        torch.from_numpy(p), torch.from_numpy(labels)
    )
    assert set(zip(*(rows.tolist() for rows in theirs), strict=True)) != triples


@settings(max_examples=60, deadline=None)
@given(**batches, anchor=st.sampled_from(["centre", "cell"]))
def test_class_centre_triplet_loss_is_its_definition(
    seed: int, batch: int, n: int, weighted: bool, anchor: Any
) -> None:
    p, labels, weights = drawn(seed, batch, n, weighted)
    ours = class_centre_triplet_loss(
        torch.from_numpy(p), torch.from_numpy(labels), 0.5, anchor, weights=of_cells(weights, labels)[0]
    )
    by_class = None if weights is None else dict(enumerate(weights.tolist()))
    theirs = oracles.class_centre_triplet_loss(p, labels.tolist(), 0.5, anchor, by_class)
    assert ours.item() == pytest.approx(theirs, abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(**batches, soft=st.booleans())
def test_cross_entropy_is_its_definition(seed: int, batch: int, n: int, weighted: bool, soft: bool) -> None:
    logits, labels, weights = drawn(seed, batch, 4, weighted)
    tensor, listed = of_cells(weights, labels)
    shares = np.random.default_rng(seed).dirichlet(np.ones(4), size=batch) if soft else np.eye(4)[labels]
    targets = torch.from_numpy(shares if soft else labels)
    ours = cross_entropy(torch.from_numpy(logits), targets, weights=tensor)
    assert ours.item() == pytest.approx(oracles.cross_entropy(logits, shares, listed), abs=1e-6)


@settings(max_examples=60, deadline=None)
@given(**batches, temperature=st.sampled_from([0.1, 0.5]))
def test_supervised_contrastive_loss_is_its_equation(
    seed: int, batch: int, n: int, weighted: bool, temperature: float
) -> None:
    p, labels, weights = drawn(seed, batch, n, weighted)
    tensor, listed = of_cells(weights, labels)
    ours = supervised_contrastive_loss(torch.from_numpy(p), torch.from_numpy(labels), temperature, weights=tensor)
    theirs = oracles.supervised_contrastive_loss(p, labels.tolist(), temperature, listed)
    assert ours.item() == pytest.approx(theirs, abs=1e-6)


def test_supervised_contrastive_loss_agrees_with_the_library_on_an_ordinary_batch_only() -> None:
    p = torch.from_numpy(np.random.default_rng(0).normal(size=(12, 4)))
    labels = torch.arange(12) % 3
    theirs = LibrarySupCon(temperature=0.1)
    assert supervised_contrastive_loss(p, labels).item() == pytest.approx(theirs(p, labels).item(), abs=1e-9)
    alike = torch.zeros(12, dtype=torch.long)
    assert theirs(p, alike).item() == 0 and supervised_contrastive_loss(p, alike).item() > 1
    broken = torch.cat([p[:11], torch.full((1, 4), torch.nan, dtype=p.dtype)])
    assert supervised_contrastive_loss(broken, labels).isnan()


@settings(max_examples=40, deadline=None)
@given(**batches)
def test_prototype_loss_is_its_definition(seed: int, batch: int, n: int, weighted: bool) -> None:
    p, labels, weights = drawn(seed, batch, n, weighted)
    tensor, listed = of_cells(weights, labels)
    points = np.random.default_rng(seed + 1).normal(size=(4, n))
    ours = prototype_loss(
        torch.from_numpy(p), torch.from_numpy(points), torch.from_numpy(labels), 2.0, 0.3, weights=tensor
    )
    theirs = oracles.prototype_loss(p, points, labels.tolist(), 2.0, 0.3, listed)
    assert ours.item() == pytest.approx(theirs, abs=1e-6)


@pytest.mark.parametrize("beta", [0.0, 4.0, 30.0])
def test_softened_labels_are_their_equation(beta: float) -> None:
    distances = np.abs(np.subtract.outer(np.arange(5.0), np.arange(5.0)))
    ours = soften(distances, beta)
    assert np.allclose(ours, oracles.soften(distances, beta), atol=1e-12)
    assert np.allclose(ours.sum(1), 1) and (ours.argmax(1) == np.arange(5)).all() == (beta > 0)


def test_lineage_distances_count_the_steps_of_the_marrow() -> None:
    guide = read_guide(SHIPPED / "marrow.yaml")
    steps = lineage_distances(guide.lineages, guide.stages)

    def between(a: str, b: str) -> float:
        return float(steps[guide.classes.index(a), guide.classes.index(b)])

    assert between("myelocyte", "myelocyte") == 0
    assert between("myelocyte", "metamyelocyte") == 1
    assert between("promyelocyte", "segmented_neutrophil") == 4
    assert between("blast", "segmented_neutrophil") == 5
    assert between("segmented_neutrophil", "lymphocyte") == 5 + 4
    assert np.array_equal(steps, steps.T)


def test_different_classes_are_never_at_distance_zero() -> None:
    assert np.array_equal(lineage_distances(tuple("abcd"), (0.0,) * 4), 1 - np.eye(4)), "plain label smoothing"
    assert lineage_distances(tuple("aaab"), (2.0, 2.0, 5.0, 2.0))[0].tolist() == [0, 3, 3, 4]


def test_class_weights_are_inverse_frequencies_with_mean_one_over_the_cells() -> None:
    labels = np.repeat([0, 1, 3], [30, 6, 1])
    weights = class_weights(labels, 4)
    assert weights[labels].mean() == pytest.approx(1)
    assert weights[0] * 30 == pytest.approx(weights[1] * 6) == pytest.approx(weights[3])
    assert weights[2] == 0


# --- gradients ------------------------------------------------------------------------------------------------------

LABELS = torch.tensor([0, 1, 2, 3, 1, 0, 2])
FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    **{
        f"guide {distance} {reduction}": lambda p, d=distance, r=reduction: guide_loss(
            p, torch.from_numpy(GUIDE)[LABELS] + 0.1, d, r
        )
        for distance in ("l1", "l2", "squared")
        for reduction in ("sum", "mean")
    },
    **{
        "distance " + " ".join(options): lambda p, o=options: distance_loss(
            p, torch.from_numpy(GUIDE)[LABELS], *o, floor=0.7
        )
        for options in DISTANCE_OPTIONS
    },
    "triplet batch_hard": lambda p: triplet_loss(p, LABELS, 2.0),
    "triplet semi_hard": lambda p: triplet_loss(p, LABELS, 2.0, "semi_hard"),
    "ctl centre": lambda p: class_centre_triplet_loss(p, LABELS, 2.0),
    "ctl cell": lambda p: class_centre_triplet_loss(p, LABELS, 2.0, "cell"),
    "supcon": lambda p: supervised_contrastive_loss(p, LABELS),
    "ce": lambda p: cross_entropy(p, LABELS % 3),
    "ce soft": lambda p: cross_entropy(p, torch.full((7, 3), 1 / 3, dtype=p.dtype)),
    "prototype": lambda p: prototype_loss(p, torch.from_numpy(np.c_[GUIDE, GUIDE[:, :1]]) / 3, LABELS),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients_by_finite_differences(name: str) -> None:
    p = torch.from_numpy(np.random.default_rng(1).normal(size=(7, 3))).requires_grad_()
    assert FUNCTIONS[name](p).item() > 0
    assert torch.autograd.gradcheck(FUNCTIONS[name], (p,))


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("value", [0.0, 1.5])
def test_equal_points_have_finite_gradients(name: str, value: float) -> None:
    p = torch.full((7, 3), value, requires_grad=True)
    FUNCTIONS[name](p.double()).backward()
    assert p.grad is not None and torch.isfinite(p.grad).all()


@pytest.mark.parametrize("distance", ["l1", "l2", "squared"])
def test_gradient_on_the_target_itself_is_finite(distance: str) -> None:
    p = torch.zeros(2, 3, requires_grad=True)
    (guide_loss(p, torch.zeros(2, 2), distance) + norm_penalty(p)).backward()  # type: ignore[arg-type]
    assert p.grad is not None and torch.isfinite(p.grad).all()


def test_only_the_compared_components_get_a_gradient() -> None:
    p = torch.randn(4, 6, generator=torch.Generator().manual_seed(0)).requires_grad_()
    guide_loss(p, torch.zeros(4, 2)).backward()
    assert p.grad is not None
    assert p.grad[:, :2].abs().min() > 0 and p.grad[:, 2:].abs().max() == 0


# --- symmetries -----------------------------------------------------------------------------------------------------

pictures = {"seed": st.integers(0, 10**6), "batch": st.integers(2, 8), "n": st.integers(2, 5)}


@settings(max_examples=40, deadline=None)
@given(**pictures, options=st.sampled_from(DISTANCE_OPTIONS))
def test_distance_loss_is_zero_at_the_guide_and_where_its_symmetries_take_it(
    seed: int, batch: int, n: int, options: tuple[Any, Any, Any]
) -> None:
    rng = np.random.default_rng(seed)
    target = torch.from_numpy(GUIDE[rng.integers(0, 4, size=batch)])
    p = torch.nn.functional.pad(target, (0, n - 2))[:, torch.from_numpy(rng.permutation(n))]
    p = p * torch.from_numpy(rng.choice([-1.0, 1.0], size=n)) + torch.from_numpy(rng.normal(size=n))
    if options[0] == "l2":  # L1 has no rotations but those by right angles
        p = p @ torch.from_numpy(np.linalg.qr(rng.normal(size=(n, n)))[0])
    if options[2] == "scale_free":
        p = p * 7.5
    assert distance_loss(p, target, *options, floor=1.0).item() == pytest.approx(0, abs=1e-9)


def test_the_l1_distance_loss_knows_a_rotation() -> None:
    turn = np.array([[np.cos(0.7), -np.sin(0.7)], [np.sin(0.7), np.cos(0.7)]])
    assert distance_loss(torch.from_numpy(GUIDE @ turn), torch.from_numpy(GUIDE)).item() > 0.1


INVARIANT: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], set[str]]] = {
    "distance": (lambda p, y: distance_loss(p, torch.from_numpy(GUIDE)[y]), {"shift", "components"}),
    "distance l2": (lambda p, y: distance_loss(p, torch.from_numpy(GUIDE)[y], "l2"), {"shift", "components", "turn"}),
    "distance scale_free": (
        lambda p, y: distance_loss(p, torch.from_numpy(GUIDE)[y], form="scale_free"),
        {"shift", "components", "scale"},
    ),
    "triplet": (lambda p, y: triplet_loss(p, y, 1.0), {"shift", "components", "turn"}),
    "semi_hard": (lambda p, y: triplet_loss(p, y, 1.0, "semi_hard"), {"shift", "components", "turn"}),
    "ctl": (lambda p, y: class_centre_triplet_loss(p, y, 1.0), {"shift", "components", "turn"}),
    "ctl cell": (lambda p, y: class_centre_triplet_loss(p, y, 1.0, "cell"), {"shift", "components", "turn"}),
    "supcon": (supervised_contrastive_loss, {"components", "turn", "scale"}),
}


def changes(rng: np.random.Generator, p: Tensor) -> dict[str, Tensor]:
    n = p.shape[1]
    return {
        "shift": p + torch.from_numpy(rng.normal(size=n)),
        "components": p[:, torch.from_numpy(rng.permutation(n))],
        "turn": p @ torch.from_numpy(np.linalg.qr(rng.normal(size=(n, n)))[0]),
        "scale": p * 3.0,
    }


@settings(max_examples=60, deadline=None)
@given(**pictures, name=st.sampled_from(sorted(INVARIANT)))
def test_symmetries_hold_and_so_does_the_order_of_the_batch(seed: int, batch: int, n: int, name: str) -> None:
    rng = np.random.default_rng(seed)
    p, labels = torch.from_numpy(rng.normal(size=(batch, n))), torch.from_numpy(rng.integers(0, 4, size=batch))
    loss, symmetries = INVARIANT[name]
    plain = loss(p, labels).item()
    for change in sorted(symmetries):
        assert loss(changes(rng, p)[change], labels).item() == pytest.approx(plain, abs=1e-7), change
    order = torch.from_numpy(rng.permutation(batch))
    assert loss(p[order], labels[order]).item() == pytest.approx(plain, abs=1e-9)


@pytest.mark.parametrize("name", sorted(INVARIANT))
def test_what_is_no_symmetry_changes_the_loss(name: str) -> None:
    rng = np.random.default_rng(0)
    p, labels = torch.from_numpy(rng.normal(size=(12, 4))), torch.arange(12) % 4
    loss, symmetries = INVARIANT[name]
    for change, changed in changes(rng, p).items():
        if change not in symmetries:
            assert abs(loss(changed, labels).item() - loss(p, labels).item()) > 1e-4, change


# --- edges ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(4, 3), (3, 2)])
def test_targets_that_do_not_fit_are_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="does not fit"):
        guide_loss(torch.zeros(4, 2), torch.zeros(shape))


def test_a_distance_loss_that_is_not_defined_is_refused() -> None:
    with pytest.raises(ValueError, match=r"target \(3, 2\) does not fit the embedding \(4, 2\)"):
        distance_loss(torch.zeros(4, 2), torch.zeros(3, 2))
    with pytest.raises(ValueError, match="needs a floor above 0"):
        distance_loss(torch.zeros(4, 2), torch.zeros(4, 2), form="relative")


ALONE = torch.zeros(1, dtype=torch.long)
APART = torch.arange(5)  # no class twice
ALIKE = torch.zeros(5, dtype=torch.long)


@pytest.mark.parametrize(
    ("loss", "labels"),
    [
        *[(lambda p, y, o=o: distance_loss(p, torch.zeros(1, 2), *o, floor=1.0), ALONE) for o in DISTANCE_OPTIONS],
        (lambda p, y: distance_loss(p, torch.zeros(5, 2), form="scale_free"), ALIKE),
        *[
            (lambda p, y, m=m: triplet_loss(p, y, 0.2, m), labels)
            for m in ("batch_hard", "semi_hard")
            for labels in (ALONE, APART, ALIKE)
        ],
        *[
            (lambda p, y, a=a: class_centre_triplet_loss(p, y, 0.2, a), labels)
            for a in ("centre", "cell")
            for labels in (ALONE, ALIKE)
        ],
        (supervised_contrastive_loss, ALONE),
        (supervised_contrastive_loss, APART),
    ],
)
def test_a_batch_without_a_term_costs_nothing_and_moves_nothing(
    loss: Callable[[Tensor, Tensor], Tensor], labels: Tensor
) -> None:
    p = torch.randn(len(labels), 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    value = loss(p, labels)
    value.backward()
    assert value.item() == 0 and p.grad is not None and not p.grad.any()
    broken = torch.full((len(labels), 3), torch.nan)
    assert loss(broken, labels).isnan(), "nothing to compare, and still nothing is hidden"


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", [name for name in FUNCTIONS if not name.startswith("guide")])
def test_a_value_that_is_not_finite_is_never_lost(name: str, value: float) -> None:
    p = torch.from_numpy(np.random.default_rng(1).normal(size=(7, 3)))
    p[3, 2] = value  # a class of its own: no miner takes it as anchor or positive
    assert not torch.isfinite(FUNCTIONS[name](p))


# --- guideUMAP ------------------------------------------------------------------------------------------------------


def test_guide_umap_without_memory_takes_the_fresh_guide_and_with_full_memory_keeps_the_drawing() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), 30)
    embedding = (5 * rng.normal(size=(4, 6))[labels] + 0.2 * rng.normal(size=(120, 6))).astype(np.float32)
    guide = EmbeddingGuide("four", tuple("abcd"), GUIDE, tuple("aabb"), (0.0, 1.0, 1.0, 2.0))
    setting = Setting(guide, 6, torch.device("cpu"), torch.Generator())
    kept = LOSSES["guide_umap"](GuideUMAP(lowpass=1.0), setting)
    shift = kept.refresh(embedding, labels, 0)["guide/shift"]
    assert shift == 0.0 and np.allclose(kept.points(6)[:, :2], GUIDE)
    moved = LOSSES["guide_umap"](GuideUMAP(lowpass=0.0), setting)
    told = moved.refresh(embedding, labels, 0)
    half = LOSSES["guide_umap"](GuideUMAP(lowpass=0.5), setting)
    half.refresh(embedding, labels, 0)
    assert told["guide/shift"] > 0.1
    assert np.allclose(half.points(6), (moved.points(6) + kept.points(6)) / 2, atol=1e-5)
