from __future__ import annotations

import numpy as np
import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guided.config import Guide2D, GuideUMAP
from guided.losses import LOSSES, guide_loss, norm_penalty

CPU = torch.device("cpu")
GUIDE = np.array([[0.0, 0.0], [1.0, 2.0], [-3.0, 1.0], [2.0, -2.0]])
CONFIGS = {"guide2d": Guide2D(), "guide_umap": GuideUMAP(n_neighbors=5, fit_epochs=5)}


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


@pytest.mark.parametrize("distance", ["l1", "l2", "squared"])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_gradients_by_finite_differences(distance: str, reduction: str) -> None:
    rng = np.random.default_rng(1)
    p = torch.from_numpy(rng.normal(size=(3, 4))).requires_grad_()
    target = torch.from_numpy(rng.normal(size=(3, 2)))
    assert torch.autograd.gradcheck(lambda q: guide_loss(q, target, distance, reduction), (p,))  # type: ignore[arg-type]


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


@pytest.mark.parametrize("shape", [(4, 3), (3, 2)])
def test_targets_that_do_not_fit_are_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="does not fit"):
        guide_loss(torch.zeros(4, 2), torch.zeros(shape))


@pytest.mark.parametrize("name", sorted(LOSSES))
class TestEveryLoss:
    """What the training loop relies on, for every entry of LOSSES."""

    def test_a_configuration_exists(self, name: str) -> None:
        assert CONFIGS[name].name == name

    def test_one_number_and_gradients_for_any_batch(self, name: str) -> None:
        loss = LOSSES[name](CONFIGS[name], GUIDE, CPU)
        for labels in ([0, 1, 2, 3], [2, 2, 2], [1]):
            p = torch.ones(len(labels), 5, requires_grad=True)
            value = loss(p, torch.tensor(labels))
            value.backward()
            assert value.shape == () and p.grad is not None and p.grad.abs().sum() > 0

    def test_permuted_classes_give_the_same_loss(self, name: str) -> None:
        order = np.array([2, 0, 3, 1])
        p = torch.randn(6, 4, generator=torch.Generator().manual_seed(3))
        labels = np.array([0, 1, 2, 3, 1, 0])
        plain = LOSSES[name](CONFIGS[name], GUIDE, CPU)(p, torch.from_numpy(labels))
        permuted = LOSSES[name](CONFIGS[name], GUIDE[order], CPU)(p, torch.from_numpy(np.argsort(order)[labels]))
        assert plain.item() == pytest.approx(permuted.item(), rel=1e-6)

    def test_a_few_steps_reduce_it(self, name: str) -> None:
        loss = LOSSES[name](CONFIGS[name], GUIDE, CPU)
        p = torch.randn(8, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
        labels = torch.arange(8) % 4
        first = loss(p, labels).item()
        optimizer = torch.optim.SGD([p], lr=0.5)
        for _ in range(5):
            optimizer.zero_grad()
            loss(p, labels).backward()
            optimizer.step()
        assert loss(p, labels).item() < first

    def test_state_survives_a_checkpoint(self, name: str) -> None:
        loss = LOSSES[name](CONFIGS[name], GUIDE, CPU)
        rng = np.random.default_rng(0)
        labels = np.repeat(np.arange(4), 20)
        embedding = (np.pad(GUIDE, ((0, 0), (0, 2)))[labels] + 0.3 * rng.normal(size=(80, 4))).astype(np.float32)
        loss.refresh(embedding, labels, 5)
        other = LOSSES[name](CONFIGS[name], GUIDE, CPU)
        other.restore(loss.state())
        assert np.array_equal(other.points(6), loss.points(6))
        p = torch.ones(4, 6)
        assert other(p, torch.arange(4)).item() == loss(p, torch.arange(4)).item()

    def test_points_are_padded_with_zeros(self, name: str) -> None:
        points = LOSSES[name](CONFIGS[name], GUIDE, CPU).points(5)
        assert points.shape == (4, 5)
        assert np.allclose(points[:, :2], GUIDE) and not points[:, 2:].any()


def test_guide_umap_without_memory_takes_the_fresh_guide_and_with_full_memory_keeps_the_drawing() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), 30)
    embedding = (5 * rng.normal(size=(4, 6))[labels] + 0.2 * rng.normal(size=(120, 6))).astype(np.float32)
    kept = LOSSES["guide_umap"](GuideUMAP(lowpass=1.0), GUIDE, CPU)
    shift = kept.refresh(embedding, labels, 0)["guide/shift"]
    assert shift == 0.0 and np.allclose(kept.points(6)[:, :2], GUIDE)
    moved = LOSSES["guide_umap"](GuideUMAP(lowpass=0.0), GUIDE, CPU)
    told = moved.refresh(embedding, labels, 0)
    half = LOSSES["guide_umap"](GuideUMAP(lowpass=0.5), GUIDE, CPU)
    half.refresh(embedding, labels, 0)
    assert told["guide/shift"] > 0.1
    assert np.allclose(half.points(6), (moved.points(6) + kept.points(6)) / 2, atol=1e-5)
