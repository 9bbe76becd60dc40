from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import oracles
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from guided.backbone import TRUNKS, EmbeddingNet, Optimizers, SlicedAdam
from guided.config import Backbone, Embedding
from guided.growth import length_at

SMALL = Backbone(name="densenet_small")


def images(count: int = 4, size: int = 32) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", sorted(TRUNKS))
def test_every_trunk_embeds_small_patches(name: str) -> None:
    net = EmbeddingNet(Backbone(name=name), 5).eval()  # type: ignore[arg-type]
    assert net(images(2, 48), 3).shape == (2, 3)


def test_no_trunk_remembers_statistics_longer_than_ten_steps() -> None:
    for name in TRUNKS:
        net = EmbeddingNet(Backbone(name=name), 2)  # type: ignore[arg-type]
        momenta = [module.momentum for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
        assert momenta and min(m for m in momenta if m is not None) >= 0.1


def test_a_sliced_head_is_a_small_head() -> None:
    net = EmbeddingNet(SMALL, 8).eval()
    small = nn.Linear(net.head.in_features, 3)
    small.load_state_dict({"weight": net.head.weight[:3], "bias": net.head.bias[:3]})
    x = images()
    assert torch.equal(net(x, 3), small(net.trunk(x)))


@pytest.mark.parametrize("length", [2, 3, 8])
def test_gradients_are_those_of_a_small_head_and_zero_beyond(length: int) -> None:
    torch.manual_seed(0)
    net = EmbeddingNet(SMALL, 8).eval()
    small = nn.Linear(net.head.in_features, length)
    small.load_state_dict({"weight": net.head.weight[:length], "bias": net.head.bias[:length]})
    x = images()
    net(x, length).pow(3).sum().backward()
    trunk = [p.grad.clone() for p in net.trunk.parameters() if p.grad is not None]
    net.trunk.zero_grad()
    small(net.trunk(x)).pow(3).sum().backward()
    for one, other in ((net.head.weight, small.weight), (net.head.bias, small.bias)):
        assert one.grad is not None and other.grad is not None
        assert torch.equal(one.grad[:length], other.grad)
        assert not one.grad[length:].any()
    again = [p.grad for p in net.trunk.parameters() if p.grad is not None]
    assert len(trunk) == len(again) and all(map(torch.equal, trunk, again))


def test_components_that_are_not_open_do_not_move_and_weight_decay_leaves_them() -> None:
    net = EmbeddingNet(SMALL, 8)
    before = {key: value.clone() for key, value in net.head.state_dict().items()}
    optimizers = Optimizers(net, lr=0.01, weight_decay=0.1)
    for _ in range(3):
        optimizers.prepare(0.01, 3)
        optimizers.step(net(images(), 3).square().mean())
    for key, value in net.head.state_dict().items():
        assert torch.equal(value[3:], before[key][3:])
        assert (value[:3] != before[key][:3]).all()


@pytest.mark.parametrize("rule", ["paper", "literal", "staged"])
def test_while_growing_a_component_first_moves_in_the_epoch_that_opens_it(rule: str) -> None:
    config = Embedding(length=8, rule=rule)  # type: ignore[arg-type]
    torch.manual_seed(0)
    net = EmbeddingNet(SMALL, 8)
    start = net.head.weight.detach().clone()
    optimizers = Optimizers(net, lr=0.01, weight_decay=0.1)
    x = images(2)
    for epoch in range(8):
        length = length_at(epoch, config, 10)
        optimizers.prepare(0.01, length)
        optimizers.step(net(x, length).square().mean())
        moved = (net.head.weight != start).any(1).tolist()
        assert moved == [row < length for row in range(8)]


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_open_from_the_start_it_is_torch_adam(decay: float) -> None:
    torch.manual_seed(0)
    ours, theirs = nn.Linear(4, 3), nn.Linear(4, 3)
    theirs.load_state_dict(ours.state_dict())
    a = SlicedAdam(ours.parameters(), lr=0.01, weight_decay=decay)
    b = torch.optim.Adam(theirs.parameters(), lr=0.01, weight_decay=decay)
    x = torch.randn(16, 4)
    for _ in range(20):
        for head, optimizer in ((ours, a), (theirs, b)):
            optimizer.zero_grad()
            head(x).square().mean().backward()
            optimizer.step()
    assert torch.allclose(ours.weight, theirs.weight, atol=1e-6)


@given(
    growths=st.lists(st.integers(0, 2), min_size=1, max_size=30),
    decay=st.sampled_from([0.0, 0.1]),
    seed=st.integers(0, 2**32),
)
def test_every_row_takes_the_steps_of_a_fresh_adam_from_its_opening_on(
    growths: list[int], decay: float, seed: int
) -> None:
    """Rows of weight and bias, opened at any time, against Adam as one number's naive loop; closed rows stay."""
    rng = np.random.default_rng(seed)
    head = nn.Linear(2, 6)
    with torch.no_grad():
        for p in head.parameters():
            p.copy_(torch.from_numpy(rng.normal(size=p.shape)))
    optimizer = SlicedAdam(head.parameters(), lr=0.05, weight_decay=decay)
    start = torch.column_stack([head.weight, head.bias[:, None]]).detach().double().numpy().copy()  # (6, 3)
    gradients = rng.normal(size=(len(growths), 6, 3)).astype(np.float32)
    open_rows, opened = 2, [0, 0]
    for step, more in enumerate(growths):
        open_rows = min(open_rows + more, 6)
        opened += [step] * (open_rows - len(opened))
        optimizer.open_rows = open_rows
        head.weight.grad = torch.from_numpy(gradients[step, :, :2].copy())
        head.bias.grad = torch.from_numpy(gradients[step, :, 2].copy())
        optimizer.step()
    end = torch.column_stack([head.weight, head.bias[:, None]]).detach().numpy()
    assert np.array_equal(end[open_rows:], start[open_rows:].astype(np.float32))
    for row, since in enumerate(opened):
        for column in range(3):
            seen = gradients[since:, row, column].astype(float).tolist()
            expected = oracles.adam_row(seen, start[row, column], 0.05, decay)[-1]
            assert end[row, column] == pytest.approx(expected, abs=1e-4)


def test_plain_adam_moves_a_late_row_too_far() -> None:
    """Why SlicedAdam exists: under a common step count the first step of a late row is 3.2 learning rates long."""
    weight = nn.Parameter(torch.zeros(2, 1))
    optimizer = torch.optim.Adam([weight], lr=0.1)
    for _ in range(1000):
        weight.grad = torch.tensor([[1.0], [0.0]])
        optimizer.step()
    before = weight[1, 0].item()
    weight.grad = torch.ones(2, 1)
    optimizer.step()
    assert abs(weight[1, 0].item() - before) > 0.2


def test_optimizers_go_on_from_their_state() -> None:
    def trained(interrupted: bool) -> np.ndarray:
        torch.manual_seed(0)
        net = EmbeddingNet(SMALL, 4)
        optimizers = Optimizers(net, 0.01, 0.0)
        for step in range(4):
            if interrupted and step == 2:
                state = optimizers.state_dict()
                optimizers = Optimizers(net, 0.01, 0.0)
                optimizers.load_state_dict(state)
            optimizers.prepare(0.01, 2 + step // 2)
            optimizers.step(net(images(), 2 + step // 2).square().mean())
        return net.head.weight.detach().numpy()

    assert np.array_equal(trained(False), trained(True))


class TestWeights:
    def test_a_state_dict_is_taken_into_the_trunk(self, tmp_path: Path) -> None:
        torch.manual_seed(1)
        source = TRUNKS["densenet_small"][0]()
        path = tmp_path / "weights.pt"
        torch.save(source.state_dict(), path)
        net = EmbeddingNet(Backbone(name="densenet_small", weights=str(path)), 2)
        assert torch.equal(net.trunk.features.conv0.weight, source.features.conv0.weight)  # type: ignore[union-attr]

    def test_weights_of_another_trunk_are_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "weights.pt"
        torch.save(TRUNKS["resnet10"][0]().state_dict(), path)
        with pytest.raises(ValueError, match="does not fit densenet_small"):
            EmbeddingNet(Backbone(name="densenet_small", weights=str(path)), 2)

    def test_a_pickle_that_runs_code_is_refused_and_does_not_run(self, tmp_path: Path) -> None:
        class Evil:
            def __reduce__(self) -> tuple[object, tuple[str]]:
                return os.mkdir, (str(tmp_path / "ran"),)

        path = tmp_path / "weights.pt"
        torch.save({"a": Evil()}, path)
        with pytest.raises(ValueError, match="is not a state dict"):
            EmbeddingNet(Backbone(name="densenet_small", weights=str(path)), 2)
        assert not (tmp_path / "ran").exists()

    def test_an_absent_file_and_weights_that_do_not_exist_are_told(self) -> None:
        with pytest.raises(ValueError, match=r"no file nowhere\.pt"):
            EmbeddingNet(Backbone(name="densenet_small", weights="nowhere.pt"), 2)
        with pytest.raises(ValueError, match="torchvision has no weights for resnet10"):
            EmbeddingNet(Backbone(name="resnet10", weights="torchvision"), 2)

    def test_weights_that_cannot_be_downloaded_are_told(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*args: object, **kwargs: object) -> None:
            raise OSError("no route")

        monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refuse)
        with pytest.raises(ValueError, match=r"could not be downloaded \(no route\)"):
            EmbeddingNet(Backbone(name="resnet18", weights="torchvision"), 2)
