"""What the training loop relies on, for every entry of LOSSES: a new loss is tested by being entered."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor

from guided.backbone import EmbeddingNet, Optimizers
from guided.config import Backbone, Loss
from guided.guide import EmbeddingGuide
from guided.losses import LOSSES, LossObject, Setting
from sweeps.spec import config_keys, loss_names

CPU = torch.device("cpu")
LONGEST = 6
GUIDE = EmbeddingGuide(
    "four",
    tuple("abcd"),
    np.array([[0.0, 0.0], [1.0, 2.0], [-3.0, 1.0], [2.0, -2.0]]),
    ("stem", "one", "one", "two"),
    (0.0, 1.0, 2.0, 1.0),
)
# Where the defaults would make a test slow or blind.
OPTIONS: dict[str, dict[str, Any]] = {"guide_umap": {"n_neighbors": 5, "fit_epochs": 5}}
# Every other value of an option that changes what is computed.
VARIANTS: list[dict[str, Any]] = [
    {"name": "guide2d", "distance": "squared"},
    {"name": "distance", "distance": "l2"},
    {"name": "distance", "form": "relative"},
    {"name": "distance", "form": "scale_free", "difference": "squared"},
    {"name": "triplet", "mining": "semi_hard", "margin": 2.0},
    {"name": "ctl", "anchor": "cell"},
    {"name": "hierarchical_ce", "over": "guide"},
]
CASES = [{"name": name, **OPTIONS.get(name, {})} for name in LOSSES] + VARIANTS


def made(
    options: dict[str, Any], guide: EmbeddingGuide = GUIDE, weights: Tensor | None = None, seed: int = 0
) -> LossObject:
    checked = TypeAdapter(Loss).validate_python(options)
    setting = Setting(guide, LONGEST, CPU, torch.Generator().manual_seed(seed), weights)
    return LOSSES[options["name"]](checked, setting)


def batch(length: int = 5, cells: int = 12, seed: int = 3) -> tuple[Tensor, Tensor]:
    p = torch.randn(cells, length, generator=torch.Generator().manual_seed(seed)).requires_grad_()
    return p, torch.arange(cells) % 4


def small_net() -> EmbeddingNet:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return EmbeddingNet(Backbone(name="densenet_small"), LONGEST)


def pictures(cells: int) -> Tensor:
    return torch.randn(cells, 3, 24, 24, generator=torch.Generator().manual_seed(0))


def test_configuration_registry_and_sweeps_name_the_same_losses() -> None:
    assert loss_names() == list(LOSSES)
    for name in LOSSES:
        assert TypeAdapter(Loss).validate_python({"name": name}).name == name


def test_an_option_of_one_loss_is_refused_by_another() -> None:
    options = {name: {key for key in config_keys(name) if key.startswith("loss.")} for name in LOSSES}
    assert options["ce"] == {"loss.name"} and options["triplet"] == {"loss.name", "loss.margin", "loss.mining"}
    with pytest.raises(ValueError, match="Extra inputs are not permitted"):
        TypeAdapter(Loss).validate_python({"name": "ce", "margin": 0.2})


@pytest.mark.parametrize("options", CASES, ids=lambda options: " ".join(map(str, options.values())))
class TestEveryLoss:
    @pytest.mark.parametrize("weighted", [False, True])
    @pytest.mark.parametrize("labels", [[0, 1, 2, 3], [0, 0, 1, 3, 3], [2, 2, 2], [1]], ids=len)
    def test_one_finite_number_and_finite_gradients_for_any_batch(
        self, options: dict[str, Any], labels: list[int], weighted: bool
    ) -> None:
        loss = made(options, weights=torch.tensor([0.5, 2.0, 1.0, 0.7]) if weighted else None)
        for p in (batch(cells=len(labels))[0], torch.full((len(labels), 5), 1.5, requires_grad=True)):
            value = loss(p, torch.tensor(labels))
            value.backward()
            assert value.shape == () and value.isfinite() and value >= 0
            assert p.grad is not None and p.grad.shape == p.shape and p.grad.isfinite().all()

    def test_gradients_reach_the_trunk_and_all_that_is_trained(self, options: dict[str, Any]) -> None:
        net, images, loss = small_net(), pictures(8), made(options)
        loss(0.1 * net(images, 4), torch.arange(8) % 4).backward()  # closer than any margin
        first = next(net.trunk.parameters()).grad
        assert first is not None and first.isfinite().all() and first.any()
        for value in [*loss.sliced.values(), *loss.whole.values()]:
            assert value.grad is not None and value.grad.any()

    @pytest.mark.parametrize("value", [torch.nan, torch.inf])
    def test_what_is_not_finite_stays_so(self, options: dict[str, Any], value: float) -> None:
        p, labels = batch()
        broken = p.detach().clone()
        broken[3, 0] = value
        assert not made(options)(broken, labels).isfinite()

    def test_permuted_classes_give_the_same_loss(self, options: dict[str, Any]) -> None:
        p, labels = batch()
        order = np.array([2, 0, 3, 1])
        weights = torch.tensor([0.5, 2.0, 1.0, 0.7])
        plain = made(options, weights=weights)
        permuted = made(options, GUIDE.restricted([GUIDE.classes[c] for c in order]), weights[order])
        # The random start knows no classes: give each class the start it had.
        permuted.restore(
            {
                name: value[..., order] if name in plain.sliced | plain.whole else value[order]
                for name, value in plain.state().items()
            }
        )
        renamed = torch.from_numpy(np.argsort(order))[labels]
        assert plain(p, labels).item() == pytest.approx(permuted(p, renamed).item(), rel=1e-5)

    def test_weights_of_one_change_nothing_and_a_heavy_class_counts_more(self, options: dict[str, Any]) -> None:
        p, labels = batch()
        plain = made(options)(p, labels).item()
        assert made(options, weights=torch.ones(4))(p, labels).item() == pytest.approx(plain, rel=1e-5)
        heavier = [made(options, weights=1 + 2 * torch.eye(4)[c])(p, labels).item() for c in range(4)]
        # Each class three times as heavy in turn: every term was counted thrice once, and once otherwise.
        assert sum(heavier) == pytest.approx((4 + 2) * plain, rel=1e-5)
        assert len({round(value, 6) for value in heavier}) > 1

    def test_a_few_steps_reduce_it(self, options: dict[str, Any]) -> None:
        loss = made(options)
        start, labels = batch(cells=16)
        p = (5 * start).detach().requires_grad_()
        first = loss(p, labels).item()
        optimizer = torch.optim.SGD([p, *loss.sliced.values(), *loss.whole.values()], lr=0.05)
        for _ in range(20):
            optimizer.zero_grad()
            loss(p, labels).backward()
            optimizer.step()
        assert 0 <= loss(p, labels).item() < first

    def test_state_survives_a_checkpoint(self, options: dict[str, Any]) -> None:
        loss = made(options)
        rng = np.random.default_rng(0)
        many = np.repeat(np.arange(4), 20)
        embedding = (np.pad(GUIDE.points, ((0, 0), (0, 2)))[many] + 0.3 * rng.normal(size=(80, 4))).astype(np.float32)
        loss.refresh(embedding, many, 5)
        kept = loss.state()
        for value in [*loss.sliced.values(), *loss.whole.values()]:
            with torch.no_grad():
                value += 1  # a state is a copy: training on does not change it
        other, third = made(options, seed=1), made(options, seed=2)
        other.restore(kept)
        third.restore(other.state())
        p, labels = batch(LONGEST)
        assert other(p, labels).item() == third(p, labels).item()
        if kept:
            assert made(options, seed=1)(p, labels).item() != other(p, labels).item(), "there was something to restore"
        points = other.points(LONGEST)
        assert points is None or np.array_equal(points, third.points(LONGEST))

    def test_the_same_generator_gives_the_same_start(self, options: dict[str, Any]) -> None:
        p, labels = batch()
        torch.manual_seed(1)
        one = made(options)(p, labels).item()
        torch.manual_seed(2)
        assert made(options)(p, labels).item() == one

    def test_points_are_what_cells_are_drawn_to(self, options: dict[str, Any]) -> None:
        """A cell of each class on its point costs least; a loss that draws to no points has none."""
        loss = made(options)
        points = loss.points(5)
        if options["name"] in ("guide2d", "guide_umap"):
            assert points is not None and points.shape == (4, 5)
            assert np.allclose(points[:, :2], GUIDE.points) and not points[:, 2:].any()
        assert (points is None) == (options["name"] not in ("guide2d", "guide_umap", "prototype"))
        if points is not None:
            there, labels = torch.tensor(points, dtype=torch.float32), torch.arange(4)
            assert loss(there, labels) < loss(there + 1, labels)

    def test_unopened_components_have_no_effect_no_gradient_and_no_decay(self, options: dict[str, Any]) -> None:
        loss = made(options)
        p, labels = batch(3)
        plain = loss(p, labels).item()
        before = loss.state()
        with torch.no_grad():
            for value in loss.sliced.values():
                value[3:] = 1e6
        assert loss(p, labels).item() == plain
        loss.restore(before)
        net = small_net()
        optimizers = Optimizers(net, 0.01, 0.1, sliced=loss.sliced.values(), whole=loss.whole.values())
        optimizers.prepare(0.01, 3)
        optimizers.step(loss(net(pictures(12), 3), labels))
        for name, value in loss.sliced.items():
            assert value.shape[0] == LONGEST
            assert torch.equal(value[3:], before[name][3:]) and not torch.equal(value[:3], before[name][:3])
            assert value.grad is not None and not value.grad[3:].any()

    def test_a_head_predicts_what_its_loss_wants(self, options: dict[str, Any]) -> None:
        loss = made(options)
        start, labels = batch(4, cells=16)
        if loss.predict(start.detach().numpy()) is None:
            assert not loss.sliced and not loss.whole
            return
        p = start.detach().requires_grad_()
        optimizer = torch.optim.Adam([p, *loss.sliced.values(), *loss.whole.values()], lr=0.1)
        for _ in range(60):
            optimizer.zero_grad()
            loss(p, labels).backward()
            optimizer.step()
        assert np.array_equal(loss.predict(p.detach().numpy()), labels.numpy())
