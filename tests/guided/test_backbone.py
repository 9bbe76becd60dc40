from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import oracles
import pytest
import torch
from torch import nn

from guided.backbone import TRUNKS, EmbeddingNet, Optimizers, SlicedAdam
from guided.config import Backbone

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


def test_a_row_that_opens_late_takes_the_steps_of_a_fresh_adam() -> None:
    head = nn.Linear(1, 2, bias=False)
    optimizer = SlicedAdam(head.parameters(), lr=0.1)
    gradients = [0.5, -0.2, 0.1, 0.7]
    start = head.weight[1, 0].item()
    optimizer.open_rows = 1
    for _ in range(50):
        head.weight.grad = torch.ones(2, 1)
        optimizer.step()
    optimizer.open_rows = 2
    seen = []
    for gradient in gradients:
        head.weight.grad = torch.tensor([[1.0], [gradient]])
        optimizer.step()
        seen.append(head.weight[1, 0].item())
    assert seen == pytest.approx(oracles.adam_row(gradients, start, 0.1), abs=1e-5)


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
